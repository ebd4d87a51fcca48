//! The files of a board as they stand after settings, failures, crashes and other hands.

use super::*;
use crate::power::governor::Settings;
use crate::power::sensors::Sensors;
use crate::power::tests::trees::{nano, put};
use crate::power::writes::{CPU, SWAPPINESS, plan};
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
        paths.chain([SWAPPINESS.to_owned()]).map(|path| (path.clone(), self.text(&path))).collect()
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
        assert!(matches!(bench.actuator().apply(&bench.slow()), Err(ApplyError::NoJournal { .. })));
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
    // The folder by a name so long that the file beside the journal has none: nothing is kept.
    std::fs::create_dir(bench.state.path().join("x")).unwrap();
    let mut far = bench.state.path().to_owned();
    while far.as_os_str().len() + "/x/../power.journal.json".len() < 4096 {
        far.push("x/..");
    }
    let full = Actuator::new(bench.root.path(), &far, Owner::Service);
    let max = format!("{CPU}/cpu0/cpufreq/scaling_max_freq");
    let to = |khz: &str| bench.actuator().changes(&[(max.clone(), khz.to_owned())]).unwrap();
    let lower = to("306000");
    let error = full.apply(&[&lower[..], new].concat()).unwrap_err();
    assert!(matches!(error, ApplyError::Journal { .. }), "{error}");
    assert_eq!(bench.text(&max), "306000", "a cap is set on a full disk");
    assert_eq!(bench.text(&new[0].path), new[0].before);
    assert_eq!(std::fs::read(&file).unwrap(), text);
    bench.actuator().apply(&to("408000")).unwrap();
    full.apply(&to("510000")).expect("a known file needs no new journal");
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
