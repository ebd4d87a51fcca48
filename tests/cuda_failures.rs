//! What becomes of a model when the driver fails at each place where it is called, when a kernel
//! does nothing or wants more than the device has, and when code was compiled before; on the
//! stand-in.

use std::collections::BTreeMap;
use std::path::Path;

use jetforge::inference::backend::BackendError;
use jetforge::inference::backend::cuda::{CudaBackend, CudaConfig, Device, KvFormat};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    DeviceChoice, EngineOptions, Event, LoadOptions, Model, ModelSource, Request,
};

use crate::cuda_driver::functions;
use crate::cuda_engine::{on_cuda, try_backend, write};
use crate::support::engine::{answers, bits, start, with_step};
use crate::support::recipe::Recipe;
use crate::support::stand_in::{self, Call, Directed};

/// How many of the calls that are about no kernel fail in a load, and in a step of those that make
/// the context current, which comes before every other: spread over all of them.
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

/// A call that is to fail: its name, and how many of that name there are up to it.
type Site = (String, usize);

/// `n` of so many, spread over all of them.
fn spread(n_all: usize, n: usize) -> impl Iterator<Item = usize> {
    let n = n.min(n_all);
    (0..n).map(move |i| i * (n_all - 1) / (n - 1).max(1))
}

/// Which calls of a load are to fail, in the order in which they were made: the first about each
/// kernel, and of the others a spread.
fn sites(calls: &[Call]) -> Vec<Site> {
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
        let n = if about.is_empty() { N_SPREAD } else { 1 };
        let chosen = spread(places.len(), n).map(|i| places[i]);
        sites.extend(chosen.map(|(at, nth)| (at, call, nth)));
    }
    sites.sort_unstable();
    sites.into_iter().map(|(_, call, nth)| (call.to_owned(), nth)).collect()
}

/// Every call of a step.
fn every(calls: &[Call]) -> Vec<Site> {
    let mut n_calls: BTreeMap<&str, usize> = BTreeMap::new();
    for (call, _) in calls.iter().filter(|(call, _)| is_asked(call)) {
        *n_calls.entry(call).or_default() += 1;
    }
    let of = |(call, n): (&str, usize)| {
        let most = if may_be_missed(call) { N_SPREAD } else { n };
        spread(n, most).map(|i| (call.to_owned(), i + 1)).collect::<Vec<_>>()
    };
    n_calls.into_iter().flat_map(of).collect()
}

/// The order to fail, and what the error then says.
fn order((call, nth): &(String, usize)) -> (String, &str) {
    match &call[..] {
        "cuMemAlloc_v2" => (format!("fail {call} {nth} 2"), "OUT_OF_MEMORY"),
        _ => (format!("fail {call} {nth} 719"), call),
    }
}

/// A context is also made current to give something back, which goes on without; and some of what a
/// device is asked is for reports alone.
fn may_be_missed(call: &str) -> bool {
    ["cuCtxSetCurrent", "cuDeviceGetAttribute"].contains(&call)
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
    let others = ["cuDeviceGetAttribute", "cuMemAlloc_v2", "cuModuleLoadDataEx"];
    for call in ["cuInit", "cuCtxSetCurrent"].into_iter().chain(others) {
        assert!(named.contains_key(call), "{call} is a place: {named:?}");
    }
    // Each kernel is found, and each is tried.
    assert!(named["cuModuleGetFunction"] > 15 && named["cuLaunchKernel"] > 15, "{named:?}");
}

