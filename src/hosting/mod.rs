//! Floor 4: models by name, loaded when somebody asks for them and unloaded when nobody does.
//!
//! ```text
//! lease(name) --> loaded: counted, handed out
//!             --> not loaded: first come, first served; idle models make room, busy ones are
//!                 waited for, and what cannot fit is refused with the bytes that are missing
//! sweep()     --> unloads what was idle for its keep-alive
//! ```
//!
//! A lease keeps its model: while one is out, the model is busy and stays.

mod keep_alive;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle};

pub use keep_alive::{FOREVER, KeepAliveError, parse_keep_alive};

use crate::inference::{
    Engine, EngineOptions, InferenceError, LoadOptions, LoadProgress, Model, ModelSource,
    SamplerOptions, Tempo,
};

/// Time between two lines of the log about a model that loads.
const LOADING_TOLD_EVERY: Duration = Duration::from_secs(5);

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelEntry {
    /// What it is asked for by.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Where it is.
    pub source: ModelSource,
    /// How it is loaded.
    pub load: LoadOptions,
    /// How its engine runs.
    pub engine: EngineOptions,
    /// How tokens are chosen where a request says nothing.
    pub sampler: SamplerOptions,
    /// How long it stays when nobody uses it; `None` for ever.
    pub keep_alive: Option<Duration>,
}

/// A model and how it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct HostedModel {
    /// What it is.
    pub entry: ModelEntry,
    /// Whether it is in memory.
    pub is_loaded: bool,
    /// Leases that are out.
    pub n_lease: usize,
    /// Bytes that it was planned with, if it is loaded.
    pub memory_bytes: u64,
}

/// A model on its way into memory.
#[derive(Debug)]
pub struct Loading {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub progress: LoadProgress,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No model has this name.
    #[error("model {name:?} is not known here; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// It could not be loaded.
    #[error("model {name:?}: {source}")]
    Load {
        /// Which.
        name: String,
        /// Why.
        source: Arc<InferenceError>,
    },
    /// The program ends.
    #[error("the service is stopping")]
    Stopping,
}

/// Finds a model that is not listed, such as one in the store.
pub type Finder = Box<dyn Fn(&str) -> Option<ModelEntry> + Send + Sync>;

/// Told when an engine's thread panics.
pub type OnPanic = Arc<dyn Fn(String) + Send + Sync>;

struct Place {
    entry: ModelEntry,
    engine: Option<Arc<Engine>>,
    memory_bytes: u64,
    n_lease: usize,
    idle_since: Instant,
    /// Set by a request's own keep-alive; holds until the model is used again.
    keep_alive: Option<Duration>,
    /// Adapters and scales where a request says nothing; `None` for all that are loaded, at 1.
    adapters: Option<Vec<(usize, f32)>>,
}

#[derive(Default)]
struct State {
    places: BTreeMap<String, Place>,
    /// Of every engine, those that are loaded later too.
    tempo: Tempo,
    /// What loads, for as long as somebody loads it.
    loading: Weak<Loading>,
    is_stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Held by whoever loads: tokio's mutex serves first come, first served.
    loader: Arc<tokio::sync::Mutex<()>>,
    released: Notify,
    /// A model is idle that is not to stay at all.
    due: Notify,
    default_name: String,
    memory_max_bytes: u64,
    find: Finder,
    on_panic: OnPanic,
}

/// The models of a service. Clones share them.
#[derive(Clone)]
pub struct Host(Arc<Shared>);

impl Host {
    /// A host of `entries`, of which the first answers requests that name no model. Together they
    /// may take `memory_max_bytes`.
    ///
    /// # Panics
    /// Without an entry.
    pub fn new(
        entries: Vec<ModelEntry>,
        memory_max_bytes: u64,
        find: Finder,
        on_panic: OnPanic,
    ) -> Host {
        let default_name = entries.first().expect("a host has a model").name.clone();
        let places = entries.into_iter().map(|entry| (entry.name.clone(), Place::new(entry)));
        let state = State { places: places.collect(), ..State::default() };
        Host(Arc::new(Shared {
            state: Mutex::new(state),
            loader: Arc::default(),
            released: Notify::new(),
            due: Notify::new(),
            default_name,
            memory_max_bytes,
            find,
            on_panic,
        }))
    }

