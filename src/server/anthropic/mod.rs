//! Anthropic's dialect: messages, whole or as a stream of events, and their count of tokens.
//!
//! `wire` reads a request into the fields of a chat, `blocks` turns what the model says into
//! content blocks, this file has the two handlers and the stream.

mod blocks;
mod wire;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use self::blocks::{Blocks, Change};
use super::chat::{Room, prepare};
use super::error::ApiError;
use super::fields::Fields;
use super::generate::{blocking, collect, lease_for, lease_of};
use super::report::random_word;
use super::sse::{self, SseWriter, Translate};
use super::state::{Caller, Server};
use super::talk::{self, Talk};
use crate::inference::{EngineError, Event, Finish, Timings};

/// The dialect's routes.
pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
}

/// `POST /v1/messages`.
async fn messages(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let chat = wire::chat(&fields)?;
    if !fields.has("max_tokens") {
        return Err(ApiError::field("max_tokens", "max_tokens: Field required"));
    }
    let lease = lease_for(&server, &fields, &caller).await?;
    let started = blocking(move || {
        talk::start(&chat, lease, &caller, &server.0.options).map_err(wire::own_words)
    });
    let Talk { mut generation, parser, model, wishes, n_dropped, .. } = started.await?;
    let id = format!("msg_{}", random_word(24));
    let message = Message { id, model, n_dropped };
    let mut blocks = Blocks::new(parser.parser());
    if wishes.streams {
        let stream = Stream { message, blocks, n_started: 0, is_open: true, has_begun: false };
        return Ok(sse::respond(generation, stream));
    }
    let answer = collect(&mut generation, 1).await?.pop().unwrap_or_default();
    let mut changes = blocks.push(&answer.text);
    changes.extend(blocks.finish());
    let finish = answer.finish.unwrap_or(Finish::Canceled);
    let (reason, sequence) = stop_reason(&finish, blocks.has_calls());
    let mut whole = message.json(blocks::whole(changes), &answer.timings);
    whole["stop_reason"] = reason.into();
    whole["stop_sequence"] = sequence;
    Ok(Json(whole).into_response())
}

/// `POST /v1/messages/count_tokens`: tokens of the prompt that a message would make.
async fn count_tokens(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let chat = wire::chat(&fields)?;
    let lease = lease_of(&server, &fields).await?;
    let n = blocking(move || {
        let room = Room { n_ctx: usize::MAX, n_predict: None, trim: None };
        let info = Arc::clone(lease.info());
        let prepared = prepare(&chat, &info, &server.0.options, room).map_err(wire::own_words)?;
        Ok(prepared.prompt.len())
    });
    Ok(Json(json!({ "input_tokens": n.await? })))
}

/// An error as Anthropic's clients expect it.
pub(super) fn error_json(error: &ApiError, request_id: &str) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500 => "api_error",
        _ => "invalid_request_error",
    };
    json!({
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": request_id,
    })
}

/// What every form of an answer repeats.
struct Message {
    id: String,
    model: String,
    /// Tokens that were cut off the conversation.
    n_dropped: usize,
}

impl Message {
    fn json(&self, content: Vec<Value>, timings: &Timings) -> Value {
        let mut message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(timings),
        });
        if self.n_dropped > 0 {
            message["truncated"] = json!({"n_dropped": self.n_dropped});
        }
        message
    }
}

/// Tokens read anew, read from the cache, and written.
fn usage(timings: &Timings) -> Value {
    json!({
        "input_tokens": timings.n_prompt.saturating_sub(timings.n_cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": timings.n_cached,
        "output_tokens": timings.n_generated,
    })
}

/// Anthropic's word for the end of an answer, and the stop sequence that came.
fn stop_reason(finish: &Finish, has_calls: bool) -> (&'static str, Value) {
    match finish {
        Finish::Stop(text) => ("stop_sequence", text.as_str().into()),
        Finish::Eog | Finish::Indent if has_calls => ("tool_use", Value::Null),
        Finish::Eog | Finish::Indent => ("end_turn", Value::Null),
        Finish::ContextFull => ("model_context_window_exceeded", Value::Null),
        Finish::Length | Finish::TimeUp | Finish::Canceled => ("max_tokens", Value::Null),
    }
}

/// An answer as events, in the order that the SDK's accumulator expects:
///
/// ```text
/// message_start (content_block_start ping? content_block_delta* content_block_stop)* message_delta
/// message_stop
/// ```
struct Stream {
    message: Message,
    blocks: Blocks,
    /// Blocks that were begun.
    n_started: usize,
    /// The end was not told yet.
    is_open: bool,
    has_begun: bool,
}

impl Stream {
    /// Says that the message begins, once.
    fn begin(&mut self, timings: &Timings, out: &mut SseWriter) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let at_start = Timings { n_generated: 0, ..*timings };
        let message = self.message.json(Vec::new(), &at_start);
        out.event("message_start", &json!({"type": "message_start", "message": message}));
    }

    fn say(&mut self, changes: Vec<Change>, out: &mut SseWriter) {
        for change in changes {
            match change {
                Change::Start(block) => {
                    let index = self.n_started;
                    self.n_started += 1;
                    let start = "content_block_start";
                    out.event(
                        start,
                        &json!({"type": start, "index": index, "content_block": block}),
                    );
                    if index == 0 {
                        out.event("ping", &json!({"type": "ping"}));
                    }
                }
                Change::Delta(delta) => {
                    let index = self.n_started.saturating_sub(1);
                    let name = "content_block_delta";
                    out.event(name, &json!({"type": name, "index": index, "delta": delta}));
                }
                Change::Stop => {
                    let index = self.n_started.saturating_sub(1);
                    let stop = "content_block_stop";
                    out.event(stop, &json!({"type": stop, "index": index}));
                }
            }
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut SseWriter) {
        let mut said = error_json(error, "");
        if let Value::Object(fields) = &mut said {
            fields.remove("request_id");
        }
        out.event("error", &said);
    }
}

impl Translate for Stream {
    fn event(&mut self, _: usize, event: Event, out: &mut SseWriter) {
        match event {
            Event::Progress { n_prompt, n_cached, .. } => {
                self.begin(&Timings { n_prompt, n_cached, ..Timings::default() }, out);
            }
            Event::Text { text, timings, .. } => {
                self.begin(&timings, out);
                let changes = self.blocks.push(&text);
                self.say(changes, out);
            }
            Event::Done { finish, timings, .. } => {
                self.begin(&timings, out);
                let changes = self.blocks.finish();
                self.say(changes, out);
                let (reason, sequence) = stop_reason(&finish, self.blocks.has_calls());
                let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
                let end = "message_delta";
                out.event(end, &json!({"type": end, "delta": delta, "usage": usage(&timings)}));
                out.event("message_stop", &json!({"type": "message_stop"}));
                self.is_open = false;
            }
            Event::Failed(error) => self.fail(&ApiError::from(error.as_ref()), out),
        }
    }

    fn end(&mut self, out: &mut SseWriter) {
        if self.is_open {
            self.fail(&ApiError::from(EngineError::Stopping), out);
        }
    }
}
