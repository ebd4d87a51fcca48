//! A request's way through the backends, until one has answered.
//!
//! ```text
//! rank -> try: connect, head, first frame or whole answer -> the client
//!   ^      |
//!   |      +- not well, no place, no such thing there -> a clear refusal
//!   +- who is left, as they stand now ------+
//! ```
//!
//! An answer that comes whole is read whole before the client hears of it, and a stream is held
//! until its first frame, for a while: whatever goes wrong before that goes wrong unseen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value, json};

use super::Hub;
use super::ask::Asked;
use super::backend::{Backend, Busy};
use super::dial::{Call, DialError, describe};
use super::hand::Handing;
use super::health::Failure;
use super::policy::{Kind, Speech, Standing, rank};
use super::retry::{self, Next, Outcome, Stakes};
use super::stream::{self, Incoming};
use crate::base::limits::HUB_ANSWER_BYTES_MAX;
use crate::server::frames::Form;
use crate::server::{ApiError, Here, JobHand, Untaken};

/// The header that names who wrote an answer.
pub(super) const HOST: HeaderName = HeaderName::from_static("x-jetforge-host");
/// When a caller may try again if nobody can answer.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// For how long a server is full that does not say.
const FULL_MS: u64 = 1000;
/// Headers of an answer that the client gets as well.
const PASSED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    header::CACHE_CONTROL,
    HeaderName::from_static("x-accel-buffering"),
    HeaderName::from_static("x-jetforge-context"),
    HeaderName::from_static("x-jetforge-cache"),
];

/// What a request's tries share.
pub(super) struct Trip {
    pub hub: Arc<Hub>,
    pub asked: Asked,
    pub here: Here,
    /// Whether a job asks, for whom an answer that failed must not look like a whole one.
    pub is_job: bool,
    /// The job that asks, where an appliance can have it in its own queue.
    hand: Option<JobHand>,
    /// Who may be tried, best first.
    left: VecDeque<Arc<Backend>>,
    tried: Vec<Arc<Backend>>,
    /// Whether somebody may have taken it.
    was_taken: bool,
    /// What went wrong so far, for the refusal.
    told: Vec<String>,
}

/// A backend's answer, as far as it was waited for.
pub(super) enum Opened {
    /// All of it.
    Whole(Response),
    /// A stream and the head that the client gets.
    Stream(Incoming, HeaderMap),
}

/// A try that gave no answer to be passed on.
pub(super) struct Missed {
    pub outcome: Outcome,
    pub why: String,
    /// What the backend said, where that can be passed on.
    pub response: Option<Response>,
}

/// Answers a request by the backends.
pub(super) async fn relay(hub: Arc<Hub>, asked: Asked, here: Here) -> Response {
    let mut trip = match Trip::plan(hub, asked, here) {
        Ok(trip) => trip,
        Err(error) => return error.into_response(),
    };
    let mut said = None;
    while let Some(first) = trip.next() {
        let (backend, opened) = trip.attempt(first).await;
        let missed = match opened {
            Ok(Opened::Whole(response)) => return named(response, &backend.name),
            Ok(Opened::Stream(incoming, headers)) => {
                let response = stream::respond(trip, incoming, headers);
                return named(response, &backend.name);
            }
            Err(missed) => missed,
        };
        trip.tell(&backend, &missed);
        let response = missed.response.map(|response| named(response, &backend.name));
        match retry::next(missed.outcome, trip.stakes(false)) {
            Next::Another | Next::Replay => said = response.or(said),
            Next::Answer | Next::Fail => return trip.refusal(response.or(said)),
        }
    }
    trip.refusal(said)
}

impl Trip {
    fn plan(hub: Arc<Hub>, asked: Asked, here: Here) -> Result<Trip, ApiError> {
        let (left, tried, told) = (VecDeque::new(), Vec::new(), Vec::new());
        let hand = asked.admitted.parts.extensions.get::<JobHand>().cloned();
        let is_job = hand.is_some();
        // One that streams is read as it is written.
        let hand = hand.filter(|_| !asked.streams);
        let mut trip = Trip { hub, asked, here, is_job, hand, left, tried, was_taken: false, told };
        trip.rank();
        match trip.left.is_empty() && !trip.is_held() {
            true => Err(nobody(&trip.hub, &trip.asked)),
            false => Ok(trip),
        }
    }

