//! Whole models on the stand-in for libcuda: the tokens and nearly the logits of the CPU, the same
//! bits however a text is cut, and an answer to everything that can be missing or fail.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jetforge::inference::backend::cuda::{CudaBackend, CudaConfig, Device, KvFormat};
use jetforge::inference::backend::{BackendError, PageIdx};
use jetforge::inference::gguf::Gguf;
use jetforge::inference::model::{Hparams, plan};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    DeviceChoice, EncodeOptions, EngineOptions, GenerateRequest, InferenceError, LoadOptions,
    LoadProgress, Model, ModelSource, Request, SamplerOptions, SpeculationOptions, Target, convert,
};

use crate::cli::jetforge;
use crate::support::engine::{answers, bits, start, with_step};
use crate::support::recipe::Recipe;
use crate::support::run::Run;
use crate::support::stand_in;

const PROMPT: &str = "write a quick sort example and print the sorted result";

/// How far logits may be from the CPU's, as a share of their own root mean square: there inputs of
/// products are rounded to 8 bits, here to halves, and each product adds a little of both. It is
/// the CPU that is farther from exact arithmetic.
const DISTANCE_MAX: f64 = 0.05;
/// The same for models in F32, whose products the CPU does not round: what halves alone do.
const DISTANCE_MAX_F32: f64 = 0.01;

pub fn on_cuda(library: &Path) -> LoadOptions {
    LoadOptions {
        n_ctx: Some(128),
        n_threads: Some(2),
        device: DeviceChoice::Cuda(0),
        cuda_library: Some(library.to_owned()),
        ..LoadOptions::default()
    }
}

pub fn on_cpu() -> LoadOptions {
    LoadOptions { n_ctx: Some(128), n_threads: Some(2), ..LoadOptions::default() }
}

/// A recipe's model in a file.
pub fn write(folder: &Path, case: &str, ty: TensorType) -> ModelSource {
    let path = folder.join(format!("{case}-{ty}.gguf"));
    std::fs::write(&path, Recipe::read(case).build(ty)).expect("the model is written");
    ModelSource::File(path)
}

/// The root of the mean squared difference, as a share of the expected values' own.
pub fn distance(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let far: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let size: f64 = expected.iter().map(|x| square(*x)).sum();
    (far / size).sqrt()
}

fn greedy(model: &mut Model, prompt: &str) -> Vec<u32> {
    let encode = EncodeOptions { add_special: true, parse_special: false };
    let prompt = model.tokenizer().encode(prompt, encode).expect("the prompt is text");
    let request = GenerateRequest {
        prompt,
        n_predict: Some(16),
        sampler: SamplerOptions::greedy(),
        ..GenerateRequest::default()
    };
    let answer = model.generate(&request, &mut |_| ControlFlow::Continue(()));
    answer.expect("the model generates").tokens
}

/// How a backend's name begins.
fn name(library: &Path) -> String {
    let device = Device::open(library, 0).expect("the device is there");
    format!("cuda ({}", device.info())
}

#[test]
fn the_default_model_writes_what_it_writes_on_the_cpu() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let mut cuda = Model::load(&ModelSource::Embedded, &on_cuda(&library)).expect("it loads");
    let mut cpu = Model::load(&ModelSource::Embedded, &on_cpu()).expect("it loads");
    assert_eq!(cuda.device().name, "cuda:0");
    assert!(cuda.backend_name().starts_with(&name(&library)), "{}", cuda.backend_name());
    let expected = greedy(&mut cpu, PROMPT);
    assert!(expected.len() > 8, "an answer worth comparing");
    assert_eq!(greedy(&mut cuda, PROMPT), expected);
    let tokens: Vec<u32> = (0..12).map(|i| 300 + i * 7).collect();
    let logits = |model: &mut Model| model.logits(&tokens).expect("logits");
    let far = distance(&logits(&mut cuda), &logits(&mut cpu));
    println!("default model: {far:.1e} from the CPU");
    assert!(far < DISTANCE_MAX, "{far:.1e}");
}

