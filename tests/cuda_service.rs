//! What a service asks of a GPU, on the stand-in: a sign of life in long steps, a fault that is
//! told once and to those it concerns, and memory that is counted as it is taken.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jetforge::base::limits::{DEVICE_LAUNCH_MS_MAX, DEVICE_LAUNCH_PRODUCTS_MAX};
use jetforge::bench::{self, Limits, Rooms, Tests};
use jetforge::inference::backend::cuda::{CudaBackend, CudaConfig, Device, KvFormat};
use jetforge::inference::backend::{Op, PlanBuilder, Rows};
use jetforge::inference::gguf::Gguf;
use jetforge::inference::model::Hparams;
use jetforge::inference::quant::TensorType;
use jetforge::inference::{
    DeviceChoice, EMBEDDED_MODEL, EngineOptions, InferenceError, LoadOptions, Model, ModelSource,
    Request, plan_memory,
};

use crate::cli::jetforge;
use crate::cuda_engine::{Part, on_cpu, on_cuda, try_backend, try_forward, write};
use crate::serve::Process;
use crate::support::engine::start;
use crate::support::http::get;
use crate::support::recipe::Recipe;
use crate::support::stand_in::{self, Directed};

fn config(n_batch: usize, n_page: usize) -> CudaConfig {
    CudaConfig { n_batch, n_outputs: n_batch, n_page, kv: KvFormat::F16, n_threads: 1 }
}

fn tokens(n: usize) -> Vec<u32> {
    let known = Recipe::read("llama").tokens();
    (0..n).map(|i| known[i * 5 % known.len()]).collect()
}

/// Launches return at once: only what the device has done may count, or a GPU that hangs looks
/// alive.
#[test]
fn a_long_step_counts_as_the_device_gets_on_with_it() {
    let tokens = tokens(40);
    let run = |conf: &str| {
        let (device, _dir) = stand_in::device(conf)?;
        let device = device.expect("the stand-in has a device");
        let backend = try_backend(&device, "llama", TensorType::F32, config(40, 2));
        let mut backend = backend.expect("it starts");
        let beat = Arc::new(AtomicU64::new(0));
        backend.count_on(&beat);
        let result = try_forward(&mut backend, &[(&[0, 1], 0, &tokens)]);
        Some((result.err().map(|error| error.to_string()), beat.load(Ordering::Relaxed)))
    };
    let Some((error, all)) = run("") else { return };
    assert!(error.is_none() && all > 10, "{all} products and attentions, {error:?}");
    for n in [1, 5, all] {
        let failed = run(&format!("fail cuEventSynchronize {n} 719")).expect("as before");
        let (error, counted) = (failed.0.expect("a wait fails"), failed.1);
        assert!(error.contains("cuEventSynchronize"), "{error}");
        assert_eq!(counted, n - 1, "of {all}");
    }
}

/// By the device's own clock: what keeps the host makes no launch longer.
#[test]
fn launches_that_take_long_are_half_as_large_in_the_next_step() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let (stand_in, tokens) = (Directed::of(&library), tokens(12));
    let device = Device::open(&library, 0).expect("the stand-in has a device");
    let backend = try_backend(&device, "llama", TensorType::F32, config(12, 1));
    let mut backend = backend.expect("it starts");
    let mut step = |launch_ms: u64| {
        stand_in.direct(&format!("clock {launch_ms}"));
        let rows = try_forward(&mut backend, &[(&[0], 0, &tokens)]).expect("it runs");
        (rows, device.launch_products_max())
    };
    let (expected, n_max) = step(DEVICE_LAUNCH_MS_MAX);
    assert_eq!(n_max, DEVICE_LAUNCH_PRODUCTS_MAX, "as long as they may");
    for share in [2, 4] {
        let (rows, n_max) = step(DEVICE_LAUNCH_MS_MAX + 1);
        assert!(rows == expected && n_max == DEVICE_LAUNCH_PRODUCTS_MAX / share, "{n_max}");
    }
    assert_eq!(step(1).1, DEVICE_LAUNCH_PRODUCTS_MAX / 4, "a quick step changes nothing");
}

#[test]
fn an_engines_beat_goes_on_within_a_step_of_the_gpu() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let model = Model::load(&ModelSource::Embedded, &on_cuda(&library)).expect("it loads");
    let engine = start(model, EngineOptions::default());
    engine.slots().wait().expect("an answer");
    let before = engine.beat();
    let request =
        Request { prompt: (300..364).collect(), n_predict: Some(1), ..Request::default() };
    let mut stream = engine.submit(request).expect("taken");
    while stream.recv().is_some() {}
    let (n_beat, n_step) = (engine.beat() - before, engine.stats().steps_total);
    assert!(n_step > 0 && n_beat > 10 * n_step, "{n_beat} beats in {n_step} steps");
}

