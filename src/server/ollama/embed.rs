//! `/api/embed` and `/api/embeddings`: texts as vectors of length 1.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::wire::{lease, nanos};
use crate::base::limits::PROMPTS_MAX;
use crate::hosting::Lease;
use crate::inference::{EncodeOptions, InferenceError, Pooling, TokenId};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::blocking;
use crate::server::openai::normalized;
use crate::server::state::Server;

/// Vectors, and how many tokens they are of.
struct Embedded {
    model: String,
    vectors: Vec<Vec<f32>>,
    n_tokens: usize,
}

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
    let mut all = vectors(&server, lease, texts, truncates, "input").await?;
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
    let all = vectors(&server, lease, vec![prompt], true, "prompt").await?;
    Ok(Json(json!({ "embedding": all.vectors.into_iter().next().unwrap_or_default() })))
}

async fn vectors(
    server: &Server,
    lease: Lease,
    texts: Vec<String>,
    truncates: bool,
    param: &'static str,
) -> Result<Embedded, ApiError> {
    let options = &server.0.options;
    if !options.serves_embeddings && lease.info().hparams().arch.causal {
        let message = "this service makes no embeddings of a model that writes; start it with \
                       --embeddings";
        return Err(ApiError::not_supported(message));
    }
    let pooling = lease.info().pooling_of(options.pooling);
    if pooling == Pooling::None {
        return Err(ApiError::invalid("nothing is pooled here, so a text has no one vector"));
    }
    let work = move || Ok((inputs(&lease, &texts, truncates, param)?, lease));
    let (inputs, lease) = blocking(work).await?;
    let n_tokens = inputs.iter().map(Vec::len).sum();
    let replies: Vec<_> = inputs.into_iter().map(|tokens| lease.embed(tokens, pooling)).collect();
    let mut vectors = Vec::with_capacity(replies.len());
    for reply in replies {
        vectors.push(normalized(reply.await?.into_iter().next().unwrap_or_default()));
    }
    Ok(Embedded { model: lease.name().to_owned(), vectors, n_tokens })
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
        if tokens.is_empty() {
            return Err(ApiError::field(param, format!("{param} holds an empty text")));
        }
        if tokens.len() > n_ctx && !truncates {
            let too_long = InferenceError::PromptTooLong { n_prompt: tokens.len(), n_ctx };
            return Err(ApiError::from(&too_long).at(param));
        }
        // The token that ends a text stays.
        let last = tokens.last().copied();
        if tokens.len() > n_ctx {
            tokens.truncate(n_ctx - 1);
            tokens.extend(last);
        }
        Ok(tokens)
    };
    texts.iter().map(input).collect()
}
