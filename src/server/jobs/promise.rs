//! Ordinary requests that become jobs.
//!
//! ```text
//! Prefer: respond-async      202 and where the job is
//! Idempotency-Key: NAME      a job from the first moment on, and its caller waits for it;
//! on_disconnect: detach      its answer is kept, also when the caller leaves
//! Prefer: wait=SECONDS       beside one of these: the caller waits so long, then 202 as above
//! ```
//!
//! One that streams is a stream to its first caller, who may leave; its bytes are kept, and whoever
//! asks again gets them when they are whole. It can be followed from any place as a job.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::door::Door;
use super::endpoint;
use super::events::Frames;
use super::routes::{placed, request_id, submit, whole};
use super::runner::{self, Reader};
use crate::inference::Priority;
use crate::jobs::{Asked, Job, Outcome, Run, State as JobState, Submitted};
use crate::server::{ApiError, Caller, Gate};

/// The header that names the job of an answer.
const JOB_HEADER: &str = "x-jetforge-job";
/// Attempts of a job whose caller left.
const N_ATTEMPT: i64 = 3;
/// Longest wait without a look at the job.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Whether a request is for a job by its header: then an answer of another is none for it.
pub(in crate::server) fn asks_for_job(headers: &HeaderMap) -> bool {
    headers.contains_key("idempotency-key") || preferences(headers).any(is_async)
}

/// The layer before the dialects.
pub(in crate::server) async fn keep_promise(
    State(gate): State<Gate>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().and_then(|p| endpoint(p.as_str()));
    let (Some(door), Some(path)) = (gate.jobs().cloned(), path) else {
        return next.run(request).await;
    };
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    // The gate has read it within its bounds.
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
        return ApiError::invalid("the body broke off").into_response();
    };
    let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_default();
    let Some((wish, fields)) = wish(&parts.headers, &body) else {
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    };
    let patience = preferences(&parts.headers).find_map(|word| word.strip_prefix("wait="));
    let patience = patience.and_then(|n| n.parse::<u32>().ok());
    let patience = patience.map(|seconds| Duration::from_secs(seconds.into()));
    let asked = asked(&parts.headers, &caller, path, fields, &wish);
    let kept = match (asked, wish, patience) {
        (Err(error), ..) => Err(error),
        (Ok(asked), Wish::Later, None) => submit(&door, asked).await.map(applied),
        (Ok(asked), wish, _) => {
            wait(&door, asked, caller.priority, patience, wish == Wish::Streamed).await
        }
    };
    kept.unwrap_or_else(IntoResponse::into_response)
}

/// The words of all fields `Prefer`.
fn preferences(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all("prefer").into_iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|text| text.split([',', ';'])).map(str::trim)
}

fn is_async(word: &str) -> bool {
    word.eq_ignore_ascii_case("respond-async")
}

/// What a caller wants besides an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// To come back for it.
    Later,
    /// That it is kept.
    Kept,
    /// That it is kept as the stream that it is.
    Streamed,
}

/// The wish of a request, with its fields; `None` for one that has none.
fn wish(headers: &HeaderMap, body: &Bytes) -> Option<(Wish, Map<String, Value>)> {
    let is_async = preferences(headers).any(is_async);
    let has_key = headers.contains_key("idempotency-key");
    // Most requests do not ask, and are not parsed twice.
    let name = b"on_disconnect";
    if !is_async && !has_key && !body.windows(name.len()).any(|window| window == name) {
        return None;
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return None };
    let detaches = fields.get("on_disconnect").and_then(Value::as_str) == Some("detach");
    let streams = fields.get("stream") == Some(&Value::Bool(true));
    match () {
        () if is_async => Some((Wish::Later, fields)),
        () if (has_key || detaches) && streams => Some((Wish::Streamed, fields)),
        () if has_key || detaches => Some((Wish::Kept, fields)),
        () => None,
    }
}

fn asked(
    headers: &HeaderMap,
    caller: &Caller,
    path: &str,
    fields: Map<String, Value>,
    wish: &Wish,
) -> Result<Asked, ApiError> {
    let fields = if *wish == Wish::Streamed { fields } else { whole(fields) };
    Ok(Asked {
        tenant: caller.tenant.0,
        request_id: request_id(headers, fields.get("request_id").and_then(Value::as_str))?,
        endpoint: path.to_owned(),
        body: Value::Object(fields).to_string().into_bytes(),
        n_attempt_max: N_ATTEMPT,
        starts_now: *wish != Wish::Later,
        ..Asked::default()
    })
}

