//! Heat and power, wired: the watch over the board and the engines of the host.
//!
//! ```text
//! Host's engines -> device, phase, tokens, who waits -> power::Watch -> pace
//! pace -> tempo of every engine     -> jobs: go, or wait with a reason
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{App, Service};
use crate::base::clock::Clock;
use crate::base::hash::fnv1a;
use crate::hosting::Host;
use crate::inference::{Engine, EnginePhase, Tempo};
use crate::jobs::{Pace, Verdict};
use crate::power::{
    Compute, EnergyMeter, EnginePace, EngineView, Engines, Keeper, Phase, Watch, Watching,
};
use crate::server::Gate;

/// The watch of a service that does not run yet.
pub struct Board {
    pub(super) watch: Arc<Watch>,
    keeper: Keeper,
    meter: Option<EnergyMeter>,
}

impl App {
    /// The board under the app's root; what a crash left set on it is taken back.
    pub(super) fn board(&self, notes: &mut Vec<String>) -> Option<Board> {
        let config = self.config().power.clone();
        let keeper = match Keeper::open(&self.board_root, &self.dirs.state, config) {
            Ok(keeper) => keeper,
            Err((key, why)) => {
                notes.push(format!("`{key}`: {why}; nobody governs heat and power"));
                return None;
            }
        };
        // Most machines have no sensor, and `jetforge power` says so.
        let meter = EnergyMeter::open_still(&self.board_root).ok();
        Some(Board { watch: Watch::new(self.dirs.state.clone()), keeper, meter })
    }

    /// Looks for the kernel's files under another folder than `/`.
    pub fn look_under(&mut self, root: &Path) {
        root.clone_into(&mut self.board_root);
    }
}

impl Service {
    /// Lets the board be watched from now on. Dropping the result takes back what was set.
    pub fn watch_board(&mut self) -> Option<Watching> {
        let Board { watch, keeper, meter } = self.board.take()?;
        let (host, gate) = (self.host.clone(), self.gate.clone());
        let ran_jobs = AtomicBool::new(true);
        match watch.start(keeper, meter, Arc::new(Hosted { host, gate, ran_jobs })) {
            Ok(watching) => Some(watching),
            Err(error) => {
                self.notes.push(format!("no thread for heat and power: {error}"));
                None
            }
        }
    }
}

/// The engines of a host, and the jobs behind its gate.
struct Hosted {
    host: Host,
    gate: Gate,
    ran_jobs: AtomicBool,
}

impl Engines for Hosted {
    fn view(&self) -> EngineView {
        let mut view = EngineView::default();
        let mut busiest = EnginePhase::Idle;
        for (name, engine) in self.host.engines() {
            let stats = engine.stats();
            view.compute = view.compute.and(compute_of(&engine));
            view.n_decoded += stats.generated_tokens_total;
            view.n_sequence += u32::try_from(stats.n_running).unwrap_or(u32::MAX);
            view.n_interactive += u32::try_from(stats.n_interactive).unwrap_or(u32::MAX);
            if stats.phase > busiest {
                busiest = stats.phase;
                view.model = number_of(&name, &engine);
            }
        }
        view.phase = match busiest {
            EnginePhase::Idle => Phase::Idle,
            EnginePhase::Decode => Phase::Decode,
            EnginePhase::Prefill => Phase::Prefill,
        };
        view
    }

    fn keep_to(&self, pace: &EnginePace) {
        self.host.set_tempo(Tempo {
            duty_permille: pace.duty_permille,
            n_threads: pace.n_threads,
            n_batch: pace.n_batch,
        });
        if self.ran_jobs.swap(pace.background, Ordering::Relaxed) != pace.background {
            self.gate.wake_jobs();
        }
    }
}

fn compute_of(engine: &Engine) -> Compute {
    let device = engine.info().device();
    match device.name.as_str() {
        "cpu" => Compute::Cpu,
        _ if device.is_split => Compute::Both,
        _ => Compute::Gpu,
    }
}

/// A number for what was measured of a model: of its name and size, for another file may come to
/// have the name.
fn number_of(name: &str, engine: &Engine) -> u64 {
    let plan = engine.info().memory_plan();
    fnv1a(name.bytes().chain(plan.needed_bytes().to_le_bytes()))
}

/// Whether jobs may run, by the board and its clock.
pub(super) struct BoardPace {
    watch: Option<Arc<Watch>>,
    /// `None` on a PC, whose clock goes on while it is off.
    clock: Option<Clock>,
}

impl BoardPace {
    pub(super) fn new(board: Option<&Board>) -> BoardPace {
        let watch = board.map(|board| Arc::clone(&board.watch));
        let is_pc = board.is_none_or(|board| board.keeper.board().is_pc());
        BoardPace { watch, clock: (!is_pc).then(Clock::look) }
    }
}

impl Pace for BoardPace {
    fn verdict(&self, _: i64) -> Verdict {
        let reason = self.watch.as_ref().and_then(|watch| watch.standing().jobs_wait_for());
        match reason {
            Some(reason) => Verdict::Wait { reason, until_ms: None },
            None => Verdict::Go,
        }
    }

    fn knows_time(&self) -> bool {
        self.clock.is_none_or(|clock| clock.is_believed())
    }
}
