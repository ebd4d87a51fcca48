//! `/ws`: tasks as messages, each answered by one message with its id, in any order.

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::message::{Task, id_in, id_of};
use super::{ask, error_json, with_id};
use crate::server::fields::Fields;
use crate::server::sockets::{self, credentials};
use crate::server::{ApiError, Gate};

/// `GET /ws`.
pub(super) async fn open(
    State(gate): State<Gate>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let headers = credentials(&headers);
    let shared = gate.clone();
    sockets::open(&gate, upgrade, move |bytes, out| {
        let (gate, headers) = (shared.clone(), headers.clone());
        async move {
            let said = answer(&gate, &headers, &bytes).await;
            // A peer that has left needs no answer.
            let _ = out.send(said.to_string()).await;
        }
    })
}

async fn answer(gate: &Gate, headers: &HeaderMap, bytes: &[u8]) -> Value {
    let (id, asked) = match Fields::parse(bytes) {
        Ok(fields) => (id_of(&fields), Ok(fields)),
        Err(error) => (id_in(bytes), Err(error)),
    };
    let answered = async {
        let (caller, _held) = gate.admit_message(headers, "/ws", bytes.len())?;
        let task = Task::read(asked?, None)?;
        let id = task.id.clone();
        Ok(ask(gate.server().clone(), caller, task).await?.to_json(&id, false))
    };
    answered.await.unwrap_or_else(|error| error_json(&with_id(error, id)))
}
