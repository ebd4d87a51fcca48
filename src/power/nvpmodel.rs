//! NVIDIA's power modes, as `/etc/nvpmodel.conf` describes them.
//!
//! ```text
//! < PARAM TYPE=CLOCK NAME=CPU_A57 >
//! MAX_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq
//! < POWER_MODEL ID=1 NAME=5W >
//! CPU_A57 MAX_FREQ 918000
//! ```
//!
//! The form is that of JetPack 4.6 (rbonghi/jetson_stats: `tests`). A mode is a list of files and
//! numbers; -1 stands for no limit. What the tool `nvpmodel` writes for a mode, `jetforge tune` can
//! write too, within the files that it may write at all; the mode that the tool remembers for the
//! next boot is left alone.

use std::collections::BTreeMap;

use super::sysfs::Sysfs;

/// A power mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerMode {
    /// Its number, for `nvpmodel -m`.
    pub id: u32,
    /// Its name, `MAXN` or `5W`.
    pub name: String,
    /// Files from the root, and what stands in them; -1 is no limit.
    pub values: Vec<(String, i64)>,
}

/// Where the file is: a link to the one of the board.
const FILES: [&str; 2] = ["etc/nvpmodel.conf", "etc/nvpmodel/nvpmodel_t210_jetson-nano.conf"];

/// The modes that this machine describes; none where there is no such file.
pub fn power_modes(sysfs: &Sysfs) -> Vec<PowerMode> {
    let text = FILES.iter().find_map(|file| sysfs.text(file).ok());
    text.map(|text| parse(&text)).unwrap_or_default()
}

/// Reads the modes; lines that make no sense are left out.
fn parse(text: &str) -> Vec<PowerMode> {
    let mut paths: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut modes: Vec<PowerMode> = Vec::new();
    let mut param: Option<String> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix('<') {
            param = None;
            let head = head.trim_end_matches('>').trim();
            if head.starts_with("PARAM") {
                param = field(head, "NAME=");
            } else if head.starts_with("POWER_MODEL")
                && let Some(id) = field(head, "ID=").and_then(|id| id.parse().ok())
            {
                let name = field(head, "NAME=").unwrap_or_default();
                modes.push(PowerMode { id, name, values: Vec::new() });
            }
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match (&param, words.as_slice()) {
            (Some(param), [arg, path]) if path.starts_with('/') => {
                let path = path.trim_start_matches('/').to_owned();
                paths.insert((param.clone(), (*arg).to_owned()), path);
            }
            (None, [param, arg, value]) => {
                let path = paths.get(&((*param).to_owned(), (*arg).to_owned()));
                if let (Some(mode), Some(path), Ok(value)) = (modes.last_mut(), path, value.parse())
                {
                    mode.values.push((path.clone(), value));
                }
            }
            _ => {}
        }
    }
    modes
}

fn field(head: &str, key: &str) -> Option<String> {
    let word = head.split_whitespace().find_map(|word| word.strip_prefix(key))?;
    Some(word.to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const CONF: &str = "# comment
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
CORE_1 /sys/devices/system/cpu/cpu1/online
CORE_2 /sys/devices/system/cpu/cpu2/online
CORE_3 /sys/devices/system/cpu/cpu3/online
< PARAM TYPE=FILE NAME=GPU_POWER_CONTROL_ENABLE >
GPU_PWR_CNTL_EN /sys/devices/gpu.0/power/control
< PARAM TYPE=CLOCK NAME=CPU_A57 >
FREQ_TABLE /sys/devices/system/cpu/cpu0/cpufreq/scaling_available_frequencies
MAX_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq
MIN_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/gpu.0/devfreq/57000000.gpu/max_freq
MIN_FREQ /sys/devices/gpu.0/devfreq/57000000.gpu/min_freq
< PARAM TYPE=CLOCK NAME=EMC >
MAX_FREQ /sys/kernel/nvpmodel_emc_cap/emc_iso_cap
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 1
CPU_ONLINE CORE_3 1
CPU_A57 MIN_FREQ 0
CPU_A57 MAX_FREQ -1
GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on
GPU MIN_FREQ 0
GPU MAX_FREQ -1
EMC MAX_FREQ 0
< POWER_MODEL ID=1 NAME=5W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 0
CPU_ONLINE CORE_3 0
CPU_A57 MIN_FREQ 0
CPU_A57 MAX_FREQ 918000
GPU MIN_FREQ 0
GPU MAX_FREQ 640000000
EMC MAX_FREQ 1600000000
< PM_CONFIG DEFAULT=0 >
";

    #[test]
    fn both_modes_of_a_nano_are_read() {
        let modes = parse(CONF);
        let names: Vec<_> = modes.iter().map(|mode| (mode.id, mode.name.as_str())).collect();
        assert_eq!(names, [(0, "MAXN"), (1, "5W")]);
        let five = &modes[1].values;
        assert_eq!(five.len(), 9);
        let cpu = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq";
        assert!(five.contains(&(cpu.to_owned(), 918_000)));
        assert_eq!(parse("< POWER_MODEL ID=x >\nCPU_A57 MAX_FREQ 1\n<\n<>\n"), []);
    }
}
