//! Thermal zones, by type and never by number.
//!
//! `sys/class/thermal/thermal_zoneN/{type,temp,trip_point_*_{type,temp}}`, in thousandths of a
//! degree (the kernel's `driver-api/thermal/sysfs-api`). On the Nano the types are `AO-therm`,
//! `CPU-therm`, `GPU-therm`, `PLL-therm`, and `PMIC-Die`, which always says 50 or 100 degrees, and
//! `thermal-fan-est`, which is an estimate from the others: these two do not count.

use serde::Serialize;

use super::Gather;
use crate::base::limits::POWER_SENSORS_MAX;
use crate::power::sysfs::Sysfs;

/// One zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZoneReading {
    /// Its type.
    pub name: String,
    /// Its temperature; none where it cannot be read or cannot be true.
    pub temp_mc: Option<i32>,
    /// Whether it measures the chip.
    pub counts: bool,
    /// Where the kernel does something.
    pub trips: Vec<TripReading>,
}

/// A temperature at which the kernel does something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TripReading {
    /// `active` (a fan), `passive` (lower clocks), `hot` or `critical` (off).
    pub kind: String,
    /// At what temperature.
    pub temp_mc: i32,
}

/// A part of the chip that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The cores.
    Cpu,
    /// The GPU.
    Gpu,
}

impl ZoneReading {
    /// Which part that computes it measures: `CPU-therm` and `GPU-therm` of kernel 4.9,
    /// `cpu-thermal` and `gpu-thermal` of later ones.
    pub fn part(&self) -> Option<Part> {
        match self.name.to_ascii_lowercase().as_str() {
            "cpu-therm" | "cpu-thermal" => Some(Part::Cpu),
            "gpu-therm" | "gpu-thermal" => Some(Part::Gpu),
            _ => None,
        }
    }
}

const CLASS: &str = "sys/class/thermal";
/// Zones that measure no chip that computes.
const NO_CHIP: [&str; 6] = ["PMIC", "fan-est", "Tboard", "Tdiode", "iwlwifi", "battery"];
/// What a sensor of a running chip can say; outside of it the sensor is broken.
const BELIEVED_MC: std::ops::RangeInclusive<i64> = -40_000..=150_000;
const N_TRIP_MAX: usize = 16;

pub fn zones(gather: &mut Gather<'_>) -> Vec<ZoneReading> {
    let sysfs = gather.sysfs;
    let mut zones = Vec::new();
    for (_, dir) in sysfs.numbered(CLASS, "thermal_zone").into_iter().take(POWER_SENSORS_MAX) {
        let dir = format!("{CLASS}/{dir}");
        let name = sysfs.text(&format!("{dir}/type")).unwrap_or_else(|_| dir.clone());
        let temp = sysfs.number(&format!("{dir}/temp")).and_then(|mc| match believed(mc) {
            Some(mc) => Ok(mc),
            None => Err(format!("says {mc} thousandths of a degree")),
        });
        let temp_mc = gather.optional(&format!("zone {name}"), temp);
        let counts = !NO_CHIP.iter().any(|part| name.contains(part));
        zones.push(ZoneReading { trips: trips(sysfs, &dir), name, temp_mc, counts });
    }
    if zones.is_empty() {
        zones = hwmon(sysfs);
    }
    if zones.is_empty() {
        gather.miss("temperature", format!("no {CLASS}/thermal_zone* and no sensor of a chip"));
    }
    zones
}

/// A temperature, if it can be true.
pub fn believed(mc: i64) -> Option<i32> {
    BELIEVED_MC.contains(&mc).then(|| i32::try_from(mc).ok()).flatten()
}

fn trips(sysfs: &Sysfs, dir: &str) -> Vec<TripReading> {
    let trip = |i: usize| {
        let temp = sysfs.number(&format!("{dir}/trip_point_{i}_temp")).ok()?;
        let kind = sysfs.text(&format!("{dir}/trip_point_{i}_type")).ok()?;
        Some(TripReading { kind, temp_mc: believed(temp)? })
    };
    (0..N_TRIP_MAX).filter_map(trip).collect()
}

/// Chips that are no thermal zone, such as AMD's: `sys/class/hwmon/hwmonN/{name,temp1_input}` (the
/// kernel's `hwmon/sysfs-interface`).
fn hwmon(sysfs: &Sysfs) -> Vec<ZoneReading> {
    let class = "sys/class/hwmon";
    let zone = |(_, dir): (usize, String)| {
        let name = sysfs.text(&format!("{class}/{dir}/name")).ok()?;
        let is_chip = ["coretemp", "k10temp", "zenpower", "cpu_thermal"].contains(&name.as_str());
        let mc = sysfs.number(&format!("{class}/{dir}/temp1_input")).ok().and_then(believed)?;
        is_chip.then(|| ZoneReading { name, temp_mc: Some(mc), counts: true, trips: Vec::new() })
    };
    let dirs = sysfs.numbered(class, "hwmon").into_iter().take(POWER_SENSORS_MAX);
    dirs.filter_map(zone).collect()
}
