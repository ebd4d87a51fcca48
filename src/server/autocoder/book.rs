//! Tasks by their ids: one answer for each, whoever asks for it and however often.
//!
//! ```text
//! claim(id) -> New: this caller writes it   Running: wait for it   Answered: here it is
//!              the same id with another task is refused
//! ```
//!
//! The answers are in memory, bounded in number and bytes; what was not asked for for longest goes
//! first. They are gone when the program ends. This face (`claim`, `finish`, `list`) is all that
//! the dialect knows of where they are.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::answer::Answer;
use super::message::{Kind, Task};
use crate::base::limits::{FEEDBACK_MAX, TASKS_BYTES_MAX, TASKS_MAX, TASKS_RUNNING_MAX};
use crate::inference::TenantId;
use crate::server::ApiError;
use crate::server::cache::CacheKey;
use crate::server::report::unix_now_s;
use crate::server::state::Caller;

type Outcome = Result<Arc<Answer>, ApiError>;
type Key = (TenantId, String);

/// How a task stands.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Running(watch::Receiver<Option<Outcome>>),
    Answered(Arc<Answer>),
    Failed(ApiError),
}

/// A task in the book.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub kind: Kind,
    pub created_at: u64,
    pub stage: Stage,
    digest: CacheKey,
    used_at: u64,
    n_bytes: usize,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    clock: u64,
    n_bytes: usize,
    feedback: VecDeque<(TenantId, Value)>,
}

/// See the module.
#[derive(Default)]
pub(in crate::server) struct Book(Mutex<State>);

/// What a caller finds under its id.
pub(super) enum Claim {
    New(Ticket),
    Running(Waiting),
    Answered(Arc<Answer>),
}

/// A running task's answer, when it comes.
pub(super) struct Waiting(watch::Receiver<Option<Outcome>>);

impl Waiting {
    /// Waits for it.
    pub async fn answer(mut self) -> Outcome {
        let ended = || ApiError::internal("the task ended before its answer");
        let outcome = self.0.wait_for(Option::is_some).await.map_err(|_| ended())?;
        outcome.clone().unwrap_or_else(|| Err(ended()))
    }
}

/// The duty to answer a task. Dropped without an answer, the task has failed.
pub(super) struct Ticket {
    book: Arc<Book>,
    key: Key,
    sender: watch::Sender<Option<Outcome>>,
    is_named: bool,
    is_finished: bool,
}

impl Ticket {
    /// The answer, when it comes.
    pub fn waiting(&self) -> Waiting {
        Waiting(self.sender.subscribe())
    }

    /// Says what came of the task.
    pub fn finish(mut self, result: Result<Answer, ApiError>) {
        self.end(result.map(Arc::new));
    }

    fn end(&mut self, outcome: Outcome) {
        self.is_finished = true;
        self.book.settle(&self.key, &outcome, self.is_named);
        self.sender.send_replace(Some(outcome));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_finished {
            self.end(Err(ApiError::internal("the task ended before its answer")));
        }
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a task up, or enters it.
    ///
    /// # Errors
    /// If its id stands for another task, or too many tasks run.
    pub(super) fn claim(self: &Arc<Book>, caller: &Caller, task: &Task) -> Result<Claim, ApiError> {
        let key = (caller.tenant, task.id.clone());
        let digest = task.digest();
        let mut state = self.lock();
        state.clock += 1;
        let used_at = state.clock;
        if let Some(entry) = state.entries.get_mut(&key) {
            entry.used_at = used_at;
            let is_other = entry.digest != digest;
            match &entry.stage {
                Stage::Failed(_) => {}
                _ if is_other => {
                    let message = format!("request_id {:?} stands for another task", task.id);
                    return Err(ApiError::conflict(message).at("request_id"));
                }
                Stage::Running(receiver) => return Ok(Claim::Running(Waiting(receiver.clone()))),
                Stage::Answered(answer) => return Ok(Claim::Answered(Arc::clone(answer))),
            }
        }
        let n_running = state.entries.values().filter(|entry| entry.is_running()).count();
        if n_running >= TASKS_RUNNING_MAX {
            let message = format!("{n_running} tasks are being answered; try again in a second");
            return Err(ApiError::unavailable(message, Duration::from_secs(1)));
        }
        let (sender, receiver) = watch::channel(None);
        let entry = Entry {
            kind: task.kind,
            created_at: unix_now_s(),
            stage: Stage::Running(receiver),
            digest,
            used_at,
            n_bytes: key.1.len(),
        };
        state.enter(key.clone(), entry);
        let (book, is_named) = (Arc::clone(self), task.is_named);
        Ok(Claim::New(Ticket { book, key, sender, is_named, is_finished: false }))
    }

    fn settle(&self, key: &Key, outcome: &Outcome, is_named: bool) {
        let mut state = self.lock();
        let Some(mut entry) = state.remove(key) else { return };
        match outcome {
            Ok(answer) => {
                entry.n_bytes = key.1.len() + answer.n_bytes();
                entry.stage = Stage::Answered(Arc::clone(answer));
            }
            // Nobody can ask for it again by a name that nobody chose.
            Err(_) if !is_named => return,
            Err(error) => entry.stage = Stage::Failed(error.clone()),
        }
        if entry.n_bytes <= TASKS_BYTES_MAX {
            state.enter(key.clone(), entry);
        }
    }

    /// The tasks of a tenant, the latest first.
    pub(super) fn list(&self, tenant: TenantId) -> Vec<(String, Entry)> {
        let state = self.lock();
        let own = state.entries.iter().filter(|((whose, _), _)| *whose == tenant);
        let mut tasks: Vec<_> = own.map(|((_, id), entry)| (id.clone(), entry.clone())).collect();
        tasks.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.used_at));
        tasks
    }

    /// A task of a tenant.
    pub(super) fn find(&self, tenant: TenantId, id: &str) -> Option<Entry> {
        self.lock().entries.get(&(tenant, id.to_owned())).cloned()
    }

    /// Tasks of any tenant with this id.
    pub(super) fn find_any(&self, id: &str) -> Vec<Entry> {
        let state = self.lock();
        let found = state.entries.iter().filter(|((_, own), _)| own == id);
        found.map(|(_, entry)| entry.clone()).collect()
    }

    /// Keeps a caller's note about an answer; how many notes there are.
    pub(super) fn note(&self, tenant: TenantId, note: Value) -> usize {
        let mut state = self.lock();
        if state.feedback.len() >= FEEDBACK_MAX {
            state.feedback.pop_front();
        }
        state.feedback.push_back((tenant, note));
        state.feedback.iter().filter(|(whose, _)| *whose == tenant).count()
    }

    /// The notes of a tenant, the oldest first.
    pub(super) fn notes(&self, tenant: TenantId) -> Vec<Value> {
        let state = self.lock();
        let own = state.feedback.iter().filter(|(whose, _)| *whose == tenant);
        own.map(|(_, note)| note.clone()).collect()
    }
}

