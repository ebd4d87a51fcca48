//! The keeper: sensors, governor and actuator together, once a second.
//!
//! ```text
//! open   takes back what a crash left, reads the board, loads what was calibrated
//! look   read -> govern -> set, if it may -> decision
//! stop   takes back what was set, keeps what was calibrated
//! ```
//!
//! Where there is a helper with rights (`ask.rs`), it is the one that sets and takes back.
//!
//! A person changes the profile while the service runs through a file of one word in the directory
//! of states, which the next look reads: no port and no signal is needed, and the choice survives a
//! restart. Files that cannot be written or read never stop the looks: the pace is still told, and
//! why nothing was set is kept for whoever asks.
//!
//! The ladder is of what the engines compute on, so it is another one as soon as they say it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::apply::{Actuator, ApplyError, Owner};
use super::ask::Asker;
use super::board::Board;
use super::calibrate::Calibration;
use super::config::PowerConfig;
use super::governor::{Decision, EngineView, Policy, Settings, State, Vitals, govern};
use super::profile::{Compute, Profile};
use super::sensors::{Readings, Sensors};
use super::sysfs::Sysfs;
use super::tune::{Tuning, tuning};
use super::writes::plan;
use crate::base::file;
use crate::base::limits::POWER_JOURNAL_BYTES_MAX;

/// Holds the board within its limits.
#[derive(Debug)]
pub struct Keeper {
    config: PowerConfig,
    policy: Policy,
    /// What the engines said last that computes.
    compute: Compute,
    state: State,
    sensors: Sensors,
    readings: Readings,
    actuator: Actuator,
    /// Who sets the board in our place, where there is one.
    asker: Option<Asker>,
    state_dir: PathBuf,
    set: Option<Settings>,
    /// When what could not be set is tried again, and how long after that.
    retry: Option<(u64, u64)>,
    /// Why nothing is set.
    trouble: Option<String>,
}

/// What could not be set is tried again after this time, and each time after twice as long.
const RETRY_MS: u64 = 2_000;
const RETRY_MS_MAX: u64 = 300_000;

impl Keeper {
    /// Opens the board under `root`, which is `/` outside of tests.
    ///
    /// # Errors
    /// A configuration that [`PowerConfig::check`] refuses: its key and what is wrong.
    pub fn open(
        root: &Path,
        state_dir: &Path,
        config: PowerConfig,
    ) -> Result<Keeper, (&'static str, String)> {
        let actuator = Actuator::new(root, state_dir, Owner::Service);
        let asker = Asker::find(root);
        let trouble = match asker.is_none().then(|| actuator.revert()) {
            None => None,
            Some(Ok(reverted)) => reverted.left.into_iter().next(),
            Some(Err(error)) => Some(error.to_string()),
        };
        let mut sensors = Sensors::open(root);
        let readings = sensors.read();
        let compute = Compute::default();
        let policy = config.policy(sensors.board(), &readings, compute)?;
        let known = read_bounded(&calibrations(state_dir));
        let known = known.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let state = State::with_calibrations(known, &policy.ladder);
        let state_dir = state_dir.to_owned();
        let policy = Policy { profile: chosen(&state_dir).unwrap_or(policy.profile), ..policy };
        Ok(Keeper {
            config,
            policy,
            compute,
            state,
            sensors,
            readings,
            actuator,
            asker,
            state_dir,
            set: None,
            retry: None,
            trouble,
        })
    }

    /// Which board it is.
    pub fn board(&self) -> &Board {
        self.sensors.board()
    }

    /// The profile in force at the last look: chosen, else configured.
    pub fn profile(&self) -> Profile {
        self.policy.profile
    }

    /// Goes by another configuration from the next look on. What was measured of models stays; what
    /// may not be set any more is taken back.
    ///
    /// # Errors
    /// As [`Keeper::open`]; the configuration before stays in force.
    pub fn configure(&mut self, config: PowerConfig) -> Result<(), (&'static str, String)> {
        let policy = config.policy(self.sensors.board(), &self.readings, self.compute)?;
        self.go_by(policy);
        match &mut self.asker {
            // Another helper comes with the next connection, and reads what is configured then.
            Some(asker) if config != self.config => {
                asker.let_go();
                self.trouble = None;
            }
            Some(_) => {}
            None if self.config.set_clocks && !config.set_clocks => {
                self.trouble = self.actuator.revert().err().map(|error| error.to_string());
            }
            None => {}
        }
        self.config = config;
        (self.set, self.retry) = (None, None);
        Ok(())
    }

