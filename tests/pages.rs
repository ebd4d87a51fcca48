//! Pages of the KV cache through the backend's face: copied, saved, restored, shifted.
//!
//! Models are cut to one layer where a shift is compared with a fresh start: there keys and values
//! follow from a token and its position alone, so both must agree.

use std::sync::Arc;

use jetforge::inference::backend::cpu::{CpuBackend, CpuConfig, Isa, KvType};
use jetforge::inference::backend::{BackendError, Batch, PAGE_LEN, PageIdx, Shift, Span};
use jetforge::inference::model::{Hparams, plan};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{Gguf, LoadProgress};

use crate::support::recipe::Recipe;

/// Pages of each cache.
const N_PAGE: usize = 8;

/// A recipe's F32 model, cut to `n_layer` layers if that is given.
fn backend(case: &str, kv_type: KvType, n_layer: Option<usize>) -> CpuBackend {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, Recipe::read(case).build(TensorType::F32)).expect("the model is written");
    let gguf = Arc::new(Gguf::open(&path).expect("the reader takes the file"));
    let mut hparams = Hparams::from_gguf(&gguf).expect("a known architecture");
    hparams.n_layer = n_layer.unwrap_or(hparams.n_layer);
    let plan = plan(&gguf, &hparams).expect("a plan");
    let isa = Isa::choose(None).expect("the fastest");
    let config = CpuConfig {
        n_threads: 2,
        pin_threads: false,
        n_batch: 256,
        n_outputs: 1,
        n_page: N_PAGE,
        kv_type,
        isa,
    };
    CpuBackend::new(plan, gguf, config, &LoadProgress::default()).expect("the weights are there")
}

/// Runs `tokens` from position `pos` and returns the logits of the last.
fn run(backend: &mut CpuBackend, pages: &[PageIdx], pos: usize, tokens: &[u32]) -> Vec<f32> {
    let n_tokens = tokens.len();
    let spans = [Span { pages, pos, n_tokens, n_prompt: 0, adapters: &[] }];
    let batch = Batch { tokens, spans: &spans, outputs: &[n_tokens as u32 - 1] };
    backend.forward(&batch).expect("a batch within the rules")[0].to_vec()
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 17 + 5) % 300).collect()
}

fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn a_copied_page_and_a_restored_page_continue_with_the_same_bits() {
    for kv_type in KvType::ALL {
        let mut first = backend("llama", kv_type, None);
        let prompt = tokens(50);
        run(&mut first, &[4, 2], 0, &prompt);
        let wanted = run(&mut first, &[4, 2], 50, &[7]);

        first.copy_page(2, 5).expect("both pages are there");
        run(&mut first, &[4, 2], 50, &[9, 9, 9]); // the original goes on elsewhere
        assert_eq!(run(&mut first, &[4, 5], 50, &[7]), wanted);

        let mut second = backend("llama", kv_type, None);
        let mut bytes = vec![0u8; first.page_bytes()];
        for (from, to) in [(4, 1), (5, 0)] {
            first.read_page(from, &mut bytes).expect("the page is there");
            second.write_page(to, &bytes).expect("the page is there");
        }
        assert_eq!(run(&mut second, &[1, 0], 50, &[7]), wanted);
    }
}

#[test]
fn pages_that_are_not_there_and_bytes_that_are_no_page_are_refused() {
    let mut backend = backend("llama", KvType::Q8_0, Some(1));
    let mut bytes = vec![0u8; backend.page_bytes()];
    let outside = N_PAGE as PageIdx;
    assert!(matches!(backend.copy_page(0, outside), Err(BackendError::Page { page: 8, .. })));
    assert!(matches!(backend.copy_page(outside, 0), Err(BackendError::Page { .. })));
    assert!(matches!(backend.read_page(outside, &mut bytes), Err(BackendError::Page { .. })));
    assert!(matches!(backend.write_page(outside, &bytes), Err(BackendError::Page { .. })));
    let (got, expected) = (bytes.len() - 1, bytes.len());
    let error = backend.read_page(0, &mut bytes[1..]).expect_err("too short");
    assert_eq!(error.to_string(), format!("a page has {expected} bytes, not {got}"));
    assert!(matches!(backend.write_page(0, &bytes[1..]), Err(BackendError::PageBytes { .. })));
    let few = Shift { src: &[0], from: 30, dst: &[0, 1], to: 20, n: 3 };
    assert!(matches!(backend.shift(&few), Err(BackendError::Batch(_))));
    let far = Shift { src: &[0], from: usize::MAX, dst: &[0], to: 0, n: 2 };
    assert!(matches!(backend.shift(&far), Err(BackendError::Batch(_))));
}

