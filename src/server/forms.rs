//! Errors in the form that a dialect's clients expect, told from the route.
//!
//! ```text
//! /generate, /refactor, ...    {"request_id", "status": "error", "generated_code": "", "metadata"}
//! /v1/messages                 {"type": "error", "error": {"type", "message"}, "request_id"}
//! /api/...                     {"error": "message"}
//! all others                   {"error": {"code", "message", "type", "param"}}
//! ```
//!
//! One place for all: what the gate refuses, what a body's reader refuses, what a handler says, and
//! what became of a panic. The status and the header fields stay as they are.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::Value;

use super::{ApiError, anthropic, autocoder, ollama};

/// Says an error in the words of the dialect that `route` belongs to.
pub(super) fn in_form_of(
    route: Option<&str>,
    request_id: &str,
    mut response: Response,
) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let said: Value = match route.unwrap_or_default() {
        "/generate" | "/refactor" | "/explain" | "/test" => autocoder::error_json(&error),
        "/v1/messages" | "/v1/messages/count_tokens" => anthropic::error_json(&error, request_id),
        path if path.starts_with("/api/") => ollama::error_json(&error),
        _ => return response,
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let json = HeaderValue::from_static("application/json");
    parts.headers.insert(header::CONTENT_TYPE, json);
    Response::from_parts(parts, Body::from(said.to_string()))
}
