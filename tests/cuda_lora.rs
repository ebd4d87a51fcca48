//! LoRA adapters on the stand-in for libcuda: the kernels' arithmetic in any order of threads,
//! llama.cpp's logits, the same bits in any company and in recorded steps, halves of a model, and
//! an answer where memory is missing.

use std::path::{Path, PathBuf};

use jetforge::inference::backend::cases::activations;
use jetforge::inference::backend::cuda::launch::{LoraKernels, LoraPair, LoraTable, LoraUses};
use jetforge::inference::backend::cuda::upload::Upload;
use jetforge::inference::backend::cuda::{CudaBackend, CudaConfig, Device, KvFormat};
use jetforge::inference::backend::{AdapterIdx, Batch, BatchError, Span};
use jetforge::inference::gguf::{Gguf, GgufBuilder};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{InferenceError, LoadOptions, Model, ModelSource};
use serde_json::json;

use crate::cli::jetforge;
use crate::cuda::{ORDERS, close, device, download, send};
use crate::cuda_engine::{distance, on_cpu, on_cuda, try_backend, write};
use crate::lora::{Far, adapters, give_llama_cpps_logits, keep_their_bits, run};
use crate::serve::Process;
use crate::support::http::{get, post};
use crate::support::recipe::Recipe;
use crate::support::stand_in::{self, Directed};

/// How far logits in F32 may be from the CPU's, as a share of their size: what halves alone do.
const DISTANCE_MAX: f64 = 0.01;

/// Narrow sides of three adapters that change a weight; one between them does not.
const RANKS: [Option<usize>; 4] = [Some(1), Some(16), None, Some(67)];

/// What rows ask for: a slot, and a scale.
const ASKED: [Option<(usize, f32)>; 7] = [
    Some((3, -0.5)),
    None,
    Some((0, 1.0)),
    Some((1, 0.25)),
    Some((2, 1.0)),
    Some((3, 2.0)),
    Some((1, 0.0)),
];

/// A weight `[n_out, n_in]`, with rows that lie wider than they are.
#[derive(Clone, Copy)]
struct Shape {
    n_out: usize,
    n_in: usize,
}

impl Shape {
    /// A and B transposed of an adapter.
    fn pair(self, slot: usize, rank: usize) -> [Vec<f32>; 2] {
        let seed = 20 + 2 * slot as u64;
        [(self.n_in, seed), (self.n_out, seed + 1)].map(|(n, seed)| activations(rank, n, n, seed))
    }

    fn rows(self) -> (Vec<f32>, Vec<f32>) {
        let n = ASKED.len();
        let x = activations(n, self.n_in, self.n_in + 5, 3);
        let mut y = activations(n, self.n_out, self.n_out + 3, 4);
        y.chunks_exact_mut(self.n_out + 3).for_each(|row| row[self.n_out..].fill(0.25));
        (x, y)
    }

    /// What becomes of these of the rows.
    fn run(self, device: &Device, rows: std::ops::Range<usize>) -> Vec<f32> {
        let kernels = LoraKernels::load(device).expect("kernels");
        let pair = |(slot, rank): (usize, Option<usize>)| {
            let rank = rank?;
            let [a, b] = self.pair(slot, rank).map(|values| send(device, &values));
            Some(LoraPair { a, b, rank, scale: 0.5 + slot as f32 })
        };
        let pairs = RANKS.into_iter().enumerate().map(pair).collect();
        let place = device.allocate("a table", LoraTable::SLOT_BYTES * RANKS.len());
        let shape = (self.n_out, self.n_in);
        let table = LoraTable::write(pairs, shape, place.expect("memory")).expect("a copy");
        let mut upload = Upload::new(device, 16 * ASKED.len()).expect("memory");
        let uses = LoraUses::new(&ASKED[rows.clone()], &mut upload);
        upload.send().expect("a copy");
        let (x_stride, y_stride) = (self.n_in + 5, self.n_out + 3);
        let (x, y) = self.rows();
        let x = send(device, &x[rows.start * x_stride..rows.end * x_stride]);
        let y = send(device, &y[rows.start * y_stride..rows.end * y_stride]);
        let hidden = device.allocate("hidden", 4 * 67 * rows.len()).expect("memory");
        let (x, to) = ((&x, x_stride), (&y, y_stride));
        kernels.apply(&table, &uses, x, to, &hidden).expect("launched");
        download(&y, rows.len() * y_stride)
    }

