//! Changes of the folder, each of which a loss of power leaves done or not done.
//!
//! ```text
//! write    NAME.next, all of it on the disk -> its name -> the folder on the disk
//! link     NAME.next -> its name -> the folder on the disk
//! ```
//!
//! What a cut leaves at NAME.next goes with the next write of NAME, or with its removal.
//!
//! In tests the power can go before each of the system calls here; then nothing works any more. And
//! a disk can be small.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::UpdateError;
use crate::base::host::disk_free_bytes;

/// Writes, or stands in for one whose power goes.
#[derive(Debug, Default)]
pub struct Disk {
    #[cfg(test)]
    n_left: std::cell::Cell<Option<usize>>,
    #[cfg(test)]
    n_bytes: Option<u64>,
}

impl Disk {
    /// A disk whose power goes after so many calls.
    #[cfg(test)]
    pub fn cut_after(n: usize) -> Disk {
        Disk { n_left: std::cell::Cell::new(Some(n)), n_bytes: None }
    }

    /// A disk that has so much room for a folder's files.
    #[cfg(test)]
    pub fn of_size(n_bytes: u64) -> Disk {
        Disk { n_left: std::cell::Cell::new(None), n_bytes: Some(n_bytes) }
    }

    /// Whether the power went.
    #[cfg(test)]
    pub fn is_cut(&self) -> bool {
        self.n_left.get() == Some(0)
    }

    /// Before each call that changes something.
    fn call(&self) -> io::Result<()> {
        #[cfg(test)]
        match self.n_left.get() {
            Some(0) => return Err(io::Error::other("the power is gone")),
            Some(n) => self.n_left.set(Some(n - 1)),
            None => {}
        }
        Ok(())
    }

    /// Bytes that are free for a folder's files.
    pub fn free_bytes(&self, dir: &Path) -> u64 {
        #[cfg(test)]
        if let Some(n_bytes) = self.n_bytes {
            let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap());
            return n_bytes.saturating_sub(files.map(|about| about.len()).sum());
        }
        disk_free_bytes(dir).unwrap_or(u64::MAX)
    }

    /// Makes a folder that everybody may look into, if it is not there.
    pub fn make_dir(&self, path: &Path) -> Result<(), UpdateError> {
        let make = || {
            self.call()?;
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            // Whatever the mask of whoever calls: the service has to reach its program.
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
            self.sync_parent(path)
        };
        if path.is_dir() { Ok(()) } else { make().map_err(UpdateError::file(path)) }
    }

    /// Replaces a file by what `fill` writes.
    pub fn write(
        &self,
        path: &Path,
        mode: u32,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), UpdateError>,
    ) -> Result<(), UpdateError> {
        let (next, failed) = (next_to(path), UpdateError::file(path));
        let open = || {
            self.call()?;
            File::options().write(true).create(true).truncate(true).mode(mode).open(&next)
        };
        let mut file = open().map_err(&failed)?;
        let place = |file: File| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            self.call()?;
            file.sync_all()?;
            self.rename(&next, path)
        };
        let written = self.call().map_err(&failed).and_then(|()| fill(&mut file));
        let written = written.and_then(|()| place(file).map_err(&failed));
        // What is half would keep the room that the next one needs.
        if written.is_err() && self.call().is_ok() {
            let _ = fs::remove_file(&next);
        }
        written
    }

    /// Replaces a file by a text.
    pub fn write_text(&self, path: &Path, text: &[u8]) -> Result<(), UpdateError> {
        self.write(path, 0o644, |out| out.write_all(text).map_err(UpdateError::file(path)))
    }

    /// Lets a symbolic link lead to `target`.
    pub fn link(&self, path: &Path, target: &Path) -> Result<(), UpdateError> {
        let next = next_to(path);
        self.remove_one(&next)?;
        let place = || {
            self.call()?;
            std::os::unix::fs::symlink(target, &next)?;
            self.rename(&next, path)
        };
        place().map_err(UpdateError::file(path))
    }

    /// Removes a file, if it is there, and what a cut left of one that was to be.
    pub fn remove(&self, path: &Path) -> Result<(), UpdateError> {
        self.remove_one(path)?;
        self.remove_one(&next_to(path))
    }

    fn remove_one(&self, path: &Path) -> Result<(), UpdateError> {
        let remove = || {
            self.call()?;
            fs::remove_file(path)?;
            self.sync_parent(path)
        };
        match fs::symlink_metadata(path) {
            Err(_) => Ok(()),
            Ok(_) => remove().map_err(UpdateError::file(path)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        fs::rename(from, to)?;
        self.sync_parent(to)
    }

    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

fn next_to(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}
