//! Ollama's dialect: texts, conversations and embeddings, and the models behind them.
//!
//! `wire` reads what all requests have in common, `generate` and `chat` start an answer, `told`
//! says it whole or line by line, `embed` and `models` are the rest. A stream is lines of JSON.

mod chat;
mod embed;
mod generate;
mod models;
mod told;
mod wire;

use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::Server;

/// The version of Ollama whose interface this is; clients look at it before they use newer parts.
const VERSION: &str = "0.12.0";

/// The dialect's routes.
pub(super) fn routes() -> Router<Server> {
    let version =
        || async { Json(json!({"version": VERSION, "jetforge": env!("CARGO_PKG_VERSION")})) };
    Router::new()
        .route("/api/generate", post(generate::handle))
        .route("/api/chat", post(chat::handle))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embeddings))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(models::show))
        .route("/api/pull", post(models::pull))
        .route("/api/delete", delete(models::delete))
        .route("/api/version", get(version))
}

/// An error as Ollama's clients expect it.
pub(super) fn error_json(error: &ApiError) -> Value {
    json!({ "error": error.message })
}
