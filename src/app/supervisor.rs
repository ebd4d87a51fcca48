//! What the service manager hears: that the model answers, and that engines go on.
//!
//! ```text
//! loading    EXTEND_TIMEOUT_USEC, again and again, for a quarter of an hour at most
//! answering  READY=1, once the first model has made a token
//! then       WATCHDOG=1, only if every engine's thread moved since the last look; STATUS=
//! stop       STOPPING=1
//! ```
//!
//! HTTP may answer while an engine's thread hangs; so the thread itself is called, and what it does
//! not answer, the manager does not hear. A thread in the middle of a long step counts operations
//! as they are done, here or on a GPU, and one that pauses for heat wakes for the call.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::AppError;
use crate::base::limits::START_S_MAX;
use crate::base::notify::Notifier;
use crate::hosting::{Host, HostError};
use crate::inference::{Event, Pooling, Request};

/// Time between two looks where no watchdog asks for less.
const LOOK: Duration = Duration::from_secs(5);
/// Looks within the watchdog's time: one may come late.
const N_LOOK: u32 = 3;
/// By how much a look lengthens the start.
const START_MORE: Duration = Duration::from_secs(60);

/// Watches whether engines go on.
#[derive(Debug, Default)]
struct Pulse {
    beats: BTreeMap<String, u64>,
}

impl Pulse {
    /// Takes the beat of each engine; whether none has stood still since the last look. One that
    /// was not there then has until the next.
    fn feel(&mut self, beats: BTreeMap<String, u64>) -> bool {
        let last = std::mem::replace(&mut self.beats, beats);
        self.beats.iter().all(|(name, beat)| last.get(name) != Some(beat))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Loading,
    Serving,
    /// The manager has its own patience with that.
    Stopping,
    Over,
}

struct Shared {
    notifier: Notifier,
    stage: Mutex<Stage>,
    bell: Condvar,
}

/// The line to the service manager. Clones share it; without a manager it says nothing.
#[derive(Clone, Default)]
pub struct Supervisor(Option<Arc<Shared>>);

/// The thread that looks after engines; dropping it ends it.
pub struct Supervised {
    supervisor: Supervisor,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// The line to the manager that `notifier` reaches, if there is one.
    pub fn new(notifier: Option<Notifier>) -> Supervisor {
        let shared =
            |notifier| Arc::new(Shared { notifier, stage: Mutex::default(), bell: Condvar::new() });
        Supervisor(notifier.map(shared))
    }

    /// Starts to look after the engines of a host; `status` is a line for people.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        &self,
        host: Host,
        status: impl Fn() -> String + Send + 'static,
    ) -> std::io::Result<Supervised> {
        let mut supervised = Supervised { supervisor: self.clone(), thread: None };
        if let Some(shared) = self.0.clone() {
            let work = move || shared.run(&host, &status);
            let thread = std::thread::Builder::new().name("supervisor".into());
            supervised.thread = Some(thread.spawn(work)?);
        }
        Ok(supervised)
    }

    /// Lets the first model, which is loaded, make a token, and says that the service is ready.
    /// Where no manager asks, nothing is done.
    ///
    /// # Errors
    /// If the model makes none.
    pub async fn ready(&self, host: &Host) -> Result<(), AppError> {
        let Some(shared) = &self.0 else { return Ok(()) };
        if !answers(host).await? {
            return Err(AppError::Mute { model: host.default_name().to_owned() });
        }
        shared.notifier.ready();
        shared.set(Stage::Serving);
        Ok(())
    }

    /// Says that the configuration is read anew, and, when `read` is done, that it was.
    pub fn reload<T>(&self, read: impl FnOnce() -> T) -> T {
        let serving = self.0.as_ref().filter(|shared| *shared.lock() == Stage::Serving);
        serving.into_iter().for_each(|shared| shared.notifier.reloading());
        let result = read();
        serving.into_iter().for_each(|shared| shared.notifier.ready());
        result
    }

    /// Says that the service ends.
    pub fn stopping(&self) {
        self.0.iter().for_each(|shared| {
            shared.notifier.stopping();
            shared.set(Stage::Stopping);
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, stage: Stage) {
        *self.lock() = stage;
        self.bell.notify_all();
    }

    fn run(&self, host: &Host, status: &dyn Fn() -> String) {
        let every = self.notifier.watchdog().map_or(LOOK, |limit| (limit / N_LOOK).min(LOOK));
        let mut looks = Looks::default();
        loop {
            let stage = *self.lock();
            if stage == Stage::Over {
                return;
            }
            looks.look(&self.notifier, stage, host, status);
            let is_same = |now: &mut Stage| *now == stage;
            let pause = if stage == Stage::Loading { LOOK } else { every };
            let waited = self.bell.wait_timeout_while(self.lock(), pause, is_same);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// What was seen and said at the last look.
#[derive(Default)]
struct Looks {
    pulse: Pulse,
    said: String,
    /// Looks while nothing answers yet.
    n_loading: u32,
}

impl Looks {
    fn look(
        &mut self,
        notifier: &Notifier,
        stage: Stage,
        host: &Host,
        status: &dyn Fn() -> String,
    ) {
        let beats = host.engines().into_iter().map(|(name, engine)| (name, engine.beat()));
        let moves = self.pulse.feel(beats.collect()) || stage != Stage::Serving;
        let mut line = match stage {
            Stage::Loading => {
                loading(host.loading().and_then(|loading| loading.progress.fraction()))
            }
            Stage::Stopping | Stage::Over => "stopping".to_owned(),
            Stage::Serving => status(),
        };
        if stage == Stage::Loading {
            self.n_loading = self.n_loading.saturating_add(1);
            if LOOK * self.n_loading <= Duration::from_secs(START_S_MAX) {
                notifier.extend(START_MORE);
            }
        } else if moves && notifier.watchdog().is_some() {
            notifier.alive();
        }
        if !moves {
            line.insert_str(0, "an engine stands still; ");
        }
        if line != self.said && notifier.status(&line) {
            self.said = line;
        }
    }
}

/// What the manager hears while so much of the first model is loaded.
fn loading(fraction: Option<f64>) -> String {
    fraction.map_or("loading".to_owned(), |f| format!("loading, {:.0} %", (100.0 * f).floor()))
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Some(shared) = &self.supervisor.0 {
            shared.set(Stage::Over);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the first model makes a token, or an embedding where that is all it makes.
async fn answers(host: &Host) -> Result<bool, HostError> {
    let lease = host.lease(None).await?;
    if !lease.info().hparams().arch.causal {
        return Ok(lease.embed(vec![0], Pooling::Mean).await.is_ok());
    }
    let request = Request {
        id: "ready".to_owned(),
        prompt: vec![0],
        n_predict: Some(1),
        uses_cache: false,
        ..Request::default()
    };
    let Ok(mut stream) = lease.submit(request) else { return Ok(false) };
    while let Some(event) = stream.next().await {
        match event {
            Event::Done { .. } => return Ok(true),
            Event::Failed(_) => return Ok(false),
            _ => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