/// `/health`, `/props`, `/metrics` and the log of a real process, with a GPU and with one that
/// cannot be trusted.
#[test]
fn a_service_says_where_it_computes() {
    for (conf, name) in [("", "cuda:0"), ("skip glu_stage_f16", "cpu")] {
        let home = tempfile::tempdir().expect("a temporary folder");
        let Some((library, _dir)) = stand_in::copy(conf) else { return };
        let mut command = jetforge(home.path());
        command.env("LD_LIBRARY_PATH", library.parent().expect("a folder"));
        command.args(["serve", "--port", "0", "--threads", "1", "-c", "64", "--metrics"]);
        let service = Process::spawn(command);
        let is_on_gpu = name != "cpu";
        assert_eq!(get(service.address, "/health").json()["gpu_available"], is_on_gpu);
        let device = &get(service.address, "/props").json()["device"];
        assert_eq!(device["name"], name, "{device}");
        assert_eq!(device["is_fallback"], !is_on_gpu, "{device}");
        let (backend, why) = (device["backend"].as_str(), device["why"].as_str());
        let (backend, why) = (backend.expect("text").to_owned(), why.expect("text").to_owned());
        assert!(backend.starts_with(if is_on_gpu { "cuda (" } else { "cpu (" }), "{backend}");
        assert_eq!(why.contains("glu_stage_f16 fails its self-test"), !is_on_gpu, "{why}");
        let metrics = get(service.address, "/metrics").text();
        let line = metrics.lines().find(|line| line.starts_with("jetforge_model_device{"));
        let line = line.expect("a sample").to_owned();
        assert!(line.ends_with(&format!("device=\"{name}\"}} 1")), "{line}");
        service.terminate();
        let (code, said) = service.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&backend), "{said}");
        let warning = "the CPU computes in place of the GPU";
        assert_eq!(said.contains(warning) && said.contains("glu_stage_f16"), !is_on_gpu, "{said}");
    }
}

/// A board is measured beside what was predicted for it: for its GPU, and a short context.
#[test]
fn bench_on_a_nano_tells_what_was_predicted_beside_what_it_measures() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let root = tempfile::tempdir().expect("a temporary folder");
    let tree = root.path().join("proc/device-tree");
    std::fs::create_dir_all(&tree).expect("a folder");
    std::fs::write(tree.join("compatible"), "nvidia,jetson-nano\0nvidia,tegra210\0").expect("file");
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let source = write(elsewhere.path(), "llama", TensorType::Q4_0);
    let predicted = |options: &LoadOptions, root: &Path| {
        let tests = Tests {
            n_prompt: vec![9],
            n_generate: vec![2],
            n_depth: vec![0, 8],
            n_streams: vec![1],
            ttft: false,
            load: false,
            edit: false,
            n_rounds: 1,
            rooms: Rooms { root: root.to_owned(), disk: None },
            ..Tests::default()
        };
        let limits = Limits::default();
        let measured = bench::measure(&source, options, &tests, &limits, &mut |_| {});
        let (_, figures, _) = measured.expect("it is measured");
        let with = figures.into_iter().filter(|figure| figure.predicted.is_some());
        with.map(|figure| figure.test).collect::<Vec<_>>()
    };
    assert_eq!(predicted(&on_cuda(&library), root.path()), ["pp9", "tg2"]);
    assert_eq!(predicted(&on_cpu(), root.path()), [""; 0]);
    assert_eq!(predicted(&on_cuda(&library), elsewhere.path()), [""; 0]);
}

/// Launches before a refused one still run. What becomes of them is said by nobody else.
#[test]
fn a_fault_beside_a_refused_launch_is_told_by_the_same_batch() {
    let tokens = tokens(12);
    // Somewhere behind the launches of the self-test.
    for nth in (40..).step_by(20) {
        let conf = format!("fail cuLaunchKernel {nth} 1\nlate 719");
        let Some((device, _dir)) = stand_in::device(&conf) else { return };
        let device = device.expect("the stand-in has a device");
        let start = || try_backend(&device, "llama", TensorType::F32, config(12, 1));
        let mut backend = match start() {
            Ok(backend) => backend,
            Err(_) => {
                start().expect("the fault went with the failure");
                continue;
            }
        };
        let part: Part<'_> = (&[0], 0, &tokens);
        let results = [(); 4].map(|()| try_forward(&mut backend, &[part]));
        let errors: Vec<String> =
            results.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
        assert_eq!(errors, ["cuLaunchKernel: CUDA_ERROR_INVALID_VALUE (1)"]);
        return;
    }
}