    /// Ranks who is left as they stand now. Those that are ejected are only asked if there never
    /// was anybody else.
    pub fn rank(&mut self) {
        self.hub.look_at_local();
        let now_ms = self.hub.now_ms();
        let mut backends = self.hub.backends();
        if let Some(holder) = self.hand.as_ref().and_then(JobHand::holder) {
            let own = backends.iter().find(|own| own.is_known_as(&holder.host));
            // Whoever has it writes it, or nobody does, unless it is no backend any more.
            if own.is_some() || !self.hub.has_met() {
                let is_tried = |own: &&Arc<Backend>| self.tried.iter().any(|t| Arc::ptr_eq(own, t));
                self.left = own.filter(|own| !is_tried(own)).into_iter().cloned().collect();
                return;
            }
        }
        backends.retain(|own| !self.tried.iter().any(|tried| Arc::ptr_eq(own, tried)));
        let views: Vec<_> = backends.iter().map(|backend| backend.view(now_ms)).collect();
        let is_out = |idx: usize| matches!(views[idx].standing, Standing::Ejected { .. });
        let order = rank(&self.asked.need, &views).into_iter();
        let order = order.filter(|&idx| self.tried.is_empty() || !is_out(idx));
        let n_left = self.hub.config().n_try.saturating_sub(self.tried.len());
        self.left = order.take(n_left).map(|idx| Arc::clone(&backends[idx])).collect();
    }

    /// Whether somebody has the job that asks.
    fn is_held(&self) -> bool {
        self.hand.as_ref().is_some_and(|hand| hand.holder().is_some())
    }

    /// The next backend to be tried.
    pub fn next(&mut self) -> Option<Arc<Backend>> {
        let next = self.left.pop_front()?;
        self.tried.push(Arc::clone(&next));
        Some(next)
    }

    /// What a try that fails now means.
    pub fn stakes(&self, can_replay: bool) -> Stakes {
        Stakes { is_kept: self.asked.is_kept, can_replay, n_left: self.left.len() }
    }

    /// What a backend said, or that none could answer; and whether anybody took the request.
    fn refusal(&self, said: Option<Response>) -> Response {
        let mut response = said.unwrap_or_else(|| {
            let message = format!("no backend could answer: {}", self.told.join("; "));
            let error = ApiError::unavailable(message, RETRY);
            ApiError { status: StatusCode::BAD_GATEWAY, kind: "upstream_error", ..error }
                .into_response()
        });
        if self.is_held() {
            response.extensions_mut().insert(Untaken::Held);
        } else if !self.was_taken {
            response.extensions_mut().insert(Untaken::ByAnybody);
        }
        response
    }

    fn tell(&mut self, backend: &Backend, missed: &Missed) {
        // No connection, and no place: nothing of it was done.
        self.was_taken |= match missed.outcome {
            Outcome::NotSent => false,
            Outcome::Status(status) => !retry::is_refusal(status),
            _ => true,
        };
        self.rank();
        tracing::info!(host = backend.name, why = missed.why, "a backend gave no answer");
        self.told.push(format!("{}: {}", backend.name, missed.why));
    }

    /// One try; two side by side if hedging is on and the first one takes long. Whoever answers
    /// first wins, and the other one is left.
    async fn attempt(&mut self, first: Arc<Backend>) -> (Arc<Backend>, Result<Opened, Missed>) {
        let hedge = Duration::from_millis(self.hub.config().hedge_ms);
        let is_once = self.asked.is_kept || self.hand.is_some();
        let second = self.left.front().filter(|_| !hedge.is_zero() && !is_once).cloned();
        let Some(second) = second else {
            let opened = self.open(&first).await;
            return (first, opened);
        };
        let (winner, lost) = {
            let mut one = std::pin::pin!(self.open(&first));
            if let Ok(opened) = tokio::time::timeout(hedge, &mut one).await {
                return (Arc::clone(&first), opened);
            }
            let mut two = std::pin::pin!(self.open(&second));
            tokio::select! {
                opened = &mut one => match opened {
                    Ok(_) => ((Arc::clone(&first), opened), None),
                    Err(missed) => ((Arc::clone(&second), two.await), Some((&first, missed))),
                },
                opened = &mut two => match opened {
                    Ok(_) => ((Arc::clone(&second), opened), None),
                    Err(missed) => ((Arc::clone(&first), one.await), Some((&second, missed))),
                },
            }
        };
        self.next();
        if let Some((backend, missed)) = lost {
            self.tell(backend, &missed);
        }
        winner
    }

