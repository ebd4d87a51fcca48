//! What becomes of a model when the driver fails at each place where it is called, when a kernel
//! does nothing or wants more than the device has, and when code was compiled before; on the
//! stand-in.

use std::collections::BTreeMap;
use std::path::Path;

use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    DeviceChoice, EngineOptions, Event, LoadOptions, Model, ModelSource, Request,
};

use crate::cuda_engine::{on_cuda, write};
use crate::support::engine::{answers, start};
use crate::support::recipe::Recipe;
use crate::support::stand_in::{self, Call, Directed};

/// How many of the calls that are about no kernel fail, spread over all of them.
const N_SPREAD: usize = 9;
/// So many tokens are not recorded as a step of a few is.
const LONG: usize = 12;

fn tokens(n: usize) -> Vec<u32> {
    let known = Recipe::read("llama").tokens();
    (0..n).map(|i| known[i * 5 % known.len()]).collect()
}

/// Whether anybody waits for the answer: not of what gives something back.
fn is_asked(call: &str) -> bool {
    !["Free", "Destroy", "Unload"].iter().any(|word| call.contains(word))
}

/// Which calls are to fail, in the order in which they were made, each as its name and how many of
/// that name there are up to it: the first about each kernel, and of the others a spread.
fn sites(calls: &[Call]) -> Vec<(String, usize)> {
    let mut places: BTreeMap<(&str, &str), Vec<(usize, usize)>> = BTreeMap::new();
    let mut n_calls: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, (call, about)) in calls.iter().enumerate().filter(|(_, (call, _))| is_asked(call)) {
        let n = n_calls.entry(call).or_default();
        *n += 1;
        let is_kernel = about.starts_with(|first: char| first.is_ascii_alphabetic());
        let about = if is_kernel { &about[..] } else { "" };
        places.entry((call, about)).or_default().push((at, *n));
    }
    let mut sites: Vec<(usize, &str, usize)> = Vec::new();
    for ((call, about), places) in places {
        let n = if about.is_empty() { N_SPREAD.min(places.len()) } else { 1 };
        let spread = (0..n).map(|i| places[i * (places.len() - 1) / (n - 1).max(1)]);
        sites.extend(spread.map(|(at, nth)| (at, call, nth)));
    }
    sites.sort_unstable();
    sites.into_iter().map(|(_, call, nth)| (call.to_owned(), nth)).collect()
}

/// The order to fail, and what the error then says.
fn order((call, nth): &(String, usize)) -> (String, &str) {
    match &call[..] {
        "cuMemAlloc_v2" => (format!("fail {call} {nth} 2"), "OUT_OF_MEMORY"),
        _ => (format!("fail {call} {nth} 719"), call),
    }
}

/// A context is also made current to give something back, which goes on without.
fn may_be_missed(call: &str) -> bool {
    call == "cuCtxSetCurrent"
}

#[test]
fn a_call_that_fails_while_loading_is_named_and_the_next_load_succeeds() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let Some((library, _dir)) = stand_in::copy("log") else { return };
    let (stand_in, options) = (Directed::of(&library), on_cuda(&library));
    let load = || Model::load(&source, &options);
    let answer = |mut model: Model| model.logits(&tokens(LONG)).expect("nothing fails");
    let mut model = load().expect("nothing fails");
    let sites = sites(&stand_in::calls(&library));
    let expected = model.logits(&tokens(LONG)).expect("nothing fails");
    drop(model);
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, site) in sites.iter().enumerate() {
        let (conf, says) = order(site);
        stand_in.direct(&conf);
        match load() {
            Ok(model) => {
                assert!(may_be_missed(&site.0), "{site:?} failed and nobody said so");
                assert!(answer(model) == expected, "{site:?}");
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(says), "{site:?}: {error}");
                *named.entry(&site.0).or_default() += 1;
            }
        }
        // The next site lies behind this one, so its load passes here; now and then a whole one.
        if i % 16 == 0 || i + 1 == sites.len() {
            stand_in.direct("");
            assert!(answer(load().expect("the failure is over")) == expected, "after {site:?}");
        }
    }
    println!("{named:?}");
    for call in ["cuInit", "cuCtxSetCurrent", "cuMemAlloc_v2", "cuModuleLoadDataEx"] {
        assert!(named.contains_key(call), "{call} is a place: {named:?}");
    }
    // Each kernel is found, and each is tried.
    assert!(named["cuModuleGetFunction"] > 15 && named["cuLaunchKernel"] > 15, "{named:?}");
}

