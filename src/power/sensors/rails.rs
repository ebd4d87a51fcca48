//! Power: rails with a sensor, and counters of energy.
//!
//! ```text
//! INA3221, R32     sys/bus/i2c/devices/*/{name, iio:deviceN/{rail_name_I, in_voltageI_input, ...}}
//! INA3221, newer   sys/class/hwmon/hwmonN/{name, inI_label, inI_input, currI_input}
//! RAPL             sys/class/powercap/intel-rapl:N/{name, energy_uj}
//! ```
//!
//! The first form is that of NVIDIA's driver `ina3221x` for kernel 4.9, in mV, mA and mW; the
//! second the kernel's `hwmon/ina3221`, in mV and mA; the third the kernel's `power/powercap`, in
//! microjoules, since 2020 for root alone. The 2 GB Nano has no such chip.

use serde::Serialize;

use super::Gather;
use crate::base::limits::POWER_SENSORS_MAX;
use crate::power::sysfs::Sysfs;

/// One rail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RailReading {
    /// Its name, `POM_5V_IN`.
    pub name: String,
    /// Millivolts.
    pub mv: Option<u32>,
    /// Milliamperes.
    pub ma: Option<u32>,
    /// Milliwatts.
    pub mw: Option<u32>,
    /// Milliamperes at which the chip warns.
    pub warn_ma: Option<u32>,
    /// Milliamperes at which the board is slowed down.
    pub critical_ma: Option<u32>,
}

/// A counter of energy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterReading {
    /// `package-0`, `dram`.
    pub name: String,
    /// Microjoules; it wraps around.
    pub energy_uj: u64,
}

const N_RAIL_MAX: usize = 8;

pub fn rails(gather: &mut Gather<'_>) -> Vec<RailReading> {
    let mut rails = iio(gather.sysfs);
    if rails.is_empty() {
        rails = hwmon(gather.sysfs);
    }
    if rails.is_empty() {
        gather.miss("power rails", "no INA3221");
    }
    for rail in rails.iter().filter(|rail| rail.mw.is_none()) {
        gather.miss(&format!("rail {}", rail.name), "neither power nor voltage and current");
    }
    rails
}

fn iio(sysfs: &Sysfs) -> Vec<RailReading> {
    let bus = "sys/bus/i2c/devices";
    let mut rails = Vec::new();
    for chip in sysfs.names(bus).into_iter().take(POWER_SENSORS_MAX) {
        let chip = format!("{bus}/{chip}");
        if !sysfs.text(&format!("{chip}/name")).is_ok_and(|name| name.contains("ina3221")) {
            continue;
        }
        for (_, dir) in sysfs.numbered(&chip, "iio:device") {
            let dir = format!("{chip}/{dir}");
            rails.extend((0..N_RAIL_MAX).filter_map(|i| iio_rail(sysfs, &dir, i)));
        }
    }
    rails
}

fn iio_rail(sysfs: &Sysfs, dir: &str, i: usize) -> Option<RailReading> {
    let name = sysfs.text(&format!("{dir}/rail_name_{i}")).ok()?;
    let small = |file: String| sysfs.small(&format!("{dir}/{file}")).ok();
    let (mv, ma) = (small(format!("in_voltage{i}_input")), small(format!("in_current{i}_input")));
    Some(RailReading {
        name,
        mv,
        ma,
        mw: small(format!("in_power{i}_input")).or_else(|| product(mv, ma)),
        warn_ma: small(format!("warn_current_limit_{i}")),
        critical_ma: small(format!("crit_current_limit_{i}")),
    })
}

fn hwmon(sysfs: &Sysfs) -> Vec<RailReading> {
    let class = "sys/class/hwmon";
    let mut rails = Vec::new();
    for (_, chip) in sysfs.numbered(class, "hwmon").into_iter().take(POWER_SENSORS_MAX) {
        let dir = format!("{class}/{chip}");
        if !sysfs.text(&format!("{dir}/name")).is_ok_and(|name| name.contains("ina3221")) {
            continue;
        }
        let rail = |i: usize| {
            let small = |file: String| sysfs.small(&format!("{dir}/{file}")).ok();
            let name = sysfs.text(&format!("{dir}/in{i}_label")).ok()?;
            let (mv, ma) = (small(format!("in{i}_input")), small(format!("curr{i}_input")));
            let warn_ma = small(format!("curr{i}_max"));
            let critical_ma = small(format!("curr{i}_crit"));
            Some(RailReading { name, mv, ma, mw: product(mv, ma), warn_ma, critical_ma })
        };
        rails.extend((1..=N_RAIL_MAX).filter_map(rail));
    }
    rails
}

/// Milliwatts of millivolts and milliamperes.
fn product(mv: Option<u32>, ma: Option<u32>) -> Option<u32> {
    u32::try_from(u64::from(mv?) * u64::from(ma?) / 1000).ok()
}

pub fn counters(gather: &mut Gather<'_>, is_only_sensor: bool) -> Vec<CounterReading> {
    let class = "sys/class/powercap";
    let mut counters = Vec::new();
    for zone in gather.sysfs.names(class).into_iter().take(POWER_SENSORS_MAX) {
        let Ok(name) = gather.sysfs.text(&format!("{class}/{zone}/name")) else { continue };
        let energy = gather.sysfs.count(&format!("{class}/{zone}/energy_uj"));
        let energy = gather.optional(&format!("energy of {name}"), energy);
        counters.extend(energy.map(|energy_uj| CounterReading { name, energy_uj }));
    }
    if counters.is_empty() && is_only_sensor {
        gather.miss("energy", format!("no counter in {class}"));
    }
    counters
}
