//! `GET` and `POST /lora-adapters`.

use axum::Json;
use axum::body::Bytes;
use serde_json::{Value, json};

use super::params::adapters;
use crate::server::ApiError;

/// `GET /lora-adapters`: the adapters that were loaded at start. There are none yet.
pub async fn list() -> Json<Value> {
    Json(json!([]))
}

/// `POST /lora-adapters`: `[{id, scale}, ..]`; ids that are not loaded are ignored, as llama.cpp
/// does.
pub async fn set(body: Bytes) -> Result<Json<Value>, ApiError> {
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
    match adapters(&value) {
        Some(_) => Ok(Json(json!({"success": true}))),
        None => Err(ApiError::invalid("Request body must be an array")),
    }
}
