//! Models: architectures as data, and the one forward pass that reads them.
//!
//! ```text
//! metadata -> Hparams (numbers) + Arch (shape of the graph) -> forward::plan -> Plan
//! ```
//!
//! An architecture is a row of switches in [`arch`]; there is no code per architecture. What a
//! file may leave out (biases, norms per head, a separate output matrix) is read off its tensors.

mod arch;
mod forward;
mod hparams;
mod rope;

pub use arch::Arch;
pub use forward::plan;
pub use hparams::{Hparams, Pooling};

use super::gguf::GgufError;

/// Why a file is not a model that the runtime can run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file could not be read, or a key has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// No architecture of this name.
    #[error("architecture '{name}' is not supported; supported are: {supported}")]
    Architecture {
        /// `general.architecture`.
        name: String,
        /// What is.
        supported: String,
    },
    /// A key that the architecture needs is not there.
    #[error("the file has no key '{key}'")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A value makes no sense.
    #[error("key '{key}' is {value}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("tensor '{name}' is missing from the file")]
    TensorMissing {
        /// Its name.
        name: String,
    },
}
