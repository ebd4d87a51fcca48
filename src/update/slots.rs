//! Two places beside the package's program, and which of the three runs.
//!
//! ```text
//! a/ b/         jetforge, manifest.toml, manifest.sig; whole once its manifest is there
//! current       a link to a, b or the package's folder: what the unit starts
//! record.json   which runs, which ran before, which is on trial, how the last one ended
//! pending       there while somebody has to watch: a trial, or a start that is wanted
//! lock          held while the record is read and written; apply.lock while a slot is
//!
//! apply -> on trial -> begin, at most three times -> ready -> kept: it runs, what ran is before
//!              |               |                       |
//!              +---------------+-----------------------+--> given up: what ran goes on running
//! ```
//!
//! The record is what counts; the link and the mark follow it, and each start mends them. A slot
//! that runs, or that is the way back, is never written to.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::UpdateError;
use super::bundle::{Bundle, MANIFEST, PROGRAM, SIGNATURES, copy_summed};
use super::disk::Disk;
use super::manifest::{Manifest, Version};
use crate::base::host::Moment;
use crate::base::limits::{
    UPDATE_FREE_BYTES_MIN, UPDATE_MANIFEST_BYTES_MAX, UPDATE_RECORD_BYTES_MAX, UPDATE_STARTS_MAX,
};

const CURRENT: &str = "current";
const RECORD: &str = "record.json";
const PENDING: &str = "pending";

/// A program's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Where the package put it; always there.
    #[default]
    Package,
    /// One of two.
    A,
    /// The other.
    B,
}

impl Slot {
    /// `package`, `a` or `b`.
    pub fn name(self) -> &'static str {
        match self {
            Slot::Package => "package",
            Slot::A => "a",
            Slot::B => "b",
        }
    }
}

/// The program that the package brought, which also is the one that asks here.
#[derive(Clone, Debug)]
pub struct Package {
    /// The folder that it is in.
    pub dir: PathBuf,
    /// Its version.
    pub version: Version,
    /// The version of the state store that it makes and reads.
    pub state_schema: i64,
}

/// A program that has still to show that it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Its place.
    pub slot: Slot,
    /// Its version.
    pub version: String,
    /// How often it was started.
    pub n_start: u32,
    /// The kernel's name for the start of the machine in which that was last.
    #[serde(default)]
    pub boot: String,
    /// Whether that start came to an answer of the model.
    pub is_ready: bool,
    /// How its last start ended, if it did.
    pub why: Option<String>,
}

/// How a change of the program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The version that was to run.
    pub version: String,
    /// Whether it does.
    pub is_kept: bool,
    /// The version that runs now.
    pub runs: String,
    /// In a sentence.
    pub why: String,
}

/// What is known from one start to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The program that is known to work.
    pub runs: Slot,
    /// The one that ran before it.
    pub before: Option<Slot>,
    /// The one that is tried.
    pub trial: Option<Trial>,
    /// How the last change ended.
    pub last: Option<Outcome>,
    /// The service is to be started anew.
    pub wants_start: bool,
}

/// The folder of slots.
#[derive(Debug)]
pub struct Slots {
    dir: PathBuf,
    package: Package,
    pub(super) boot: String,
    pub(super) disk: Disk,
}

impl Slots {
    /// The slots of a folder, which need not be there.
    pub fn new(dir: &Path, package: Package) -> Slots {
        let boot = Moment::now().map_or_else(|_| String::new(), |now| now.boot);
        Slots { dir: dir.to_owned(), package, boot, disk: Disk::default() }
    }

    /// The same, in the start of the machine that its manager calls `boot`, if it says so.
    pub fn in_boot(mut self, boot: Option<&str>) -> Slots {
        self.boot = boot.map_or(self.boot, str::to_owned);
        self
    }

    /// What is known. A record that does not read counts as none: then the package's runs.
    pub fn record(&self) -> Record {
        let read = || -> Option<Record> {
            let file = File::open(self.dir.join(RECORD)).ok()?;
            let mut text = Vec::new();
            file.take(UPDATE_RECORD_BYTES_MAX).read_to_end(&mut text).ok()?;
            serde_json::from_slice(&text).ok()
        };
        read().unwrap_or_default()
    }

    /// The program that the unit starts.
    pub fn active(&self) -> Slot {
        let target = std::fs::read_link(self.dir.join(CURRENT)).unwrap_or_default();
        let is = |slot: &Slot| target == Path::new(slot.name());
        [Slot::A, Slot::B].into_iter().find(is).unwrap_or(Slot::Package)
    }

    /// What is said of the program in a slot; `None` if it is not whole.
    pub fn manifest(&self, slot: Slot) -> Option<Manifest> {
        let file = File::open(self.dir.join(slot.name()).join(MANIFEST)).ok()?;
        let mut text = Vec::new();
        file.take(UPDATE_MANIFEST_BYTES_MAX + 1).read_to_end(&mut text).ok()?;
        let manifest = Manifest::read(&text).ok()?;
        let n_bytes = std::fs::metadata(self.program(slot)).ok()?.len();
        (n_bytes == manifest.n_bytes).then_some(manifest)
    }

