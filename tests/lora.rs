//! LoRA adapters: llama.cpp's logits, the same bits in any company, and files that do not fit. What
//! is asked of every backend is a function here.

use std::sync::Arc;

use jetforge::base::hash::hex;
use jetforge::inference::backend::cpu::{CpuBackend, CpuConfig, Isa, KvType};
use jetforge::inference::backend::{AdapterIdx, Batch, BatchError, PageIdx, Span};
use jetforge::inference::gguf::GgufBuilder;
use jetforge::inference::model::{Hparams, plan};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{Gguf, LoadProgress};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::support::recipe::{Recipe, golden_floats, golden_json, ints};

/// The largest difference of a logit from llama.cpp's, on F32 weights.
const LOGIT_MAX: f64 = 1e-3;

/// A case's base model on the backend, with its adapters loaded in order.
fn backend(case: &str) -> (CpuBackend, Vec<AdapterIdx>) {
    let gguf = Gguf::from_vec(Recipe::read(case).build(TensorType::F32)).expect("a model");
    let gguf = Arc::new(gguf);
    let hparams = Hparams::from_gguf(&gguf).expect("a known architecture");
    let plan = plan(&gguf, &hparams).expect("a plan");
    let isa = Isa::choose(None).expect("the fastest");
    let (n_threads, n_page, kv_type) = (2, 8, KvType::F32);
    let config = CpuConfig {
        n_threads,
        pin_threads: false,
        n_batch: 64,
        n_outputs: 64,
        n_page,
        kv_type,
        isa,
    };
    let mut backend = CpuBackend::new(plan, gguf, config, &LoadProgress::default())
        .expect("the weights are there");
    let load = |adapter| backend.add_adapter(&adapter, case).expect("an adapter for this model");
    let idxs = adapters(case).into_iter().map(load).collect();
    (backend, idxs)
}

/// A case's adapters, in order.
pub fn adapters(case: &str) -> Vec<Gguf> {
    let titles = golden_json(&format!("lora/{case}"))["adapters"].clone();
    let read = |title: &Json| {
        let recipe = Recipe::adapter(&format!("{case}-{}", title.as_str().expect("a name")));
        let bytes = recipe.build(TensorType::F32);
        let digest = hex(&Sha256::digest(&bytes));
        assert_eq!(digest, recipe.sha256(), "{case} {title}: not the file that llama.cpp read");
        Gguf::from_vec(bytes).expect("the reader takes the file")
    };
    titles.as_array().expect("adapters").iter().map(read).collect()
}

/// How far logits are from others.
pub type Far = fn(&[f32], &[f32]) -> f64;

/// Runs a batch within the rules; its rows.
pub type Forward<'a> = &'a mut dyn FnMut(&Batch<'_>) -> Vec<Vec<f32>>;

fn forward(backend: &mut CpuBackend) -> impl FnMut(&Batch<'_>) -> Vec<Vec<f32>> {
    move |batch: &Batch<'_>| {
        let rows = backend.forward(batch).expect("a batch within the rules");
        rows.into_iter().map(<[f32]>::to_vec).collect()
    }
}

fn mixture(json: &Json, idxs: &[AdapterIdx]) -> Vec<(AdapterIdx, f32)> {
    let items = json.as_array().expect("a mixture is a list").iter();
    let one = |item: &Json| {
        let idx = item[0].as_u64().expect("a number") as usize;
        (idxs[idx], item[1].as_f64().expect("a scale") as f32)
    };
    items.map(one).collect()
}

/// Logits of every token.
pub fn run(
    forward: Forward<'_>,
    tokens: &[u32],
    pos: usize,
    pages: &[PageIdx],
    adapters: &[(AdapterIdx, f32)],
) -> Vec<Vec<f32>> {
    let spans = [Span { pages, pos, n_tokens: tokens.len(), n_prompt: 0, adapters }];
    let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
    forward(&Batch { tokens, spans: &spans, outputs: &outputs })
}

