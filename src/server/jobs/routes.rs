//! `/v1/jobs`: what is asked for, how it stands, and taking it back.
//!
//! A job belongs to the key that asked for it; for everybody else there is none.

use std::collections::HashMap;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::door::{Door, view};
use super::{ENDPOINTS, endpoint, events};
use crate::base::limits::{JOBS_ATTEMPTS_MAX, JOBS_LISTED_MAX, REQUEST_ID_BYTES_MAX};
use crate::jobs::{Asked, Job, Place, State as JobState, Submitted};
use crate::server::fields::Fields;
use crate::server::{ApiError, Caller, Gate, autocoder};

/// Attempts of a job that names no number.
const N_ATTEMPT: i64 = 3;
/// Jobs of a list that names no number.
const N_LISTED: i64 = 50;

/// The routes of this file.
pub(in crate::server) fn routes() -> Router<Gate> {
    Router::new()
        .route("/v1/jobs", get(list).post(create))
        .route("/v1/jobs/{id}", get(one).delete(cancel))
        .route("/v1/jobs/{id}/retry", post(retry))
        .route("/v1/jobs/{id}/events", get(follow))
}

/// The door, if the service has jobs.
fn door(gate: &Gate) -> Result<Door, ApiError> {
    let missing = "this service keeps no jobs; see its first lines for the reason";
    gate.jobs().cloned().ok_or_else(|| ApiError::not_supported(missing))
}

