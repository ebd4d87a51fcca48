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

use super::message::Task;
use super::{ask, error_json, with_id};
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
    sockets::open(gate, &headers, upgrade, Talk { route: "/ws", answer, refusal })
}

/// Posts a message to `/generate`, wherever that is answered; what comes back.
async fn posted(dialects: Router, asked: &Asked) -> Result<String, ApiError> {
    let request = Request::post("/generate")
        .header(header::CONTENT_TYPE, "application/json")
        .extension(asked.message.caller.clone())
        .body(Body::from(asked.bytes.clone()))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let Ok(mut answer) = TowerToHyperService::new(dialects).call(request).await;
    if let Some(error) = answer.extensions_mut().remove::<ApiError>() {
        return Err(error);
    }
    let body = Limited::new(answer.into_body(), HUB_ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|_| ApiError::internal("the answer broke off"))?.to_bytes();
    String::from_utf8(body.into()).map_err(|_| ApiError::internal("the answer is no text"))
}

async fn answer(mut asked: Asked) -> Result<(), ApiError> {
    asked.message.begin()?;
    if let Some(dialects) = asked.elsewhere.take() {
        let said = posted(dialects, &asked).await?;
        let _ = asked.out.send(said).await;
        return Ok(());
    }
    let task = Task::read(Fields::parse(&asked.bytes)?, None)?;
    let id = task.id.clone();
    let answer = ask(asked.server, asked.message.caller, task).await?;
    // A peer that has left needs no answer.
    let _ = asked.out.send(answer.to_json(&id, false).to_string()).await;
    Ok(())
}
