//! What crosses from the GPU for a token: a few of the largest logits where they are enough, and
//! never another token for it.

use std::ops::ControlFlow;
use std::path::Path;

use jetforge::inference::backend::cuda::Device;
use jetforge::inference::engine::sampler::SamplerKind;
use jetforge::inference::{
    DeviceChoice, EncodeOptions, Engine, EngineOptions, Finish, GenerateRequest, GrammarRequest,
    GrammarSpec, LoadOptions, Model, ModelSource, Request, SamplerOptions,
};

use crate::cuda_engine::on_cuda;
use crate::support::engine::{answers, start};
use crate::support::recipe::Recipe;
use crate::support::stand_in;

const N_PREDICT: usize = 12;

fn options(library: &Path) -> LoadOptions {
    LoadOptions {
        n_ctx: Some(128),
        n_parallel: Some(2),
        n_threads: Some(1),
        device: DeviceChoice::Cuda(0),
        cuda_library: Some(library.to_owned()),
        ..LoadOptions::default()
    }
}

fn source(folder: &Path) -> ModelSource {
    let path = folder.join("llama.gguf");
    let ty = jetforge::inference::quant::TensorType::Q4_0;
    std::fs::write(&path, Recipe::read("llama").build(ty)).expect("the model is written");
    ModelSource::File(path)
}

fn load(folder: &Path, library: &Path) -> Model {
    Model::load(&source(folder), &options(library)).expect("it loads")
}

/// Chains as clients send them.
fn samplers() -> Vec<(&'static str, SamplerOptions)> {
    let with = |change: fn(&mut SamplerOptions)| {
        let mut options = SamplerOptions { seed: 7, ..SamplerOptions::default() };
        change(&mut options);
        options
    };
    vec![
        ("greedy", SamplerOptions::greedy()),
        ("default", with(|_| ())),
        ("penalties", with(|o| (o.penalty_repeat, o.penalty_freq) = (1.1, 0.2))),
        ("greedy with penalties", with(|o| (o.temp, o.penalty_present) = (0.0, 0.7))),
        (
            "temperature first",
            with(|o| {
                o.samplers = [SamplerKind::Temperature]
                    .into_iter()
                    .chain([SamplerKind::TopK, SamplerKind::TopP])
                    .collect()
            }),
        ),
        ("near the best", with(|o| (o.top_k, o.top_p, o.min_p) = (0, 1.0, 0.6))),
        ("a bias down", with(|o| o.logit_bias = vec![(17, -2.0), (300, f32::NEG_INFINITY)])),
        ("xtc", with(|o| (o.xtc_probability, o.xtc_threshold) = (0.5, 0.05))),
        // These take whole rows.
        ("a bias up", with(|o| o.logit_bias = vec![(17, 2.0)])),
        ("nucleus of all", with(|o| (o.top_k, o.min_p) = (0, 0.0))),
        ("mirostat", with(|o| o.mirostat = 2)),
    ]
}

/// Whole rows are read where probabilities are reported.
#[test]
fn the_largest_logits_give_the_tokens_of_whole_rows() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut model = load(folder.path(), &library);
    let prompt = Recipe::read("llama").tokens()[..9].to_vec();
    for (name, sampler) in samplers() {
        let mut write = |n_probs| {
            let (prompt, sampler) = (prompt.clone(), sampler.clone());
            let n_predict = Some(N_PREDICT);
            let request =
                GenerateRequest { prompt, n_predict, sampler, n_probs, ..Default::default() };
            let request = GenerateRequest { ignore_eos: true, ..request };
            let answer = model.generate(&request, &mut |_| ControlFlow::Continue(()));
            answer.expect("the model generates").tokens
        };
        let (few, whole) = (write(0), write(1));
        assert_eq!(few.len(), N_PREDICT, "{name}");
        assert_eq!(few, whole, "{name}");
    }
}

/// Runs requests beside each other; their tokens, and how many of them came with a probability.
fn tokens(engine: &Engine, requests: Vec<Request>) -> Vec<(Vec<u32>, usize)> {
    let answers = answers(engine, requests).into_iter();
    answers.map(|answer| (answer.tokens, answer.n_probs)).collect()
}

