//! What another process of the owner has to tell while a service holds the store.
//!
//! ```text
//! jetforge bench -> told/NUMBER.json -> the service takes it in, tells the peers, removes it
//! ```
//!
//! A file comes to be whole or not at all. One that is taken in twice, because the power went
//! between its telling and its end, says the same about the same thing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::ENTRY_BYTES;
use crate::base::file;
use crate::base::limits::{SYNC_ENTRY_BYTES_MAX, SYNC_SPOOL_MAX};
use crate::seal::part_name;
use crate::store::now_ms;

/// Something that is to be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Of which kind.
    pub kind: String,
    /// Its key behind `NODE/`.
    pub name: String,
    /// What it says.
    pub body: Value,
}

/// The folder of a state directory.
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// See the module.
    pub fn new(state_dir: &Path) -> Spool {
        Spool { dir: state_dir.join("told") }
    }

    /// Puts something in.
    ///
    /// # Errors
    /// If it is too large, there is too much already, or the disk does not take it.
    pub fn put(&self, told: &Told) -> io::Result<()> {
        let text = serde_json::to_vec(told)?;
        // Its entry has a key with the node's name and more around it.
        if text.len() > SYNC_ENTRY_BYTES_MAX - 4 * ENTRY_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large to be told"));
        }
        if self.files().len() >= SYNC_SPOOL_MAX {
            let why = "too much waits to be told; a running service takes it in";
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        // In the order of time, as far as the clock tells.
        let (number, name) = (format!("{:016x}", now_ms()), part_name()?);
        let name = name.trim_end_matches(".part");
        file::replace(&self.dir.join(format!("{number}-{name}.json")), &text, 0o600)
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|end| end == "json"))
            .collect();
        files.sort();
        files
    }

    /// Gives each thing to `tell`, the oldest first, and removes what it took; how many.
    ///
    /// # Errors
    /// The first of `tell`; what it did not take stays.
    pub fn take_in<E>(&self, mut tell: impl FnMut(Told) -> Result<(), E>) -> Result<usize, E> {
        let mut n = 0;
        for path in self.files().into_iter().take(SYNC_SPOOL_MAX) {
            match read(&path) {
                Some(told) => tell(told)?,
                None => {
                    tracing::warn!(file = %path.display(), "this cannot be told, and is let go")
                }
            }
            let _ = fs::remove_file(path);
            n += 1;
        }
        Ok(n)
    }
}

fn read(path: &Path) -> Option<Told> {
    let mut text = Vec::new();
    let file = File::open(path).ok()?;
    file.take(SYNC_ENTRY_BYTES_MAX as u64).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_put_in_is_taken_in_once_and_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path());
        let told = |n: u64| Told { kind: "report".into(), name: "x".into(), body: json!(n) };
        spool.put(&told(1)).unwrap();
        fs::write(dir.path().join("told/0-broken.json"), "{").unwrap();
        let mut heard = Vec::new();
        let refused = spool.take_in(|_| Err("the disk is full"));
        assert_eq!(refused, Err("the disk is full"));
        let mut take = || {
            spool.take_in(|told| {
                heard.push(told.body);
                Ok::<(), ()>(())
            })
        };
        assert_eq!((take(), take()), (Ok(1), Ok(0)), "what is broken went with the first look");
        assert_eq!(heard, [json!(1)]);
        (0..SYNC_SPOOL_MAX as u64).for_each(|n| spool.put(&told(n)).unwrap());
        assert!(spool.put(&told(0)).is_err(), "bounded");
        let large = Told { body: json!("x".repeat(SYNC_ENTRY_BYTES_MAX)), ..told(0) };
        assert!(spool.put(&large).is_err());
    }
}
