//! `POST /tokenize`, `/detokenize` and `/apply-template`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::fields::LlamaFields;
use super::prompt;
use crate::inference::{ChatTemplate, EncodeOptions, Message, RenderOptions, TokenId, Tokenizer};
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease};
use crate::server::{ApiError, Server};

/// `POST /tokenize`: `{content, add_special, parse_special, with_pieces}` to `{tokens}`.
pub async fn tokenize(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, fields.str("model")?).await?;
    blocking(move || {
        let llama = LlamaFields::new(&fields.0);
        let options = EncodeOptions {
            add_special: llama.bool("add_special", false)?,
            parse_special: llama.bool("parse_special", true)?,
        };
        let with_pieces = llama.bool("with_pieces", false)?;
        let tokenizer = lease.info().tokenizer();
        let tokens = match llama.get("content") {
            Some(content) => prompt::mixed(content, "content", tokenizer, options)?,
            None => Vec::new(),
        };
        let tokens: Vec<Value> = match with_pieces {
            true => tokens.iter().map(|&token| piece(token, tokenizer)).collect(),
            false => tokens.into_iter().map(Value::from).collect(),
        };
        Ok(Json(json!({ "tokens": tokens })))
    })
    .await
}

/// A token with its text, or its bytes where they are no text.
fn piece(token: TokenId, tokenizer: &Tokenizer) -> Value {
    let bytes = tokenizer.token_bytes(token, true);
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({"id": token, "piece": text}),
        Err(_) => json!({"id": token, "piece": bytes}),
    }
}

/// `POST /detokenize`: `{tokens}` to `{content}`.
pub async fn detokenize(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, fields.str("model")?).await?;
    blocking(move || {
        let tokenizer = lease.info().tokenizer();
        let tokens = LlamaFields::new(&fields.0).array("tokens")?.unwrap_or_default();
        let token = |value: &Value| prompt::token(value, "tokens", tokenizer);
        let tokens = tokens.iter().map(token).collect::<Result<Vec<TokenId>, ApiError>>()?;
        Ok(Json(json!({ "content": prompt::text(&tokens, tokenizer) })))
    })
    .await
}

/// `POST /apply-template`: `{messages, tools, ..}` to `{prompt}`, without running anything.
pub async fn apply_template(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, fields.str("model")?).await?;
    blocking(move || {
        let Some(messages) = LlamaFields::new(&fields.0).array("messages")? else {
            return Err(ApiError::field("messages", "'messages' is required"));
        };
        let messages = messages.iter().map(message).collect::<Result<Vec<Message>, ApiError>>()?;
        let options = render_options(LlamaFields::new(&fields.0))?;
        let special = lease.info().tokenizer().special();
        let text = |token: Option<TokenId>| {
            token.map(|token| prompt::text(&[token], lease.info().tokenizer())).unwrap_or_default()
        };
        let own = match &server.0.options.chat_template {
            Some(source) => {
                let template =
                    ChatTemplate::from_source(source, &text(special.bos), &text(special.eos));
                Some(template.map_err(|error| ApiError::invalid(error.to_string()))?)
            }
            None => None,
        };
        let template = own.as_ref().or(lease.info().chat_template());
        let template =
            template.ok_or_else(|| ApiError::not_supported("the model has no chat template"))?;
        let prompt = template.render(&messages, &options);
        let prompt = prompt.map_err(|error| ApiError::field("messages", error.to_string()))?;
        Ok(Json(json!({ "prompt": prompt })))
    })
    .await
}

/// `{role, content}`; the content is a text, or parts of which every one is a text.
fn message(value: &Value) -> Result<Message, ApiError> {
    let wrong = |message: &str| ApiError::field("messages", message);
    let role = value.get("role").and_then(Value::as_str);
    let role = role.ok_or_else(|| wrong("Missing 'role' in message"))?.to_owned();
    let content = match value.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
            let texts: Option<Vec<String>> = parts.iter().map(text).collect();
            texts.ok_or_else(|| wrong("a content part has no 'text'"))?.concat()
        }
        Some(_) => return Err(wrong("Expected 'content' to be a string or an array")),
    };
    Ok(Message { role, content })
}

fn render_options(fields: LlamaFields<'_>) -> Result<RenderOptions, ApiError> {
    let tools = fields.array("tools")?.map(|tools| Value::Array(tools.to_vec()));
    let extra = match fields.get("chat_template_kwargs") {
        Some(Value::Object(extra)) => extra.clone(),
        Some(_) => return Err(ApiError::field("chat_template_kwargs", "it must be an object")),
        None => serde_json::Map::new(),
    };
    Ok(RenderOptions {
        add_generation_prompt: fields.bool("add_generation_prompt", true)?,
        tools,
        extra,
        ..RenderOptions::default()
    })
}
