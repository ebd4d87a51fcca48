//! The only file that writes to the board: a list of small files and what is to stand in them.
//!
//! ```text
//! Settings -> plan -> [path, value] -> journal (what stands there now, fsync) -> write
//! stop, or the next start after a crash: journal, last first -> write back -> journal gone
//! ```
//!
//! Nothing is written that the journal does not hold first, so a crash at any moment leaves enough
//! behind to go back; it goes to the disk when a file is new in it, not at every change of a clock.
//! What somebody else set since is left to him. A path is written only if it is one of a short list
//! of forms, also when it comes from the journal: a journal that somebody changed cannot make root
//! write elsewhere. What stands in these files is gone after a restart of the machine, and so is a
//! journal of another boot.
//!
//! Minimum and maximum of a clock go in the order in which the kernel never sees the one above the
//! other; backwards, the same order is right again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::sysfs::{Reason, Sysfs};
use super::writes::check;
use crate::base::file;
use crate::base::limits::{POWER_JOURNAL_BYTES_MAX, POWER_WRITES_MAX};

/// Why the board cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file that is not ours to write.
    #[error("{path} is none of the files that jetforge sets")]
    Refused {
        /// The file, from the root.
        path: String,
    },
    /// A value that no such file takes.
    #[error("{path} cannot be set to {value:?}")]
    Value {
        /// The file, from the root.
        path: String,
        /// The value.
        value: String,
    },
    /// More writes than a board has files.
    #[error("{n_write} writes are more than {POWER_WRITES_MAX}")]
    TooMany {
        /// How many there were.
        n_write: usize,
    },
    /// A file of the board cannot be written.
    #[error("cannot write {value} to /{path}: {source}")]
    Write {
        /// The file, from the root.
        path: String,
        /// What was to be written.
        value: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The journal cannot be kept or read.
    #[error("{}: {source}", path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is in the journal of the other one who sets files of the board.
    #[error("/{path} is set by {}", owner.advice())]
    Taken {
        /// The file, from the root.
        path: String,
        /// Who has set it.
        owner: Owner,
    },
    /// The helper with rights did not do it.
    #[error("the helper that sets the board: {reason}")]
    Helper {
        /// What it said, or why it said nothing.
        reason: String,
    },
    /// The journal is none.
    #[error("{} is no journal of jetforge; look at it and remove it", path.display())]
    NoJournal {
        /// Its file.
        path: PathBuf,
    },
}

impl ApplyError {
    /// Whether root could do it.
    pub fn is_permission(&self) -> bool {
        match self {
            ApplyError::Write { source, .. } | ApplyError::Journal { source, .. } => {
                source.kind() == std::io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }
}

/// Who sets files of the board. Each has a journal, and leaves alone what the other's holds: it
/// would take the other's value for what stood there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The service, while it runs.
    Service,
    /// A person, by `jetforge tune`.
    Tune,
}

impl Owner {
    fn name(self) -> &'static str {
        match self {
            Owner::Service => "power",
            Owner::Tune => "tune",
        }
    }

    fn other(self) -> Owner {
        match self {
            Owner::Service => Owner::Tune,
            Owner::Tune => Owner::Service,
        }
    }

    /// Who it is and what to do.
    fn advice(self) -> &'static str {
        match self {
            Owner::Service => "the service; stop it, do this again, and start it",
            Owner::Tune => "jetforge tune; take that back with: sudo jetforge tune --revert",
        }
    }
}

/// What came of taking back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reverted {
    /// What was written.
    pub done: Vec<Change>,
    /// What was left as it stands, and why.
    pub left: Vec<String>,
}

/// One file and what is to stand in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The file, from the root, without a slash before it.
    pub path: String,
    /// What stands there now.
    pub before: String,
    /// What is to stand there; in a journal, empty for what was set more than once.
    pub value: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    /// The kernel's name for this boot; empty where it told none.
    boot: String,
    changes: Vec<Change>,
}

/// Sets the board, and knows the way back.
#[derive(Debug)]
pub struct Actuator {
    sysfs: Sysfs,
    journal: PathBuf,
    owner: Owner,
    /// What this process wrote last into each file.
    last: Mutex<BTreeMap<String, String>>,
}

/// Whether a journal is of this boot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boot {
    Same,
    Another,
    Unknown,
}

const BOOT: &str = "proc/sys/kernel/random/boot_id";

