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

use super::file::replace;
use super::governor::Settings;
use super::sensors::Readings;
use super::sysfs::{Reason, Sysfs};
use crate::base::limits::{POWER_CORES_MAX, POWER_JOURNAL_BYTES_MAX, POWER_WRITES_MAX};

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

const SWAPPINESS_MAX: u64 = 200;
const PWM_MAX: u64 = 255;
const CPU: &str = "sys/devices/system/cpu";
const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const EMC_CAP: &str = "sys/kernel/nvpmodel_emc_cap/emc_iso_cap";
const BOOT: &str = "proc/sys/kernel/random/boot_id";

/// Whether a file may be written, and with what: `None` for a file that is not ours, else whether
/// the value is one that it takes.
fn allows(path: &str, value: &str) -> Option<bool> {
    let number = value.parse::<u64>().ok().filter(|_| value.bytes().all(|b| b.is_ascii_digit()));
    let below = |max: u64| number.is_some_and(|n| n <= max);
    match path {
        SWAPPINESS => return Some(below(SWAPPINESS_MAX)),
        EMC_CAP => return Some(number.is_some()),
        "sys/devices/pwm-fan/target_pwm" => return Some(below(PWM_MAX)),
        "sys/devices/pwm-fan/temp_control" => return Some(below(1)),
        _ => {}
    }
    if let Some((core, file)) =
        path.strip_prefix(CPU).and_then(|rest| rest.strip_prefix("/cpu")?.split_once('/'))
    {
        let core_idx: usize =
            core.parse().ok().filter(|_| core.bytes().all(|b| b.is_ascii_digit()))?;
        return match file {
            _ if core_idx >= POWER_CORES_MAX => None,
            // The first core stays: some kernels cannot turn it off, and something must run.
            "online" if core_idx > 0 => Some(below(1)),
            "cpufreq/scaling_min_freq" | "cpufreq/scaling_max_freq" => Some(below(10_000_000)),
            _ => None,
        };
    }
    let parts: Vec<&str> = path.split('/').collect();
    let is_name = |name: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'_' || b == b'-';
        !name.starts_with('.') && !name.is_empty() && name.bytes().all(is_plain)
    };
    match parts.as_slice() {
        ["sys", "block", name, "mem_limit"] if name.starts_with("zram") && is_name(name) => {
            Some(below(1 << 40))
        }
        ["sys", "devices", "gpu.0", "devfreq", name, "min_freq" | "max_freq"]
        | ["sys", "class", "devfreq", name, "min_freq" | "max_freq"]
            if is_name(name) =>
        {
            Some(below(10_000_000_000))
        }
        _ => None,
    }
}

