//! Raw prompts, in every shape in which they come.
//!
//! ```text
//! "text"                       one prompt
//! [1, 2, 3]                    one prompt of tokens
//! [1, "text", 2]               one prompt, mixed
//! {"prompt_string": "text"}    one prompt
//! ["text", [1, 2], {...}]      several prompts
//! ```

use serde_json::Value;

use super::ApiError;
use crate::base::limits::PROMPTS_MAX;
use crate::inference::{EncodeOptions, TokenId, Tokenizer};

const ELEMENTS: &str = "\"prompt\" elements must be a string, a list of tokens, a JSON object \
                        containing a prompt string, or a list of mixed strings & tokens.";

/// The prompts in the field `param`: one, or several.
///
/// # Errors
/// Another shape, no prompt at all, tokens that the vocabulary does not have.
pub(super) fn prompts(
    value: &Value,
    param: &str,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let options = EncodeOptions { add_special: true, parse_special: true };
    let has_number = |items: &[Value]| items.iter().any(is_integer);
    match value {
        Value::Array(items) if items.is_empty() => {
            Err(ApiError::field(param, format!("\"{param}\" must not be empty")))
        }
        Value::Array(items) if items.len() > PROMPTS_MAX && !has_number(items) => {
            let message = format!("\"{param}\" has more than {PROMPTS_MAX} prompts");
            Err(ApiError::field(param, message))
        }
        Value::Array(items) if !has_number(items) => {
            items.iter().map(|item| prompt(item, param, tokenizer, options)).collect()
        }
        value => Ok(vec![prompt(value, param, tokenizer, options)?]),
    }
}

/// One prompt.
fn prompt(
    value: &Value,
    param: &str,
    tokenizer: &Tokenizer,
    options: EncodeOptions,
) -> Result<Vec<TokenId>, ApiError> {
    match value {
        Value::String(_) => mixed(value, param, tokenizer, options),
        Value::Array(items) if items.iter().all(|item| is_integer(item) || item.is_string()) => {
            mixed(value, param, tokenizer, options)
        }
        Value::Object(object) => {
            let text = object.get("prompt_string").ok_or_else(|| ApiError::field(param, ELEMENTS));
            if object.contains_key("multimodal_data") {
                let message = "Multimodal data provided, but model does not support multimodal \
                               requests.";
                return Err(ApiError::field(param, message));
            }
            mixed(text?, param, tokenizer, options)
        }
        _ => Err(ApiError::field(param, ELEMENTS)),
    }
}

/// Tokens of a text, or of a list of tokens and texts; only a text at the start gets a BOS.
///
/// # Errors
/// Another shape, or tokens that the vocabulary does not have.
pub(super) fn mixed(
    value: &Value,
    param: &str,
    tokenizer: &Tokenizer,
    options: EncodeOptions,
) -> Result<Vec<TokenId>, ApiError> {
    let encode = |text: &str, options| {
        let tokens = tokenizer.encode(text, options);
        tokens.map_err(|error| ApiError::field(param, error.to_string()))
    };
    let items = match value {
        Value::String(text) => return encode(text, options),
        Value::Array(items) => items,
        _ => return Err(ApiError::field(param, ELEMENTS)),
    };
    let mut tokens = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        match item {
            Value::String(text) => {
                let add_special = options.add_special && i == 0;
                tokens.extend(encode(text, EncodeOptions { add_special, ..options })?);
            }
            item if is_integer(item) => tokens.push(token(item, param, tokenizer)?),
            _ => return Err(ApiError::field(param, ELEMENTS)),
        }
    }
    Ok(tokens)
}

/// A token that the vocabulary has.
///
/// # Errors
/// If it is none.
pub(super) fn token(
    value: &Value,
    param: &str,
    tokenizer: &Tokenizer,
) -> Result<TokenId, ApiError> {
    let whole = value.as_i64().or_else(|| value.as_f64().map(|number| number as i64));
    let token = whole.and_then(|token| TokenId::try_from(token).ok());
    let known = token.filter(|&token| (token as usize) < tokenizer.n_vocab());
    known.ok_or_else(|| ApiError::field(param, "Prompt contains invalid tokens"))
}

/// What tokens say, control tokens included, as llama.cpp shows a prompt: piece after piece.
pub(super) fn text(tokens: &[TokenId], tokenizer: &Tokenizer) -> String {
    let bytes: Vec<u8> =
        tokens.iter().flat_map(|&token| tokenizer.token_bytes(token, true)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64()
}
