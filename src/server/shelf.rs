//! The models that a machine holds and can get, as far as callers see and change them.
//!
//! Whoever wires the service gives one; without, only the models of the host are there.

use std::time::SystemTime;

/// A model on the shelf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelved {
    /// What it is asked for by.
    pub name: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// SHA-256 of its first file in hexadecimal, where it was recorded.
    pub sha256: Option<String>,
    /// When it came.
    pub modified: Option<SystemTime>,
}

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullStep {
    /// What happens.
    pub status: String,
    /// SHA-256 in hexadecimal of the file that comes, where it is known.
    pub sha256: Option<String>,
    /// Bytes done, and bytes in all where they are known.
    pub bytes: Option<(u64, Option<u64>)>,
}

/// Why the shelf does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShelfError {
    /// There is no such model.
    #[error("{0}")]
    Unknown(String),
    /// It is loaded.
    #[error("{0}")]
    InUse(String),
    /// The disk has no room for it.
    #[error("{0}")]
    NoRoom(String),
    /// It cannot be got, or not be taken away.
    #[error("{0}")]
    Failed(String),
}

/// See the module. Every call may take long, and is made off the async threads.
pub trait Shelf: Send + Sync {
    /// Every model that is here, once for each name that it can be asked for by.
    fn list(&self) -> Vec<Shelved>;

    /// Gets a model that is known by name; `on_step` hears how far it is.
    ///
    /// # Errors
    /// If no source of it is known, or it cannot be had.
    fn pull(&self, name: &str, on_step: &mut dyn FnMut(PullStep)) -> Result<(), ShelfError>;

    /// Deletes a model, unless it is one of those in `loaded`; the name that it is loaded by.
    ///
    /// # Errors
    /// If it is not here, or not to be deleted.
    fn remove(&self, name: &str, loaded: &[String]) -> Result<String, ShelfError>;
}
