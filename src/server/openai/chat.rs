//! `/v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::answer::{Choices, Chunks};
use super::{Head, MAX_NAMES, Tally, finish_reason, n_answers, refuse, with_wishes};
use crate::hosting::Lease;
use crate::inference::{EncodeOptions, Finish, ModelInfo, TokenEvent};
use crate::server::chat::{Delta, Parser, ParserSpec, Room, prepare};
use crate::server::constraint::blame;
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::{Generation, blocking, collect, lease_for, submit};
use crate::server::report::token_json;
use crate::server::request::{Wishes, n_probs, request};
use crate::server::sse;
use crate::server::state::{Caller, ServeOptions, Server};

/// Fields that would change the meaning of a chat.
const REFUSED: [(&str, &str); 5] = [
    ("functions", "describe the functions in tools"),
    ("function_call", "use tool_choice"),
    ("audio", "the models here write text"),
    ("web_search_options", "nothing is searched here"),
    ("post_sampling_probs", "logprobs are those of the model, before sampling"),
];

/// A chat on its way.
struct Started {
    generation: Generation,
    head: Head,
    wishes: Wishes,
    tally: Tally,
    parser: ParserSpec,
    info: Arc<ModelInfo>,
}

/// Answers a chat.
pub(super) async fn handle(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let lease = lease_for(&server, &fields, &caller).await?;
    let started = blocking(move || start(&fields, lease, &caller, &server.0.options)).await?;
    let Started { generation, head, wishes, tally, parser, info } = started;
    if wishes.streams {
        let chunks = Chunks::new(ChatChoices::new(&parser, info, tally.n), head, wishes, tally);
        return Ok(sse::respond(generation, chunks));
    }
    whole(generation, &head, tally, &parser, &info).await.map(IntoResponse::into_response)
}

fn start(
    fields: &Fields,
    lease: Lease,
    caller: &Caller,
    options: &ServeOptions,
) -> Result<Started, ApiError> {
    refuse(fields, &REFUSED)?;
    refuse_modalities(fields)?;
    let wishes = Wishes::read(fields)?;
    let info = Arc::clone(lease.info());
    let own = without_schema(fields);
    let mut request = request(&own, &MAX_NAMES, &lease, caller, options)?;
    request.n = n_answers(fields, lease.options().n_answer_max)?;
    (request.wants_logprobs, request.n_probs) = logprobs(fields)?;
    let room = Room { n_ctx: info.n_ctx(), n_predict: request.n_predict, trim: wishes.trim };
    let prepared = prepare(fields, &info, options, room)?;
    request.prompt = prepared.prompt;
    request.shown_tokens = prepared.shown_tokens;
    let has_grammar = prepared.grammar.is_some();
    request.grammar = prepared.grammar.or(request.grammar);
    if let Some(text) = prediction(fields)? {
        let tokens = info.tokenizer().encode(&text, EncodeOptions::default());
        request.speculation.prediction =
            tokens.map_err(|error| ApiError::field("prediction", error.to_string()))?;
    }
    let (tally, head) =
        (Tally::new(1, request.n, prepared.n_dropped), Head::new("chatcmpl", lease.name()));
    let generation = submit(lease, vec![request]).map_err(|error| {
        let is_ours = has_grammar && error.param.as_deref() == Some("grammar");
        if is_ours { error.at(prepared.grammar_param) } else { blame(&fields.0, error) }
    })?;
    let generation = with_wishes(generation, wishes, caller);
    Ok(Started { generation, head, wishes, tally, parser: prepared.parser, info })
}

/// The fields without `json_schema`, which a chat reads as its response format.
fn without_schema(fields: &Fields) -> Fields {
    let mut own = fields.clone();
    // Text that may be long and is not looked at.
    for name in ["json_schema", "messages", "tools"] {
        own.0.remove(name);
    }
    own
}

