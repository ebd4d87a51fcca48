//! Jobs over the store: each thing that happens is one write, and what is told is on the disk.
//!
//! ```text
//! submit -> on the disk -> acknowledged        take -> running -> pieces … -> end
//! open   -> whatever ran when the program went has crashed, and is told so
//! ```
//!
//! What runs is known twice: in the table, and in a map of this process. Only the table counts;
//! the map keeps a take from asking the disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::machine::{self, DUE_AT_ONCE, Happening, Policy, State};
use super::pace::{Pace, Verdict, Windows};
use super::pieces::{Piece, of_row, to_row};
use super::schedule::{Next, Waiting, choose};
use super::{JobsConfig, JobsError};
use crate::base::limits::{JOBS_LISTED_MAX, JOBS_PURGE_EVERY_MS};
use crate::seal;
use crate::store::{
    AnswerRow, CallbackRow, Insert, JobFilter, JobRow, LedgerRow, NewJobRow, PieceRow, QueueLimits,
    Store, Update, now_ms,
};

/// A job that somebody asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Whose it is.
    pub tenant: u64,
    /// How they call it: the same name and body is the same job.
    pub request_id: Option<String>,
    /// The path that answers its body.
    pub endpoint: String,
    /// JSON.
    pub body: Vec<u8>,
    /// Higher ones run first.
    pub priority: i64,
    /// Not before this time, in milliseconds since the Unix epoch.
    pub not_before_ms: Option<i64>,
    /// Not after this time.
    pub deadline_ms: Option<i64>,
    /// Attempts.
    pub n_attempt_max: i64,
    /// Whom to tell when it is over.
    pub callback: Option<String>,
    /// Somebody waits for it: it runs from the first moment on, by the one who asked.
    pub starts_now: bool,
}

/// A job as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its row.
    pub row: JobRow,
    /// Where it is.
    pub state: State,
}

/// What became of a job that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// It is new, and on the disk.
    New(Job),
    /// It was asked for before.
    Known(Job),
}

/// A job to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The job.
    pub job: Job,
    /// Its body.
    pub body: Vec<u8>,
    /// What is durable of its text.
    pub pieces: Vec<Piece>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// Run this.
    Run(Box<Run>),
    /// Ask again when something changes, and at this time at the latest.
    Wait {
        /// The time, if one is known.
        until_ms: Option<i64>,
    },
}

/// An answer as it goes over the wire.
pub type Outcome = AnswerRow;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// What happened.
    pub happening: Happening,
    /// The answer, if there is one.
    pub outcome: Option<Outcome>,
    /// Pieces that are not durable yet, and where they end.
    pub tail: Option<(i64, Vec<Piece>)>,
}

/// How many jobs there are in each state, counted in the table.
pub type Counts = BTreeMap<&'static str, (i64, i64)>;

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Jobs(Arc<Shared>);

struct Shared {
    store: Store,
    config: JobsConfig,
    policy: Policy,
    windows: Windows,
    pace: Box<dyn Pace>,
    /// What runs here, and whether it is a suspect.
    running: Mutex<BTreeMap<i64, bool>>,
    /// Why nothing starts.
    waits_for: Mutex<Option<String>>,
    purged_ms: AtomicI64,
}