    fn expected(self) -> Vec<f64> {
        let (x, y) = self.rows();
        let mut out: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
        let rows = x.chunks_exact(self.n_in + 5).zip(out.chunks_exact_mut(self.n_out + 3));
        for ((x, y), asked) in rows.zip(ASKED) {
            let Some((slot, scale)) = asked else { continue };
            let Some(rank) = RANKS[slot] else { continue };
            let [a, b] = self.pair(slot, rank);
            let factor = f64::from(scale) * (0.5 + slot as f64);
            for (a, b) in a.chunks_exact(self.n_in).zip(b.chunks_exact(self.n_out)) {
                let terms = a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x));
                let hidden = factor * terms.sum::<f64>();
                y.iter_mut().zip(b).for_each(|(y, b)| *y += hidden * f64::from(*b));
            }
        }
        out
    }
}

const SHAPES: [Shape; 4] = [
    Shape { n_out: 1, n_in: 1 },
    Shape { n_out: 5, n_in: 61 },
    Shape { n_out: 128, n_in: 256 },
    Shape { n_out: 257, n_in: 1057 },
];

#[test]
fn each_row_gets_the_adapter_that_it_asks_for_in_any_order_of_threads() {
    for shape in SHAPES {
        let (mut first, expected): (Option<Vec<f32>>, _) = (None, shape.expected());
        for order in ORDERS {
            let Some((device, _dir)) = device(order) else { return };
            let got = shape.run(&device, 0..ASKED.len());
            let what = format!("[{}, {}] {order}", shape.n_out, shape.n_in);
            // A row at a time: their sizes are as different as their adapters.
            let width = shape.n_out + 3;
            let rows = got.chunks_exact(width).zip(expected.chunks_exact(width));
            for (r, (got, expected)) in rows.enumerate() {
                close(got, expected, 1e-5, &format!("{what}, row {r}"));
            }
            assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{what}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_launches_of_any_size() {
    let Some((device, _dir)) = device("") else { return };
    let shape = SHAPES[3];
    let all = shape.run(&device, 0..ASKED.len());
    let width = shape.n_out + 3;
    for first in 0..ASKED.len() {
        let alone = shape.run(&device, first..first + 1);
        assert_eq!(alone, all[first * width..][..width], "row {first}");
    }
    // So small that each row has launches of its own, and then two at a time.
    for n_max in [1, 2 * 4 * 67 * shape.n_in] {
        let n_before = device.n_launch();
        let got = shape.run(&device.clone().with_launch_products(n_max), 0..ASKED.len());
        let n_launch = (device.n_launch() - n_before) as usize;
        assert_eq!(n_launch, 2 * ASKED.len().div_ceil(if n_max == 1 { 1 } else { 2 }));
        assert_eq!(got, all, "{n_max} products a launch");
    }
}

/// A backend of a case's model, without its adapters.
fn plain(device: &Device, case: &str) -> CudaBackend {
    let config =
        CudaConfig { n_batch: 64, n_outputs: 64, n_page: 8, kv: KvFormat::F16, n_threads: 1 };
    try_backend(device, case, TensorType::F32, config).expect("the backend starts")
}

fn backend(device: &Device, case: &str) -> (CudaBackend, Vec<AdapterIdx>) {
    let mut backend = plain(device, case);
    let add = |gguf: Gguf| backend.add_adapter(&gguf, case).expect("an adapter for this model");
    let idxs = adapters(case).into_iter().map(add).collect();
    (backend, idxs)
}

fn forward(backend: &mut CudaBackend) -> impl FnMut(&Batch<'_>) -> Vec<Vec<f32>> {
    move |batch: &Batch<'_>| {
        let rows = backend.forward(batch).expect("a batch within the rules");
        rows.into_iter().map(<[f32]>::to_vec).collect()
    }
}

#[test]
fn adapters_give_llama_cpps_logits() {
    let Some((device, _dir)) = device("") else { return };
    // The embedding and the output are changed in one, parts of a fused matrix in the other.
    for case in ["llama", "phi2"] {
        let (mut backend, idxs) = backend(&device, case);
        let near = (distance as Far, DISTANCE_MAX);
        give_llama_cpps_logits(case, &mut forward(&mut backend), &idxs, near);
    }
}

#[test]
fn sequences_with_different_adapters_share_a_batch_and_keep_their_bits() {
    let Some((device, _dir)) = device("") else { return };
    let (mut backend, idxs) = backend(&device, "llama");
    keep_their_bits(&mut forward(&mut backend), &idxs);
}

/// What a row asks for is in memory, so that one recording serves them all; it ends when an
/// adapter comes.
#[test]
fn recorded_steps_serve_other_adapters_and_scales() {
    let tokens = Recipe::read("llama").tokens();
    let rows = |conf: &str, scales: [f32; 2]| {
        let (library, _dir) = stand_in::copy(&format!("log\n{conf}"))?;
        let device = Device::open(&library, 0).expect("the stand-in has a device");
        let (mut backend, idxs) = backend(&device, "llama");
        let (first, second) = (idxs[0], idxs[1]);
        let mut rows = Vec::new();
        let mut step = |backend: &mut CudaBackend, i: usize, asked: (AdapterIdx, f32)| {
            rows.extend(run(&mut forward(backend), &tokens[i..=i], i, &[3], &[asked]));
        };
        for i in 0..4 {
            step(&mut backend, i, (first, scales[0]));
        }
        step(&mut backend, 4, (first, scales[1]));
        step(&mut backend, 5, (second, scales[0]));
        let again = adapters("llama").remove(0);
        let third = backend.add_adapter(&again, "llama").expect("it fits");
        for i in 6..9 {
            step(&mut backend, i, (third, scales[0]));
        }
        for i in 9..12 {
            step(&mut backend, i, ([second, third][i % 2], scales[0]));
        }
        let calls = stand_in::calls(&library);
        let n_started = calls.iter().filter(|(call, _)| call == "cuGraphLaunch").count();
        Some((rows, n_started))
    };
    let Some((recorded, n_started)) = rows("", [1.0, -0.5]) else { return };
    assert_eq!(n_started, 5 + 5, "all but the first of each kind");
    let one_by_one = rows("fail cuStreamBeginCapture_v2 1 801", [1.0, -0.5]).expect("as before");
    assert_eq!(one_by_one.1, 0);
    assert!(recorded == one_by_one.0);
    let (same, _) = rows("", [1.0, 1.0]).expect("as before");
    assert!(same[..4] == recorded[..4] && same[4] != recorded[4], "the canary");
}

/// Every cut, with a mixture of two adapters of which one changes all matrices.
#[test]
fn each_half_of_a_model_takes_the_pairs_of_its_own_matrices() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::F32);
    let tokens = Recipe::read("llama").tokens();
    let load = |options: &LoadOptions| {
        let mut model = Model::load(&source, options).expect("it loads");
        let add = |gguf: Gguf| model.add_adapter(&gguf).expect("an adapter for this model");
        let idxs: Vec<AdapterIdx> = adapters("llama").into_iter().map(add).collect();
        (model, idxs)
    };
    let logits = |options: &LoadOptions| {
        let (mut model, idxs) = load(options);
        let plain = model.logits(&tokens).expect("logits");
        model.set_adapters(&[(idxs[0], 0.75), (idxs[1], -0.25)]);
        (plain, model.logits(&tokens).expect("logits"))
    };
    let (plain, expected) = logits(&on_cpu());
    assert!(distance(&plain, &expected) > 10.0 * DISTANCE_MAX, "the canary");
    let n_layer = load(&on_cpu()).0.hparams().n_layer as u32;
    for n in 1..=n_layer + 1 {
        let options = LoadOptions { n_gpu_layers: Some(n), ..on_cuda(&library) };
        let far = distance(&logits(&options).1, &expected);
        assert!(far < DISTANCE_MAX, "{n} on the GPU: {far:.1e}");
    }
    // What neither half has is refused, and takes no number from those that follow.
    let options = LoadOptions { n_gpu_layers: Some(n_layer), ..on_cuda(&library) };
    let (mut model, idxs) = load(&options);
    let error = model.add_adapter(&pair("blk.9.attn_q.weight")).expect_err("there is no such");
    assert!(error.to_string().contains("no matrix of this model"), "{error}");
    // Another half has nothing to do with this one.
    let next = model.add_adapter(&pair("blk.0.attn_q.weight")).expect("it fits");
    assert_eq!(next, idxs[1] + 1);
    model.set_adapters(&[(next, 1.0)]);
    assert!(model.logits(&tokens).expect("logits") != plain);
}