    /// The version in a place; `None` if there is none.
    pub fn version(&self, slot: Slot) -> Option<Version> {
        match slot {
            Slot::Package => Some(self.package.version.clone()),
            _ => self.manifest(slot).map(|manifest| manifest.version),
        }
    }

    /// The version of the state store of a place; 0 if there is none.
    pub fn state_schema(&self, slot: Slot) -> i64 {
        match slot {
            Slot::Package => self.package.state_schema,
            _ => self.manifest(slot).map_or(0, |manifest| manifest.state_schema),
        }
    }

    fn program(&self, slot: Slot) -> PathBuf {
        match slot {
            Slot::Package => self.package.dir.join(PROGRAM),
            _ => self.dir.join(slot.name()).join(PROGRAM),
        }
    }

    fn is_whole(&self, slot: Slot) -> bool {
        match slot {
            Slot::Package => true,
            _ => self.manifest(slot).is_some(),
        }
    }

    /// Whether every byte of a slot is the one that was signed.
    fn is_as_signed(&self, slot: Slot) -> bool {
        let Some(manifest) = self.manifest(slot) else { return false };
        let sum = || {
            let mut file = BufReader::new(File::open(self.program(slot)).ok()?);
            copy_summed(&mut file, &mut std::io::sink()).ok()
        };
        sum().is_some_and(|(n, sum)| (n, sum) == (manifest.n_bytes, manifest.sha256))
    }

    /// Writes a program beside the one that runs, and puts it on trial. The caller looked whether
    /// it fits.
    ///
    /// # Errors
    /// If another is on its way, there is no room, or it is not what was signed. Then what ran
    /// goes on running.
    pub fn install(&self, bundle: &Bundle) -> Result<Slot, UpdateError> {
        self.disk.make_dir(&self.dir)?;
        let apply = File::create(self.dir.join("apply.lock"));
        let apply = apply.map_err(UpdateError::file(&self.dir))?;
        if flock(&apply, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(UpdateError::Busy { what: "another update is being written".to_owned() });
        }
        let slot = self.change(|record| free_slot(record, self))?;
        let dir = self.dir.join(slot.name());
        self.disk.make_dir(&dir)?;
        // From here on it is no program until its manifest is there again.
        self.disk.remove(&dir.join(MANIFEST))?;
        self.disk.remove(&dir.join(PROGRAM))?;
        let needed_bytes = bundle.manifest.n_bytes + UPDATE_FREE_BYTES_MIN;
        let free_bytes = self.disk.free_bytes(&dir);
        if free_bytes < needed_bytes {
            return Err(UpdateError::NoRoom { path: dir, free_bytes, needed_bytes });
        }
        self.disk.write(&dir.join(PROGRAM), 0o755, |out| bundle.copy_program(out))?;
        self.disk.write_text(&dir.join(SIGNATURES), &bundle.signatures)?;
        self.disk.write_text(&dir.join(MANIFEST), &bundle.manifest_text)?;
        let version = bundle.manifest.version.to_string();
        self.change(|record| {
            let boot = String::new();
            let trial = Trial { slot, version, n_start: 0, boot, is_ready: false, why: None };
            (record.trial, record.wants_start) = (Some(trial), true);
            Ok(())
        })?;
        Ok(slot)
    }

    /// Before each start: counts it, gives up what was started often enough, and lets the link lead
    /// to the program that is to run. What a person should know.
    ///
    /// # Errors
    /// If the folder takes nothing; then the link leads where it led.
    pub fn begin(&self) -> Result<Vec<String>, UpdateError> {
        if !self.dir.join(RECORD).exists() {
            return self.point(Slot::Package).map(|()| Vec::new());
        }
        self.change(|record| {
            let mut said = Vec::new();
            if let Some(trial) = &record.trial
                && let Some(why) = self.given_up(trial)
            {
                said.push(self.go_back(record, &why));
            }
            if !self.is_whole(record.runs) {
                said.push(self.replace_lost(record));
            }
            record.wants_start = false;
            let slot = match &mut record.trial {
                Some(trial) => {
                    trial.n_start += 1;
                    trial.boot.clone_from(&self.boot);
                    trial.is_ready = false;
                    said.push(format!("{} is tried, start {}", trial.version, trial.n_start));
                    trial.slot
                }
                None => record.runs,
            };
            self.point(slot)?;
            Ok(said)
        })
    }

    /// Lets the package's program run: it was just installed.
    ///
    /// # Errors
    /// If the folder takes nothing.
    pub fn take_package(&self) -> Result<(), UpdateError> {
        if !self.dir.join(RECORD).exists() {
            return Ok(());
        }
        self.change(|record| {
            if record.runs != Slot::Package {
                record.before = Some(record.runs);
            }
            let version = self.package.version.to_string();
            let why = "the package was installed".to_owned();
            record.last = Some(Outcome { runs: version.clone(), version, is_kept: true, why });
            record.runs = Slot::Package;
            record.trial = None;
            self.point(Slot::Package)
        })
    }

