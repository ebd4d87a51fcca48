//! Prompts on tensor cores, as a device of capability 8.0 has them: which kernel multiplies what,
//! the same bits for the same prompt in any company, and the other kernels where these fail.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use jetforge::inference::backend::PageIdx;
use jetforge::inference::backend::cuda::{CudaBackend, CudaConfig, Device, KvFormat};
use jetforge::inference::gguf::Gguf;
use jetforge::inference::model::{Hparams, plan};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    DeviceChoice, EngineOptions, GenerateRequest, LoadOptions, LoadProgress, Model, ModelSource,
    Request, SamplerOptions,
};

use crate::support::engine::{Part, answers, bits, start, with_step};
use crate::support::recipe::Recipe;
use crate::support::stand_in;

const NEW_DEVICE: &str = "capability 8 0";

fn backend(device: &Device, ty: TensorType) -> CudaBackend {
    let gguf = Arc::new(Gguf::from_vec(Recipe::read("llama").build(ty)).expect("a model"));
    let hparams = Hparams::from_gguf(&gguf).expect("the numbers are there");
    let plan = plan(&gguf, &hparams).expect("the tensors are there");
    let config =
        CudaConfig { n_batch: 80, n_outputs: 80, n_page: 8, kv: KvFormat::F16, n_threads: 1 };
    CudaBackend::new(device, plan, gguf, config, &LoadProgress::default())
        .expect("the backend starts")
}

