//! Ordinary requests that become jobs.
//!
//! ```text
//! Prefer: respond-async      202 and where the job is
//! Idempotency-Key: NAME      a job from the first moment on, and its caller waits for it;
//! on_disconnect: detach      its answer is kept, also when the caller leaves
//! a task of AutoCoder's      the same, if it has a name; what cannot be written now is refused
//! Prefer: wait=SECONDS       beside one of these: the caller waits so long, then 202 as above
//! ```
//!
//! One that streams is a stream to its first caller, who may leave; its bytes are kept, and whoever
//! asks again gets them from the first, also while they are written. It can be followed from any
//! place as a job.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::door::{Door, Head, Hearing};
use super::endpoint;
use super::events::Frames;
use super::routes::{placed, request_id, submit, whole};
use super::runner;
use crate::jobs::{Asked, Job, Jobs, JobsError, Outcome, Run, State as JobState, Submitted};
use crate::server::sockets::id_of;
use crate::server::{ApiError, Caller, Gate, autocoder};
use crate::store::now_ms;

/// The header that names the job of an answer, or that of a refusal: that one goes on.
pub const JOB: HeaderName = HeaderName::from_static("x-jetforge-job");
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
    let Some((wish, fields)) = wish(path, &parts.headers, &body) else {
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    };
    let digest = autocoder::digest(path, &fields);
    if wish == Wish::Named && digest.is_none() {
        // What is wrong with it is said at once.
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    }
    let id = id_of(fields.get("request_id"));
    let patience = preferences(&parts.headers).find_map(|word| word.strip_prefix("wait="));
    let patience = patience.and_then(|n| n.parse::<u32>().ok());
    let patience = patience.map(|seconds| Duration::from_secs(seconds.into()));
    let asked = asked(&parts.headers, &caller, path, fields, wish);
    let asked = asked.map(|asked| Asked { digest, ..asked });
    let kept = match (asked, wish, patience) {
        (Err(error), ..) => Err(error),
        (Ok(asked), Wish::Later, None) => submit(&door, asked).await.map(applied),
        (Ok(asked), wish, _) => wait(&door, asked, caller, patience, wish).await,
    };
    kept.unwrap_or_else(|error| {
        let job = error.extra.get("job").and_then(Value::as_str);
        let job = job.and_then(|id| HeaderValue::from_str(id).ok());
        let mut response = match autocoder::is_path(path) {
            true => autocoder::with_id(error, id).into_response(),
            false => error.into_response(),
        };
        response.headers_mut().extend(job.map(|job| (JOB, job)));
        response
    })
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
    /// That its name stands for its answer.
    Named,
}

/// The wish of a request, with its fields; `None` for one that has none.
fn wish(path: &str, headers: &HeaderMap, body: &Bytes) -> Option<(Wish, Map<String, Value>)> {
    let is_async = preferences(headers).any(is_async);
    let has_key = headers.contains_key("idempotency-key");
    let is_task = autocoder::is_path(path);
    // Most requests do not ask, and are not parsed twice.
    let name = b"on_disconnect";
    let has_name = || body.windows(name.len()).any(|window| window == name);
    if !is_async && !has_key && !is_task && !has_name() {
        return None;
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return None };
    let detaches = fields.get("on_disconnect").and_then(Value::as_str) == Some("detach");
    // A task's answer comes in one piece, whatever it says.
    let streams = !is_task && fields.get("stream") == Some(&Value::Bool(true));
    let is_named = is_task && fields.get("request_id").is_some_and(|id| !id.is_null());
    match () {
        () if is_async => Some((Wish::Later, fields)),
        () if (has_key || detaches) && streams => Some((Wish::Streamed, fields)),
        () if has_key || detaches => Some((Wish::Kept, fields)),
        () if is_named => Some((Wish::Named, fields)),
        () => None,
    }
}