async fn create(
    State(gate): State<Gate>,
    caller: Caller,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, ApiError> {
    let door = door(&gate)?;
    let asked = asked(&door, caller.tenant.0, &headers, &fields)?;
    submit(&door, asked).await
}

/// Takes a job in and says where it is.
///
/// # Errors
/// If there is no room, or its name is taken.
pub(super) async fn submit(door: &Door, asked: Asked) -> Result<Response, ApiError> {
    let job = match door.ask(move |jobs| jobs.submit(asked)).await? {
        Submitted::New(job) => {
            door.tell();
            job
        }
        Submitted::Known(job) => job,
    };
    placed(door, job).await
}

/// Says where a job is, and how it stands.
pub(super) async fn placed(door: &Door, job: Job) -> Result<Response, ApiError> {
    let status = if job.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let place = format!("/v1/jobs/{}", job.row.id);
    let view = door.view_with_answer(job).await?;
    let mut response = (status, Json(view)).into_response();
    if let Ok(place) = HeaderValue::from_str(&place) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// Reads a job's fields.
fn asked(
    door: &Door,
    tenant: u64,
    headers: &HeaderMap,
    fields: &Fields,
) -> Result<Asked, ApiError> {
    let named = fields.str("endpoint")?.or(fields.str("kind")?);
    let known = || {
        let paths: Vec<&str> = ENDPOINTS.iter().map(|(path, _)| *path).collect();
        ApiError::field("endpoint", format!("endpoint must be one of {}", paths.join(", ")))
    };
    let endpoint = named.and_then(endpoint).ok_or_else(known)?;
    let body = fields.object("body")?;
    let body = body.ok_or_else(|| ApiError::field("body", "body must be the request's object"))?;
    let time = |name: &str| fields.int(name, 0..=i64::MAX);
    let own_id = fields.str("request_id")?.or(body.get("request_id").and_then(Value::as_str));
    let name = request_id(headers, own_id)?;
    let mut body = whole(body.clone());
    if let Some(name) = &name {
        autocoder::put_name(endpoint, &mut body, name);
    }
    Ok(Asked {
        tenant,
        request_id: name,
        endpoint: endpoint.to_owned(),
        digest: autocoder::digest(endpoint, &body),
        body: Value::Object(body).to_string().into_bytes(),
        priority: fields.int("priority", -100..=100)?.unwrap_or(0),
        not_before_ms: time("not_before_ms")?,
        deadline_ms: time("deadline_ms")?,
        n_attempt_max: fields.int("attempts", 1..=JOBS_ATTEMPTS_MAX)?.unwrap_or(N_ATTEMPT),
        callback: callback(door, fields.str("callback")?)?,
        starts_now: false,
    })
}

/// The fields of a request whose events are the stream, and whose answer is whole.
pub(super) fn whole(mut fields: Map<String, Value>) -> Map<String, Value> {
    fields.insert("stream".to_owned(), false.into());
    fields.remove("stream_options");
    fields
}

/// How the caller calls its request: the header, or its own field.
///
/// # Errors
/// A name that is none.
pub(super) fn request_id(
    headers: &HeaderMap,
    field: Option<&str>,
) -> Result<Option<String>, ApiError> {
    let header = headers.get("idempotency-key").map(|value| value.to_str().unwrap_or("\n"));
    let Some(id) = header.or(field) else { return Ok(None) };
    let is_sound = !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX;
    if !is_sound || id.chars().any(char::is_control) {
        let message = format!("a request's id has 1 to {REQUEST_ID_BYTES_MAX} plain characters");
        return Err(ApiError::field("request_id", message));
    }
    Ok(Some(id.to_owned()))
}

/// An address that may be called back.
fn callback(door: &Door, url: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(url) = url else { return Ok(None) };
    let allowed = &door.jobs().config().callbacks;
    let host = super::callback::host_of(url);
    if host.is_some_and(|host| allowed.iter().any(|known| *known == host)) {
        return Ok(Some(url.to_owned()));
    }
    let message = "callback must be an http:// address whose host:port jobs.callbacks names";
    Err(ApiError::field("callback", message))
}

async fn list(
    State(gate): State<Gate>,
    caller: Caller,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let (door, tenant) = (door(&gate)?, caller.tenant.0);
    let state = match query.get("state").map(String::as_str) {
        None | Some("") => None,
        Some(name) => Some(JobState::from_name(name).ok_or_else(|| {
            let names: Vec<&str> = JobState::ALL.iter().map(|state| state.name()).collect();
            ApiError::field("state", format!("state must be one of {}", names.join(", ")))
        })?),
    };
    let n_max = match query.get("limit") {
        None => N_LISTED,
        Some(text) => {
            text.parse().ok().filter(|n| (1..=JOBS_LISTED_MAX).contains(n)).ok_or_else(|| {
                ApiError::field("limit", format!("limit must be 1 to {JOBS_LISTED_MAX}"))
            })?
        }
    };
    let before = query.get("before").cloned();
    // One more tells whether there are more.
    let asked = move |jobs: &crate::jobs::Jobs| {
        let found = jobs.list(tenant, state, before.as_deref(), n_max + 1)?;
        Ok((found, jobs.counts()?))
    };
    let (mut found, (counts, waits_for)) = door.ask(asked).await?;
    let has_more = found.len() as i64 > n_max;
    found.truncate(n_max as usize);
    let counts: serde_json::Map<String, Value> =
        counts.iter().map(|(state, (n, _))| ((*state).to_owned(), json!(n))).collect();
    let data: Vec<Value> = found.iter().map(view).collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "has_more": has_more,
        "counts": counts,
        "waits_for": waits_for,
    })))
}

async fn one(
    State(gate): State<Gate>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (door, tenant) = (door(&gate)?, caller.tenant.0);
    let job = door.ask(move |jobs| jobs.get(tenant, &id)).await?;
    Ok(Json(door.view_with_answer(job).await?))
}

async fn cancel(
    State(gate): State<Gate>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (door, tenant) = (door(&gate)?, caller.tenant.0);
    let job = door.ask(move |jobs| jobs.cancel(tenant, &id)).await?;
    door.break_off(&job).await;
    Ok(Json(view(&job)))
}

async fn retry(
    State(gate): State<Gate>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (door, tenant) = (door(&gate)?, caller.tenant.0);
    let job = door.ask(move |jobs| jobs.retry(tenant, &id)).await?;
    door.tell();
    Ok(Json(view(&job)))
}

async fn follow(
    State(gate): State<Gate>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (door, tenant) = (door(&gate)?, caller.tenant.0);
    let job: Job = door.ask(move |jobs| jobs.get(tenant, &id)).await?;
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let named = header.or(query.get("last_event_id").map(String::as_str));
    let from = match named.filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(Place::parse(text).ok_or_else(|| {
            ApiError::field("last_event_id", "that is no id of an event of ours")
        })?),
    };
    Ok(events::follow(door, tenant, job, from))
}