/// Holds the logits of a case's mixtures to llama.cpp's: `far(ours, theirs)` is below `far_max`.
pub fn give_llama_cpps_logits(
    case: &str,
    forward: Forward<'_>,
    idxs: &[AdapterIdx],
    (far, far_max): (Far, f64),
) {
    let name = format!("lora/{case}");
    let (json, values) = (golden_json(&name), golden_floats(&name));
    let (tokens, sampled) = (ints::<u32>(&json["tokens"]), ints::<usize>(&json["sampled"]));
    let mixtures = json["mixtures"].as_array().expect("mixtures");
    let n_vocab = values.len() / mixtures.len() / sampled.len();
    let mut wanted = values.chunks(n_vocab);
    for item in mixtures {
        let rows = run(forward, &tokens, 0, &[0], &mixture(item, idxs));
        for &pos in &sampled {
            let far = far(&rows[pos], wanted.next().expect("a row for each"));
            assert!(far < far_max, "{case} {item} at {pos}: {far}");
        }
    }
}

#[test]
fn adapters_give_llama_cpps_logits() {
    let worst = |ours: &[f32], theirs: &[f32]| {
        let diff = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs()));
        diff.fold(0.0, f64::max)
    };
    for case in ["llama", "phi2"] {
        let (mut backend, idxs) = backend(case);
        give_llama_cpps_logits(case, &mut forward(&mut backend), &idxs, (worst, LOGIT_MAX));
    }
}

#[test]
fn sequences_with_different_adapters_share_a_batch_and_keep_their_bits() {
    let (mut backend, idxs) = backend("llama");
    keep_their_bits(&mut forward(&mut backend), &idxs);
}

/// Runs sequences with different mixtures of two adapters of the case `llama` alone and together.
pub fn keep_their_bits(forward: Forward<'_>, idxs: &[AdapterIdx]) {
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % 300).collect();
    let mixtures: [&[(AdapterIdx, f32)]; 5] = [
        &[],
        &[(idxs[0], 1.0)],
        &[(idxs[0], 1.0)],
        &[(idxs[1], 0.5), (idxs[0], -1.0)],
        &[(idxs[1], 0.25)],
    ];
    let alone: Vec<_> = mixtures.iter().map(|m| run(forward, &tokens, 0, &[7], m)).collect();
    assert!(alone[0] != alone[1] && alone[1] == alone[2] && alone[3] != alone[4]);

    // The first tokens together, then the rest, in spans of different lengths.
    let pages: [[PageIdx; 1]; 5] = [[4], [1], [3], [0], [2]];
    let cuts = [5, 1, 9, 12, 2];
    let mut together = vec![vec![]; 5];
    for is_rest in [false, true] {
        let range = |i: usize| if is_rest { cuts[i]..15 } else { 0..cuts[i] };
        let all: Vec<u32> = (0..5).flat_map(|i| tokens[range(i)].to_vec()).collect();
        let span = |i: usize| Span {
            pages: &pages[i],
            pos: range(i).start,
            n_tokens: range(i).len(),
            n_prompt: 0,
            adapters: mixtures[i],
        };
        let spans: Vec<Span<'_>> = (0..5).map(span).collect();
        // Not every token has an output, and one span has none.
        let outputs: Vec<u32> = (0..all.len() as u32).filter(|o| o % 3 != 1).collect();
        let batch = Batch { tokens: &all, spans: &spans, outputs: &outputs };
        let mut rows = outputs.iter().zip(forward(&batch)).peekable();
        let mut first = 0;
        for i in 0..5 {
            let end = first + range(i).len() as u32;
            while let Some((&o, row)) = rows.next_if(|(o, _)| **o < end) {
                together[i].push((range(i).start + (o - first) as usize, row));
            }
            first = end;
        }
    }
    for (i, rows) in together.iter().enumerate() {
        assert!(!rows.is_empty());
        for (pos, row) in rows {
            assert!(*row == alone[i][*pos], "sequence {i} at {pos}");
        }
    }
}

