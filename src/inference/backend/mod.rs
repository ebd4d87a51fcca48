//! Backends: what turns a plan of operations into numbers.
//!
//! A [`Plan`] is a model's forward pass as data: operations over opaque buffers and weights. It is
//! built once per model and says nothing of batch sizes; a [`Batch`] brings those. A backend owns
//! the weights' final form, the KV cache and its scratch, and may fuse, capture or simply run the
//! operations. [`cpu`] and [`cuda`] run them.

mod adapter;
mod batch;
mod bound;
pub mod cases;
pub mod cpu;
pub mod cuda;
mod input_sums;
mod loading;
mod plan;
mod split;

pub use adapter::{Adapter, AdapterError, AdapterPart};
pub use batch::{AdapterIdx, Batch, BatchError, ColumnRun, PAGE_LEN, PageIdx, Shift, Span};
pub use input_sums::{InputSum, InputSums};
pub use loading::LoadProgress;
pub use plan::{
    Activation, AttentionSpec, BufId, Norm, NormKind, Op, Plan, PlanBuilder, RopeId, RopeSpec,
    RopeStyle, Rows, WeightId, WeightSpec,
};

use crate::base::limits::ADAPTERS_MAX;

/// Why a backend could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A weight of the plan is not in the file.
    #[error("tensor '{name}' is missing from the file")]
    TensorMissing {
        /// Name in the file.
        name: String,
    },
    /// A weight of the plan has another shape in the file.
    #[error("tensor '{name}' has shape {got:?} in the file, but the model needs {expected:?}")]
    TensorShape {
        /// Name in the file.
        name: String,
        /// Shape that the plan asks for, innermost first.
        expected: Vec<u64>,
        /// Shape in the file, innermost first.
        got: Vec<u64>,
    },
    /// A batch breaks the rules of [`Batch::check`].
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A file is not an adapter of the model.
    #[error(transparent)]
    Adapter(#[from] Box<AdapterError>),
    /// More adapters than anyone switches between.
    #[error("at most {ADAPTERS_MAX} adapters can be loaded; unload one first")]
    TooManyAdapters,
    /// An instruction set was asked for by name that this machine lacks or nobody knows.
    #[error("instruction set '{name}' is not available here; choose one of: {available}")]
    Isa {
        /// What was asked for.
        name: String,
        /// What this machine has.
        available: String,
    },
    /// A KV type that nobody knows.
    #[error("KV type '{name}' is not known; choose f16, q8_0, q4_0 or f32")]
    KvType {
        /// What was asked for.
        name: String,
    },
    /// A page that is not there.
    #[error("page {page} is outside the cache of {n_page}")]
    Page {
        /// The page.
        page: PageIdx,
        /// Pages of the cache.
        n_page: usize,
    },
    /// Bytes that are no page of this model and KV type.
    #[error("a page has {expected} bytes, not {got}")]
    PageBytes {
        /// Bytes of a page.
        expected: usize,
        /// Bytes at hand.
        got: usize,
    },
    /// A shift of positions that are part of every key and value.
    #[error("this model learned its positions, so its context cannot shift")]
    LearnedPositions,
    /// Memory for the KV cache or scratch could not be had.
    #[error("{what} needs {bytes} bytes, which the system refused; use a smaller context")]
    Memory {
        /// What the memory is for.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The GPU could not be had or failed.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// Something was asked for that is not done on a GPU.
    #[error("{what} is done on the CPU only; use --device cpu")]
    CpuOnly {
        /// What.
        what: &'static str,
    },
    /// Worker threads could not be started.
    #[error("the worker threads could not be started")]
    Threads(#[source] std::io::Error),
}

impl BackendError {
    /// Whether the machine has no driver for a GPU, as most have none.
    pub fn is_no_driver(&self) -> bool {
        matches!(self, BackendError::Cuda(cuda::CudaError::Library { .. }))
    }

    /// Whether a GPU has too little memory.
    pub fn is_gpu_memory(&self) -> bool {
        matches!(self, BackendError::Cuda(cuda::CudaError::Memory { .. }))
    }

    /// Whether another value of an option would help.
    pub fn is_wrong_option(&self) -> bool {
        use cuda::CudaError::{NoDevice, Unsupported};
        let cuda = matches!(self, BackendError::Cuda(NoDevice { .. } | Unsupported { .. }));
        cuda || matches!(self, BackendError::Isa { .. } | BackendError::KvType { .. })
    }
}
