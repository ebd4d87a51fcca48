//! A job of the hub's in an appliance's own queue.
//!
//! ```text
//! give     on the hub's disk: who gets it, and what it is called there
//! post     the request under that name: the appliance keeps it, or knows it already
//! follow   its events: the text goes to the job here, and so to whoever follows that
//! look     whether it is over; else its events again, behind the last one that was heard
//! ```
//!
//! The appliance writes to the end, whoever leaves. A hub that was killed posts the same name once
//! more and hears the text from its start; what its disk has is compared and left out. Nobody else
//! gets a job that somebody has: while who has it is away, or lets it wait for heat or a time of
//! day, the run ends, takes no place, spends no attempt, and the next one asks again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::Value;

use super::Hub;
use super::backend::Backend;
use super::dial::{Call, DialError, describe};
use super::health::Failure;
use super::policy::Haste;
use super::relay::{RETRY, Trip, collect};
use super::retry::is_refusal;
use super::target::Target;
use crate::base::limits::{
    HUB_ANSWER_BYTES_MAX, HUB_HAND_PAUSE_MS, HUB_HAND_TRIES_MAX, HUB_HAND_WAIT_MS,
};
use crate::server::frames::{Form, Splitter};
use crate::server::{ApiError, JOB, JobHand};

/// The header with a request's name, by which it is kept.
pub(super) const NAME: HeaderName = HeaderName::from_static("idempotency-key");
/// The header that says how an answer is wanted.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// The header with the last event that was heard.
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");

/// A job on its way to an appliance.
pub(super) struct Handing<'a> {
    pub trip: &'a Trip,
    pub hand: &'a JobHand,
    pub backend: &'a Arc<Backend>,
    pub target: &'a Target,
}

/// What became of a request that was posted.
enum Posted {
    /// It is a job, at this path.
    Job(String),
    /// It was answered: refused, or by a machine that keeps no jobs.
    Answer(Response),
}

/// How far a job's events were heard.
#[derive(Default)]
struct Place {
    last_id: Option<String>,
    n_bytes: usize,
    /// Since when it waits there.
    waits_since: Option<Instant>,
}

impl Place {
    fn waits_long(&self) -> bool {
        let long = Duration::from_millis(HUB_HAND_WAIT_MS);
        self.waits_since.is_some_and(|since| since.elapsed() >= long)
    }
}

