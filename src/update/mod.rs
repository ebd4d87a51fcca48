//! Floor 0.7: a newer program beside the one that runs: signed, tried, kept or taken back.
//!
//! ```text
//! bundle   manifest.toml, manifest.sig, jetforge: one file, or a folder on a stick
//! slots    a/ and b/ beside the package's program, and `current`, which the unit starts
//!
//! apply    signature -> does it fit -> written beside -> on trial
//! trial    started, ready, healthy for a while -> kept
//!          three starts, ten minutes, a wrong configuration -> the one of before again
//! ```
//!
//! What decides is the package's program, never the new one: that may hang, crash or be none at
//! all. Nothing here starts, stops or asks the service; the units of `systemd/` do, and tell what
//! they saw. Each change of the folder is one that a loss of power leaves done or not done, and
//! every state in between starts a whole program.

mod bundle;
mod disk;
mod keys;
mod manifest;
mod slots;
#[cfg(test)]
mod tests;
mod trial;

use std::path::{Path, PathBuf};

pub use bundle::{Bundle, write_bundle};
pub use keys::{SecretKey, TrustedKeys};
pub use manifest::{Fit, Manifest, Version};
pub use slots::{Outcome, Package, Record, Slot, Slots, Trial};
pub use trial::{Ended, Look, Watch};

/// Why a program is not taken, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A file cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nobody's signature counts.
    #[error(
        "{} has no key, so no update is taken; whoever makes releases runs `jetforge update \
         keygen`, and the line that it prints belongs into that file",
        path.display()
    )]
    NoKeys {
        /// The file of keys.
        path: PathBuf,
    },
    /// The file of keys is not one.
    #[error("{}: {why}", path.display())]
    Keys {
        /// The file of keys.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is no update.
    #[error("{} is no update: {why}", path.display())]
    NoBundle {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A signature is missing, of somebody else, or of something else.
    #[error("{}: {why}; nothing was changed", path.display())]
    Signature {
        /// The file or folder.
        path: PathBuf,
        /// Whose it is, if it is anybody's.
        why: String,
    },
    /// The program is not the one that was signed.
    #[error("{}: the program in it is not the one that was signed: {why}", path.display())]
    Program {
        /// The file or folder.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// It is for other machines, or does not follow the version that runs.
    #[error("{version} {why}")]
    Unfit {
        /// The version that was offered.
        version: String,
        /// Why not, and what would help.
        why: String,
    },
    /// The disk has no room for it.
    #[error("{} has {free_bytes} bytes free, and it needs {needed_bytes}", path.display())]
    NoRoom {
        /// Where it would go.
        path: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What it takes.
        needed_bytes: u64,
    },
    /// Another one is on its way.
    #[error("{what}; wait for it, or take it back with `jetforge update rollback`")]
    Busy {
        /// What is on its way.
        what: String,
    },
    /// There is nothing to go back to.
    #[error("there is no program to go back to: the package's runs, and none ran before it")]
    NothingBefore,
    /// Going back costs what was kept since.
    #[error(
        "{version} does not know the state as it is now; --state-of-before goes back to the copy \
         that was made before the update, and loses the jobs since"
    )]
    NewerState {
        /// What would run.
        version: String,
    },
}

impl UpdateError {
    fn file(path: &Path) -> impl Fn(std::io::Error) -> UpdateError {
        move |source| UpdateError::File { path: path.to_owned(), source }
    }
}
