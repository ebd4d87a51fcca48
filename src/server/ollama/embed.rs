//! `/api/embed` and `/api/embeddings`: texts as vectors of length 1.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::wire::{lease, nanos};
use crate::base::limits::PROMPTS_MAX;
use crate::hosting::Lease;
use crate::inference::{EncodeOptions, TokenId};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::state::Server;
use crate::server::vectors::{check, embedded, normalized};

/// `POST /api/embed`.
pub(super) async fn embed(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let started = Instant::now();
    let lease = lease(&server, &fields).await?;
    let load = started.elapsed();
    let texts = fields.strings("input")?;
    if texts.len() > PROMPTS_MAX {
        return Err(ApiError::field("input", format!("input has more than {PROMPTS_MAX} texts")));
    }
    let truncates = fields.bool("truncate")?.unwrap_or(true);
    let n_dim = fields.count("dimensions", usize::MAX)?.filter(|&n| n > 0);
    let read = move |lease: &Lease| inputs(lease, &texts, truncates, "input");
    let mut all = embedded(&server, lease, read).await?;
    if let Some(n_dim) = n_dim {
        let cut = |vector: Vec<f32>| normalized(vector.into_iter().take(n_dim).collect());
        all.vectors = all.vectors.into_iter().map(cut).collect();
    }
    Ok(Json(json!({
        "model": all.model,
        "embeddings": all.vectors,
        "total_duration": nanos(started.elapsed()),
        "load_duration": nanos(load),
        "prompt_eval_count": all.n_tokens,
    })))
}

/// `POST /api/embeddings`, the older form for one text.
pub(super) async fn embeddings(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, &fields).await?;
    let prompt = fields.str("prompt")?.unwrap_or_default().to_owned();
    if prompt.is_empty() {
        return Ok(Json(json!({"embedding": []})));
    }
    let read = move |lease: &Lease| inputs(lease, &[prompt], true, "prompt");
    let all = embedded(&server, lease, read).await?;
    Ok(Json(json!({ "embedding": all.vectors.into_iter().next().unwrap_or_default() })))
}

/// The tokens of each text; one that is too long is cut where that is asked for.
fn inputs(
    lease: &Lease,
    texts: &[String],
    truncates: bool,
    param: &str,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let n_ctx = lease.info().n_ctx();
    let encode = EncodeOptions { add_special: true, parse_special: false };
    let input = |text: &String| {
        let tokens = lease.info().tokenizer().encode(text, encode);
        let mut tokens = tokens.map_err(|error| ApiError::field(param, error.to_string()))?;
        // The token that ends a text stays.
        let last = tokens.last().copied();
        if truncates && tokens.len() > n_ctx {
            tokens.truncate(n_ctx - 1);
            tokens.extend(last);
        }
        check(&tokens, n_ctx, param)?;
        Ok(tokens)
    };
    texts.iter().map(input).collect()
}
