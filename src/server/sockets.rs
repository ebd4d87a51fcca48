//! WebSockets: messages in, frames out, both bounded.
//!
//! ```text
//! peer --> message --> a task for each, at most so many at once --> frames --> peer
//!                      while all run, nothing is read: the peer waits, not our memory
//! ```
//!
//! Frames go through one bounded queue, so a peer that takes nothing holds its own tasks up, until
//! the connection's writes stall for too long and it counts as gone. A peer that leaves ends its
//! tasks. A peer that is silent while nothing runs for two pings is gone as well.

use std::future::Future;
use std::time::{Duration, Instant};

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{ApiError, Gate};
use crate::base::limits::{SOCKET_MESSAGE_BYTES_MAX, SOCKET_MESSAGES_MAX, SOCKET_PING_MS};

/// Where a message's answer goes, frame by frame; an error when the peer has left.
pub(super) type Out = mpsc::Sender<String>;

/// Opens a WebSocket whose messages `answer` answers.
///
/// # Errors
/// If the request asks for no WebSocket, or there are too many.
pub(super) fn open<F, A>(
    gate: &Gate,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    answer: F,
) -> Result<Response, ApiError>
where
    F: Fn(Vec<u8>, Out) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let upgrade = upgrade.map_err(|rejection| {
        let message = "this path speaks WebSocket: send an upgrade request";
        let status = rejection.into_response().status();
        let status = if status.is_client_error() { status } else { StatusCode::BAD_REQUEST };
        ApiError::new(status, "invalid_request_error", message)
    })?;
    let place = gate.socket_place()?;
    let upgrade =
        upgrade.max_message_size(SOCKET_MESSAGE_BYTES_MAX).max_frame_size(SOCKET_MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(async move |socket| {
        serve(socket, answer).await;
        drop(place);
    }))
}

/// What of a request's header says whose messages follow.
pub(super) fn credentials(headers: &HeaderMap) -> HeaderMap {
    let names = [header::AUTHORIZATION, header::HeaderName::from_static("x-api-key")];
    let kept = names.into_iter().filter_map(|name| {
        let value = headers.get(&name)?.clone();
        Some((name, value))
    });
    kept.collect()
}

async fn serve<F, A>(mut socket: WebSocket, answer: F)
where
    F: Fn(Vec<u8>, Out) -> A,
    A: Future<Output = ()> + Send + 'static,
{
    let (out, mut frames) = mpsc::channel::<String>(SOCKET_MESSAGES_MAX);
    let mut running = JoinSet::new();
    let mut heard = Instant::now();
    let period = Duration::from_millis(SOCKET_PING_MS);
    let mut clock = tokio::time::interval(period);
    loop {
        tokio::select! {
            Some(frame) = frames.recv() => {
                if socket.send(Message::Text(frame.into())).await.is_err() {
                    return;
                }
            }
            Some(_) = running.join_next() => {}
            message = socket.recv(), if running.len() < SOCKET_MESSAGES_MAX => {
                heard = Instant::now();
                let bytes = match message {
                    Some(Ok(Message::Text(text))) => text.as_bytes().to_vec(),
                    Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_))) | None => return,
                    Some(Err(_)) => return refuse(socket).await,
                };
                running.spawn(answer(bytes, out.clone()));
            }
            _ = clock.tick() => {
                let is_gone = running.is_empty() && heard.elapsed() > period * 2;
                if is_gone || socket.send(Message::Ping(Vec::new().into())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Last words to a peer whose message could not be read.
async fn refuse(mut socket: WebSocket) {
    let reason = format!("a message has at most {SOCKET_MESSAGE_BYTES_MAX} bytes");
    let close = CloseFrame { code: close_code::SIZE, reason: reason.into() };
    let _ = socket.send(Message::Close(Some(close))).await;
}
