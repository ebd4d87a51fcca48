//! The only file that writes to the board: a list of small files and what is to stand in them.
//!
//! ```text
//! Settings -> plan -> [path, value] -> journal (what stands there now, fsync) -> write
//! stop, or the next start after a crash: journal, last first -> write back -> journal gone
//! ```
//!
//! Nothing is written that the journal does not hold first, so a crash at any moment leaves enough
//! behind to go back. A path is written only if it is one of a short list of forms, also when it
//! comes from the journal: a journal that somebody changed cannot make root write elsewhere. What
//! stands in these files is gone after a restart of the machine, and so is a journal of another
//! boot.
//!
//! Minimum and maximum of a clock go in the order in which the kernel never sees the one above the
//! other; backwards, the same order is right again.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

/// One file and what is to stand in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The file, from the root, without a slash before it.
    pub path: String,
    /// What stands there now.
    pub before: String,
    /// What is to stand there.
    pub value: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    /// The kernel's name for this boot.
    boot: String,
    changes: Vec<Change>,
}

/// Sets the board, and knows the way back.
#[derive(Debug)]
pub struct Actuator {
    sysfs: Sysfs,
    journal: PathBuf,
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
    /// Sets the trees under `root`, and keeps the journal of this name in the directory of states.
    pub fn new(root: &Path, state_dir: &Path, name: &str) -> Actuator {
        let journal = state_dir.join(format!("{name}.journal.json"));
        Actuator { sysfs: Sysfs::new(root), journal }
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

    /// Writes the changes, each one's former value being in the journal first. If one fails, those
    /// before it stand, and [`Actuator::revert`] takes them back.
    ///
    /// # Errors
    /// A change that is not allowed, a journal that cannot be kept, or a file that takes no value.
    pub fn apply(&self, changes: &[Change]) -> Result<(), ApplyError> {
        for change in changes {
            check(&change.path, &change.value)?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut journal =
            self.read()?.unwrap_or(Journal { boot: self.boot(), changes: Vec::new() });
        if journal.boot != self.boot() {
            journal = Journal { boot: self.boot(), changes: Vec::new() };
        }
        for change in changes {
            // What stood there first is what counts, however often it is set since.
            match journal.changes.iter_mut().find(|old| old.path == change.path) {
                Some(old) => old.value.clone_from(&change.value),
                None => journal.changes.push(change.clone()),
            }
        }
        if journal.changes.len() > POWER_WRITES_MAX {
            return Err(ApplyError::TooMany { n_write: journal.changes.len() });
        }
        self.keep(&journal)?;
        changes.iter().try_for_each(|change| self.write(&change.path, &change.value))
    }

    /// Writes back what stood there before the first change, last first, and says what it wrote.
    /// Without a journal there is nothing to do. A file that is gone by now is left out; one that
    /// takes nothing keeps the journal for another try, after the others.
    ///
    /// # Errors
    /// A journal that cannot be read or is none, and the first file that could not be written.
    pub fn revert(&self) -> Result<Vec<Change>, ApplyError> {
        let Some(journal) = self.read()? else { return Ok(Vec::new()) };
        let (mut done, mut failed) = (Vec::new(), None);
        let is_ours = journal.boot == self.boot();
        let changes: Vec<Change> = journal.changes.into_iter().rev().filter(|_| is_ours).collect();
        for change in &changes {
            check(&change.path, &change.before)?;
            // Once before it counts: a minimum may be above a maximum that is still to come.
            let _ = self.write(&change.path, &change.before);
        }
        for Change { path, before, value } in changes {
            match self.write(&path, &before) {
                Ok(()) => done.push(Change { path, before: value, value: before }),
                Err(ApplyError::Write { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => self.forget().map(|()| done),
        }
    }

    /// What the journal holds: what would be written back.
    ///
    /// # Errors
    /// As [`Actuator::revert`].
    pub fn pending(&self) -> Result<Vec<Change>, ApplyError> {
        let boot = self.boot();
        let journal = self.read()?.filter(|journal| journal.boot == boot);
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

    fn boot(&self) -> String {
        self.sysfs.text(BOOT).unwrap_or_default()
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

    /// Writes the journal beside its place and moves it there, so that it is always whole.
    fn keep(&self, journal: &Journal) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Journal { path: self.journal.clone(), source };
        let dir = self.journal.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(failed)?;
        let text = serde_json::to_vec(journal).map_err(|error| failed(error.into()))?;
        let beside = self.journal.with_extension("new");
        let mut file = File::create(&beside).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&beside, &self.journal).map_err(failed)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
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
            Actuator::new(self.root.path(), self.state.path(), "power")
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
        assert_eq!(bench.actuator().revert().unwrap().len(), 6);
        assert_eq!(bench.slow().len(), 6);
        assert_eq!(bench.all(), before);
        assert_eq!(bench.actuator().revert().unwrap(), [], "once");
    }

    #[test]
    fn a_crash_after_any_write_leaves_the_way_back() {
        for n_written in 0..=6 {
            let bench = Bench::new();
            let (before, slow) = (bench.all(), bench.slow());
            let actuator = bench.actuator();
            let journal = Journal { boot: actuator.boot(), changes: slow.clone() };
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
        let entry = |path: &str| {
            let changes = format!(r#"[{{"path":"{path}","before":"1","value":"0"}}]"#);
            std::fs::write(&file, format!(r#"{{"boot":"{boot}","changes":{changes}}}"#)).unwrap();
            bench.actuator().revert().unwrap_err()
        };
        assert!(matches!(entry("etc/passwd"), ApplyError::Refused { .. }));
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
        assert_eq!(bench.actuator().revert().unwrap(), []);
        assert_eq!(bench.text(&format!("{GPU}/max_freq")), "614400000", "as it booted");
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
