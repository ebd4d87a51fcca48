//! What tokens cost in energy, where the machine has a sensor.
//!
//! Rounds are summed up with what they took; a round is longer than the sensors' period. Figures
//! are gross: what the machine takes when it does nothing stands beside them.

use std::path::Path;
use std::time::{Duration, Instant};

use super::figures::{Figure, Unit};
use crate::power::{Compute, EnergyMeter};

/// For how long a machine that does nothing is measured.
const IDLE: Duration = Duration::from_millis(500);

/// Sensors, if there are any.
pub struct Energy(Option<EnergyMeter>);

impl Energy {
    /// Looks for sensors in the tree of sysfs under `root`; says what it found in `notes`.
    pub fn open(root: &Path, notes: &mut Vec<String>) -> Energy {
        match EnergyMeter::open(root) {
            Ok(meter) => {
                notes.push(format!("energy is that of {}, all that it took", meter.name()));
                Energy(Some(meter))
            }
            Err(why) => {
                notes.push(format!("energy was left out: {why}"));
                Energy(None)
            }
        }
    }

    /// The same for work of `compute`; none, which `notes` then say, if no sensor is beside it.
    pub fn of_work(self, compute: Compute, notes: &mut Vec<String>) -> Energy {
        let Some(meter) = self.0 else { return Energy(None) };
        if meter.covers(compute) {
            return Energy(Some(meter));
        }
        let name = meter.name();
        notes.push(format!(
            "energy of tokens was left out: cores compute, and what is read is {name}"
        ));
        Energy(None)
    }

    /// What the machine takes when nothing is asked of it.
    pub fn idle(&self) -> Option<Figure> {
        let meter = self.0.as_ref()?;
        let (before, started) = (meter.joules(), Instant::now());
        std::thread::sleep(IDLE);
        let watts = (meter.joules() - before) / started.elapsed().as_secs_f64();
        Some(Figure::new("idle power", Unit::Watts, vec![watts]))
    }

    /// Does something, and says how many joules that took.
    pub fn of<T>(&self, work: impl FnOnce() -> T) -> (T, Option<f64>) {
        let before = self.0.as_ref().map(EnergyMeter::joules);
        let done = work();
        let after = self.0.as_ref().map(EnergyMeter::joules);
        (done, after.zip(before).map(|(after, before)| after - before))
    }
}

/// The figures of rounds of `n_tokens` tokens that took so many joules each; none where nothing was
/// measured.
pub fn figures(test: &str, n_tokens: usize, joules: Vec<Option<f64>>) -> Vec<Figure> {
    let Some(joules) = joules.into_iter().collect::<Option<Vec<f64>>>() else { return Vec::new() };
    let each = joules.iter().map(|joules| joules / n_tokens.max(1) as f64).collect();
    vec![
        Figure::new(format!("{test}: energy"), Unit::Joules, joules),
        Figure::new(format!("{test}: energy of a token"), Unit::JoulesPerToken, each),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sensor_that_is_not_there_is_told_and_costs_nothing() {
        let (root, mut notes) = (tempfile::tempdir().unwrap(), Vec::new());
        let energy = Energy::open(root.path(), &mut notes);
        assert!(notes[0].starts_with("energy was left out: this machine has no"), "{notes:?}");
        assert!(energy.idle().is_none());
        let (done, joules) = energy.of(|| 7);
        assert_eq!((done, joules), (7, None));
        assert!(figures("pp512", 512, vec![joules; 3]).is_empty());
    }

    #[test]
    fn joules_are_those_of_the_work() {
        let (root, mut notes) = (tempfile::tempdir().unwrap(), Vec::new());
        let zone = root.path().join("sys/class/powercap/intel-rapl:0");
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("name"), "package-0").unwrap();
        let counter = zone.join("energy_uj");
        std::fs::write(&counter, "1000000").unwrap();
        let energy = Energy::open(root.path(), &mut notes);
        assert!(notes[0].contains("package-0"), "{notes:?}");
        // A reader may find the file empty while it is written; the next reading makes up for it.
        let part = zone.join("next");
        std::fs::write(&part, "5000000").unwrap();
        let (_, joules) = energy.of(|| std::fs::rename(&part, &counter).unwrap());
        let figures = figures("tg8", 8, vec![joules]);
        let values: Vec<_> = figures.iter().map(|f| (f.test.as_str(), f.values[0])).collect();
        assert_eq!(values, [("tg8: energy", 4.0), ("tg8: energy of a token", 0.5)]);
    }
}
