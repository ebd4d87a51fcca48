//! The record beside a model: where it came from, its size and hash. Hidden, small, JSON.
//!
//! ```text
//! models/name.gguf            the model
//! models/.name.gguf.json      its record
//! models/.name.gguf.part      a download or copy under way, locked by its writer
//! models/.name.gguf.part.json what the download so far belongs to
//! models/.name.gguf.preset.json how it is run where nobody says otherwise
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LibraryError;
use crate::base::file::{open_plain, replace};
use crate::base::limits::RECORD_BYTES_MAX;

/// What is known of a stored file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The address or path that it came from.
    pub origin: String,
    /// The server's name for this version of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Bytes.
    pub size_bytes: u64,
    /// Hash in lower-case hexadecimal, of the bytes as they were stored.
    pub sha256: String,
}

/// The hidden files that belong to a model file.
pub struct Beside {
    /// The record.
    pub record: PathBuf,
    /// The unfinished download or copy.
    pub part: PathBuf,
    /// What the unfinished download belongs to.
    pub part_record: PathBuf,
    /// How the model is run.
    pub preset: PathBuf,
}

/// The hidden files of `path`.
pub fn beside(path: &Path) -> Beside {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hidden = |suffix: &str| path.with_file_name(format!(".{name}.{suffix}"));
    Beside {
        record: hidden("json"),
        part: hidden("part"),
        part_record: hidden("part.json"),
        preset: hidden("preset.json"),
    }
}

/// Reads a small JSON file; `None` when it is absent, too large or not what it should be.
/// A record is a convenience: without it a model is hashed anew or downloaded from the start.
pub fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    let n = open_plain(path).ok()?.take(RECORD_BYTES_MAX + 1).read_to_end(&mut text).ok()?;
    if n as u64 > RECORD_BYTES_MAX { None } else { serde_json::from_slice(&text).ok() }
}

/// Writes a small JSON file so that it is either the old or the new one, whatever happens.
///
/// # Errors
/// When the directory cannot be written.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LibraryError> {
    let text = serde_json::to_vec_pretty(value).expect("records are plain data");
    replace(path, &text, 0o644).map_err(LibraryError::io("write", path))
}

/// Gives a finished file its name, and its record; the order makes a crash harmless, because a
/// record that does not match is found by its size.
///
/// # Errors
/// When the directory cannot be written.
pub fn publish(part: &Path, target: &Path, record: &Record) -> Result<(), LibraryError> {
    write(&beside(target).record, record)?;
    std::fs::rename(part, target).map_err(LibraryError::io("rename", part))?;
    if let Some(dir) = target.parent() {
        // Best effort: some file systems of USB sticks cannot sync a directory.
        let _ = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    }
    Ok(())
}
