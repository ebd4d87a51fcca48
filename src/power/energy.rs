//! Energy: what the machine took, as its own sensors say.
//!
//! ```text
//! RAPL       powercap/intel-rapl:N/energy_uj    a counter of microjoules that wraps around
//! INA3221    rails of a Jetson, in milliwatts   power, which is summed over time
//! NVML       cards of a PC, in millijoules      a counter; in milliwatts where a card has none
//! ```
//!
//! A thread reads every 20 ms, so that a counter never wraps twice unseen and power between two
//! readings is known well enough (by the trapezoid rule). Of RAPL count the packages and their
//! memory; of a Jetson's rails the one that feeds the board, or all where none says so. Cards count
//! beside the processor, all of them, whatever computes: it is the machine's energy. Where nothing
//! tells the processor's, cards count alone, and say so.
//!
//! What is read is gross: the machine also takes something when it does nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::board::Board;
use super::profile::Compute;
use super::sensors::{BOARD_RAILS, Cards};
use super::sysfs::Sysfs;

/// How often sensors are read.
const READ_EVERY: Duration = Duration::from_millis(20);
/// Sensors that one chip has, at most.
const N_RAIL_MAX: usize = 3;

/// Why there is no energy to read.
#[derive(Debug, thiserror::Error)]
pub enum NoEnergy {
    /// No file that we know of.
    #[error("this machine has no energy sensor that jetforge knows (RAPL, INA3221, NVML)")]
    Absent,
    /// A sensor is there and may not be read.
    #[error("{}: {source}; root may read it", path.display())]
    Unreadable {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The thread that reads could not be started.
    #[error("no thread could be started to read the energy sensor")]
    Thread(#[source] io::Error),
}

/// Reads a machine's energy sensors until it is dropped.
pub struct EnergyMeter {
    sum: Arc<Mutex<Sum>>,
    name: String,
    is_cards_alone: bool,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EnergyMeter {
    /// Looks for sensors in the tree of sysfs under `root`, which is `/` outside of tests.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn open(root: &Path) -> Result<EnergyMeter, NoEnergy> {
        let mut meter = EnergyMeter::open_still(root)?;
        let theirs = Arc::clone(&meter.sum);
        let (stop, stopped) = channel();
        let work = move || {
            while stopped.recv_timeout(READ_EVERY) == Err(RecvTimeoutError::Timeout) {
                lock(&theirs).advance(Instant::now());
            }
        };
        let thread = std::thread::Builder::new().name("energy".into());
        let thread = thread.spawn(work).map_err(NoEnergy::Thread)?;
        (meter.stop, meter.thread) = (Some(stop), Some(thread));
        Ok(meter)
    }

    /// The same without a thread: sensors are read when [`EnergyMeter::joules`] is asked, which has
    /// to be every few seconds.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn open_still(root: &Path) -> Result<EnergyMeter, NoEnergy> {
        let cards = cards(root);
        let (machine, is_cards_alone) = match find(root) {
            Err(why) if cards.is_empty() => return Err(why),
            Err(_) => (Vec::new(), true),
            Ok(machine) => (machine, false),
        };
        let sensors: Vec<Sensor> = machine.into_iter().chain(cards).collect();
        let names: Vec<&str> = sensors.iter().map(|sensor| sensor.name.as_str()).collect();
        let name = names.join(", ") + if is_cards_alone { " alone" } else { "" };
        let sum = Arc::new(Mutex::new(Sum::new(sensors, Instant::now())));
        Ok(EnergyMeter { sum, name, is_cards_alone, stop: None, thread: None })
    }

    /// What is read, for people: `package-0, dram`, `POM_5V_IN`, `NVIDIA GeForce RTX 3060 alone`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it reads what computes: cards alone say nothing of work that the cores do.
    pub fn covers(&self, compute: Compute) -> bool {
        !self.is_cards_alone || compute == Compute::Gpu
    }

    /// Joules since the meter was opened.
    pub fn joules(&self) -> f64 {
        lock(&self.sum).advance(Instant::now())
    }
}

impl Drop for EnergyMeter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(sum: &Mutex<Sum>) -> MutexGuard<'_, Sum> {
    sum.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sensors and what they came to.
struct Sum {
    sensors: Vec<Sensor>,
    at: Instant,
    joules: f64,
}

impl Sum {
    fn new(sensors: Vec<Sensor>, at: Instant) -> Sum {
        let mut sum = Sum { sensors, at, joules: 0.0 };
        sum.advance(at);
        sum.joules = 0.0;
        sum
    }

