//! What the hardware holds back by itself, and how often it did.
//!
//! ```text
//! cooling          sys/class/thermal/cooling_deviceN/{type,cur_state,max_state}  above 0: it cools
//! over-current     hwmon `ocN_event_cnt` where the driver counts, else the kernel's log:
//!                  `soctherm: OC ALARM 0x00000001`, on the Nano a supply that sags below 4.75 V
//! heat             sys/devices/system/cpu/cpuN/thermal_throttle/*_throttle_count on a PC
//! ```
//!
//! The first form is the kernel's `driver-api/thermal/sysfs-api`, the second NVIDIA's soctherm
//! driver, the third the kernel's `ABI/testing/sysfs-devices-system-cpu`. Counts only grow.

use serde::Serialize;

use super::Gather;
use super::log::KernelLog;
use crate::base::limits::{POWER_CORES_MAX, POWER_SENSORS_MAX};
use crate::power::sysfs::Sysfs;

/// What is held back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThrottleReading {
    /// What the kernel can cool with, and for what a card's driver may hold its clock down.
    pub coolers: Vec<CoolerReading>,
    /// Times that the supply gave too little.
    pub n_over_current: Option<u64>,
    /// Times that the chip was slowed down by heat.
    pub n_thermal: Option<u64>,
}

/// Something that the kernel, or the driver of a card, cools with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CoolerReading {
    /// Its type.
    pub name: String,
    /// How much it cools now; 0 is not at all.
    pub state: u32,
    /// How much it can.
    pub state_max: u32,
}

impl ThrottleReading {
    /// Whether a clock is held down now; a fan that turns is no throttling.
    pub fn is_throttled(&self) -> bool {
        self.holding().next().is_some()
    }

    /// What holds a clock down now.
    pub fn holding(&self) -> impl Iterator<Item = &CoolerReading> {
        let slows = |cooler: &&CoolerReading| {
            let name = cooler.name.to_ascii_lowercase();
            !name.contains("fan") && !name.contains("reset") && !name.contains("shutdown")
        };
        self.coolers.iter().filter(slows).filter(|cooler| cooler.state > 0)
    }
}

const CLASS: &str = "sys/class/thermal";

pub fn read(gather: &mut Gather<'_>, log: &mut KernelLog) -> ThrottleReading {
    let sysfs = gather.sysfs;
    let counted = match count_over_current(sysfs) {
        Some(count) => Ok(count),
        None => log.n_over_current(),
    };
    ThrottleReading {
        coolers: coolers(sysfs),
        n_over_current: gather.optional("over-current count", counted),
        n_thermal: count_thermal(sysfs),
    }
}

fn coolers(sysfs: &Sysfs) -> Vec<CoolerReading> {
    let cooler = |(_, dir): (usize, String)| {
        let small = |name: &str| sysfs.small(&format!("{CLASS}/{dir}/{name}")).ok();
        let name = sysfs.text(&format!("{CLASS}/{dir}/type")).ok()?;
        Some(CoolerReading { name, state: small("cur_state")?, state_max: small("max_state")? })
    };
    let dirs = sysfs.numbered(CLASS, "cooling_device").into_iter().take(POWER_SENSORS_MAX);
    dirs.filter_map(cooler).collect()
}

fn count_over_current(sysfs: &Sysfs) -> Option<u64> {
    let class = "sys/class/hwmon";
    let mut sum = None;
    for (_, dir) in sysfs.numbered(class, "hwmon").into_iter().take(POWER_SENSORS_MAX) {
        let dir = format!("{class}/{dir}");
        for name in sysfs.names(&dir) {
            if name.starts_with("oc")
                && name.ends_with("_event_cnt")
                && let Ok(count) = sysfs.count(&format!("{dir}/{name}"))
            {
                sum = Some(sum.unwrap_or(0u64).saturating_add(count));
            }
        }
    }
    sum
}

/// The package's count where a core knows it, else the most of any core.
fn count_thermal(sysfs: &Sysfs) -> Option<u64> {
    let cpu = "sys/devices/system/cpu";
    let counts = |name: &str| {
        let file = |(_, core): (usize, String)| format!("{cpu}/{core}/thermal_throttle/{name}");
        let cores = sysfs.numbered(cpu, "cpu").into_iter().take(POWER_CORES_MAX).map(file);
        cores.filter_map(|file| sysfs.count(&file).ok()).max()
    };
    counts("package_throttle_count").or_else(|| counts("core_throttle_count"))
}
