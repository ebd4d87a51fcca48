//! What stands around the answers: tasks and how they stand, notes about answers, the log, and what
//! a request went through.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::context::Choice;
use super::kind_of;
use super::message::Kind;
use crate::base::limits::{
    FEEDBACK_BYTES_MAX, FEEDBACK_MAX, JOBS_LISTED_MAX, LOG_LINES_MAX, TASKS_LISTED_MAX,
};
use crate::inference::TenantId;
use crate::jobs::{Job, Jobs, JobsError, State as JobState};
use crate::server::fields::Fields;
use crate::server::report::random_word;
use crate::server::state::{Caller, Server};
use crate::server::sync::ask as ask_sync;
use crate::server::timeline::timelines;
use crate::server::{ApiError, Gate, logs};
use crate::sync::{Node, SyncError};

/// A task that is kept, with what is told of its texts: a list of tasks must not hold them all.
struct Kept {
    id: String,
    job: Job,
    /// What was asked for, where its path does not say it.
    asked: Option<String>,
    /// What its answer says that went wrong.
    error: Option<Value>,
}

fn answer_of(jobs: &Jobs, job: &Job) -> Value {
    let answer = jobs.outcome(job).ok().flatten();
    answer.and_then(|answer| serde_json::from_slice(&answer.body).ok()).unwrap_or_default()
}

impl Kept {
    /// The task of a job; `None` if it is none, or has no name.
    fn of(jobs: &Jobs, job: Job) -> Option<Kept> {
        kind_of(&job.row.endpoint)?;
        let read = |text: Vec<u8>| serde_json::from_slice(&text).unwrap_or_default();
        let body: Value = jobs.body(&job).map(read).unwrap_or_default();
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        // A hub calls the job of a task otherwise than the task.
        let id = text("request_id").or(job.row.request_id.clone())?;
        let is_well = matches!(job.state, JobState::Running | JobState::Done);
        let error = (!is_well).then(|| answer_of(jobs, &job)["metadata"]["error"].take());
        let error = error.filter(|error| !error.is_null());
        Some(Kept { id, asked: text("request_type"), job, error })
    }

    /// How it stands.
    fn view(&self, server: &Server) -> Value {
        let row = &self.job.row;
        let kind = kind_of(&row.endpoint).flatten().map(Kind::name);
        let kind = kind.or(self.asked.as_deref());
        let status = match self.job.state {
            JobState::Queued => "pending",
            JobState::Running => "running",
            JobState::Done => "completed",
            JobState::Cancelled => "cancelled",
            JobState::Failed | JobState::SetAside => "failed",
        };
        let mut task = json!({
            "request_id": self.id,
            "request_type": kind.unwrap_or(Kind::Generation.name()),
            "status": status,
            "created_at": row.created_ms / 1000,
            "job": row.id,
        });
        match (self.job.state, &self.error, &row.ledger.reason) {
            (JobState::Done | JobState::Running, ..) => {}
            (_, Some(error), _) => task["error"] = error.clone(),
            (_, None, Some(reason)) => task["error"] = json!({ "message": reason }),
            (_, None, None) => {}
        }
        if let Some(choice) = server.0.contexts.find(TenantId(row.tenant as u64), &self.id) {
            task["context"] = context(&choice);
        }
        task
    }
}

/// Asks the jobs something; without a store there are no tasks to tell of.
async fn ask<T: Send + 'static>(
    gate: &Gate,
    question: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
) -> Result<T, ApiError> {
    let missing = "this service keeps no tasks; see its first lines for the reason";
    gate.jobs().ok_or_else(|| ApiError::not_supported(missing))?.ask(question).await
}

/// `GET /tasks`: the caller's tasks among its latest jobs, the latest first.
pub(super) async fn tasks(
    State(gate): State<Gate>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    let found = ask(&gate, move |jobs| {
        let found = jobs.list(caller.tenant.0, None, None, JOBS_LISTED_MAX)?;
        let kept = found.into_iter().filter_map(|job| Kept::of(jobs, job));
        Ok(kept.take(TASKS_LISTED_MAX).collect::<Vec<Kept>>())
    });
    let tasks: Vec<Value> = found.await?.iter().map(|kept| kept.view(gate.server())).collect();
    Ok(Json(json!({ "tasks": tasks })))
}

/// `GET /tasks/{id}`: one of them, with its answer.
pub(super) async fn task(
    State(gate): State<Gate>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = ask(&gate, move |jobs| {
        let newest = match jobs.of_request(caller.tenant.0, &id) {
            Ok(job) => vec![job],
            Err(JobsError::Unknown) => jobs.list(caller.tenant.0, None, None, JOBS_LISTED_MAX)?,
            Err(error) => return Err(error),
        };
        let kept = newest.into_iter().filter_map(|job| Kept::of(jobs, job));
        let kept = kept.into_iter().find(|kept| kept.id == id);
        Ok(kept.map(|kept| {
            let is_done = kept.job.state == JobState::Done;
            let answer = is_done.then(|| answer_of(jobs, &kept.job));
            (kept, answer)
        }))
    });
    let (kept, answer) = found.await?.ok_or_else(|| ApiError::not_found("no task has this id"))?;
    let mut task = kept.view(gate.server());
    if let Some(answer) = answer {
        task["answer"] = answer;
    }
    Ok(Json(task))
}

