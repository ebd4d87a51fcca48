//! Golden: on the same logits and options the chain picks what llama.cpp picks.
//!
//! Cases and their format come from `tests/tools/golden_sampler.py`, which says how to make them
//! again.

use std::collections::HashMap;

use jetforge::inference::engine::sampler::{BreakerVocab, Sampler, SamplerOptions};
use jetforge::inference::tokenizer::TokenId;
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
        if holes == 1 && h % 8 == 0 {
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
    options
        .logit_bias
        .extend(case.forbid.iter().map(|&token| (token, f32::NEG_INFINITY)));
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

#[test]
fn picks_are_llama_cpps_over_the_option_space() {
    let words: Words = serde_json::from_str(VOCAB).expect("vocab.json");
    let tails: HashMap<Vec<u8>, _> = words.tails.iter().map(|(k, v)| (latin1(k), v)).collect();
    let pieces: Vec<Vec<u8>> = words.pieces.iter().map(|piece| latin1(piece)).collect();
    let vocab = BreakerVocab {
        piece: &|id| pieces[id as usize].clone(),
        encode: &|text| tails[text].clone(),
    };
    let (mut n_cases, mut different) = (0, Vec::new());
    for (i, line) in CASES.lines().enumerate() {
        let case: Case = serde_json::from_str(line).expect("a case");
        let got = run(&case, &vocab);
        n_cases += 1;
        if got != case.picks {
            different.push(format!("line {}: {line}\n  got {got:?}", i + 1));
        }
    }
    assert!(n_cases >= 500, "{n_cases} cases are too few");
    assert!(
        different.is_empty(),
        "{} of {n_cases} differ, first:\n{}",
        different.len(),
        different
            .iter()
            .take(5)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}
