//! The disk: whole files by name, as far as a disk can promise that.
//!
//! ```text
//! DIR/pages/<64 hex digits>    entries
//! DIR/tmp/                     entries that are being written; emptied at each start
//! DIR/digests/                 what is remembered of model files
//! DIR/ledger, DIR/lock         the day's writes, and who may take from them
//! ```
//!
//! A file is written beside its place, brought to the disk (`fdatasync`) and renamed; the names
//! themselves are brought to the disk when a batch is done. What a loss of power takes away is then
//! a name, or a file that does not open: a miss. Files do not stay in the page cache: what is read
//! goes into the KV cache, and a model's weights need the memory more.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, FlockOperation, fadvise, flock};

use super::Key;
use crate::base::host::disk_free_bytes;
use crate::seal::part_name;

/// A file that was being written so long ago belongs to nobody any more.
const LEFT_OVER: Duration = Duration::from_secs(600);

/// An entry as the disk lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: Key,
    pub n_bytes: u64,
    /// Since the Unix epoch.
    pub used: Duration,
}

/// What keeps entries. Every call may fail, and what was written may be gone or changed later.
pub trait Disk: Send + Sync {
    /// Every entry, in any order; remains of interrupted writes go.
    fn list(&self) -> io::Result<Vec<Listed>>;
    /// The bytes of an entry, refused if there are more than `n_bytes_max`.
    fn read(&self, key: &Key, n_bytes_max: usize) -> io::Result<Vec<u8>>;
    /// Says that an entry is read soon.
    fn expect(&self, key: &Key);
    /// Keeps an entry.
    fn write(&self, key: &Key, bytes: &[u8]) -> io::Result<()>;
    /// Brings the names of what was written to the disk.
    fn settle(&self);
    /// Drops an entry, if it is there.
    fn remove(&self, key: &Key);
    /// Notes that an entry was used now.
    fn touch(&self, key: &Key);
    /// Changes when entries come or go.
    fn stamp(&self) -> u128;
    /// Bytes that may still be written.
    fn n_free(&self) -> u64;
    /// The day's writes.
    fn read_ledger(&self) -> io::Result<String>;
    /// Notes the day's writes.
    fn write_ledger(&self, text: &str) -> io::Result<()>;
    /// Keeps other processes from the ledger for as long as it is held.
    fn lock(&self) -> io::Result<Option<File>>;
    /// Time since the Unix epoch.
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A directory.
pub struct Directory {
    dir: PathBuf,
}

impl Directory {
    /// Opens a directory, and makes it if need be; only its owner may look inside.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Directory> {
        for part in ["pages", "tmp", "digests"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join(part))?;
        }
        Ok(Directory { dir: dir.to_owned() })
    }

    fn page(&self, key: &Key) -> PathBuf {
        self.dir.join("pages").join(key.name())
    }

    /// Writes a file whole or not at all.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let part = self.dir.join("tmp").join(part_name()?);
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&part, path)?;
            Ok(file)
        };
        write().inspect_err(|_| drop(fs::remove_file(&part)))
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<Listed>> {
        let _lock = self.lock()?;
        for left in fs::read_dir(self.dir.join("tmp"))?.flatten() {
            // Another process may be writing its own.
            let age = left.metadata().and_then(|m| m.modified()).ok().map(|at| at.elapsed());
            if age.is_some_and(|age| age.is_ok_and(|age| age > LEFT_OVER)) {
                let _ = fs::remove_file(left.path());
            }
        }
        let mut listed = Vec::new();
        for file in fs::read_dir(self.dir.join("pages"))?.flatten() {
            let key = file.file_name().to_str().and_then(Key::from_name);
            let (Some(key), Ok(metadata)) = (key, file.metadata()) else { continue };
            let used = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let (n_bytes, used) = (metadata.len(), used.unwrap_or_default());
            listed.push(Listed { key, n_bytes, used });
        }
        Ok(listed)
    }

    fn read(&self, key: &Key, n_bytes_max: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.page(key))?;
        let n_bytes = file.metadata()?.len();
        if n_bytes > n_bytes_max as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::with_capacity(n_bytes as usize + 1);
        (&file).take(n_bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok(bytes)
    }

    fn expect(&self, key: &Key) {
        if let Ok(file) = File::open(self.page(key)) {
            let _ = fadvise(&file, 0, None, Advice::WillNeed);
        }
    }

    fn write(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let file = self.replace(&self.page(key), bytes)?;
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn settle(&self) {
        let _ = File::open(self.dir.join("pages")).and_then(|dir| dir.sync_all());
    }

    fn remove(&self, key: &Key) {
        let _ = fs::remove_file(self.page(key));
    }

    fn touch(&self, key: &Key) {
        let file = File::options().write(true).open(self.page(key));
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }

    fn stamp(&self) -> u128 {
        let metadata = fs::metadata(self.dir.join("pages"));
        metadata.map_or(0, |m| (m.mtime() as u128) << 64 | (m.mtime_nsec() as u128))
    }

    fn n_free(&self) -> u64 {
        disk_free_bytes(&self.dir).unwrap_or(u64::MAX)
    }

    fn read_ledger(&self) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.dir.join("ledger"))?.take(100).read_to_string(&mut text)?;
        Ok(text)
    }

    fn write_ledger(&self, text: &str) -> io::Result<()> {
        self.replace(&self.dir.join("ledger"), text.as_bytes()).map(drop)
    }

    fn lock(&self) -> io::Result<Option<File>> {
        let path = self.dir.join("lock");
        let file =
            File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Some(file))
    }
}
