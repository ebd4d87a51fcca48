//! From parsed requests to events: what every dialect does between its two ends.
//!
//! ```text
//! lease(model) -> prepare off the async threads -> submit -> Generation -> sse, or collect
//! ```
//!
//! A generation owns the lease, so the model stays loaded as long as anybody listens. Dropping it
//! ends its requests; a detached one goes on without its reader.

use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::jobs::tap::{self, Tap};
use super::quota::Held;
use super::state::{Caller, Server};
use crate::hosting::{HostError, Lease, parse_keep_alive};
use crate::inference::{
    Event, EventStream, Finish, InferenceError, Priority, Request, Timings, TokenEvent, TokenId,
};

/// The model that a request names. With one model alone any name will do, as for llama.cpp.
///
/// # Errors
/// A name that is not known among several, a model that cannot be loaded.
pub(super) async fn lease(server: &Server, name: Option<&str>) -> Result<Lease, ApiError> {
    let host = &server.0.host;
    match host.lease(name).await {
        Err(HostError::Unknown { .. }) if host.models().len() == 1 => Ok(host.lease(None).await?),
        result => Ok(result?),
    }
}

/// The model of a body, which stays afterwards as long as its `keep_alive` says.
///
/// # Errors
/// As [`lease`], and a `keep_alive` that is no time.
pub(super) async fn lease_of(server: &Server, fields: &Fields) -> Result<Lease, ApiError> {
    let keep = keep_alive(fields)?;
    let lease = lease(server, fields.str("model")?).await?;
    if let Some(keep) = keep {
        lease.keep_alive(keep);
    }
    Ok(lease)
}

/// The same for an answer: where a body names no model, the class of its request may choose one, as
/// the power profile says. One that cannot be had is no reason to refuse: the first model answers.
///
/// # Errors
/// As [`lease_of`].
pub(super) async fn lease_for(
    server: &Server,
    fields: &Fields,
    caller: &Caller,
) -> Result<Lease, ApiError> {
    if fields.str("model")?.is_some_and(|name| !name.is_empty()) {
        return lease_of(server, fields).await;
    }
    let is_background = caller.priority == Priority::Background
        || fields.str("priority").is_ok_and(|class| class == Some("background"));
    let chosen = server.0.power.get().and_then(|watch| watch.model_for(!is_background));
    let Some(name) = chosen else { return lease_of(server, fields).await };
    let keep = keep_alive(fields)?;
    match server.0.host.lease(Some(&name)).await {
        Ok(lease) => {
            keep.into_iter().for_each(|keep| lease.keep_alive(keep));
            Ok(lease)
        }
        Err(error) => {
            tracing::warn!(model = name, %error, "the power profile's model cannot be had");
            lease_of(server, fields).await
        }
    }
}

/// Seconds, or a text such as `5m`.
fn keep_alive(fields: &Fields) -> Result<Option<Duration>, ApiError> {
    let text = match fields.get("keep_alive") {
        None => return Ok(None),
        Some(Value::Number(seconds)) => seconds.to_string(),
        Some(Value::String(text)) => text.clone(),
        Some(_) => {
            let message = "keep_alive must be seconds or a text such as \"5m\"";
            return Err(ApiError::field("keep_alive", message));
        }
    };
    let keep = parse_keep_alive(&text);
    keep.map(Some).map_err(|error| ApiError::field("keep_alive", format!("keep_alive: {error}")))
}

/// Runs work that takes the processor for a while (templates, tokens, grammars) elsewhere than on
/// the threads that serve connections.
///
/// # Errors
/// What the work says, or that it panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let tap = tap::current();
    match tokio::task::spawn_blocking(move || tap::heard_by_sync(tap, work)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::internal("the request could not be prepared")),
    }
}

/// Requests on their way, one for each prompt, as one stream of events.
pub(super) struct Generation {
    /// Held while the requests run; `None` once a detached generation was handed on.
    lease: Option<Lease>,
    streams: Vec<Option<EventStream>>,
    /// Which stream is asked first, so that none is starved.
    next_idx: usize,
    /// What its caller holds, where it goes on without a reader.
    detached: Option<Held>,
    /// The job that hears the events, and how many requests it submitted before these.
    tap: Option<(Tap, usize)>,
}

/// Hands requests to the engine. If one is refused, those before it end.
///
/// # Errors
/// What the engine refuses.
pub(super) fn submit(lease: Lease, mut requests: Vec<Request>) -> Result<Generation, ApiError> {
    let tap = tap::current().map(|tap| {
        let n_before = tap.prepare(&mut requests);
        (tap, n_before)
    });
    let streams: Result<Vec<Option<EventStream>>, ApiError> =
        requests.into_iter().map(|request| Ok(Some(lease.submit(request)?))).collect();
    let streams = streams?;
    Ok(Generation { lease: Some(lease), streams, next_idx: 0, detached: None, tap })
}

impl Generation {
    /// Lets the requests go on when their reader leaves, in their caller's place.
    pub fn detach(&mut self, caller: &Caller) {
        self.detached = Some(caller.held.clone());
    }