    /// A host of one engine that is already running.
    pub fn single(entry: ModelEntry, engine: Engine) -> Host {
        let name = entry.name.clone();
        let host = Host::new(vec![entry], u64::MAX, Box::new(|_| None), Arc::new(|_| {}));
        if let Some(place) = host.lock().places.get_mut(&name) {
            place.engine = Some(Arc::new(engine));
        }
        host
    }

    /// The name of the model that answers when none is named.
    pub fn default_name(&self) -> &str {
        &self.0.default_name
    }

    /// A model by name, loaded; the default one for `None` or an empty name.
    ///
    /// # Errors
    /// If there is none of that name, it cannot be loaded, or the program ends.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, HostError> {
        let name = self.resolve(name)?;
        if let Some(lease) = self.try_lease(&name)? {
            return Ok(lease);
        }
        let mut loader = Arc::clone(&self.0.loader).lock_owned().await;
        loop {
            // Heard from here on, so that no release is missed.
            let released = self.0.released.notified();
            if let Some(lease) = self.try_lease(&name)? {
                return Ok(lease);
            }
            if !self.lock().places.contains_key(&name) {
                return Err(unknown(&self.lock(), &name));
            }
            let (host, wanted) = (self.clone(), name.clone());
            // Whoever asks may leave. What loads goes on, since nothing stops a thread, and keeps
            // its turn until it is there: nobody loads beside it.
            let load = tokio::spawn(async move { (host.load(&wanted).await, loader) });
            let Ok((loaded, turn)) = load.await else {
                return Err(HostError::Load { name, source: Arc::new(broken()) });
            };
            loader = turn;
            match loaded {
                Ok(()) => continue,
                Err(error) if self.is_out_of_memory(&error) && self.make_room(&name) => continue,
                Err(error) if self.is_out_of_memory(&error) && self.is_busy(&name) => {
                    released.await;
                }
                Err(source) => return Err(HostError::Load { name, source: Arc::new(source) }),
            }
        }
    }

    /// Every listed model.
    pub fn models(&self) -> Vec<HostedModel> {
        let hosted = |place: &Place| HostedModel {
            entry: place.entry.clone(),
            is_loaded: place.engine.is_some(),
            n_lease: place.n_lease,
            memory_bytes: place.memory_bytes,
        };
        let mut models: Vec<HostedModel> = self.lock().places.values().map(hosted).collect();
        models.sort_by_key(|model| model.entry.name != self.0.default_name);
        models
    }

    /// The engines that are loaded, by name, without counting as their users.
    pub fn engines(&self) -> Vec<(String, Arc<Engine>)> {
        let state = self.lock();
        let loaded = |(name, place): (&String, &Place)| Some((name.clone(), place.engine.clone()?));
        state.places.iter().filter_map(loaded).collect()
    }

    /// The model that is being loaded, if one is; there is never a second.
    pub fn loading(&self) -> Option<Arc<Loading>> {
        self.lock().loading.upgrade()
    }

    /// Lets every engine go at this tempo from now on, those that are loaded later too.
    pub fn set_tempo(&self, tempo: Tempo) {
        let engines: Vec<Arc<Engine>> = {
            let mut state = self.lock();
            state.tempo = tempo;
            state.places.values().filter_map(|place| place.engine.clone()).collect()
        };
        engines.iter().for_each(|engine| engine.set_tempo(tempo));
    }

    /// Sets how long a model stays from now on, until it is used again; zero unloads it when idle.
    pub fn keep_alive(&self, name: &str, keep: Duration) {
        if let Some(place) = self.lock().places.get_mut(name) {
            place.keep_alive = Some(keep);
        }
        self.sweep();
    }

    /// Unloads a model as soon as nobody uses it, if it is loaded at all; its name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn unload(&self, name: Option<&str>) -> Result<String, HostError> {
        let name = self.resolve(name)?;
        self.keep_alive(&name, Duration::ZERO);
        Ok(name)
    }

    /// Lists a model no more that was found and is gone, unless it is loaded.
    pub fn forget(&self, name: &str) {
        let is_first = name == self.0.default_name;
        let is_gone = |place: &Place| place.engine.is_none() && place.n_lease == 0 && !is_first;
        self.lock().places.retain(|own, place| own != name || !is_gone(place));
    }

    /// Sets the adapters in effect where a request says nothing, and their scales.
    pub fn set_adapters(&self, name: &str, adapters: Vec<(usize, f32)>) {
        if let Some(place) = self.lock().places.get_mut(name) {
            place.adapters = Some(adapters);
        }
    }

    /// Waits for a model that is idle and not to stay at all, which a sweep unloads.
    pub async fn due(&self) {
        self.0.due.notified().await;
    }

    /// Unloads models that were idle for longer than they are kept.
    pub fn sweep(&self) {
        let mut unloaded = Vec::new();
        for place in self.lock().places.values_mut() {
            let keep = place.keep_alive.or(place.entry.keep_alive);
            let is_over = keep.is_some_and(|keep| place.idle_since.elapsed() >= keep);
            if place.n_lease == 0 && is_over {
                unloaded.extend(place.engine.take());
            }
        }
        // Dropped outside the lock: an engine's thread is waited for.
        drop(unloaded);
    }

    /// Ends every engine: what runs may finish within `grace`.
    pub fn stop(&self, grace: Duration) {
        let engines: Vec<Arc<Engine>> = {
            let mut state = self.lock();
            state.is_stopping = true;
            state.places.values().filter_map(|place| place.engine.clone()).collect()
        };
        self.0.released.notify_waiters();
        std::thread::scope(|scope| {
            engines.iter().for_each(|engine| {
                scope.spawn(|| engine.stop(grace));
            });
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name under which a model is listed; one that is found elsewhere is listed from now on.
    fn resolve(&self, name: Option<&str>) -> Result<String, HostError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(self.0.default_name.clone());
        };
        let mut state = self.lock();
        let is_it = |p: &&Place| p.entry.name == name || p.entry.aliases.iter().any(|a| a == name);
        if let Some(place) = state.places.values().find(is_it) {
            return Ok(place.entry.name.clone());
        }
        if let Some(entry) = (self.0.find)(name) {
            let listed = entry.name.clone();
            state.places.entry(listed.clone()).or_insert_with(|| Place::new(entry));
            return Ok(listed);
        }
        Err(unknown(&state, name))
    }

    fn try_lease(&self, name: &str) -> Result<Option<Lease>, HostError> {
        let mut state = self.lock();
        if state.is_stopping {
            return Err(HostError::Stopping);
        }
        let Some(place) = state.places.get_mut(name) else { return Ok(None) };
        let Some(engine) = place.engine.clone() else { return Ok(None) };
        place.n_lease += 1;
        place.keep_alive = None;
        let sampler = place.entry.sampler.clone();
        let all = || (0..engine.info().adapters().len()).map(|i| (i, 1.0)).collect();
        let adapters = place.adapters.clone().unwrap_or_else(all);
        Ok(Some(Lease { engine, name: name.to_owned(), sampler, adapters, host: self.clone() }))
    }

    async fn load(&self, name: &str) -> Result<(), InferenceError> {
        let (entry, n_taken) = {
            let state = self.lock();
            let Some(place) = state.places.get(name) else { return Ok(()) };
            let taken = state.places.values().filter(|p| p.engine.is_some());
            (place.entry.clone(), taken.map(|p| p.memory_bytes).sum::<u64>())
        };
        let mut options = entry.load;
        let room = self.0.memory_max_bytes.saturating_sub(n_taken);
        options.memory_max_bytes = Some(options.memory_max_bytes.map_or(room, |m| m.min(room)));
        let on_panic = Arc::clone(&self.0.on_panic);
        let progress = LoadProgress::default();
        let loading = Arc::new(Loading { name: name.to_owned(), progress: progress.clone() });
        self.lock().loading = Arc::downgrade(&loading);
        let load = move || -> Result<Engine, InferenceError> {
            let model = Model::load_counted(&entry.source, &options, &progress)?;
            Engine::start(model, entry.engine, Box::new(move |reason| on_panic(reason)))
        };
        let engine = match told(&loading, tokio::task::spawn_blocking(load)).await {
            Ok(result) => result?,
            Err(_) => return Err(broken()),
        };
        let memory_bytes = engine.info().memory_plan().host_bytes();
        let mut state = self.lock();
        engine.set_tempo(state.tempo);
        if let Some(place) = state.places.get_mut(name) {
            place.engine = Some(Arc::new(engine));
            place.memory_bytes = memory_bytes;
            place.idle_since = Instant::now();
        }
        Ok(())
    }

    fn is_out_of_memory(&self, error: &InferenceError) -> bool {
        error.is_out_of_memory()
    }

    /// Unloads the model that was idle for longest; whether there was one.
    fn make_room(&self, wanted: &str) -> bool {
        let unloaded = {
            let mut state = self.lock();
            let others = state.places.iter_mut().filter(|(name, _)| *name != wanted);
            // A model that is kept for good gives no room.
            let others = others.filter(|(_, p)| p.keep_alive.or(p.entry.keep_alive).is_some());
            let idle = others.filter(|(_, p)| p.engine.is_some() && p.n_lease == 0);
            let oldest = idle.min_by_key(|(_, place)| place.idle_since);
            oldest.and_then(|(_, place)| place.engine.take())
        };
        unloaded.is_some()
    }

    /// Whether another model is in use, whose end may make room.
    fn is_busy(&self, wanted: &str) -> bool {
        self.lock().places.iter().any(|(name, place)| name != wanted && place.n_lease > 0)
    }

    fn release(&self, name: &str) {
        if let Some(place) = self.lock().places.get_mut(name) {
            place.n_lease -= 1;
            place.idle_since = Instant::now();
            let keep = place.keep_alive.or(place.entry.keep_alive);
            if place.n_lease == 0 && keep == Some(Duration::ZERO) {
                self.0.due.notify_one();
            }
        }
        self.0.released.notify_waiters();
    }
}

