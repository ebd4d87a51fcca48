//! Everything that the board tells of itself at one moment.
//!
//! ```text
//! sysfs, procfs -> cpu gpu emc | zones | rails rapl | fan | throttle | memory -> Readings
//! NVML          -> gpu | zones | rails, counters | throttle: a PC's cards --^
//!                                                            what is missing --> absent
//! ```
//!
//! Every source is optional. One that is not there, or holds nonsense, is a line of `absent` with
//! its reason and takes nothing from the others. The forms of the files are those of NVIDIA's
//! kernel 4.9 (release R32.7) for the Nano and of the mainline kernel elsewhere.

mod cpu;
mod fan;
mod gpu;
mod log;
mod memory;
mod nvml;
mod rails;
mod thermal;
mod throttle;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::board::Board;
use super::sysfs::{Reason, Sysfs};
pub use cpu::CpuReading;
pub use fan::FanReading;
pub use gpu::{EmcReading, GpuReading};
pub use memory::MemoryReading;
pub use nvml::Cards;
pub use rails::{CounterReading, RailReading};
pub use thermal::{Part, ZoneReading};
pub use throttle::ThrottleReading;

/// A source that gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// Which one, as `gpu load`.
    pub source: String,
    /// Why.
    pub reason: Reason,
}

/// One look at the board. Units stand in the names: kHz and Hz, thousandths of a degree,
/// millivolts, milliamperes, milliwatts, bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Readings {
    /// Cores and how busy they are.
    pub cpu: CpuReading,
    /// The GPUs that sysfs shows, and NVIDIA's cards.
    pub gpus: Vec<GpuReading>,
    /// The memory controller.
    pub emc: EmcReading,
    /// Thermal zones by their types.
    pub zones: Vec<ZoneReading>,
    /// Rails with a sensor of power, a card's own among them.
    pub rails: Vec<RailReading>,
    /// Counters of energy.
    pub counters: Vec<CounterReading>,
    /// The fan, if there is one to set.
    pub fan: Option<FanReading>,
    /// What the hardware itself holds back, and how often.
    pub throttle: ThrottleReading,
    /// Memory, that of the GPU included.
    pub memory: MemoryReading,
    /// What could not be read.
    pub absent: Vec<Absent>,
}

/// Rails that feed a whole board; every other one is part of them.
pub(super) const BOARD_RAILS: [&str; 4] = ["POM_5V_IN", "VDD_IN", "VIN_SYS_5V0", "VDD_5V_IN"];

impl Readings {
    /// The temperature that counts, in thousandths of a degree: the hottest zone of a chip.
    pub fn hottest_mc(&self) -> Option<i32> {
        self.zones.iter().filter(|zone| zone.counts).filter_map(|zone| zone.temp_mc).max()
    }

    /// What the board takes, in milliwatts: the rail that feeds it.
    pub fn board_mw(&self) -> Option<u32> {
        let feeds = |rail: &&RailReading| BOARD_RAILS.contains(&rail.name.as_str());
        self.rails.iter().find(feeds).and_then(|rail| rail.mw)
    }

    /// The lowest temperature at which the kernel itself slows cores or GPU down, as it says. Other
    /// zones have trips for other parts: the Nano's `PLL-therm` slows memory at 70 degrees.
    pub fn throttle_at_mc(&self) -> Option<i32> {
        let zones = self.zones.iter().filter(|zone| zone.counts && zone.part().is_some());
        let trips = zones.flat_map(|zone| &zone.trips).filter(|trip| trip.kind == "passive");
        trips.map(|trip| trip.temp_mc).filter(|mc| *mc > 40_000).min()
    }
}

/// The board and its sensors.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    sysfs: Sysfs,
    board: Board,
    /// NVIDIA's cards, or why there are none; not asked yet before the first reading.
    cards: Option<Result<Cards, Reason>>,
    load: cpu::Load,
    log: log::KernelLog,
}

impl Sensors {
    /// The sensors of the trees under `root`, which is `/` outside of tests. Nothing is read yet
    /// but which board it is.
    pub fn open(root: &Path) -> Sensors {
        let sysfs = Sysfs::new(root);
        let board = Board::identify(&sysfs);
        let log = log::KernelLog::open(&sysfs);
        let root = root.to_owned();
        Sensors { root, sysfs, board, cards: None, load: cpu::Load::default(), log }
    }

    /// Which board it is.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Reads everything once. Load is that since the reading before, none at the first.
    pub fn read(&mut self) -> Readings {
        let mut gather = Gather { sysfs: &self.sysfs, absent: Vec::new() };
        let rails = rails::rails(&mut gather);
        let mut readings = Readings {
            cpu: cpu::read(&mut gather, &mut self.load),
            gpus: gpu::gpus(&self.sysfs),
            emc: gpu::emc(&mut gather),
            zones: thermal::zones(&mut gather),
            counters: rails::counters(&mut gather, rails.is_empty()),
            fan: fan::read(&mut gather),
            throttle: throttle::read(&mut gather, &mut self.log),
            rails,
            ..Readings::default()
        };
        // A Jetson's GPU stands in sysfs.
        if self.board.is_pc() {
            match self.cards.get_or_insert_with(|| Cards::open(&self.root)) {
                Ok(cards) => cards.read(&mut gather, &mut readings),
                Err(reason) => gather.miss("cards of NVIDIA", reason.clone()),
            }
        }
        gpu::missed(&mut gather, &readings.gpus);
        let has_cards = readings.gpus.iter().any(|gpu| gpu.memory_used_bytes.is_some());
        readings.memory = memory::read(&mut gather, has_cards);
        readings.absent = gather.absent;
        readings
    }
}

/// Reads, and remembers what was not there.
pub(super) struct Gather<'a> {
    /// The trees.
    pub sysfs: &'a Sysfs,
    absent: Vec<Absent>,
}

impl Gather<'_> {
    /// The value, or a line of `absent`.
    pub fn optional<T>(&mut self, source: &str, value: Result<T, Reason>) -> Option<T> {
        value.map_err(|reason| self.miss(source, reason)).ok()
    }

    /// Says that a source gave nothing.
    pub fn miss(&mut self, source: &str, reason: impl Into<Reason>) {
        self.absent.push(Absent { source: source.to_owned(), reason: reason.into() });
    }
}