    /// Goes back, by hand: from a trial to what ran, else to what ran before.
    ///
    /// # Errors
    /// If nothing ran before, or it does not know the state and `takes_state_back` is not set.
    pub fn roll_back(&self, takes_state_back: bool) -> Result<String, UpdateError> {
        self.change(|record| {
            record.wants_start = true;
            if record.trial.is_some() {
                return Ok(self.go_back(record, "it was taken back by hand"));
            }
            let whole = record.before.filter(|slot| *slot != record.runs && self.is_whole(*slot));
            let to = match whole {
                Some(slot) => slot,
                None if record.runs != Slot::Package => Slot::Package,
                None => return Err(UpdateError::NothingBefore),
            };
            let version = |slot| self.version(slot).map_or("?".to_owned(), |v| v.to_string());
            if self.state_schema(to) < self.state_schema(record.runs) && !takes_state_back {
                return Err(UpdateError::NewerState { version: version(to) });
            }
            let (from, runs) = (version(record.runs), version(to));
            let why = "it was taken back by hand".to_owned();
            let said = format!("{from} was taken back by hand; {runs} runs");
            record.last = Some(Outcome { version: from, is_kept: false, runs, why });
            (record.before, record.runs) = (Some(record.runs), to);
            Ok(said)
        })
    }

    /// Why a program that is to be started once more is not.
    fn given_up(&self, trial: &Trial) -> Option<String> {
        if !self.is_as_signed(trial.slot) {
            return Some("it is not whole on the disk".to_owned());
        }
        if trial.n_start < UPDATE_STARTS_MAX {
            return None;
        }
        let why = trial.why.as_deref().unwrap_or("the power went, or it was stopped");
        Some(format!("it did not hold in {UPDATE_STARTS_MAX} starts; the last ended by: {why}"))
    }

    /// Ends a trial in favor of what ran; a sentence about it.
    pub(super) fn go_back(&self, record: &mut Record, why: &str) -> String {
        let Some(trial) = record.trial.take() else { return String::new() };
        let runs = self.version(record.runs).unwrap_or_else(|| self.package.version.clone());
        let said = format!("{} was given up: {why}; {runs} runs again", trial.version);
        record.last = Some(Outcome {
            version: trial.version,
            is_kept: false,
            runs: runs.to_string(),
            why: why.to_owned(),
        });
        said
    }

    /// The program that ran is damaged: the one of before, else the package's.
    fn replace_lost(&self, record: &mut Record) -> String {
        let before = record.before.take().filter(|slot| self.is_whole(*slot));
        let (lost, to) = (record.runs, before.unwrap_or_default());
        record.runs = to;
        let runs = self.version(to).map_or("?".to_owned(), |version| version.to_string());
        let why = format!("slot {} is damaged", lost.name());
        let said = format!("{why}; {runs} runs");
        record.last = Some(Outcome { version: lost.name().to_owned(), is_kept: false, runs, why });
        said
    }

    /// Lets the link lead to a place.
    fn point(&self, slot: Slot) -> Result<(), UpdateError> {
        let path = self.dir.join(CURRENT);
        let target = match slot {
            Slot::Package => self.package.dir.as_path(),
            slot => Path::new(slot.name()),
        };
        if std::fs::read_link(&path).is_ok_and(|leads| leads == target) {
            return Ok(());
        }
        self.disk.make_dir(&self.dir)?;
        self.disk.link(&path, target)
    }

    /// Changes the record under its lock; the mark for the one who watches follows it.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut Record) -> Result<T, UpdateError>,
    ) -> Result<T, UpdateError> {
        self.disk.make_dir(&self.dir)?;
        let _held = self.hold().map_err(UpdateError::file(&self.dir))?;
        let before = self.record();
        let mut record = before.clone();
        let value = change(&mut record)?;
        let (path, pending) = (self.dir.join(RECORD), self.dir.join(PENDING));
        let watches = record.trial.is_some() || record.wants_start;
        // First the mark: whoever finds it without a trial takes it away again.
        if watches && !pending.exists() {
            self.disk.write_text(&pending, b"")?;
        }
        if record != before || !path.exists() {
            let text = serde_json::to_vec_pretty(&record).expect("a record can be written");
            self.disk.write_text(&path, &text)?;
        }
        if !watches {
            self.disk.remove(&pending)?;
        }
        Ok(value)
    }

    /// The lock, until it is dropped.
    fn hold(&self) -> std::io::Result<File> {
        let file = File::create(self.dir.join("lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

/// The slot that is neither run nor the way back; the way back gives way to the package's program.
fn free_slot(record: &mut Record, slots: &Slots) -> Result<Slot, UpdateError> {
    if let Some(trial) = &record.trial {
        let what = format!("{} is still on trial", trial.version);
        return Err(UpdateError::Busy { what });
    }
    let is_free = |slot: &Slot| *slot != record.runs;
    let mut free = [Slot::A, Slot::B].into_iter().filter(is_free);
    let first = free.next().expect("one program runs, and there are two slots");
    let slot = match record.before {
        Some(before) if before == first && slots.is_whole(first) => free.next().unwrap_or(first),
        _ => first,
    };
    if record.before == Some(slot) {
        record.before = None;
    }
    Ok(slot)
}
