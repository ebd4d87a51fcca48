//! A second model as the draft model: other weights, the same vocabulary, never another text.

use std::path::{Path, PathBuf};

use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    EncodeOptions, EngineOptions, InferenceError, LoadOptions, Model, ModelSource, Request,
    SpeculationOptions,
};

use crate::support::engine::{answers, start};
use crate::support::recipe::Recipe;

const N_PARALLEL: usize = 2;

/// Writes a tiny model.
fn write(folder: &Path, case: &str, ty: TensorType) -> PathBuf {
    let path = folder.join(format!("{case}-{ty}.gguf"));
    std::fs::write(&path, Recipe::read(case).build(ty)).expect("the model is written");
    path
}

fn load(model: &Path, draft: Option<&Path>) -> Result<Model, InferenceError> {
    let options = LoadOptions {
        // Twice what these models were trained on, so the draft model falls silent halfway.
        n_ctx: Some(128),
        n_parallel: Some(N_PARALLEL),
        n_threads: Some(1),
        draft: draft.map(|path| ModelSource::File(path.to_owned())),
        ..LoadOptions::default()
    };
    Model::load(&ModelSource::File(model.to_owned()), &options)
}

/// What each request's answer says, and the steps and right guesses that all of them took.
fn run(model: Model, set: impl Fn(&mut Request)) -> (Vec<(String, Vec<u32>)>, u64, u64) {
    let encode = EncodeOptions { add_special: true, parse_special: false };
    let options = EngineOptions { n_parallel: N_PARALLEL, ..EngineOptions::default() };
    let prompts = ["fn main() {", "the quick brown fox", "a b c", "fn main() { let"];
    let mut requests = Vec::new();
    for (i, text) in prompts.into_iter().enumerate() {
        let prompt = model.tokenizer().encode(text, encode).expect("the prompt is text");
        for temp in [0.0, 1.2] {
            let mut request = Request {
                prompt: prompt.clone(),
                n_predict: Some(70),
                ignore_eos: true,
                ..Request::default()
            };
            request.sampler.temp = temp;
            request.sampler.seed = 11 + i as u32;
            set(&mut request);
            requests.push(request);
        }
    }
    let engine = start(model, options);
    let answers = answers(&engine, requests).into_iter();
    let answers = answers.map(|answer| (answer.text, answer.tokens)).collect();
    engine.slots().wait().expect("the engine runs");
    let stats = engine.stats();
    assert_eq!((stats.n_page_used, stats.draft_failures_total), (0, 0));
    (answers, stats.steps_total, stats.accepted_tokens_total)
}

#[test]
fn any_draft_model_leaves_the_text_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pairs = [("qwen2", "qwen2"), ("qwen2", "qwen3"), ("llama", "gemma3")];
    for (model, draft) in pairs {
        let model_file = write(folder.path(), model, TensorType::F32);
        let draft_file = write(folder.path(), draft, TensorType::F32);
        let plain = |request: &mut Request| request.speculation.n_draft_max = 0;
        let (expected, ..) = run(load(&model_file, None).unwrap(), plain);
        let (looked_up, n_step, _) = run(load(&model_file, None).unwrap(), |_| {});
        assert_eq!(expected, looked_up);
        let drafted = |set: &dyn Fn(&mut Request)| {
            run(load(&model_file, Some(&draft_file)).unwrap(), |request| set(request))
        };
        let (answers, n_drafted_step, n_accepted) = drafted(&|_| {});
        assert_eq!(expected, answers, "{draft} for {model}");
        if model == draft {
            assert!(n_drafted_step < n_step, "{n_drafted_step} steps instead of {n_step}");
            assert!(n_accepted > 100, "{n_accepted}");
        }
        let bounds = SpeculationOptions { n_draft_min: 2, p_min: 0.3, ..Default::default() };
        let (answers, ..) = drafted(&|request| {
            request.speculation = bounds.clone();
            request.uses_cache = false;
        });
        assert_eq!(expected, answers, "{draft} for {model}, bounded");
    }
}

#[test]
fn another_vocabulary_is_refused_with_what_differs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |case| write(folder.path(), case, TensorType::F32);
    let refused = |model: PathBuf, draft: PathBuf| match load(&model, Some(&draft)) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    };
    for (model, draft, words) in [
        ("llama", "qwen2", "its tokenizer is `gpt2`, the model's is `llama`"),
        ("qwen2", "phi2", "its token "),
    ] {
        let error = refused(file(model), file(draft));
        assert!(matches!(error, InferenceError::DraftVocab { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(words) && text.contains(draft), "{text}");
    }
    let error = refused(file("llama"), file("bert"));
    assert!(error.to_string().contains("is an encoder"), "{error}");
    let error = refused(file("llama"), folder.path().join("nothing.gguf")).to_string();
    assert!(error.starts_with("draft model ") && error.contains("nothing.gguf"), "{error}");
}
