//! `/health`: whether the service can answer, and whether a GPU does. `/v1/health` says more, and
//! stands with `tabby`.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Server;
use crate::inference::Engine;

/// The routes of this file.
pub(super) fn routes() -> Router<Server> {
    Router::new().route("/health", get(health))
}

/// While the model loads, the gate answers in our place.
async fn health(State(server): State<Server>) -> Json<Value> {
    let engines = server.0.host.engines();
    let is_on_gpu = |engine: &Engine| engine.info().device().name != "cpu";
    let gpu_available = engines.iter().any(|(_, engine)| is_on_gpu(engine));
    Json(json!({"status": "ok", "gpu_available": gpu_available}))
}
