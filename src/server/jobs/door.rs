//! The door between HTTP and the jobs: one place that all of them go through, so that whoever
//! waits for a change hears of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Notify, RwLock, RwLockReadGuard, Semaphore, watch};

use super::tap::Tap;
use crate::base::limits::JOB_READERS_MAX;
use crate::jobs::{Counts, Job, Jobs, JobsError, Outcome};
use crate::server::ApiError;

/// When to try again if the queue is full.
const FULL_RETRY: Duration = Duration::from_secs(30);

/// See the module. Clones share it.
#[derive(Clone)]
pub(in crate::server) struct Door(Arc<Inner>);

struct Inner {
    jobs: Jobs,
    /// Counts changes.
    changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    /// Runs, each by a number of its own: a job that is taken back and asked for again begins its
    /// next run while this one ends.
    live: Mutex<BTreeMap<u64, Live>>,
    n_run: AtomicU64,
    /// Read by whoever makes a job run, from before it does on the disk until it is in `live`.
    entering: RwLock<()>,
    readers: Arc<Semaphore>,
    /// Answers the bodies of jobs.
    dialects: OnceLock<Router>,
    /// Held while pieces become durable, so that the last ones come last.
    flushing: tokio::sync::Mutex<()>,
}

/// How an answer begins.
pub(super) type Head = (StatusCode, HeaderMap);

/// What a run has answered so far, for whoever reads it meanwhile, from the first to the last.
#[derive(Default)]
pub(super) struct Said {
    /// How it begins, once it does.
    pub head: Option<Head>,
    /// What follows.
    pub frames: Vec<Bytes>,
}

/// Hears what a run answers, and its end when nobody can say more.
pub(super) type Hearing = watch::Receiver<Said>;

/// A run of a job.
#[derive(Clone)]
pub(super) struct Live {
    /// At its revision of now.
    pub job: Job,
    pub tap: Tap,
    /// Somebody took it back.
    pub cancelled: Arc<Notify>,
    /// What it answers.
    pub said: Hearing,
}

impl Door {
    pub fn new(jobs: Jobs) -> Door {
        Door(Arc::new(Inner {
            jobs,
            changed: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            live: Mutex::default(),
            n_run: AtomicU64::new(0),
            entering: RwLock::default(),
            readers: Arc::new(Semaphore::new(JOB_READERS_MAX)),
            dialects: OnceLock::new(),
            flushing: tokio::sync::Mutex::default(),
        }))
    }

    /// Says who answers.
    pub fn answer_with(&self, dialects: Router) {
        let _ = self.0.dialects.set(dialects);
    }

    pub(super) fn dialects(&self) -> Option<Router> {
        self.0.dialects.get().cloned()
    }

    pub(super) fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    pub(super) fn readers(&self) -> &Arc<Semaphore> {
        &self.0.readers
    }

    pub(super) fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a job is made to run; `None` when the service stops.
    pub(super) async fn enter(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let entering = self.0.entering.read().await;
        (!*self.0.stopping.borrow()).then_some(entering)
    }

    /// Enters a run; its number.
    pub(super) fn begin(&self, live: Live) -> u64 {
        let run = self.0.n_run.fetch_add(1, Ordering::Relaxed);
        self.live().insert(run, live);
        self.tell();
        run
    }

    /// Breaks off runs of a job that was taken back; those that began since go on.
    pub(super) async fn break_off(&self, cancelled: &Job) {
        // One that was on the disk and not yet among those that run is there now.
        drop(self.0.entering.write().await);
        let row = &cancelled.row;
        let is_it = |live: &&Live| live.job.row.n == row.n && live.job.row.revision < row.revision;
        self.live().values().filter(is_it).for_each(|live| live.cancelled.notify_one());
        self.tell();
    }

    /// What the latest run of a job answers, while it does.
    pub(super) fn said(&self, n: i64) -> Option<Hearing> {
        let live = self.live();
        let mut runs = live.values().rev().filter(|live| live.job.row.n == n);
        runs.next().map(|live| live.said.clone())
    }

    pub(super) fn flushing(&self) -> &tokio::sync::Mutex<()> {
        &self.0.flushing
    }

