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
use tokio::task::JoinSet;

use super::door::Door;
use crate::base::limits::{
    CALLBACK_ANSWER_BYTES_MAX, CALLBACK_MS, CALLBACK_TRIES_MAX, CALLBACKS_MAX,
};
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

/// Sends callbacks as long as the service runs, to each host apart: one that is dead delays none.
pub(super) async fn send(door: Door) {
    let allowed = door.jobs().config().callbacks.clone();
    if let Err(error) = give_up(&door, &allowed).await {
        tracing::error!(error = error.message, "callbacks are not given up");
    }
    let hosts = allowed.into_iter().map(|host| send_to(door.clone(), host));
    let mut hosts: JoinSet<()> = hosts.collect();
    while hosts.join_next().await.is_some() {}
}

/// Gives up callbacks to hosts from which the owner has taken the permission back.
async fn give_up(door: &Door, allowed: &[String]) -> Result<(), ApiError> {
    let mut due = door.ask(|jobs| jobs.due_callbacks(None, i64::MAX)).await?;
    due.retain(|row| !host_of(&row.url).is_some_and(|host| allowed.iter().any(|a| a == host)));
    door.ask(move |jobs| due.iter().try_for_each(|row| jobs.settle_callback(row, None, false)))
        .await
}

async fn send_to(door: Door, host: String) {
    let mut changes = door.changes();
    loop {
        changes.mark_unchanged();
        let wanted = host.clone();
        let due = door.ask(move |jobs| jobs.due_callbacks(Some(&wanted), CALLBACKS_MAX)).await;
        for row in due.unwrap_or_default().into_iter().filter(|row| row.due_ms <= now_ms()) {
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
    if job.row.revision != row.revision {
        // It was asked for again, and tells of its next end.
        return Ok(());
    }
    let body = door.view_with_answer(job).await?.to_string();
    let tried = tokio::time::timeout(Duration::from_millis(CALLBACK_MS), post(&row.url, body));
    let ok = tried.await.unwrap_or(false);
    let pause = PAUSE_MS << row.n_try.clamp(0, 16);
    let again = (!ok && row.n_try + 1 < CALLBACK_TRIES_MAX).then(|| now_ms() + pause);
    if !ok {
        tracing::warn!(job = row.id, again = again.is_some(), "a callback did not arrive");
    }
    door.ask(move |jobs| jobs.settle_callback(&row, again, ok)).await
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
