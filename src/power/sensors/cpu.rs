//! Cores: which are on, at what clock, under which governor, and how busy they are.
//!
//! `sys/devices/system/cpu/cpuN/{online,cpufreq/...}` in kHz (the kernel's
//! `admin-guide/pm/cpufreq`); `cpu0` has no `online` where it cannot be turned off. Load is what
//! `proc/stat` counted since the reading before (`filesystems/proc`): idle and iowait are the
//! fourth and fifth column.

use serde::Serialize;

use super::Gather;
use crate::base::limits::{POWER_CORES_MAX, POWER_STEPS_MAX};
use crate::power::sysfs::{Reason, Sysfs};

/// The processor.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuReading {
    /// Its cores in order.
    pub cores: Vec<CoreReading>,
    /// Clocks that it can take, in kHz, lowest first; none where the driver has no table.
    pub steps_khz: Vec<u32>,
    /// Share of the time since the last reading that cores were busy, 0 to 1.
    pub load: Option<f64>,
    /// The kernel's load average of a minute.
    pub load_average: Option<f64>,
}

/// One core.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CoreReading {
    /// Its number.
    pub core_idx: usize,
    /// Whether it runs.
    pub is_online: bool,
    /// Its clock now.
    pub khz: Option<u32>,
    /// The lowest that is allowed.
    pub min_khz: Option<u32>,
    /// The highest that is allowed.
    pub max_khz: Option<u32>,
    /// The kernel's governor of clocks.
    pub governor: Option<String>,
}

/// Counters of the reading before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    busy: u64,
    all: u64,
}

const CPU: &str = "sys/devices/system/cpu";

pub fn read(gather: &mut Gather<'_>, load: &mut Load) -> CpuReading {
    let numbers = gather.sysfs.numbered(CPU, "cpu");
    let cores: Vec<CoreReading> =
        numbers.iter().take(POWER_CORES_MAX).map(|(i, _)| core(gather.sysfs, *i)).collect();
    if cores.is_empty() {
        gather.miss("cpu", format!("no {CPU}/cpu*"));
    } else if cores.iter().all(|core| core.khz.is_none()) {
        let file = format!("{CPU}/cpu0/cpufreq/scaling_cur_freq");
        let why = gather.sysfs.small(&file).err().unwrap_or_default();
        gather.miss("cpu clock", why);
    }
    let steps = format!("{CPU}/cpu0/cpufreq/scaling_available_frequencies");
    let counters = gather.sysfs.text("proc/stat").and_then(|text| counters(&text));
    let now = gather.optional("cpu load", counters);
    let average = gather.sysfs.text("proc/loadavg").and_then(|text| first_number(&text));
    CpuReading {
        cores,
        steps_khz: steps_of(gather.sysfs, &steps),
        load: now.and_then(|now| load.since(now)),
        load_average: gather.optional("load average", average),
    }
}

fn core(sysfs: &Sysfs, core_idx: usize) -> CoreReading {
    let dir = format!("{CPU}/cpu{core_idx}");
    let clock = |name: &str| sysfs.small(&format!("{dir}/cpufreq/{name}")).ok();
    CoreReading {
        core_idx,
        is_online: sysfs.number(&format!("{dir}/online")) != Ok(0),
        khz: clock("scaling_cur_freq"),
        min_khz: clock("scaling_min_freq"),
        max_khz: clock("scaling_max_freq"),
        governor: sysfs.text(&format!("{dir}/cpufreq/scaling_governor")).ok(),
    }
}

/// A table of clocks, sorted; what is no number is left out.
pub fn steps_of<T: std::str::FromStr + Ord>(sysfs: &Sysfs, path: &str) -> Vec<T> {
    let text = sysfs.text(path).unwrap_or_default();
    let mut steps: Vec<T> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .take(POWER_STEPS_MAX)
        .collect();
    steps.sort();
    steps.dedup();
    steps
}

fn counters(text: &str) -> Result<Load, Reason> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let line = line.ok_or("no line `cpu`")?;
    let words = line.split_whitespace().take(8).map(str::parse::<u64>);
    let columns = words.collect::<Result<Vec<u64>, _>>().map_err(|_| "a column is no number")?;
    let all = columns.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
    let idle = columns.iter().skip(3).take(2).fold(0u64, |sum, n| sum.saturating_add(*n));
    Ok(Load { busy: all.saturating_sub(idle), all })
}

impl Load {
    /// Share of busy time since `self`, which becomes `now`.
    fn since(&mut self, now: Load) -> Option<f64> {
        let before = std::mem::replace(self, now);
        let all = now.all.checked_sub(before.all).filter(|all| *all > 0 && before.all > 0)?;
        let busy = now.busy.saturating_sub(before.busy);
        Some((busy as f64 / all as f64).min(1.0))
    }
}

fn first_number(text: &str) -> Result<f64, Reason> {
    let word = text.split_whitespace().next().unwrap_or_default();
    let number = word.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    number.ok_or_else(|| "no number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_what_was_counted_between_two_readings() {
        let at = |line: &str| counters(line).unwrap();
        let mut load = Load::default();
        assert_eq!(load.since(at("cpu  100 0 100 700 100 0 0 0 0 0")), None, "nothing before it");
        assert_eq!(load.since(at("cpu  150 0 100 725 125 0 0 0 0 0")), Some(0.5));
        assert_eq!(load.since(at("cpu  1 0 1 1 1 0 0 0")), None, "a counter that fell");
        assert!(counters("cpu x").is_err() && counters("intr 5").is_err());
    }
}