impl Actuator {
    /// Sets the trees under `root`, and keeps the owner's journal in the directory of states.
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
        replace(&self.journal, &text).map_err(failed)
    }

    fn forget(&self) -> Result<(), ApplyError> {
        match std::fs::remove_file(&self.journal) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(ApplyError::Journal { path: self.journal.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

fn check(path: &str, value: &str) -> Result<(), ApplyError> {
    match allows(path, value) {
        None => Err(ApplyError::Refused { path: path.to_owned() }),
        Some(false) => Err(ApplyError::Value { path: path.to_owned(), value: value.to_owned() }),
        Some(true) => Ok(()),
    }
}

/// The files of these settings on a board as it was read, in order.
pub fn plan(settings: &Settings, readings: &Readings) -> Vec<(String, String)> {
    let mut wanted = Vec::new();
    let mut add = |path: String, value: String| wanted.push((path, value));
    let n_core = settings.n_core.unwrap_or(usize::MAX).max(1);
    for core in readings.cpu.cores.iter().filter(|core| core.core_idx > 0) {
        let is_on = core.core_idx < n_core;
        add(format!("{CPU}/cpu{}/online", core.core_idx), u8::from(is_on).to_string());
    }
    let khz = |khz: u32| (khz > 0).then_some(u64::from(khz));
    if let (Some(max), Some(core)) = (khz(settings.cpu_khz_max), readings.cpu.cores.first()) {
        // Cores of a cluster share one clock, which the first one stands for.
        let low = readings.cpu.steps_khz.first().map(|k| u64::from(*k));
        let now = (core.min_khz.map(u64::from), core.max_khz.map(u64::from));
        let dir = format!("{CPU}/cpu{}/cpufreq/scaling", core.core_idx);
        let names = (format!("{dir}_min_freq"), format!("{dir}_max_freq"));
        clock(&mut add, names, low, max, now);
    }
    let gpu = readings.gpus.iter().find(|gpu| !gpu.devfreq.is_empty());
    if let (true, Some(gpu)) = (settings.gpu_hz_max > 0, gpu) {
        let names = (format!("{}/min_freq", gpu.devfreq), format!("{}/max_freq", gpu.devfreq));
        let now = (gpu.min_hz, gpu.max_hz);
        clock(&mut add, names, gpu.steps_hz.first().copied(), settings.gpu_hz_max, now);
    }
    if let (Some(pwm), true) = (settings.fan_pwm, readings.fan.is_some()) {
        add("sys/devices/pwm-fan/temp_control".to_owned(), "0".to_owned());
        add("sys/devices/pwm-fan/target_pwm".to_owned(), pwm.min(255).to_string());
    }
    wanted
}

/// The two files of a clock whose maximum is wanted. The minimum goes to the lowest step, which the
/// governor of the kernel needs to save anything.
fn clock(
    add: &mut impl FnMut(String, String),
    (min_path, max_path): (String, String),
    low: Option<u64>,
    max: u64,
    (min_now, max_now): (Option<u64>, Option<u64>),
) {
    let low = low.or(min_now).unwrap_or(max).min(max);
    let is_rising = max_now.is_none_or(|now| max > now);
    let (first, second) = ((min_path, low.to_string()), (max_path, max.to_string()));
    let (first, second) = if is_rising { (second, first) } else { (first, second) };
    add(first.0, first.1);
    add(second.0, second.1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::sensors::Sensors;
    use crate::power::tests::trees::{nano, put};
    use std::collections::BTreeMap;

    const GPU: &str = "sys/devices/gpu.0/devfreq/57000000.gpu";

    struct Bench {
        root: tempfile::TempDir,
        state: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { root: nano(), state: tempfile::tempdir().unwrap() }
        }

        fn actuator(&self) -> Actuator {
            Actuator::new(self.root.path(), self.state.path(), Owner::Service)
        }

        fn text(&self, path: &str) -> String {
            Sysfs::new(self.root.path()).text(path).unwrap()
        }

        fn slow(&self) -> Vec<Change> {
            let settings = Settings {
                cpu_khz_max: 918_000,
                gpu_hz_max: 614_400_000,
                n_core: Some(2),
                fan_pwm: Some(77),
            };
            let readings = Sensors::open(self.root.path()).read();
            self.actuator().changes(&plan(&settings, &readings)).unwrap()
        }

        /// Every file that may be set, and what stands there.
        fn all(&self) -> BTreeMap<String, String> {
            let paths = self.slow().into_iter().map(|change| change.path);
            paths
                .chain([SWAPPINESS.to_owned()])
                .map(|path| (path.clone(), self.text(&path)))
                .collect()
        }
    }

    #[test]
    fn what_is_set_is_taken_back() {
        let bench = Bench::new();
        let before = bench.all();
        let slow = bench.slow();
        let lines: Vec<String> = slow.iter().map(|c| format!("{} {}", c.path, c.value)).collect();
        let expected = [
            format!("{CPU}/cpu2/online 0"),
            format!("{CPU}/cpu3/online 0"),
            format!("{CPU}/cpu0/cpufreq/scaling_max_freq 918000"),
            format!("{GPU}/max_freq 614400000"),
            "sys/devices/pwm-fan/temp_control 0".to_owned(),
            "sys/devices/pwm-fan/target_pwm 77".to_owned(),
        ];
        assert_eq!(lines, expected, "what stands right already is not written");
        bench.actuator().apply(&slow).unwrap();
        assert_eq!(bench.text(&format!("{GPU}/max_freq")), "614400000");
        assert_eq!(bench.slow(), [], "nothing is left to do");
        let again = [(format!("{GPU}/max_freq"), "76800000".to_owned())];
        let again = bench.actuator().changes(&again).unwrap();
        bench.actuator().apply(&again).unwrap();
        assert_eq!(bench.actuator().pending().unwrap().len(), 6, "each file once");
        let done = bench.actuator().revert().unwrap().done;
        assert_eq!(done.len(), 6);
        assert!(done.iter().any(|change| change.before == "76800000"), "as it stood: {done:?}");
        assert_eq!(bench.slow().len(), 6);
        assert_eq!(bench.all(), before);
        assert_eq!(bench.actuator().revert().unwrap(), Reverted::default(), "once");
    }

    #[test]
    fn a_crash_after_any_write_leaves_the_way_back() {
        for n_written in 0..=6 {
            let bench = Bench::new();
            let (before, slow) = (bench.all(), bench.slow());
            let actuator = bench.actuator();
            let journal = Journal { boot: actuator.boot().unwrap(), changes: slow.clone() };
            actuator.keep(&journal).unwrap();
            for change in &slow[..n_written] {
                actuator.write(&change.path, &change.value).unwrap();
            }
            bench.actuator().revert().unwrap();
            assert_eq!(bench.all(), before, "after {n_written} writes");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_way_back() {
        let bench = Bench::new();
        let (before, slow) = (bench.all(), bench.slow());
        let gpu = bench.root.path().join(format!("{GPU}/max_freq"));
        std::fs::remove_file(&gpu).unwrap();
        std::fs::create_dir(&gpu).unwrap();
        let error = bench.actuator().apply(&slow).unwrap_err();
        assert!(matches!(error, ApplyError::Write { .. }), "{error}");
        assert_eq!(bench.text(&format!("{CPU}/cpu3/online")), "0");
        assert_eq!(bench.text("sys/devices/pwm-fan/target_pwm"), "77", "those behind it too");
        assert!(bench.actuator().revert().is_err(), "kept for another try");
        assert_eq!(bench.text(&format!("{CPU}/cpu3/online")), "1", "the others are back");
        std::fs::remove_dir(&gpu).unwrap();
        put(bench.root.path(), &format!("{GPU}/max_freq"), b"921600000\n");
        bench.actuator().revert().unwrap();
        assert_eq!(bench.all(), before);
    }

    #[test]
    fn nothing_else_is_ever_written() {
        let bench = Bench::new();
        let refused = |path: &str, value: &str| {
            let change = Change { path: path.into(), before: "0".into(), value: value.into() };
            bench.actuator().apply(&[change]).unwrap_err()
        };
        for path in [
            "etc/passwd",
            "/sys/devices/gpu.0/devfreq/57000000.gpu/max_freq",
            "sys/devices/gpu.0/devfreq/../../x/max_freq",
            "sys/devices/gpu.0/devfreq/..min_freq",
            "sys/devices/system/cpu/cpu0/online",
            "sys/devices/system/cpu/cpu+1/online",
            "sys/devices/system/cpu/cpu1/../../../../etc/passwd",
            "sys/class/devfreq/a/b/max_freq",
            "sys/block/sda/mem_limit",
        ] {
            assert!(matches!(refused(path, "1"), ApplyError::Refused { .. }), "{path}");
        }
        for value in ["2", "-1", "+1", "", "1; reboot", "1\n1"] {
            let error = refused("sys/devices/system/cpu/cpu1/online", value);
            assert!(matches!(error, ApplyError::Value { .. }), "{value:?}");
        }
        assert!(!bench.state.path().join("power.journal.json").exists());
    }

    #[test]
    fn a_journal_that_somebody_changed_writes_nothing_else() {
        let bench = Bench::new();
        let file = bench.state.path().join("power.journal.json");
        let boot = bench.text(BOOT);
        let entry = |path: &str, before: &str| {
            format!(r#"{{"path":"{path}","before":"{before}","value":"918000"}}"#)
        };
        let max = format!("{CPU}/cpu0/cpufreq/scaling_max_freq");
        put(bench.root.path(), &max, b"918000\n");
        let entries = [entry(&max, "1326000"), entry(&max, "-1"), entry("etc/passwd", "1")];
        let changes = entries.join(",");
        std::fs::write(&file, format!(r#"{{"boot":"{boot}","changes":[{changes}]}}"#)).unwrap();
        let told = bench.actuator().revert().unwrap();
        assert_eq!((told.done.len(), told.left.len()), (1, 2), "{told:?}");
        assert!(told.left[0].contains("etc/passwd") && told.left[1].contains("-1"), "{told:?}");
        assert!(!bench.root.path().join("etc/passwd").exists());
        assert_eq!(bench.text(&max), "1326000", "the others go on");
        for text in ["", "{}", "[", "\0\0"] {
            std::fs::write(&file, text).unwrap();
            let error = bench.actuator().revert().unwrap_err();
            assert!(matches!(error, ApplyError::NoJournal { .. }), "{text:?}");
            assert!(matches!(
                bench.actuator().apply(&bench.slow()),
                Err(ApplyError::NoJournal { .. })
            ));
        }
    }

    #[test]
    fn the_journal_of_another_boot_is_over() {
        let bench = Bench::new();
        bench.actuator().apply(&bench.slow()).unwrap();
        put(bench.root.path(), BOOT, b"another\n");
        put(bench.root.path(), SWAPPINESS, b"99\n");
        assert_eq!(bench.actuator().pending().unwrap(), []);
        assert_eq!(bench.actuator().revert().unwrap(), Reverted::default());
        assert_eq!(bench.text(&format!("{GPU}/max_freq")), "614400000", "as it booted");
    }

    #[test]
    fn what_somebody_else_set_since_is_left_to_him() {
        let bench = Bench::new();
        let max = format!("{GPU}/max_freq");
        for (is_same_process, theirs) in [(true, "768000000"), (false, "691200000")] {
            let actuator = bench.actuator();
            actuator.apply(&bench.slow()).unwrap();
            put(bench.root.path(), &max, theirs.as_bytes());
            let actuator = if is_same_process { actuator } else { bench.actuator() };
            let told = actuator.revert().unwrap();
            assert_eq!((told.done.len(), told.left.len()), (5, 1), "{told:?}");
            assert_eq!(bench.text(&max), theirs);
        }
    }

    #[test]
    fn two_owners_leave_each_others_files_alone() {
        let bench = Bench::new();
        let person = Actuator::new(bench.root.path(), bench.state.path(), Owner::Tune);
        let before = bench.all();
        bench.actuator().apply(&bench.slow()).unwrap();
        let wanted = [(format!("{GPU}/max_freq"), "76800000".to_owned())];
        let faster = person.changes(&wanted).unwrap();
        let error = person.apply(&faster).unwrap_err();
        assert!(error.to_string().contains("set by the service; stop it"), "{error}");
        let swappiness = person.changes(&[(SWAPPINESS.to_owned(), "10".to_owned())]).unwrap();
        person.apply(&swappiness).unwrap();
        bench.actuator().revert().unwrap();
        person.apply(&person.changes(&wanted).unwrap()).unwrap();
        let error = bench.actuator().apply(&bench.slow()).unwrap_err();
        assert!(error.to_string().contains("sudo jetforge tune --revert"), "{error}");
        person.revert().unwrap();
        assert_eq!(bench.all(), before);
    }

    #[test]
    fn a_journal_that_cannot_be_kept_stops_only_what_is_new() {
        let bench = Bench::new();
        let slow = bench.slow();
        let (known, new) = slow.split_at(3);
        bench.actuator().apply(known).unwrap();
        let file = bench.state.path().join("power.journal.json");
        let text = std::fs::read(&file).unwrap();
        // A folder stands where the new journal would be written.
        std::fs::create_dir(bench.state.path().join("power.journal.new")).unwrap();
        let max = format!("{CPU}/cpu0/cpufreq/scaling_max_freq");
        let to = |khz: &str| bench.actuator().changes(&[(max.clone(), khz.to_owned())]).unwrap();
        let lower = to("306000");
        let error = bench.actuator().apply(&[&lower[..], new].concat()).unwrap_err();
        assert!(matches!(error, ApplyError::Journal { .. }), "{error}");
        assert_eq!(bench.text(&max), "306000", "a cap is set on a full disk");
        assert_eq!(bench.text(&new[0].path), new[0].before);
        assert_eq!(std::fs::read(&file).unwrap(), text);
        std::fs::remove_dir(bench.state.path().join("power.journal.new")).unwrap();
        bench.actuator().apply(&to("408000")).unwrap();
        std::fs::create_dir(bench.state.path().join("power.journal.new")).unwrap();
        bench.actuator().apply(&to("510000")).expect("a known file needs no new journal");
        assert_eq!(bench.text(&max), "510000");
    }

    #[test]
    fn a_boot_that_is_not_known_is_no_other_and_not_the_same() {
        let bench = Bench::new();
        let before = bench.all();
        std::fs::remove_file(bench.root.path().join(BOOT)).unwrap();
        bench.actuator().apply(&bench.slow()).unwrap();
        let again = [(format!("{GPU}/max_freq"), "76800000".to_owned())];
        bench.actuator().apply(&bench.actuator().changes(&again).unwrap()).unwrap();
        let told = bench.actuator().revert().unwrap();
        assert_eq!((told.done.len(), told.left.len()), (5, 1), "{told:?}");
        let fan = "sys/devices/pwm-fan/target_pwm".to_owned();
        assert_eq!(bench.all()[&fan], before[&fan]);
    }

    #[test]
    fn a_minimum_never_stands_above_its_maximum() {
        let order = |min: u64, max_now: u64, max: u64| {
            let mut paths = Vec::new();
            let now = (Some(min), Some(max_now));
            let names = ("min".to_owned(), "max".to_owned());
            clock(&mut |path, value| paths.push((path, value)), names, Some(10), max, now);
            paths.iter().map(|(path, value)| format!("{path} {value}")).collect::<Vec<_>>()
        };
        assert_eq!(order(50, 50, 80), ["max 80", "min 10"]);
        assert_eq!(order(50, 80, 20), ["min 10", "max 20"]);
    }
}