impl Handing<'_> {
    /// Gives the job to the appliance, or finds it there, and follows it to its end; its answer.
    pub async fn run(&self) -> Result<Response, DialError> {
        let held = self.hand.holder();
        let held = held.filter(|holder| self.backend.is_known_as(&holder.host));
        let is_new = held.is_none();
        let holder = match held {
            Some(holder) => holder,
            None => match self.hand.give(&self.backend.identity()).await {
                Ok(holder) => holder,
                Err(error) => {
                    return Ok(ApiError::unavailable(error.message, RETRY).into_response());
                }
            },
        };
        match self.post(&holder.name).await {
            Ok(Posted::Job(path)) => self.follow(&path).await,
            Ok(Posted::Answer(answer)) => {
                match answer.status().is_success() {
                    true => self.hand.settle(),
                    // It may have it all the same.
                    false if !is_new => {}
                    // If another one gets it, this one hears that nobody wants it there.
                    false if may_be_there(&answer) => self.hand.settle(),
                    false => self.take_back().await,
                }
                Ok(answer)
            }
            Err(error) => {
                if is_new && !error.was_sent {
                    self.take_back().await;
                }
                Err(error)
            }
        }
    }

    /// It was not sent, not taken, or failed there.
    async fn take_back(&self) {
        if let Err(error) = self.hand.take_back().await {
            tracing::warn!(error = error.message, "a job counts as given, though it is not");
        }
    }

    fn call<'c>(&'c self, method: Method, path: &'c str) -> Call<'c> {
        let headers = self.trip.asked.headers(self.backend);
        Call { method, headers, ..Call::get(path, self.backend) }
    }

    async fn post(&self, name: &str) -> Result<Posted, DialError> {
        let path = self.trip.asked.path_for(self.backend);
        let mut call = self.call(Method::POST, &path);
        call.body = self.trip.asked.body_for(self.backend);
        let wrong = |_| lost(Failure::Wrong, "its name is no header");
        call.headers.insert(NAME, HeaderValue::from_str(name).map_err(wrong)?);
        // What nobody waits for takes its turn there; what somebody does begins at once.
        let is_later = self.trip.asked.need.haste == Haste::Later;
        let prefer = if is_later { "respond-async" } else { "wait=0" };
        call.headers.insert(PREFER, HeaderValue::from_static(prefer));
        let wait = self.trip.hub.waits().answer;
        let answer = tokio::select! {
            answer = self.trip.hub.dialer().send(self.target, call, wait) => answer?,
            () = self.backend.gone() => return Err(gone()),
        };
        if !answer.status().is_success() {
            return Ok(Posted::Answer(answer));
        }
        let (parts, body) = answer.into_parts();
        let body = tokio::select! {
            body = collect(body, wait) => body.map_err(|(failure, why)| lost(failure, why))?,
            () = self.backend.gone() => return Err(gone()),
        };
        let view: Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(match path_of(&view) {
            Some(path) => Posted::Job(path),
            None => Posted::Answer(Response::from_parts(parts, Body::from(body))),
        })
    }

    /// Follows a job to its end.
    async fn follow(&self, path: &str) -> Result<Response, DialError> {
        let mut place = Place::default();
        let mut n_vain = 0;
        loop {
            let n_before = place.n_bytes;
            let heard = self.hear(path, &mut place).await;
            let fault = match self.look(path).await {
                Ok(view) if is_over(&view) => {
                    self.hand.settle();
                    let answer = answer(&view);
                    if !answer.status().is_success() {
                        self.take_back().await;
                        self.hand.pass_on();
                    }
                    return Ok(answer);
                }
                Ok(_) if place.waits_long() => {
                    let why = format!("{path} waits there");
                    return Ok(ApiError::unavailable(why, RETRY).into_response());
                }
                Ok(_) => heard.err().unwrap_or_else(|| lost(Failure::Wrong, "its events end")),
                Err(error) => error,
            };
            if n_vain >= HUB_HAND_TRIES_MAX {
                return Err(lost(fault.failure, fault.why));
            }
            n_vain = if place.n_bytes == n_before { n_vain + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(HUB_HAND_PAUSE_MS)).await;
        }
    }

    /// How the job stands, and its answer.
    async fn look(&self, path: &str) -> Result<Value, DialError> {
        let (hub, call) = (&self.trip.hub, self.call(Method::GET, path));
        let wait = hub.waits().answer;
        match view(hub, self.backend, self.target, call, wait).await? {
            (200, view) if view.is_object() => Ok(view),
            (status, _) => Err(lost(Failure::Wrong, format!("it answers {status} for {path}"))),
        }
    }

    /// Hears the job's events behind a place, until they end, break off, or it waits for long.
    async fn hear(&self, path: &str, place: &mut Place) -> Result<(), DialError> {
        let path = format!("{path}/events");
        let mut call = self.call(Method::GET, &path);
        let last_id = place.last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
        call.headers.extend(last_id.map(|id| (LAST_EVENT, id)));
        let waits = self.trip.hub.waits();
        let events = self.trip.hub.dialer().send(self.target, call, waits.head).await?;
        if events.status() != StatusCode::OK {
            let why = format!("it answers {} for {path}", events.status());
            return Err(lost(Failure::Wrong, why));
        }
        let (mut body, mut splitter) = (events.into_body(), Splitter::new(Form::Events));
        loop {
            while let Some(frame) = splitter.next_frame() {
                if !self.take(&frame, place) {
                    return Ok(());
                }
            }
            if place.waits_long() || place.n_bytes > HUB_ANSWER_BYTES_MAX {
                return Ok(());
            }
            let piece = tokio::select! {
                piece = tokio::time::timeout(waits.idle, body.frame()) => piece,
                () = self.backend.gone() => return Err(gone()),
            };
            match piece {
                Err(_) => return Err(lost(Failure::Slow, "it fell silent")),
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(lost(Failure::Gone, describe(&error))),
                Ok(Some(Ok(frame))) => {
                    // The last one is as long as the answer, which is looked at instead.
                    if splitter.push(&frame.into_data().unwrap_or_default()).is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes an event in; whether others follow.
    fn take(&self, frame: &[u8], place: &mut Place) -> bool {
        let text = String::from_utf8_lossy(frame);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let data: Value = field("data: ")
            .map_or(Value::Null, |data| serde_json::from_str(data).unwrap_or_default());
        match field("event: ") {
            Some("state") if data["state"] == "queued" => {
                place.waits_since = place.waits_since.or(Some(Instant::now()));
            }
            Some("state") => place.waits_since = None,
            Some("text") => {
                let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
                let at = number(&data["prompt"]).zip(number(&data["index"]));
                let text = data["text"].as_str().unwrap_or_default();
                let tokens = data["tokens"].as_array().into_iter().flatten();
                let tokens: Vec<u32> =
                    tokens.filter_map(|token| u32::try_from(token.as_u64()?).ok()).collect();
                place.n_bytes += text.len() + tokens.len() * size_of::<u32>();
                if let Some((prompt_idx, answer_idx)) = at {
                    self.hand.hear(prompt_idx, answer_idx, text, &tokens);
                }
            }
            Some("restart") => self.hand.begin_anew(),
            Some("end" | "error") => return false,
            _ => return true,
        }
        if let Some(id) = field("id: ") {
            place.last_id = Some(id.to_owned());
        }
        true
    }
}

/// Asks for a small answer, as long as the backend answers its probes: its status, and what it says
/// in JSON.
pub(super) async fn view(
    hub: &Hub,
    backend: &Backend,
    target: &Target,
    call: Call<'_>,
    wait: Duration,
) -> Result<(u16, Value), DialError> {
    let (status, body) = tokio::select! {
        told = hub.dialer().whole(target, call, wait, HUB_ANSWER_BYTES_MAX) => told?,
        () = backend.gone() => return Err(gone()),
    };
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Whether a machine that did not say that it has a job may have it all the same: something broke
/// there or on the way, or it names the job that it cannot wait for.
fn may_be_there(answer: &Response) -> bool {
    let status = answer.status().as_u16();
    let is_named = answer.headers().contains_key(JOB);
    status >= 500 && (is_named || !(status == 501 || is_refusal(status)))
}

/// The path of a job that a machine says it has; its id is that of another program.
pub(super) fn path_of(view: &Value) -> Option<String> {
    let is_plain = |id: &&str| id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let id = view["id"].as_str().filter(|_| view["object"] == "job").filter(is_plain)?;
    Some(format!("/v1/jobs/{id}"))
}

pub(super) fn is_over(view: &Value) -> bool {
    matches!(view["state"].as_str(), Some("done" | "failed" | "cancelled" | "set_aside"))
}

/// The answer of a job that is over.
fn answer(view: &Value) -> Response {
    let status = view["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let why = || view["reason"].as_str().unwrap_or("it was taken back there").to_owned();
    match (status, view.get("answer"), view["state"].as_str()) {
        (Some(status), Some(answer), _) => (status, axum::Json(answer)).into_response(),
        (.., Some("cancelled")) => ApiError::conflict(why()).into_response(),
        _ => ApiError::internal(why()).into_response(),
    }
}

fn gone() -> DialError {
    lost(Failure::Gone, "it does not answer its probes")
}

fn lost(failure: Failure, why: impl Into<String>) -> DialError {
    DialError { was_sent: true, failure, why: why.into() }
}
