//! CUDA: the driver's API behind a safe layer, and the kernels with those who launch them.
//!
//! ```text
//! symbols    the functions of the driver, all found when the library is opened
//! driver     device, memory, modules, kernels, events
//! images     what the driver compiled, kept for the next start
//! strips     how matrices and inputs lie in the device's memory
//! launch     a file for each group of kernels: what they need, and their grids
//! selftest   each kernel's smallest cases, before a model is trusted to them
//! steps      a plan as launches            weights, kv    what stays on the device
//! prepare    what the host makes of a batch, sent in one copy (upload)
//! lora       adapters, and which of them a batch asks for
//! outputs    what of its logits comes back
//! backend    runs the steps of a batch                 progress   how far the device is with them
//! ```
//!
//! The kernels stand in `kernels/`, and as PTX for compute capability 5.3 in the binary. The driver
//! library is opened by a path when somebody asks for a device: nothing links it, and without one
//! the answer is an error. Tests open a stand-in that runs the same kernels on the processor.
//! `docs/cuda.md` tells layouts and counts.

/// The PTX of a kernel file, for every device or for those of an architecture and above.
macro_rules! ptx {
    ($file:literal) => {
        ptx!($file for "sm_53")
    };
    ($file:literal for $arch:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/kernels/ptx/",
            $arch,
            "/",
            $file,
            ".ptx"
        ))
    };
}

mod backend;
pub mod driver;
mod images;
mod kv;
pub mod launch;
mod lora;
mod outputs;
mod prepare;
mod progress;
mod selftest;
mod steps;
pub mod strips;
mod symbols;
pub mod upload;
mod weights;

use std::path::PathBuf;

pub use backend::{CudaBackend, CudaConfig};
pub use driver::{Device, LIBRARY};
pub use launch::KvFormat;

/// Why something on the device could not be had or done.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver library to open.
    #[error("no CUDA driver: {} cannot be opened", path.display())]
    Library {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        source: libloading::Error,
    },
    /// The driver lacks a function.
    #[error("the CUDA driver has no {name}; it needs to be that of CUDA 10.2 or later")]
    Symbol {
        /// The function.
        name: &'static str,
    },
    /// There is no such device.
    #[error("there is no CUDA device {ordinal}; the driver sees {n_device}")]
    NoDevice {
        /// The one that was asked for.
        ordinal: u32,
        /// How many there are.
        n_device: u32,
    },
    /// The driver refused, or tells that something before failed.
    #[error("{call}: {name} ({code})")]
    Driver {
        /// The function that said so.
        call: &'static str,
        /// The driver's number.
        code: i32,
        /// The driver's name of it.
        name: String,
    },
    /// Memory of the device could not be had.
    #[error("{what} needs {n_bytes} bytes of the device, which it refused: {name} ({code})")]
    Memory {
        /// What it is for.
        what: &'static str,
        /// Its size.
        n_bytes: usize,
        /// The driver's number.
        code: i32,
        /// The driver's name of it.
        name: String,
    },
    /// PTX that is no text.
    #[error("the PTX of {name} has a zero byte")]
    Ptx {
        /// The module.
        name: &'static str,
    },
    /// A module lacks a kernel.
    #[error("the module has no kernel {name}")]
    Kernel {
        /// The kernel.
        name: String,
    },
    /// A kernel that the device's registers do not suffice for.
    #[error("{name} needs {n_register} registers for each of {n_thread} threads, too many here")]
    Resources {
        /// The kernel.
        name: String,
        /// Registers of a thread.
        n_register: u32,
        /// Threads of a block.
        n_thread: u32,
    },
    /// A device from before halves were computed with.
    #[error(
        "{name} has compute capability {}.{}; the kernels need {}.{}",
        capability.0, capability.1, needed.0, needed.1
    )]
    Capability {
        /// The device.
        name: String,
        /// What it has.
        capability: (u32, u32),
        /// What is needed.
        needed: (u32, u32),
    },
    /// A model or an option that no kernel is for.
    #[error("the GPU's kernels do not run {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// A kernel gave a wrong result where the right one is known.
    #[error("the kernel {kernel} fails its self-test on this GPU and driver: {reason}")]
    SelfTest {
        /// The kernel.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
}