/// What became of a task's context chunks.
fn context(choice: &Choice) -> Value {
    let [direct, dependencies, interfaces, examples] = choice.n_class;
    json!({
        "budget": choice.n_max,
        "tokens": choice.n_tokens(),
        "joins": choice.n_joins,
        "direct": direct,
        "dependencies": dependencies,
        "interfaces": interfaces,
        "examples": examples,
        "chunks": choice.chosen,
        "dropped": choice.dropped,
    })
}

/// Notes that no store keeps: there is no peer that could be told of them.
#[derive(Default)]
pub(in crate::server) struct Notes(Mutex<VecDeque<(TenantId, Value)>>);

impl Notes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(TenantId, Value)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, tenant: TenantId, note: Value) {
        let mut notes = self.lock();
        if notes.len() >= FEEDBACK_MAX {
            notes.pop_front();
        }
        notes.push_back((tenant, note));
    }

    fn of(&self, tenant: TenantId) -> Vec<Value> {
        let notes = self.lock();
        notes.iter().filter(|(whose, _)| *whose == tenant).map(|(_, note)| note.clone()).collect()
    }
}

/// The notes of a caller that the store keeps, the latest first.
fn told(sync: &Node, tenant: TenantId) -> Result<Vec<Value>, SyncError> {
    let own = format!("{}/{}-", sync.node(), tenant.0);
    // Those of peers stand among them.
    let records = sync.records("feedback", 4 * FEEDBACK_MAX)?;
    let notes = records.into_iter().filter(|record| record.entry.key.starts_with(&own));
    Ok(notes.take(FEEDBACK_MAX).map(|record| record.entry.body).collect())
}

/// A caller's notes, the oldest first.
async fn notes(gate: &Gate, tenant: TenantId) -> Result<Vec<Value>, ApiError> {
    let mut notes = gate.server().0.notes.of(tenant);
    if let Some(sync) = gate.sync() {
        notes.extend(ask_sync(sync, move |sync| told(sync, tenant)).await?.into_iter().rev());
    }
    Ok(notes)
}

/// `POST /feedback`: a note about an answer, kept as it is, and told to the peers.
pub(super) async fn feedback(
    State(gate): State<Gate>,
    caller: Caller,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let id = fields.str("request_id")?.unwrap_or_default().to_owned();
    let note = Value::Object(fields.0);
    if note.to_string().len() > FEEDBACK_BYTES_MAX {
        let message = format!("feedback has more than {FEEDBACK_BYTES_MAX} bytes");
        return Err(ApiError::invalid(message));
    }
    let tenant = caller.tenant;
    let is_told = match gate.sync() {
        Some(sync) => {
            let (name, note) = (format!("{}-{}", tenant.0, random_word(16)), note.clone());
            ask_sync(sync, move |sync| sync.tell_own("feedback", &name, note)).await?
        }
        None => false,
    };
    if !is_told {
        gate.server().0.notes.put(tenant, note);
    }
    let n_feedback = notes(&gate, tenant).await?.len();
    Ok(Json(json!({"request_id": id, "status": "success", "n_feedback": n_feedback})))
}

/// `GET /feedback`: the caller's notes.
pub(super) async fn feedbacks(
    State(gate): State<Gate>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "feedback": notes(&gate, caller.tenant).await? })))
}

/// Which lines of the log are wanted.
#[derive(Deserialize)]
pub(super) struct LogQuery {
    n: Option<usize>,
}

/// `GET /logs?n=100`: the last lines of the log, the oldest first.
pub(super) async fn logs(
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|_| ApiError::field("n", "n must be a whole number"))?;
    let n = query.n.unwrap_or(100).min(LOG_LINES_MAX);
    Ok(Json(json!({ "lines": logs::recent(n) })))
}

/// `GET /debug`: what recent requests went through.
pub(super) async fn debug(State(gate): State<Gate>) -> Json<Value> {
    Json(json!({ "requests": timelines(&gate, |_| true) }))
}

/// `GET /debug/{id}`: what one request went through, and its task.
pub(super) async fn debug_one(
    State(gate): State<Gate>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = timelines(&gate, |timeline| timeline.id == id);
    let tasks = match gate.jobs() {
        None => Vec::new(),
        Some(door) => {
            let kept = door.ask(move |jobs| {
                let found = jobs.newest(JOBS_LISTED_MAX)?.into_iter();
                let kept = found.filter_map(|job| Kept::of(jobs, job));
                Ok(kept.filter(|kept| kept.id == id).collect::<Vec<Kept>>())
            });
            kept.await?
        }
    };
    if found.is_empty() && tasks.is_empty() {
        return Err(ApiError::not_found("no recent request has this id"));
    }
    let tasks: Vec<Value> = tasks.iter().map(|kept| kept.view(gate.server())).collect();
    Ok(Json(json!({ "requests": found, "tasks": tasks })))
}