/// Requests one after another: guesses that are verified several in a step, recorded or not, and a
/// second request whose beginning is in the prefix cache.
#[test]
fn an_engine_answers_as_on_the_cpu_with_guesses_and_a_warm_prefix() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let prompts = [
        PROMPT,
        "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef add(a, b):\n",
        "for i in range(10):\n    print(i)\nfor i in range(20):\n    print(i)\nfor i in",
    ];
    let run = |options: &LoadOptions, n_draft_max: usize| {
        let model = Model::load(&ModelSource::Embedded, options).expect("it loads");
        let encode = EncodeOptions { add_special: true, parse_special: false };
        let prompts = prompts.map(|text| model.tokenizer().encode(text, encode).expect("text"));
        let engine = start(model, EngineOptions::default());
        let ask = |prompt: Vec<u32>| {
            let mut request = Request { prompt, n_predict: Some(16), ..Request::default() };
            (request.sampler.temp, request.ignore_eos) = (0.0, true);
            request.speculation.n_draft_max = n_draft_max;
            answers(&engine, vec![request]).remove(0)
        };
        let mut written = Vec::new();
        let mut n_cached = 0;
        for mut prompt in prompts {
            let first = ask(prompt.clone());
            prompt.extend(&first.tokens);
            let second = ask(prompt);
            n_cached += second.n_cached;
            written.extend([first.tokens, second.tokens]);
        }
        engine.slots().wait().expect("the engine runs");
        let stats = engine.stats();
        (written, n_cached, stats.accepted_tokens_total)
    };
    let (expected, ..) = run(&on_cpu(), 0);
    let (guessed, n_cached, n_accepted) =
        run(&on_cuda(&library), SpeculationOptions::default().n_draft_max);
    assert_eq!(guessed, expected);
    assert!(n_cached >= 32 && n_accepted > 0, "{n_cached} cached, {n_accepted} right guesses");
}

#[test]
fn every_architecture_comes_close_to_the_cpu() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut worst = Vec::new();
    for (case, ty) in [
        ("llama", TensorType::F32),
        ("llama-yarn", TensorType::Q8_0),
        ("qwen2", TensorType::F32),
        ("qwen3", TensorType::F32),
        ("phi2", TensorType::F32),
        ("stablelm-parallel", TensorType::F32),
        ("starcoder2", TensorType::F32),
        // Windows of attention, norms after the products.
        ("gemma3", TensorType::F32),
        ("llama", TensorType::Q4_K),
        ("llama", TensorType::F16),
    ] {
        let source = write(folder.path(), case, ty);
        let tokens = Recipe::read(case).tokens();
        let logits = |options: &LoadOptions| {
            let mut model = Model::load(&source, options).expect("it loads");
            model.logits(&tokens).expect("logits")
        };
        let far = distance(&logits(&on_cuda(&library)), &logits(&on_cpu()));
        worst.push(format!("{case} {ty}: {far:.1e}"));
        let is_exact = matches!(ty, TensorType::F32 | TensorType::F16);
        let most = if is_exact { DISTANCE_MAX_F32 } else { DISTANCE_MAX };
        assert!(far < most, "{case} {ty}: {far:.1e}");
    }
    println!("{}", worst.join("\n"));
}

#[test]
fn keys_and_values_in_8_and_4_bits_come_close_to_the_cpus() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "qwen2", TensorType::F32);
    let tokens = Recipe::read("qwen2").tokens();
    for (kv_type, most) in [("q8_0", DISTANCE_MAX_F32), ("q4_0", DISTANCE_MAX)] {
        let logits = |options: LoadOptions| {
            let options = LoadOptions { kv_type: Some(kv_type.to_owned()), ..options };
            let mut model = Model::load(&source, &options).expect("it loads");
            model.logits(&tokens).expect("logits")
        };
        let far = distance(&logits(on_cuda(&library)), &logits(on_cpu()));
        println!("{kv_type}: {far:.1e}");
        assert!(far < most, "{kv_type}: {far:.1e}");
    }
}

