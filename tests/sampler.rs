//! Golden: on the same logits and options the chain picks what llama.cpp picks.
//!
//! Cases and their format come from `tests/tools/golden_sampler.py`, which says how to make them
//! again.

use std::collections::HashMap;

use jetforge::inference::engine::sampler::{BreakerVocab, Sampler, SamplerOptions};
use jetforge::inference::tokenizer::TokenId;
use jetforge::inference::{LoadOptions, Model, ModelSource};
use serde::Deserialize;

const CASES: &str = include_str!("golden/sampler/cases.jsonl");
const VOCAB: &str = include_str!("golden/sampler/vocab.json");

#[derive(Deserialize)]
struct Case {
    o: SamplerOptions,
    #[serde(default)]
    forbid: Vec<TokenId>,
    n: usize,
    hash: u32,
    shape: Shape,
    prompt: (u32, u32),
    picks: Vec<TokenId>,
}

/// (scale, cubed, ties, holes, boost)
type Shape = (f32, u8, u8, u8, f32);

#[derive(Deserialize)]
struct Words {
    pieces: Vec<String>,
    tails: HashMap<String, Vec<TokenId>>,
}

fn mix(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
}

fn logits(case: &Case, step: u32) -> Vec<f32> {
    let (scale, cubed, ties, holes, boost) = case.shape;
    let start = mix(case.hash ^ step);
    let logit = |id: u32| {
        let h = mix(start ^ id);
        if holes == 1 && h.is_multiple_of(8) {
            return f32::NEG_INFINITY;
        }
        let v = (h >> 8) as f32 / (1 << 24) as f32 * 2.0 - 1.0;
        let mut x = if cubed == 1 { v * v * v } else { v } * scale;
        if ties == 1 {
            x = (x * 4.0).floor() / 4.0;
        }
        if (6..22).contains(&id) { x + boost } else { x }
    };
    (0..case.n as u32).map(logit).collect()
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u8).collect()
}

fn run(case: &Case, vocab: &BreakerVocab) -> Vec<TokenId> {
    let mut options = case.o.clone();
    options.logit_bias.extend(case.forbid.iter().map(|&token| (token, f32::NEG_INFINITY)));
    let mut sampler = Sampler::new(&options, case.n, 4096, vocab).expect("options in their ranges");
    let (n_prompt, alphabet) = case.prompt;
    for i in 0..n_prompt {
        sampler.accept(6 + mix(case.hash ^ (i + (1 << 20))) % alphabet);
    }
    let pick = |step| {
        let token = sampler.sample(&logits(case, step));
        sampler.accept(token);
        token
    };
    (0..case.picks.len() as u32).map(pick).collect()
}

/// The cases, each with what the chain picks after `change`d options.
fn run_all(change: impl Fn(&mut SamplerOptions)) -> Vec<(Case, Vec<TokenId>)> {
    let words: Words = serde_json::from_str(VOCAB).expect("vocab.json");
    let tails: HashMap<Vec<u8>, _> = words.tails.iter().map(|(k, v)| (latin1(k), v)).collect();
    let pieces: Vec<Vec<u8>> = words.pieces.iter().map(|piece| latin1(piece)).collect();
    let vocab = BreakerVocab {
        piece: &|id| pieces[id as usize].clone(),
        encode: &|text| tails[text].clone(),
    };
    let picks = |line| {
        let mut case: Case = serde_json::from_str(line).expect("a case");
        change(&mut case.o);
        let picks = run(&case, &vocab);
        (case, picks)
    };
    CASES.lines().map(picks).collect()
}

#[test]
fn picks_are_llama_cpps_over_the_option_space() {
    let cases = run_all(|_| ());
    assert!(cases.len() >= 500, "{} cases are too few", cases.len());
    for (i, (case, got)) in cases.iter().enumerate() {
        assert_eq!(*got, case.picks, "line {} of cases.jsonl: {:?}", i + 1, case.o);
    }
}

/// Canary: the comparison above sees a small change of any one option.
#[test]
fn other_options_are_other_picks() {
    let n_changed = |change: fn(&mut SamplerOptions)| {
        run_all(change).iter().filter(|(case, got)| *got != case.picks).count()
    };
    assert!(n_changed(|o| o.seed ^= 1) > 300);
    assert!(n_changed(|o| o.temp *= 1.01) > 20);
    assert!(n_changed(|o| o.dry_sequence_breakers.clear()) > 15);
    assert!(n_changed(|o| o.dry_allowed_length += 1) > 30);
    assert!(n_changed(|o| o.mirostat_eta += 0.01) > 3);
    assert!(n_changed(|o| o.samplers.reverse()) > 100);
}

/// The step that llama.cpp's editor plugins ask for, with the default model's vocabulary.
#[test]
fn the_infill_step_leaves_what_llama_cpp_leaves() {
    let model = Model::load(&ModelSource::Embedded, &LoadOptions::default()).unwrap();
    let vocab = BreakerVocab { piece: &|_| Vec::new(), encode: &|_| Vec::new() };
    for line in include_str!("golden/sampler/infill.jsonl").lines() {
        let case: Case = serde_json::from_str(line).expect("a case");
        let mut sampler = Sampler::new(&case.o, case.n, 4096, &vocab).unwrap();
        let pick = |step| sampler.sample_text(&logits(&case, step), model.tokenizer());
        let picks: Vec<TokenId> = (0..case.picks.len() as u32).map(pick).collect();
        assert_eq!(picks, case.picks, "{line}");
    }
}