fn unknown(state: &State, name: &str) -> HostError {
    let known = state.places.keys().cloned().collect::<Vec<_>>().join(", ");
    HostError::Unknown { name: name.to_owned(), known }
}

impl Place {
    fn new(entry: ModelEntry) -> Place {
        Place {
            entry,
            engine: None,
            memory_bytes: 0,
            n_lease: 0,
            idle_since: Instant::now(),
            keep_alive: None,
            adapters: None,
        }
    }
}

fn broken() -> InferenceError {
    InferenceError::Thread(std::io::Error::other("loading broke"))
}

/// Waits for what loads a model, and says in the log again and again how far it is.
async fn told<T>(loading: &Loading, mut load: JoinHandle<T>) -> Result<T, JoinError> {
    loop {
        match tokio::time::timeout(LOADING_TOLD_EVERY, &mut load).await {
            Ok(ended) => return ended,
            Err(_) => {
                let (done_bytes, total_bytes) = loading.progress.read();
                let (done_mib, total_mib) = (done_bytes >> 20, total_bytes >> 20);
                tracing::info!(model = loading.name, done_mib, total_mib, "loading");
            }
        }
    }
}

/// The right to use a loaded model; while it is held, the model stays.
pub struct Lease {
    engine: Arc<Engine>,
    name: String,
    sampler: SamplerOptions,
    adapters: Vec<(usize, f32)>,
    host: Host,
}

impl Lease {
    /// The name under which the model is listed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets how long the model stays from the end of its use, until it is used again.
    pub fn keep_alive(&self, keep: Duration) {
        if let Some(place) = self.host.lock().places.get_mut(&self.name) {
            place.keep_alive = Some(keep);
        }
    }

    /// Adapters in effect where a request says nothing, and their scales.
    pub fn adapters(&self) -> &[(usize, f32)] {
        &self.adapters
    }

    /// How tokens are chosen where a request says nothing.
    pub fn sampler(&self) -> &SamplerOptions {
        &self.sampler
    }
}

impl Deref for Lease {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.host.release(&self.name);
    }
}

#[cfg(test)]
mod tests;