    /// Asks one backend, and writes down how it went.
    pub async fn open(&self, backend: &Arc<Backend>) -> Result<Opened, Missed> {
        let busy = backend.begin();
        let (start, start_ms) = (Instant::now(), self.hub.now_ms());
        let opened = match self.ask(backend).await {
            Ok(response) => self.receive(backend, busy, response, start).await,
            Err(error) => Err(self.failed(backend, error)),
        };
        let now_ms = self.hub.now_ms();
        let has_words = match &opened {
            Ok(Opened::Whole(_)) => true,
            // A head alone is no answer yet; what becomes of it is seen where it is passed on.
            Ok(Opened::Stream(incoming, _)) => incoming.has_words(),
            Err(_) => false,
        };
        if opened.is_ok() {
            backend.n_answered.fetch_add(1, Ordering::Relaxed);
        }
        if has_words {
            let mut state = backend.state();
            // How long a job took says nothing of how long others wait.
            let wait_ms = match self.is_handed(backend) {
                true => state.health.first_word_ms(now_ms),
                false => now_ms - start_ms,
            };
            state.health.answered(now_ms, wait_ms);
        }
        opened
    }

    /// Whether what is asked is a job that a backend can have in its own queue.
    fn is_handed(&self, backend: &Backend) -> bool {
        self.hand.is_some() && backend.kind == Kind::Appliance
    }

    /// Sends the request and waits for the answer's head.
    async fn ask(&self, backend: &Arc<Backend>) -> Result<Response, DialError> {
        let Some(target) = &backend.target else {
            return Ok(self.here.answer(self.asked.admitted.clone()).await);
        };
        if let Some(hand) = self.hand.as_ref().filter(|_| self.is_handed(backend)) {
            return Handing { trip: self, hand, backend, target }.run().await;
        }
        let path = self.asked.path_for(backend);
        let call = Call {
            method: Method::POST,
            path: &path,
            headers: self.asked.headers(backend),
            body: self.asked.body_for(backend),
            key: backend.key.as_deref(),
            trust: backend.trust.as_ref(),
        };
        let waits = self.hub.waits_of(backend);
        let wait = if self.asked.streams { waits.head } else { waits.answer };
        tokio::select! {
            answer = self.hub.dialer().send(target, call, wait) => answer,
            () = backend.gone() => {
                let why = "it does not answer its probes".to_owned();
                Err(DialError { was_sent: true, failure: Failure::Gone, why })
            }
        }
    }

    /// Reads as much of an answer as has to be seen before the client hears of it.
    async fn receive(
        &self,
        backend: &Arc<Backend>,
        busy: Busy,
        response: Response,
        start: Instant,
    ) -> Result<Opened, Missed> {
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(backend, response).await);
        }
        let is_here = backend.target.is_none();
        let kind = media_type(response.headers());
        let Some(form) = Form::of(&kind) else {
            if is_here {
                return Ok(Opened::Whole(response));
            }
            let left = self.hub.waits_of(backend).answer.saturating_sub(start.elapsed());
            return self.whole(backend, response, &kind, left).await.map(Opened::Whole);
        };
        let headers = passed(response.headers());
        let mut incoming = Incoming::new(Arc::clone(backend), busy, response.into_body(), form);
        match incoming.hold(self.hub.waits_of(backend).idle).await {
            Ok(()) => Ok(Opened::Stream(incoming, headers)),
            Err((failure, why)) => {
                Err(self.failed(backend, DialError { was_sent: true, failure, why }))
            }
        }
    }

    /// An answer that comes whole, within what is `left` of its time.
    async fn whole(
        &self,
        backend: &Arc<Backend>,
        response: Response,
        kind: &str,
        left: Duration,
    ) -> Result<Response, Missed> {
        let lost = |failure, why| self.failed(backend, DialError { was_sent: true, failure, why });
        let (parts, body) = response.into_parts();
        let body = tokio::select! {
            body = collect(body, left) => body,
            () = backend.gone() => Err((Failure::Gone, "it went while it answered".to_owned())),
        };
        let body = body.map_err(|(failure, why)| lost(failure, why))?;
        if !kind.starts_with("application/json") {
            return Err(lost(Failure::Wrong, format!("an answer of the type {kind:?}")));
        }
        let value: Value = serde_json::from_slice(&body)
            .map_err(|error| lost(Failure::Wrong, format!("an answer that is no JSON: {error}")))?;
        let body = match (self.asked.need.speech, value) {
            (Speech::Openai | Speech::Llama, Value::Object(mut fields)) => {
                if backend.kind == Kind::External {
                    complete(&mut fields);
                }
                fields.insert("jetforge_host".to_owned(), backend.name.clone().into());
                Bytes::from(Value::Object(fields).to_string())
            }
            _ => body,
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = parts.status;
        *response.headers_mut() = passed(&parts.headers);
        Ok(response)
    }

    /// A backend's refusal.
    async fn refused(&self, backend: &Arc<Backend>, response: Response) -> Missed {
        let status = response.status();
        let why = format!("it answers {status}");
        let after = response.headers().get(header::RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.parse::<u64>().ok());
        let now_ms = self.hub.now_ms();
        let remote = backend.target.is_some();
        match status.as_u16() {
            401 if remote => self.note(backend, Failure::Denied, &why),
            // A moderator, a model that the key may not use, a dialect that is turned off there,
            // work that its disk has no room for: about this request, not about the backend, which
            // answers others. Probes find out about its key.
            403 | 501 | 507 => {}
            429 | 503 => {
                let for_ms = after.map_or(FULL_MS, |s| s.saturating_mul(1000));
                backend.state().health.refused(now_ms, for_ms);
            }
            500.. if remote => self.note(backend, Failure::Wrong, &why),
            _ => {}
        }
        let outcome = Outcome::Status(status.as_u16());
        if !remote {
            return Missed { outcome, why, response: Some(response) };
        }
        let (parts, body) = response.into_parts();
        // Our key is wrong there, which is no news to the client about its own.
        let is_ours = matches!(status.as_u16(), 401 | 403);
        let body = collect(body, self.hub.waits().probe).await.ok().filter(|_| !is_ours);
        let response = body.map(|body| {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = parts.status;
            *response.headers_mut() = passed(&parts.headers);
            response
        });
        let outcome = match &response {
            Some(_) => outcome,
            None => retry::wordless(status.as_u16()),
        };
        Missed { outcome, why, response }
    }

    fn failed(&self, backend: &Backend, error: DialError) -> Missed {
        self.note(backend, error.failure, &error.why);
        let outcome = if error.was_sent { Outcome::Lost } else { Outcome::NotSent };
        Missed { outcome, why: error.why, response: None }
    }

    /// Writes down that a backend failed.
    pub fn note(&self, backend: &Backend, failure: Failure, why: &str) {
        backend.n_failed.fetch_add(1, Ordering::Relaxed);
        if backend.target.is_some() {
            backend.state().health.failed(failure, why.to_owned(), self.hub.moment());
        }
    }
}