#[test]
fn a_call_that_fails_in_a_step_is_named_and_the_next_step_succeeds() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let stand_in = Directed::of(&library);
    let mut model = Model::load(&source, &on_cuda(&library)).expect("nothing fails");
    let tokens = tokens(LONG);
    let expected = model.logits(&tokens).expect("nothing fails");
    stand_in.direct("log");
    assert!(model.logits(&tokens).expect("nothing fails") == expected);
    let sites = sites(&stand_in::calls(&library));
    let mut n_named = 0;
    for site in &sites {
        let (conf, says) = order(site);
        stand_in.direct(&conf);
        match model.logits(&tokens) {
            Ok(logits) => {
                assert!(may_be_missed(&site.0), "{site:?} failed and nobody said so");
                assert!(logits == expected, "{site:?}");
            }
            Err(error) => {
                assert!(error.to_string().contains(says), "{site:?}: {error}");
                n_named += 1;
            }
        }
        assert!(model.logits(&tokens).expect("the failure is over") == expected, "{site:?}");
    }
    println!("{n_named} of {} places", sites.len());
    assert!(n_named > 20, "{sites:?}");
}

/// What is recorded is not missed; what is started and fails is told.
#[test]
fn a_recording_that_fails_costs_nothing_and_a_recorded_step_that_fails_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let tokens = tokens(4);
    for call in [
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuLaunchKernel",
        "cuGraphLaunch",
    ] {
        let Some((library, _dir)) = stand_in::copy("") else { return };
        let stand_in = Directed::of(&library);
        let mut model = Model::load(&source, &on_cuda(&library)).expect("nothing fails");
        let expected = model.logits(&tokens).expect("nothing fails");
        stand_in.direct(&format!("fail {call} 1 719"));
        match model.logits(&tokens) {
            Ok(logits) => assert!(logits == expected && call != "cuGraphLaunch", "{call}"),
            Err(error) => assert!(call == "cuGraphLaunch" && error.to_string().contains(call)),
        }
        for _ in 0..2 {
            assert!(model.logits(&tokens).expect("the failure is over") == expected, "{call}");
        }
    }
}

/// A person whose request meets a fault hears of it, and the next is served.
#[test]
fn an_engine_tells_the_request_that_failed_and_answers_the_next() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let stand_in = Directed::of(&library);
    let model = Model::load(&source, &on_cuda(&library)).expect("nothing fails");
    let engine = start(model, EngineOptions::default());
    let request = || {
        let (prompt, n_predict) = (tokens(LONG), Some(8));
        let mut request = Request { prompt, n_predict, ignore_eos: true, ..Request::default() };
        (request.sampler.temp, request.uses_cache) = (0.0, false);
        request
    };
    let expected = answers(&engine, vec![request()]).remove(0).tokens;
    assert_eq!(expected.len(), 8);
    for (conf, says) in [
        ("fail cuLaunchKernel 3 719", "cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (719)"),
        ("fail cuEventSynchronize 2 702", "cuEventSynchronize: CUDA_ERROR_LAUNCH_TIMEOUT (702)"),
        ("fail cuMemcpyHtoDAsync_v2 1 719", "cuMemcpyHtoDAsync_v2: CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        stand_in.direct(conf);
        let mut stream = engine.submit(request()).expect("taken");
        let mut failed = None;
        while let Some(event) = stream.recv() {
            if let Event::Failed(error) = event {
                failed = Some(error.to_string());
            }
        }
        let failed = failed.expect("it is told");
        assert!(failed.contains(says), "{conf}: {failed}");
        assert_eq!(answers(&engine, vec![request()]).remove(0).tokens, expected, "after {conf}");
    }
}

/// Loads a model on a device with a kernel that does nothing: `cuda` is refused, and `auto` goes to
/// the CPU and says why.
fn is_found(source: &ModelSource, kernel: &str, kv_type: &str) -> bool {
    let Some((library, _dir)) = stand_in::copy(&format!("skip {kernel}")) else { return false };
    let options = LoadOptions { kv_type: Some(kv_type.to_owned()), ..on_cuda(&library) };
    let error = Model::load(source, &options).err().map(|error| error.to_string());
    let error = error.unwrap_or_else(|| panic!("{kernel} did nothing, and nobody said so"));
    assert!(error.contains("fails its self-test"), "{kernel}: {error}");
    let options = LoadOptions { device: DeviceChoice::Auto, ..options };
    let model = Model::load(source, &options).expect("the CPU can");
    let device = model.device();
    assert!(device.name == "cpu" && device.is_fallback, "{kernel}");
    assert!(device.why.contains(&error), "{kernel}: {}", device.why);
    true
}

#[test]
fn a_kernel_that_does_nothing_is_found_and_the_cpu_takes_its_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    for (kernel, kv_type) in [
        "stage_f16",
        "gemv_q4_0_f16_c1",
        "gemv_q4_0_f16_c2",
        "gemv_q4_0_f16_c4",
        "gemv_q4_0_f16_c8",
        "gemm_q4_0_f16",
        "rms_norm_f32",
        "layer_norm_f32",
        "glu_f32",
        "act_f32",
        "add_f32",
        "rope_f32",
        "select_f32",
        "top_k_f32",
        "kv_append_f16",
        "attn_f16_d64",
        // Of them alone the launches for a few tokens, and those for more.
        "attn_f16_d64 3",
        "attn_f16_d64 9",
        "attn_join_f32",
        "lora_down_f32",
        "lora_up_f32",
    ]
    .map(|kernel| (kernel, "f16"))
    .into_iter()
    .chain(["kv_append_q8_0", "attn_q8_0_d64"].map(|kernel| (kernel, "q8_0")))
    .chain(["kv_append_q4_0", "attn_q4_0_d64"].map(|kernel| (kernel, "q4_0")))
    {
        if !is_found(&source, kernel, kv_type) {
            return;
        }
    }
}

