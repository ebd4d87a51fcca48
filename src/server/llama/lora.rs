//! `GET` and `POST /lora-adapters`: the adapters that were loaded with a model, and the scales at
//! which they are in effect where a request says nothing.

use std::collections::HashMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use serde_json::{Value, json};

use super::params::adapters;
use crate::server::generate::lease;
use crate::server::{ApiError, Server};

/// `GET /lora-adapters`.
pub async fn list(
    State(server): State<Server>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, query.get("model").map(String::as_str)).await?;
    let scale = |id: usize| {
        let found = lease.adapters().iter().find(|(adapter, _)| *adapter == id);
        found.map_or(0.0, |(_, scale)| *scale)
    };
    let entry = |(id, path): (usize, &std::path::PathBuf)| {
        json!({
            "id": id,
            "path": path.display().to_string(),
            "scale": scale(id),
            "task_name": "",
            "prompt_prefix": "",
        })
    };
    Ok(Json(lease.info().adapters().iter().enumerate().map(entry).collect()))
}

/// `POST /lora-adapters`: `[{id, scale}, ..]`. Adapters that are not named have scale 0 from now
/// on; ids that are not loaded are ignored, as llama.cpp does.
pub async fn set(
    State(server): State<Server>,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
    let wrong = || ApiError::invalid("Request body must be an array");
    let mut adapters = adapters(&value).ok_or_else(wrong)?;
    let lease = lease(&server, query.get("model").map(String::as_str)).await?;
    adapters.retain(|(id, _)| *id < lease.info().adapters().len());
    server.0.host.set_adapters(lease.name(), adapters);
    Ok(Json(json!({"success": true})))
}
