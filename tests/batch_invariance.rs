//! The same tokens give the same bits: in one prefill, in chunks, token by token, alone or beside
//! other sequences, on any number of threads, and on every instruction set.

use std::sync::Arc;

use jetforge::inference::LoadProgress;
use jetforge::inference::backend::PageIdx;
use jetforge::inference::backend::cpu::{CpuBackend, CpuConfig, Isa, KvType};
use jetforge::inference::gguf::Gguf;
use jetforge::inference::model::{Hparams, plan};

use crate::support::engine::{bits, with_step};
use crate::support::recipe::Recipe;

const N_PAGE: usize = 8;

/// A model with its cache, and how it is run.
struct Runner {
    backend: CpuBackend,
}

impl Runner {
    fn new(file: &[u8], isa: Isa, n_threads: usize, kv_type: KvType) -> Runner {
        let gguf = Arc::new(Gguf::from_vec(file.to_vec()).expect("the reader takes the file"));
        let hparams = Hparams::from_gguf(&gguf).expect("the numbers are there");
        let plan = plan(&gguf, &hparams).expect("the tensors are there");
        let config = CpuConfig {
            n_threads,
            pin_threads: false,
            n_batch: 128,
            n_outputs: 128,
            n_page: N_PAGE,
            kv_type,
            isa,
        };
        let backend = CpuBackend::new(plan, gguf, config, &LoadProgress::default());
        Runner { backend: backend.expect("the backend starts") }
    }

    /// One forward pass; the logits' bits of every token.
    fn forward(&mut self, spans: &[(&[PageIdx], usize, &[u32])]) -> Vec<Vec<u32>> {
        let parts: Vec<_> = spans.iter().map(|&(pages, pos, ids)| (pages, pos, ids, 0)).collect();
        with_step(&parts, |batch| {
            bits(&self.backend.forward(batch).expect("the batch keeps the rules"))
        })
    }

    /// `tokens` in steps of `n`, on pages of their own.
    fn in_steps(&mut self, tokens: &[u32], n: usize) -> Vec<Vec<u32>> {
        let pages: Vec<PageIdx> = (0..N_PAGE as PageIdx).collect();
        let chunks = tokens.chunks(n).enumerate();
        chunks.flat_map(|(i, chunk)| self.forward(&[(&pages, i * n, chunk)])).collect()
    }

    /// `tokens` in steps of 7 beside a second sequence that grows by 3 and a third by 1.
    fn beside_others(&mut self, tokens: &[u32]) -> Vec<Vec<u32>> {
        let (ours, second, third) = ([6, 2, 4], [1, 5], [7, 0]);
        let mut rows = Vec::new();
        for (i, chunk) in tokens.chunks(7).enumerate() {
            let spans: [(&[PageIdx], usize, &[u32]); 3] = [
                (&second, 3 * i, &tokens[i..i + 3]),
                (&ours, 7 * i, chunk),
                (&third, i, &tokens[2 * i..2 * i + 1]),
            ];
            rows.extend(self.forward(&spans).drain(3..3 + chunk.len()));
        }
        rows
    }
}

fn tokens(recipe: &Recipe) -> Vec<u32> {
    let known = recipe.tokens();
    (0..75).map(|i| known[i * 5 % known.len()]).collect()
}

/// Every architecture with tokens to force, in a type of each kernel shape.
#[test]
fn the_same_tokens_give_the_same_bits_however_they_are_run() {
    for (case, types) in [
        ("llama", &["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS"][..]),
        ("qwen2", &["Q5_1", "Q3_K"][..]),
        ("qwen3", &["Q5_0"][..]),
        ("phi2", &["IQ4_NL"][..]),
        ("starcoder2", &["Q4_K"][..]),
        ("stablelm", &["Q5_K"][..]),
        ("gemma3", &["Q4_1"][..]),
    ] {
        let recipe = Recipe::read(case);
        let tokens = tokens(&recipe);
        let goldens = recipe.goldens();
        let chosen: Vec<_> = goldens.iter().filter(|g| types.contains(&g.ty.name())).collect();
        assert_eq!(chosen.len(), types.len(), "{case}: goldens of {types:?}");
        for golden in chosen {
            let (ty, file) = (golden.ty, recipe.build(golden.ty));
            let isa = Isa::choose(None).expect("there is one");
            let expected =
                Runner::new(&file, Isa::Scalar, 1, KvType::F16).in_steps(&tokens, tokens.len());
            for n_threads in 1..=3 {
                let mut runner = Runner::new(&file, isa, n_threads, KvType::F16);
                for n in [tokens.len(), 32, 13, 1] {
                    let got = runner.in_steps(&tokens, n);
                    assert!(got == expected, "{case} {ty}: steps of {n}, {n_threads} threads");
                }
                let got = runner.beside_others(&tokens);
                assert!(got == expected, "{case} {ty}: beside others, {n_threads} threads");
            }
            for isa in Isa::available() {
                let got = Runner::new(&file, isa, 2, KvType::F16).in_steps(&tokens, 50);
                assert!(got == expected, "{case} {ty}: {}", isa.name());
            }
        }
    }
}

/// The same with keys and values in every form.
#[test]
fn the_form_of_the_cache_changes_nothing_about_that() {
    let recipe = Recipe::read("llama");
    let (tokens, file) = (tokens(&recipe), recipe.build(recipe.goldens()[0].ty));
    for kv_type in KvType::ALL {
        let expected = Runner::new(&file, Isa::Scalar, 1, kv_type).in_steps(&tokens, tokens.len());
        for isa in Isa::available() {
            let mut runner = Runner::new(&file, isa, 2, kv_type);
            for n in [32, 13, 1] {
                assert!(runner.in_steps(&tokens, n) == expected, "{kv_type:?} {}", isa.name());
            }
            assert!(runner.beside_others(&tokens) == expected, "{kv_type:?} {}", isa.name());
        }
    }
}

/// Canary: another token, or another position, is seen in the bits.
#[test]
fn the_comparison_of_bits_can_fail() {
    let recipe = Recipe::read("llama");
    let file = recipe.build(recipe.goldens()[0].ty);
    let tokens = tokens(&recipe);
    let mut changed = tokens.clone();
    changed[40] ^= 1;
    let mut runner = Runner::new(&file, Isa::Scalar, 1, KvType::F16);
    let expected = runner.in_steps(&tokens, 75);
    let got = runner.in_steps(&changed, 75);
    assert_eq!(expected[..40], got[..40]);
    assert!((40..75).all(|i| expected[i] != got[i]));
}