#[test]
fn learned_positions_cannot_shift() {
    let mut backend = backend("bert", KvType::F16, None);
    let shift = Shift { src: &[0], from: 4, dst: &[0], to: 2, n: 4 };
    assert!(matches!(backend.shift(&shift), Err(BackendError::LearnedPositions)));
}

/// Drops positions `a..b` of `n`, slides the rest left, and compares the next token's logits with
/// those of a sequence that never had the dropped tokens.
fn check_shift(case: &str, kv_type: KvType, (n, a, b): (usize, usize, usize), tolerance: f32) {
    let mut backend = backend(case, kv_type, Some(1));
    let (prompt, pages) = (tokens(n), [6, 0, 3, 2]);
    run(&mut backend, &pages, 0, &prompt);
    // The first page is shared with another sequence: what is kept of it goes to a copy.
    let own = [5, 0, 3, 2];
    backend.copy_page(6, 5).expect("both pages are there");
    let shift = Shift { src: &pages, from: b, dst: &own, to: a, n: n - b };
    backend.shift(&shift).expect("a shift within the pages");
    let shifted = run(&mut backend, &own, n - (b - a), &[11]);

    let kept: Vec<u32> = [&prompt[..a], &prompt[b..]].concat();
    let fresh_pages = [1, 4, 7];
    run(&mut backend, &fresh_pages, 0, &kept);
    let fresh = run(&mut backend, &fresh_pages, kept.len(), &[11]);
    let worst = max_diff(&shifted, &fresh);
    let (ty, plain) = (kv_type.name(), max_diff(&run(&mut backend, &pages, n, &[11]), &fresh));
    assert!(worst <= tolerance, "{case} {ty} {a}..{b} of {n}: {worst}");
    assert!(plain > 4.0 * worst, "{case} {ty}: without the shift {plain}, with it {worst}");
}

#[test]
fn a_shifted_sequence_goes_on_as_if_the_dropped_tokens_had_never_been() {
    let cases = ["llama", "llama-yarn", "llama-llama3", "qwen2", "qwen3", "phi2", "stablelm"];
    for case in cases.into_iter().chain(["starcoder2"]) {
        // f32: the rotations' own rounding.
        check_shift(case, KvType::F32, (90, 4, 30), 1e-4);
    }
    // A window of 8: what is dropped must lie in it.
    check_shift("gemma3", KvType::F32, (90, 80, 86), 1e-4);
    // By less than a page, by whole pages, from the start, across several pages.
    for (n, a, b) in [(90, 10, 11), (100, 0, 64), (70, 1, 34), (97, 33, 60)] {
        check_shift("llama", KvType::F32, (n, a, b), 1e-4);
        // Keys are rounded before and after the turn, to 11 bits or to codes of a block, and the
        // fresh ones elsewhere: logits of size 1 differ by about three such roundings.
        check_shift("llama", KvType::F16, (n, a, b), 5e-3);
        check_shift("qwen2", KvType::Q8_0, (n, a, b), 1.5e-1);
    }
}

#[test]
fn positions_move_right_as_well_and_values_move_exactly() {
    let mut backend = backend("llama", KvType::F32, Some(1));
    run(&mut backend, &[0, 1], 0, &tokens(40));
    let wanted = run(&mut backend, &[0, 1], 40, &[11]);
    let right = Shift { src: &[0, 1], from: 0, dst: &[0, 1, 2], to: 30, n: 40 };
    backend.shift(&right).expect("a shift within the pages");
    let left = Shift { src: &[0, 1, 2], from: 30, dst: &[0, 1], to: 0, n: 40 };
    backend.shift(&left).expect("a shift within the pages");
    assert!(max_diff(&run(&mut backend, &[0, 1], 40, &[11]), &wanted) < 1e-4);

    for kv_type in KvType::ALL {
        let mut backend = self::backend("llama", kv_type, Some(1));
        run(&mut backend, &[0], 0, &tokens(PAGE_LEN));
        let mut before = vec![0u8; backend.page_bytes()];
        backend.read_page(0, &mut before).expect("the page is there");
        let there = Shift { src: &[0], from: 0, dst: &[1, 2], to: 17, n: PAGE_LEN };
        let back = Shift { src: &[1, 2], from: 17, dst: &[3], to: 0, n: PAGE_LEN };
        backend.shift(&there).and_then(|()| backend.shift(&back)).expect("pages are there");
        let mut after = vec![0u8; before.len()];
        backend.read_page(3, &mut after).expect("the page is there");
        // A head of the page is its keys, then its values.
        let n_head = 2;
        for (old, new) in
            before.chunks(before.len() / n_head).zip(after.chunks(after.len() / n_head))
        {
            let values = old.len() / 2;
            assert!(old[values..] == new[values..], "{}", kv_type.name());
        }
    }
}
