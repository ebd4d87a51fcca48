//! The keeper on a folder of files: what it sets, and that all of it is taken back.

use std::path::Path;

use super::trees::{PC, nano, put, tree};
use crate::power::config::PowerConfig;
use crate::power::governor::{EngineView, Phase};
use crate::power::keeper::{Keeper, choose, chosen};
use crate::power::profile::{Compute, Profile, Tier};
use crate::power::sysfs::Sysfs;

const MAX: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq";

fn open(root: &Path, state: &Path) -> Keeper {
    let config = PowerConfig { set_clocks: true, idle_after_s: 5, ..PowerConfig::default() };
    Keeper::open(root, state, config).unwrap()
}

fn idle(keeper: &mut Keeper, seconds: std::ops::Range<u64>) {
    let view = EngineView { compute: Compute::Cpu, ..EngineView::default() };
    seconds.for_each(|s| drop(keeper.look(&view, s * 1000)));
}

const WORK: EngineView = EngineView {
    phase: Phase::Prefill,
    compute: Compute::Cpu,
    model: 1,
    n_decoded: 0,
    n_sequence: 1,
    n_interactive: 1,
};

#[test]
fn idle_goes_down_a_request_goes_up_and_stop_goes_back() {
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    let max = || Sysfs::new(root.path()).number(MAX).unwrap();
    let mut keeper = open(root.path(), state.path());
    idle(&mut keeper, 1..10);
    assert_eq!(max(), 306_000, "the lowest clock that is worth computing at");
    keeper.look(&WORK, 10_000);
    assert_eq!((max(), keeper.trouble()), (1_428_000, None), "raised before prefill");
    idle(&mut keeper, 11..60);
    assert_eq!(max(), 306_000);
    keeper.stop().unwrap();
    assert_eq!(max(), 1_428_000);
}

#[test]
fn the_gpu_keeps_its_clock_until_it_is_known_that_it_only_rests() {
    const GPU_MAX: &str = "sys/devices/gpu.0/devfreq/57000000.gpu/max_freq";
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    let clocks = || [MAX, GPU_MAX].map(|path| Sysfs::new(root.path()).number(path).unwrap());
    let mut keeper = open(root.path(), state.path());
    let by = |compute| EngineView { compute, ..WORK };
    keeper.look(&by(Compute::Auto), 1000);
    assert_eq!(clocks(), [1_428_000, 921_600_000], "a model that is being loaded");
    keeper.look(&by(Compute::Gpu), 2000);
    assert_eq!(clocks(), [918_000, 921_600_000], "cores that feed it");
    keeper.look(&by(Compute::Auto), 3000);
    assert_eq!(clocks(), [918_000, 921_600_000], "who said nothing now said it before");
    keeper.look(&by(Compute::Both), 4000);
    assert_eq!(clocks(), [1_428_000, 921_600_000]);
    keeper.look(&by(Compute::Cpu), 5000);
    assert_eq!(clocks(), [1_428_000, 76_800_000]);
    let config = PowerConfig { compute: Compute::Gpu, set_clocks: true, ..PowerConfig::default() };
    keeper.configure(config).unwrap();
    keeper.look(&by(Compute::Cpu), 6000);
    assert_eq!(clocks(), [918_000, 921_600_000], "whatever the engines say");
    keeper.stop().unwrap();
    assert_eq!(clocks(), [1_428_000, 921_600_000]);
}

#[test]
fn what_a_crash_left_is_taken_back_at_the_next_start() {
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    put(root.path(), MAX, b"1326000\n");
    let max = || Sysfs::new(root.path()).number(MAX).unwrap();
    let mut keeper = open(root.path(), state.path());
    idle(&mut keeper, 1..10);
    drop(keeper);
    assert_eq!(max(), 306_000, "nobody took it back");
    let config = PowerConfig::default();
    let mut keeper = Keeper::open(root.path(), state.path(), config).unwrap();
    assert_eq!(max(), 1_326_000);
    idle(&mut keeper, 1..100);
    assert_eq!(max(), 1_326_000, "nothing is set unless the owner allows it");
}

