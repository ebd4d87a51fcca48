//! One request to a backend: connect, ask, get the head of the answer. Every wait has a bound.
//!
//! A connection serves one request: a backend that vanished while nobody talked to it would
//! otherwise cost the next request its first try, and on a LAN a connection takes less than a
//! token. Whoever drops the answer's body ends the connection, and with it the generation.

use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::backend::Backend;
use super::health::Failure;
use super::target::Target;
use crate::base::limits::{HTTP_BUFFER_BYTES_MAX, HTTP_HEADERS_MAX};
use crate::tls::{TlsError, Trust};

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct DialError {
    /// Whether the request may have been read by the backend.
    pub was_sent: bool,
    pub failure: Failure,
    pub why: String,
}

/// What is asked.
pub(super) struct Call<'a> {
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub key: Option<&'a str>,
    /// Whom TLS trusts there, where that is not whom the system trusts.
    pub trust: Option<&'a Trust>,
}

impl<'a> Call<'a> {
    /// A question to a backend without a body.
    pub fn get(path: &'a str, backend: &'a Backend) -> Call<'a> {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let (key, trust) = (backend.key.as_deref(), backend.trust.as_ref());
        Call { method: Method::GET, path, headers, body, key, trust }
    }
}

/// Makes connections.
pub(super) struct Dialer {
    system: Trust,
    connect: Duration,
}

impl Dialer {
    /// A dialer that trusts the system's certificate authorities.
    pub fn new(connect: Duration) -> Dialer {
        let system = Trust::system(None).expect("without a file of authorities none can fail");
        Dialer { system, connect }
    }

    /// Asks, and waits at most `wait` for the head of the answer.
    pub async fn send(
        &self,
        target: &Target,
        call: Call<'_>,
        wait: Duration,
    ) -> Result<Response<Body>, DialError> {
        let start = Instant::now();
        let trust = call.trust.unwrap_or(&self.system);
        let request = request(target, call)?;
        let not_sent = |failure, why| DialError { was_sent: false, failure, why };
        let connect = TcpStream::connect((target.host.as_str(), target.port));
        let stream = match tokio::time::timeout(self.connect.min(wait), connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(not_sent(Failure::Gone, error.to_string())),
            Err(_) => return Err(not_sent(Failure::Gone, "no connection in time".to_owned())),
        };
        let _ = stream.set_nodelay(true);
        let left = || wait.saturating_sub(start.elapsed());
        if !target.is_https {
            return exchange(stream, request, left()).await;
        }
        let secured = trust.connect(&target.host, stream);
        match tokio::time::timeout(self.connect.min(left()), secured).await {
            Ok(Ok(stream)) => exchange(stream, request, left()).await,
            Ok(Err(error @ (TlsError::Handshake(_) | TlsError::NotTls))) => {
                Err(not_sent(Failure::Gone, error.to_string()))
            }
            // Nothing is said to whom we do not trust, and that does not pass by itself.
            Ok(Err(error)) => Err(not_sent(Failure::Denied, error.to_string())),
            Err(_) => Err(not_sent(Failure::Gone, "no TLS in time".to_owned())),
        }
    }

    /// Asks for a small answer and reads it whole: its status and bytes.
    pub async fn whole(
        &self,
        target: &Target,
        call: Call<'_>,
        wait: Duration,
        n_bytes_max: usize,
    ) -> Result<(u16, Bytes), DialError> {
        let asked = async {
            let answer = self.send(target, call, wait).await?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), n_bytes_max).collect().await;
            let broken = |error: Box<dyn std::error::Error + Send + Sync>| DialError {
                was_sent: true,
                failure: Failure::Wrong,
                why: error.to_string(),
            };
            Ok((status, body.map_err(broken)?.to_bytes()))
        };
        let late = || DialError {
            was_sent: true,
            failure: Failure::Slow,
            why: "no answer in time".into(),
        };
        tokio::time::timeout(wait, asked).await.map_err(|_| late())?
    }
}

/// The head and body as they go over the wire.
fn request(target: &Target, call: Call<'_>) -> Result<Request<Full<Bytes>>, DialError> {
    let build = || {
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", target.prefix, call.path))
            .body(Full::new(call.body))
            .map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        *headers = call.headers;
        let authority = HeaderValue::from_str(&target.authority());
        headers.insert(header::HOST, authority.map_err(|error| error.to_string())?);
        let agent = concat!("jetforge-hub/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(key) = call.key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut value = value.map_err(|_| "the key is no text for a header".to_owned())?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    };
    build().map_err(|why| DialError { was_sent: false, failure: Failure::Denied, why })
}

async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    wait: Duration,
) -> Result<Response<Body>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |failure, why| DialError { was_sent: true, failure, why };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .max_headers(HTTP_HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| lost(Failure::Gone, describe(&error)))?;
    // It ends with the body; its error shows there as well.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    match tokio::time::timeout(wait, sender.send_request(request)).await {
        Ok(Ok(answer)) => Ok(answer.map(Body::new)),
        Ok(Err(error)) if error.is_parse() => Err(lost(Failure::Wrong, describe(&error))),
        Ok(Err(error)) => Err(lost(Failure::Gone, describe(&error))),
        Err(_) => Err(lost(Failure::Slow, "no answer in time".to_owned())),
    }
}

/// An error with its causes, which hold what really happened.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
