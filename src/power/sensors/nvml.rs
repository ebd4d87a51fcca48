//! NVIDIA's cards in a PC, as their management library (NVML) tells of them.
//!
//! ```text
//! root /            libnvidia-ml.so.1, where the loader finds it
//! any other root    usr/lib/libnvidia-ml.so.1 below it: a stand-in, or nothing
//!
//! clock, load, memory, fan -> gpus       heat -> zones     watts -> rails
//! millijoules -> counters                what holds its clock down -> coolers
//! ```
//!
//! A card's numbers stand where a Jetson's stand that mean the same. The library is looked for at
//! the first reading and never again: what came of it, that there is none included, stays, and what
//! is not there costs nothing. A function that an old driver does not have, or a card does not
//! answer, takes its own number alone; a card that is gone is one line of `absent`, and is asked
//! again at the next reading.
//!
//! Nothing is ever set on a card: its driver holds it within its own limits.

use std::path::{Path, PathBuf};

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::Gather;
use super::thermal::believed;
use super::throttle::CoolerReading;
use super::{CounterReading, FanReading, GpuReading, RailReading, Readings, ZoneReading};
use crate::base::limits::POWER_SENSORS_MAX;
use crate::power::sysfs::Reason;

/// The cards of a machine.
#[derive(Debug)]
pub struct Cards {
    nvml: Nvml,
    /// What each is called, no two alike.
    names: Vec<String>,
}

const LIBRARY: &str = "libnvidia-ml.so.1";
/// What holds a clock down, by the word that it is told with.
const HOLDS: [(&str, ThrottleReasons); 3] = [
    ("heat", ThrottleReasons::SW_THERMAL_SLOWDOWN.union(ThrottleReasons::HW_THERMAL_SLOWDOWN)),
    ("power", ThrottleReasons::SW_POWER_CAP.union(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN)),
    ("hardware", ThrottleReasons::HW_SLOWDOWN),
];

impl Cards {
    /// The cards of the machine whose trees are under `root`.
    ///
    /// # Errors
    /// Why there are none, in words: no library, no driver, no card.
    pub fn open(root: &Path) -> Result<Cards, Reason> {
        let library = match root == Path::new("/") {
            true => PathBuf::from(LIBRARY),
            false => root.join("usr/lib").join(LIBRARY),
        };
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init().map_err(why)?;
        if nvml.lib().nvmlShutdown.is_err() {
            // Dropping it would call what is not there, and panic.
            std::mem::forget(nvml);
            return Err(format!("{LIBRARY} has no nvmlShutdown"));
        }
        let n_card = nvml.device_count().map_err(why)?;
        let n_card = n_card.min(u32::try_from(POWER_SENSORS_MAX).unwrap_or(u32::MAX));
        if n_card == 0 {
            return Err(format!("{LIBRARY} names no card"));
        }
        let name = |i| nvml.device_by_index(i).and_then(|card| card.name());
        let told: Vec<String> =
            (0..n_card).map(|i| name(i).unwrap_or_else(|_| "NVIDIA GPU".to_owned())).collect();
        let is_alone = |name: &String| told.iter().filter(|other| *other == name).count() == 1;
        let unique = |(i, name): (usize, &String)| match is_alone(name) {
            true => name.clone(),
            false => format!("{name} ({i})"),
        };
        let names = told.iter().enumerate().map(unique).collect();
        Ok(Cards { nvml, names })
    }

    /// What each card is called.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Millijoules that a card took since its driver was loaded; none where it does not count them.
    pub fn energy_mj(&self, card_idx: usize) -> Option<u64> {
        self.card(card_idx).and_then(|card| card.total_energy_consumption()).ok()
    }

    /// Milliwatts that a card takes.
    pub fn power_mw(&self, card_idx: usize) -> Option<u32> {
        self.card(card_idx).and_then(|card| card.power_usage()).ok()
    }

