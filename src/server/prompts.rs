//! Raw prompts, in every shape in which they come.
//!
//! ```text
//! "text"   [1, 2, 3]   ["text", 1, 2]              one prompt
//! ["text", "text"]     [[1, 2], "text", ["a", 1]]  several
//! ```

use serde_json::Value;

use super::error::ApiError;
use crate::base::limits::PROMPTS_MAX;
use crate::inference::{EncodeOptions, TokenId, Tokenizer};

/// The prompts in `value`, as tokens. The model's BOS stands before a text that begins a prompt;
/// control tokens that are written out count.
///
/// # Errors
/// A shape that is none of those above, a token outside the vocabulary; `param` is to blame.
pub(super) fn prompts(
    value: &Value,
    tokenizer: &Tokenizer,
    param: &str,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let several = match value {
        Value::Array(items) if items.iter().any(Value::is_array) => items.iter().collect(),
        Value::Array(items) if items.len() > 1 && items.iter().all(Value::is_string) => {
            items.iter().collect()
        }
        _ => vec![value],
    };
    if several.len() > PROMPTS_MAX {
        let message = format!("{param} has {} prompts; {PROMPTS_MAX} are allowed", several.len());
        return Err(ApiError::field(param, message));
    }
    several.into_iter().map(|value| prompt(value, tokenizer, param)).collect()
}

/// One prompt.
fn prompt(value: &Value, tokenizer: &Tokenizer, param: &str) -> Result<Vec<TokenId>, ApiError> {
    let wrong = |message: String| ApiError::field(param, message);
    let pieces = match value {
        Value::Array(pieces) => pieces.as_slice(),
        value => std::slice::from_ref(value),
    };
    let mut tokens = Vec::new();
    for (idx, piece) in pieces.iter().enumerate() {
        match (piece, piece.as_u64()) {
            (Value::String(text), _) => {
                let options = EncodeOptions { add_special: idx == 0, parse_special: true };
                let text = tokenizer.encode(text, options);
                tokens.extend(text.map_err(|error| wrong(error.to_string()))?);
            }
            (_, Some(id)) if id < tokenizer.n_vocab() as u64 => tokens.push(id as TokenId),
            (Value::Number(id), _) => {
                let n_vocab = tokenizer.n_vocab();
                let message = format!("{param} has the token {id}; there are 0 to {}", n_vocab - 1);
                return Err(wrong(message));
            }
            _ => {
                let message = format!(
                    "{param} must be a string, an array of tokens, or an array of such prompts"
                );
                return Err(wrong(message));
            }
        }
    }
    Ok(tokens)
}
