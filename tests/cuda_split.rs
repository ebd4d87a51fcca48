//! The first layers on the CPU and the last on the GPU: where the cut is, what fits, the tokens of
//! the CPU, and the same bits however a text is cut.

use std::ops::ControlFlow;
use std::path::Path;

use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    DeviceChoice, EncodeOptions, EngineOptions, GenerateRequest, InferenceError, LoadOptions,
    Model, ModelSource, Request, SamplerOptions,
};

use crate::cli::jetforge;
use crate::cuda_engine::{distance, on_cpu, on_cuda, write};
use crate::support::engine::{answers, start};
use crate::support::recipe::Recipe;
use crate::support::run::Run;
use crate::support::stand_in;

fn options(library: &Path, n_gpu_layers: Option<u32>) -> LoadOptions {
    LoadOptions { n_gpu_layers, ..on_cuda(library) }
}

fn logits(source: &ModelSource, options: &LoadOptions, tokens: &[u32]) -> (Model, Vec<f32>) {
    let mut model = Model::load(source, options).expect("it loads");
    let logits = model.logits(tokens).expect("logits");
    (model, logits)
}

/// Every number of layers of several families: near the CPU, nearer the fewer there are on the GPU,
/// and with none of them exactly the CPU.
#[test]
fn any_number_of_layers_gives_the_cpus_logits_but_for_the_gpus_rounding() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for case in ["llama", "gemma3", "phi2", "starcoder2"] {
        let source = write(folder.path(), case, TensorType::F32);
        let tokens = Recipe::read(case).tokens();
        let (cpu, expected) = logits(&source, &on_cpu(), &tokens);
        let n_layer = cpu.hparams().n_layer as u32;
        for n in 0..=n_layer + 2 {
            let (model, got) = logits(&source, &options(&library, Some(n)), &tokens);
            let name = model.backend_name().to_owned();
            let far = distance(&got, &expected);
            assert!(far < 0.01, "{case} {n}: {far:.1e}");
            assert_eq!(far == 0.0, n == 0, "{case} {n}: {far:.1e}");
            let is_split = (1..=n_layer).contains(&n);
            assert_eq!(name.starts_with("cpu ("), n <= n_layer, "{case} {n}: {name}");
            assert_eq!(name.contains(" + cuda ("), is_split, "{case} {n}: {name}");
            let beside = model.memory_plan().cpu_layers.map_or(0, |cpu| cpu.n_layer);
            assert_eq!(beside, if is_split { n_layer + 1 - n } else { 0 }, "{case} {n}");
        }
    }
}

#[test]
fn the_default_model_writes_what_it_writes_on_the_cpu() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let greedy = |options: &LoadOptions| {
        let mut model = Model::load(&ModelSource::Embedded, options).expect("it loads");
        let encode = EncodeOptions { add_special: true, parse_special: false };
        let text = "write a quick sort example and print the sorted result";
        let prompt = model.tokenizer().encode(text, encode).expect("the prompt is text");
        let (n_predict, sampler) = (Some(16), SamplerOptions::greedy());
        let request = GenerateRequest { prompt, n_predict, sampler, ..Default::default() };
        let answer = model.generate(&request, &mut |_| ControlFlow::Continue(()));
        answer.expect("the model generates").tokens
    };
    let expected = greedy(&on_cpu());
    assert!(expected.len() > 8, "an answer worth comparing");
    assert_eq!(greedy(&options(&library, Some(3))), expected);
}

/// Two requests beside each other, the second with the first one's beginning in the prefix cache,
/// whose pages have layers of both halves.
#[test]
fn sequences_share_steps_and_pages() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let options = LoadOptions { n_parallel: Some(2), ..options(&library, Some(2)) };
    let model = Model::load(&source, &options).expect("it loads");
    let options = EngineOptions { n_parallel: 2, ..EngineOptions::default() };
    let engine = start(model, options);
    let known = Recipe::read("llama").tokens();
    let text: Vec<u32> = (0..50).map(|i| known[i * 5 % known.len()]).collect();
    let ask = |prompts: &[&[u32]], uses_cache| {
        let request = |prompt: &&[u32]| {
            let (prompt, n_predict) = (prompt.to_vec(), Some(10));
            let sampler = SamplerOptions::greedy();
            let ignore_eos = true;
            Request { prompt, n_predict, sampler, uses_cache, ignore_eos, ..Request::default() }
        };
        let answers = answers(&engine, prompts.iter().map(request).collect()).into_iter();
        answers.map(|answer| (answer.tokens, answer.n_cached)).collect::<Vec<_>>()
    };
    let cold = [&text[..], &text[..45]].map(|prompt| ask(&[prompt], false).remove(0).0);
    let first = ask(&[&text[..40]], true).remove(0);
    assert_eq!(first.1, 0);
    let warm = ask(&[&text, &text[..45]], true);
    assert!(warm.iter().all(|(_, n_cached)| *n_cached >= 32), "found in the cache");
    assert_eq!(warm.into_iter().map(|(ids, _)| ids).collect::<Vec<_>>(), cold);
}