/// One that wants whole rows beside one that does not; guesses that are checked row by row.
#[test]
fn sequences_that_want_few_and_all_logits_share_a_step() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EngineOptions { n_parallel: 2, ..EngineOptions::default() };
    let model = load(folder.path(), &library);
    let engine = start(model, options);
    let prompt = Recipe::read("llama").tokens()[..9].to_vec();
    for (name, sampler) in samplers() {
        let request = |wants_logprobs| {
            let n_predict = Some(N_PREDICT);
            let (prompt, sampler) = (prompt.clone(), sampler.clone());
            Request {
                prompt,
                sampler,
                n_predict,
                wants_logprobs,
                ignore_eos: true,
                ..Request::default()
            }
        };
        let [few, whole] =
            [false, true].map(|whole| tokens(&engine, vec![request(whole)]).remove(0));
        assert_eq!((few.0.len(), few.1), (N_PREDICT, 0), "{name}");
        assert_eq!((&whole.0, whole.1), (&few.0, N_PREDICT), "{name}");
        let both = tokens(&engine, vec![request(true), request(false)]);
        assert_eq!(both, [whole, few], "{name}");
    }
}

/// The largest logits of a row may all be of tokens that its grammar forbids.
#[test]
fn a_grammar_rules_beside_a_request_that_wants_few_logits() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let options = LoadOptions { n_parallel: Some(2), ..on_cuda(&library) };
    let model = Model::load(&ModelSource::Embedded, &options).expect("it loads");
    let encode = EncodeOptions { add_special: true, parse_special: false };
    let prompt = model.tokenizer().encode("def add(a, b):", encode).expect("a text");
    let engine = start(model, EngineOptions { n_parallel: 2, ..EngineOptions::default() });
    let request = |grammar: Option<&str>| {
        let spec = grammar.map(|text| GrammarSpec::Regex(text.to_owned()));
        let grammar = spec.map(|spec| GrammarRequest { spec, triggers: Vec::new() });
        let (prompt, n_predict) = (prompt.clone(), Some(8));
        Request { prompt, n_predict, grammar, ..Request::default() }
    };
    let answers = answers(&engine, vec![request(None), request(Some("[0-9]{3}"))]);
    let digits = &answers[1].text;
    assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{digits:?}");
    assert_ne!(answers[0].text, *digits, "without a grammar it writes something else");
}

/// The promise of docs/cuda.md, in bytes.
#[test]
fn a_token_costs_a_few_bytes_on_the_way_back() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut model = load(folder.path(), &library);
    let n_vocab = model.hparams().n_vocab as u64;
    let device = Device::shared(&library, 0).expect("the model's device");
    let prompt = Recipe::read("llama").tokens()[..9].to_vec();
    let mut cost = |sampler: SamplerOptions, n_probs, reads_rows: bool| {
        let (prompt, n_predict) = (prompt.clone(), Some(N_PREDICT));
        let request = GenerateRequest { prompt, n_predict, sampler, n_probs, ..Default::default() };
        let before = device.n_bytes_read();
        let answer = model.generate(&request, &mut |_| ControlFlow::Continue(()));
        let answer = answer.expect("the model generates");
        // Behind the last token of an answer that is cut off is one more step. Its largest logits
        // come at once, a row only when it is looked at.
        let is_cut_off = answer.finish == Finish::Length && !reads_rows;
        let n = answer.tokens.len() + usize::from(is_cut_off);
        (device.n_bytes_read() - before) as f64 / n as f64
    };
    let (token, seed) = (8.0, 7);
    let default = SamplerOptions { seed, ..SamplerOptions::default() };
    assert_eq!(cost(SamplerOptions::greedy(), 0, false), 2.0 * token);
    assert_eq!(cost(default.clone(), 0, false), 41.0 * token);
    assert_eq!(cost(SamplerOptions { top_k: 1, ..default.clone() }, 0, false), 2.0 * token);
    assert_eq!(cost(SamplerOptions { top_k: 0, ..default.clone() }, 0, true), 4.0 * n_vocab as f64);
    assert_eq!(cost(default, 1, true), 4.0 * n_vocab as f64);
}
