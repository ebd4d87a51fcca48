//! `/v1/completions`: text behind a prompt, without a chat's template.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::answer::{Choices, Chunks};
use super::{Head, MAX_NAMES, Tally, finish_reason, n_answers, refuse, with_wishes};
use crate::hosting::Lease;
use crate::inference::{Finish, ModelInfo, TokenEvent, TokenId};
use crate::server::constraint::blame;
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::{Generation, blocking, collect, fit_prompt, lease_for, submit};
use crate::server::prompts::prompts;
use crate::server::report::{finite, token_json};
use crate::server::request::{Wishes, n_probs, request};
use crate::server::sse;
use crate::server::state::{Caller, ServeOptions, Server};
use crate::server::tabby;

/// Fields that would change the meaning of a completion.
const REFUSED: [(&str, &str); 2] = [
    ("messages", "use /v1/chat/completions"),
    ("post_sampling_probs", "logprobs are those of the model, before sampling"),
];

/// A completion on its way.
struct Started {
    generation: Generation,
    head: Head,
    wishes: Wishes,
    tally: Tally,
    /// `[n_prompt]`: what is told before each answer.
    echoes: Vec<String>,
    info: Arc<ModelInfo>,
}

/// Answers a completion.
pub(super) async fn handle(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    if tabby::is_own(&fields) {
        return tabby::complete(server, caller, fields).await.map(IntoResponse::into_response);
    }
    let lease = lease_for(&server, &fields, &caller).await?;
    let started = blocking(move || start(&fields, lease, &caller, &server.0.options)).await?;
    let Started { generation, head, wishes, tally, echoes, info } = started;
    if wishes.streams {
        let chunks = Chunks::new(TextChoices::new(echoes, tally.n, info), head, wishes, tally);
        return Ok(sse::respond(generation, chunks));
    }
    whole(generation, &head, tally, echoes, info).await.map(IntoResponse::into_response)
}

fn start(
    fields: &Fields,
    lease: Lease,
    caller: &Caller,
    options: &ServeOptions,
) -> Result<Started, ApiError> {
    refuse(fields, &REFUSED)?;
    let wishes = Wishes::read(fields)?;
    let info = Arc::clone(lease.info());
    let mut request = request(fields, &MAX_NAMES, &lease, caller, options)?;
    request.n = n_answers(fields, lease.options().n_answer_max)?;
    best_of(fields, request.n)?;
    let logprobs = match n_probs(fields, "logprobs")? {
        None => n_probs(fields, "n_probs")?.filter(|&n| n > 0),
        asked => asked,
    };
    (request.wants_logprobs, request.n_probs) = (logprobs.is_some(), logprobs.unwrap_or(0));
    let echo = fields.bool("echo")?.unwrap_or(false);
    if echo && request.wants_logprobs {
        let message = "echo cannot be combined with logprobs: a prompt has none here";
        return Err(ApiError::field("echo", message));
    }
    let Some(prompt) = fields.get("prompt") else {
        return Err(ApiError::field("prompt", "prompt is missing"));
    };
    let mut prompts = match fields.str("suffix")?.filter(|suffix| !suffix.is_empty()) {
        Some(suffix) => vec![fim_prompt(prompt, suffix, &info)?],
        None => prompts(prompt, "prompt", info.tokenizer())?,
    };
    let echoes =
        if echo { texts(prompt, &prompts, &info) } else { vec![String::new(); prompts.len()] };
    let mut n_dropped = 0;
    for prompt in &mut prompts {
        n_dropped += fit_prompt(prompt, wishes.trim, info.n_ctx(), request.n_predict)?;
    }
    let tally = Tally::new(prompts.len(), request.n, n_dropped);
    let head = Head::new("cmpl", lease.name());
    let requests = prompts.into_iter().map(|prompt| {
        let mut request = request.clone();
        request.prompt = prompt;
        request
    });
    let generation = submit(lease, requests.collect()).map_err(|error| blame(&fields.0, error))?;
    let generation = with_wishes(generation, wishes, caller);
    Ok(Started { generation, head, wishes, tally, echoes, info })
}

/// As many are drawn as are told: there is no choosing among more.
fn best_of(fields: &Fields, n: usize) -> Result<(), ApiError> {
    match fields.count("best_of", usize::MAX)? {
        Some(best_of) if best_of != n => {
            let message = format!("best_of is {best_of}; it must be n, which is {n}");
            Err(ApiError::field("best_of", message))
        }
        _ => Ok(()),
    }
}

/// A prompt whose answer stands before `suffix`.
fn fim_prompt(prompt: &Value, suffix: &str, info: &ModelInfo) -> Result<Vec<TokenId>, ApiError> {
    let Some(prefix) = prompt.as_str() else {
        return Err(ApiError::field("suffix", "suffix goes with a prompt that is one string"));
    };
    let tokens = info.tokenizer().fim_prompt(prefix, suffix);
    tokens.map_err(|error| ApiError::field("suffix", error.to_string()))
}

