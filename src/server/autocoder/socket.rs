//! `/ws`: tasks as messages, each answered by one message with its id, in any order.

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::Response;

use super::message::Task;
use super::{ask, error_json, with_id};
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

async fn answer(mut asked: Asked) -> Result<(), ApiError> {
    asked.message.begin()?;
    let task = Task::read(Fields::parse(&asked.bytes)?, None)?;
    let id = task.id.clone();
    let answer = ask(asked.server, asked.message.caller, task).await?;
    // A peer that has left needs no answer.
    let _ = asked.out.send(answer.to_json(&id, false).to_string()).await;
    Ok(())
}