#[test]
fn an_encoder_embeds_and_a_reranker_scores() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "bert", TensorType::F32);
    let load = |source: &ModelSource, options: &LoadOptions| {
        // As many positions as these learned.
        let options = LoadOptions { n_ctx: Some(64), ..options.clone() };
        Model::load(source, &options).expect("it loads")
    };
    let embed = |options: &LoadOptions| {
        let mut model = load(&source, options);
        model.embed("the quick brown fox", None).expect("a vector")
    };
    let far = distance(&embed(&on_cuda(&library)), &embed(&on_cpu()));
    assert!(far < DISTANCE_MAX_F32, "{far:.1e}");
    let source = write(folder.path(), "bert-rank", TensorType::F32);
    let score = |options: &LoadOptions| {
        let mut model = load(&source, options);
        model.rerank("fox", "the quick brown fox").expect("a score")
    };
    let (cuda, cpu) = (score(&on_cuda(&library)), score(&on_cpu()));
    assert!((cuda - cpu).abs() < 0.01 * cpu.abs().max(1.0), "{cuda} and {cpu}");
}

/// Panels of a native file become the strips that rows become; strips are what they are.
#[test]
fn a_native_file_of_any_target_gives_the_same_bits() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (case, ty) in [("llama", TensorType::Q6_K), ("phi2", TensorType::N3)] {
        let ModelSource::File(plain) = write(folder.path(), case, ty) else { unreachable!() };
        let gguf = Gguf::open(&plain).expect("the reader takes the file");
        let native = [Target::Avx2, Target::Sm53].map(|target| {
            let native = folder.path().join(format!("{}.gguf", target.name()));
            let bytes = convert(&gguf, target, Vec::new()).expect("the weights fit");
            std::fs::write(&native, bytes).expect("the native file is written");
            native
        });
        let tokens = Recipe::read(case).tokens();
        let logits = |path: PathBuf| {
            let source = ModelSource::File(path);
            let mut model = Model::load(&source, &on_cuda(&library)).expect("it loads");
            model.logits(&tokens).expect("logits")
        };
        let expected = logits(plain);
        assert!(native.map(logits).iter().all(|got| *got == expected), "{case} {ty}");
    }
}

/// A backend by itself.
fn backend(device: &Device, case: &str, ty: TensorType, n_page: usize) -> CudaBackend {
    let config = CudaConfig { n_batch: 80, n_outputs: 80, n_page, kv: KvFormat::F16, n_threads: 1 };
    try_backend(device, case, ty, config).expect("the backend starts")
}

/// The same, with a batch of its own, if it starts.
pub fn try_backend(
    device: &Device,
    case: &str,
    ty: TensorType,
    config: CudaConfig,
) -> Result<CudaBackend, BackendError> {
    let gguf = Arc::new(Gguf::from_vec(Recipe::read(case).build(ty)).expect("a model"));
    let hparams = Hparams::from_gguf(&gguf).expect("the numbers are there");
    let plan = plan(&gguf, &hparams).expect("the tensors are there");
    CudaBackend::new(device, plan, gguf, config, &LoadProgress::default())
}

pub type Part<'a> = (&'a [PageIdx], usize, &'a [u32]);