    /// The next event and the prompt that it belongs to; `None` when all is over.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let n = self.streams.len();
        for i in 0..n {
            let prompt_idx = (self.next_idx + i) % n;
            let Some(stream) = &mut self.streams[prompt_idx] else { continue };
            match stream.poll_next(cx) {
                Poll::Pending => {}
                Poll::Ready(None) => self.streams[prompt_idx] = None,
                Poll::Ready(Some(event)) => {
                    self.next_idx = (prompt_idx + 1) % n;
                    if let Some((tap, n_before)) = &self.tap {
                        tap.heard(n_before + prompt_idx, &event);
                    }
                    return Poll::Ready(Some((prompt_idx, event)));
                }
            }
        }
        match self.streams.iter().any(Option::is_some) {
            true => Poll::Pending,
            false => Poll::Ready(None),
        }
    }

    /// The next event, awaited.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let lease = self.lease.take();
        let streams = std::mem::take(&mut self.streams);
        let Some(held) = self.detached.take() else { return };
        if !streams.iter().any(Option::is_some) {
            return;
        }
        // Outside a runtime nobody could hold the lease: then the requests end like others.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let mut rest = Generation { lease, streams, next_idx: 0, detached: None, tap: None };
            runtime.spawn(async move {
                while rest.next().await.is_some() {}
                drop(held);
            });
        }
    }
}

/// An answer as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, the model's own end included.
    pub tokens: Vec<TokenEvent>,
    /// Why it ended; `None` if the engine stopped first.
    pub finish: Option<Finish>,
    /// A grammar ruled it and the text is not complete.
    pub is_incomplete: bool,
    /// The context was shifted.
    pub was_shifted: bool,
    /// What it took.
    pub timings: Timings,
}

/// Waits for every answer: `n` to each prompt, `answers[prompt_idx * n + answer_idx]`.
///
/// # Errors
/// What the engine says when a request fails.
pub(super) async fn collect(
    generation: &mut Generation,
    n: usize,
) -> Result<Vec<Answer>, ApiError> {
    let mut answers = vec![Answer::default(); generation.streams.len() * n];
    while let Some((prompt_idx, event)) = generation.next().await {
        match event {
            Event::Progress { .. } => {}
            Event::Text { answer_idx, text, tokens, timings } => {
                let answer = &mut answers[prompt_idx * n + answer_idx];
                answer.text.push_str(&text);
                answer.tokens.extend(tokens);
                answer.timings = timings;
            }
            Event::Done { answer_idx, finish, is_incomplete, was_shifted, timings } => {
                let answer = &mut answers[prompt_idx * n + answer_idx];
                answer.finish = Some(finish);
                answer.is_incomplete = is_incomplete;
                answer.was_shifted = was_shifted;
                answer.timings = timings;
            }
            Event::Failed(error) => return Err(ApiError::from(error.as_ref())),
        }
    }
    match answers.iter().all(|answer| answer.finish.is_some()) {
        true => Ok(answers),
        false => Err(ApiError::from(crate::inference::EngineError::Stopping)),
    }
}

/// How a prompt that is too long is cut, where a request asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trim {
    /// Out of the middle: the start holds instructions, the end what is asked.
    Middle,
    /// From the start.
    Start,
}

/// Tokens that a prompt may have so that an answer of `n_predict` fits behind it: at least half of
/// the context, and a quarter is left for an answer of unknown length.
pub(super) fn n_prompt_max(n_ctx: usize, n_predict: Option<usize>) -> usize {
    n_ctx.saturating_sub(n_predict.unwrap_or(n_ctx / 4).clamp(1, (n_ctx / 2).max(1)))
}

/// Cuts a prompt to what fits; how many tokens were dropped. The first token stays: where a model
/// wants a BOS, it is that.
///
/// # Errors
/// Both counts, where nothing allows to cut.
pub(super) fn fit_prompt(
    prompt: &mut Vec<TokenId>,
    trim: Option<Trim>,
    n_ctx: usize,
    n_predict: Option<usize>,
) -> Result<usize, ApiError> {
    if prompt.len() < n_ctx {
        return Ok(0);
    }
    let n_prompt = prompt.len();
    let n_max = n_prompt_max(n_ctx, n_predict);
    let Some(trim) = trim.filter(|_| n_max > 1) else {
        return Err(ApiError::from(&InferenceError::PromptTooLong { n_prompt, n_ctx }));
    };
    let n_dropped = n_prompt - n_max;
    let n_head = if trim == Trim::Middle { n_max / 2 } else { 1 };
    prompt.drain(n_head..n_head + n_dropped);
    Ok(n_dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_only_where_asked_and_keeps_its_first_token() {
        let prompt: Vec<TokenId> = (0..100).collect();
        let cut = |trim, n_predict| {
            let mut prompt = prompt.clone();
            fit_prompt(&mut prompt, trim, 64, n_predict).map(|n| (n, prompt))
        };
        let error = cut(None, None).unwrap_err();
        assert_eq!(error.extra["n_prompt_tokens"], 100);
        let (n, start) = cut(Some(Trim::Start), Some(16)).unwrap();
        assert_eq!((n, start.len(), start[0], start[1]), (52, 48, 0, 53));
        let (_, middle) = cut(Some(Trim::Middle), None).unwrap();
        assert_eq!((middle.len(), middle[23], middle[47]), (48, 23, 99));
        let (_, long) = cut(Some(Trim::Start), Some(1000)).unwrap();
        assert_eq!(long.len(), 32, "an endless answer leaves half for the prompt");
        let mut short: Vec<TokenId> = (0..63).collect();
        assert_eq!(fit_prompt(&mut short, None, 64, None), Ok(0));
    }
}
