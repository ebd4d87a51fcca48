//! A task's answer: the prompt that it makes, and what the model wrote to it.
//!
//! ```text
//! completion    chunks, an empty line, the prompt: continued as it stands
//! all others    chunks and what is asked as one message of a conversation
//! ```
//!
//! The confidence is `exp(mean log-probability of the answer's tokens)`, those of the model before
//! sampling, without the token that ends it: 1 where the model was sure of each, 0 for no answer.

use std::sync::Arc;

use serde_json::{Value, json};

use super::context::{Choice, Counts, choose};
use super::message::{Kind, Task};
use crate::base::limits::CONTEXT_TOKENS_MAX;
use crate::hosting::Lease;
use crate::inference::{EncodeOptions, ModelInfo, Request, TokenEvent, TokenId, Tokenizer};
use crate::server::ApiError;
use crate::server::chat::{Delta, ParserSpec, Room, prepare};
use crate::server::constraint::blame;
use crate::server::fields::Fields;
use crate::server::generate::{blocking, collect, fit_prompt, lease_for, n_prompt_max, submit};
use crate::server::request;
use crate::server::state::{Caller, ServeOptions, Server};

/// What came of a task.
#[derive(Debug)]
pub(super) struct Answer {
    pub code: String,
    pub n_tokens: usize,
    pub inference_ms: u64,
    pub confidence: f64,
    pub model: String,
    pub temperature: Value,
    pub context: Choice,
}

impl Answer {
    /// The answer to the task `id`, in the form in which it was asked for.
    pub fn to_json(&self, id: &str, is_flat: bool) -> Value {
        let metadata = match is_flat {
            true => json!({
                "model": self.model,
                "token_count": self.n_tokens,
                "temperature": self.temperature,
            }),
            false => json!({
                "inference_time_ms": self.inference_ms,
                "token_count": self.n_tokens,
                "confidence_score": self.confidence,
            }),
        };
        json!({
            "request_id": id,
            "status": "success",
            "generated_code": self.code,
            "metadata": metadata,
        })
    }
}

/// A task, ready for the engine.
struct Ready {
    lease: Lease,
    request: Request,
    /// How the answer is read; `None` for a text that is only continued.
    parser: Option<ParserSpec>,
    context: Choice,
}

/// Has a task answered.
///
/// # Errors
/// A wrong field, a model that is not there, what the engine refuses.
pub(super) async fn write(
    server: &Server,
    caller: &Caller,
    task: &Task,
) -> Result<Answer, ApiError> {
    let lease = lease_for(server, &task.parameters, caller).await?;
    let (shared, caller, asked) = (server.clone(), caller.clone(), task.clone());
    let ready = blocking(move || ready(lease, &caller, &asked, &shared.0.options)).await?;
    let Ready { lease, request, parser, context } = ready;
    let (info, model) = (Arc::clone(lease.info()), lease.name().to_owned());
    let submitted = submit(lease, vec![request]);
    let mut generation = submitted.map_err(|error| blame(&task.parameters.0, error))?;
    let mut answers = collect(&mut generation, 1).await?;
    let answer = answers.pop().unwrap_or_default();
    let text = match &parser {
        Some(spec) => spoken(spec, &answer.text),
        None => answer.text,
    };
    let code = match task.kind {
        Kind::Completion | Kind::Explanation => text,
        _ => code_of(&text),
    };
    let timings = answer.timings;
    Ok(Answer {
        code,
        n_tokens: timings.n_generated,
        inference_ms: (timings.prefill_ms + timings.decode_ms).round() as u64,
        confidence: confidence(&answer.tokens, info.tokenizer()),
        model,
        temperature: task.parameters.0.get("temperature").cloned().unwrap_or_default(),
        context,
    })
}

fn ready(
    lease: Lease,
    caller: &Caller,
    task: &Task,
    options: &ServeOptions,
) -> Result<Ready, ApiError> {
    let mut request = request::request(&task.parameters, &["max_tokens"], &lease, caller, options)?;
    request.wants_logprobs = true;
    // A task outlives its reader, so it must end by itself.
    request.context_shift = false;
    let info = Arc::clone(lease.info());
    let encode = |text: &str| {
        let tokens = info.tokenizer().encode(text, EncodeOptions::default());
        tokens.map_err(|error| ApiError::field("context_chunks", error.to_string()))
    };
    let n_tokens: Result<Vec<usize>, ApiError> =
        task.chunks.iter().map(|chunk| Ok(encode(&chunk.content)?.len())).collect();
    let counts = Counts { n_tokens: n_tokens?, n_join: encode("\n")?.len() };
    let n_predict = request.n_predict;
    let n_room = n_prompt_max(info.n_ctx(), n_predict);
    let asked = task.parameters.count("context_max_tokens", usize::MAX)?;
    let n_bare = prompt(task, &Choice::default(), &info, options, n_predict)?.0.len();
    // The empty line between the context and what is asked.
    let n_room_left = n_room.saturating_sub(n_bare + counts.n_join);
    let n_max = asked.unwrap_or(CONTEXT_TOKENS_MAX).min(n_room_left);
    let mut context = choose(&task.chunks, &counts, n_max);
    // Tokens may end elsewhere in the whole than in its parts. Each try gives up twice as much, so
    // that there are few.
    let (mut prompted, mut n_more) = (prompt(task, &context, &info, options, n_predict)?, 1);
    while prompted.0.len() > n_room
        && context.give_up(&task.chunks, &counts, n_more.max(prompted.0.len() - n_room))
    {
        prompted = prompt(task, &context, &info, options, n_predict)?;
        n_more *= 2;
    }
    let (tokens, parser) = prompted;
    request.prompt = tokens;
    fit_prompt(&mut request.prompt, None, info.n_ctx(), n_predict)?;
    Ok(Ready { lease, request, parser, context })
}