/// Lets each call that `run` makes fail in turn. The error names it, and the next run is as before;
/// how many of each were named.
fn sweep<T: PartialEq>(
    what: &str,
    library: &Path,
    mut run: impl FnMut() -> Result<T, String>,
) -> BTreeMap<String, usize> {
    let stand_in = Directed::of(library);
    let expected = run().expect("nothing fails");
    stand_in.direct("log");
    assert!(run().expect("nothing fails") == expected, "{what}");
    let sites = every(&stand_in::calls(library));
    let mut named = BTreeMap::new();
    for site in &sites {
        let (conf, says) = order(site);
        stand_in.direct(&conf);
        match run() {
            Ok(got) => {
                assert!(may_be_missed(&site.0), "{what}: {site:?} failed and nobody said so");
                assert!(got == expected, "{what}: {site:?}");
            }
            Err(error) => {
                assert!(error.contains(says), "{what}: {site:?}: {error}");
                *named.entry(site.0.clone()).or_default() += 1;
            }
        }
        assert!(run().expect("the failure is over") == expected, "{what}: {site:?}");
    }
    stand_in.direct("");
    println!("{what}: {named:?} of {} places", sites.len());
    named
}

/// A whole model on the device, and one whose first layers are on the CPU.
#[test]
fn a_call_that_fails_in_a_step_is_named_and_the_next_step_succeeds() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let tokens = tokens(LONG);
    for n_gpu_layers in [None, Some(2)] {
        let Some((library, _dir)) = stand_in::copy("") else { return };
        let options = LoadOptions { n_gpu_layers, ..on_cuda(&library) };
        let mut model = Model::load(&source, &options).expect("nothing fails");
        let run = || model.logits(&tokens).map_err(|error| error.to_string());
        let named = sweep(&format!("layers: {n_gpu_layers:?}"), &library, run);
        let calls = ["cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"];
        assert!(calls.iter().all(|call| named.contains_key(*call)), "{named:?}");
        assert!(named.values().sum::<usize>() > 20, "{named:?}");
    }
}

/// What comes of a page.
fn page(backend: &CudaBackend, idx: u32) -> Result<Vec<u32>, BackendError> {
    let mut bytes = vec![0; backend.page_bytes()];
    backend.read_page(idx, &mut bytes)?;
    Ok(bytes.into_iter().map(u32::from).collect())
}

/// What a backend does besides whole rows of logits: the call that it is about, and what comes of
/// it.
type Deed = fn(&mut CudaBackend, &[u32]) -> Result<Vec<u32>, BackendError>;
const DEEDS: [(&str, &str, Deed); 4] = [
    ("a few logits", "cuLaunchKernel", |backend, tokens| {
        with_step(&[(&[0], 0, tokens, 0)], |batch| {
            backend.forward_top(batch, &[3; LONG])?;
            let rows = 0..tokens.len();
            let top = rows.flat_map(|row| backend.top(row)).flat_map(|(id, x)| [*id, x.to_bits()]);
            let mut got: Vec<u32> = top.collect();
            got.extend(backend.row(LONG - 1)?.iter().map(|x| x.to_bits()));
            Ok(got)
        })
    }),
    ("embeddings", "cuLaunchKernel", |backend, tokens| {
        with_step(&[(&[0], 0, tokens, 0)], |batch| Ok(bits(&backend.embed(batch)?).concat()))
    }),
    ("a page from the host", "cuMemcpyHtoDAsync_v2", |backend, _| {
        let bytes: Vec<u8> = (0..backend.page_bytes()).map(|i| i as u8).collect();
        backend.write_page(1, &bytes)?;
        page(backend, 1)
    }),
    ("a page from another", "cuMemcpyDtoDAsync_v2", |backend, _| {
        let empty = vec![0; backend.page_bytes()];
        backend.write_page(1, &empty)?;
        backend.copy_page(0, 1)?;
        page(backend, 1)
    }),
];

#[test]
fn a_call_that_fails_in_what_else_a_backend_does_is_named_too() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let device = Device::open(&library, 0).expect("the stand-in has a device");
    let (n_page, kv) = (2, KvFormat::F16);
    let config = CudaConfig { n_batch: LONG, n_outputs: LONG, n_page, kv, n_threads: 1 };
    let backend = try_backend(&device, "llama", TensorType::Q4_0, config);
    let (mut backend, tokens) = (backend.expect("it starts"), tokens(LONG));
    for (what, call, deed) in DEEDS {
        let run = || deed(&mut backend, &tokens).map_err(|error| error.to_string());
        let named = sweep(what, &library, run);
        assert!(named.contains_key(call), "{what}: {named:?}");
    }
}

