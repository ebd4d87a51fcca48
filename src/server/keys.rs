//! API keys at rest: a file of hashes in the state directory, and what each key may do.
//!
//! ```text
//! jf-<64 hex digits>   256 random bits, shown once when the key is made
//! keys.json            name, SHA-256 of the key, scopes, class, quotas; 0600, replaced whole
//! ```
//!
//! Hashes of keys that were taken back stay in the file: who was paired by one of them is known by
//! its hash elsewhere as well, and that one asks here.
//!
//! A plain hash is enough: nobody guesses 256 random bits, so there is nothing to slow down.
//! Writers take a lock beside the file; readers see either the old or the new one.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ServerError;
use crate::base::file::replace;
use crate::base::hash::hex;
use crate::base::limits::{KEY_NAME_BYTES_MAX, KEYS_FILE_BYTES_MAX, KEYS_MAX};
use crate::inference::Priority;
use crate::seal;

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Answers, embeddings, tokens, models and metrics.
    Inference,
    /// Slots, adapters, defaults and timelines as well.
    Admin,
}

/// The highest class that a key may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A person waits.
    #[default]
    Interactive,
    /// A program waits.
    Agent,
    /// Nobody waits.
    Background,
}

impl From<Class> for Priority {
    fn from(class: Class) -> Priority {
        match class {
            Class::Interactive => Priority::Interactive,
            Class::Agent => Priority::Agent,
            Class::Background => Priority::Background,
        }
    }
}

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What it opens.
    pub scopes: Vec<Scope>,
    /// The highest class that it may ask for.
    #[serde(default)]
    pub class: Class,
    /// Requests per minute; `None` for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// Requests at once; `None` for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
}

/// A key as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Whose it is, as the owner calls them.
    pub name: String,
    /// SHA-256 of the key in hexadecimal.
    pub sha256: String,
    /// Seconds since the Unix epoch at which it was made.
    pub created_unix: u64,
    /// What it may do.
    #[serde(flatten)]
    pub grant: Grant,
}

#[derive(Default, Serialize, Deserialize)]
struct Records {
    keys: Vec<KeyRecord>,
    /// SHA-256 of keys that were taken back, the last ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revoked: Vec<String>,
}

/// How keys of paired machines are named. They count by their names: what such a machine asked by
/// the key before is its own.
pub(super) const PEER: &str = "peer-";

/// The name of a paired machine's key.
pub fn peer_key_name(node: &str) -> String {
    format!("{PEER}{node}")
}

/// The file of keys.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

/// What tells one version of the file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: SystemTime,
    inode: u64,
    n_bytes: u64,
}