/// Why nobody is asked.
fn nobody(hub: &Hub, asked: &Asked) -> ApiError {
    let Some(model) = &asked.need.model else {
        return ApiError::not_supported("no backend of this hub speaks the words of this path");
    };
    let is_it = |own: &String| own.eq_ignore_ascii_case(model);
    if hub.model_names().iter().any(is_it) {
        let message = format!("no backend with the model {model:?} speaks the words of this path");
        return ApiError::not_supported(message);
    }
    let known = hub.model_names().join(", ");
    ApiError::not_found(format!("model {model:?} is not known here; there are: {known}"))
        .at("model")
}

/// Says of a server's answer what clients count on and it has left out.
fn complete(fields: &mut Map<String, Value>) {
    let Some(choices) = fields.get_mut("choices").and_then(Value::as_array_mut) else { return };
    for choice in choices.iter_mut().filter_map(Value::as_object_mut) {
        let finish = choice.entry("finish_reason").or_insert(Value::Null);
        if finish.is_null() {
            *finish = "unknown".into();
        }
    }
    let usage = fields.entry("usage").or_insert(Value::Null);
    if usage.is_null() {
        *usage = json!({});
    }
    let Some(usage) = usage.as_object_mut() else { return };
    let n = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let n_total = n("prompt_tokens").saturating_add(n("completion_tokens"));
    let total = usage.entry("total_tokens").or_insert(Value::Null);
    if total.is_null() {
        *total = n_total.into();
    }
}

/// Reads a body whole.
pub(super) async fn collect(body: Body, wait: Duration) -> Result<Bytes, (Failure, String)> {
    let body = Limited::new(body, HUB_ANSWER_BYTES_MAX).collect();
    match tokio::time::timeout(wait, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err((Failure::Gone, describe(error.as_ref()))),
        Err(_) => Err((Failure::Slow, "the answer does not end".to_owned())),
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.unwrap_or_default().trim().to_ascii_lowercase()
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let passed = PASSED.into_iter().filter_map(|name| {
        let value = headers.get(&name)?.clone();
        Some((name, value))
    });
    passed.collect()
}

/// The answer with its host's name.
fn named(mut response: Response, name: &str) -> Response {
    if let Ok(name) = HeaderValue::from_str(name) {
        response.headers_mut().insert(HOST, name);
    }
    response
}
