//! The watch: a thread that keeps the board within its limits while the service runs.
//!
//! ```text
//! every 100 ms   what does the engine do?
//! once a second, when work begins, and when somebody chose a profile:
//!                Keeper::look -> pace to the engines -> standing, for whoever asks
//! stop           what was set is taken back, what was calibrated is kept
//! ```
//!
//! It knows the engines only as [`Engines`]. Nobody waits for it but who chooses a profile.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::config::PowerConfig;
use super::energy::EnergyMeter;
use super::governor::{Cause, Decision, EnginePace, EngineView, Phase};
use super::keeper::{Keeper, choose, chosen};
use super::profile::{Profile, Tier};
use super::sensors::Readings;

/// How often the engine is looked at, and the board; the board sooner when prompts are read again,
/// which beside others that decode may be in every other step.
const GLANCE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(300);

/// The engines, as far as heat and power go.
pub trait Engines: Send + Sync {
    /// What they do, together.
    fn view(&self) -> EngineView;
    /// Asks them, and those who run jobs, to keep to a pace.
    fn keep_to(&self, pace: &EnginePace);
}

/// How the board stands, as of the last look.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Which board it is.
    pub board: String,
    /// What is in force: the owner's choice.
    pub profile: Profile,
    /// Whether it was chosen while the service ran, or before by `jetforge power`.
    pub is_chosen: bool,
    /// What came of it; `None` before the first look.
    pub decision: Option<Decision>,
    /// The models that the configuration names for people and for jobs under the tier of now.
    pub models: [Option<String>; 2],
    /// What was read.
    pub readings: Readings,
    /// Why clocks that should be set are not.
    pub trouble: Option<String>,
    /// What energy is read from; `None` without a sensor.
    pub energy_sensor: Option<String>,
    /// Joules that the machine took since the service started.
    pub joules: f64,
    /// Of these, joules while tokens were made and no prompt was read, and those tokens; where only
    /// cards have a sensor, while cards alone computed.
    pub decode_joules: f64,
    /// See above.
    pub n_decoded: u64,
}

impl Standing {
    /// Joules that the machine took for a token, while it made them.
    pub fn joule_per_token(&self) -> Option<f64> {
        let is_known = self.energy_sensor.is_some() && self.n_decoded > 0;
        is_known.then(|| self.decode_joules / self.n_decoded as f64)
    }

    /// Why jobs wait, in words for people; `None` if they need not.
    pub fn jobs_wait_for(&self) -> Option<String> {
        let decision = self.decision.as_ref()?;
        if decision.pace.background {
            return None;
        }
        let is_hold = |cause: &&Cause| !matches!(cause, Cause::Idle | Cause::Calibration);
        let cause = decision.causes.iter().find(is_hold);
        Some(match cause {
            Some(cause) => cause.words().to_owned(),
            None if self.profile != Profile::Auto && decision.tier == Tier::Eco => {
                "the power profile eco runs no jobs".to_owned()
            }
            None => "the board has to cool down first".to_owned(),
        })
    }
}

#[derive(Default)]
struct Seat {
    standing: Standing,
    config: Option<PowerConfig>,
    is_rung: bool,
    is_stopping: bool,
}

/// The watch, as those see it who ask how the board stands. The thread itself is a [`Watching`].
pub struct Watch {
    seat: Mutex<Seat>,
    bell: Condvar,
    state_dir: PathBuf,
}

/// The running thread; dropping it stops it and takes back what it set.
pub struct Watching {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// A watch whose thread does not run yet; a profile is chosen in `state_dir`.
    pub fn new(state_dir: PathBuf) -> Arc<Watch> {
        Arc::new(Watch { seat: Mutex::default(), bell: Condvar::new(), state_dir })
    }