/// One forward pass; the logits' bits of every token.
fn forward(backend: &mut CudaBackend, parts: &[Part<'_>]) -> Vec<Vec<u32>> {
    try_forward(backend, parts).expect("the batch keeps the rules")
}

/// The same, if nothing fails.
pub fn try_forward(
    backend: &mut CudaBackend,
    parts: &[Part<'_>],
) -> Result<Vec<Vec<u32>>, BackendError> {
    let parts: Vec<_> = parts.iter().map(|&(pages, pos, ids)| (pages, pos, ids, 0)).collect();
    with_step(&parts, |batch| Ok(bits(&backend.forward(batch)?)))
}

#[test]
fn the_same_tokens_give_the_same_bits_however_they_are_run() {
    let Some((device, _dir)) = stand_in::device("") else { return };
    let device = device.expect("the stand-in has a device");
    for (case, ty) in [("llama", TensorType::Q4_0), ("gemma3", TensorType::Q5_K)] {
        let known = Recipe::read(case).tokens();
        let tokens: Vec<u32> = (0..75).map(|i| known[i * 5 % known.len()]).collect();
        let mut backend = backend(&device, case, ty, 8);
        let pages: [PageIdx; 3] = [4, 1, 6];
        let expected = forward(&mut backend, &[(&pages, 0, &tokens)]);
        for n in [32, 13, 1] {
            let chunks = tokens.chunks(n).enumerate();
            let got: Vec<_> =
                chunks.flat_map(|(i, c)| forward(&mut backend, &[(&pages, i * n, c)])).collect();
            assert!(got == expected, "{case} {ty}: steps of {n}");
        }
        let (ours, second) = ([6, 2, 4], [1, 5]);
        let mut got = Vec::new();
        for (i, chunk) in tokens.chunks(7).enumerate() {
            let beside: [Part<'_>; 2] =
                [(&second, 3 * i, &tokens[i..i + 3]), (&ours, 7 * i, chunk)];
            got.extend(forward(&mut backend, &beside).drain(3..));
        }
        assert!(got == expected, "{case} {ty}: beside another");
        let mut changed = tokens.clone();
        changed[40] ^= 1;
        let other = forward(&mut backend, &[(&pages, 0, &changed)]);
        assert!(other[..40] == expected[..40] && other[40] != expected[40], "the canary");
    }
}

/// 13 for each layer, and three for the logits: so docs/cuda.md counts those of TinyLlama.
#[test]
fn a_token_is_launched_with_norms_turns_and_activations_fused_with_what_they_feed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let Some((library, _dir)) = stand_in::copy("log") else { return };
    let mut model = Model::load(&source, &on_cuda(&library)).expect("it loads");
    stand_in::Directed::of(&library).direct("log");
    model.logits(&Recipe::read("llama").tokens()[..1]).expect("logits");
    let calls = stand_in::calls(&library);
    let launches = calls.iter().filter(|(call, _)| call == "cuLaunchKernel");
    let launches: Vec<&str> = launches
        .map(|(_, kernel)| if kernel.starts_with("gemv_") { "product" } else { &kernel[..] })
        .collect();
    let attention = "norm product product product rope_append_f16 attn_f16_d64 stage_f16 product";
    let feed_forward = "norm product product glu_stage_f16 product";
    let all = [attention, feed_forward, attention, feed_forward, "select_f32 norm product"];
    assert_eq!(launches.join(" "), all.join(" ").replace("norm", "rms_norm_stage_f16"));
}

/// Whatever a launch may take: products of 16 columns at least, attention of a token.
#[test]
fn shorter_launches_are_more_and_give_the_same_bits() {
    let tokens: Vec<u32> = (0..75).map(|i| 100 + i % 90).collect();
    let run = |n_products_max: Option<usize>| {
        let (device, _dir) = stand_in::device("")?;
        let mut device = device.expect("the device is there");
        if let Some(n) = n_products_max {
            device = device.with_launch_products(n);
        }
        let mut backend = backend(&device, "llama", TensorType::Q4_0, 8);
        let before = device.n_launch();
        let rows = forward(&mut backend, &[(&[4, 1, 6], 0, &tokens)]);
        Some((rows, device.n_launch() - before))
    };
    let Some((expected, n_least)) = run(None) else { return };
    let (rows, n_launch) = run(Some(1 << 20)).expect("as before");
    assert!(rows == expected && n_launch > n_least, "{n_launch} launches, {n_least} at least");
    let (rows, n_most) = run(Some(1)).expect("as before");
    assert!(rows == expected && n_most > n_launch + 75, "{n_most} launches");
}

#[test]
fn pages_are_copied_read_and_written() {
    let Some((device, _dir)) = stand_in::device("") else { return };
    let device = device.expect("the stand-in has a device");
    let tokens = Recipe::read("llama").tokens();
    let tokens: Vec<u32> = (0..40).map(|i| tokens[i % tokens.len()]).collect();
    let mut one = backend(&device, "llama", TensorType::F32, 6);
    let expected = forward(&mut one, &[(&[0, 1], 0, &tokens)])[39].clone();
    let last = |backend: &mut CudaBackend, pages: &[PageIdx]| {
        forward(backend, &[(pages, 39, &tokens[39..])])[0].clone()
    };
    one.copy_page(0, 4).expect("both are there");
    one.copy_page(1, 3).expect("both are there");
    assert!(last(&mut one, &[4, 3]) == expected, "copied");
    let mut bytes = vec![0; one.page_bytes()];
    let mut other = backend(&device, "llama", TensorType::F32, 3);
    for (from, to) in [(0, 2), (1, 0)] {
        one.read_page(from, &mut bytes).expect("it is there");
        other.write_page(to, &bytes).expect("it is there");
    }
    assert!(last(&mut other, &[2, 0]) == expected, "written elsewhere");
    let refused = one.copy_page(0, 6).expect_err("there are six");
    assert!(matches!(refused, BackendError::Page { page: 6, n_page: 6 }), "{refused}");
    let refused = one.read_page(0, &mut bytes[1..]).expect_err("too short");
    assert!(matches!(refused, BackendError::PageBytes { .. }), "{refused}");
}

#[test]
fn sequences_beside_each_other_write_what_each_writes_alone() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "qwen2", TensorType::Q4_0);
    let prompts = ["fn main() {", "the quick brown fox jumps over", "a b c"];
    let written = |n_parallel: usize| -> Vec<Vec<u32>> {
        let options = LoadOptions { n_parallel: Some(n_parallel), ..on_cuda(&library) };
        let model = Model::load(&source, &options).expect("it loads");
        let encode = EncodeOptions { add_special: true, parse_special: false };
        let prompts = prompts.map(|text| model.tokenizer().encode(text, encode).expect("text"));
        let engine = start(model, EngineOptions { n_parallel, ..EngineOptions::default() });
        let requests = prompts.map(|prompt| {
            let mut request = Request { prompt, n_predict: Some(20), ..Request::default() };
            (request.sampler.temp, request.ignore_eos) = (0.0, true);
            request
        });
        answers(&engine, requests.into()).into_iter().map(|answer| answer.tokens).collect()
    };
    let together = written(3);
    assert!(together.iter().all(|answer| answer.len() == 20));
    assert_eq!(together, written(1));
}

