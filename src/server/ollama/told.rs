//! An answer in Ollama's words, whole or line by line: text, thoughts, calls, and what it took.

use std::time::{Duration, Instant};

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::wire::{nanos, now};
use crate::inference::{EngineError, Event, Finish, ModelInfo, Timings, TokenEvent, TokenId};
use crate::server::chat::{Delta, Parser};
use crate::server::error::ApiError;
use crate::server::generate::{Generation, collect};
use crate::server::report::token_json;
use crate::server::sse::{self, SseWriter, Translate};
use std::sync::Arc;

/// Where the text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `response`
    Generate,
    /// `message`
    Chat,
}

/// What is known of an answer before it comes.
pub(super) struct Teller {
    pub style: Style,
    pub model: String,
    /// Tells thoughts and calls from text; `None` where all is text.
    pub parser: Option<Parser>,
    pub info: Arc<ModelInfo>,
    pub started: Instant,
    /// Time until the model was there.
    pub load: Duration,
    /// The prompt and then the answer, where the caller wants to go on from there.
    pub context: Option<Vec<TokenId>>,
    /// Tokens that were cut off the conversation.
    pub n_dropped: usize,
}

/// A part of an answer.
#[derive(Default)]
struct Said {
    content: String,
    thinking: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
}

impl Said {
    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.thinking.is_empty() && self.calls.is_empty()
    }
}

/// Answers with everything at once, or line by line.
pub(super) async fn respond(
    mut generation: Generation,
    teller: Teller,
    streams: bool,
) -> Result<Response, ApiError> {
    let mut lines = Lines { teller, call: None, is_open: true };
    if streams {
        return Ok(sse::respond_lines(generation, lines));
    }
    let answer = collect(&mut generation, 1).await?.pop().unwrap_or_default();
    let mut said = lines.read(&answer.text, &answer.tokens);
    let rest = lines.finish();
    said.content += &rest.content;
    said.thinking += &rest.thinking;
    said.calls.extend(rest.calls);
    let finish = answer.finish.unwrap_or(Finish::Canceled);
    Ok(Json(lines.last(said, &finish, &answer.timings)).into_response())
}

/// The answer to a request that only loads or unloads a model.
pub(super) fn nothing(style: Style, model: &str, reason: &str) -> Json<Value> {
    let mut line = head(model);
    tell(&mut line, style, Said::default());
    line.insert("done".into(), true.into());
    line.insert("done_reason".into(), reason.into());
    Json(Value::Object(line))
}

fn head(model: &str) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("model".into(), model.into());
    line.insert("created_at".into(), now().into());
    line
}

fn tell(line: &mut Map<String, Value>, style: Style, said: Said) {
    let mut place = Map::new();
    let name = match style {
        Style::Generate => "response",
        Style::Chat => {
            place.insert("role".into(), "assistant".into());
            "content"
        }
    };
    place.insert(name.into(), said.content.into());
    if !said.thinking.is_empty() {
        place.insert("thinking".into(), said.thinking.into());
    }
    if !said.calls.is_empty() {
        place.insert("tool_calls".into(), said.calls.into());
    }
    match style {
        Style::Generate => line.extend(place),
        Style::Chat => drop(line.insert("message".into(), place.into())),
    }
    if !said.logprobs.is_empty() {
        line.insert("logprobs".into(), said.logprobs.into());
    }
}

/// The lines of an answer.
struct Lines {
    teller: Teller,
    /// The call that is being written: its name and arguments.
    call: Option<(String, String)>,
    is_open: bool,
}

impl Lines {
    fn read(&mut self, text: &str, tokens: &[TokenEvent]) -> Said {
        if let Some(context) = &mut self.teller.context {
            context.extend(tokens.iter().map(|event| event.token));
        }
        let mut said = match &mut self.teller.parser {
            None => Said { content: text.to_owned(), ..Said::default() },
            Some(parser) => {
                let deltas = parser.push(text);
                self.sort(deltas)
            }
        };
        let tokenizer = self.teller.info.tokenizer();
        let shown = tokens.iter().filter(|event| !tokenizer.is_eog(event.token));
        said.logprobs = shown.filter_map(|event| token_json(tokenizer, event)).collect();
        said
    }

    fn finish(&mut self) -> Said {
        let deltas = self.teller.parser.as_mut().map(Parser::finish).unwrap_or_default();
        let mut said = self.sort(deltas);
        self.close(&mut said);
        said
    }

    /// Calls are told when they are whole.
    fn sort(&mut self, deltas: Vec<Delta>) -> Said {
        let mut said = Said::default();
        for delta in deltas {
            match delta {
                Delta::Args { text, .. } => {
                    if let Some((_, arguments)) = &mut self.call {
                        arguments.push_str(&text);
                    }
                }
                Delta::Call { name, .. } => {
                    self.close(&mut said);
                    self.call = Some((name, String::new()));
                }
                Delta::Content(text) => said.content += &text,
                Delta::Reasoning(text) => said.thinking += &text,
            }
        }
        said
    }

    fn close(&mut self, said: &mut Said) {
        let Some((name, arguments)) = self.call.take() else { return };
        // Arguments that were cut off are no object; the reason of the end says so.
        let arguments = serde_json::from_str(&arguments).ok().filter(Value::is_object);
        let arguments = arguments.unwrap_or_else(|| json!({}));
        said.calls.push(json!({"function": {"name": name, "arguments": arguments}}));
    }

    fn line(&self, said: Said) -> Value {
        let mut line = head(&self.teller.model);
        tell(&mut line, self.teller.style, said);
        line.insert("done".into(), false.into());
        Value::Object(line)
    }

    fn last(&mut self, said: Said, finish: &Finish, timings: &Timings) -> Value {
        let teller = &mut self.teller;
        let mut line = head(&teller.model);
        tell(&mut line, teller.style, said);
        let ms = |ms: f64| (ms.max(0.0) * 1e6) as u64;
        let reason = match finish {
            Finish::Eog | Finish::Stop(_) | Finish::Indent => "stop",
            Finish::Length | Finish::ContextFull | Finish::TimeUp | Finish::Canceled => "length",
        };
        line.insert("done".into(), true.into());
        line.insert("done_reason".into(), reason.into());
        if let Some(context) = teller.context.take() {
            line.insert("context".into(), json!(context));
        }
        line.insert("total_duration".into(), nanos(teller.started.elapsed()).into());
        line.insert("load_duration".into(), nanos(teller.load).into());
        line.insert("prompt_eval_count".into(), timings.n_prompt.into());
        line.insert("prompt_eval_duration".into(), ms(timings.prefill_ms).into());
        line.insert("eval_count".into(), timings.n_generated.into());
        line.insert("eval_duration".into(), ms(timings.decode_ms).into());
        if teller.n_dropped > 0 {
            line.insert("truncated".into(), json!({"n_dropped": teller.n_dropped}));
        }
        Value::Object(line)
    }

    fn fail(&self, error: &ApiError, out: &mut SseWriter) {
        out.line(&super::error_json(error));
    }
}

impl Translate for Lines {
    fn event(&mut self, _: usize, event: Event, out: &mut SseWriter) {
        match event {
            Event::Progress { .. } => {}
            Event::Text { text, tokens, .. } => {
                let said = self.read(&text, &tokens);
                if !said.is_empty() || !said.logprobs.is_empty() {
                    out.line(&self.line(said));
                }
            }
            Event::Done { finish, timings, .. } => {
                let rest = self.finish();
                if !rest.is_empty() {
                    out.line(&self.line(rest));
                }
                let last = self.last(Said::default(), &finish, &timings);
                out.line(&last);
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
