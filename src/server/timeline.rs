//! `/timeline`: what recent requests went through, by their ids, without a word of them.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{ApiError, Gate};
use crate::inference::{Finish, RequestTimeline};

/// The routes of this file.
pub(super) fn routes() -> Router<Gate> {
    Router::new().route("/timeline", get(all)).route("/timeline/{id}", get(one))
}

async fn all(State(gate): State<Gate>) -> Json<Value> {
    Json(json!({ "requests": timelines(&gate, |_| true) }))
}

async fn one(State(gate): State<Gate>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let found = timelines(&gate, |timeline| timeline.id == id);
    match found.is_empty() {
        true => Err(ApiError::not_found("no recent request has this id")),
        false => Ok(Json(json!({ "requests": found }))),
    }
}

/// Timelines of all engines, the latest first.
pub(super) fn timelines(gate: &Gate, is_wanted: impl Fn(&RequestTimeline) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    for (model, engine) in gate.server().0.host.engines() {
        let wanted = engine.timelines().into_iter().filter(&is_wanted);
        found.extend(wanted.map(|timeline| (timeline.arrived_unix_ms, model.clone(), timeline)));
    }
    found.sort_by_key(|(arrived, ..)| std::cmp::Reverse(*arrived));
    found.iter().map(|(_, model, timeline)| view(model, timeline)).collect()
}

fn view(model: &str, timeline: &RequestTimeline) -> Value {
    let timings = &timeline.timings;
    json!({
        "id": timeline.id,
        "model": model,
        "answer_idx": timeline.answer_idx,
        "arrived_unix_ms": timeline.arrived_unix_ms,
        "queued_ms": timings.queued_ms,
        "prefill_ms": timings.prefill_ms,
        "decode_ms": timings.decode_ms,
        "n_prompt": timings.n_prompt,
        "n_cached": timings.n_cached,
        "n_generated": timings.n_generated,
        "n_draft": timings.n_draft,
        "n_accepted": timings.n_accepted,
        "finish": finish_name(&timeline.finish),
    })
}

/// A word for the end; a stop string is the caller's text and stays out.
fn finish_name(finish: &Finish) -> &'static str {
    match finish {
        Finish::Eog => "eog",
        Finish::Stop(_) => "stop",
        Finish::Length => "length",
        Finish::ContextFull => "context_full",
        Finish::TimeUp => "time_up",
        Finish::Indent => "indent",
        Finish::Canceled => "canceled",
    }
}