/// The prompts as they are told before their answers.
fn texts(prompt: &Value, prompts: &[Vec<TokenId>], info: &ModelInfo) -> Vec<String> {
    let is_several = |items: &[Value]| !items.iter().any(Value::is_number);
    let given = |idx: usize| match prompt {
        Value::Array(items) if is_several(items) => items.get(idx).and_then(Value::as_str),
        value => value.as_str(),
    };
    let text = |(idx, tokens): (usize, &Vec<TokenId>)| match given(idx) {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(&info.tokenizer().decode(tokens, false)).into_owned(),
    };
    prompts.iter().enumerate().map(text).collect()
}

/// Every answer as one JSON object.
async fn whole(
    mut generation: Generation,
    head: &Head,
    mut tally: Tally,
    echoes: Vec<String>,
    info: Arc<ModelInfo>,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let answers = collect(&mut generation, tally.n).await?;
    let mut forms = TextChoices::new(echoes, tally.n, info);
    let mut choices = Vec::with_capacity(answers.len());
    for (idx, answer) in answers.into_iter().enumerate() {
        tally.timings[idx] = answer.timings;
        let text = forms.begin(idx) + &answer.text;
        let logprobs = forms.logprobs(idx, &answer.tokens);
        let finish = answer.finish.unwrap_or(Finish::Canceled);
        let mut choice = choice(idx, &text, logprobs);
        choice["finish_reason"] = finish_reason(&finish, false).into();
        if answer.was_shifted {
            choice["context_shifted"] = true.into();
        }
        choices.push(choice);
    }
    let mut map = head.object("text_completion", choices);
    map.insert("usage".into(), tally.usage());
    tally.close(&mut map);
    Ok(Json(map))
}

/// A completion's choices as they grow.
struct TextChoices {
    /// `[n_choice]`: what is told first, once.
    echoes: Vec<Option<String>>,
    /// `[n_choice]`: characters of the tokens whose probabilities were told.
    offsets: Vec<usize>,
    info: Arc<ModelInfo>,
}

impl TextChoices {
    /// `echoes`: `[n_prompt]`.
    fn new(echoes: Vec<String>, n: usize, info: Arc<ModelInfo>) -> TextChoices {
        let echoes: Vec<Option<String>> =
            echoes.into_iter().flat_map(|echo| std::iter::repeat_n(Some(echo), n)).collect();
        TextChoices { offsets: vec![0; echoes.len()], echoes, info }
    }

    fn begin(&mut self, choice_idx: usize) -> String {
        self.echoes[choice_idx].take().unwrap_or_default()
    }

    /// OpenAI's lists, and the same as llama.cpp writes it; `null` where none were asked for.
    fn logprobs(&mut self, choice_idx: usize, tokens: &[TokenEvent]) -> Value {
        let tokenizer = self.info.tokenizer();
        let text = |token: TokenId| {
            String::from_utf8_lossy(tokenizer.token_bytes(token, true)).into_owned()
        };
        let mut lists: [Vec<Value>; 5] = Default::default();
        for event in tokens.iter().filter(|event| !tokenizer.is_eog(event.token)) {
            let Some(probs) = &event.probs else { continue };
            let token = text(event.token);
            let top = probs.top.iter().map(|&(id, logprob)| (text(id), finite(logprob).into()));
            let top: Map<String, Value> = top.collect();
            lists[1].push(json!(finite(probs.logprob)));
            lists[2].push(Value::Object(top));
            lists[3].push(self.offsets[choice_idx].into());
            lists[4].extend(token_json(tokenizer, event));
            self.offsets[choice_idx] += token.chars().count();
            lists[0].push(token.into());
        }
        if !tokens.iter().any(|event| event.probs.is_some()) {
            return Value::Null;
        }
        let [tokens, token_logprobs, top_logprobs, text_offset, content] = lists;
        json!({
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": text_offset,
            "content": content,
        })
    }
}

impl Choices for TextChoices {
    const OBJECT: &'static str = "text_completion";

    fn grow(&mut self, choice_idx: usize, text: &str, tokens: &[TokenEvent]) -> Vec<Value> {
        let text = self.begin(choice_idx) + text;
        let logprobs = self.logprobs(choice_idx, tokens);
        // Text that is held back comes with a later token.
        if text.is_empty() && logprobs.is_null() {
            return Vec::new();
        }
        vec![choice(choice_idx, &text, logprobs)]
    }

    fn end(&mut self, choice_idx: usize, finish: &Finish) -> Vec<Value> {
        let echo = self.begin(choice_idx);
        let mut last = choice(choice_idx, &echo, Value::Null);
        last["finish_reason"] = finish_reason(finish, false).into();
        vec![last]
    }

    fn nothing(&mut self, choice_idx: usize) -> Value {
        choice(choice_idx, "", Value::Null)
    }
}

fn choice(choice_idx: usize, text: &str, logprobs: Value) -> Value {
    json!({"text": text, "index": choice_idx, "logprobs": logprobs, "finish_reason": null})
}
