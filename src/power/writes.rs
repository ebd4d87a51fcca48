//! What may be written to a board, and which files settings are.
//!
//! One short list of forms of paths, each with the values that it takes: whatever else goes wrong,
//! nothing outside it is written. Nothing here touches a file.

use super::apply::ApplyError;
use super::governor::Settings;
use super::sensors::Readings;
use crate::base::limits::POWER_CORES_MAX;

const SWAPPINESS_MAX: u64 = 200;
const PWM_MAX: u64 = 255;
/// The folder of the cores, from the root.
pub const CPU: &str = "sys/devices/system/cpu";
/// The file that `tune` sets, from the root.
pub const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const EMC_CAP: &str = "sys/kernel/nvpmodel_emc_cap/emc_iso_cap";

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

/// Refuses a file that is not ours to write, and a value that it does not take.
///
/// # Errors
/// [`ApplyError::Refused`] or [`ApplyError::Value`].
pub fn check(path: &str, value: &str) -> Result<(), ApplyError> {
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
