//! Settings of the system that the appliance profits from, beside those that the governor moves.
//!
//! ```text
//! power mode     NVIDIA's 0 (all cores, all clocks), or 1 where the supply is of 5 W
//! clocks         the bounds of the mode, on steps that the clocks have
//! swappiness     10: weights stay, what nobody uses goes
//! zram           a quarter of the memory at most: swap in memory costs an A57 dearly
//! ```
//!
//! Everything here is undone by `revert`, and by a restart of the machine.

use super::board::Board;
use super::nvpmodel::{PowerMode, power_modes};
use super::profile::{Bounds, MODE_5W, Supply};
use super::sensors::Readings;
use super::sysfs::Sysfs;

/// What to write, and for a person to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Files from the root and what is to stand in them, in order.
    pub wanted: Vec<(String, String)>,
    /// What is left out and why, and what a person can do besides.
    pub notes: Vec<String>,
}

/// Kernel parameters for an appliance.
const SWAPPINESS: &str = "10";
const ZRAM_PARTS: u64 = 4;
/// The kernel rounds limits to pages; what stands there is to be what was written.
const PAGE: u64 = 4096;

/// The settings for a board as it was read.
pub fn tuning(sysfs: &Sysfs, board: &Board, readings: &Readings, supply: Supply) -> Tuning {
    let mut tuning = Tuning::default();
    if board.is_nano() {
        let id = u32::from(supply == Supply::Watts5);
        let modes = power_modes(sysfs);
        let mode = modes.iter().find(|mode| mode.id == id);
        tuning.mode(id, mode, readings);
        tuning.notes.push(format!("the mode for every boot: sudo nvpmodel -m {id}"));
    } else {
        tuning.notes.push(format!("{}: clocks and cores are left as they are", board.name()));
    }
    tuning.add("proc/sys/vm/swappiness", SWAPPINESS);
    let zram = sysfs.numbered("sys/block", "zram");
    if let (Some(total), false) = (readings.memory.total_bytes, zram.is_empty()) {
        // Each core may have one of its own, as NVIDIA's script makes them.
        let limit = total / ZRAM_PARTS / zram.len() as u64 / PAGE * PAGE;
        for (_, name) in zram {
            tuning.add(&format!("sys/block/{name}/mem_limit"), &limit.to_string());
        }
    }
    tuning
}

impl Tuning {
    fn add(&mut self, path: &str, value: &str) {
        self.wanted.push((path.to_owned(), value.to_owned()));
    }

    /// The files of a power mode: those of the machine's own description, else what is known.
    fn mode(&mut self, id: u32, mode: Option<&PowerMode>, readings: &Readings) {
        let Some(mode) = mode else {
            self.notes.push(format!("no nvpmodel.conf with mode {id}: its known values are used"));
            let bounds = if id == 1 { MODE_5W } else { Bounds::default() };
            let top_khz = readings.cpu.steps_khz.last().copied().unwrap_or(0);
            let gpu = readings.gpus.iter().find(|gpu| !gpu.devfreq.is_empty());
            let top_hz = gpu.and_then(|gpu| gpu.steps_hz.last().copied()).unwrap_or(0);
            let settings = super::governor::Settings {
                cpu_khz_max: at_most(&readings.cpu.steps_khz, bounds.cpu_khz_max)
                    .unwrap_or(top_khz),
                gpu_hz_max: gpu
                    .and_then(|gpu| at_most(&gpu.steps_hz, bounds.gpu_hz_max))
                    .unwrap_or(top_hz),
                n_core: bounds.n_core_max,
                fan_pwm: None,
            };
            self.wanted.extend(super::writes::plan(&settings, readings));
            return;
        };
        let n_before = self.wanted.len();
        for (path, value) in &mode.values {
            let steps = steps_of(path, readings);
            let is_clock = path.ends_with("_freq");
            let value = match (*value, is_clock) {
                (value, true) if value < 0 => steps.last().copied(),
                (value, true) => {
                    let within = at_most(&steps, Some(value.unsigned_abs()));
                    within.or(steps.first().copied())
                }
                (value, false) => u64::try_from(value).ok(),
            };
            // The first core has no switch, and what has no steps cannot be set.
            if let (Some(value), false) = (value, path.ends_with("cpu0/online")) {
                self.add(path, &value.to_string());
            }
        }
        order_clocks(&mut self.wanted[n_before..], readings);
    }
}

/// The highest step that is not above a bound; `None` for no bound, or no step below it.
fn at_most<T: Copy + Ord>(steps: &[T], bound: Option<T>) -> Option<T> {
    steps.iter().copied().filter(|step| bound.is_some_and(|bound| *step <= bound)).max()
}

