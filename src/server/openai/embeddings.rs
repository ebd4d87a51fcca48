//! `/v1/embeddings`: texts as vectors of length 1.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::inference::{TokenId, Tokenizer};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::lease_of;
use crate::server::prompts::prompts;
use crate::server::state::Server;
use crate::server::vectors::{check, embedded};

/// Embeds every input.
pub(super) async fn handle(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    if fields.has("dimensions") {
        let message = "dimensions is not supported: a vector has as many as the model makes";
        return Err(ApiError::field("dimensions", message));
    }
    let is_base64 = fields.choice("encoding_format", &["float", "base64"])? == Some(1);
    let lease = lease_of(&server, &fields).await?;
    let read = move |lease: &crate::hosting::Lease| {
        inputs(&fields, lease.info().tokenizer(), lease.info().n_ctx())
    };
    let all = embedded(&server, lease, read).await?;
    let entry = |(index, vector): (usize, Vec<f32>)| match is_base64 {
        false => json!({"object": "embedding", "index": index, "embedding": vector}),
        true => json!({
            "object": "embedding",
            "index": index,
            "embedding": base64(&vector),
            "encoding_format": "base64",
        }),
    };
    let data: Vec<Value> = all.vectors.into_iter().enumerate().map(entry).collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": all.model,
        "usage": {"prompt_tokens": all.n_tokens, "total_tokens": all.n_tokens},
    })))
}

fn inputs(
    fields: &Fields,
    tokenizer: &Tokenizer,
    n_ctx: usize,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let name = if fields.has("input") { "input" } else { "content" };
    let Some(input) = fields.get(name) else {
        return Err(ApiError::field("input", "input is missing"));
    };
    let inputs = prompts(input, name, tokenizer)?;
    inputs.iter().try_for_each(|tokens| check(tokens, n_ctx, name))?;
    Ok(inputs)
}

/// The vector's bytes, little-endian, in base64.
fn base64(vector: &[f32]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_floats_bytes() {
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[0.0; 3]), "AAAAAAAAAAAAAAAA");
    }
}