fn asked(
    headers: &HeaderMap,
    caller: &Caller,
    path: &str,
    fields: Map<String, Value>,
    wish: Wish,
) -> Result<Asked, ApiError> {
    let fields = if wish == Wish::Streamed { fields } else { whole(fields) };
    Ok(Asked {
        tenant: caller.tenant.0,
        request_id: request_id(headers, fields.get("request_id").and_then(Value::as_str))?,
        endpoint: path.to_owned(),
        body: Value::Object(fields).to_string().into_bytes(),
        n_attempt_max: if wish == Wish::Named { 1 } else { N_ATTEMPT },
        starts_now: wish != Wish::Later,
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
    caller: Caller,
    patience: Option<Duration>,
    wish: Wish,
) -> Result<Response, ApiError> {
    let (tenant, streams) = (asked.tenant, wish == Wish::Streamed);
    let until = patience.map(|patience| Instant::now() + patience);
    // Heard from before it can end.
    let mut changes = door.changes();
    // In a task of its own: if the caller leaves meanwhile, what is on the disk runs all the same.
    let submitted = tokio::spawn(taken_in(door.clone(), asked, caller));
    let broken = |_| ApiError::internal("the job could not be taken in");
    let (job, own) = submitted.await.map_err(broken)??;
    let (n, id) = (job.row.n, job.row.id.clone());
    let head = || own.as_ref().and_then(|said| said.borrow().head.clone());
    let mut hearing = own.clone();
    let mut stopping = door.stopping();
    loop {
        changes.mark_unchanged();
        let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
        // Its own run, also if that is over by now. Whoever comes later hears it from its start.
        if streams
            && let Some(said) = hearing.take().or_else(|| door.said(n))
            && let Ok(Some(response)) = timeout(left().unwrap_or(Duration::MAX), told(said)).await
        {
            return Ok(named(response, &job));
        }
        let stops_now = *stopping.borrow_and_update();
        let left = left();
        let is_due = stops_now || left == Some(Duration::ZERO);
        // The end of each wakes everybody who waits: the disk is not asked about what runs.
        if is_due || !door.live().values().any(|live| live.job.row.n == n) {
            match found(door, tenant, id.clone()).await? {
                (job, outcome) if job.state.is_over() => {
                    return answer(&job, outcome, head());
                }
                (job, outcome) if wish == Wish::Named && job.state == JobState::Queued => {
                    let said = outcome.is_some().then(|| answer(&job, outcome, head()));
                    return said.unwrap_or_else(|| Err(waits(&job)));
                }
                // The disk does not take its end, or the service stops.
                _ if stops_now => return Err(stops(&id)),
                (job, _) if is_due => return placed(door, job).await,
                _ => {}
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = stopping.changed() => {}
            () = tokio::time::sleep(left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) => {}
        }
    }
}

/// A job as it stands on the disk, with its answer, or that of its last try.
async fn found(door: &Door, tenant: u64, id: String) -> Result<(Job, Option<Outcome>), ApiError> {
    let found = door.ask(move |jobs| {
        let job = jobs.get(tenant, &id)?;
        let outcome = jobs.outcome(&job)?;
        Ok((job, outcome))
    });
    found.await
}

/// What a run answers, as it comes; `None` if it ends before it begins.
async fn told(mut said: Hearing) -> Option<Response> {
    let head = said.wait_for(|said| said.head.is_some()).await.ok()?.head.clone();
    let (frames, received) = mpsc::channel(1);
    tokio::spawn(async move {
        for n in 0.. {
            let is_there = tokio::select! {
                is_there = said.wait_for(|said| said.frames.len() > n) => is_there,
                () = frames.closed() => return,
            };
            let Ok(frame) = is_there.map(|said| said.frames[n].clone()) else { return };
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Body::new(Frames(received)));
    (*response.status_mut(), *response.headers_mut()) = head?;
    Some(response)
}

/// Takes a job in, and runs it if that is to be at once; what it answers then.
async fn taken_in(
    door: Door,
    asked: Asked,
    caller: Caller,
) -> Result<(Job, Option<Hearing>), ApiError> {
    let Some(_entering) = door.enter().await else { return Err(stopping()) };
    let (body, starts_now) = (asked.body.clone(), asked.starts_now);
    let entered = door.ask(move |jobs| match jobs.submit(asked)? {
        Submitted::New(job) => {
            let run = Run { job: job.clone(), body, pieces: Vec::new() };
            Ok((job, starts_now.then_some(run)))
        }
        Submitted::Known(job) => again(jobs, job, starts_now),
    });
    let (job, run) = entered.await?;
    let said = run.map(|run| runner::start(&door, run, caller));
    if said.is_none() {
        door.tell();
    }
    Ok((job, said))
}

fn stopping() -> ApiError {
    ApiError::unavailable("the service stops; ask again when it is back", Duration::from_secs(5))
}

fn stops(id: &str) -> ApiError {
    let message = format!("the service stops; job {id} goes on when it is back");
    let mut error = ApiError::unavailable(message, Duration::from_secs(5));
    error.extra.insert("job".to_owned(), id.into());
    error
}

/// A job that waits for something, as a service that is not there for it now.
fn waits(job: &Job) -> ApiError {
    let why = job.row.ledger.reason.as_deref().unwrap_or("it is not due yet");
    let message = format!("job {} waits ({why}); ask again for its answer", job.row.id);
    ApiError::unavailable(message, Duration::from_secs(5))
}

/// A job that was asked for before. One that failed of what passes is tried again, and what waits
/// for its turn or its next try begins now if somebody waits for it.
fn again(jobs: &Jobs, job: Job, starts_now: bool) -> Result<(Job, Option<Run>), JobsError> {
    // A model that was not there may be by now.
    let passes = |status| [404, 408, 429].contains(&status) || status >= 500;
    let job = match job.state == JobState::Failed && job.row.status.is_none_or(passes) {
        true => jobs.retry(job.row.tenant as u64, &job.row.id)?,
        false => job,
    };
    let ledger = &job.row.ledger;
    let may_begin = ledger.due_ms <= now_ms() || ledger.reason.is_some();
    let begins = starts_now && job.state == JobState::Queued && may_begin;
    let run = if begins { jobs.begin(&job)? } else { None };
    Ok((job, run))
}

/// The stored answer of a job as an answer of now, with what of its head is ours if it was written
/// for this caller.
///
/// # Errors
/// Why there is none.
fn answer(job: &Job, outcome: Option<Outcome>, head: Option<Head>) -> Result<Response, ApiError> {
    let Some(outcome) = outcome else {
        let why = job.row.ledger.reason.as_deref().unwrap_or("it was taken back");
        let message = format!("job {} is {}: {why}", job.row.id, job.state.name());
        return Err(match job.state {
            JobState::Failed => ApiError::internal(message),
            _ => ApiError::conflict(message),
        });
    };
    let status = u16::try_from(outcome.status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut response = Response::new(Body::from(outcome.body));
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(kind) = HeaderValue::from_str(&outcome.media_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    if let Some((_, told)) = head.filter(|(status, _)| *status == response.status()) {
        let is_ours = |name: &HeaderName| {
            *name == header::RETRY_AFTER || name.as_str().starts_with("x-jetforge-")
        };
        let ours = told.into_iter().filter_map(|(name, value)| Some((name?, value)));
        response.headers_mut().extend(ours.filter(|(name, _)| is_ours(name)));
    }
    Ok(named(response, job))
}

/// An answer with the name of its job.
fn named(mut response: Response, job: &Job) -> Response {
    if let Ok(id) = HeaderValue::from_str(&job.row.id) {
        response.headers_mut().insert(JOB, id);
    }
    response
}