/// Steps are recorded the second time that they look alike, and then started as one.
#[test]
fn recorded_launches_give_the_bits_of_launches_one_by_one() {
    let texts = |conf: &str| {
        let (device, _dir) = stand_in::device(conf)?;
        let device = device.expect("the stand-in has a device");
        let known = Recipe::read("gemma3").tokens();
        let tokens: Vec<u32> = (0..40).map(|i| known[i * 5 % known.len()]).collect();
        let mut backend = backend(&device, "gemma3", TensorType::Q4_0, 6);
        let mut rows = Vec::new();
        // One sequence, two, and the first again, at ever other positions and pages.
        for (i, pair) in tokens.chunks(2).enumerate() {
            rows.extend(forward(&mut backend, &[(&[3, 1], i, &pair[..1])]));
            rows.extend(forward(
                &mut backend,
                &[(&[3, 1], i, &pair[..1]), (&[5, 0], i, &pair[1..])],
            ));
        }
        Some(rows)
    };
    let Some(recorded) = texts("") else { return };
    // The first recording fails: there is none, and nothing is missed.
    for conf in ["fail cuStreamBeginCapture_v2 1 801", "fail cuStreamEndCapture 1 900"] {
        let Some(rows) = texts(conf) else { return };
        assert!(rows == recorded, "{conf}");
    }
    let last = std::panic::catch_unwind(|| texts("fail cuGraphLaunch 7 719"));
    assert!(last.is_err(), "the canary: what is recorded is started");
}