impl KeyFile {
    /// The keys of a state directory.
    pub fn new(state_dir: &Path) -> KeyFile {
        KeyFile { path: state_dir.join("keys.json") }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key; none when there is no file.
    ///
    /// # Errors
    /// If the file cannot be read or is none of ours.
    pub fn list(&self) -> Result<Vec<KeyRecord>, ServerError> {
        Ok(self.records()?.keys)
    }

    /// Whether the key of this SHA-256 was taken back.
    ///
    /// # Errors
    /// As [`KeyFile::list`].
    pub(super) fn is_revoked(&self, sha256: &[u8; 32]) -> Result<bool, ServerError> {
        Ok(self.records()?.revoked.contains(&hex(sha256)))
    }

    fn records(&self) -> Result<Records, ServerError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Records::default());
            }
            Err(error) => return Err(self.failed(error)),
        };
        let mut text = String::new();
        let mut file = file.take(KEYS_FILE_BYTES_MAX);
        file.read_to_string(&mut text).map_err(|error| self.failed(error))?;
        serde_json::from_str(&text).map_err(|error| self.failed(error.into()))
    }

    /// Makes a key and returns it; it can never be shown again.
    ///
    /// # Errors
    /// If the name is taken, a paired machine's or no name, there are too many keys, or the file
    /// cannot be written.
    pub fn create(&self, name: &str, grant: Grant) -> Result<String, ServerError> {
        match name.starts_with(PEER) {
            true => Err(ServerError::KeyReserved { name: name.to_owned() }),
            false => self.make(name, grant),
        }
    }

    /// Makes the key of a machine that was paired. Of one that pairs again, the new one alone
    /// counts.
    ///
    /// # Errors
    /// As [`KeyFile::create`].
    pub(super) fn create_for_peer(&self, node: &str, grant: Grant) -> Result<String, ServerError> {
        let name = peer_key_name(node);
        let _ = self.revoke(&name);
        self.make(&name, grant)
    }

    fn make(&self, name: &str, grant: Grant) -> Result<String, ServerError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.is_empty() || name.len() > KEY_NAME_BYTES_MAX || !name.chars().all(is_plain) {
            return Err(ServerError::KeyName { name: name.to_owned() });
        }
        let _lock = self.lock()?;
        let mut records = self.records()?;
        let keys = &mut records.keys;
        if keys.iter().any(|key| key.name == name) {
            return Err(ServerError::KeyTaken { name: name.to_owned() });
        }
        if keys.len() >= KEYS_MAX {
            return Err(ServerError::KeysFull);
        }
        let key = random_key().map_err(|error| self.failed(error))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        keys.push(KeyRecord {
            name: name.to_owned(),
            sha256: hex(&hash(&key)),
            created_unix: now.as_secs(),
            grant,
        });
        self.write(&records)?;
        Ok(key)
    }

    /// Takes a key back.
    ///
    /// # Errors
    /// If there is none of this name, or the file cannot be written.
    pub fn revoke(&self, name: &str) -> Result<(), ServerError> {
        let _lock = self.lock()?;
        let mut records = self.records()?;
        let at = records.keys.iter().position(|key| key.name == name);
        let at = at.ok_or_else(|| ServerError::KeyUnknown { name: name.to_owned() })?;
        let key = records.keys.remove(at);
        records.revoked.push(key.sha256);
        let n_over = records.revoked.len().saturating_sub(KEYS_MAX);
        records.revoked.drain(..n_over);
        self.write(&records)
    }

    /// Which version of the file this is; `None` when there is none.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(&self.path).ok()?;
        let modified = metadata.modified().ok()?;
        Some(Stamp { modified, inode: metadata.ino(), n_bytes: metadata.len() })
    }

    fn failed(&self, source: std::io::Error) -> ServerError {
        ServerError::KeyFile { path: self.path.clone(), source }
    }

    /// Keeps other writers away until it is dropped.
    fn lock(&self) -> Result<File, ServerError> {
        let lock = || {
            if let Some(dir) = self.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let mut options = File::options();
            let options = options.write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(self.path.with_extension("lock"))?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|error| self.failed(error))
    }

    fn write(&self, records: &Records) -> Result<(), ServerError> {
        let write = || {
            let text = serde_json::to_string_pretty(records)? + "\n";
            replace(&self.path, text.as_bytes(), 0o600)
        };
        write().map_err(|error: std::io::Error| self.failed(error))
    }
}

/// SHA-256 of a key.
pub(super) fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The text of a new key.
///
/// # Errors
/// If the system has no random bytes.
pub(super) fn random_key() -> std::io::Result<String> {
    Ok(format!("jf-{}", hex(&seal::random()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn grant() -> Grant {
        Grant {
            scopes: vec![Scope::Inference],
            class: Class::Agent,
            per_minute: Some(60),
            at_once: None,
        }
    }

    #[test]
    fn a_key_is_kept_as_a_hash_that_only_its_owner_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        assert_eq!(file.list().unwrap(), []);
        let key = file.create("editor", grant()).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(!text.contains(&key) && key.len() == 67, "{text}");
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let kept = &file.list().unwrap()[0];
        assert_eq!((kept.name.as_str(), &kept.grant), ("editor", &grant()));
        assert_eq!(kept.sha256, hex(&hash(&key)));
        assert_ne!(file.create("other", grant()).unwrap(), key);
    }

    #[test]
    fn names_are_unique_and_plain_and_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        file.create("a", grant()).unwrap();
        assert!(matches!(file.create("a", grant()), Err(ServerError::KeyTaken { .. })));
        for name in ["", "a b", "a\n", "ключ", &"x".repeat(65)] {
            assert!(matches!(file.create(name, grant()), Err(ServerError::KeyName { .. })));
        }
        let reserved = file.create("peer-0011223344556677", grant());
        assert!(matches!(reserved, Err(ServerError::KeyReserved { .. })), "{reserved:?}");
        assert!(matches!(file.revoke("b"), Err(ServerError::KeyUnknown { .. })));
        let before = file.stamp();
        file.revoke("a").unwrap();
        assert_eq!(file.list().unwrap(), []);
        assert_ne!(file.stamp(), before);
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        for text in ["", "{}", "{\"keys\":[{\"name\":\"x\"}]}", "[]"] {
            std::fs::write(file.path(), text).unwrap();
            assert!(file.list().is_err(), "{text:?}");
            assert!(file.create("x", grant()).is_err());
        }
    }
}
