//! llama-server's dialect, so that its clients cannot tell the difference.
//!
//! ```text
//! completion, infill    -> params, prompt -> Engine::submit -> answer, stream
//! tokens, props, slots, lora, embedding, rerank: one handler each
//! ```
//!
//! Fields, meanings, statuses and messages are llama-server's, as its source says and its answers
//! show (tests/golden/llama_api.json). What is different on purpose is listed in docs/api-llama.md.

mod answer;
mod completion;
mod embedding;
mod fields;
mod infill;
mod lora;
mod params;
mod props;
mod rerank;
mod settings;
mod slots;
mod stream;
mod tokens;

use axum::Router;
use axum::routing::{get, post};

pub(super) use infill::fill_in;

use super::Server;

/// Every path of the dialect.
pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/completion", post(completion::completion))
        .route("/completions", post(completion::completion))
        .route("/infill", post(infill::infill))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route("/props", get(props::get).post(props::set))
        .route("/slots", get(slots::list))
        .route("/slots/{id}", post(slots::act))
        .route("/embedding", post(embedding::embedding))
        .route("/embeddings", post(embedding::embedding))
        .route("/rerank", post(rerank::rerank))
        .route("/reranking", post(rerank::rerank))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/v1/reranking", post(rerank::rerank))
        .route("/lora-adapters", get(lora::list).post(lora::set))
}
