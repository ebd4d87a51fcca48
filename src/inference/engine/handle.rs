//! The engine's handle: a thread of its own runs the model, callers talk to it through this.
//!
//! ```text
//! submit --> inbox (bounded) --> engine thread: core.step() again and again --> event streams
//! ```
//!
//! The thread sleeps while there is nothing to do. A panic on it is told to `on_panic`, which the
//! program uses to end itself with the reason: a half-broken engine answers nobody.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::core::Core;
use super::disk_link::Waker;
use super::event::{EventSender, event_stream};
use super::reply::{Reply, ReplySender, reply};
use super::stats::{EngineStats, RequestTimeline, StatsCell};
use super::tempo::{Rest, Tempo};
use super::{EngineError, EngineOptions, EventStream, InferenceError, Model, ModelInfo, Request};
use crate::inference::grammar::{GrammarError, GrammarVocab, Matcher};
use crate::inference::model::Pooling;
use crate::inference::tokenizer::TokenId;

/// How long the engine thread sleeps when only the disk could give it work, before it looks for
/// callers that left and times that are up.
const DISK_PATIENCE: Duration = Duration::from_millis(20);
/// How often a long pause is looked up from, for the same.
const PAUSE_LOOK: Duration = Duration::from_millis(100);

/// A request as it travels to the engine thread.
pub(super) struct Submitted {
    pub request: Request,
    pub matcher: Option<Matcher>,
    pub sender: EventSender,
    pub arrived: Instant,
}

/// A slot as llama.cpp's clients see it: a place where a sequence runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotView {
    /// Its number, below `n_parallel`.
    pub slot_idx: usize,
    /// The request that runs there, if one does.
    pub request_id: Option<String>,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens in the cache.
    pub n_past: usize,
    /// Tokens of the answer so far.
    pub n_generated: usize,
    /// Most tokens of the answer.
    pub n_predict: Option<usize>,
    /// Sampling options of the request.
    pub sampler: super::SamplerOptions,
}

/// What saving or restoring a slot came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotFile {
    /// Tokens written or read.
    pub n_tokens: usize,
    /// Bytes of the file.
    pub n_bytes: u64,
}

/// Something that the engine thread does between two steps.
pub(super) enum Command {
    Embed { tokens: Vec<TokenId>, pooling: Pooling, reply: ReplySender<Vec<Vec<f32>>> },
    Rerank { tokens: Vec<TokenId>, reply: ReplySender<f32> },
    Slots { reply: ReplySender<Vec<SlotView>> },
    SaveSlot { slot_idx: usize, path: PathBuf, reply: ReplySender<SlotFile> },
    RestoreSlot { slot_idx: usize, path: PathBuf, reply: ReplySender<SlotFile> },
    EraseSlot { slot_idx: usize, reply: ReplySender<usize> },
}

impl Command {
    /// Whether it takes the processor for a while, as a step does.
    pub fn computes(&self) -> bool {
        matches!(self, Command::Embed { .. } | Command::Rerank { .. })
    }
}

#[derive(Default)]
struct Inbox {
    submitted: VecDeque<Submitted>,
    commands: VecDeque<Command>,
    tempo: Tempo,
    /// Somebody wants to see that the thread lives.
    is_called: bool,
    /// When set, nothing new comes in; at this time what still runs is cut off.
    stop_at: Option<Instant>,
    is_stopped: bool,
}

impl Inbox {
    /// Whether the thread has something to see to, also in a pause.
    fn has_news(&self, is_pausing: bool) -> bool {
        self.is_called
            || !self.submitted.is_empty()
            || self.commands.iter().any(|command| !(is_pausing && command.computes()))
    }
}

/// Where callers leave what they want, and the bell that wakes the engine thread.
#[derive(Default)]
struct Desk {
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Shared {
    info: Arc<ModelInfo>,
    options: EngineOptions,
    stats: Arc<StatsCell>,
    /// Made when the first grammar comes.
    grammar_vocab: OnceLock<Result<GrammarVocab, GrammarError>>,
    desk: Arc<Desk>,
    /// Counted on by the engine thread as it goes on.
    beat: Arc<AtomicU64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.desk.lock()
    }
}