#[test]
fn an_adapter_that_is_not_loaded_is_refused() {
    let (mut backend, idxs) = backend("phi2");
    assert!(backend.adapter(idxs[0]).is_some_and(|a| a.bytes() > 0 && a.skipped().is_empty()));
    let adapter = idxs.iter().max().expect("there are some") + 1;
    assert!(backend.adapter(adapter).is_none());
    let adapters = [(adapter, 1.0)];
    let spans = [Span { pages: &[0], pos: 0, n_tokens: 1, n_prompt: 0, adapters: &adapters }];
    let error = backend.forward(&Batch { tokens: &[1], spans: &spans, outputs: &[] });
    let refusal = error.expect_err("refused").to_string();
    assert_eq!(refusal, BatchError::Adapter { adapter }.to_string());
    let bytes = Recipe::adapter("phi2-fused").build(TensorType::F32);
    let again = Gguf::from_vec(bytes).expect("the reader takes the file");
    assert_eq!(backend.add_adapter(&again, "phi2").expect("it fits"), adapter);
}

/// An adapter file with these keys and tensors.
fn file(keys: &[(&str, &str)], tensors: &[(&str, &[u64])]) -> Gguf {
    let mut file = GgufBuilder::new();
    for (key, value) in keys {
        file = file.pair(*key, *value);
    }
    for (name, shape) in tensors {
        let n = shape.iter().product::<u64>() as usize;
        file = file.tensor(*name, shape, TensorType::F32, vec![0; 4 * n]);
    }
    Gguf::from_vec(file.build()).expect("the reader takes the file")
}

#[test]
fn files_that_are_no_adapter_of_the_model_are_refused_by_name() {
    let (mut backend, _) = backend("llama");
    let keys =
        [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")];
    let (q, n) = ("blk.0.attn_q.weight", 256);
    let (a, b) = (format!("{q}.lora_a"), format!("{q}.lora_b"));
    let good: [(&str, &[u64]); 2] = [(&a, &[n, 2]), (&b, &[2, n])];
    let mut error = |keys: &[(&str, &str)], tensors: &[(&str, &[u64])]| {
        backend.add_adapter(&file(keys, tensors), "llama").expect_err("refused").to_string()
    };
    let mut check = |keys: &[(&str, &str)], tensors: &[(&str, &[u64])], part: &str| {
        let error = error(keys, tensors);
        assert!(error.contains(part), "{error}");
    };
    check(&keys[..2], &good, "'adapter.type' is missing");
    let other = [("general.architecture", "qwen2"), keys[1], keys[2]];
    check(&other, &good, "'general.architecture' is qwen2");
    check(&keys, &[], "changes nothing");
    check(&keys, &good[..1], "not both");
    check(&keys, &[good[0], (&b, &[3, n])], "do not fit the model's [256, 256]");
    check(&keys, &[(&a, &[n, 5000]), (&b, &[5000, n])], "rank 5000");
    check(&keys, &[("blk.0.attn_q.weight", &[n, n])], "neither a lora_a nor a lora_b");
    let elsewhere = ["blk.9.attn_q.weight.lora_a", "blk.9.attn_q.weight.lora_b"];
    check(&keys, &[(elsewhere[0], &[n, 2]), (elsewhere[1], &[2, n])], "no matrix of this model");
    let norm = ["output_norm.weight.lora_a", "output_norm.weight.lora_b"];
    check(&keys, &[(norm[0], &[n, 2]), (norm[1], &[2, 1])], "no matrix of this model");
    let alora = [keys[0], keys[1], keys[2], ("adapter.alora.invocation_tokens", "")];
    check(&alora, &good, "invocation_tokens");
    // A norm vector is skipped, and said to be.
    let with_norm = file(&keys, &[good[0], good[1], ("output_norm.weight", &[n])]);
    let idx = backend.add_adapter(&with_norm, "llama").expect("it fits");
    assert_eq!(backend.adapter(idx).expect("it is loaded").skipped(), ["output_norm.weight"]);
}