    fn go_by(&mut self, policy: Policy) {
        if policy.ladder != self.policy.ladder {
            self.state = std::mem::take(&mut self.state).on_ladder(&policy.ladder);
        }
        self.policy = policy;
    }

    /// What was read at the last look.
    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    /// Why nothing is set on the board, if something should be.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The model that serves a request under the tier of now, where the configuration names one.
    pub fn model_for(&self, decision: &Decision, is_interactive: bool) -> Option<&str> {
        self.config.model_for(decision.tier, is_interactive)
    }

    /// Reads, decides, and sets what may be set. `now_ms` only ever grows.
    pub fn look(&mut self, engine: &EngineView, now_ms: u64) -> Decision {
        self.readings = self.sensors.read();
        // Engines that are gone said last what computes.
        if ![Compute::Auto, self.compute].contains(&engine.compute) {
            self.compute = engine.compute;
            let policy = self.config.policy(self.sensors.board(), &self.readings, self.compute);
            // What cannot be was refused when it came.
            if let Ok(policy) = policy {
                self.go_by(policy);
            }
        }
        self.policy.profile = chosen(&self.state_dir).unwrap_or(self.config.profile);
        let vitals = Vitals::of(&self.readings);
        let n_known = n_points(self.state.calibrations());
        let (state, decision) = govern(&self.policy, &self.state, &vitals, engine, now_ms);
        self.state = state;
        if n_points(self.state.calibrations()) != n_known {
            self.keep_calibrations();
        }
        let may_set = self.config.set_clocks && self.sensors.board().is_nano();
        let is_new = self.set != Some(decision.settings);
        let is_late = self.retry.is_some_and(|(at_ms, _)| now_ms >= at_ms);
        if may_set && (is_new || is_late) {
            self.set = Some(decision.settings);
            let failed = self.apply(&decision.settings).err();
            let wait_ms = match self.retry {
                Some((_, wait_ms)) if !is_new => wait_ms.saturating_mul(2).min(RETRY_MS_MAX),
                _ => RETRY_MS,
            };
            self.retry = failed.is_some().then_some((now_ms.saturating_add(wait_ms), wait_ms));
            self.trouble = failed.map(|error| error.to_string());
        }
        decision
    }

    /// Takes back what was set.
    ///
    /// # Errors
    /// What could not be taken back; the next start tries again.
    pub fn stop(&mut self) -> Result<(), ApplyError> {
        self.keep_calibrations();
        self.set = None;
        match &mut self.asker {
            Some(asker) => asker.let_go(),
            None => return self.actuator.revert().map(drop),
        }
        Ok(())
    }

    fn apply(&mut self, settings: &Settings) -> Result<(), ApplyError> {
        if let Some(asker) = &mut self.asker {
            return asker.set(settings);
        }
        let changes = self.actuator.changes(&plan(settings, &self.readings))?;
        self.actuator.apply(&changes)
    }

    /// Losing them costs half a minute of measuring, so nothing is said of a failure.
    fn keep_calibrations(&self) {
        if let Ok(text) = serde_json::to_vec(self.state.calibrations()) {
            let _ = file::replace(&calibrations(&self.state_dir), &text, 0o644);
        }
    }
}

fn n_points(known: &BTreeMap<String, Calibration>) -> usize {
    known.values().map(|known| known.points().len()).sum()
}

fn calibrations(state_dir: &Path) -> PathBuf {
    state_dir.join("power.calibrations.json")
}

fn choice(state_dir: &Path) -> PathBuf {
    state_dir.join("power.profile")
}

/// The profile that was chosen while the service ran, if any.
pub fn chosen(state_dir: &Path) -> Option<Profile> {
    Profile::parse(read_bounded(&choice(state_dir))?.trim())
}

/// Chooses a profile, for a running service and for the next ones; `None` goes back to the
/// configured one.
///
/// # Errors
/// If the directory of states cannot be written.
pub fn choose(state_dir: &Path, profile: Option<Profile>) -> std::io::Result<()> {
    let choice = choice(state_dir);
    match profile {
        Some(profile) => file::replace(&choice, profile.name().as_bytes(), 0o644),
        None => file::remove(&choice),
    }
}

/// What `jetforge tune` sets on the board under `root`.
pub fn tune(root: &Path, config: &PowerConfig) -> Tuning {
    let mut sensors = Sensors::open(root);
    let readings = sensors.read();
    let supply = config.supply_of(sensors.board());
    tuning(&Sysfs::new(root), sensors.board(), &readings, supply)
}

fn read_bounded(path: &Path) -> Option<String> {
    let file = std::fs::File::open(path).ok()?;
    let mut text = String::new();
    file.take(POWER_JOURNAL_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}
