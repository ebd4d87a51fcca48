//! `POST /completion`: prompts to answers, whole or streamed.

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::answer::Wire;
use super::fields::LlamaFields;
use super::params::Params;
use super::stream::Stream;
use crate::hosting::Lease;
use crate::inference::{Event, Finish, Request, Timings, TokenId};
use crate::server::constraint::blame;
use crate::server::fields::Fields;
use crate::server::generate::{
    Answer, Generation, blocking, collect, fit_prompt, lease_for, submit,
};
use crate::server::{ApiError, Caller, Server, prompts, request, sse};

/// `POST /completion`, `POST /completions`.
pub async fn completion(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let lease = lease_for(&server, &fields, &caller).await?;
    let started = blocking(move || {
        let missing = "[json.exception.out_of_range.403] key 'prompt' not found";
        let value = fields.0.get("prompt").ok_or_else(|| ApiError::field("prompt", missing))?;
        let prompts = prompts::prompts(value, "prompt", lease.info().tokenizer())?;
        start(&server, &caller, lease, &fields, prompts, 0)
    });
    respond(started.await?).await
}

/// Requests that run.
pub struct Started {
    wire: Wire,
    generation: Generation,
    /// Answers in all.
    n: usize,
    /// Said before anything else.
    early: VecDeque<(usize, Event)>,
}

/// Hands the engine a request for each prompt.
///
/// # Errors
/// A field that is wrong, a prompt that is too long, a full queue.
pub fn start(
    server: &Server,
    caller: &Caller,
    lease: Lease,
    fields: &Fields,
    mut prompts: Vec<Vec<TokenId>>,
    mut n_dropped: usize,
) -> Result<Started, ApiError> {
    let serve = &server.0.options;
    let info = std::sync::Arc::clone(lease.info());
    let params = Params::parse(LlamaFields::new(&fields.0), lease.sampler(), &info, serve)?;
    let own = request::own(fields, caller, serve)?;
    if let Some(trim) = request::trim(fields)? {
        let n_predict = usize::try_from(params.n_predict).ok().or(serve.n_predict);
        for prompt in &mut prompts {
            n_dropped += fit_prompt(prompt, Some(trim), info.n_ctx(), n_predict)?;
        }
    }
    let is_detached = request::is_detached(fields)?;
    let mut requests: Vec<Request> = prompts
        .iter()
        .map(|prompt| params.request(prompt.clone(), &lease, serve, own.clone()))
        .collect();
    let n = prompts.len() * params.n_cmpl;
    let mut wire = Wire::new(params, serve, lease.name(), info, prompts);
    wire.n_dropped = n_dropped;
    let mut early = VecDeque::new();
    if let [request] = &requests[..]
        && request.prompt.is_empty()
    {
        // llama.cpp answers an empty prompt with nothing.
        requests.clear();
        early.push_back((0, nothing()));
    }
    let generation = submit(lease, requests);
    let mut generation = generation.map_err(|error| in_llama_words(blame(&fields.0, error)))?;
    if is_detached {
        generation.detach(caller);
    }
    Ok(Started { wire, generation, n, early })
}

/// The end of an answer that never began.
fn nothing() -> Event {
    Event::Done {
        answer_idx: 0,
        finish: Finish::Canceled,
        is_incomplete: false,
        was_shifted: false,
        timings: Timings::default(),
    }
}

/// The error for a prompt that is too long, as llama.cpp's clients look for it.
fn in_llama_words(mut error: ApiError) -> ApiError {
    if let (Some(n), Some(n_ctx)) = (error.extra.get("n_prompt_tokens"), error.extra.get("n_ctx")) {
        error.message = format!(
            "request ({n} tokens) exceeds the available context size ({n_ctx} tokens), try \
             increasing it"
        );
    }
    error
}

/// The answers, all at once or as they grow.
///
/// # Errors
/// What the engine says; in a stream only what it says before anything else.
pub async fn respond(started: Started) -> Result<Response, ApiError> {
    let Started { wire, mut generation, n, mut early } = started;
    if wire.params.stream {
        if early.is_empty() {
            early.extend(generation.next().await);
        }
        if let Some((_, Event::Failed(error))) = early.front() {
            return Err(ApiError::from(error.as_ref()));
        }
        return Ok(sse::respond(generation, Stream::new(wire, n, early)));
    }
    let answers = match early.is_empty() {
        true => collect(&mut generation, wire.n_answer()).await?,
        false => vec![Answer::default()],
    };
    let whole =
        |(index, answer): (usize, &Answer)| wire.whole(index, answer, answer.text.contains('\n'));
    let mut answers: Vec<Value> = answers.iter().enumerate().map(whole).collect();
    Ok(match answers.len() {
        1 => Json(answers.remove(0)).into_response(),
        _ => Json(answers).into_response(),
    })
}
