//! Jobs over the store: each thing that happens is one write, and what is told is on the disk.
//!
//! ```text
//! submit -> on the disk -> acknowledged        take -> running -> pieces … -> end
//! open   -> whatever ran when the program went has crashed, and is told so
//! ```
//!
//! A job in hand is a job as it was at some revision, and so is a run of it. What is written starts
//! from that revision or does not happen: a run that was taken back ends nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::body::hash;
use super::job::{Asked, Counts, Ended, Job, Outcome, Run, Submitted, Taken};
use super::machine::{self, DUE_AT_ONCE, Happening, Policy, State};
use super::pace::{Pace, Verdict, Windows};
use super::pieces::{Piece, of_row, to_row};
use super::schedule::{Next, Waiting, choose};
use super::{JobsConfig, JobsError};
use crate::base::hash::hex;
use crate::base::limits::{
    JOBS_AWAITED_MAX, JOBS_LISTED_MAX, JOBS_PURGE_EVERY_MS, JOBS_PURGE_IDLE_MS,
};
use crate::seal;
use crate::store::{
    Append, CallbackRow, Changed, Insert, JobFilter, JobRow, NewJobRow, PieceRow, QueueLimits,
    Store, StoreError, UnwantedRow, Update, now_ms,
};

/// Why jobs with a deadline, a moment to begin or hours of their own wait after a start.
const NO_TIME: &str = "nobody has set this machine's clock yet";

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Jobs(Arc<Shared>);