    fn card(&self, card_idx: usize) -> Result<Device<'_>, NvmlError> {
        self.nvml.device_by_index(u32::try_from(card_idx).unwrap_or(u32::MAX))
    }

    /// Adds what every card tells.
    pub fn read(&self, gather: &mut Gather<'_>, readings: &mut Readings) {
        for (card_idx, name) in self.names.iter().enumerate() {
            match self.card(card_idx) {
                Ok(card) => Asked { name, gather, is_gone: false }.read(&card, readings),
                Err(error) => gather.miss(name, why(error)),
            }
        }
    }
}

/// A card that is asked.
struct Asked<'a, 'b> {
    name: &'a str,
    gather: &'a mut Gather<'b>,
    is_gone: bool,
}

impl Asked<'_, '_> {
    fn read(mut self, card: &Device<'_>, readings: &mut Readings) {
        let mhz = self.told("clock", card.clock_info(Clock::Graphics));
        let memory_mhz = self.told("memory clock", card.clock_info(Clock::Memory));
        let load = self.told("load", card.utilization_rates());
        let memory = self.told("memory", card.memory_info());
        let fan = self.told("fan", card.fan_speed(0));
        let celsius = self.told("heat", card.temperature(TemperatureSensor::Gpu));
        let mw = self.told("power", card.power_usage());
        let mj = self.told("energy", card.total_energy_consumption());
        let holds = self.told("throttling", card.current_throttle_reasons());
        if self.is_gone {
            return;
        }
        let load = load.and_then(|load| match load.gpu {
            percent @ 0..=100 => Some(f64::from(percent) / 100.0),
            percent => self.doubt("load", format!("says {percent} %")),
        });
        let temp_mc = celsius.and_then(|celsius| match believed(i64::from(celsius) * 1000) {
            Some(mc) => Some(mc),
            None => self.doubt("heat", format!("says {celsius} degrees")),
        });
        let name = || self.name.to_owned();
        let hz = |mhz: u32| u64::from(mhz) * 1_000_000;
        // A fan is told in hundredths, and some turn faster than their highest.
        let pwm = fan.map(|percent| (percent.min(100) * 255).div_ceil(100));
        let rpm = fan.and_then(|_| card.fan_speed_rpm(0).ok());
        readings.gpus.push(GpuReading {
            name: name(),
            hz: mhz.map(hz),
            load,
            memory_hz: memory_mhz.map(hz),
            memory_total_bytes: memory.as_ref().map(|memory| memory.total),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
            fan: pwm.map(|pwm| FanReading { pwm: Some(pwm), rpm, ..FanReading::default() }),
            ..GpuReading::default()
        });
        let zone =
            |mc| ZoneReading { name: name(), temp_mc: Some(mc), counts: true, trips: vec![] };
        readings.zones.extend(temp_mc.map(zone));
        let rail = |mw| RailReading { name: name(), mw: Some(mw), ..RailReading::default() };
        readings.rails.extend(mw.map(rail));
        let counter = |mj: u64| CounterReading { name: name(), energy_uj: mj.saturating_mul(1000) };
        readings.counters.extend(mj.map(counter));
        let Some(holds) = holds else { return };
        readings.throttle.coolers.extend(HOLDS.map(|(word, reasons)| CoolerReading {
            name: format!("{}: {word}", self.name),
            state: u32::from(holds.intersects(reasons)),
            state_max: 1,
        }));
    }

    /// The answer, or a line of `absent`; one for all where the card is gone.
    fn told<T>(&mut self, what: &str, answer: Result<T, NvmlError>) -> Option<T> {
        match answer {
            Ok(answer) => return Some(answer),
            Err(_) if self.is_gone => {}
            Err(error @ NvmlError::GpuLost) => {
                self.is_gone = true;
                self.gather.miss(self.name, why(error));
            }
            Err(error) => return self.doubt(what, why(error)),
        }
        None
    }

    /// A line of `absent`.
    fn doubt<T>(&mut self, what: &str, reason: Reason) -> Option<T> {
        self.gather.miss(&format!("{what} of {}", self.name), reason);
        None
    }
}

/// The loader says by itself that it could not load.
fn why(error: NvmlError) -> Reason {
    match error {
        NvmlError::LibloadingError(error) => error.to_string(),
        error => error.to_string(),
    }
}