    /// Reads every sensor; joules so far. A reading that fails adds nothing, and the next one makes
    /// up for it.
    fn advance(&mut self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        for sensor in &mut self.sensors {
            sensor.unread_s += seconds;
            if let Some(joules) = sensor.read() {
                self.joules += joules;
                sensor.unread_s = 0.0;
            }
        }
        self.joules
    }
}

/// A sensor and its last reading.
struct Sensor {
    name: String,
    kind: Kind,
    /// Microjoules of a counter, watts of a rail or a card.
    last: Option<f64>,
    /// Seconds since then.
    unread_s: f64,
}

enum Kind {
    /// Microjoules, up to `range`, then from zero again.
    Counter { energy: PathBuf, range: f64 },
    /// Milliwatts.
    Power { power: PathBuf },
    /// Millivolts and milliamperes.
    VoltsAndAmps { volts: PathBuf, amps: PathBuf },
    /// Millijoules since the card's driver was loaded.
    CardCounter { cards: Arc<Cards>, card_idx: usize },
    /// Milliwatts.
    CardPower { cards: Arc<Cards>, card_idx: usize },
}

impl Sensor {
    fn new(name: String, kind: Kind) -> Sensor {
        Sensor { name, kind, last: None, unread_s: 0.0 }
    }

    /// Joules since the last reading; zero at the first.
    fn read(&mut self) -> Option<f64> {
        let now = match &self.kind {
            Kind::Counter { energy, .. } => number(energy)?,
            Kind::Power { power } => number(power)? / 1e3,
            Kind::VoltsAndAmps { volts, amps } => number(volts)? * number(amps)? / 1e6,
            Kind::CardCounter { cards, card_idx } => cards.energy_mj(*card_idx)? as f64 * 1e3,
            Kind::CardPower { cards, card_idx } => f64::from(cards.power_mw(*card_idx)?) / 1e3,
        };
        let last = self.last.replace(now).unwrap_or(now);
        Some(match &self.kind {
            Kind::Counter { range, .. } => counted(last, now, *range),
            // It starts from zero with its driver.
            Kind::CardCounter { .. } => counted(last, now, 0.0),
            _ => (now + last) / 2.0 * self.unread_s,
        })
    }
}

/// Joules between two counts of microjoules; one that fell went on from zero at its range.
fn counted(last: f64, now: f64, range: f64) -> f64 {
    let wrapped = if now < last { range.max(last) } else { 0.0 };
    (now - last + wrapped) / 1e6
}

fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0)
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The folders of a folder, by name.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The cards of a PC, each by its counter, else by its watts.
fn cards(root: &Path) -> Vec<Sensor> {
    if !Board::identify(&Sysfs::new(root)).is_pc() {
        return Vec::new();
    }
    // Why there are none, `Readings` says.
    let Ok(cards) = Cards::open(root).map(Arc::new) else { return Vec::new() };
    let sensor = |(card_idx, name): (usize, &String)| {
        let theirs = Arc::clone(&cards);
        let kind = match (cards.energy_mj(card_idx), cards.power_mw(card_idx)) {
            (Some(_), _) => Kind::CardCounter { cards: theirs, card_idx },
            (None, Some(_)) => Kind::CardPower { cards: theirs, card_idx },
            (None, None) => return None,
        };
        Some(Sensor::new(name.clone(), kind))
    };
    cards.names().iter().enumerate().filter_map(sensor).collect()
}

