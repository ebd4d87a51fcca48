//! The code that is shown: a file of the state directory, good for a while, for a few tries, and
//! for one machine.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::PairingError;
use crate::base::limits::{PAIR_S, PAIR_TRIES_MAX, RECORD_BYTES_MAX};
use crate::pair::Code;
use crate::seal;

#[derive(Serialize, Deserialize)]
struct Record {
    code: String,
    expires_unix: u64,
    n_left: u32,
}

impl Record {
    /// A clock that was set back gives no code more time than it ever had.
    fn is_in_time(&self) -> bool {
        (now_s()..=now_s() + PAIR_S).contains(&self.expires_unix)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct PairOffer {
    path: PathBuf,
}

impl PairOffer {
    /// The offer of a state directory.
    pub fn new(state_dir: &Path) -> PairOffer {
        PairOffer { path: state_dir.join("pair.json") }
    }

    /// Makes a new code, in the place of any other.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn make(&self) -> Result<Code, PairingError> {
        let code = Code::random()?;
        let expires_unix = now_s() + PAIR_S;
        self.write(&Record { code: code.show(), expires_unix, n_left: PAIR_TRIES_MAX })?;
        Ok(code)
    }

    /// Spends a try; the code, if there is one that is still good.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn spend(&self) -> Result<Option<Code>, PairingError> {
        let Some(mut record) = self.read()? else { return Ok(None) };
        if !record.is_in_time() || record.n_left == 0 {
            self.close()?;
            return Ok(None);
        }
        record.n_left -= 1;
        self.write(&record)?;
        Ok(Some(Code::read(&record.code)?))
    }

    /// Whether this is still the code that is shown.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn shows(&self, code: &Code) -> std::io::Result<bool> {
        let record = self.read()?;
        Ok(record.is_some_and(|record| record.is_in_time() && record.code == code.show()))
    }

    /// Takes the code back.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn close(&self) -> std::io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn read(&self) -> std::io::Result<Option<Record>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
        // A file that is torn offers nothing.
        Ok(serde_json::from_str(&text).ok())
    }

    fn write(&self, record: &Record) -> std::io::Result<()> {
        seal::put_file(&self.path, &serde_json::to_vec(record)?)
    }
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_code_is_good_for_a_few_tries_and_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let offer = PairOffer::new(dir.path());
        assert!(offer.spend().unwrap().is_none());
        let code = offer.make().unwrap();
        let mode = std::fs::metadata(&offer.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for _ in 0..PAIR_TRIES_MAX {
            assert_eq!(offer.spend().unwrap().as_ref(), Some(&code));
        }
        assert!(offer.shows(&code).unwrap() && !offer.shows(&Code::random().unwrap()).unwrap());
        assert!(offer.spend().unwrap().is_none());
        assert!(offer.spend().unwrap().is_none());
        for expires_unix in [0, now_s() - 1, now_s() + 2 * PAIR_S] {
            let record = Record { code: code.show(), expires_unix, n_left: 5 };
            offer.write(&record).unwrap();
            assert!(!offer.shows(&code).unwrap());
            assert!(offer.spend().unwrap().is_none(), "{expires_unix}");
        }
        std::fs::write(&offer.path, "{\"code\":").unwrap();
        assert!(offer.spend().unwrap().is_none());
        assert_ne!(offer.make().unwrap(), offer.make().unwrap());
    }
}