impl Jobs {
    /// The jobs of a store. How many of them were running when the program last ended comes with
    /// them: they wait again, or are set aside.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn open(
        store: Store,
        config: JobsConfig,
        pace: Box<dyn Pace>,
    ) -> Result<(Jobs, usize), JobsError> {
        let jobs = Jobs(Arc::new(Shared {
            policy: config.policy(),
            windows: Windows::parse(&config.windows_utc).unwrap_or_default(),
            store,
            config,
            pace,
            running: Mutex::default(),
            waits_for: Mutex::default(),
            purged_ms: AtomicI64::new(0),
        }));
        let now = now_ms();
        let mut updates = Vec::new();
        for row in jobs.0.store.open_jobs()? {
            let job = Job::of(row)?;
            if job.state == State::Running {
                let crashed = Happening::Crashed { n_token: job.row.n_token };
                updates.extend(jobs.update(&job, &crashed, now));
            }
        }
        let n_interrupted = updates.len();
        if n_interrupted > 0 {
            jobs.0.store.update_jobs(updates)?;
        }
        jobs.purge(now)?;
        Ok((jobs, n_interrupted))
    }

    /// The configuration.
    pub fn config(&self) -> &JobsConfig {
        &self.0.config
    }

    /// Takes a job in, unless it is known.
    ///
    /// # Errors
    /// If its name is taken by another body, there is no room, or the disk does not take it.
    pub fn submit(&self, asked: Asked) -> Result<Submitted, JobsError> {
        let now = now_ms();
        self.purge(now)?;
        let body_hash = hash(&asked.endpoint, &asked.body);
        let mut ledger = machine::fresh(asked.not_before_ms.unwrap_or(DUE_AT_ONCE));
        if asked.starts_now {
            let started = Happening::Started { n_token: 0 };
            ledger = machine::next(&ledger, 1, &started, now, &self.0.policy).unwrap_or(ledger);
        }
        let random = random()?;
        let new = NewJobRow {
            id: format!(
                "job-{}",
                random[..12].iter().map(|b| format!("{b:02x}")).collect::<String>()
            ),
            tenant: asked.tenant as i64,
            request_id: asked.request_id,
            body_hash: body_hash.clone(),
            endpoint: asked.endpoint,
            body: asked.body,
            // Any seed but the one that asks for a random one.
            seed: i64::from(
                u32::from_le_bytes([random[12], random[13], random[14], random[15]]) >> 1,
            ),
            priority: asked.priority,
            created_ms: now,
            deadline_ms: asked.deadline_ms,
            n_attempt_max: asked.n_attempt_max,
            callback: asked.callback,
            ledger,
        };
        let limits =
            QueueLimits { n_max: self.0.config.n_waiting_max, bytes_max: self.0.config.bytes_max };
        match self.0.store.insert_job(new, limits)? {
            Insert::New(row) => {
                if asked.starts_now {
                    self.running().insert(row.n, false);
                }
                Ok(Submitted::New(Job::of(row)?))
            }
            Insert::Exists(row) if row.body_hash == body_hash => {
                Ok(Submitted::Known(Job::of(row)?))
            }
            Insert::Exists(row) => Err(JobsError::Conflict {
                request_id: row.request_id.unwrap_or_default(),
                id: row.id,
            }),
            Insert::FullCount(n) => Err(JobsError::FullCount { n }),
            Insert::FullBytes(n_bytes) => Err(JobsError::FullBytes { n_bytes }),
        }
    }

    /// A job of a tenant.
    ///
    /// # Errors
    /// If there is none of this id, or it is somebody else's.
    pub fn get(&self, tenant: u64, id: &str) -> Result<Job, JobsError> {
        let row = self.0.store.job(id)?.filter(|row| row.tenant == tenant as i64);
        Job::of(row.ok_or(JobsError::Unknown)?)
    }

    /// Jobs of a tenant, the newest first, older than `before` if that is given.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(
        &self,
        tenant: u64,
        state: Option<State>,
        before: Option<&str>,
        n_max: i64,
    ) -> Result<Vec<Job>, JobsError> {
        let before_n = match before {
            Some(id) => Some(self.get(tenant, id)?.row.n),
            None => None,
        };
        let filter = JobFilter {
            tenant: Some(tenant as i64),
            state: state.map(|state| state.name().to_owned()),
            before_n,
            // One more than a page tells whether there is another.
            n_max: n_max.clamp(1, JOBS_LISTED_MAX + 1),
        };
        self.0.store.jobs(&filter)?.into_iter().map(Job::of).collect()
    }

    /// The answer of a job that is over, if it has one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn outcome(&self, job: &Job) -> Result<Option<Outcome>, JobsError> {
        Ok(self.0.store.job_answer(&job.row)?)
    }

    /// Durable pieces of text `epoch` behind `n_token` tokens, each with where it ends.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn pieces(
        &self,
        job: &Job,
        epoch: i64,
        n_token: i64,
    ) -> Result<Vec<(i64, Piece)>, JobsError> {
        let mut found = Vec::new();
        for row in self.0.store.job_pieces(&job.row, epoch, n_token)? {
            let pieces = of_row(&row.pieces);
            let pieces = pieces.ok_or(JobsError::Record { id: job.row.id.clone() })?;
            let mut end = row.end - pieces.iter().map(Piece::n_step).sum::<i64>();
            for piece in pieces {
                end += piece.n_step();
                if end > n_token {
                    found.push((end, piece));
                }
            }
        }
        Ok(found)
    }

    /// The next job, which runs from now on; jobs whose deadline has passed fail on the way.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn take(&self) -> Result<Taken, JobsError> {
        let now = now_ms();
        let rows = self.0.store.open_jobs()?;
        let jobs = rows.into_iter().map(Job::of).collect::<Result<Vec<_>, _>>()?;
        let is_late = |job: &&Job| {
            job.state == State::Queued && job.row.deadline_ms.is_some_and(|at| at <= now)
        };
        let late: Vec<Update> = jobs
            .iter()
            .filter(is_late)
            .filter_map(|job| self.update(job, &Happening::DeadlinePassed, now))
            .collect();
        if !late.is_empty() {
            self.0.store.update_jobs(late)?;
        }
        let queued = jobs.iter().filter(|job| job.state == State::Queued && !is_late(job));
        let waiting: Vec<Waiting> = queued.clone().map(Job::waiting).collect();
        let running: Vec<bool> = self.running().values().copied().collect();
        let verdict = match self.0.windows.verdict(now) {
            Verdict::Go => self.0.pace.verdict(now),
            wait => wait,
        };
        let next = choose(&waiting, &running, self.0.config.n_at_once, &verdict, now);
        let (n, reason, until_ms) = match next {
            Next::Start(n) => (Some(n), None, None),
            Next::Wait { until_ms, reason } => (None, reason, until_ms),
        };
        *self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        let deadline = queued.clone().filter_map(|job| job.row.deadline_ms).min();
        let wait = Taken::Wait { until_ms: [until_ms, deadline].into_iter().flatten().min() };
        match n.and_then(|n| queued.clone().find(|job| job.row.n == n)) {
            Some(job) => Ok(self.start(job, now)?.map_or(wait, |run| Taken::Run(Box::new(run)))),
            None => Ok(wait),
        }
    }

    /// Starts a job, unless somebody was faster.
    fn start(&self, job: &Job, now: i64) -> Result<Option<Run>, JobsError> {
        let pieces = self.pieces(job, job.row.ledger.epoch, 0)?;
        let started = Happening::Started { n_token: job.row.n_token };
        let Some(ledger) = self.happen(job, &started, now)? else { return Ok(None) };
        self.running().insert(job.row.n, job.row.ledger.n_broken > 0);
        let body = self.0.store.job_body(&job.row)?;
        let job = Job { row: JobRow { ledger, ..job.row.clone() }, state: State::Running };
        Ok(Some(Run { job, body, pieces: pieces.into_iter().map(|(_, piece)| piece).collect() }))
    }

    /// Makes pieces of running jobs durable: of each its number, id, epoch, where they end, and
    /// the pieces.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn append(&self, rows: Vec<(Job, i64, Vec<Piece>)>) -> Result<(), JobsError> {
        let row = |(job, end, pieces): (Job, i64, Vec<Piece>)| {
            let row = PieceRow { epoch: job.row.ledger.epoch, end, pieces: to_row(&pieces) };
            (job.row.n, job.row.id, row)
        };
        Ok(self.0.store.append_pieces(rows.into_iter().map(row).collect())?)
    }

    /// Begins the text of a running job anew; the job with its new epoch.
    ///
    /// # Errors
    /// If it does not run any more, or the disk does not take it.
    pub fn restart(&self, job: &Job) -> Result<Job, JobsError> {
        let ledger = self.happen(job, &Happening::Diverged, now_ms())?;
        let ledger = ledger.ok_or(JobsError::Illegal { state: job.state })?;
        Ok(Job { row: JobRow { ledger, n_token: 0, ..job.row.clone() }, state: State::Running })
    }

    /// Says how a run ended. If it was taken back meanwhile, nothing changes.
    ///
    /// # Errors
    /// If the disk does not take it; then the job counts as crashed when the program starts again.
    pub fn end(&self, job: &Job, ended: Ended) -> Result<(), JobsError> {
        let now = now_ms();
        let update = self.update(job, &ended.happening, now).map(|update| Update {
            answer: ended.outcome,
            pieces: ended.tail.map(|(end, pieces)| PieceRow {
                epoch: job.row.ledger.epoch,
                end,
                pieces: to_row(&pieces),
            }),
            ..update
        });
        let written = match update {
            Some(update) => self.0.store.update_jobs(vec![update]).map(|_| ()),
            None => Ok(()),
        };
        self.running().remove(&job.row.n);
        written?;
        self.purge(now)
    }

    /// Takes a job back.
    ///
    /// # Errors
    /// If it is over, not this tenant's, or the disk does not take it.
    pub fn cancel(&self, tenant: u64, id: &str) -> Result<Job, JobsError> {
        self.ask(tenant, id, &Happening::CancelAsked)
    }

    /// Lets a job that failed, was taken back or set aside run again.
    ///
    /// # Errors
    /// If it is in another state, not this tenant's, or the disk does not take it.
    pub fn retry(&self, tenant: u64, id: &str) -> Result<Job, JobsError> {
        self.ask(tenant, id, &Happening::RetryAsked)
    }

    fn ask(&self, tenant: u64, id: &str, happening: &Happening) -> Result<Job, JobsError> {
        // It may start or end between the look and the write; then it is looked at again.
        for _ in 0..4 {
            let job = self.get(tenant, id)?;
            let illegal = JobsError::Illegal { state: job.state };
            if self.update(&job, happening, now_ms()).is_none() {
                return Err(illegal);
            }
            if self.happen(&job, happening, now_ms())?.is_some() {
                return self.get(tenant, id);
            }
        }
        Err(JobsError::Illegal { state: self.get(tenant, id)?.state })
    }

    /// Writes what a happening makes of a job; `None` if it is in another state by now.
    fn happen(
        &self,
        job: &Job,
        happening: &Happening,
        now: i64,
    ) -> Result<Option<LedgerRow>, JobsError> {
        let Some(update) = self.update(job, happening, now) else { return Ok(None) };
        let ledger = update.ledger.clone();
        let is_done = self.0.store.update_jobs(vec![update])?;
        Ok(is_done.first().is_some_and(|is_done| *is_done).then_some(ledger))
    }

    fn update(&self, job: &Job, happening: &Happening, now: i64) -> Option<Update> {
        let ledger = &job.row.ledger;
        let ledger = machine::next(ledger, job.row.n_attempt_max, happening, now, &self.0.policy)?;
        let calls_back = State::from_name(&ledger.state).is_some_and(State::is_over);
        Some(Update {
            n: job.row.n,
            id: job.row.id.clone(),
            from: job.state.name(),
            ledger,
            answer: None,
            pieces: None,
            calls_back,
        })
    }

    /// Jobs and bytes in each state, and why none starts, where something holds them up.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn counts(&self) -> Result<(Counts, Option<String>), JobsError> {
        let mut counts: Counts = State::ALL.iter().map(|state| (state.name(), (0, 0))).collect();
        for count in self.0.store.job_counts()? {
            if let Some(state) = State::from_name(&count.state) {
                counts.insert(state.name(), (count.n, count.n_bytes));
            }
        }
        let waits_for = self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((counts, waits_for))
    }

    /// Callbacks that are due.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn due_callbacks(&self) -> Result<Vec<CallbackRow>, JobsError> {
        Ok(self.0.store.due_callbacks()?)
    }

    /// Says how a callback went: whether it arrived, or when it is tried again.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn settle_callback(
        &self,
        id: &str,
        again_ms: Option<i64>,
        ok: bool,
    ) -> Result<(), JobsError> {
        let state = match (ok, again_ms) {
            (true, _) => "sent",
            (false, Some(_)) => "due",
            (false, None) => "failed",
        };
        Ok(self.0.store.settle_callback(id, state, again_ms.unwrap_or(0))?)
    }

    /// A job whoever it belongs to, for what the service does by itself.
    ///
    /// # Errors
    /// If there is none.
    pub fn any(&self, id: &str) -> Result<Job, JobsError> {
        Job::of(self.0.store.job(id)?.ok_or(JobsError::Unknown)?)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<i64, bool>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what is too old or too much, now and then.
    fn purge(&self, now: i64) -> Result<(), JobsError> {
        let last = self.0.purged_ms.load(Ordering::Relaxed);
        if (last..last + JOBS_PURGE_EVERY_MS).contains(&now) {
            return Ok(());
        }
        self.0.purged_ms.store(now, Ordering::Relaxed);
        let before = now - self.0.config.keep_days * 24 * 3600 * 1000;
        // A tenth stays free for those to come.
        self.0.store.purge_jobs(before, self.0.config.bytes_max / 10 * 9)?;
        Ok(())
    }
}

impl Job {
    fn of(row: JobRow) -> Result<Job, JobsError> {
        match State::from_name(&row.ledger.state) {
            Some(state) => Ok(Job { state, row }),
            None => Err(JobsError::Record { id: row.id }),
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            n: self.row.n,
            priority: self.row.priority,
            due_ms: self.row.ledger.due_ms,
            is_suspect: self.row.ledger.n_broken > 0,
        }
    }
}

fn random() -> Result<[u8; seal::KEY_LEN], JobsError> {
    let failed = |source| crate::store::StoreError::File { path: "random".into(), source };
    Ok(seal::random().map_err(failed)?)
}

/// What tells one body from another: its endpoint and fields, in any order.
fn hash(endpoint: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{endpoint}\n").into_bytes();
    match serde_json::from_slice(body) {
        Ok(value) => canonical(&value, &mut text),
        Err(_) => text.extend_from_slice(body),
    }
    Sha256::digest(&text).to_vec()
}

fn canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push(b'{');
            for (name, value) in fields {
                out.extend_from_slice(Value::from(name.as_str()).to_string().as_bytes());
                canonical(value, out);
                out.push(b',');
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                canonical(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        value => out.extend_from_slice(value.to_string().as_bytes()),
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
