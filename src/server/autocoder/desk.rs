//! What stands around the answers: tasks and how they stand, notes about answers, the log, and what
//! a request went through.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::book::{Entry, Stage};
use crate::base::limits::{FEEDBACK_BYTES_MAX, LOG_LINES_MAX};
use crate::server::fields::Fields;
use crate::server::state::{Caller, Server};
use crate::server::sync::ask as ask_sync;
use crate::server::timeline::timelines;
use crate::server::{ApiError, Gate, logs};

/// `GET /tasks`: the caller's tasks, the latest first.
pub(super) async fn tasks(State(server): State<Server>, caller: Caller) -> Json<Value> {
    let tasks = server.0.book.list(caller.tenant);
    let tasks: Vec<Value> = tasks.iter().map(|(id, entry)| view(id, entry)).collect();
    Json(json!({ "tasks": tasks }))
}

/// `GET /tasks/{id}`: one of them, with its answer.
pub(super) async fn task(
    State(server): State<Server>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let entry = server.0.book.find(caller.tenant, &id);
    let entry = entry.ok_or_else(|| ApiError::not_found("no task has this id"))?;
    let mut task = view(&id, &entry);
    if let Stage::Answered(answer) = &entry.stage {
        task["answer"] = answer.to_json(&id, false);
    }
    Ok(Json(task))
}

fn view(id: &str, entry: &Entry) -> Value {
    let mut task = json!({
        "request_id": id,
        "request_type": entry.kind.name(),
        "status": "running",
        "created_at": entry.created_at,
    });
    match &entry.stage {
        Stage::Running(_) => {}
        Stage::Answered(answer) => {
            task["status"] = "completed".into();
            task["model"] = answer.model.as_str().into();
            task["context"] = context(entry);
        }
        Stage::Failed(error) => {
            task["status"] = "failed".into();
            task["error"] = error.to_json()["error"].clone();
        }
    }
    task
}

/// What became of a task's context chunks.
fn context(entry: &Entry) -> Value {
    let Stage::Answered(answer) = &entry.stage else { return Value::Null };
    let choice = &answer.context;
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
    if let Some(sync) = gate.sync() {
        let note = note.clone();
        ask_sync(sync, move |sync| sync.note("feedback", note)).await?;
    }
    let n_feedback = gate.server().0.book.note(caller.tenant, note);
    Ok(Json(json!({"request_id": id, "status": "success", "n_feedback": n_feedback})))
}

/// `GET /feedback`: the caller's notes.
pub(super) async fn feedbacks(State(gate): State<Gate>, caller: Caller) -> Json<Value> {
    Json(json!({ "feedback": gate.server().0.book.notes(caller.tenant) }))
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
    let tasks = gate.server().0.book.find_any(&id);
    if found.is_empty() && tasks.is_empty() {
        return Err(ApiError::not_found("no recent request has this id"));
    }
    let tasks: Vec<Value> = tasks.iter().map(|entry| view(&id, entry)).collect();
    Ok(Json(json!({ "requests": found, "tasks": tasks })))
}
