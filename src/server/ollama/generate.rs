//! `/api/generate`: a text to a prompt, as one turn of a conversation, raw, or before a suffix.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::told::{Style, Teller, nothing, respond};
use super::wire::{lease, moved, schema, translated};
use crate::base::limits::TOP_PROBS_MAX;
use crate::hosting::Lease;
use crate::inference::{EncodeOptions, TokenId, Tokenizer};
use crate::server::chat::{ParserSpec, Room, prepare};
use crate::server::constraint::blame;
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::{Generation, blocking, fit_prompt, submit};
use crate::server::prompts::token;
use crate::server::request::{Wishes, request};
use crate::server::state::{Caller, ServeOptions, Server};

/// A text on its way.
struct Started {
    generation: Generation,
    parser: Option<ParserSpec>,
    info: Arc<crate::inference::ModelInfo>,
    model: String,
    wishes: Wishes,
    context: Option<Vec<TokenId>>,
    n_dropped: usize,
}

/// Answers a prompt.
pub(super) async fn handle(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let started_at = Instant::now();
    let own = translated(&fields)?;
    let is_bare = |name| fields.str(name).map(|text| text.is_none_or(str::is_empty));
    if is_bare("prompt")? && is_bare("suffix")? {
        let (name, reason) = moved(&server, &fields).await?;
        return Ok(nothing(Style::Generate, &name, reason).into_response());
    }
    let lease = lease(&server, &fields).await?;
    let load = started_at.elapsed();
    let work = move || start(&fields, own, lease, &caller, &server.0.options);
    let started = blocking(work).await?;
    let teller = Teller {
        style: Style::Generate,
        model: started.model,
        parser: started.parser.map(|spec| spec.parser()),
        info: started.info,
        started: started_at,
        load,
        context: started.context,
        n_dropped: started.n_dropped,
    };
    respond(started.generation, teller, started.wishes.streams).await
}

fn start(
    fields: &Fields,
    mut own: Fields,
    lease: Lease,
    caller: &Caller,
    options: &ServeOptions,
) -> Result<Started, ApiError> {
    let wishes = Wishes::read(&own)?;
    let info = Arc::clone(lease.info());
    let schema = schema(fields)?;
    let is_raw = fields.bool("raw")?.unwrap_or(false);
    let text = |name: &str| Ok::<String, ApiError>(fields.str(name)?.unwrap_or_default().into());
    let (prompt, suffix, template) = (text("prompt")?, text("suffix")?, text("template")?);
    let is_text = is_raw || !suffix.is_empty() || !template.is_empty();
    if let Some(schema) = schema.as_ref().filter(|_| is_text) {
        own.0.insert("json_schema".into(), schema.clone());
    }
    let variables = own.0.remove("chat_template_kwargs");
    let mut request = request(&own, &["max_tokens"], &lease, caller, options)?;
    let top = own.count("top_logprobs", TOP_PROBS_MAX)?;
    request.wants_logprobs = top.is_some() || own.bool("logprobs")?.unwrap_or(false);
    request.n_probs = top.unwrap_or(0);
    let tokenizer = info.tokenizer();
    let mut parser = None;
    let tokens = if !is_text {
        let mut chat = json!({ "messages": messages(&text("system")?, &prompt) });
        if let Some(schema) = schema {
            let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
            chat["response_format"] = format;
        }
        if let Some(variables) = variables {
            chat["chat_template_kwargs"] = variables;
        }
        let Value::Object(chat) = chat else { return Err(ApiError::internal("no object")) };
        let room = Room { n_ctx: usize::MAX, n_predict: None, trim: None };
        let prepared = prepare(&Fields(chat), &info, options, room)?;
        request.shown_tokens = prepared.shown_tokens;
        request.grammar = prepared.grammar.or(request.grammar);
        parser = Some(prepared.parser);
        prepared.prompt
    } else if !suffix.is_empty() {
        let filled = tokenizer.fim_prompt(&prompt, &suffix);
        filled.map_err(|error| ApiError::field("suffix", error.to_string()))?
    } else {
        let whole = match template.is_empty() || is_raw {
            true => prompt,
            false => filled(&template, &text("system")?, &prompt)?,
        };
        let encode = EncodeOptions { add_special: true, parse_special: true };
        let encoded = tokenizer.encode(&whole, encode);
        encoded.map_err(|error| ApiError::field("prompt", error.to_string()))?
    };
    let mut tokens = behind_context(fields, tokens, tokenizer)?;
    let n_dropped = fit_prompt(&mut tokens, wishes.trim, info.n_ctx(), request.n_predict)?;
    let context = (!is_text).then(|| tokens.clone());
    request.prompt = tokens;
    let model = lease.name().to_owned();
    let submitted = submit(lease, vec![request]);
    let mut generation = submitted.map_err(|error| {
        let is_ours = fields.has("format") && error.param.as_deref() == Some("grammar");
        if is_ours { error.at("format") } else { blame(&fields.0, error) }
    })?;
    if wishes.is_detached {
        generation.detach(caller);
    }
    Ok(Started { generation, parser, info, model, wishes, context, n_dropped })
}

fn messages(system: &str, prompt: &str) -> Vec<Value> {
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.push(json!({"role": "user", "content": prompt}));
    messages
}

/// A prompt behind the tokens that an earlier answer gave back, to go on from there.
fn behind_context(
    fields: &Fields,
    prompt: Vec<TokenId>,
    tokenizer: &Tokenizer,
) -> Result<Vec<TokenId>, ApiError> {
    let given = fields.array("context")?.map(Vec::as_slice).unwrap_or_default();
    let is_whole = |item: &&Value| item.is_i64() || item.is_u64();
    if !given.iter().all(|item| is_whole(&item)) {
        return Err(ApiError::field("context", "context must be an array of tokens"));
    }
    let before = given.iter().map(|item| token(item, "context", tokenizer));
    let mut tokens = before.collect::<Result<Vec<TokenId>, ApiError>>()?;
    // A text has one start, and the context brought it.
    let bos = tokenizer.special().bos.filter(|_| !tokens.is_empty());
    let has_start = bos.is_some() && prompt.first().copied() == bos;
    tokens.extend_from_slice(&prompt[usize::from(has_start)..]);
    Ok(tokens)
}

/// A template of Ollama's with its variables filled in; those with more in them are refused.
fn filled(template: &str, system: &str, prompt: &str) -> Result<String, ApiError> {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let (name, behind) = after.split_once("}}").unwrap_or((after, ""));
        match name.trim_matches(|c: char| c == '-' || c.is_whitespace()) {
            ".System" => text.push_str(system),
            ".Prompt" => text.push_str(prompt),
            // What comes behind stands after the answer.
            ".Response" => return Ok(text),
            ".Suffix" => {}
            other => {
                let message = format!(
                    "template has {{{{ {other} }}}}; here only .System, .Prompt, .Suffix and \
                     .Response are filled in"
                );
                return Err(ApiError::field("template", message));
            }
        }
        rest = behind;
    }
    Ok(text + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_in_or_refused() {
        let fill = |template| filled(template, "S", "P").map_err(|error| error.param);
        assert_eq!(fill("<{{ .System }}>{{.Prompt}}!{{ .Response }}<end>"), Ok("<S>P!".into()));
        assert_eq!(fill("plain"), Ok("plain".into()));
        assert_eq!(fill("{{ if .System }}x{{ end }}"), Err(Some("template".into())));
        assert_eq!(fill("{{ .Prompt"), Ok("P".into()));
    }
}
