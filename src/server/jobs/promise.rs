//! Ordinary requests that become jobs.
//!
//! ```text
//! Prefer: respond-async      202 and where the job is
//! Idempotency-Key: NAME      a job from the first moment on, and its caller waits for it;
//! on_disconnect: detach      its answer is kept, also when the caller leaves
//! ```
//!
//! A request that streams keeps its own way: its words cannot be told twice. It can be followed as
//! a job, with `Prefer: respond-async`.

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::door::Door;
use super::routes::{request_id, submit};
use super::{endpoint, runner};
use crate::inference::Priority;
use crate::jobs::{Asked, Job, Outcome, Run, State as JobState, Submitted};
use crate::server::{ApiError, Caller, Gate};

/// The header that names the job of an answer.
const JOB_HEADER: &str = "x-jetforge-job";
/// Attempts of a job whose caller left.
const N_ATTEMPT: i64 = 3;

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
    let asked = asked(&parts.headers, &caller, path, fields, &wish);
    let kept = match (asked, wish) {
        (Err(error), _) => Err(error),
        (Ok(asked), Wish::Later) => submit(&door, asked).await.map(applied),
        (Ok(asked), Wish::Kept) => wait(&door, asked, caller.priority).await,
    };
    kept.unwrap_or_else(IntoResponse::into_response)
}

/// What a caller wants besides an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// To come back for it.
    Later,
    /// That it is kept.
    Kept,
}

/// The wish of a request, with its fields; `None` for one that has none.
fn wish(headers: &HeaderMap, body: &Bytes) -> Option<(Wish, Map<String, Value>)> {
    let is_async = headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok()).any(|text| {
        text.split([',', ';']).any(|word| word.trim().eq_ignore_ascii_case("respond-async"))
    });
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
        () if (has_key || detaches) && !streams => Some((Wish::Kept, fields)),
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
    Ok(Asked {
        tenant: caller.tenant.0,
        request_id: request_id(headers, fields.get("request_id").and_then(Value::as_str))?,
        endpoint: path.to_owned(),
        body: Value::Object(fields).to_string().into_bytes(),
        n_attempt_max: N_ATTEMPT,
        starts_now: *wish == Wish::Kept,
        ..Asked::default()
    })
}

/// Says that the wish was heard.
fn applied(mut response: Response) -> Response {
    let applied = HeaderValue::from_static("respond-async");
    response.headers_mut().insert("preference-applied", applied);
    response
}

/// Runs a request as a job and waits for its end.
async fn wait(door: &Door, asked: Asked, priority: Priority) -> Result<Response, ApiError> {
    let (tenant, body) = (asked.tenant, asked.body.clone());
    // Heard from before it can end.
    let mut changes = door.changes();
    let owner = door.clone();
    // In a task of its own: if the caller leaves meanwhile, what is on the disk runs all the same.
    let submitted = tokio::spawn(async move {
        let submitted = owner.ask(move |jobs| jobs.submit(asked)).await?;
        if let Submitted::New(job) = &submitted {
            let run = Run { job: job.clone(), body, pieces: Vec::new() };
            runner::start(&owner, run, priority);
        }
        Ok::<Submitted, ApiError>(submitted)
    });
    let broken = |_| ApiError::internal("the job could not be taken in");
    let job = match submitted.await.map_err(broken)?? {
        Submitted::New(job) => job,
        Submitted::Known(job) => again(door, tenant, job).await?,
    };
    let id = job.row.id;
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
        match found {
            (job, outcome) if job.state.is_over() => return Ok(answer(&job, outcome)),
            // The disk does not take its end, or the service stops.
            _ if *door.stopping().borrow() => {
                let message = format!("the service stops; job {id} goes on when it is back");
                let again = std::time::Duration::from_secs(5);
                return Err(ApiError::unavailable(message, again));
            }
            _ => {}
        }
        let mut stopping = door.stopping();
        tokio::select! {
            _ = changes.changed() => {}
            _ = stopping.changed() => {}
        }
    }
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
    let mut response = match outcome {
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
    if let Ok(id) = HeaderValue::from_str(&job.row.id) {
        response.headers_mut().insert(JOB_HEADER, id);
    }
    response
}