#[test]
fn a_profile_is_chosen_while_it_runs() {
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    let mut keeper = open(root.path(), state.path());
    assert_eq!(keeper.look(&WORK, 1000).tier, Tier::Balanced);
    choose(state.path(), Some(Profile::Eco)).unwrap();
    assert_eq!(keeper.look(&WORK, 2000).tier, Tier::Eco);
    assert_eq!(Sysfs::new(root.path()).number(MAX), Ok(918_000));
    assert!(!keeper.look(&WORK, 2500).pace.background, "no jobs in a chosen eco");
    put(state.path(), "power.profile", b"turbo");
    assert_eq!(chosen(state.path()), None);
    assert_eq!(keeper.look(&WORK, 3000).tier, Tier::Balanced, "nonsense is no choice");
    choose(state.path(), None).unwrap();
    choose(state.path(), None).unwrap();
}

#[test]
fn a_board_that_takes_no_settings_is_paced_all_the_same() {
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    std::fs::remove_file(root.path().join(MAX)).unwrap();
    std::fs::create_dir(root.path().join(MAX)).unwrap();
    put(root.path(), "sys/devices/pwm-fan/target_pwm", b"0\n");
    std::fs::write(state.path().join("power.journal.json"), "nonsense").unwrap();
    let mut keeper = open(root.path(), state.path());
    assert!(keeper.trouble().unwrap().contains("no journal of jetforge"));
    put(root.path(), "sys/class/thermal/thermal_zone0/temp", b"92000\n");
    assert_eq!(keeper.look(&WORK, 1000).pace.duty_permille, 0);
    assert!(keeper.trouble().is_some());
}

#[test]
fn what_could_not_be_set_is_tried_again() {
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    let mut keeper = open(root.path(), state.path());
    let gpu = "sys/devices/gpu.0/devfreq/57000000.gpu/max_freq";
    let other = state.path().join("tune.journal.json");
    let boot = "5d3ac43d-1d5f-4b4a-9d3c-0a62a0f6a0aa";
    let held = format!(r#"[{{"path":"{gpu}","before":"921600000","value":"1"}}]"#);
    std::fs::write(&other, format!(r#"{{"boot":"{boot}","changes":{held}}}"#)).unwrap();
    let max = || Sysfs::new(root.path()).number(MAX).unwrap();
    idle(&mut keeper, 1..10);
    assert!(keeper.trouble().unwrap().contains("jetforge tune"));
    assert_eq!(max(), 1_428_000);
    std::fs::remove_file(&other).unwrap();
    idle(&mut keeper, 10..30);
    assert_eq!((max(), keeper.trouble()), (306_000, None));
}

#[test]
fn a_pc_is_left_as_it_is() {
    let (root, state) = (tree(PC), tempfile::tempdir().unwrap());
    let mut keeper = open(root.path(), state.path());
    idle(&mut keeper, 1..100);
    assert_eq!(Sysfs::new(root.path()).number("sys/devices/system/cpu/cpu1/online"), Ok(0));
    assert!(!state.path().join("power.journal.json").exists());
}

#[test]
fn what_was_measured_is_known_at_the_next_start() {
    let (root, state) = (nano(), tempfile::tempdir().unwrap());
    let mut keeper = open(root.path(), state.path());
    let decode = |s: u64| EngineView { phase: Phase::Decode, n_decoded: s * 20, ..WORK };
    (1..200).for_each(|s| drop(keeper.look(&decode(s), s * 1000)));
    keeper.stop().unwrap();
    drop(keeper);
    let mut keeper = open(root.path(), state.path());
    let level = |keeper: &mut Keeper, s: u64| keeper.look(&decode(s), s * 1000).level_idx;
    level(&mut keeper, 1);
    assert_eq!((level(&mut keeper, 2), level(&mut keeper, 3)), (0, 0), "any clock is as fast");
    put(state.path(), "power.calibrations.json", b"{\"x\": [1]}");
    open(root.path(), state.path());
}
