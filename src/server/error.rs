//! What a caller is told when a request cannot be served: one envelope for every dialect.
//!
//! ```json
//! {"error":{"code":400,"message":"...","type":"invalid_request_error","param":"prompt"}}
//! ```
//!
//! llama.cpp's fields (`code`, `message`, `type`, and `n_prompt_tokens`, `n_ctx` for a prompt that
//! is too long) plus OpenAI's `param`. A response carries its error along, so that the gate can say
//! it once more in the words of a dialect that has others; see `forms`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::base::file::is_disk_full;
use crate::hosting::HostError;
use crate::inference::{EngineError, InferenceError};
use crate::store::StoreError;

/// When to try again if the store has no time, or is away.
pub(super) const STORE_RETRY: Duration = Duration::from_secs(1);
/// And if there is no room.
const ROOM_RETRY: Duration = Duration::from_secs(30);

/// An error as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// llama.cpp's word for the kind.
    pub kind: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Further fields of the envelope.
    pub extra: Box<Map<String, Value>>,
}

impl ApiError {
    /// An error of `kind`.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError { status, kind, message, param: None, retry_after: None, extra: Box::default() }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub fn field(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.to_owned()), ..ApiError::invalid(message) }
    }

    /// The same error, of another field.
    pub fn at(self, param: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..self }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// It is at odds with what was asked before.
    pub fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "conflict_error", message)
    }

    /// The server was not started for this.
    pub fn not_supported(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
    }

    /// No key, or a wrong one.
    pub fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
    }

    /// Something of ours is broken.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// There is no room on the disk; nothing was kept.
    pub fn no_room(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "storage_error", message);
        ApiError { retry_after: Some(ROOM_RETRY), ..error }
    }

    /// `what` was not kept, for the system's reason.
    pub fn unkept(what: &str, why: &std::io::Error) -> ApiError {
        match is_disk_full(why) {
            true => ApiError::no_room(format!(
                "{what}: the disk is full; remove something from it and ask again"
            )),
            false => ApiError::internal(format!("{what}: {why}")),
        }
    }

    /// Not now.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message);
        ApiError { retry_after: Some(retry_after), ..error }
    }

    /// The envelope.
    pub fn to_json(&self) -> Value {
        let mut error = json!({
            "code": self.status.as_u16(),
            "message": self.message,
            "type": self.kind,
            "param": self.param,
        });
        if let Value::Object(fields) = &mut error {
            fields.extend((*self.extra).clone());
        }
        json!({ "error": error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> ApiError {
        let message = error.to_string();
        match error {
            EngineError::Inference(error) => error.into(),
            EngineError::Sampler(_) | EngineError::Answers { .. } | EngineError::Token { .. } => {
                ApiError::invalid(message)
            }
            EngineError::Grammar(_) => ApiError::field("grammar", message),
            EngineError::Adapter { .. } => ApiError::field("lora", message),
            EngineError::Slot { .. } => ApiError::field("id_slot", message),
            EngineError::SlotFile { .. } => ApiError::field("filename", message),
            EngineError::QueueFull { retry_after, .. } => {
                ApiError::unavailable(message, *retry_after)
            }
            EngineError::Stopping => ApiError::unavailable(message, Duration::from_secs(5)),
            EngineError::Step { .. } => ApiError::internal(message),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        ApiError::from(&error)
    }
}

impl From<&InferenceError> for ApiError {
    fn from(error: &InferenceError) -> ApiError {
        let message = error.to_string();
        match error {
            InferenceError::PromptTooLong { n_prompt, n_ctx } => {
                let mut api = ApiError::field("prompt", message);
                api.kind = "exceed_context_size_error";
                api.extra.insert("n_prompt_tokens".into(), json!(n_prompt));
                api.extra.insert("n_ctx".into(), json!(n_ctx));
                api
            }
            InferenceError::PromptEmpty => ApiError::field("prompt", message),
            InferenceError::NotGenerative | InferenceError::NotReranker => {
                ApiError::not_supported(message)
            }
            InferenceError::Tokenizer(_)
            | InferenceError::Template(_)
            | InferenceError::Sampler(_) => ApiError::invalid(message),
            InferenceError::Memory { .. } => {
                ApiError::unavailable(message, Duration::from_secs(30))
            }
            _ => ApiError::internal(message),
        }
    }
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> ApiError {
        let message = error.to_string();
        match error {
            error if error.is_disk_full() => ApiError::no_room(message),
            StoreError::Busy | StoreError::Closed | StoreError::Away { .. } => {
                ApiError::unavailable(message, STORE_RETRY)
            }
            StoreError::PeersFull { .. } => ApiError::conflict(message),
            _ => ApiError::internal(message),
        }
    }
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> ApiError {
        let message = error.to_string();
        match &error {
            HostError::Unknown { .. } => {
                ApiError { param: Some("model".to_owned()), ..ApiError::not_found(message) }
            }
            HostError::Load { source, .. } => {
                ApiError { message, ..ApiError::from(source.as_ref()) }
            }
            HostError::Stopping => ApiError::unavailable(message, Duration::from_secs(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_is_too_long_has_both_counts() {
        let error = InferenceError::PromptTooLong { n_prompt: 900, n_ctx: 512 };
        let error = ApiError::from(&error).to_json();
        assert_eq!(error["error"]["type"], "exceed_context_size_error");
        assert_eq!(error["error"]["code"], 400);
        assert_eq!(
            (&error["error"]["n_prompt_tokens"], &error["error"]["n_ctx"]),
            (&json!(900), &json!(512))
        );
        assert_eq!(error["error"]["param"], "prompt");
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let retry_after = Duration::from_secs(7);
        let error = EngineError::QueueFull { n_waiting: 3, retry_after };
        let response = ApiError::from(error).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    }
}
