//! `/ws`: tasks as messages, each answered by one message with its id, in any order.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, Request, header};
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::{error_json, with_id};
use crate::base::limits::HUB_ANSWER_BYTES_MAX;
use crate::server::fields::Fields;
use crate::server::sockets::{self, Asked, Talk};
use crate::server::{ApiError, Gate};

/// `GET /ws`.
pub(super) async fn open(
    State(gate): State<Gate>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let refusal = |error, id| error_json(&with_id(error, id));
    let dialects = gate.dialects();
    let answer = move |asked| answer(dialects.clone(), asked);
    sockets::open(gate, &headers, upgrade, Talk { route: "/ws", answer, refusal })
}

/// Answers a message as if it were the body of `/generate`, wherever that is answered.
async fn answer(dialects: Option<Router>, mut asked: Asked) -> Result<(), ApiError> {
    asked.message.begin()?;
    let mut fields = Fields::parse(&asked.bytes)?;
    if !fields.has("parameters") {
        // A message is in the nested form, whatever it has, and so is its answer.
        fields.0.insert("parameters".to_owned(), json!({}));
    }
    let request = Request::post("/generate")
        .header(header::CONTENT_TYPE, "application/json")
        .extension(asked.message.caller.clone())
        .body(Body::from(Value::Object(fields.0).to_string()))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let dialects = dialects.ok_or_else(|| ApiError::internal("nobody answers yet"))?;
    let Ok(mut answer) = TowerToHyperService::new(dialects).call(request).await;
    if let Some(error) = answer.extensions_mut().remove::<ApiError>() {
        return Err(error);
    }
    let body = Limited::new(answer.into_body(), HUB_ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|_| ApiError::internal("the answer broke off"))?.to_bytes();
    let said = String::from_utf8(body.into());
    let said = said.map_err(|_| ApiError::internal("the answer is no text"))?;
    // A peer that has left needs no answer.
    let _ = asked.out.send(said).await;
    Ok(())
}