    /// Hears of changes from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Tells everybody who waits.
    pub fn tell(&self) {
        self.0.changed.send_modify(|n| *n += 1);
    }

    /// Hears of the end of the service.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.subscribe()
    }

    /// Lets nothing begin from now on, and returns when whatever was about to is among those that
    /// run.
    pub(super) async fn stop(&self) {
        self.0.stopping.send_replace(true);
        drop(self.0.entering.write().await);
    }

    /// Asks the jobs something, on a thread that may wait for the disk.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let jobs = self.0.jobs.clone();
        match tokio::task::spawn_blocking(move || question(&jobs)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ApiError::internal("the jobs could not be asked")),
        }
    }

    /// Takes a job back for a peer, whoever it belongs to here; one that is over is. Whether there
    /// is such a job.
    pub async fn take_back(&self, id: String) -> Result<bool, ApiError> {
        let taken = self.ask(move |jobs| {
            let cancel = |job: Job| jobs.cancel(job.row.tenant as u64, &id);
            match jobs.any(&id).and_then(cancel) {
                Ok(job) => Ok((true, Some(job))),
                Err(JobsError::Illegal { .. }) => Ok((true, None)),
                Err(JobsError::Unknown) => Ok((false, None)),
                Err(error) => Err(error),
            }
        });
        let (is_known, job) = taken.await?;
        if let Some(job) = job {
            self.break_off(&job).await;
        }
        Ok(is_known)
    }

    /// Jobs and bytes in each state.
    pub async fn counts(&self) -> Result<(Counts, Option<String>), ApiError> {
        self.ask(Jobs::counts).await
    }

    /// A job as it goes over the wire, with its answer if it has one.
    pub(super) async fn view_with_answer(&self, job: Job) -> Result<Value, ApiError> {
        let (job, outcome) = self
            .ask(move |jobs| {
                let outcome = jobs.outcome(&job)?;
                Ok((job, outcome))
            })
            .await?;
        let mut view = view(&job);
        if let Some(outcome) = outcome {
            view["answer"] = answer(&outcome);
        }
        Ok(view)
    }
}

/// An answer as a value: JSON where it is that.
fn answer(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.body)
        .unwrap_or_else(|_| json!(String::from_utf8_lossy(&outcome.body)))
}

/// A job as it goes over the wire, without its texts.
pub(super) fn view(job: &Job) -> Value {
    let (row, ledger) = (&job.row, &job.row.ledger);
    json!({
        "id": row.id,
        "object": "job",
        "state": job.state.name(),
        "endpoint": row.endpoint,
        "request_id": row.request_id,
        "priority": row.priority,
        "created_ms": row.created_ms,
        "due_ms": ledger.due_ms.max(job.row.created_ms),
        "deadline_ms": row.deadline_ms,
        "started_ms": ledger.started_ms,
        "finished_ms": ledger.finished_ms,
        "attempts": row.n_attempt_max,
        "n_attempt": ledger.n_attempt,
        "n_broken": ledger.n_broken,
        "n_token": row.n_token,
        "way": ledger.way,
        "n_token_resumed": ledger.n_token_start,
        "epoch": ledger.epoch,
        "reason": ledger.reason,
        "status": row.status,
        "callback": row.callback,
        "callback_state": row.callback_state,
        "events": format!("/v1/jobs/{}/events", row.id),
    })
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> ApiError {
        let message = error.to_string();
        let conflict = |message| ApiError::new(StatusCode::CONFLICT, "conflict_error", message);
        match error {
            JobsError::Conflict { .. } => conflict(message).at("request_id"),
            JobsError::Illegal { .. } => conflict(message),
            JobsError::Unknown => ApiError::not_found(message),
            JobsError::FullCount { .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let error = ApiError::new(status, "rate_limit_error", message);
                ApiError { retry_after: Some(FULL_RETRY), ..error }
            }
            JobsError::FullBytes { .. } => ApiError::no_room(message),
            JobsError::TooLarge { .. } => {
                let status = StatusCode::PAYLOAD_TOO_LARGE;
                ApiError::new(status, "invalid_request_error", message).at("body")
            }
            JobsError::Store(error) => ApiError::from(&error),
            JobsError::Record { .. } => ApiError::internal(message),
        }
    }
}