struct Shared {
    store: Store,
    config: JobsConfig,
    policy: Policy,
    windows: Windows,
    pace: Box<dyn Pace>,
    /// Why nothing starts.
    waits_for: Mutex<Option<String>>,
    /// Until when the uptime is added up.
    purged_at: Mutex<Instant>,
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
            waits_for: Mutex::default(),
            purged_at: Mutex::new(Instant::now()),
        }));
        let now = now_ms();
        let rows = jobs.0.store.open_jobs()?;
        let mut ran = rows.into_iter().map(Job::of).collect::<Result<Vec<_>, _>>()?;
        ran.retain(|job| job.state == State::Running);
        let has_suspect = ran.iter().any(Job::is_suspect);
        let interrupted = |job: &Job| match has_suspect && !job.is_suspect() {
            // What broke is what broke before.
            true => jobs.update(job, &Happening::Stopped, now),
            false => jobs.update(job, &Happening::Crashed { n_token: job.row.n_token }, now),
        };
        let updates: Vec<Update> = ran.iter().filter_map(interrupted).collect();
        let n_interrupted = updates.len();
        if n_interrupted > 0 {
            jobs.0.store.update_jobs(updates)?;
        }
        jobs.purge(0)?;
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
        self.purge(JOBS_PURGE_EVERY_MS)?;
        let limits = self.limits(asked.starts_now);
        let body_hash = asked.digest.unwrap_or_else(|| hash(&asked.endpoint, &asked.body));
        let mut ledger = machine::fresh(asked.not_before_ms.unwrap_or(DUE_AT_ONCE));
        if asked.starts_now {
            let started = Happening::Started { n_token: 0 };
            ledger = machine::next(&ledger, 1, &started, now, &self.0.policy).unwrap_or(ledger);
        }
        let random = random()?;
        let new = NewJobRow {
            id: format!("job-{}", hex(&random[..12])),
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
        match self.0.store.insert_job(new, limits)? {
            Insert::New(row) => Ok(Submitted::New(Job::of(row)?)),
            Insert::Exists(row) if row.body_hash == body_hash => {
                Ok(Submitted::Known(Job::of(row)?))
            }
            Insert::Exists(row) => Err(JobsError::Conflict {
                request_id: row.request_id.unwrap_or_default(),
                id: row.id,
            }),
            Insert::Full(full) => Err(full.into()),
        }
    }

    /// The room that there is; a queue that is full leaves some for those that are waited for.
    fn limits(&self, is_awaited: bool) -> QueueLimits {
        let (n_max, bytes_max) = (self.0.config.n_waiting_max, self.0.config.bytes_max);
        match is_awaited {
            true => QueueLimits {
                n_max: n_max + JOBS_AWAITED_MAX,
                bytes_max: bytes_max + bytes_max / 8,
            },
            false => QueueLimits { n_max, bytes_max },
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

    /// A job of a tenant by how they called it.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn of_request(&self, tenant: u64, request_id: &str) -> Result<Job, JobsError> {
        let row = self.0.store.job_of_request(tenant as i64, request_id)?;
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

    /// The newest jobs, whoever they belong to.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn newest(&self, n_max: i64) -> Result<Vec<Job>, JobsError> {
        let filter = JobFilter { tenant: None, state: None, before_n: None, n_max };
        self.0.store.jobs(&filter)?.into_iter().map(Job::of).collect()
    }

    /// What was asked for.
    ///
    /// # Errors
    /// If it does not open.
    pub fn body(&self, job: &Job) -> Result<Vec<u8>, JobsError> {
        Ok(self.0.store.job_body(&job.row)?)
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

    /// The next job, which runs from now on. Jobs whose deadline has passed fail on the way, by a
    /// clock that is believed, and one whose texts do not open is set aside.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn take(&self) -> Result<Taken, JobsError> {
        self.purge(JOBS_PURGE_IDLE_MS)?;
        let now = now_ms();
        let rows = self.0.store.open_jobs()?;
        let jobs = rows.into_iter().map(Job::of).collect::<Result<Vec<_>, _>>()?;
        let (running, mut queued): (Vec<&Job>, Vec<&Job>) =
            jobs.iter().partition(|job| job.state == State::Running);
        let n_queued = queued.len();
        if !self.0.pace.knows_time() {
            let has_hours = self.0.windows != Windows::default();
            let is_timeless =
                |job: &Job| job.row.deadline_ms.is_none() && job.waiting().due_ms <= DUE_AT_ONCE;
            queued.retain(|job| !has_hours && is_timeless(job));
        }
        let is_held = queued.len() < n_queued;
        let late = queued.iter().filter(|job| job.row.deadline_ms.is_some_and(|at| at <= now));
        let late: Vec<Update> =
            late.filter_map(|job| self.update(job, &Happening::DeadlinePassed, now)).collect();
        if !late.is_empty() {
            self.0.store.update_jobs(late)?;
            return Ok(Taken::Changed);
        }
        let waiting: Vec<Waiting> = queued.iter().map(|job| job.waiting()).collect();
        let running: Vec<bool> = running.iter().map(|job| job.is_suspect()).collect();
        let verdict = match self.0.windows.verdict(now) {
            Verdict::Go => self.0.pace.verdict(now),
            wait => wait,
        };
        let next = choose(&waiting, &running, self.0.config.n_at_once, &verdict, now);
        let (n, reason, until_ms) = match next {
            Next::Start(n) => (Some(n), None, None),
            Next::Wait { until_ms, reason } => {
                (None, reason.or_else(|| is_held.then(|| NO_TIME.to_owned())), until_ms)
            }
        };
        *self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        if let Some(job) = n.and_then(|n| queued.iter().find(|job| job.row.n == n)) {
            return self.start(job, now);
        }
        let deadline = queued.iter().filter_map(|job| job.row.deadline_ms).min();
        Ok(Taken::Wait { until_ms: [until_ms, deadline].into_iter().flatten().min() })
    }

    /// Starts a job out of its turn, for somebody who waits for it; `None` unless it waited.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn begin(&self, job: &Job) -> Result<Option<Run>, JobsError> {
        match self.start(job, now_ms())? {
            Taken::Run(run) => Ok(Some(*run)),
            _ => Ok(None),
        }
    }

    /// Starts a job, unless somebody was faster or it cannot be read.
    fn start(&self, job: &Job, now: i64) -> Result<Taken, JobsError> {
        let pieces = self.pieces(job, job.row.ledger.epoch, 0);
        let opened = pieces.and_then(|pieces| Ok((self.0.store.job_body(&job.row)?, pieces)));
        let (body, pieces) = match opened {
            Ok(opened) => opened,
            // Others can be read, and wait behind it.
            Err(why @ (JobsError::Record { .. } | JobsError::Store(StoreError::Sealed { .. }))) => {
                tracing::error!(job = job.row.id, error = %why, "a job is set aside");
                self.happen(job, &Happening::Unreadable(why.to_string()), now)?;
                return Ok(Taken::Changed);
            }
            Err(error) => return Err(error),
        };
        let started = Happening::Started { n_token: job.row.n_token };
        let Some(job) = self.happen(job, &started, now)? else { return Ok(Taken::Changed) };
        let pieces = pieces.into_iter().map(|(_, piece)| piece).collect();
        Ok(Taken::Run(Box::new(Run { job, body, pieces })))
    }

    /// Makes pieces of running jobs durable: of each the job, where they end, and the pieces. Comes
    /// back with whether they were put: not those of a run that is over.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn append(&self, rows: Vec<(Job, i64, Vec<Piece>)>) -> Result<Vec<bool>, JobsError> {
        let row = |(job, end, pieces): (Job, i64, Vec<Piece>)| Append {
            n: job.row.n,
            id: job.row.id,
            revision: job.row.revision,
            row: PieceRow { epoch: job.row.ledger.epoch, end, pieces: to_row(&pieces) },
        };
        Ok(self.0.store.append_pieces(rows.into_iter().map(row).collect())?)
    }

    /// Begins the text of a running job anew; the job with its new epoch, `None` if this run of it
    /// is over.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn restart(&self, job: &Job) -> Result<Option<Job>, JobsError> {
        self.happen(job, &Happening::Diverged, now_ms())
    }

    /// Writes down to which machine a running job is given, under a name that is new, or that none
    /// has it; the job as it is then, `None` if this run of it is over.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn give(&self, job: &Job, host: Option<&str>) -> Result<Option<Job>, JobsError> {
        let holder = host.map(|host| format!("{host} {}-{}", job.row.id, job.row.revision));
        self.happen(job, &Happening::Given(holder), now_ms())
    }

    /// Says how a run ended. If it was taken back meanwhile, nothing changes.
    ///
    /// # Errors
    /// If the disk does not take it; then the job counts as crashed when the program starts again.
    pub fn end(&self, job: &Job, ended: Ended) -> Result<(), JobsError> {
        if let Some(update) = self.update(job, &ended.happening, now_ms()) {
            let pieces = ended.tail.map(|(end, pieces)| PieceRow {
                epoch: job.row.ledger.epoch,
                end,
                pieces: to_row(&pieces),
            });
            let update = Update { answer: ended.outcome, pieces, ..update };
            self.0.store.update_jobs(vec![update])?;
        }
        self.purge(JOBS_PURGE_EVERY_MS)
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
    /// If it is in another state or not this tenant's, there is no room for one more that waits, or
    /// the disk does not take it.
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

    /// Writes what a happening makes of a job; the job as it is then, `None` if it is of another
    /// revision by now.
    fn happen(&self, job: &Job, happening: &Happening, now: i64) -> Result<Option<Job>, JobsError> {
        let Some(update) = self.update(job, happening, now) else { return Ok(None) };
        let ledger = update.ledger.clone();
        match self.0.store.update_jobs(vec![update])?.first() {
            Some(Changed::Done) => {
                let n_token = match ledger.epoch == job.row.ledger.epoch {
                    true => job.row.n_token,
                    false => 0,
                };
                let revision = job.row.revision + 1;
                Job::of(JobRow { ledger, revision, n_token, ..job.row.clone() }).map(Some)
            }
            Some(Changed::Full(full)) => Err((*full).into()),
            Some(Changed::Stale) | None => Ok(None),
        }
    }

    fn update(&self, job: &Job, happening: &Happening, now: i64) -> Option<Update> {
        let ledger = &job.row.ledger;
        let ledger = machine::next(ledger, job.row.n_attempt_max, happening, now, &self.0.policy)?;
        let state = State::from_name(&ledger.state)?;
        let limits = (*happening == Happening::RetryAsked).then(|| self.limits(false));
        // Whoever had it and has it no more may write it still, unless they answered it or are
        // known not to have it.
        let is_known = state == State::Done || *happening == Happening::Given(None);
        let is_in_vain = ledger.holder != job.row.ledger.holder && !is_known;
        let unwanted = job.row.ledger.holder.clone().filter(|_| is_in_vain);
        let calls_back = state.is_over();
        Some(Update { calls_back, limits, unwanted, ..Update::of(&job.row, ledger) })
    }

    /// Who has a job that nobody wants of them any more, until they have heard that.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn unwanted(&self) -> Result<Vec<UnwantedRow>, JobsError> {
        Ok(self.0.store.unwanted()?)
    }

    /// Says that they have heard it, or had answered the job before. If it was only taken back
    /// since, it is theirs again, until the answer is here.
    ///
    /// # Errors
    /// If the disk does not take it; then they are told again.
    pub fn settle_unwanted(&self, row: &UnwantedRow, was_answered: bool) -> Result<(), JobsError> {
        let now = now_ms();
        if was_answered && let Some(job) = self.0.store.job(&row.id)? {
            let job = Job::of(job)?;
            let is_late = job.row.deadline_ms.is_some_and(|at| at <= now);
            if job.row.revision == row.revision && !is_late {
                self.happen(&job, &Happening::AnsweredThere(row.holder.clone()), now)?;
            }
        }
        Ok(self.0.store.drop_unwanted(row)?)
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

    /// Callbacks that are due to a host, or to all.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn due_callbacks(
        &self,
        host: Option<&str>,
        n_max: i64,
    ) -> Result<Vec<CallbackRow>, JobsError> {
        Ok(self.0.store.due_callbacks(host, n_max)?)
    }

    /// Says how a callback went: whether it arrived, or when it is tried again. If the job has gone
    /// on meanwhile, that is of no interest.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn settle_callback(
        &self,
        row: &CallbackRow,
        again_ms: Option<i64>,
        ok: bool,
    ) -> Result<(), JobsError> {
        let state = match (ok, again_ms) {
            (true, _) => "sent",
            (false, Some(_)) => "due",
            (false, None) => "failed",
        };
        Ok(self.0.store.settle_callback(row, state, again_ms.unwrap_or(0))?)
    }

    /// A job whoever it belongs to, for what the service does by itself.
    ///
    /// # Errors
    /// If there is none.
    pub fn any(&self, id: &str) -> Result<Job, JobsError> {
        Job::of(self.0.store.job(id)?.ok_or(JobsError::Unknown)?)
    }

    /// Removes what is too old or too much, unless that was done `every_ms` ago or later.
    fn purge(&self, every_ms: i64) -> Result<(), JobsError> {
        let mut purged_at = self.0.purged_at.lock().unwrap_or_else(PoisonError::into_inner);
        let up_ms = i64::try_from(purged_at.elapsed().as_millis()).unwrap_or(i64::MAX);
        if up_ms < every_ms {
            return Ok(());
        }
        let keep_ms = self.0.config.keep_days * 24 * 3600 * 1000;
        // A tenth stays free for those to come.
        self.0.store.purge_jobs(up_ms, keep_ms, self.0.config.bytes_max / 10 * 9)?;
        *purged_at += Duration::from_millis(up_ms.unsigned_abs());
        Ok(())
    }
}

fn random() -> Result<[u8; seal::KEY_LEN], JobsError> {
    let failed = |source| crate::store::StoreError::File { path: "random".into(), source };
    Ok(seal::random().map_err(failed)?)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
