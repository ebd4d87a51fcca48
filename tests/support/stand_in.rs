//! The stand-in for libcuda: built with the C++ compiler that is there, once for its sources, and
//! opened as often as a test wants a device with a fate of its own.
//!
//! `JETFORGE_TEST_LIBCUDA` names a driver's library to open instead (`benches/gpu/run.sh`). Its
//! device has one fate: tests that order another are skipped. Other orders of threads are what such
//! a device has anyhow, from run to run.

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use jetforge::base::hash::hex;
use jetforge::inference::backend::cuda::{CudaError, Device};
use sha2::{Digest, Sha256};

use super::skip::skip;

/// Flags for every source; x86 has halves and fused multiplication in hardware, the newest of them
/// both in one.
const FLAGS: &[&str] = &[
    "-x",
    "c++",
    "-std=c++17",
    "-O2",
    "-DGPU_SIM",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
    #[cfg(target_arch = "x86_64")]
    "-march=native",
];

/// A device of the stand-in, directed by `conf`; `None`, with the reason printed, where no C++
/// compiler is.
pub fn device(conf: &str) -> Option<(Result<Device, CudaError>, tempfile::TempDir)> {
    let (path, dir) = copy(conf)?;
    Some((Device::open(&path, 0), dir))
}

/// Whether tests run on a device of a driver's.
pub fn is_real() -> bool {
    real().is_some()
}

fn real() -> Option<PathBuf> {
    std::env::var_os("JETFORGE_TEST_LIBCUDA").map(PathBuf::from)
}

/// Whether a driver's device is as `conf` orders it.
fn is_so(library: &Path, conf: &str) -> bool {
    conf.lines().all(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["order", ..] => true,
        ["capability", major, _] => {
            let info = Device::open(library, 0).map(|device| device.info().clone());
            let (has, _) = info.expect("the driver has a device").capability;
            // Tensor cores are the difference.
            major.parse::<u32>().is_ok_and(|major| (major >= 8) == (has >= 8))
        }
        _ => false,
    })
}

/// A copy of the stand-in with its directions beside it; or the driver's library, if its device is
/// as they are.
pub fn copy(conf: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    if let Some(library) = real() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        if is_so(&library, conf) {
            return Some((library, dir));
        }
        skip("cuda-real", &format!("a real device takes no orders ({})", conf.replace('\n', ", ")));
        return None;
    }
    let built = built()?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("libcuda.so.1");
    let absent = conf.lines().filter_map(|line| line.strip_prefix("without "));
    let library = absent.fold(std::fs::read(built).expect("the stand-in"), without);
    std::fs::write(&path, library).expect("a copy");
    std::fs::write(dir.path().join("libcuda.so.1.conf"), conf).expect("directions");
    Some((path, dir))
}

/// A library whose function `name` is found by nobody: it has another name of the same length.
fn without(mut library: Vec<u8>, name: &str) -> Vec<u8> {
    let name = [b"\0", name.as_bytes(), b"\0"].concat();
    let places = library.windows(name.len()).enumerate().filter(|(_, bytes)| *bytes == name);
    let places: Vec<usize> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the stand-in has such a function");
    places.into_iter().for_each(|at| library[at + 1] = b'x');
    library
}

/// A stand-in that can be told what is to fail while it is open.
pub struct Directed(libloading::Library);

impl Directed {
    /// The stand-in of this copy.
    pub fn of(library: &Path) -> Directed {
        // SAFETY: loading it runs no more than constructors of the stand-in.
        Directed(unsafe { libloading::Library::new(library) }.expect("the stand-in"))
    }

    /// Orders what `conf` says in place of what was to fail before; calls count from here.
    pub fn direct(&self, conf: &str) {
        let lines = CString::new(conf).expect("text");
        type Direct = unsafe extern "C" fn(*const c_char);
        // SAFETY: this is the function's type, and the text ends in a zero byte.
        unsafe {
            let direct = self.0.get::<Direct>(b"stand_in_direct\0").expect("the stand-in has it");
            direct(lines.as_ptr());
        }
    }
}

/// A call that a stand-in was asked: its name, and the kernel or the bytes that it is about.
pub type Call = (String, String);

/// The calls that a stand-in that was told to `log` was asked, in their order.
pub fn calls(library: &Path) -> Vec<Call> {
    let log = library.with_file_name("libcuda.so.1.log");
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let words = log.lines().filter_map(|line| line.split_once(' '));
    words.map(|(call, about)| (call.to_owned(), about.to_owned())).collect()
}

fn built() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            // What it predefines: its version, and what this processor has.
            let known =
                Command::new(&compiler).args(FLAGS).args(["-dM", "-E", "/dev/null"]).output();
            let Ok(known) = known else {
                skip("cuda", &format!("no C++ compiler ({compiler}) to build the stand-in with"));
                return None;
            };
            Some(build(&compiler, &known.stdout))
        })
        .as_deref()
}

/// The sources, and the digest of all that decides what they compile to.
fn sources(known: &[u8]) -> (Vec<PathBuf>, String) {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut paths: Vec<PathBuf> = [kernels.clone(), kernels.join("sim")]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).expect("the kernels"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let is = |path: &Path, ends: &[&str]| {
        path.extension().is_some_and(|e| ends.iter().any(|end| e == *end))
    };
    let mut digest = Sha256::new();
    digest.update(known);
    FLAGS.iter().for_each(|flag| digest.update(flag));
    for path in paths.iter().filter(|p| is(p, &["cu", "cpp", "h"])) {
        digest.update(std::fs::read(path).expect("a source"));
    }
    paths.retain(|path| is(path, &["cu", "cpp"]));
    (paths, hex(&digest.finalize()[..8]))
}

fn build(compiler: &str, known: &[u8]) -> PathBuf {
    let (sources, digest) = sources(known);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
    std::fs::create_dir_all(&dir).expect("a directory");
    let library = dir.join(format!("libcuda-{digest}.so"));
    if library.exists() {
        return library;
    }
    let work = tempfile::tempdir_in(&dir).expect("a temporary directory");
    let mut objects = Vec::new();
    let mut waiting: Vec<Child> = Vec::new();
    for source in &sources {
        let object = work.path().join(source.file_stem().expect("a name")).with_extension("o");
        let mut command = Command::new(compiler);
        command.args(FLAGS).arg("-c").arg(source).arg("-o").arg(&object);
        waiting.push(command.stdin(Stdio::null()).spawn().expect("the compiler starts"));
        objects.push(object);
        if waiting.len() >= 2 {
            finish(waiting.remove(0));
        }
    }
    waiting.into_iter().for_each(finish);
    let linked = work.path().join("libcuda.so");
    let mut command = Command::new(compiler);
    command.args(["-shared", "-pthread", "-o"]).arg(&linked).args(&objects);
    finish(command.spawn().expect("the linker starts"));
    std::fs::rename(&linked, &library).expect("one directory");
    library
}

fn finish(mut child: Child) {
    assert!(child.wait().expect("it ends").success(), "the stand-in compiles");
}
