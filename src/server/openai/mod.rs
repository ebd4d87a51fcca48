//! OpenAI's dialect: models, completions, chats and embeddings, with llama.cpp's additions.
//!
//! Every handler is the same walk: fields, a lease of the model, preparation off the async threads,
//! then either one JSON answer or a stream of events in the dialect's words.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod models;

use axum::Router;
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::generate::Generation;
use super::report::{random_word, sum_timings, timings_json, unix_now_s, usage_json};
use super::request::Wishes;
use super::state::{Caller, Server};
use crate::inference::{Finish, Timings};

/// The dialect's routes; `/completions` and `/embeddings` alone are llama.cpp's own.
pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/models", get(models::list))
        // Names of models have slashes.
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/chat/completions", post(chat::handle))
        .route("/v1/embeddings", post(embeddings::handle))
}

/// The most tokens of an answer, by every name that it has.
const MAX_NAMES: [&str; 3] = ["n_predict", "max_completion_tokens", "max_tokens"];

/// What every chunk and answer of a request repeats.
#[derive(Clone, Debug)]
struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn new(prefix: &str, model: &str) -> Head {
        let id = format!("{prefix}-{}", random_word(32));
        Head { id, created: unix_now_s(), model: model.to_owned() }
    }

    /// An answer, or a chunk of one.
    fn object(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), self.id.as_str().into());
        map.insert("object".into(), object.into());
        map.insert("created".into(), self.created.into());
        map.insert("model".into(), self.model.as_str().into());
        map.insert("system_fingerprint".into(), fingerprint().into());
        map.insert("choices".into(), choices.into());
        map
    }
}

fn fingerprint() -> String {
    format!("jetforge-{}", env!("CARGO_PKG_VERSION"))
}

/// What a request came to, for the end of an answer or a stream.
#[derive(Clone, Debug)]
struct Tally {
    /// `[n_prompt * n]`
    timings: Vec<Timings>,
    n: usize,
    /// Tokens of the prompts that were cut off.
    n_dropped: usize,
}

impl Tally {
    fn new(n_prompts: usize, n: usize, n_dropped: usize) -> Tally {
        Tally { timings: vec![Timings::default(); n_prompts * n], n, n_dropped }
    }

    fn usage(&self) -> Value {
        usage_json(&sum_timings(&self.timings, self.n))
    }

    /// Adds `timings`, and what was dropped from the prompt if anything was.
    fn close(&self, map: &mut Map<String, Value>) {
        map.insert("timings".into(), timings_json(&sum_timings(&self.timings, self.n)));
        if self.n_dropped > 0 {
            map.insert("truncated".into(), json!({"n_dropped": self.n_dropped}));
        }
    }
}

/// OpenAI's word for the end of an answer.
pub(super) fn finish_reason(finish: &Finish, has_calls: bool) -> &'static str {
    match finish {
        Finish::Eog | Finish::Stop(_) | Finish::Indent if has_calls => "tool_calls",
        Finish::Eog | Finish::Stop(_) | Finish::Indent => "stop",
        Finish::Length | Finish::ContextFull | Finish::TimeUp | Finish::Canceled => "length",
    }
}

/// `n`, the answers to a prompt.
fn n_answers(fields: &Fields, max: usize) -> Result<usize, ApiError> {
    let name = if fields.has("n") { "n" } else { "n_cmpl" };
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    Ok(fields.int(name, 1..=max)?.unwrap_or(1) as usize)
}

/// Refuses fields that would change the meaning of a request and are not known here.
fn refuse(fields: &Fields, names: &[(&str, &str)]) -> Result<(), ApiError> {
    for (name, why) in names {
        let is_empty = |value: &Value| match value {
            Value::Array(items) => items.is_empty(),
            Value::Bool(is_on) => !is_on,
            _ => false,
        };
        if fields.get(name).is_some_and(|value| !is_empty(value)) {
            return Err(ApiError::field(name, format!("{name} is not supported: {why}")));
        }
    }
    Ok(())
}

/// Sets what a generation does when its reader leaves.
fn with_wishes(mut generation: Generation, wishes: Wishes, caller: &Caller) -> Generation {
    if wishes.is_detached {
        generation.detach(caller);
    }
    generation
}
