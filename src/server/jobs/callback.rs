//! Callbacks: a finished job is posted to the address that it named, where the owner allows it.
//!
//! Plain HTTP to addresses of the configuration alone: nobody can make the service call elsewhere.
//! A callback is tried again with growing pauses, also after a restart, and given up in the end;
//! the job says which.

use std::time::Duration;

use axum::http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::door::Door;
use crate::base::limits::{CALLBACK_ANSWER_BYTES_MAX, CALLBACK_MS, CALLBACK_TRIES_MAX};
use crate::server::ApiError;
use crate::store::{CallbackRow, now_ms};

/// How often due callbacks are looked for when nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// First pause after a try that failed; it doubles.
const PAUSE_MS: i64 = 5000;

/// `host:port` of an `http://` address.
pub(super) fn host_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("http://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let is_plain = !host.is_empty() && !host.contains('@') && !url.contains(char::is_whitespace);
    is_plain.then_some(host)
}

/// Sends callbacks as long as the service runs.
pub(super) async fn send(door: Door) {
    let mut changes = door.changes();
    loop {
        changes.mark_unchanged();
        let due = door.ask(|jobs| jobs.due_callbacks()).await.unwrap_or_default();
        for row in due.into_iter().filter(|row| row.due_ms <= now_ms()) {
            if let Err(error) = attend(&door, row).await {
                tracing::error!(error = error.message, "a callback is not settled");
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// One try.
async fn attend(door: &Door, row: CallbackRow) -> Result<(), ApiError> {
    let id = row.id.clone();
    let job = door.ask(move |jobs| jobs.any(&id)).await?;
    // The owner may have taken the permission back.
    let allowed = &door.jobs().config().callbacks;
    let is_allowed = host_of(&row.url).is_some_and(|host| allowed.iter().any(|a| a == host));
    let body = door.view_with_answer(job).await?.to_string();
    let tried = tokio::time::timeout(Duration::from_millis(CALLBACK_MS), post(&row.url, body));
    let ok = is_allowed && tried.await.unwrap_or(false);
    let may_again = is_allowed && row.n_try + 1 < CALLBACK_TRIES_MAX;
    let pause = PAUSE_MS << row.n_try.clamp(0, 16);
    let again = (!ok && may_again).then(|| now_ms() + pause);
    if !ok {
        tracing::warn!(job = row.id, again = again.is_some(), "a callback did not arrive");
    }
    door.ask(move |jobs| jobs.settle_callback(&row.id, again, ok)).await
}

/// Posts a body; whether the other side took it.
async fn post(url: &str, body: String) -> bool {
    let Some(host) = host_of(url) else { return false };
    let path = &url["http://".len() + host.len()..];
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let Ok(stream) = TcpStream::connect(address).await else { return false };
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let Ok((mut sender, connection)) = shaken else { return false };
    let connection = tokio::spawn(connection);
    let request = Request::post(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)));
    let Ok(request) = request else { return false };
    let is_taken = match sender.send_request(request).await {
        Ok(answer) => {
            let is_taken = answer.status().is_success();
            let _ = Limited::new(answer.into_body(), CALLBACK_ANSWER_BYTES_MAX).collect().await;
            is_taken
        }
        Err(_) => false,
    };
    connection.abort();
    is_taken
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn an_address_names_its_host_and_nobody_elses() {
        assert_eq!(host_of("http://127.0.0.1:9999/done?x"), Some("127.0.0.1:9999"));
        assert_eq!(host_of("http://pc.lan"), Some("pc.lan"));
        for wrong in ["https://pc.lan/", "http://", "http://a@b:1/", "http://a b/", "pc.lan:1"] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
    }
}
