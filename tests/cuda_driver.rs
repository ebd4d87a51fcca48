//! What can go wrong between the program and the driver, tried on the stand-in; and that kernels,
//! their PTX and the stand-in belong together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jetforge::base::hash::hex;
use jetforge::base::limits::{DEVICE_LAUNCH_PRODUCTS_MAX, DEVICE_LAUNCH_PRODUCTS_MIN};
use jetforge::inference::backend::cases::{activations, weights};
use jetforge::inference::backend::cuda::driver::Args;
use jetforge::inference::backend::cuda::launch::{
    GemvKernels, Inputs, Matrix, RowShape, StageKernels,
};
use jetforge::inference::backend::cuda::strips::{pack_strip, strip_bytes};
use jetforge::inference::backend::cuda::{CudaError, Device};
use jetforge::inference::quant::TensorType;
use sha2::{Digest, Sha256};

use crate::support::stand_in;

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One product from beginning to end: what a request asks of the device.
fn request(device: &Device) -> Result<Vec<f32>, CudaError> {
    let (ty, n_cols) = (TensorType::N4, 512);
    let kernels = GemvKernels::load(device, &[ty])?;
    let mut strip = vec![0; strip_bytes(ty, n_cols)];
    pack_strip(ty, &weights(ty, 4, n_cols, 1), n_cols, &mut strip);
    let strips = device.allocate("a matrix", strip.len())?;
    strips.write(&strip)?;
    let matrix = Matrix { ty, n_rows: 4, n_cols, strips };
    let x: Vec<u8> =
        activations(1, n_cols, n_cols, 2).iter().flat_map(|v| v.to_le_bytes()).collect();
    let input = device.allocate("an input", x.len())?;
    input.write(&x)?;
    let inputs = Inputs::new(device, n_cols, 1)?;
    let row = RowShape { n_rows: 1, width: n_cols, stride: n_cols };
    StageKernels::load(device)?.stage(row, &input, &inputs)?;
    let y = device.allocate("a result", 16)?;
    y.clear()?;
    let start = device.event()?;
    kernels.multiply(&matrix, &inputs, None, (&y, 4, true), 0..1)?;
    start.until(&device.event()?)?;
    device.memory()?;
    let mut bytes = [0; 16];
    y.read(&mut bytes)?;
    device.wait()?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[test]
fn a_call_that_fails_is_named_and_the_next_request_succeeds() {
    let calls = [
        "cuCtxSetCurrent",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuMemsetD8Async",
        "cuStreamSynchronize",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventElapsedTime",
        "cuModuleLoadDataEx",
        "cuModuleGetFunction",
        "cuFuncGetAttribute",
        "cuLaunchKernel",
    ];
    for (call, nth) in calls.iter().flat_map(|call| [(call, 1), (call, 2)]) {
        // Some are called only once by a request; the second one meets their failure then.
        let code = if *call == "cuMemAlloc_v2" { 2 } else { 719 };
        let Some((device, _dir)) = stand_in::device(&format!("fail {call} {nth} {code}")) else {
            return;
        };
        let device = device.expect("the stand-in has a device");
        let results = [request(&device), request(&device), request(&device)];
        let errors: Vec<String> =
            results.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
        assert_eq!(errors.len(), 1, "{call} {nth}: {errors:?}");
        let name = if code == 2 { "CUDA_ERROR_OUT_OF_MEMORY" } else { "CUDA_ERROR_LAUNCH_FAILED" };
        assert!(errors[0].contains(name), "{call} {nth}: {}", errors[0]);
        let good: Vec<&Vec<f32>> = results.iter().flatten().collect();
        assert_eq!(good[0], good[1], "{call} {nth}");
    }
}

/// The stand-in ends the program where a graph is left when a device is closed.
#[test]
fn a_recording_that_fails_leaves_nothing_and_the_stream_goes_on() {
    for (call, nth) in [("cuLaunchKernel", 2), ("cuStreamEndCapture", 1), ("cuGraphInstantiate", 1)]
    {
        let Some((device, _dir)) = stand_in::device(&format!("fail {call} {nth} 719")) else {
            return;
        };
        let device = device.expect("the stand-in has a device");
        let kernels = StageKernels::load(&device).expect("kernels");
        let x = device.allocate("a row", 1024).expect("memory");
        x.clear().expect("cleared");
        let inputs = Inputs::new(&device, 256, 1).expect("memory");
        let row = RowShape { n_rows: 1, width: 256, stride: 256 };
        let stage = || kernels.stage(row, &x, &inputs);
        let launches = || stage().and_then(|()| stage());
        let error = device.record(launches).err().expect("it fails").to_string();
        assert!(error.contains(call), "{error}");
        assert!(device.record(launches).expect("the failure is over").is_some());
        launches().and_then(|()| device.wait()).expect("launched");
    }
}

#[test]
fn a_kernel_that_is_missing_is_told_apart_from_a_driver_that_fails() {
    let ptx = ".version 6.0\n.target sm_53\n";
    for (conf, expected) in [
        ("", "the module has no kernel stage_f16"),
        ("fail cuModuleGetFunction 1 719", "cuModuleGetFunction: CUDA_ERROR_LAUNCH_FAILED (719)"),
    ] {
        let Some((device, _dir)) = stand_in::device(conf) else { return };
        let device = device.expect("the stand-in has a device");
        let module = device.load("a test", ptx).expect("text without kernels");
        let error = module.kernel("stage_f16", 256).err().expect("there is none");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_device_that_cannot_be_opened_says_which_call_failed() {
    let calls = [
        "cuInit",
        "cuDriverGetVersion",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceTotalMem_v2",
        "cuDeviceGetAttribute",
        "cuCtxCreate_v2",
        "cuStreamCreate",
    ];
    for call in calls {
        let Some((device, _dir)) = stand_in::device(&format!("fail {call} 1 719")) else { return };
        let error = device.err().expect("it fails").to_string();
        assert_eq!(error, format!("{call}: CUDA_ERROR_LAUNCH_FAILED (719)"));
    }
    let Some((path, _dir)) = stand_in::copy("") else { return };
    let error = Device::open(&path, 1).err().expect("there is one device").to_string();
    assert_eq!(error, "there is no CUDA device 1; the driver sees 1");
}

#[test]
fn launches_are_halved_and_never_to_nothing() {
    let Some((device, _dir)) = stand_in::device("") else { return };
    let device = device.expect("the stand-in has a device");
    assert_eq!(device.launch_products_max(), DEVICE_LAUNCH_PRODUCTS_MAX);
    let mut n_max = DEVICE_LAUNCH_PRODUCTS_MAX;
    while n_max > DEVICE_LAUNCH_PRODUCTS_MIN {
        device.shorten_launches();
        n_max = (n_max / 2).max(DEVICE_LAUNCH_PRODUCTS_MIN);
        assert_eq!(device.launch_products_max(), n_max);
    }
    device.shorten_launches();
    assert_eq!(device.launch_products_max(), DEVICE_LAUNCH_PRODUCTS_MIN);
}

#[test]
fn a_library_that_is_no_driver_is_refused() {
    let missing = Device::open(Path::new("/nowhere/libcuda.so.1"), 0).err().expect("not there");
    assert!(matches!(missing, CudaError::Library { .. }), "{missing}");
    let other = Device::open(Path::new("libm.so.6"), 0).err().expect("no driver");
    assert!(matches!(other, CudaError::Symbol { name: "cuInit" }), "{other}");
}

#[test]
fn a_driver_without_a_function_is_refused_by_its_name() {
    let (needed, _) = functions();
    assert!(needed.len() > 20, "{needed:?}");
    for needed in needed {
        let Some((device, _dir)) = stand_in::device(&format!("without {needed}")) else { return };
        let error = device.err().expect("it is needed");
        assert!(matches!(&error, CudaError::Symbol { name } if *name == needed), "{error}");
    }
}

#[test]
fn memory_that_is_not_there_is_an_answer() {
    let Some((device, _dir)) = stand_in::device("memory 100000") else { return };
    let device = device.expect("the stand-in has a device");
    let held = device.allocate("the weights", 90_000).expect("there is room");
    let error = device.allocate("the cache", 20_000).err().expect("there is no more");
    assert_eq!(
        error.to_string(),
        "the cache needs 20000 bytes of the device, which it refused: CUDA_ERROR_OUT_OF_MEMORY (2)"
    );
    drop(held);
    device.allocate("the cache", 20_000).expect("there is room again");
}

#[test]
fn ptx_that_an_old_driver_cannot_load_is_refused() {
    let Some((device, _dir)) = stand_in::device("") else { return };
    let device = device.expect("the stand-in has a device");
    let load = |text: &str| device.load("a test", text).err().map(|e| e.to_string());
    let newer = load(".version 7.0\n.target sm_53\n").expect("refused");
    assert_eq!(newer, "cuModuleLoadDataEx: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)");
    assert!(load(".version 6.0\n.target sm_80\n").is_some());
    assert!(load(".version 6.0\n.target sm_53\n").is_none());
}

#[test]
fn a_missing_barrier_is_seen() {
    let ptx = ".version 6.0\n.target sm_53\n.entry canary_f32(\n)\n.maxntid 128, 1, 1\n{\n}\n";
    let x: Vec<u8> = (0..128).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let turned: Vec<u8> = (0..128).rev().flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut results = BTreeSet::new();
    for order in ["", "order reverse", "order mixed 5"] {
        let Some((device, _dir)) = stand_in::device(order) else { return };
        let device = device.expect("the stand-in has a device");
        let kernel = device.load("canary", ptx).and_then(|m| m.kernel("canary_f32", 128));
        let kernel = kernel.expect("the simulator has it");
        let from = device.allocate("a row", 512).expect("memory");
        let to = device.allocate("a row", 512).expect("memory");
        from.write(&x).expect("a copy");
        let args = Args::new().buffer(&from).buffer(&to);
        // Nor does the block before it, or the launch, leave what it lacks.
        for _ in 0..2 {
            // SAFETY: the kernel reads and writes 128 floats.
            unsafe { kernel.launch([2, 1, 1], args.clone()) }.expect("launched");
        }
        let mut out = vec![0; 512];
        to.read(&mut out).expect("a copy");
        assert_ne!(out, turned, "without its barrier it cannot be right: {order}");
        results.insert(out);
    }
    assert!(results.len() > 1, "other orders, other results");
}

/// Names that a regular pattern of a source declares, one a line.
fn names_after(text: &str, start: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(start));
    let names = lines.filter(|rest| rest.starts_with("cu"));
    names.map(|rest| rest.split('(').next().expect("a name").to_owned()).collect()
}

/// The driver's functions that are called: those that are needed, and those that only save time.
pub fn functions() -> (BTreeSet<String>, BTreeSet<String>) {
    let symbols = Path::new(env!("CARGO_MANIFEST_DIR"));
    let symbols = read(&symbols.join("src/inference/backend/cuda/symbols.rs"));
    let (needed, optional) = symbols.split_once("    @optional\n").expect("both kinds");
    (names_after(needed, "    "), names_after(optional, "    "))
}

#[test]
fn only_functions_of_cuda_10_2_are_called() {
    let (needed, optional) = functions();
    let called: BTreeSet<String> = needed.union(&optional).cloned().collect();
    let exported = names_after(&read(&kernels().join("sim/fake_cuda.cpp")), "API ");
    assert_eq!(called, exported, "the stand-in has what is called, and no more");
    // Of the 279 functions that CUDA 10.2's cuda.h declares.
    let known = "cuInit cuDriverGetVersion cuGetErrorName cuGetErrorString cuDeviceGet \
        cuDeviceGetCount cuDeviceGetName cuDeviceGetAttribute cuDeviceTotalMem_v2 cuCtxCreate_v2 \
        cuCtxDestroy_v2 cuCtxSetCurrent cuCtxSynchronize cuMemAlloc_v2 cuMemFree_v2 \
        cuMemHostAlloc cuMemFreeHost cuMemGetInfo_v2 cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 \
        cuMemcpyDtoDAsync_v2 cuMemsetD8Async cuStreamCreate cuStreamDestroy_v2 \
        cuStreamSynchronize cuEventCreate cuEventRecord cuEventQuery cuEventSynchronize \
        cuEventElapsedTime cuEventDestroy_v2 cuModuleLoadDataEx cuModuleGetFunction \
        cuModuleUnload cuFuncGetAttribute cuLaunchKernel cuLinkCreate_v2 cuLinkAddData_v2 \
        cuLinkComplete cuLinkDestroy cuStreamBeginCapture_v2 cuStreamEndCapture \
        cuGraphInstantiate cuGraphLaunch cuGraphExecDestroy cuGraphDestroy";
    let known: BTreeSet<String> = known.split_whitespace().map(str::to_owned).collect();
    assert_eq!(called.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// The kernels of PTX.
fn entries(ptx: &str) -> BTreeSet<&str> {
    let names = ptx.lines().filter_map(|line| line.split_once(".entry "));
    names.map(|(_, rest)| rest.split('(').next().unwrap_or(rest).trim()).collect()
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[test]
fn the_ptx_is_that_of_these_kernels() {
    let sources = |extension: &str| {
        let entries = std::fs::read_dir(kernels()).expect("the kernels");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|p| p.extension().is_some_and(|e| e == extension)).collect::<BTreeSet<_>>()
    };
    let headers: Vec<u8> =
        sources("h").iter().flat_map(|path| std::fs::read(path).expect("a header")).collect();
    let again = "changed since; run kernels/build.sh";
    for (arch, version) in [("sm_53", "6.0"), ("sm_80", "7.0")] {
        let manifest = read(&kernels().join("ptx").join(arch).join("manifest.toml"));
        let manifest: toml::Table = manifest.parse().expect("a manifest");
        assert_eq!(manifest["headers"].as_str(), Some(&*digest(&headers)), "a header has {again}");
        for path in sources("cu") {
            let name = path.file_stem().expect("a name").to_str().expect("text");
            if name == "canary_f32" || name.contains("_mma_") != (arch == "sm_80") {
                continue;
            }
            let digest = digest(&std::fs::read(&path).expect("a kernel"));
            assert_eq!(manifest[name]["source"].as_str(), Some(&*digest), "{name} has {again}");
            let ptx = read(&kernels().join("ptx").join(arch).join(format!("{name}.ptx")));
            assert!(ptx.lines().any(|line| line == format!(".version {version}")), "{name}");
            assert!(ptx.lines().any(|line| line == format!(".target {arch}")), "{name}");
            let bytes = self::digest(ptx.as_bytes());
            assert_eq!(manifest[name]["ptx"].as_str(), Some(&*bytes), "the PTX of {name} {again}");
            let kernels = manifest[name]["kernels"].as_array().expect("kernels");
            let listed: BTreeSet<&str> =
                kernels.iter().filter_map(|k| k["name"].as_str()).collect();
            assert_eq!(listed, entries(&ptx), "kernels of {name} that were assembled and checked");
            for kernel in kernels {
                let number = |key: &str| kernel[key].as_integer().expect("a number");
                assert_eq!(number("spills"), 0, "{kernel}");
                assert!(number("registers") * number("threads") <= 32_768, "{kernel}");
            }
        }
    }
}