/// Sequences that share pages bring more of them than the cache has, so that what is sent gets
/// other memory. Steps that were recorded before read from there no more.
#[test]
fn recorded_steps_outlive_larger_batches() {
    let tokens = tokens(96);
    let rows = |conf: &str| {
        let (device, _dir) = stand_in::device(conf)?;
        let device = device.expect("the stand-in has a device");
        let backend = try_backend(&device, "llama", TensorType::F32, config(8, 10));
        let mut backend = backend.expect("it starts");
        let mut forward = |parts: &[Part<'_>]| try_forward(&mut backend, parts).expect("it runs");
        for (i, chunk) in tokens[..64].chunks(8).enumerate() {
            forward(&[(&[0, 1], 8 * i, chunk)]);
        }
        let pages: Vec<[u32; 3]> = (2..10).map(|page| [0, 1, page]).collect();
        let mut rows = Vec::new();
        for (i, token) in tokens[64..].chunks(1).enumerate().take(6) {
            rows.extend(forward(&[(&pages[0], 64 + i, token)]));
            let parts: Vec<Part<'_>> =
                pages.iter().map(|pages| (&pages[..], 64 + i, token)).collect();
            if i >= 3 {
                rows.extend(forward(&parts));
            }
        }
        Some(rows)
    };
    let Some(recorded) = rows("") else { return };
    assert!(rows("fail cuStreamBeginCapture_v2 1 801").expect("as before") == recorded);
}

#[test]
fn a_step_whose_columns_have_no_numbers_is_refused() {
    let check = |n_cols: usize, n_batch: usize| {
        let mut b = PlanBuilder::new(8, 0, 1, 4);
        let [x, y] = [n_cols, 4].map(|width| b.buf(width, Rows::Tokens));
        let table = b.matrix("table".to_owned(), 8, n_cols);
        let weight = b.matrix("weight".to_owned(), 4, n_cols);
        b.op(Op::Embed { table, out: x });
        b.op(Op::MatMul { x, weight, bias: None, out: y });
        b.embedding(x);
        let config = CudaConfig { n_outputs: 1, ..config(n_batch, 1) };
        CudaBackend::check(&b.finish(y), &config).map_err(|error| error.to_string())
    };
    // 4 GiB of staged inputs and more.
    let error = check(29_568, 65_535).expect_err("more than 32 bits count");
    assert!(error.contains("steps of 65535 tokens through matrices as wide"), "{error}");
    check(29_568, 32_768).expect("half of it is fine");
    check(8_192, 65_535).expect("as is this");
}

/// What a GPU takes of memory that it shares, and what its driver lets it have, is not what the CPU
/// does with the same memory.
#[test]
fn a_service_goes_to_the_cpu_where_only_that_has_room_though_both_share_their_memory() {
    let Some((library, _dir)) = stand_in::copy(&format!("memory {}", 100 << 20)) else { return };
    let gguf = Gguf::from_static(EMBEDDED_MODEL).expect("the model");
    let plan = |device, available| {
        plan_memory(&gguf, &LoadOptions { device, ..on_cuda(&library) }, available)
    };
    let much = u64::MAX >> 1;
    let on_cpu = plan(DeviceChoice::Cpu, much).expect("the CPU has room");
    assert_eq!(plan(DeviceChoice::Auto, much).expect("the CPU has room"), on_cpu);
    let options = LoadOptions { device: DeviceChoice::Auto, ..on_cuda(&library) };
    let model = Model::load(&ModelSource::Embedded, &options).expect("the CPU has room");
    let device = model.device();
    assert!(device.name == "cpu" && device.is_fallback && device.why.contains("buffers"));
    assert_eq!(model.memory_plan().needed_bytes(), on_cpu.needed_bytes());
    // Where neither has room, the sum is the GPU's, and so is the context that would do.
    let refused = |device| match plan(device, 4 << 20) {
        Err(InferenceError::Memory { plan, n_ctx_fits, .. }) => (plan, n_ctx_fits),
        other => panic!("there is no room: {other:?}"),
    };
    assert_eq!(refused(DeviceChoice::Auto), refused(DeviceChoice::Cuda(0)));
    assert_ne!(refused(DeviceChoice::Auto), refused(DeviceChoice::Cpu), "the canary");
}

/// What is sent and what comes back lie in the same memory a second time.
#[test]
fn copies_on_the_host_are_counted_where_memory_is_shared() {
    let gguf = Gguf::from_static(EMBEDDED_MODEL).expect("the model");
    let plan = |conf: &str| {
        let (library, _dir) = stand_in::copy(conf)?;
        let options = LoadOptions { n_batch: Some(64), ..on_cuda(&library) };
        Some(plan_memory(&gguf, &options, u64::MAX >> 1).expect("there is room"))
    };
    let (Some(shared), Some(own)) = (plan(""), plan("discrete")) else { return };
    let Hparams { n_embd, n_vocab, .. } = Hparams::from_gguf(&gguf).expect("the numbers");
    // Logits of 32 tokens; rows as they are made, and again among what is sent.
    let least = 4 * (32 * n_vocab + 2 * 64 * n_embd) as u64;
    let more = shared.scratch_bytes - own.scratch_bytes;
    assert!((least..2 * least).contains(&more), "{more} bytes, of which {least} are known");
}