/// An adapter for one matrix `[256, 256]`.
fn pair(name: &str) -> Gguf {
    let mut file = GgufBuilder::new();
    for (key, value) in
        [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")]
    {
        file = file.pair(key, value);
    }
    for (half, shape) in [("lora_a", [256, 2]), ("lora_b", [2, 256])] {
        let values = activations(1, 512, 512, 5).into_iter().flat_map(f32::to_le_bytes);
        let (name, bytes) = (format!("{name}.{half}"), values.collect::<Vec<u8>>());
        file = file.tensor(name, &shape, TensorType::F32, bytes);
    }
    Gguf::from_vec(file.build()).expect("the reader takes the file")
}

/// Each allocation that bringing a second adapter to the device takes (room for what rows ask for,
/// its matrices, tables, room between the kernels), and some of its copies.
#[test]
fn an_adapter_without_memory_is_an_answer_and_those_before_it_stay() {
    let Some((library, _dir)) = stand_in::copy("log") else { return };
    let device = Device::open(&library, 0).expect("the stand-in has a device");
    let directed = Directed::of(&library);
    let files = adapters("llama");
    let tokens = &Recipe::read("llama").tokens()[..5];
    let logits =
        |backend: &mut CudaBackend, idx| run(&mut forward(backend), tokens, 0, &[1], &[(idx, 1.0)]);
    let mut expected: Option<[Vec<Vec<f32>>; 2]> = None;
    let allocations = (1..=5).map(|nth| ("cuMemAlloc_v2", nth, 2));
    for (call, nth, code) in
        allocations.chain([1, 12, 20].map(|n| ("cuMemcpyHtoDAsync_v2", n, 719)))
    {
        let mut backend = plain(&device, "llama");
        // The one with the narrower pairs.
        let first = backend.add_adapter(&files[1], "llama").expect("it fits");
        let before = logits(&mut backend, first);
        directed.direct(&format!("fail {call} {nth} {code}"));
        let added = backend.add_adapter(&files[0], "llama");
        directed.direct("");
        let second = match added {
            Ok(second) => {
                assert!(nth == 5 && code == 2, "{call} {nth} failed and nobody said so");
                second
            }
            Err(error) => {
                let text = error.to_string();
                let is_named = if code == 2 { error.is_gpu_memory() } else { text.contains(call) };
                assert!(is_named && nth != 5, "{call} {nth}: {text}");
                assert!(logits(&mut backend, first) == before, "{call} {nth}");
                assert_eq!(refusal(&mut backend, first + 1), Some(first + 1), "it is not loaded");
                backend.add_adapter(&files[0], "llama").expect("the failure is over")
            }
        };
        assert_eq!(second, first + 1, "no number was lost");
        let after = [logits(&mut backend, first), logits(&mut backend, second)];
        assert!(after[0] == before && after[1] != before, "{call} {nth}");
        assert!(*expected.get_or_insert_with(|| after.clone()) == after, "{call} {nth}");
    }
}

/// The adapter for which a batch is refused.
fn refusal(backend: &mut CudaBackend, adapter: AdapterIdx) -> Option<AdapterIdx> {
    let asked = [(adapter, 1.0)];
    let spans = [Span { pages: &[0], pos: 0, n_tokens: 1, n_prompt: 0, adapters: &asked }];
    let error = backend.forward(&Batch { tokens: &[1], spans: &spans, outputs: &[] }).err()?;
    let text = error.to_string();
    assert_eq!(text, BatchError::Adapter { adapter }.to_string());
    Some(adapter)
}

#[test]
fn an_adapter_that_is_not_loaded_is_refused_and_one_that_comes_changes_no_other() {
    let Some((device, _dir)) = device("") else { return };
    let (mut backend, idxs) = backend(&device, "llama");
    let tokens = &Recipe::read("llama").tokens()[..5];
    let logits =
        |backend: &mut CudaBackend, idx| run(&mut forward(backend), tokens, 0, &[1], &[(idx, 1.0)]);
    let expected = [idxs[0], idxs[1]].map(|idx| logits(&mut backend, idx));
    let next = idxs.iter().max().expect("there are some") + 1;
    assert_eq!(refusal(&mut backend, next), Some(next));
    let again = backend.add_adapter(&adapters("llama")[0], "llama").expect("it fits");
    assert_eq!(again, next);
    assert!(logits(&mut backend, again) == expected[0], "the same once more");
    assert!(logits(&mut backend, idxs[1]) == expected[1], "the other is as before");
}

/// Memory that has room for the model and not for its adapter is found too little before loading.
#[test]
fn adapters_are_counted_before_a_model_is_loaded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::F32);
    let path = folder.path().join("adapter.gguf");
    let bytes = Recipe::adapter("llama-all").build(TensorType::F32);
    std::fs::write(&path, bytes).expect("the adapter is written");
    let needed = |adapters: &[PathBuf], library: &Path| {
        let options = LoadOptions { adapters: adapters.to_vec(), ..on_cuda(library) };
        let model = Model::load(&source, &options)?;
        Ok::<_, InferenceError>(model.memory_plan().needed_bytes())
    };
    let Some((library, _dir)) = stand_in::copy("discrete") else { return };
    let plain = needed(&[], &library).expect("there is room");
    let with = needed(std::slice::from_ref(&path), &library).expect("there is room");
    let gguf = Gguf::open(&path).expect("it is there");
    let n_bytes = gguf.tensors().iter().map(|tensor| 4 * tensor.n_elements());
    assert_eq!(with - plain, n_bytes.sum::<u64>());
    let Some((library, _dir)) = stand_in::copy(&format!("discrete\nmemory {}", with - 1)) else {
        return;
    };
    needed(&[], &library).expect("there is room for the model");
    let error = needed(&[path], &library).expect_err("and not for the adapter");
    assert!(matches!(error, InferenceError::Memory { .. }), "{error}");
}

