//! Codes that were typed here: none is typed twice.
//!
//! Every exchange tells whoever is on the other side the letters up to the one where it ends. Who
//! stands in between learns the code, a letter with each exchange, if the same one is typed again
//! and again. So a code is spent before its first letter is told, and its digest kept.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::base::file;
use crate::base::hash::hex;
use crate::base::limits::{PAIR_SPENT_MAX, RECORD_BYTES_MAX};
use crate::pair::Code;

/// See the module.
pub(super) struct Spent(PathBuf);

impl Spent {
    /// Those of a state directory.
    pub fn new(state_dir: &Path) -> Spent {
        Spent(state_dir.join("pair.spent"))
    }

    /// Spends a code; whether it was not spent before.
    ///
    /// # Errors
    /// If that cannot be kept.
    pub fn spend(&self, code: &Code) -> io::Result<bool> {
        let digest = hex(&Sha256::digest(code.show().as_bytes()));
        let mut known = self.read()?;
        if known.contains(&digest) {
            return Ok(false);
        }
        known.push(digest);
        let n_old = known.len().saturating_sub(PAIR_SPENT_MAX);
        self.write(&known[n_old..])?;
        Ok(true)
    }

    fn read(&self) -> io::Result<Vec<String>> {
        let file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn write(&self, known: &[String]) -> io::Result<()> {
        file::replace(&self.0, (known.join("\n") + "\n").as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_spent_once_and_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let spent = || Spent::new(dir.path());
        let code = Code::read("7K3M-W9QD").unwrap();
        assert!(spent().spend(&code).unwrap());
        assert!(!spent().spend(&code).unwrap());
        assert!(!std::fs::read_to_string(&spent().0).unwrap().contains("7K3M"));
        for _ in 0..PAIR_SPENT_MAX {
            assert!(spent().spend(&Code::random().unwrap()).unwrap());
        }
        assert_eq!(spent().read().unwrap().len(), PAIR_SPENT_MAX);
        assert!(spent().spend(&code).unwrap());
    }
}