/// The sensors of the machine that count.
fn find(root: &Path) -> Result<Vec<Sensor>, NoEnergy> {
    let counters = rapl(root)?;
    if !counters.is_empty() {
        return Ok(counters);
    }
    let mut rails = ina3221(root);
    if let Some(i) = rails.iter().position(|rail| BOARD_RAILS.contains(&rail.name.as_str())) {
        rails = vec![rails.swap_remove(i)];
    }
    if rails.is_empty() { Err(NoEnergy::Absent) } else { Ok(rails) }
}

/// Packages, and the memory beside them: `dram` is no part of its package, `core` and `uncore` are.
fn rapl(root: &Path) -> Result<Vec<Sensor>, NoEnergy> {
    let mut sensors = Vec::new();
    for zone in folders(&root.join("sys/class/powercap")) {
        let Some(name) = text(&zone.join("name")) else { continue };
        if !(name.starts_with("package") || name == "dram") || is_mmio(&zone) {
            continue;
        }
        let energy = zone.join("energy_uj");
        if let Err(source) = fs::read(&energy) {
            return Err(NoEnergy::Unreadable { path: energy, source });
        }
        let range = number(&zone.join("max_energy_range_uj")).unwrap_or(0.0);
        sensors.push(Sensor::new(name, Kind::Counter { energy, range }));
    }
    Ok(sensors)
}

/// The same counters, by another way.
fn is_mmio(zone: &Path) -> bool {
    zone.file_name().is_some_and(|name| name.to_string_lossy().contains("mmio"))
}