impl Actuator {
    /// Sets the trees under `root`, and keeps the owner's journal in a directory: for root
    /// one that nobody else writes into.
    pub fn new(root: &Path, state_dir: &Path, owner: Owner) -> Actuator {
        let journal = state_dir.join(format!("{}.journal.json", owner.name()));
        Actuator { sysfs: Sysfs::new(root), journal, owner, last: Mutex::default() }
    }

    /// What would change: files that are there and hold something else, in the order in which they
    /// are written. A file that is not there is left out, because not every board has it.
    ///
    /// # Errors
    /// A path or a value that is not allowed.
    pub fn changes(&self, wanted: &[(String, String)]) -> Result<Vec<Change>, ApplyError> {
        let mut changes = Vec::new();
        for (path, value) in wanted {
            check(path, value)?;
            if let Ok(before) = self.present(path)
                && before != *value
            {
                changes.push(Change { path: path.clone(), before, value: value.clone() });
            }
        }
        match changes.len() {
            n_write if n_write > POWER_WRITES_MAX => Err(ApplyError::TooMany { n_write }),
            _ => Ok(changes),
        }
    }

    /// Writes the changes, each one's former value being in the journal first. One that fails does
    /// not keep back the others, and [`Actuator::revert`] takes back all of them. Where the journal
    /// takes nothing, such as on a full disk, files that it already holds are set all the same.
    ///
    /// # Errors
    /// A change that is not allowed, or of a file that the other owner has set: then nothing is
    /// written. Else the first that failed: a journal that cannot be kept, or a file.
    pub fn apply(&self, changes: &[Change]) -> Result<(), ApplyError> {
        for change in changes {
            check(&change.path, &change.value)?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.check_other(changes)?;
        let known = self.read()?.filter(|journal| self.boot_of(journal) != Boot::Another);
        let known = known.map(|journal| journal.changes).unwrap_or_default();
        let mut all = known.clone();
        for change in changes {
            // What stood there first is what counts, however often it is set since.
            match all.iter_mut().find(|old| old.path == change.path) {
                // Once is enough: a journal at every change of a clock would wear the disk.
                Some(old) if old.value != change.value => old.value.clear(),
                Some(_) => {}
                None => all.push(change.clone()),
            }
        }
        if all.len() > POWER_WRITES_MAX {
            return Err(ApplyError::TooMany { n_write: all.len() });
        }
        let is_kept = if all == known {
            Ok(())
        } else {
            self.keep(&Journal { boot: self.boot().unwrap_or_default(), changes: all })
        };
        let may_set =
            |change: &&Change| is_kept.is_ok() || known.iter().any(|old| old.path == change.path);
        let mut first = None;
        for Change { path, value, .. } in changes.iter().filter(may_set) {
            match self.write(path, value) {
                Ok(()) => {
                    // What the kernel made of it, which is what will stand there.
                    let stands = self.present(path).unwrap_or_else(|_| value.clone());
                    self.last().insert(path.clone(), stands);
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(is_kept, Err)
    }

    /// Refuses files that the other owner's journal holds. One that is none says nothing.
    fn check_other(&self, changes: &[Change]) -> Result<(), ApplyError> {
        let owner = self.owner.other();
        let journal = self.journal.with_file_name(format!("{}.journal.json", owner.name()));
        let other = Actuator { sysfs: self.sysfs.clone(), journal, owner, last: Mutex::default() };
        let theirs = other.pending().unwrap_or_default();
        let is_theirs = |change: &&Change| theirs.iter().any(|other| other.path == change.path);
        match changes.iter().find(is_theirs) {
            Some(change) => Err(ApplyError::Taken { path: change.path.clone(), owner }),
            None => Ok(()),
        }
    }

    /// Writes back what stood there before the first change, last first, and says what it wrote.
    /// Without a journal there is nothing to do. What somebody else has set since is left to him,
    /// and so is what cannot be written back; a file that is gone by now is left out; one that
    /// takes nothing keeps the journal for another try, after the others.
    ///
    /// # Errors
    /// A journal that cannot be read or is none, and the first file that could not be written.
    pub fn revert(&self) -> Result<Reverted, ApplyError> {
        let Some(journal) = self.read()? else { return Ok(Reverted::default()) };
        let boot = self.boot_of(&journal);
        let (mut told, mut failed) = (Reverted::default(), None);
        let mut ours = Vec::new();
        let changes = journal.changes.into_iter().rev().filter(|_| boot != Boot::Another);
        for change in changes {
            match self.is_ours(&change, boot) {
                Ok(true) => {
                    let value = self.present(&change.path).unwrap_or(change.value);
                    ours.push(Change { value, ..change });
                }
                Ok(false) => {}
                Err(why) => told.left.push(why),
            }
        }
        for Change { path, before, .. } in &ours {
            // Once before it counts: a minimum may be above a maximum that is still to come.
            let _ = self.write(path, before);
        }
        for Change { path, before, value } in ours {
            match self.write(&path, &before) {
                Ok(()) => told.done.push(Change { path, before: value, value: before }),
                Err(ApplyError::Write { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => {
                self.last().clear();
                self.forget().map(|()| told)
            }
        }
    }

    /// Whether a file is to be written back: not where it has its former value, and not where it
    /// has neither that nor ours, or takes none; then, why.
    fn is_ours(&self, change: &Change, boot: Boot) -> Result<bool, String> {
        let Change { path, before, value } = change;
        if let Err(error) = check(path, before) {
            return Err(error.to_string());
        }
        // What cannot be read may still take the value.
        let Ok(present) = self.present(path) else { return Ok(true) };
        if present == *before {
            return Ok(false);
        }
        let last = self.last();
        let ours = last.get(path).or(Some(value).filter(|value| !value.is_empty()));
        match ours {
            Some(ours) if *ours == present || *value == present => Ok(true),
            // Set more than once, by a process that is gone: nobody knows to what.
            None if boot == Boot::Same => Ok(true),
            _ => Err(format!("/{path} was set to {present:?} since, by somebody else")),
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the journal holds: what would be written back.
    ///
    /// # Errors
    /// As [`Actuator::revert`].
    pub fn pending(&self) -> Result<Vec<Change>, ApplyError> {
        let journal = self.read()?.filter(|journal| self.boot_of(journal) != Boot::Another);
        Ok(journal.map(|journal| journal.changes).unwrap_or_default())
    }

    /// What stands in a file. The limit of zram can only be written; `mm_stat` says it in its
    /// fourth column (the kernel's `blockdev/zram`).
    fn present(&self, path: &str) -> Result<String, Reason> {
        let Some(dir) = path.strip_suffix("/mem_limit") else { return self.sysfs.text(path) };
        let columns = self.sysfs.text(&format!("{dir}/mm_stat"))?;
        let limit = columns.split_whitespace().nth(3).ok_or("mm_stat has no limit")?;
        Ok(limit.to_owned())
    }

    fn boot(&self) -> Option<String> {
        self.sysfs.text(BOOT).ok()
    }

    fn boot_of(&self, journal: &Journal) -> Boot {
        match self.boot() {
            Some(boot) if boot == journal.boot => Boot::Same,
            Some(_) if !journal.boot.is_empty() => Boot::Another,
            _ => Boot::Unknown,
        }
    }

    fn write(&self, path: &str, value: &str) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Write { path: path.into(), value: value.into(), source };
        // Without `create`: a file that the kernel does not have is not made.
        let mut file = File::options()
            .write(true)
            .truncate(true)
            .open(self.sysfs.path(path))
            .map_err(failed)?;
        file.write_all(value.as_bytes()).map_err(failed)
    }

    fn read(&self) -> Result<Option<Journal>, ApplyError> {
        let path = || self.journal.clone();
        let file = match File::open(&self.journal) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ApplyError::Journal { path: path(), source }),
        };
        let mut text = String::new();
        let bounded = file.take(POWER_JOURNAL_BYTES_MAX + 1).read_to_string(&mut text);
        let is_long = text.len() as u64 > POWER_JOURNAL_BYTES_MAX;
        if bounded.is_err() || is_long {
            return Err(ApplyError::NoJournal { path: path() });
        }
        let journal = serde_json::from_str(&text);
        journal.map(Some).map_err(|_| ApplyError::NoJournal { path: path() })
    }

    fn keep(&self, journal: &Journal) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Journal { path: self.journal.clone(), source };
        let text = serde_json::to_vec(journal).map_err(|error| failed(error.into()))?;
        file::replace(&self.journal, &text, 0o644).map_err(failed)
    }

    fn forget(&self) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Journal { path: self.journal.clone(), source };
        file::remove(&self.journal).map_err(failed)
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
