//! WebSockets: messages in, frames out, both bounded.
//!
//! ```text
//! peer --> message --> a task for each, at most so many at once --> frames --> peer
//!                      while all run, nothing is read: the peer waits, not our memory
//!          key, quota, room, as for a request --> the dialect, whose panics cost one message
//! ```
//!
//! A message that is refused, wrong or met a bug is answered like every other: with its id.
//!
//! Frames go through one bounded queue, so a peer that takes nothing holds its own tasks up, until
//! the connection's writes stall for too long and it counts as gone. A peer that leaves ends its
//! tasks. A peer that is silent while nothing runs for two pings is gone as well.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::gate;
use super::{ApiError, Gate};
use crate::base::limits::{SOCKET_MESSAGE_BYTES_MAX, SOCKET_MESSAGES_MAX, SOCKET_PING_MS};

/// Where a message's answer goes, frame by frame; an error when the peer has left.
pub(super) type Out = mpsc::Sender<String>;

/// A message that was let in.
pub(super) struct Asked {
    pub gate: Gate,
    pub message: gate::Message,
    pub bytes: Bytes,
    pub out: Out,
}

/// A WebSocket's side of a dialect.
#[derive(Clone)]
pub(super) struct Talk<F> {
    /// What the key is asked for.
    pub route: &'static str,
    /// Answers a message.
    pub answer: F,
    /// An error as the answer to the message of an id.
    pub refusal: fn(ApiError, Value) -> Value,
}

/// Opens a WebSocket.
///
/// # Errors
/// If the request asks for no WebSocket, or there are too many.
pub(super) fn open<F, A>(
    gate: Gate,
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    talk: Talk<F>,
) -> Result<Response, ApiError>
where
    F: Fn(Asked) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<(), ApiError>> + Send + 'static,
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
    let headers = credentials(headers);
    Ok(upgrade.on_upgrade(async move |socket| {
        serve(socket, |bytes, out| attend(gate.clone(), headers.clone(), talk.clone(), bytes, out))
            .await;
        drop(place);
    }))
}

/// What of a request's header says whose messages follow.
fn credentials(headers: &HeaderMap) -> HeaderMap {
    let names = [header::AUTHORIZATION, header::HeaderName::from_static("x-api-key")];
    let kept = names.into_iter().filter_map(|name| {
        let value = headers.get(&name)?.clone();
        Some((name, value))
    });
    kept.collect()
}

/// A message from its admission to its answer.
async fn attend<F, A>(gate: Gate, headers: HeaderMap, talk: Talk<F>, bytes: Bytes, out: Out)
where
    F: Fn(Asked) -> A,
    A: Future<Output = Result<(), ApiError>>,
{
    let answered = async {
        let message = gate.admit_message(&headers, talk.route, bytes.len())?;
        let (gate, bytes, out) = (gate.clone(), bytes.clone(), out.clone());
        (talk.answer)(Asked { gate, message, bytes, out }).await
    };
    if let Err(error) = without_panic(answered).await {
        // A peer that has left needs no answer.
        let _ = out.send((talk.refusal)(error, id_in(&bytes)).to_string()).await;
    }
}

/// What work says, also where it panics.
async fn without_panic(work: impl Future<Output = Result<(), ApiError>>) -> Result<(), ApiError> {
    let mut work = pin!(work);
    // It is not polled again, and what it shares with others is as after any other panic.
    let caught = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(said)) => Poll::Ready(said),
            Err(_) => {
                Poll::Ready(Err(ApiError::internal("this message met a bug; others are answered")))
            }
        }
    });
    caught.await
}

/// The id in a message, whatever else is wrong with it; empty where there is none.
pub(super) fn id_in(message: &[u8]) -> Value {
    #[derive(Deserialize)]
    struct Named {
        request_id: Option<Value>,
    }
    if let Ok(Named { request_id }) = serde_json::from_slice(message) {
        return id_of(request_id.as_ref());
    }
    let name = b"\"request_id\"";
    let at = message.windows(name.len()).position(|window| window == name);
    let rest = at.map(|at| &message[at + name.len()..]).unwrap_or_default().trim_ascii_start();
    let rest = rest.strip_prefix(b":").unwrap_or_default();
    let id = serde_json::Deserializer::from_slice(rest).into_iter::<Value>().next();
    id_of(id.and_then(Result::ok).as_ref())
}

/// An id as it is sent back; empty where it is none.
pub(super) fn id_of(given: Option<&Value>) -> Value {
    match given {
        Some(id @ (Value::String(_) | Value::Number(_))) => id.clone(),
        _ => "".into(),
    }
}

async fn serve<A>(mut socket: WebSocket, answer: impl Fn(Bytes, Out) -> A)
where
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
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Binary(bytes))) => bytes,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_is_found_in_whatever_comes_and_sent_back_whole() {
        let long = "x".repeat(1000);
        for (text, id) in [
            (r#"{"parameters": {"request_id": "inner"}, "request_id": "own"}"#, json!("own")),
            (r#"{"request_id": 7, "prompt": "p"}"#, json!(7)),
            (r#"{"prompt": "a \"request_id\": 1", "x"#, json!("")),
            (r#"{"request_id" : "cut", "prompt": "#, json!("cut")),
            (r#"{"request_id": {}}"#, json!("")),
            ("[]", json!("")),
            (&format!(r#"{{"request_id": "{long}"}}"#), json!(long)),
        ] {
            assert_eq!(id_in(text.as_bytes()), id, "{text}");
        }
    }

    #[tokio::test]
    async fn work_that_panics_has_said_so() {
        let broken = without_panic(async {
            tokio::task::yield_now().await;
            panic!("the secret");
        });
        let error = broken.await.unwrap_err();
        assert!(error.status == 500 && !error.message.contains("secret"), "{}", error.message);
        assert!(without_panic(async { Ok(()) }).await.is_ok());
    }
}