    /// Starts the thread. `meter` is what energy is read from, if there is a sensor.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        self: &Arc<Watch>,
        keeper: Keeper,
        meter: Option<EnergyMeter>,
        engines: Arc<dyn Engines>,
    ) -> std::io::Result<Watching> {
        let mut seat = self.lock();
        seat.standing.board = keeper.board().name();
        seat.standing.profile = keeper.profile();
        seat.standing.readings = keeper.readings().clone();
        seat.standing.trouble = keeper.trouble().map(str::to_owned);
        seat.standing.energy_sensor = meter.as_ref().map(|meter| meter.name().to_owned());
        drop(seat);
        let watch = Arc::clone(self);
        let work = move || Looks::new(watch, keeper, meter, engines).run();
        let thread = std::thread::Builder::new().name("power".into()).spawn(work)?;
        Ok(Watching { watch: Arc::clone(self), thread: Some(thread) })
    }

    /// How the board stands.
    pub fn standing(&self) -> Standing {
        self.lock().standing.clone()
    }

    /// The model for a request that names none, where the configuration says so: of somebody who
    /// waits, or of nobody.
    pub fn model_for(&self, is_interactive: bool) -> Option<String> {
        self.lock().standing.models[usize::from(!is_interactive)].clone()
    }

    /// Chooses a profile, which outlives the service; `None` goes back to the configured one.
    ///
    /// # Errors
    /// If the choice cannot be kept.
    pub fn choose(&self, profile: Option<Profile>) -> std::io::Result<()> {
        choose(&self.state_dir, profile)?;
        self.ring(|_| {});
        Ok(())
    }

    /// The profile that was chosen, and not configured.
    pub fn chosen(&self) -> Option<Profile> {
        chosen(&self.state_dir)
    }

    /// Goes by another configuration from the next look on; it was checked.
    pub fn configure(&self, config: PowerConfig) {
        self.ring(|seat| seat.config = Some(config));
    }

    fn ring(&self, change: impl FnOnce(&mut Seat)) {
        let mut seat = self.lock();
        change(&mut seat);
        seat.is_rung = true;
        drop(seat);
        self.bell.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watch.ring(|seat| seat.is_stopping = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Looks {
    watch: Arc<Watch>,
    keeper: Keeper,
    meter: Option<EnergyMeter>,
    engines: Arc<dyn Engines>,
    started: Instant,
    /// What was seen at the last look, and when.
    last: Option<(EngineView, Instant)>,
}

impl Looks {
    fn new(
        watch: Arc<Watch>,
        keeper: Keeper,
        meter: Option<EnergyMeter>,
        engines: Arc<dyn Engines>,
    ) -> Looks {
        Looks { watch, keeper, meter, engines, started: Instant::now(), last: None }
    }

    fn run(mut self) {
        loop {
            let is_quiet = |seat: &mut Seat| !seat.is_rung;
            let seat = self.watch.lock();
            let waited = self.watch.bell.wait_timeout_while(seat, GLANCE, is_quiet);
            let mut seat = waited.unwrap_or_else(PoisonError::into_inner).0;
            let is_rung = std::mem::take(&mut seat.is_rung);
            let (config, is_stopping) = (seat.config.take(), seat.is_stopping);
            drop(seat);
            if is_stopping {
                break;
            }
            // What cannot be was refused where it was read.
            let _ = config.map(|config| self.keeper.configure(config));
            let view = self.engines.view();
            let is_due = self.last.as_ref().is_none_or(|(last, at)| {
                let rises = last.phase == Phase::Idle || view.phase == Phase::Prefill;
                let soon = if last.phase == Phase::Idle { GLANCE } else { LOOK_SOON };
                let is_changed = last.phase != view.phase && rises && at.elapsed() >= soon;
                is_changed || at.elapsed() >= LOOK
            });
            if is_due || is_rung {
                self.look(view);
            }
        }
        // What could not be taken back is tried again at the next start.
        let _ = self.keeper.stop();
    }

    fn look(&mut self, view: EngineView) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let decision = self.keeper.look(&view, now_ms);
        self.engines.keep_to(&decision.pace);
        let joules = self.meter.as_ref().map_or(0.0, EnergyMeter::joules);
        let is_chosen = self.watch.chosen().is_some();
        let mut seat = self.watch.lock();
        let standing = &mut seat.standing;
        if let Some((last, _)) = &self.last
            && (last.phase, view.phase) == (Phase::Decode, Phase::Decode)
            && self.meter.as_ref().is_none_or(|meter| meter.covers(view.compute))
        {
            standing.decode_joules += (joules - standing.joules).max(0.0);
            standing.n_decoded += view.n_decoded.saturating_sub(last.n_decoded);
        }
        standing.joules = joules;
        let model =
            |is_interactive| self.keeper.model_for(&decision, is_interactive).map(str::to_owned);
        standing.models = [model(true), model(false)];
        standing.profile = self.keeper.profile();
        standing.is_chosen = is_chosen;
        standing.readings.clone_from(self.keeper.readings());
        standing.trouble = self.keeper.trouble().map(str::to_owned);
        standing.decision = Some(decision);
        drop(seat);
        self.last = Some((view, Instant::now()));
    }
}
