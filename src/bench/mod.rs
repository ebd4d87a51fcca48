//! Floor 6: what `jetforge bench` measures and reports.
//!
//! ```text
//! memory and kernels by themselves --> Limits --+
//! model -> engine -> rounds of requests --------+--> Report --> table, JSON lines, Markdown, page
//! board profile -> arithmetic ------------------+--> advice       two reports --> ratios
//! counts of kernels' code -> predicted: what the GPU of a Jetson Nano should do
//! ```
//!
//! A figure is a list of rounds with its median and spread, and says which part of a limit of this
//! machine it reaches. Nothing here asserts a time.

mod advice;
mod ask;
mod compare;
mod disk;
mod edit;
mod energy;
mod figures;
mod limits;
mod model;
mod page;
mod predicted;
mod report;
mod tasks;

use std::path::PathBuf;

pub use advice::{Advice, Candidate, Profile, Verdict, advise, has_room};
pub use compare::{Compared, compare};
pub use figures::{Figure, Share, Unit};
pub use limits::{Limits, kernels, memory};
pub use model::{ModelFacts, Rooms, Tests, measure};
pub use page::page;
pub use predicted::{Predicted, Work};
pub use report::{Line, Machine, Report, markdown, read_lines, table, title, to_lines};
pub use tasks::{Task, find as find_tasks};

use crate::inference::{BackendError, DiskCacheError, EngineError, InferenceError};

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// The engine refuses a test.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Nothing can be kept on the disk.
    #[error(transparent)]
    Disk(#[from] DiskCacheError),
    /// A probe cannot run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Guesses changed an answer.
    #[error(
        "the answer with guesses is not the one without; that is an error of jetforge: report it"
    )]
    Edit,
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no report.
    #[error("line {line} is no figure of `jetforge bench --json`: {message}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
}