#[test]
fn a_service_on_a_gpu_answers_with_the_adapters_of_each_request() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let home = tempfile::tempdir().expect("a temporary folder");
    let ModelSource::File(model) = write(home.path(), "llama", TensorType::F32) else {
        unreachable!("it was written to a file")
    };
    let adapter = home.path().join("adapter.gguf");
    let bytes = Recipe::adapter("llama-attn").build(TensorType::F32);
    std::fs::write(&adapter, bytes).expect("the adapter is written");
    let [model, adapter] = [model, adapter].map(|path| path.display().to_string());
    let answers = |device: &str| {
        let mut command = jetforge(home.path());
        command.env("LD_LIBRARY_PATH", library.parent().expect("a folder"));
        command.args(["serve", "--port", "0", "--threads", "1", "-c", "128"]);
        command.args(["-m", &model, "--lora", &adapter, "--device", device]);
        let service = Process::spawn(command);
        let props = get(service.address, "/props").json();
        let ask = |scale: f32| {
            let body = json!({
                "prompt": "the quick brown fox", "n_predict": 6, "temperature": 0.0,
                "ignore_eos": true, "return_tokens": true, "lora": [{"id": 0, "scale": scale}],
            });
            let answer = post(service.address, "/completion", &body).json();
            answer["tokens"].clone()
        };
        let answers = [0.0, 1.0, 0.0].map(ask);
        service.terminate();
        assert_eq!(service.end().0, Some(0));
        (props["device"].clone(), answers)
    };
    let (device, [plain, adapted, again]) = answers("cuda");
    assert!(device.to_string().contains("cuda:0"), "{device}");
    assert!(plain.as_array().is_some_and(|tokens| tokens.len() == 6), "{plain}");
    assert!(plain == again && plain != adapted);
    assert_eq!(answers("cpu").1, [plain, adapted, again]);
}