/// A GPU with memory of its own that all but holds the model.
#[test]
fn auto_puts_as_many_layers_on_the_gpu_as_fit() {
    let Some((library, _dir)) = stand_in::copy("discrete") else { return };
    let whole = Model::load(&ModelSource::Embedded, &options(&library, None)).expect("it fits");
    let (needed, n_layer) = (whole.memory_plan().needed_bytes(), whole.hparams().n_layer as u32);
    let load = |memory: u64, device, n_gpu_layers| {
        let (library, dir) = stand_in::copy(&format!("memory {memory}\ndiscrete"))?;
        let options = LoadOptions { device, ..options(&library, n_gpu_layers) };
        Some((Model::load(&ModelSource::Embedded, &options), dir))
    };
    let (auto, cuda) = (DeviceChoice::Auto, DeviceChoice::Cuda(0));
    let model = load(needed, auto, None).expect("as before").0.expect("it fits");
    assert_eq!(model.memory_plan().cpu_layers, None);
    let model = load(needed - 1, auto, None).expect("as before").0.expect("nearly all fit");
    let memory = model.memory_plan();
    let beside = memory.cpu_layers.expect("some are on the CPU");
    assert!((1..=n_layer).contains(&beside.n_layer) && memory.is_on_gpu);
    assert!(memory.needed_bytes() < needed && memory.host_bytes() > beside.needed_bytes());
    let device = model.device();
    assert!(device.name == "cuda:0" && !device.is_fallback, "{}", device.why);
    assert!(device.why.contains(&format!("the first {} layers", beside.n_layer)));
    // One less would not have fitted.
    let more = n_layer + 1 - (beside.n_layer - 1);
    let error = load(needed - 1, cuda, Some(more)).expect("as before").0.err();
    let error = error.expect("too many");
    assert!(matches!(error, InferenceError::Memory { .. }), "{error}");
    // Whoever asks for the GPU gets all of it there or is told.
    let error = load(needed - 1, cuda, None).expect("as before").0.err().expect("all are meant");
    assert!(matches!(error, InferenceError::Memory { .. }), "{error}");
    let text =
        load(needed - 1, cuda, Some(more)).expect("as before").0.err().map(|e| e.to_string());
    let text = text.expect("too many");
    assert!(beside.n_layer == 1 || text.contains("layers on the CPU"), "{text}");
}

#[test]
fn the_program_takes_llama_cpps_option() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let home = tempfile::tempdir().expect("a temporary folder");
    let folder = library.parent().expect("a folder");
    let run = |option: &[&str]| {
        let args = ["generate", "x", "-n", "2", "-c", "64", "--json"].iter().chain(option);
        Run::of(jetforge(home.path()).env("LD_LIBRARY_PATH", folder).args(args))
    };
    for option in ["-ngl", "--gpu-layers", "--n-gpu-layers"] {
        let run = run(&[option, "2"]).ok();
        assert!(!run.err.contains("not known") && !run.err.contains("ignored"), "{}", run.err);
    }
    let refused = run(&["-ngl", "some"]);
    assert!(refused.code == 2 && refused.err.contains("auto or all"), "{}", refused.err);
}

/// The CPU's half counts the same in a step of any length; what goes on in a long one is the GPU's.
#[test]
fn both_halves_of_a_long_step_are_signs_of_life() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let model = Model::load(&ModelSource::Embedded, &options(&library, Some(3))).expect("it loads");
    let engine = start(model, EngineOptions::default());
    engine.slots().wait().expect("an answer");
    let beats = |n_token: u32| {
        let (beat, n_step) = (engine.beat(), engine.stats().steps_total);
        let (prompt, n_predict) = ((300..300 + n_token).collect(), Some(1));
        let request = Request { prompt, n_predict, uses_cache: false, ..Request::default() };
        answers(&engine, vec![request]);
        engine.slots().wait().expect("an answer");
        (engine.beat() - beat, engine.stats().steps_total - n_step)
    };
    let (short, long) = (beats(4), beats(64));
    assert_eq!(short.1, long.1, "steps");
    // There are eight products and attentions in a layer; asking counts as well, a little.
    assert!(long.0 > short.0 + 8, "{short:?} {long:?}");
}
