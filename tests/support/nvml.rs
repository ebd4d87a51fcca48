//! The stand-in for NVIDIA's management library, `nvml.c` beside this file: built with the C
//! compiler for a test, and told what its cards say.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a card of the stand-in is called.
pub const CARD: &str = "NVIDIA GeForce RTX 3060";

/// The library of a machine.
pub struct Nvml(PathBuf);

impl Nvml {
    /// The library where a machine whose files are under `root` has it, without a function.
    pub fn under(root: &Path, left_out: Option<&str>) -> Nvml {
        Nvml::at(root.join("usr/lib/libnvidia-ml.so.1"), left_out)
    }

    /// The library as this file.
    pub fn at(library: PathBuf, left_out: Option<&str>) -> Nvml {
        std::fs::create_dir_all(library.parent().unwrap()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/nvml.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut command = Command::new(compiler);
        command.args(["-x", "c", "-std=gnu11", "-shared", "-fPIC", "-o"]).arg(&library);
        command.args(left_out.map(|function| format!("-D{function}=left_out")));
        let status = command.arg(source).arg("-ldl").status().expect("a C compiler");
        assert!(status.success(), "the stand-in compiles");
        Nvml(library)
    }

    /// Has its cards say this from now on: lines of a word and a number, as `nvml.c` knows them.
    pub fn say(&self, lines: &str) {
        let name = |end: &str| self.0.with_file_name(format!("libnvidia-ml.so.1{end}"));
        std::fs::write(name(".next"), lines).unwrap();
        std::fs::rename(name(".next"), name(".conf")).unwrap();
    }
}