/// A running engine. Dropping the last handle stops it.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread of a loaded model. `on_panic` is told when it panics.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        model: Model,
        options: EngineOptions,
        on_panic: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Engine, InferenceError> {
        let stats = Arc::new(StatsCell::default());
        let shared = Arc::new(Shared {
            info: Arc::clone(model.info()),
            options: options.clone(),
            stats: Arc::clone(&stats),
            grammar_vocab: OnceLock::new(),
            desk: Arc::default(),
            beat: Arc::default(),
        });
        let desk = Arc::clone(&shared.desk);
        let waker: Waker = Arc::new(move || {
            // Under the lock, so that the engine thread is not between its look and its sleep.
            let _inbox = desk.lock();
            desk.wake.notify_all();
        });
        let mut core = Core::new(model, options, stats, &waker);
        core.count_on(&shared.beat);
        let theirs = Arc::clone(&shared);
        let run = move || {
            let result = catch_unwind(AssertUnwindSafe(|| run(&theirs, core)));
            let mut inbox = theirs.lock();
            inbox.is_stopped = true;
            // Dropping what waits closes its streams.
            inbox.submitted.clear();
            inbox.commands.clear();
            drop(inbox);
            theirs.desk.wake.notify_all();
            if let Err(panic) = result {
                on_panic(panic_text(&*panic));
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(run);
        let thread = thread.map_err(InferenceError::Thread)?;
        Ok(Engine { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The model.
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.shared.info
    }

    /// How it was started.
    pub fn options(&self) -> &EngineOptions {
        &self.shared.options
    }

    /// Hands a request to the engine.
    ///
    /// # Errors
    /// If it cannot be run as it is, the queue is full, or the engine stops.
    pub fn submit(&self, request: Request) -> Result<EventStream, EngineError> {
        super::core::check(&request, &self.shared.info, &self.shared.options)?;
        let matcher = self.matcher(&request)?;
        let mut inbox = self.shared.lock();
        if inbox.stop_at.is_some() || inbox.is_stopped {
            return Err(EngineError::Stopping);
        }
        let n_waiting = inbox.submitted.len() + self.shared.stats.n_waiting();
        if n_waiting + request.n > self.shared.options.n_queue_max {
            self.shared.stats.count_refused();
            return Err(EngineError::QueueFull {
                n_waiting,
                retry_after: self.shared.stats.retry_after(self.shared.options.n_parallel),
            });
        }
        let (sender, stream) = event_stream();
        inbox.submitted.push_back(Submitted { request, matcher, sender, arrived: Instant::now() });
        drop(inbox);
        self.shared.desk.wake.notify_all();
        Ok(stream)
    }

    /// Embeddings of tokens: one vector of `n_embd`, or one for each token without pooling.
    pub fn embed(&self, tokens: Vec<TokenId>, pooling: Pooling) -> Reply<Vec<Vec<f32>>> {
        self.command(|reply| Command::Embed { tokens, pooling, reply })
    }

    /// How well a document answers a query; `tokens` hold both, as `Tokenizer::pair_prompt` says.
    pub fn rerank(&self, tokens: Vec<TokenId>) -> Reply<f32> {
        self.command(|reply| Command::Rerank { tokens, reply })
    }

    /// What runs where.
    pub fn slots(&self) -> Reply<Vec<SlotView>> {
        self.command(|reply| Command::Slots { reply })
    }

    /// Writes the tokens, keys and values of a slot's last sequence to a file.
    pub fn save_slot(&self, slot_idx: usize, path: PathBuf) -> Reply<SlotFile> {
        self.command(|reply| Command::SaveSlot { slot_idx, path, reply })
    }

    /// Brings a file of `save_slot` into the prefix cache.
    pub fn restore_slot(&self, slot_idx: usize, path: PathBuf) -> Reply<SlotFile> {
        self.command(|reply| Command::RestoreSlot { slot_idx, path, reply })
    }

    /// Forgets what a slot's last sequence left in the cache; how many tokens that were.
    pub fn erase_slot(&self, slot_idx: usize) -> Reply<usize> {
        self.command(|reply| Command::EraseSlot { slot_idx, reply })
    }

    /// Counters and gauges.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats.snapshot()
    }

    /// What recent requests went through, oldest first, without their text.
    pub fn timelines(&self) -> Vec<RequestTimeline> {
        self.shared.stats.timelines()
    }

    /// Goes at this tempo from now on, also within a pause. No answer changes by it.
    pub fn set_tempo(&self, tempo: Tempo) {
        let mut inbox = self.shared.lock();
        if inbox.tempo != tempo {
            inbox.tempo = tempo;
            drop(inbox);
            self.shared.desk.wake.notify_all();
        }
    }

    /// Calls the thread, which counts on its beat when it hears it, and a number that its beat
    /// comes to: in the middle of a step as well as asleep, it grows as long as the thread lives.
    pub fn beat(&self) -> u64 {
        self.shared.lock().is_called = true;
        self.shared.desk.wake.notify_all();
        self.shared.beat.load(Ordering::Relaxed)
    }

    /// Takes no more requests, finishes what runs for at most `grace`, then ends the thread and
    /// waits for what the disk cache has still to write, a while at most.
    pub fn stop(&self, grace: Duration) {
        self.end(grace);
        if let Some(disk) = &self.shared.options.disk_cache {
            disk.flush();
        }
    }

    fn end(&self, grace: Duration) {
        self.shared.lock().stop_at.get_or_insert(Instant::now() + grace);
        self.shared.desk.wake.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic was told to `on_panic`.
            let _ = thread.join();
        }
    }

    /// Compiles the request's grammar, on the caller's thread.
    fn matcher(&self, request: &Request) -> Result<Option<Matcher>, EngineError> {
        let Some(grammar) = &request.grammar else { return Ok(None) };
        let make = || GrammarVocab::new(&self.shared.info.tokenizer);
        let vocab = self.shared.grammar_vocab.get_or_init(make).as_ref().map_err(Clone::clone)?;
        Ok(Some(match grammar.triggers.as_slice() {
            [] => Matcher::new(vocab, &grammar.spec)?,
            triggers => Matcher::lazy(vocab, &grammar.spec, triggers)?,
        }))
    }

    fn command<T>(&self, command: impl FnOnce(ReplySender<T>) -> Command) -> Reply<T> {
        let (sender, reply) = reply();
        let mut inbox = self.shared.lock();
        // A command of a stopped engine is dropped, which answers it.
        if !inbox.is_stopped && inbox.commands.len() < crate::base::limits::ENGINE_COMMANDS_MAX {
            inbox.commands.push_back(command(sender));
            drop(inbox);
            self.shared.desk.wake.notify_all();
        }
        reply
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Whoever drops the last handle may be in a hurry: the disk's queue does without an engine.
        self.end(Duration::ZERO);
    }
}

/// The engine thread.
fn run(shared: &Shared, mut core: Core) {
    let mut rest = Rest::default();
    loop {
        let mut inbox = wait(shared, &core, &rest);
        shared.beat.fetch_add(1, Ordering::Relaxed);
        inbox.is_called = false;
        let is_pausing = !rest.left(&inbox.tempo, Instant::now()).is_zero();
        let submitted: Vec<Submitted> = inbox.submitted.drain(..).collect();
        let commands = std::mem::take(&mut inbox.commands);
        // In a pause, what computes stays where it is.
        let is_later = |command: &Command| is_pausing && command.computes();
        let (later, commands): (VecDeque<_>, VecDeque<_>) =
            commands.into_iter().partition(is_later);
        inbox.commands = later;
        let (stop_at, tempo) = (inbox.stop_at, inbox.tempo);
        for submitted in submitted {
            core.submit(submitted);
        }
        drop(inbox);
        core.set_tempo(tempo);
        let started = Instant::now();
        commands.into_iter().for_each(|command| core.obey(command));
        if stop_at.is_some_and(|at| !core.has_work() || Instant::now() >= at) {
            return core.abandon();
        }
        if is_pausing {
            core.pause();
        } else {
            core.step();
            let ended = Instant::now();
            rest.after(ended, ended - started);
        }
    }
}

/// Waits until there is something to do, or it is time to look whether a caller left.
fn wait<'a>(shared: &'a Shared, core: &Core, rest: &Rest) -> MutexGuard<'a, Inbox> {
    let mut inbox = shared.lock();
    loop {
        let left = rest.left(&inbox.tempo, Instant::now());
        let has_work = core.has_work() || !inbox.commands.is_empty();
        if inbox.has_news(!left.is_zero()) || inbox.stop_at.is_some() && !has_work {
            return inbox;
        }
        let nap = match (has_work, left.is_zero()) {
            (false, _) => None,
            (true, false) => Some(left.min(PAUSE_LOOK)),
            (true, true) if core.is_waiting() => Some(DISK_PATIENCE),
            (true, true) => return inbox,
        };
        let wake = &shared.desk.wake;
        let Some(nap) = nap else {
            inbox = wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        return wake.wait_timeout(inbox, nap).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a text").to_owned()
}
