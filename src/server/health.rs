//! `/health`: whether the service can answer. `/v1/health` says more, and stands with `tabby`.

use axum::Router;
use axum::routing::get;
use serde_json::json;

use super::Server;

/// The routes of this file.
pub(super) fn routes() -> Router<Server> {
    // While the model loads, the gate answers in our place.
    let healthy = || async { axum::Json(json!({"status": "ok"})) };
    Router::new().route("/health", get(healthy))
}
