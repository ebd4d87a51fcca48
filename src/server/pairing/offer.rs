//! The code that is shown: a file of the state directory, good for a while, for a few tries, and
//! for one machine.
//!
//! The while is measured from the machine's start: the first code of a board without a battery is
//! shown before the network sets its clock, which then jumps by months. A restart ends it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PairingError;
use crate::base::file;
use crate::base::host::Moment;
use crate::base::limits::{PAIR_S, PAIR_TRIES_MAX, RECORD_BYTES_MAX};
use crate::pair::Code;

#[derive(Serialize, Deserialize)]
struct Record {
    code: String,
    expires: Moment,
    n_left: u32,
}

impl Record {
    /// A file that somebody wrote gives no code more time than it ever had.
    fn is_in_time(&self, now: &Moment) -> bool {
        now.until(&self.expires).is_some_and(|left_s| left_s <= PAIR_S)
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
        self.make_at(&Moment::now()?)
    }

    fn make_at(&self, now: &Moment) -> Result<Code, PairingError> {
        let code = Code::random()?;
        let expires = now.after(PAIR_S);
        self.write(&Record { code: code.show(), expires, n_left: PAIR_TRIES_MAX })?;
        Ok(code)
    }

    /// Spends a try; the code, if there is one that is still good.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn spend(&self) -> Result<Option<Code>, PairingError> {
        self.spend_at(&Moment::now()?)
    }

    fn spend_at(&self, now: &Moment) -> Result<Option<Code>, PairingError> {
        let Some(mut record) = self.read()? else { return Ok(None) };
        if !record.is_in_time(now) || record.n_left == 0 {
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
        let (record, now) = (self.read()?, Moment::now()?);
        Ok(record.is_some_and(|record| record.is_in_time(&now) && record.code == code.show()))
    }

    /// Takes the code back.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn close(&self) -> std::io::Result<()> {
        file::remove(&self.path)
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
        file::replace(&self.path, &serde_json::to_vec(record)?, 0o600)
    }
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
        std::fs::write(&offer.path, "{\"code\":").unwrap();
        assert!(offer.spend().unwrap().is_none());
        assert_ne!(offer.make().unwrap(), offer.make().unwrap());
    }

    #[test]
    fn its_time_is_that_of_the_machine_and_not_of_the_clock_on_the_wall() {
        let dir = tempfile::tempdir().unwrap();
        let offer = PairOffer::new(dir.path());
        let start = Moment { boot: "one".to_owned(), s: 20 };
        let code = offer.make_at(&start).unwrap();
        let kept = std::fs::read_to_string(&offer.path).unwrap();
        assert!(kept.contains("\"boot\":\"one\",\"s\":620"), "no date is in it: {kept}");
        assert_eq!(offer.spend_at(&start.after(PAIR_S)).unwrap(), Some(code));
        assert!(offer.spend_at(&start.after(PAIR_S + 1)).unwrap().is_none(), "its while is over");
        let another = Moment { boot: "two".to_owned(), s: 25 };
        for now in [&another, &Moment { s: 0, ..start.clone() }] {
            offer.make_at(&start).unwrap();
            assert!(offer.spend_at(now).unwrap().is_none(), "{now:?}");
        }
    }
}