/// Says that the wish was heard.
fn applied(mut response: Response) -> Response {
    let applied = HeaderValue::from_static("respond-async");
    response.headers_mut().insert("preference-applied", applied);
    response
}

/// Takes a request in as a job and waits for its end, as long as its caller has patience.
async fn wait(
    door: &Door,
    asked: Asked,
    priority: Priority,
    patience: Option<Duration>,
    streams: bool,
) -> Result<Response, ApiError> {
    let tenant = asked.tenant;
    let (head, begun) = oneshot::channel();
    let (frames, received) = mpsc::channel(1);
    let reader = streams.then_some(Reader { head, frames });
    let until = patience.map(|patience| Instant::now() + patience);
    // Heard from before it can end.
    let mut changes = door.changes();
    // In a task of its own: if the caller leaves meanwhile, what is on the disk runs all the same.
    let submitted = tokio::spawn(taken_in(door.clone(), asked, priority, reader));
    let broken = |_| ApiError::internal("the job could not be taken in");
    let job = match submitted.await.map_err(broken)?? {
        Submitted::New(job) => job,
        Submitted::Known(job) => again(door, tenant, job).await?,
    };
    // Nobody tells, where the job is known or ends before it begins.
    if let Ok((status, headers)) = begun.await {
        let mut response = Response::new(Body::new(Frames(received)));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        return Ok(named(response, &job));
    }
    let id = job.row.id;
    let mut stopping = door.stopping();
    loop {
        changes.mark_unchanged();
        let wanted = id.clone();
        let found = door
            .ask(move |jobs| {
                let job = jobs.get(tenant, &wanted)?;
                let outcome = if job.state.is_over() { jobs.outcome(&job)? } else { None };
                Ok((job, outcome))
            })
            .await?;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match found {
            (job, outcome) if job.state.is_over() => return Ok(answer(&job, outcome)),
            // The disk does not take its end, or the service stops.
            _ if *stopping.borrow_and_update() => return Err(stops(&id)),
            (job, _) if left == Some(Duration::ZERO) => return placed(door, job).await,
            _ => {}
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = stopping.changed() => {}
            () = tokio::time::sleep(left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) => {}
        }
    }
}

/// Takes a job in, and runs it if that is to be at once.
async fn taken_in(
    door: Door,
    asked: Asked,
    priority: Priority,
    reader: Option<Reader>,
) -> Result<Submitted, ApiError> {
    let Some(_entering) = door.enter().await else { return Err(stopping()) };
    let (body, starts_now) = (asked.body.clone(), asked.starts_now);
    let submitted = door.ask(move |jobs| jobs.submit(asked)).await?;
    match &submitted {
        Submitted::New(job) if starts_now => {
            let run = Run { job: job.clone(), body, pieces: Vec::new() };
            runner::start(&door, run, priority, reader);
        }
        _ => door.tell(),
    }
    Ok(submitted)
}

fn stopping() -> ApiError {
    ApiError::unavailable("the service stops; ask again when it is back", Duration::from_secs(5))
}

fn stops(id: &str) -> ApiError {
    let message = format!("the service stops; job {id} goes on when it is back");
    ApiError::unavailable(message, Duration::from_secs(5))
}

/// A job that was asked for before; one that failed of what passes is tried again.
async fn again(door: &Door, tenant: u64, job: Job) -> Result<Job, ApiError> {
    let passes = job.row.status.is_none_or(|status| status == 429 || status >= 500);
    if job.state != JobState::Failed || !passes {
        return Ok(job);
    }
    let id = job.row.id;
    let job = door.ask(move |jobs| jobs.retry(tenant, &id)).await?;
    door.tell();
    Ok(job)
}

/// The stored answer of a job as an answer of now.
fn answer(job: &Job, outcome: Option<Outcome>) -> Response {
    let response = match outcome {
        Some(outcome) => {
            let status = u16::try_from(outcome.status).ok();
            let status = status.and_then(|status| StatusCode::from_u16(status).ok());
            let mut response = Response::new(Body::from(outcome.body));
            *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            if let Ok(kind) = HeaderValue::from_str(&outcome.media_type) {
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            response
        }
        None => {
            let why = job.row.ledger.reason.as_deref().unwrap_or("it was taken back");
            let message = format!("job {} is {}: {why}", job.row.id, job.state.name());
            ApiError::new(StatusCode::CONFLICT, "conflict_error", message).into_response()
        }
    };
    named(response, job)
}

/// An answer with the name of its job.
fn named(mut response: Response, job: &Job) -> Response {
    if let Ok(id) = HeaderValue::from_str(&job.row.id) {
        response.headers_mut().insert(JOB_HEADER, id);
    }
    response
}
