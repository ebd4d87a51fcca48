//! `POST /tokenize`, `/detokenize` and `/apply-template`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::fields::LlamaFields;
use crate::inference::{EncodeOptions, TokenId, Tokenizer};
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease_of};
use crate::server::{ApiError, Server, chat, prompts};

/// `POST /tokenize`: `{content, add_special, parse_special, with_pieces}` to `{tokens}`.
pub async fn tokenize(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease_of(&server, &fields).await?;
    blocking(move || {
        let llama = LlamaFields::new(&fields.0);
        let options = EncodeOptions {
            add_special: llama.bool("add_special", false)?,
            parse_special: llama.bool("parse_special", true)?,
        };
        let with_pieces = llama.bool("with_pieces", false)?;
        let tokenizer = lease.info().tokenizer();
        let tokens = match llama.get("content") {
            Some(content) => prompts::mixed(content, "content", tokenizer, options)?,
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
    let lease = lease_of(&server, &fields).await?;
    blocking(move || {
        let tokenizer = lease.info().tokenizer();
        let tokens = LlamaFields::new(&fields.0).array("tokens")?.unwrap_or_default();
        let token = |value: &Value| prompts::token(value, "tokens", tokenizer);
        let tokens = tokens.iter().map(token).collect::<Result<Vec<TokenId>, ApiError>>()?;
        Ok(Json(json!({ "content": prompts::text(&tokens, tokenizer) })))
    })
    .await
}

/// `POST /apply-template`: `{messages, tools, ..}` to `{prompt}`, as a chat would render it,
/// without running anything.
pub async fn apply_template(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease_of(&server, &fields).await?;
    blocking(move || {
        if LlamaFields::new(&fields.0).array("messages")?.is_none() {
            return Err(ApiError::field("messages", "'messages' is required"));
        }
        let prompt = chat::prompt_text(&fields, lease.info(), &server.0.options)?;
        Ok(Json(json!({ "prompt": prompt })))
    })
    .await
}
