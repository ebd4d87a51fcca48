//! GPUs that sysfs shows, and the memory controller. Cards of NVIDIA in a PC: `nvml.rs`.
//!
//! The Nano's: `sys/devices/gpu.0/{load,devfreq/57000000.gpu/...}` (NVIDIA's nvgpu for R32.7,
//! `os/linux/sysfs.c`): load in thousandths, clocks in Hz. Other Jetsons have the same files under
//! `sys/class/devfreq/*` with a device tree name of `gpu`, `gp10b`, `gv11b` or `ga10b`. Cards of
//! AMD in a PC stand in `sys/class/drm/card*/device` (the kernel's `gpu/amdgpu`). The memory
//! controller's rate is in debugfs, for root; its activity in `actmon_avg_activity/mc_all`, in kHz.

use serde::Serialize;

use super::cpu::steps_of;
use super::{FanReading, Gather};
use crate::base::limits::POWER_SENSORS_MAX;
use crate::power::sysfs::Sysfs;

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuReading {
    /// As its device is called, `57000000.gpu`, or a card by its maker.
    pub name: String,
    /// The folder with its clocks, from the root; empty where clocks cannot be set.
    pub devfreq: String,
    /// Its clock now.
    pub hz: Option<u64>,
    /// The lowest that is allowed.
    pub min_hz: Option<u64>,
    /// The highest that is allowed.
    pub max_hz: Option<u64>,
    /// Clocks that it can take, lowest first.
    pub steps_hz: Vec<u64>,
    /// Share of time that it is busy, 0 to 1.
    pub load: Option<f64>,
    /// The kernel's governor of clocks.
    pub governor: Option<String>,
    /// Whether it has no power now.
    pub is_railgated: Option<bool>,
    /// The clock of its own memory, where it has some: a card's.
    pub memory_hz: Option<u64>,
    /// Its own memory.
    pub memory_total_bytes: Option<u64>,
    /// What of it is in use, by whomever.
    pub memory_used_bytes: Option<u64>,
    /// Its own fan.
    pub fan: Option<FanReading>,
}

/// The memory controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EmcReading {
    /// Its clock.
    pub khz: Option<u32>,
    /// Share of it that is used, 0 to 1.
    pub load: Option<f64>,
}

const NANO: &str = "sys/devices/gpu.0";
const NAMES: [&str; 4] = ["gpu", "gp10b", "gv11b", "ga10b"];

pub fn gpus(sysfs: &Sysfs) -> Vec<GpuReading> {
    let mut found: Vec<GpuReading> = folders(sysfs)
        .into_iter()
        .take(POWER_SENSORS_MAX)
        .map(|(devfreq, device)| gpu(sysfs, devfreq, &device))
        .collect();
    let cards = sysfs.numbered("sys/class/drm", "card");
    found.extend(cards.iter().take(POWER_SENSORS_MAX).filter_map(|(_, card)| amd(sysfs, card)));
    found
}

/// Says what no GPU told.
pub fn missed(gather: &mut Gather<'_>, found: &[GpuReading]) {
    if found.is_empty() {
        gather.miss("gpu", "no device that sysfs shows");
    } else if found.iter().all(|gpu| gpu.load.is_none()) {
        gather.miss("gpu load", "not there");
    }
}

/// Folders of clocks, each with its device's.
fn folders(sysfs: &Sysfs) -> Vec<(String, String)> {
    let nano = sysfs.names(&format!("{NANO}/devfreq")).into_iter();
    let nano: Vec<_> =
        nano.map(|name| (format!("{NANO}/devfreq/{name}"), NANO.to_owned())).collect();
    if !nano.is_empty() {
        return nano;
    }
    let class = "sys/class/devfreq";
    let is_gpu = |name: &String| {
        let of_node = sysfs.text(&format!("{class}/{name}/device/of_node/name"));
        of_node.is_ok_and(|name| NAMES.contains(&name.as_str()))
    };
    let names = sysfs.names(class).into_iter().filter(is_gpu);
    names.map(|name| (format!("{class}/{name}"), format!("{class}/{name}/device"))).collect()
}

fn gpu(sysfs: &Sysfs, devfreq: String, device: &str) -> GpuReading {
    let clock = |name: &str| sysfs.count(&format!("{devfreq}/{name}")).ok();
    GpuReading {
        name: devfreq.rsplit('/').next().unwrap_or_default().to_owned(),
        hz: clock("cur_freq"),
        min_hz: clock("min_freq"),
        max_hz: clock("max_freq"),
        steps_hz: steps_of(sysfs, &format!("{devfreq}/available_frequencies")),
        load: share(sysfs.count(&format!("{device}/load")).ok(), 1000.0),
        governor: sysfs.text(&format!("{devfreq}/governor")).ok(),
        is_railgated: match sysfs.text(&format!("{device}/is_railgated")).as_deref() {
            Ok("yes" | "1") => Some(true),
            Ok("no" | "0") => Some(false),
            _ => None,
        },
        devfreq,
        ..GpuReading::default()
    }
}

fn amd(sysfs: &Sysfs, card: &str) -> Option<GpuReading> {
    let device = format!("sys/class/drm/{card}/device");
    let busy = sysfs.count(&format!("{device}/gpu_busy_percent")).ok()?;
    Some(GpuReading { name: card.to_owned(), load: share(Some(busy), 100.0), ..Default::default() })
}

/// A part of a whole, if it is no more than that.
fn share(part: Option<u64>, whole: f64) -> Option<f64> {
    part.map(|part| part as f64 / whole).filter(|share| *share <= 1.0)
}

pub fn emc(gather: &mut Gather<'_>) -> EmcReading {
    let sysfs = gather.sysfs;
    let rate = |path: &str| Some(u32::try_from(sysfs.count(path).ok()? / 1000).unwrap_or(u32::MAX));
    let khz = rate("sys/kernel/debug/tegra_bwmgr/emc_rate")
        .or_else(|| rate("sys/kernel/debug/clk/override.emc/clk_rate"));
    let active = ["sys/kernel/actmon_avg_activity/mc_all", "sys/kernel/debug/cactmon/mc_all"];
    let active = active.iter().find_map(|path| sysfs.count(path).ok());
    if khz.is_none() {
        let why = "neither tegra_bwmgr nor clk/override.emc can be read; both are for root";
        gather.miss("emc clock", why);
    }
    EmcReading { khz, load: khz.filter(|k| *k > 0).and_then(|k| share(active, f64::from(k))) }
}
