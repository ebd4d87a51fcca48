//! `/v1/embeddings`: texts as vectors of length 1.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::hosting::Lease;
use crate::inference::{InferenceError, Pooling, TokenId};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease_of};
use crate::server::prompts::prompts;
use crate::server::state::Server;

/// What a request asks for.
struct Inputs {
    lease: Lease,
    inputs: Vec<Vec<TokenId>>,
    is_base64: bool,
}

/// Embeds every input.
pub(super) async fn handle(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease_of(&server, &fields).await?;
    let options = &server.0.options;
    // An encoder does nothing else, so it needs no option.
    if !options.serves_embeddings && lease.info().hparams().arch.causal {
        let message = "this service makes no embeddings of a model that writes; start it with \
                       --embeddings";
        return Err(ApiError::not_supported(message));
    }
    let pooling = lease.info().pooling_of(options.pooling);
    if pooling == Pooling::None {
        let message = "nothing is pooled here, so a text has no one vector; use /embedding";
        return Err(ApiError::invalid(message));
    }
    let Inputs { lease, inputs, is_base64 } = blocking(move || read(&fields, lease)).await?;
    let n_tokens: usize = inputs.iter().map(Vec::len).sum();
    let replies: Vec<_> = inputs.into_iter().map(|tokens| lease.embed(tokens, pooling)).collect();
    let mut data = Vec::with_capacity(replies.len());
    for (index, reply) in replies.into_iter().enumerate() {
        let vector = normalized(reply.await?.into_iter().next().unwrap_or_default());
        let mut entry = json!({"object": "embedding", "index": index});
        entry["embedding"] = match is_base64 {
            true => base64(&vector).into(),
            false => json!(vector),
        };
        if is_base64 {
            entry["encoding_format"] = "base64".into();
        }
        data.push(entry);
    }
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": lease.name(),
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })))
}

fn read(fields: &Fields, lease: Lease) -> Result<Inputs, ApiError> {
    if fields.has("dimensions") {
        let message = "dimensions is not supported: a vector has as many as the model makes";
        return Err(ApiError::field("dimensions", message));
    }
    let is_base64 = fields.choice("encoding_format", &["float", "base64"])? == Some(1);
    let name = if fields.has("input") { "input" } else { "content" };
    let Some(input) = fields.get(name) else {
        return Err(ApiError::field("input", "input is missing"));
    };
    let inputs = prompts(input, name, lease.info().tokenizer())?;
    let n_ctx = lease.info().n_ctx();
    for tokens in &inputs {
        if tokens.is_empty() {
            return Err(ApiError::field(name, format!("{name} holds an empty text")));
        }
        if tokens.len() > n_ctx {
            let n_prompt = tokens.len();
            let error = ApiError::from(&InferenceError::PromptTooLong { n_prompt, n_ctx });
            return Err(error.at(name));
        }
    }
    Ok(Inputs { lease, inputs, is_base64 })
}

/// The vector at length 1; one without a direction stays.
pub(in crate::server) fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
    vector
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

    #[test]
    fn vectors_have_length_one() {
        assert_eq!(normalized(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalized(vec![0.0]), [0.0]);
    }
}