/// A text that shares a part of a page with one before gets a copy of it. What a GPU refuses to
/// copy is computed.
#[test]
fn a_page_that_cannot_be_copied_is_computed() {
    const COPY: &str = "cuMemcpyDtoDAsync_v2";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let stand_in = Directed::of(&library);
    let model = Model::load(&source, &on_cuda(&library)).expect("nothing fails");
    let engine = start(model, EngineOptions::default());
    let ask = |uses_cache| {
        let (prompt, n_predict) = (tokens(50), Some(4));
        let request = Request { prompt, n_predict, ignore_eos: true, ..Request::default() };
        let mut request = Request { uses_cache, ..request };
        request.sampler.temp = 0.0;
        let answer = answers(&engine, vec![request]).remove(0);
        (answer.tokens, answer.n_cached)
    };
    let (expected, _) = ask(false);
    assert_eq!(ask(true).0, expected);
    stand_in.direct("log");
    assert_eq!(ask(true), (expected.clone(), 49), "a page of 32, and a part");
    let n_copy = stand_in::calls(&library).iter().filter(|(call, _)| call == COPY).count();
    assert!(n_copy > 1, "a page has several pieces");
    for nth in 1..=n_copy {
        stand_in.direct(&format!("fail {COPY} {nth} 719"));
        assert_eq!(ask(true), (expected.clone(), 32), "{nth} of {n_copy}");
        assert_eq!(ask(true), (expected.clone(), 49), "after {nth}");
    }
}

/// Steps are launched one by one then, and nothing is kept of what was compiled.
#[test]
fn a_driver_that_lacks_what_only_saves_time_computes_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let run = |conf: &str| {
        let images = tempfile::tempdir().expect("a temporary folder");
        let (library, _dir) = stand_in::copy(conf)?;
        let cuda_images = Some(images.path().to_owned());
        let options = LoadOptions { cuda_images, ..on_cuda(&library) };
        let mut model = Model::load(&source, &options).expect("it loads");
        let logits = [(); 3].map(|()| model.logits(&tokens(4)).expect("it runs"));
        let calls = stand_in::calls(&library);
        let n_replay = calls.iter().filter(|(call, _)| call == "cuGraphLaunch").count();
        Some((logits, n_replay > 0, !files(images.path()).is_empty()))
    };
    let Some((expected, replays, keeps)) = run("log") else { return };
    assert!(replays && keeps, "the canary");
    let (_, optional) = functions();
    assert!(optional.len() > 5, "{optional:?}");
    for name in optional {
        let (logits, replays, keeps) = run(&format!("log\nwithout {name}")).expect("as before");
        assert!(logits == expected, "{name}");
        let is_linker = name.starts_with("cuLink");
        assert_eq!((replays, keeps), (is_linker, !is_linker), "{name}");
    }
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
        "rms_norm_stage_f16",
        "layer_norm_stage_f16",
        "glu_stage_f16",
        "gemv_q4_0_f16_c1",
        "gemv_q4_0_f16_c2",
        "gemv_q4_0_f16_c4",
        "gemv_q4_0_f16_c8",
        "gemm_q4_0_f16",
        "rms_norm_f32",
        "layer_norm_f32",
        "glu_f32",
        "add_f32",
        "select_f32",
        "top_k_f32",
        "rope_append_f16",
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
    .chain(["rope_append_q8_0", "attn_q8_0_d64"].map(|kernel| (kernel, "q8_0")))
    .chain(["rope_append_q4_0", "attn_q4_0_d64"].map(|kernel| (kernel, "q4_0")))
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