/// The prompt with these chunks, and how its answer is read.
fn prompt(
    task: &Task,
    context: &Choice,
    info: &ModelInfo,
    options: &ServeOptions,
    n_predict: Option<usize>,
) -> Result<(Vec<TokenId>, Option<ParserSpec>), ApiError> {
    let chunks = context.chosen.iter().map(|idx| task.chunks[*idx].content.as_str());
    let chunks = chunks.collect::<Vec<&str>>().join("\n");
    let asked = asked(task);
    let text = if chunks.is_empty() { asked } else { format!("{chunks}\n\n{asked}") };
    if task.kind == Kind::Completion {
        let encode = EncodeOptions { add_special: true, parse_special: false };
        let tokens = info.tokenizer().encode(&text, encode);
        return Ok((tokens.map_err(|error| ApiError::field("prompt", error.to_string()))?, None));
    }
    let mut chat = json!({"messages": [{"role": "user", "content": text}]});
    for name in ["chat_template_kwargs", "reasoning_effort"] {
        if let Some(value) = task.parameters.get(name) {
            chat[name] = value.clone();
        }
    }
    let Value::Object(chat) = chat else { return Err(ApiError::internal("no object")) };
    // A conversation too long for the context is told by `fit_prompt`, with the task's own field.
    let room = Room { n_ctx: usize::MAX, n_predict, trim: None };
    let prepared = prepare(&Fields(chat), info, options, room)?;
    Ok((prepared.prompt, Some(prepared.parser)))
}

/// What is asked, in the words that models are asked in.
fn asked(task: &Task) -> String {
    let prompt = task.prompt.trim_end();
    let code = task.code.as_deref().map(|code| fenced(code, &task.language));
    match (task.kind, code) {
        (Kind::Completion, None) => task.prompt.clone(),
        (Kind::Completion, Some(_)) => task.code.clone().unwrap_or_default() + &task.prompt,
        (Kind::Generation, None) => prompt.to_owned(),
        (Kind::Generation, Some(code)) => format!("{prompt}\n{code}"),
        (Kind::Refactoring, None) => format!("Refactor this program.\nTask: {prompt}"),
        (Kind::Refactoring, Some(code)) => {
            format!("Refactor this program.\nTask: {prompt}\n{code}")
        }
        (Kind::Explanation, None) => format!("Explain this program.\n{prompt}"),
        (Kind::Explanation, Some(code)) => format!("Explain this program.\n{prompt}\n{code}"),
        (Kind::Test, None) => format!("Write tests with assert for this task.\nTask: {prompt}"),
        (Kind::Test, Some(code)) => {
            format!("Write tests with assert for this task.\nTask: {prompt}\n{code}")
        }
    }
}

/// Code between fences that are longer than any in it.
fn fenced(code: &str, language: &str) -> String {
    let mut fence = "```".to_owned();
    while code.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}{language}\n{}\n{fence}", code.trim_end())
}

/// The text of an answer without its reasoning.
fn spoken(spec: &ParserSpec, text: &str) -> String {
    let mut parser = spec.parser();
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    let content = deltas.into_iter().filter_map(|delta| match delta {
        Delta::Content(text) => Some(text),
        _ => None,
    });
    content.collect()
}

/// What stands between fences, or the whole text where there are none. A last fence may be open:
/// the answer ended before it.
fn code_of(text: &str) -> String {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside: Option<(usize, String)> = None;
    for line in text.split_inclusive('\n') {
        let bare = line.trim();
        let n_tick = bare.len() - bare.trim_start_matches('`').len();
        match &mut inside {
            None if n_tick >= 3 => inside = Some((n_tick, String::new())),
            None => {}
            // As CommonMark has it: as many ticks as opened it, and nothing behind them.
            Some((n_open, block)) if n_tick >= *n_open && bare.len() == n_tick => {
                blocks.push(std::mem::take(block));
                inside = None;
            }
            Some((_, block)) => block.push_str(line),
        }
    }
    blocks.extend(inside.map(|(_, block)| block));
    match blocks.is_empty() {
        true => text.trim().to_owned(),
        false => blocks.iter().map(|b| b.trim_end()).collect::<Vec<&str>>().join("\n\n"),
    }
}

fn confidence(tokens: &[TokenEvent], tokenizer: &Tokenizer) -> f64 {
    let shown = tokens.iter().filter(|event| !tokenizer.is_eog(event.token));
    let logprobs: Vec<f64> =
        shown.filter_map(|event| Some(f64::from(event.probs.as_ref()?.logprob))).collect();
    if logprobs.is_empty() {
        return 0.0;
    }
    let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
    // JSON has no infinity, and a probability is none beyond 1.
    mean.max(-9999.0).exp().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_stands_between_fences() {
        assert_eq!(code_of("Here:\n```python\na = 1\n\nb = 2\n```\nDone."), "a = 1\n\nb = 2");
        assert_eq!(code_of("```\na\n```\nand\n```js\nb\n```"), "a\n\nb");
        assert_eq!(code_of("````md\n```py\nx\n```\nend\n````\n"), "```py\nx\n```\nend");
        assert_eq!(code_of("```python\ncut off"), "cut off");
        assert_eq!(code_of("  a = 1\n"), "a = 1");
        assert_eq!(code_of(""), "");
        assert_eq!(fenced("a ``` b\n", "py"), "````py\na ``` b\n````");
    }
}