fn refuse_modalities(fields: &Fields) -> Result<(), ApiError> {
    match fields.strings("modalities")?.iter().find(|word| *word != "text") {
        Some(word) => {
            let message = format!("modalities names {word:?}; the models here write text");
            Err(ApiError::field("modalities", message))
        }
        None => Ok(()),
    }
}

/// Whether log-probabilities are wanted, and of how many likeliest tokens.
fn logprobs(fields: &Fields) -> Result<(bool, usize), ApiError> {
    let top = match n_probs(fields, "top_logprobs")? {
        None => n_probs(fields, "n_probs")?.filter(|&n| n > 0),
        top => top,
    };
    match (fields.bool("logprobs")?.unwrap_or(false), fields.has("top_logprobs")) {
        (false, true) => {
            Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"))
        }
        (is_on, _) => Ok((is_on || top.is_some(), top.unwrap_or(0))),
    }
}

/// `prediction`: text that the answer may repeat.
fn prediction(fields: &Fields) -> Result<Option<String>, ApiError> {
    let Some(prediction) = fields.object("prediction")? else { return Ok(None) };
    let wrong = || {
        let message = "prediction must be {\"type\": \"content\", \"content\": text}";
        ApiError::field("prediction", message)
    };
    if prediction.get("type").and_then(Value::as_str) != Some("content") {
        return Err(wrong());
    }
    match prediction.get("content") {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| part.get("text").and_then(Value::as_str));
            texts.collect::<Option<Vec<&str>>>().map(|texts| Some(texts.concat())).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// What one answer has said so far.
#[derive(Default)]
struct Said {
    content: String,
    reasoning: String,
    calls: Vec<Value>,
}

impl Said {
    fn take(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            match delta {
                Delta::Content(text) => self.content += &text,
                Delta::Reasoning(text) => self.reasoning += &text,
                Delta::Call { id, name, .. } => self.calls.push(json!({
                    "id": id, "type": "function", "function": {"name": name, "arguments": ""},
                })),
                Delta::Args { call_idx, text } => {
                    if let Some(call) = self.calls.get_mut(call_idx)
                        && let Value::String(arguments) = &mut call["function"]["arguments"]
                    {
                        arguments.push_str(&text);
                    }
                }
            }
        }
    }

    fn message(self) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        let is_silent = self.content.is_empty() && !self.calls.is_empty();
        let content = if is_silent { Value::Null } else { self.content.into() };
        message.insert("content".into(), content);
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".into(), self.reasoning.into());
        }
        if !self.calls.is_empty() {
            message.insert("tool_calls".into(), self.calls.into());
        }
        Value::Object(message)
    }
}

/// Every answer as one JSON object.
async fn whole(
    mut generation: Generation,
    head: &Head,
    mut tally: Tally,
    parser: &ParserSpec,
    info: &ModelInfo,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let answers = collect(&mut generation, tally.n).await?;
    let mut choices = Vec::with_capacity(answers.len());
    for (idx, answer) in answers.into_iter().enumerate() {
        tally.timings[idx] = answer.timings;
        let (mut parser, mut said) = (parser.parser(), Said::default());
        said.take(parser.push(&answer.text));
        said.take(parser.finish());
        let finish = answer.finish.unwrap_or(Finish::Canceled);
        let mut choice = json!({
            "index": idx,
            "message": said.message(),
            "logprobs": logprobs_json(info, &answer.tokens),
            "finish_reason": finish_reason(&finish, parser.n_calls() > 0),
        });
        if answer.was_shifted {
            choice["context_shifted"] = true.into();
        }
        choices.push(choice);
    }
    let mut map = head.object("chat.completion", choices);
    map.insert("usage".into(), tally.usage());
    tally.close(&mut map);
    Ok(Json(map))
}

/// `logprobs` of tokens, without those that end an answer; `null` where none were asked for.
fn logprobs_json(info: &ModelInfo, tokens: &[TokenEvent]) -> Value {
    let tokenizer = info.tokenizer();
    let shown = tokens.iter().filter(|event| !tokenizer.is_eog(event.token));
    let content: Vec<Value> = shown.filter_map(|event| token_json(tokenizer, event)).collect();
    match tokens.iter().any(|event| event.probs.is_some()) {
        true => json!({"content": content, "refusal": null}),
        false => Value::Null,
    }
}

