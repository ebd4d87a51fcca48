//! Golden: from a text to a text, what llama.cpp writes on F32 models, greedy and sampled.
//!
//! `tests/tools/golden_generate.py` wrote the answers; it says what is in a line. Every part is
//! ours here: tokenizer, forward pass, KV cache, samplers and their random numbers, text.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    EncodeOptions, Finish, GenerateRequest, Generated, LoadOptions, Model, ModelSource,
    SamplerOptions,
};
use serde::Deserialize;

use crate::support::recipe::Recipe;

const GOLDEN: &str = include_str!("golden/generate.jsonl");

#[derive(Deserialize)]
struct Answer {
    case: String,
    prompt: String,
    o: SamplerOptions,
    tokens: Vec<u32>,
    text: String,
}

/// The answers by model.
fn golden() -> BTreeMap<String, Vec<Answer>> {
    let mut cases: BTreeMap<String, Vec<Answer>> = BTreeMap::new();
    for line in GOLDEN.lines() {
        let answer: Answer = serde_json::from_str(line).expect("a line is an answer");
        cases.entry(answer.case.clone()).or_default().push(answer);
    }
    cases
}

fn load(case: &str) -> Model {
    load_with(case, LoadOptions::default())
}

fn load_with(case: &str, options: LoadOptions) -> Model {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, Recipe::read(case).build(TensorType::F32)).expect("the model is written");
    let options = LoadOptions {
        n_ctx: Some(128),
        n_threads: Some(1),
        kv_type: Some("f32".to_owned()), // as the golden answers were made
        ..options
    };
    Model::load(&ModelSource::File(path), &options).expect("the model loads")
}

fn generate(model: &mut Model, answer: &Answer) -> (Generated, String) {
    let options = EncodeOptions { add_special: true, parse_special: false };
    let prompt = model.tokenizer().encode(&answer.prompt, options).expect("the prompt is text");
    let request = GenerateRequest {
        prompt,
        n_predict: Some(answer.tokens.len()),
        sampler: answer.o.clone(),
        ignore_eos: true,
        ..GenerateRequest::default()
    };
    let mut streamed = String::new();
    let generated = model.generate(&request, &mut |piece| {
        streamed.push_str(piece);
        ControlFlow::Continue(())
    });
    (generated.expect("the model generates"), streamed)
}

#[test]
fn the_same_text_as_llama_cpp_for_64_tokens() {
    let cases = golden();
    assert_eq!(cases.len(), 13);
    let mut failures = Vec::new();
    for (case, answers) in &cases {
        let mut model = load(case);
        for answer in answers {
            assert_eq!(answer.tokens.len(), 64);
            let (ours, streamed) = generate(&mut model, answer);
            let same = ours.tokens.iter().zip(&answer.tokens).take_while(|(a, b)| a == b).count();
            if same < answer.tokens.len() {
                failures.push(format!("{case}: another token at {same} with {:?}", answer.o));
            } else if ours.text != answer.text || streamed != answer.text {
                failures.push(format!("{case}: {:?}, not {:?}", ours.text, answer.text));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// The canary: another seed is another text.
#[test]
fn another_seed_is_seen() {
    let mut cases = golden();
    let answers = cases.remove("llama").expect("a case");
    let mut model = load("llama");
    for mut answer in answers.into_iter().filter(|answer| answer.o.temp > 0.0) {
        answer.o.seed += 1;
        assert_ne!(generate(&mut model, &answer).0.tokens, answer.tokens, "{:?}", answer.o);
    }
}

#[test]
fn a_long_prompt_can_be_broken_off_between_its_steps() {
    let mut model = load_with("llama", LoadOptions { n_batch: Some(8), ..LoadOptions::default() });
    let mut whole = load("llama");
    let prompt: Vec<u32> = (0..40).map(|i| 40 + i).collect();
    let request =
        GenerateRequest { prompt, n_predict: Some(4), ignore_eos: true, ..Default::default() };
    let mut n_calls = 0;
    let stopped = model.generate(&request, &mut |_| {
        n_calls += 1;
        if n_calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let stopped = stopped.expect("breaking off is no error");
    assert_eq!((stopped.finish, stopped.tokens.len(), n_calls), (Finish::Canceled, 0, 2));
    // What was computed is kept, and the answer is that of a whole prompt at once.
    let request = GenerateRequest { sampler: SamplerOptions::greedy(), ..request };
    let resumed = model.generate(&request, &mut |_| ControlFlow::Continue(())).expect("an answer");
    let at_once = whole.generate(&request, &mut |_| ControlFlow::Continue(())).expect("an answer");
    assert_eq!(resumed.n_cached, 16);
    assert_eq!(resumed.tokens, at_once.tokens);
}