/// Rails of the chip in a Jetson: as NVIDIA's old kernels show it, or as all newer ones do.
fn ina3221(root: &Path) -> Vec<Sensor> {
    let is_chip = |dir: &PathBuf| text(&dir.join("name")).is_some_and(|n| n.contains("ina3221"));
    let mut rails = Vec::new();
    for chip in folders(&root.join("sys/bus/i2c/devices")).into_iter().filter(is_chip) {
        for dir in folders(&chip) {
            for i in 0..N_RAIL_MAX {
                let power = dir.join(format!("in_power{i}_input"));
                if let Some(name) = text(&dir.join(format!("rail_name_{i}")))
                    && number(&power).is_some()
                {
                    rails.push(Sensor::new(name, Kind::Power { power }));
                }
            }
        }
    }
    if !rails.is_empty() {
        return rails;
    }
    for chip in folders(&root.join("sys/class/hwmon")).into_iter().filter(is_chip) {
        for i in 1..=N_RAIL_MAX {
            let (volts, amps) =
                (chip.join(format!("in{i}_input")), chip.join(format!("curr{i}_input")));
            if let Some(name) = text(&chip.join(format!("in{i}_label")))
                && number(&volts).and(number(&amps)).is_some()
            {
                rails.push(Sensor::new(name, Kind::VoltsAndAmps { volts, amps }));
            }
        }
    }
    rails
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        files.iter().for_each(|(path, text)| put(&root, path, text));
        root
    }

    fn put(root: &tempfile::TempDir, path: &str, text: &str) {
        let path = root.path().join("sys").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn names(root: &tempfile::TempDir) -> Vec<String> {
        find(root.path()).unwrap().into_iter().map(|sensor| sensor.name).collect()
    }

    #[test]
    fn counters_wrap_around() {
        let root = machine(&[
            ("class/powercap/intel-rapl:0/name", "package-0"),
            ("class/powercap/intel-rapl:0/energy_uj", "900"),
            ("class/powercap/intel-rapl:0/max_energy_range_uj", "1000"),
            ("class/powercap/intel-rapl:0:0/name", "core"),
            ("class/powercap/intel-rapl:0:0/energy_uj", "5"),
            ("class/powercap/intel-rapl:0:1/name", "dram"),
            ("class/powercap/intel-rapl:0:1/energy_uj", "7"),
            ("class/powercap/intel-rapl-mmio:0/name", "package-0"),
            ("class/powercap/intel-rapl-mmio:0/energy_uj", "900"),
        ]);
        assert_eq!(names(&root), ["package-0", "dram"]);
        let start = Instant::now();
        let mut sum = Sum::new(find(root.path()).unwrap(), start);
        let mut joules = |uj: &str| {
            put(&root, "class/powercap/intel-rapl:0/energy_uj", uj);
            (sum.advance(start) * 1e6).round()
        };
        assert_eq!(
            ["900", "950", "20", "gone", "30"].map(&mut joules),
            [0., 50., 120., 120., 130.]
        );
    }

    #[test]
    fn power_is_summed_over_time() {
        let rail = |i: usize, name: &'static str, mw: &'static str| {
            let dir = "bus/i2c/devices/6-0040/iio:device0";
            [(format!("{dir}/rail_name_{i}"), name), (format!("{dir}/in_power{i}_input"), mw)]
        };
        let rails = [rail(0, "POM_5V_GPU", "9"), rail(1, "POM_5V_IN", "1000")].concat();
        let mut files: Vec<(&str, &str)> =
            rails.iter().map(|(path, s)| (path.as_str(), *s)).collect();
        files.push(("bus/i2c/devices/6-0040/name", "ina3221x"));
        let root = machine(&files);
        assert_eq!(names(&root), ["POM_5V_IN"], "the GPU is part of the board");
        let start = Instant::now();
        let mut sum = Sum::new(find(root.path()).unwrap(), start);
        let mut joules = |ms, mw: &str| {
            put(&root, "bus/i2c/devices/6-0040/iio:device0/in_power1_input", mw);
            (sum.advance(start + Duration::from_millis(ms)) * 1e3).round()
        };
        assert_eq!(joules(500, "1000"), 500.0);
        assert_eq!(joules(1000, "3000"), 1500.0, "the mean of both ends");
        assert_eq!(joules(1500, "not now"), 1500.0);
        assert_eq!(joules(2000, "3000"), 4500.0, "the next reading makes up for it");
    }

    #[test]
    fn newer_kernels_show_volts_and_amperes() {
        let root = machine(&[
            ("class/hwmon/hwmon0/name", "coretemp"),
            ("class/hwmon/hwmon1/name", "ina3221"),
            ("class/hwmon/hwmon1/in1_label", "VDD_CPU"),
            ("class/hwmon/hwmon1/in1_input", "5000"),
            ("class/hwmon/hwmon1/curr1_input", "100"),
            ("class/hwmon/hwmon1/in2_label", "VDD_GPU"),
            ("class/hwmon/hwmon1/in2_input", "5000"),
            ("class/hwmon/hwmon1/curr2_input", "200"),
        ]);
        assert_eq!(names(&root), ["VDD_CPU", "VDD_GPU"], "no rail feeds the board: all count");
        let start = Instant::now();
        let mut sum = Sum::new(find(root.path()).unwrap(), start);
        assert!((sum.advance(start + Duration::from_secs(2)) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_missing_is_told() {
        let root = machine(&[("class/powercap/intel-rapl:0/name", "package-0")]);
        let error = EnergyMeter::open(root.path()).err().unwrap().to_string();
        assert!(error.contains("intel-rapl:0/energy_uj"), "{error}");
        let error = EnergyMeter::open(machine(&[]).path()).err().unwrap();
        assert!(matches!(error, NoEnergy::Absent), "{error}");
        put(&root, "class/powercap/intel-rapl:0/energy_uj", "1");
        let meter = EnergyMeter::open(root.path()).unwrap();
        assert_eq!((meter.name(), meter.joules()), ("package-0", 0.0));
    }
}
