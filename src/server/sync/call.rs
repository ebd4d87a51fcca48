//! One call of a peer: a POST over HTTP/1.1, within its time and its size. A peer that was paired
//! over TLS is spoken to by the certificate that it had then, and by no other one.

use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::base::limits::{SYNC_CALL_MS, SYNC_CONNECT_MS, SYNC_MESSAGE_BYTES_MAX};
use crate::store::Peer;
use crate::sync::host_of;
use crate::tls::{Fingerprint, TlsError, Trust};

/// Why a call did not work.
#[derive(Debug)]
pub(super) enum CallError {
    /// It may work later.
    Passing(String),
    /// Somebody has to do something.
    Trouble(String),
}

/// Posts a message to a route of a peer; what it answers.
pub(super) async fn exchange(
    peer: &Peer,
    route: &'static str,
    message: Vec<u8>,
) -> Result<Vec<u8>, CallError> {
    let passing = |why: String| CallError::Passing(why);
    let Some((host, is_https)) = host_of(&peer.address) else {
        let why = format!("{:?} is no address; use http://HOST:PORT", peer.address);
        return Err(CallError::Trouble(why));
    };
    let trust = match (is_https, peer.certificate) {
        (false, _) => None,
        (true, Some(pin)) => Some(Trust::pinned(Fingerprint(pin))),
        (true, None) => {
            let why = "it speaks TLS, and its certificate is not known; pair the two again";
            return Err(CallError::Trouble(why.to_owned()));
        }
    };
    let address = address_of(host);
    let connect = TcpStream::connect(&address);
    let connect = tokio::time::timeout(Duration::from_millis(SYNC_CONNECT_MS), connect);
    let stream = match connect.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(passing(error.to_string())),
        Err(_) => return Err(passing("nobody answers".to_owned())),
    };
    let call = async {
        let Some(trust) = trust else { return post(stream, host, route, &peer.key, message).await };
        let name = address.rsplit_once(':').map_or(host, |(name, _)| name);
        let stream = trust.connect(name, stream).await.map_err(|error| match error {
            TlsError::Handshake(_) => CallError::Passing(error.to_string()),
            error => CallError::Trouble(error.to_string()),
        })?;
        post(stream, host, route, &peer.key, message).await
    };
    match tokio::time::timeout(Duration::from_millis(SYNC_CALL_MS), call).await {
        Ok(result) => result,
        Err(_) => Err(passing(format!("no answer within {} s", SYNC_CALL_MS / 1000))),
    }
}

fn address_of(host: &str) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { host.to_owned() } else { format!("{host}:80") }
}

async fn post<S>(
    stream: S,
    host: &str,
    route: &str,
    key: &str,
    message: Vec<u8>,
) -> Result<Vec<u8>, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| CallError::Passing(error.to_string());
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(broken)?;
    let connection = Ends(tokio::spawn(connection));
    let request = Request::post(route)
        .header(header::HOST, host)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(message)));
    let request = request.map_err(|error| CallError::Trouble(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), SYNC_MESSAGE_BYTES_MAX).collect().await;
    let body = body.map_err(|error| CallError::Passing(error.to_string()))?.to_bytes();
    drop(connection);
    if status == StatusCode::OK {
        return Ok(body.to_vec());
    }
    let told: Option<Value> = serde_json::from_slice(&body).ok();
    let told = told.and_then(|value| value["error"]["message"].as_str().map(str::to_owned));
    let why = told.unwrap_or_else(|| format!("it answers {status}"));
    // What the peer is at odds with does not pass by itself.
    let is_trouble = status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
    Err(if is_trouble { CallError::Trouble(why) } else { CallError::Passing(why) })
}

/// Ends a connection's task, however its caller ends.
struct Ends(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_means_that_of_http() {
        assert_eq!(address_of("pc.lan"), "pc.lan:80");
        assert_eq!(address_of("[::1]:99"), "[::1]:99");
    }
}
