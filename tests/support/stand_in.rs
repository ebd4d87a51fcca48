//! The stand-in for libcuda: built with the C++ compiler that is there, once for its sources, and
//! opened as often as a test wants a device with a fate of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use jetforge::inference::backend::cuda::{CudaError, Device};
use sha2::{Digest, Sha256};

use super::skip::skip;

/// Flags for every source; x86 has halves and fused multiplication in hardware.
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
    "-mf16c",
    #[cfg(target_arch = "x86_64")]
    "-mfma",
];

/// A device of the stand-in, directed by `conf`; `None`, with the reason printed, where no C++
/// compiler is.
pub fn device(conf: &str) -> Option<(Result<Device, CudaError>, tempfile::TempDir)> {
    let (path, dir) = copy(conf)?;
    Some((Device::open(&path, 0), dir))
}

/// A copy of the stand-in with its directions beside it.
pub fn copy(conf: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    let built = built()?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("libcuda.so.1");
    std::fs::copy(built, &path).expect("a copy");
    std::fs::write(dir.path().join("libcuda.so.1.conf"), conf).expect("directions");
    Some((path, dir))
}

fn built() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            let version = Command::new(&compiler).arg("--version").output();
            let Ok(version) = version else {
                skip("cuda", &format!("no C++ compiler ({compiler}) to build the stand-in with"));
                return None;
            };
            Some(build(&compiler, &version.stdout))
        })
        .as_deref()
}

/// The sources, and the digest of all that decides what they compile to.
fn sources(version: &[u8]) -> (Vec<PathBuf>, String) {
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
    digest.update(version);
    FLAGS.iter().for_each(|flag| digest.update(flag));
    for path in paths.iter().filter(|p| is(p, &["cu", "cpp", "h"])) {
        digest.update(std::fs::read(path).expect("a source"));
    }
    paths.retain(|path| is(path, &["cu", "cpp"]));
    let digest = digest.finalize();
    (paths, digest.iter().take(8).map(|b| format!("{b:02x}")).collect())
}

fn build(compiler: &str, version: &[u8]) -> PathBuf {
    let (sources, digest) = sources(version);
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
