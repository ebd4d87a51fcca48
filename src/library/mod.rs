//! Floor 3: the models that a machine holds and those it can get.
//!
//! ```text
//! catalog.toml -> Catalog -> pull -> Store <- import (a path, a USB stick)
//!                                      |
//!                                      +-> list, find, verify, remove
//! ```
//!
//! A model in the store is a `.gguf` file (or its shards) and a hidden record of where it came
//! from and its hash. Downloads are resumable, checked, and appear under their name only when they
//! are whole. This room does not load models and draws no progress bars: callers pass a closure.

mod board;
mod catalog;
mod digest;
mod download;
mod http;
mod preset;
mod record;
mod store;
mod url;

use std::path::PathBuf;

pub use board::Board;
pub use catalog::{Catalog, CatalogEntry};
pub use download::{PullEvent, PullOptions, PullRequest, Pulled, pull};
pub use preset::{Preset, choose_preset};
pub use record::Record;
pub use store::{Incoming, Store, StoredModel, Verified};
pub use url::file_name_of;

use crate::base::format::bytes;
use crate::inference::{InferenceError, MemoryPlan};

/// Why a model cannot be had, kept or trusted.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// No model has this name.
    #[error("no model named {name:?}{hint}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// What to do, starting with its own punctuation, or empty.
        hint: String,
    },
    /// The catalog knows the model but no place to get it.
    #[error("the catalog names no source for {name:?}; give `pull` a URL")]
    NoSource {
        /// The model.
        name: String,
    },
    /// The catalog file is wrong.
    #[error("catalog {origin}: {message}")]
    Catalog {
        /// Which catalog.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// No context worth having fits on the board.
    #[error(
        "it does not fit {}: {plan}; the board has {} MiB, less {} MiB for the system = {} MiB, \
         {} MiB too few",
        board.title,
        board.memory_bytes >> 20,
        board.system_bytes >> 20,
        board.available_bytes() >> 20,
        missing_bytes.div_ceil(1 << 20)
    )]
    DoesNotFit {
        /// The board.
        board: Box<Board>,
        /// The smallest that was tried.
        plan: Box<MemoryPlan>,
        /// Bytes beyond what there is.
        missing_bytes: u64,
    },
    /// The file is no model that runs.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// A name that cannot be a file in the store.
    #[error("{name:?} cannot be a model's file name: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file of that name is there already.
    #[error("{} is there already; --force replaces it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process is writing the same model.
    #[error("another process is writing {}; wait for it or stop it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file system is too full.
    #[error(
        "not enough disk space in {}: {} needed and {} kept free, {} there",
        path.display(), bytes(*needed_bytes), bytes(*reserve_bytes), bytes(*free_bytes)
    )]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// What the model still needs.
        needed_bytes: u64,
        /// What stays free.
        reserve_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// The address cannot be used.
    #[error("cannot use the address {url}: {reason}")]
    BadUrl {
        /// The address.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The certificates to trust cannot be read.
    #[error("cannot read certificates: {message}")]
    Certificates {
        /// What failed.
        message: String,
    },
    /// The server says that there is no such file, or that it is not for us.
    #[error("{url}: the server answers {status}")]
    Refused {
        /// The address that was asked.
        url: String,
        /// Status code and reason.
        status: String,
    },
    /// A redirect that is not followed.
    #[error("redirect from {from} to {to} is not followed: {reason}")]
    Redirect {
        /// Where we were.
        from: String,
        /// Where we were sent.
        to: String,
        /// Why we do not go.
        reason: &'static str,
    },
    /// The network failed more often than is tried.
    #[error("download of {url} failed after {n_attempts} tries: {reason}; run it again to resume")]
    Network {
        /// The address.
        url: String,
        /// How often it was tried.
        n_attempts: usize,
        /// The last failure.
        reason: String,
    },
    /// The server's identity could not be proved.
    #[error("{host}: {reason}; --ca-file names a certificate authority to trust")]
    Untrusted {
        /// The server.
        host: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// The bytes are not those that were promised.
    #[error("{what} has {property} {got}, expected {expected}")]
    Mismatch {
        /// The file or address.
        what: String,
        /// `SHA-256` or `size`.
        property: &'static str,
        /// What it is.
        got: String,
        /// What it should be.
        expected: String,
    },
    /// The bytes are no GGUF model.
    #[error("{what} is not a GGUF model: {reason}")]
    NotAModel {
        /// The file or address.
        what: String,
        /// Why not.
        reason: String,
    },
}

impl LibraryError {
    fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> LibraryError {
        let path = path.into();
        move |source| LibraryError::Io { action, path, source }
    }
}
