//! Floor 3: makes small model files out of large ones.
//!
//! ```text
//! Source --> Plan: a type for each tensor --> write: rows in, blocks out --> target.gguf
//!   ^               ^                                ^
//! GGUF, or        Recipe, overrides                Importance <-- a text through the model
//! safetensors
//! ```
//!
//! Nothing holds a whole model: rows are read, rounded by all threads and written, a few megabytes
//! at a time, and the source's pages are given back. The target appears under its name only when it
//! is whole and on the disk. This room prints nothing: callers pass a closure for progress.

mod folder;
mod imatrix;
mod plan;
mod recipe;
mod report;
mod source;
mod write;

use std::path::PathBuf;

pub use folder::FolderError;
pub use imatrix::Importance;
pub use plan::{Override, Plan, PlanOptions, TensorPlan};
pub use recipe::Recipe;
pub use report::{Comparison, compare};
pub use source::Source;
pub use write::{WriteOptions, Written, check_target, pack, write};

use crate::base::format::bytes;
use crate::inference::gguf::GgufError;
use crate::inference::{InferenceError, NativeError, TensorType};

/// Why a model cannot be quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The source, or an importance matrix, is not a file that can be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The source is a folder that cannot be read as a model.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A folder was to be run.
    #[error(
        "{path} is a folder, which does not run as it is; make a file of it first: \
         jetforge quantize {path} model-f16.gguf F16"
    )]
    FolderRuns {
        /// The folder.
        path: PathBuf,
    },
    /// The model does not run, for a report or an importance matrix.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// No recipe has this name.
    #[error("no recipe is named '{name}'; choose one of: {known}")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// Every recipe.
        known: String,
    },
    /// No type has this name, or it cannot be written.
    #[error("no tensor type that can be written is named '{name}'; choose one of: {known}")]
    UnknownType {
        /// What was asked for.
        name: String,
        /// Every type.
        known: String,
    },
    /// An override that is not `PATTERN=TYPE`.
    #[error("--tensor-type {text}: write it as PATTERN=TYPE, a regular expression and a type")]
    Override {
        /// What was given.
        text: String,
    },
    /// A pattern that is no regular expression.
    #[error("--tensor-type {pattern}: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// A pattern that no tensor's name has.
    #[error("--tensor-type {pattern}: no matrix of this model has such a name; see --dry-run")]
    PatternUnused {
        /// The pattern.
        pattern: String,
    },
    /// Weights that were rounded before.
    #[error(
        "tensor '{tensor}' is {ty} already, and rounding twice loses twice; start from an F16, \
         BF16 or F32 file, or say --allow-requantize"
    )]
    Requantize {
        /// The first such tensor.
        tensor: String,
        /// Its type.
        ty: TensorType,
    },
    /// A weight that is no number.
    #[error(
        "tensor '{tensor}' has a weight that is not finite in row {row_idx}; the source is bad"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row.
        row_idx: usize,
    },
    /// A weight that the target's type cannot hold.
    #[error(
        "tensor '{tensor}' has a weight of {weight} in row {row_idx}, and {ty} holds 65504 at \
         most; keep the tensor with --tensor-type '{tensor}=F32'"
    )]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// The row.
        row_idx: usize,
        /// The weight.
        weight: f32,
        /// The type.
        ty: TensorType,
    },
    /// An importance matrix of another model.
    #[error(
        "the importance matrix has {got} values for '{tensor}', which is {expected} wide; it was \
         made with another model"
    )]
    ImportanceShape {
        /// The tensor.
        tensor: String,
        /// Its width.
        expected: usize,
        /// Values in the matrix.
        got: usize,
    },
    /// An importance matrix that speaks of none of the model's tensors.
    #[error("the importance matrix {path} knows none of this model's tensors: wrong model?")]
    ImportanceUnused {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no importance matrix.
    #[error("{path} is no importance matrix: {reason}")]
    ImportanceFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The source stands in panels.
    #[error(
        "the source was packed for {target}; quantise the file that it was made from, or one \
         without a --target"
    )]
    PackedSource {
        /// What it was packed for.
        target: String,
    },
    /// Another run writes the same target.
    #[error("another run is writing {}; wait for it, or choose another target", path.display())]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// A tensor that a native file cannot hold.
    #[error(transparent)]
    Native(NativeError),
    /// The target is there.
    #[error("{path} is there already; choose another name, or say --force to replace it")]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target is one of the source's files.
    #[error("{path} is the source, or a part of it; choose another name for the target")]
    SameFile {
        /// The target.
        path: PathBuf,
    },
    /// The disk is too full.
    #[error(
        "{path} needs {}, but the disk has {} left to use; free some or write elsewhere",
        bytes(*needed),
        bytes(*free)
    )]
    DiskFull {
        /// The target.
        path: PathBuf,
        /// Bytes of the file.
        needed: u64,
        /// Bytes that can be used.
        free: u64,
    },
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl QuantizeError {
    /// The error of a file.
    fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> QuantizeError {
        let path = path.to_owned();
        move |source| QuantizeError::Io { path, source }
    }
}

/// The tensor type of this name that can be written.
///
/// # Errors
/// If there is none.
pub fn parse_type(name: &str) -> Result<TensorType, QuantizeError> {
    use crate::inference::quant::is_written;
    let mut known = TensorType::ALL.into_iter().filter(|ty| is_written(*ty));
    known.clone().find(|ty| ty.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<&str> = known.by_ref().map(TensorType::name).collect();
        QuantizeError::UnknownType { name: name.to_owned(), known: names.join(", ") }
    })
}

/// The recipe of this name.
///
/// # Errors
/// If there is none; the error names them all.
pub fn parse_recipe(name: &str) -> Result<Recipe, QuantizeError> {
    Recipe::find(name).ok_or_else(|| QuantizeError::UnknownRecipe {
        name: name.to_owned(),
        known: Recipe::ALL.map(|recipe| recipe.name).join(", "),
    })
}