#[test]
fn a_model_that_does_not_fit_says_by_how_much() {
    // Less than is kept free, so that not one layer fits.
    let conf = format!("memory {}\ndiscrete", 90 << 20);
    let Some((library, _dir)) = stand_in::copy(&conf) else { return };
    let load = |device| {
        let options = LoadOptions { device, ..on_cuda(&library) };
        Model::load(&ModelSource::Embedded, &options)
    };
    let error = load(DeviceChoice::Cuda(0)).err().expect("weights and reserve are more");
    assert!(matches!(error, InferenceError::Memory { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("of the GPU, but 90 MiB are available"), "{text}");
    let model = load(DeviceChoice::Auto).expect("the CPU has room");
    assert!(model.device().is_fallback && model.device().why.contains(&text));
    assert!(!model.memory_plan().is_on_gpu);
    // A driver that has less than it said: the arithmetic is its own.
    let Some((library, _dir)) = stand_in::copy("fail cuMemAlloc_v2 30 2") else { return };
    let error = Model::load(&ModelSource::Embedded, &on_cuda(&library)).err().expect("refused");
    assert!(error.is_out_of_memory() && error.to_string().contains("OUT_OF_MEMORY"), "{error}");
}

#[test]
fn a_gpus_own_memory_is_not_counted_as_the_machines() {
    let Some((library, _dir)) = stand_in::copy("discrete") else { return };
    let options = LoadOptions { memory_max_bytes: Some(4 << 20), ..on_cuda(&library) };
    let model = Model::load(&ModelSource::Embedded, &options).expect("the GPU has room");
    let memory = model.memory_plan();
    assert!(memory.is_on_gpu && memory.host_bytes() < memory.needed_bytes());
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let options = LoadOptions { memory_max_bytes: Some(4 << 20), ..on_cuda(&library) };
    let error = Model::load(&ModelSource::Embedded, &options).err().expect("memory is shared");
    assert!(matches!(error, InferenceError::Memory { .. }), "{error}");
}

#[test]
fn without_a_gpu_the_cpu_computes_and_says_why() {
    let load = |device, library: &str| {
        let options = LoadOptions { device, ..on_cuda(Path::new(library)) };
        Model::load(&ModelSource::Embedded, &options)
    };
    let absent = load(DeviceChoice::Auto, "/nowhere/libcuda.so.1").expect("the CPU can");
    assert!(!absent.device().is_fallback && absent.device().why == "there is no CUDA driver");
    let broken = load(DeviceChoice::Auto, "libm.so.6").expect("the CPU can");
    assert!(broken.device().is_fallback && broken.device().why.contains("cuInit"));
    let error = load(DeviceChoice::Cuda(0), "/nowhere/libcuda.so.1").err().expect("asked for");
    assert!(error.to_string().contains("no CUDA driver"), "{error}");
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let load = |options: LoadOptions| Model::load(&ModelSource::Embedded, &options);
    let second = LoadOptions { device: DeviceChoice::Cuda(1), ..on_cuda(&library) };
    let error = load(second).err().expect("there is one").to_string();
    assert_eq!(error, "there is no CUDA device 1; the driver sees 1");
    let kv_type = LoadOptions { kv_type: Some("f32".to_owned()), ..on_cuda(&library) };
    let error = load(kv_type).err().expect("no kernel for it").to_string();
    assert!(error.contains("do not run keys and values of type f32"), "{error}");
}

/// The directory of a stand-in, from which the program takes its driver.
fn program(library: &Path, args: &[&str]) -> Run {
    let home = tempfile::tempdir().expect("a temporary folder");
    let folder: PathBuf = library.parent().expect("a folder").to_owned();
    Run::of(jetforge(home.path()).env("LD_LIBRARY_PATH", folder).args(args))
}

#[test]
fn the_program_says_where_it_computes() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let doctor = program(&library, &["doctor", "--json", "-c", "128"]).json();
    let found = doctor["findings"].as_array().expect("findings");
    let text = |what: &str| {
        let of = found.iter().filter(|finding| finding["what"] == what);
        of.map(|finding| finding["text"].as_str().expect("text")).collect::<Vec<_>>().join("; ")
    };
    if !stand_in::is_real() {
        assert_eq!(text("gpu"), "simulated sm_53, compute 5.3, CUDA 10.2");
    }
    assert_eq!(format!("cuda ({}", text("gpu")), name(&library));
    assert!(text("runs on").starts_with(&name(&library)), "{}", text("runs on"));
    assert!(text("kernels").contains("% from plain arithmetic"), "{}", text("kernels"));
    assert!(text("self-test").contains("the known one, twice"), "{}", text("self-test"));
    let Some((library, _dir)) = stand_in::copy("skip glu_stage_f16") else { return };
    let run = program(&library, &["generate", "x", "-n", "2", "-c", "64"]).ok();
    assert!(
        run.err.contains("warning: the GPU cannot be used: the kernel glu_stage_f16"),
        "{}",
        run.err
    );
    let run = program(&library, &["generate", "x", "-n", "2", "-c", "64", "--device", "cpu"]).ok();
    assert!(!run.err.contains("GPU"), "{}", run.err);
    let run = program(&library, &["generate", "x", "--device", "vulkan"]);
    assert!(run.code == 2 && run.err.contains("cuda:N"), "{}", run.err);
}
