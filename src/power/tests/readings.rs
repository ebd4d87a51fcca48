//! Readings of each board, and of boards whose files hold nonsense or vanish.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::trees::{NANO_2GB, ORIN, PC, nano, put, tree};
use crate::power::sensors::{Readings, Sensors};

fn reasons(readings: &Readings) -> Vec<String> {
    readings.absent.iter().map(|a| format!("{}: {}", a.source, a.reason)).collect()
}

#[test]
fn a_nano_tells_everything() {
    let dir = nano();
    let mut sensors = Sensors::open(dir.path());
    let r = sensors.read();
    assert_eq!(reasons(&r), [] as [String; 0]);
    assert_eq!(r.cpu.cores.len(), 4);
    assert_eq!(r.cpu.cores[3].khz, Some(1_428_000));
    assert_eq!(r.cpu.cores[0].governor.as_deref(), Some("schedutil"));
    assert_eq!((r.cpu.steps_khz.len(), r.cpu.steps_khz[0]), (14, 102_000));
    assert_eq!((r.cpu.load, r.cpu.load_average), (None, Some(1.25)));
    let gpu = &r.gpus[0];
    assert_eq!((gpu.name.as_str(), gpu.hz), ("57000000.gpu", Some(921_600_000)));
    assert_eq!((gpu.load, gpu.is_railgated, gpu.steps_hz.len()), (Some(0.87), Some(false), 12));
    assert_eq!((r.emc.khz, r.emc.load), (Some(1_600_000), Some(0.25)));
    assert_eq!(r.hottest_mc(), Some(45_500), "neither PMIC-Die's 100 degrees nor the estimate");
    assert_eq!(r.throttle_at_mc(), Some(97_000));
    let rails: Vec<_> = r.rails.iter().map(|rail| (rail.name.as_str(), rail.mw)).collect();
    let expected = [("POM_5V_IN", 4099), ("POM_5V_GPU", 501), ("POM_5V_CPU", 800)];
    assert_eq!(rails, expected.map(|(name, mw)| (name, Some(mw))));
    assert_eq!((r.rails[0].mv, r.rails[0].ma, r.board_mw()), (Some(5024), Some(816), Some(4099)));
    let fan = r.fan.clone().unwrap();
    assert_eq!((fan.pwm, fan.target_pwm, fan.is_automatic), (Some(118), Some(120), Some(true)));
    assert_eq!(r.throttle.n_over_current, Some(1));
    assert!(!r.throttle.is_throttled(), "a fan that turns is no throttling");
    assert_eq!(r.memory.gpu_bytes, Some(80 << 20));
    put(dir.path(), "proc/stat", b"cpu  150 0 100 725 125 0 0 0 0 0\n");
    put(dir.path(), "sys/class/thermal/cooling_device1/cur_state", b"3\n");
    let mut log = fs::OpenOptions::new().append(true).open(dir.path().join("dev/kmsg")).unwrap();
    std::io::Write::write_all(&mut log, b"4,3,3,-;soctherm: OC ALARM 0x00000001\n4,4").unwrap();
    let r = sensors.read();
    assert_eq!((r.cpu.load, r.throttle.n_over_current), (Some(0.5), Some(2)));
    assert!(r.throttle.is_throttled());
}

#[test]
fn what_a_board_does_not_have_is_said_by_name() {
    let r = Sensors::open(tree(NANO_2GB).path()).read();
    let absent = reasons(&r);
    for line in [
        "cpu: no sys/devices/system/cpu/cpu*",
        "gpu: no device that sysfs shows",
        "power rails: no INA3221",
        "fan: none that sysfs shows",
        "over-current count: no log of the kernel",
        "memory of the gpu: not told",
    ] {
        assert!(absent.iter().any(|a| a == line), "{line} in {absent:#?}");
    }
    assert_eq!((r.hottest_mc(), r.board_mw()), (None, None));
    assert_eq!(r.memory.total_bytes, Some(2_026_496 << 10));
}

#[test]
fn newer_kernels_and_pcs_have_other_files() {
    let r = Sensors::open(tree(ORIN).path()).read();
    assert_eq!((r.board_mw(), r.rails[0].critical_ma), (Some(5200), Some(5000)));
    assert_eq!(r.throttle.n_over_current, Some(3));
    assert_eq!((r.gpus.len(), r.gpus[0].load), (1, Some(0.25)));
    let r = Sensors::open(tree(PC).path()).read();
    assert_eq!(r.hottest_mc(), Some(55_000));
    assert_eq!(r.counters[0].energy_uj, 123_456_789);
    assert_eq!(r.throttle.n_thermal, Some(5), "a package's count stands once, not for each core");
    assert!(r.cpu.cores[0].is_online && !r.cpu.cores[1].is_online);
    assert_eq!((r.fan.unwrap().rpm, r.gpus[0].load), (Some(1200), Some(0.4)));
}

#[test]
fn this_machine_can_be_read() {
    let mut sensors = Sensors::open(Path::new("/"));
    sensors.read();
    let readings = sensors.read();
    assert!(!readings.cpu.cores.is_empty() && readings.memory.total_bytes.is_some());
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found.sort();
    found
}

/// What a hostile file holds.
fn contents() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        Just(None),
        Just(Some(Vec::new())),
        Just(Some(vec![b'9'; 300 << 10])),
        Just(Some(b"-1\n".to_vec())),
        Just(Some(b"18446744073709551615\n".to_vec())),
        Just(Some(b"9223372036854775807 9223372036854775807".to_vec())),
        Just(Some(b"4294967295\n".to_vec())),
        Just(Some(b"nan\n".to_vec())),
        Just(Some("MemTotal: 18446744073709551615 kB\ncpu  1 2\n".into())),
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(Some),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any files of a Nano may hold anything or vanish, before the first reading or after it.
    #[test]
    fn nonsense_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), contents()), 1..40),
        is_late in any::<bool>(),
    ) {
        let dir = nano();
        let all = files(dir.path());
        let mut sensors = Sensors::open(dir.path());
        if is_late {
            sensors.read();
        }
        for (index, contents) in &changes {
            let path = &all[index.index(all.len())];
            match contents {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
        if !is_late {
            sensors = Sensors::open(dir.path());
        }
        let readings = sensors.read();
        prop_assert!(readings.hottest_mc().is_none_or(|mc| (-40_000..=150_000).contains(&mc)));
        prop_assert!(readings.cpu.load.is_none_or(|load| (0.0..=1.0).contains(&load)));
        prop_assert!(readings.gpus.iter().all(|g| g.load.is_none_or(|l| (0.0..=1.0).contains(&l))));
        serde_json::to_string(&readings).unwrap();
    }
}
