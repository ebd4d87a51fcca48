//! The configuration over HTTP, for an administrator.
//!
//! ```text
//! GET /v1/config                                   every key, its value and its source
//! PUT /v1/config {"power": {"profile": "eco"}}     or "power.profile"; null takes it back
//!                                                  422 with the key if it cannot be used
//! ```

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value};

use super::fields::Fields;
use super::{ApiError, Gate};

/// Why a configuration was not put.
#[derive(Debug)]
pub enum PutError {
    /// A key cannot be used.
    Key {
        /// Which.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// It cannot be kept.
    Unkept(std::io::Error),
    /// Something of ours is broken.
    Ours(String),
}

/// Whoever holds the configuration.
pub trait Settings: Send + Sync {
    /// Every key with its value and source.
    fn show(&self) -> Value;

    /// Sets keys for good; what changed, and what takes a restart.
    ///
    /// # Errors
    /// If the configuration could not be used with them, or they cannot be kept. Nothing changed.
    fn put(&self, changes: &Map<String, Value>) -> Result<Value, PutError>;
}

/// The routes of this file.
pub(super) fn routes() -> Router<Gate> {
    Router::new().route("/v1/config", get(show).put(put))
}

async fn show(State(gate): State<Gate>) -> Result<Json<Value>, ApiError> {
    Ok(Json(holder(&gate)?.show()))
}

async fn put(State(gate): State<Gate>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let holder = holder(&gate)?;
    let done = tokio::task::spawn_blocking(move || holder.put(&fields.0)).await;
    let result = done.map_err(|error| ApiError::internal(error.to_string()))?;
    result.map(Json).map_err(|error| match error {
        PutError::Ours(message) => ApiError::internal(message),
        PutError::Unkept(why) => ApiError::unkept("the configuration is not kept", &why),
        PutError::Key { path, message } => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            ApiError::new(status, "invalid_request_error", message).at(path)
        }
    })
}

fn holder(gate: &Gate) -> Result<Arc<dyn Settings>, ApiError> {
    let holder = gate.settings().cloned();
    holder.ok_or_else(|| ApiError::not_supported("this service has no configuration to show"))
}