impl Entry {
    fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running(_))
    }
}

impl State {
    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.n_bytes -= entry.n_bytes;
        Some(entry)
    }

    /// Enters a task; those that are over make room, the ones not asked for for longest first.
    fn enter(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        while self.entries.len() >= TASKS_MAX || self.n_bytes + entry.n_bytes > TASKS_BYTES_MAX {
            let over = self.entries.iter().filter(|(_, entry)| !entry.is_running());
            let oldest = over.min_by_key(|(_, entry)| entry.used_at).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
        self.n_bytes += entry.n_bytes;
        self.entries.insert(key, entry);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::server::autocoder::context::Choice;
    use crate::server::fields::Fields;

    fn task(id: &str, prompt: &str) -> Task {
        let body = json!({"request_id": id, "prompt": prompt});
        let fields = Fields(body.as_object().unwrap().clone());
        Task::read(fields, None).unwrap()
    }

    fn answer(n_bytes: usize) -> Answer {
        Answer {
            code: "x".repeat(n_bytes),
            n_tokens: 1,
            inference_ms: 1,
            confidence: 0.5,
            model: "m".into(),
            temperature: json!(0),
            context: Choice::default(),
        }
    }

    fn claim(book: &Arc<Book>, id: &str, prompt: &str) -> Result<Claim, ApiError> {
        book.claim(&Caller::default(), &task(id, prompt))
    }

    fn new(book: &Arc<Book>, id: &str) -> Ticket {
        match claim(book, id, "p") {
            Ok(Claim::New(ticket)) => ticket,
            _ => panic!("{id} is not new"),
        }
    }

    #[tokio::test]
    async fn a_task_is_written_once_and_its_id_stands_for_it() {
        let book = Arc::new(Book::default());
        let ticket = new(&book, "a");
        let Ok(Claim::Running(waiting)) = claim(&book, "a", "p") else { panic!("not running") };
        assert_eq!(claim(&book, "a", "other").err().map(|e| e.status.as_u16()), Some(409));
        let other = Caller { tenant: TenantId(7), ..Caller::default() };
        assert!(matches!(book.claim(&other, &task("a", "other")), Ok(Claim::New(_))));
        ticket.finish(Ok(answer(10)));
        assert_eq!(waiting.answer().await.unwrap().code, "x".repeat(10));
        assert!(matches!(claim(&book, "a", "p"), Ok(Claim::Answered(_))));
        let waiting = new(&book, "b").waiting();
        assert!(waiting.answer().await.is_err(), "its writer is gone");
        assert!(
            matches!(claim(&book, "b", "other"), Ok(Claim::New(_))),
            "what failed may go again"
        );
    }

    #[test]
    fn the_book_is_bounded_and_forgets_what_nobody_asked_for() {
        let book = Arc::new(Book::default());
        for n in 0..TASKS_MAX + 10 {
            new(&book, &n.to_string()).finish(Ok(answer(1)));
            assert!(claim(&book, "0", "p").is_ok());
        }
        assert_eq!(book.lock().entries.len(), TASKS_MAX);
        assert!(matches!(claim(&book, "0", "p"), Ok(Claim::Answered(_))));
        assert!(book.find(TenantId::default(), "1").is_none());
        let running: Vec<Ticket> = (0..3).map(|n| new(&book, &format!("r{n}"))).collect();
        for n in 0..40 {
            new(&book, &format!("large{n}")).finish(Ok(answer(TASKS_BYTES_MAX / 4)));
            assert!(book.lock().n_bytes <= TASKS_BYTES_MAX);
        }
        assert_eq!(book.list(TenantId::default()).iter().filter(|t| t.1.is_running()).count(), 3);
        drop(running);
        let all: usize = book.lock().entries.values().map(|entry| entry.n_bytes).sum();
        assert_eq!(all, book.lock().n_bytes);
        let many: Vec<Ticket> =
            (0..TASKS_RUNNING_MAX).map(|n| new(&book, &format!("m{n}"))).collect();
        assert_eq!(claim(&book, "one-more", "p").err().map(|e| e.status.as_u16()), Some(503));
        drop(many);
    }
}