/// A chat's choices as they grow.
struct ChatChoices {
    parsers: Vec<Parser>,
    /// Whether a choice has said that it is the assistant's.
    has_role: Vec<bool>,
    /// Tokens whose text is held back.
    waiting: Vec<VecDeque<TokenEvent>>,
    info: Arc<ModelInfo>,
}

impl ChatChoices {
    fn new(spec: &ParserSpec, info: Arc<ModelInfo>, n: usize) -> ChatChoices {
        ChatChoices {
            parsers: (0..n).map(|_| spec.parser()).collect(),
            has_role: vec![false; n],
            waiting: vec![VecDeque::new(); n],
            info,
        }
    }

    fn role(&mut self, choice_idx: usize, chunks: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.has_role[choice_idx], true) {
            chunks.push(choice(choice_idx, json!({"role": "assistant", "content": null})));
        }
    }

    /// Chunks of deltas; the last gets the probabilities of every token that waits.
    fn chunks(&mut self, choice_idx: usize, deltas: Vec<Delta>, chunks: &mut Vec<Value>) {
        let n_before = chunks.len();
        chunks.extend(deltas.into_iter().map(|delta| choice(choice_idx, delta_json(delta))));
        if chunks.len() > n_before
            && let Some(last) = chunks.last_mut()
        {
            let tokens: Vec<TokenEvent> = self.waiting[choice_idx].drain(..).collect();
            last["logprobs"] = logprobs_json(&self.info, &tokens);
        }
    }
}

impl Choices for ChatChoices {
    const OBJECT: &'static str = "chat.completion.chunk";

    fn grow(&mut self, choice_idx: usize, text: &str, tokens: &[TokenEvent]) -> Vec<Value> {
        let mut chunks = Vec::new();
        self.role(choice_idx, &mut chunks);
        let with_probs = tokens.iter().filter(|event| event.probs.is_some());
        self.waiting[choice_idx].extend(with_probs.cloned());
        let deltas = self.parsers[choice_idx].push(text);
        self.chunks(choice_idx, deltas, &mut chunks);
        chunks
    }

    fn end(&mut self, choice_idx: usize, finish: &Finish) -> Vec<Value> {
        let mut chunks = Vec::new();
        self.role(choice_idx, &mut chunks);
        let deltas = self.parsers[choice_idx].finish();
        self.chunks(choice_idx, deltas, &mut chunks);
        let mut last = choice(choice_idx, json!({}));
        let tokens: Vec<TokenEvent> = self.waiting[choice_idx].drain(..).collect();
        last["logprobs"] = logprobs_json(&self.info, &tokens);
        let has_calls = self.parsers[choice_idx].n_calls() > 0;
        last["finish_reason"] = finish_reason(finish, has_calls).into();
        chunks.push(last);
        chunks
    }

    fn nothing(&mut self, choice_idx: usize) -> Value {
        self.has_role[choice_idx] = true;
        choice(choice_idx, json!({"role": "assistant", "content": null}))
    }
}

fn choice(choice_idx: usize, delta: Value) -> Value {
    json!({"index": choice_idx, "delta": delta, "logprobs": null, "finish_reason": null})
}

fn delta_json(delta: Delta) -> Value {
    match delta {
        Delta::Content(text) => json!({"content": text}),
        Delta::Reasoning(text) => json!({"reasoning_content": text}),
        Delta::Call { call_idx, id, name } => json!({"tool_calls": [{
            "index": call_idx, "id": id, "type": "function",
            "function": {"name": name, "arguments": ""},
        }]}),
        Delta::Args { call_idx, text } => json!({"tool_calls": [{
            "index": call_idx, "function": {"arguments": text},
        }]}),
    }
}