/// A type of each form of strips, and the kernels for wider heads.
#[test]
fn kernels_of_every_form_are_found_when_they_do_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (ty, kernel) in [
        (TensorType::Q4_K, "gemv_n4_f16_c1"),
        (TensorType::N3, "gemm_n3_f16"),
        (TensorType::Q3_K, "gemv_q3_k_f16_c4"),
        (TensorType::Q8_0, "gemm_q8_0_f16"),
        (TensorType::Q5_1, "gemv_q5_1_f16_c1"),
        (TensorType::Q6_K, "gemm_q6_k_f16"),
        (TensorType::IQ4_NL, "gemv_iq4_nl_f16_c4"),
        (TensorType::F16, "gemv_f16_f16_c1"),
        (TensorType::BF16, "gemm_bf16_f16"),
        (TensorType::F32, "gemv_f32_f16_c4"),
    ] {
        if !is_found(&write(folder.path(), "llama", ty), kernel, "f16") {
            return;
        }
    }
    // Heads of 128; and of 256, where all of a layer's width is one.
    let source = write(folder.path(), "qwen3", TensorType::Q4_0);
    is_found(&source, "attn_f16_d128", "f16");
    let path = folder.path().join("wide.gguf");
    let wide = [
        ("llama.attention.head_count", 1),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 256),
    ];
    let recipe = Recipe::read("llama-linear");
    let recipe = wide.into_iter().fold(recipe, |recipe, (key, n)| recipe.with(key, n));
    std::fs::write(&path, recipe.build(TensorType::Q4_0)).expect("the model is written");
    let source = ModelSource::File(path);
    for kv_type in ["f16", "q8_0", "q4_0"] {
        is_found(&source, &format!("attn_{kv_type}_d256"), kv_type);
    }
}

/// A thread block has 32,768 registers on every device that the kernels are for.
#[test]
fn a_kernel_with_more_registers_than_a_block_has_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let load = |n_register: u32, device| {
        let (library, _dir) = stand_in::copy(&format!("registers gemm_q4_0_f16 {n_register}"))?;
        Some(Model::load(&source, &LoadOptions { device, ..on_cuda(&library) }))
    };
    let Some(all) = load(256, DeviceChoice::Cuda(0)) else { return };
    all.expect("256 for each of 128 threads are there");
    let error = load(257, DeviceChoice::Cuda(0)).expect("as before").err().expect("too many");
    let says = "gemm_q4_0_f16 needs 257 registers for each of 128 threads, too many here";
    assert!(error.to_string().contains(says), "{error}");
    let model = load(257, DeviceChoice::Auto).expect("as before").expect("the CPU can");
    assert!(model.device().is_fallback && model.device().why.contains(says));
}

/// The files of a directory, when each was written and what it holds.
fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, (std::time::SystemTime, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("one"));
    let file = |path: std::path::PathBuf| {
        let written = path.metadata().and_then(|meta| meta.modified()).expect("a time");
        let bytes = std::fs::read(&path).expect("a file");
        (path, (written, bytes))
    };
    entries.map(|entry| file(entry.path())).collect()
}

#[test]
fn a_later_start_compiles_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let images = folder.path().join("images");
    let load = |conf: &str| {
        let (library, _dir) = stand_in::copy(conf)?;
        let options = LoadOptions { cuda_images: Some(images.clone()), ..on_cuda(&library) };
        Some(Model::load(&source, &options).map(drop))
    };
    // A driver that takes no PTX: nothing can be compiled.
    let Some(without) = load("precompiled") else { return };
    let error = without.expect_err("there is nothing yet").to_string();
    assert!(error.contains("CUDA_ERROR_INVALID_PTX"), "{error}");
    load("").expect("as before").expect("it loads");
    let kept = files(&images);
    assert!(kept.len() > 5, "{} modules", kept.len());
    load("precompiled").expect("as before").expect("all of it was compiled before");
    assert!(files(&images) == kept, "nothing is written anew");
    // What is torn is compiled again, and whole again afterwards.
    let (torn, (_, whole)) = kept.iter().next().expect("one");
    std::fs::write(torn, b"torn").expect("written");
    load("precompiled").expect("as before").expect_err("one has to be compiled");
    // A driver that cannot give code away, or refuses what is there, compiles as it loads.
    load("fail cuLinkCreate_v2 1 218").expect("as before").expect("text is loaded");
    load("fail cuModuleLoadDataEx 1 200").expect("as before").expect("text is loaded");
    load("").expect("as before").expect("it loads");
    assert!(files(&images)[torn].1 == *whole && files(&images).len() == kept.len());
}