/// The clocks that a file of bounds can take.
fn steps_of(path: &str, readings: &Readings) -> Vec<u64> {
    if path.contains("/cpufreq/") {
        return readings.cpu.steps_khz.iter().map(|khz| u64::from(*khz)).collect();
    }
    let gpu = readings.gpus.iter().find(|gpu| path.starts_with(&gpu.devfreq));
    gpu.map(|gpu| gpu.steps_hz.clone()).unwrap_or_default()
}

/// Puts the minimum of a clock before its maximum where that falls, and behind it where it rises.
fn order_clocks(wanted: &mut [(String, String)], readings: &Readings) {
    for i in 0..wanted.len() {
        let Some(stem) = wanted[i].0.strip_suffix("max_freq").map(str::to_owned) else { continue };
        let min = format!("{stem}min_freq");
        let Some(j) = wanted.iter().position(|(path, _)| *path == min) else { continue };
        let now = match stem.contains("/cpufreq/") {
            true => readings.cpu.cores.first().and_then(|core| core.max_khz).map(u64::from),
            false => readings.gpus.first().and_then(|gpu| gpu.max_hz),
        };
        let value: u64 = wanted[i].1.parse().unwrap_or(0);
        let is_rising = now.is_none_or(|now| value > now);
        if is_rising == (j < i) {
            wanted.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::nvpmodel::tests::CONF;
    use super::*;
    use crate::power::apply::{Actuator, Owner};
    use crate::power::sensors::Sensors;
    use crate::power::tests::trees::{PC, nano, put, tree};

    fn lines(dir: &tempfile::TempDir, supply: Supply) -> (Vec<String>, Vec<String>) {
        let mut sensors = Sensors::open(dir.path());
        let readings = sensors.read();
        let tuning = tuning(&Sysfs::new(dir.path()), sensors.board(), &readings, supply);
        let actuator = Actuator::new(dir.path(), dir.path(), Owner::Tune);
        let changes = actuator.changes(&tuning.wanted).unwrap();
        let line =
            |c: &crate::power::apply::Change| format!("{} {}->{}", c.path, c.before, c.value);
        (changes.iter().map(line).collect(), tuning.notes)
    }

    #[test]
    fn a_nano_gets_the_mode_of_its_supply() {
        let dir = nano();
        let known = lines(&dir, Supply::Watts5).0;
        put(dir.path(), "etc/nvpmodel.conf", CONF.as_bytes());
        put(dir.path(), "sys/block/zram0/mm_stat", b"0 0 0 0 0 0 0\n");
        put(dir.path(), "sys/block/zram0/mem_limit", b"");
        let (read, notes) = lines(&dir, Supply::Watts5);
        let expected = [
            "sys/devices/system/cpu/cpu2/online 1->0",
            "sys/devices/system/cpu/cpu3/online 1->0",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq 1428000->918000",
            "sys/devices/gpu.0/devfreq/57000000.gpu/max_freq 921600000->614400000",
            "sys/kernel/nvpmodel_emc_cap/emc_iso_cap 0->1600000000",
            "proc/sys/vm/swappiness 60->10",
            "sys/block/zram0/mem_limit 0->1039187968",
        ];
        assert_eq!(read, expected);
        assert_eq!(known[..4], expected[..4], "without the file, the same");
        assert_eq!(notes, ["the mode for every boot: sudo nvpmodel -m 1"]);
        let (full, notes) = lines(&dir, Supply::Watts10);
        assert_eq!(full, [expected[5], expected[6]], "all cores and clocks are there already");
        assert_eq!(notes, ["the mode for every boot: sudo nvpmodel -m 0"]);
    }

    #[test]
    fn bounds_that_rise_and_fall_are_in_order() {
        let dir = nano();
        put(dir.path(), "etc/nvpmodel.conf", CONF.as_bytes());
        let gpu = "sys/devices/gpu.0/devfreq/57000000.gpu";
        put(dir.path(), &format!("{gpu}/min_freq"), b"614400000\n");
        put(dir.path(), &format!("{gpu}/max_freq"), b"614400000\n");
        let of_gpu = |supply| {
            let (lines, _) = lines(&dir, supply);
            let lines = lines.into_iter().filter(|line| line.starts_with(gpu));
            lines.map(|line| line[gpu.len() + 1..].to_owned()).collect::<Vec<_>>()
        };
        let rising = ["max_freq 614400000->921600000", "min_freq 614400000->76800000"];
        assert_eq!(of_gpu(Supply::Barrel), rising);
        assert_eq!(of_gpu(Supply::Watts5), ["min_freq 614400000->76800000"]);
    }

    #[test]
    fn a_pc_keeps_its_clocks() {
        let dir = tree(PC);
        put(dir.path(), "proc/sys/vm/swappiness", b"60\n");
        let (changes, notes) = lines(&dir, Supply::Any);
        assert_eq!(changes, ["proc/sys/vm/swappiness 60->10"]);
        assert!(notes[0].contains("left as they are"), "{notes:?}");
    }
}