/// One forward pass; the logits' bits of every token.
fn forward(backend: &mut CudaBackend, parts: &[Part<'_>]) -> Vec<Vec<u32>> {
    with_step(parts, |batch| bits(&backend.forward(batch).expect("the batch keeps the rules")))
}

fn tokens(n: usize) -> Vec<u32> {
    let known = Recipe::read("llama").tokens();
    (0..n).map(|i| known[i * 5 % known.len()]).collect()
}

/// A text of which the first 21 tokens are the prompt: in one step, in chunks that end before, in
/// and behind the prompt, token by token (which is recorded), and beside others of both kinds.
#[test]
fn a_prompt_and_its_answer_have_the_same_bits_however_they_are_run() {
    let Some((device, _dir)) = stand_in::device(NEW_DEVICE) else { return };
    let device = device.expect("the stand-in has a device");
    for ty in [TensorType::Q4_0, TensorType::Q4_K] {
        let mut backend = backend(&device, ty);
        assert!(backend.sets_prompts_apart(), "{}", backend.describe());
        let (tokens, n_prompt) = (tokens(35), 21usize);
        let pages: [PageIdx; 2] = [4, 1];
        let expected = forward(&mut backend, &[(&pages, 0, &tokens, n_prompt)]);
        for n in [13, 1] {
            let mut got = Vec::new();
            for (i, chunk) in tokens.chunks(n).enumerate() {
                let part = (&pages[..], i * n, chunk, n_prompt.saturating_sub(i * n));
                got.extend(forward(&mut backend, &[part]));
            }
            assert!(got == expected, "{ty}: steps of {n}");
        }
        let (ours, second, third) = ([6, 2], [1], [3]);
        let mut got = Vec::new();
        for (i, chunk) in tokens.chunks(7).enumerate() {
            let prompt = (&second[..], 3 * i, &tokens[i..i + 3], 3);
            let step = (&third[..], i, &tokens[i..=i], 0);
            let part = (&ours[..], 7 * i, chunk, n_prompt.saturating_sub(7 * i));
            got.extend(forward(&mut backend, &[prompt, step, part]).drain(4..));
        }
        assert!(got == expected, "{ty}: beside others");
        let as_answer = forward(&mut backend, &[(&pages, 0, &tokens, 0)]);
        assert!(as_answer != expected, "the canary: tensor cores add otherwise");
        assert!(close(&as_answer, &expected), "{ty}: and nearly alike");
    }
}

fn close(a: &[Vec<u32>], b: &[Vec<u32>]) -> bool {
    let values = |rows: &[Vec<u32>]| -> Vec<f64> {
        rows.iter().flatten().map(|bits| f64::from(f32::from_bits(*bits))).collect()
    };
    let (a, b) = (values(a), values(b));
    let far: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    println!("tensor cores: {:.1e} from the other kernels", (far / size).sqrt());
    far / size < 0.01 * 0.01
}

/// Older devices have none, and no token is another's for being a prompt's.
#[test]
fn a_jetson_nano_knows_no_difference() {
    let Some((device, _dir)) = stand_in::device("capability 5 3") else { return };
    let device = device.expect("the stand-in has a device");
    let mut backend = backend(&device, TensorType::Q4_0);
    assert!(!backend.sets_prompts_apart());
    let tokens = tokens(20);
    let as_prompt = forward(&mut backend, &[(&[0], 0, &tokens, 20)]);
    assert!(as_prompt == forward(&mut backend, &[(&[0], 0, &tokens, 0)]));
}

fn load(folder: &Path, library: &Path) -> Model {
    let path = folder.join("llama.gguf");
    std::fs::write(&path, Recipe::read("llama").build(TensorType::Q4_0)).expect("it is written");
    let options = LoadOptions {
        n_ctx: Some(128),
        n_threads: Some(1),
        device: DeviceChoice::Cuda(0),
        cuda_library: Some(library.to_owned()),
        ..LoadOptions::default()
    };
    Model::load(&ModelSource::File(path), &options).expect("it loads")
}

/// A kernel that does nothing, and one that the driver does not take.
#[test]
fn where_tensor_cores_fail_the_other_kernels_do_it_and_it_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prompt = tokens(20);
    let write = |conf: &str| {
        let (library, _dir) = stand_in::copy(conf)?;
        let mut model = load(folder.path(), &library);
        let request = GenerateRequest {
            prompt: prompt.clone(),
            n_predict: Some(4),
            sampler: SamplerOptions::greedy(),
            ..GenerateRequest::default()
        };
        let answer = model.generate(&request, &mut |_| ControlFlow::Continue(()));
        Some((model.backend_name().to_owned(), answer.expect("it generates").tokens))
    };
    let Some((name, _)) = write(NEW_DEVICE) else { return };
    assert!(name.ends_with("; prompts on tensor cores)"), "{name}");
    let Some((skipped, tokens)) = write("capability 8 0\nskip gemm_q4_0_mma") else { return };
    assert!(
        skipped.contains("no tensor cores: the kernel product of Q4_0 with")
            && skipped.contains("fails its self-test"),
        "{skipped}"
    );
    let (plain, others) = write("").expect("as before");
    assert!(!plain.contains("tensor"), "{plain}");
    assert_eq!(tokens.len(), others.len());
}

/// The pages of an answer are not those of the same text as a prompt, so they are not reused.
#[test]
fn a_conversation_goes_on_as_it_would_from_cold() {
    let Some((library, _dir)) = stand_in::copy(NEW_DEVICE) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = load(folder.path(), &library);
    let engine = start(model, EngineOptions::default());
    let ask = |prompt: &[u32], uses_cache| {
        let sampler = SamplerOptions { seed: 3, temp: 1.5, ..SamplerOptions::default() };
        let (prompt, n_predict) = (prompt.to_vec(), Some(12));
        let request = Request {
            prompt,
            n_predict,
            sampler,
            uses_cache,
            ignore_eos: true,
            ..Request::default()
        };
        let answer = answers(&engine, vec![request]).remove(0);
        (answer.tokens, answer.n_cached)
    };
    let mut text = tokens(40);
    let (answer, _) = ask(&text, true);
    text.extend(answer);
    text.extend(&tokens(10)[3..]);
    let (warm, n_cached) = ask(&text, true);
    assert!((32..=40).contains(&n_cached), "of the first prompt: {n_cached}");
    let (cold, none) = ask(&text, false);
    assert_eq!((warm, none), (cold, 0));
}
