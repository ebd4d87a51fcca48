//! One GET over HTTP/1.1, with or without TLS: connect, ask, follow redirects, hand out the body.
//!
//! Every wait has the same bound, the stall timeout: resolving, connecting, the handshake, the
//! answer's head and each piece of the body. Redirects are counted and never leave https.
//! Connections are not kept: a download is one answer, and its redirects lead to other hosts.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::LibraryError;
use super::url;
use crate::base::limits::PULL_REDIRECTS_MAX;
use crate::tls::{TlsError, Trust};

/// Why one request did not work.
#[derive(Debug)]
pub enum HttpError {
    /// Trying again will not help.
    Fatal(LibraryError),
    /// Trying again may help.
    Temporary {
        /// What happened.
        reason: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
}

impl HttpError {
    pub(super) fn temporary(reason: impl Into<String>) -> HttpError {
        HttpError::Temporary { reason: reason.into(), retry_after: None }
    }
}

impl From<LibraryError> for HttpError {
    fn from(error: LibraryError) -> HttpError {
        HttpError::Fatal(error)
    }
}

/// What is asked of the server beside the address.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// First byte wanted; 0 asks for the whole file.
    pub from: u64,
    /// The version that the range must belong to.
    pub if_range: Option<String>,
}

/// An HTTP client with its trusted certificates.
pub struct Client {
    trust: Trust,
    stall: Duration,
}

/// An answer whose body is read piece by piece.
pub struct Answer {
    /// Status: 200, 206 or 416.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
    stall: Duration,
}

impl Client {
    /// A client that trusts the system's certificate authorities and those of `ca_file` (PEM).
    ///
    /// # Errors
    /// When no certificate can be read.
    pub fn new(ca_file: Option<&Path>, stall: Duration) -> Result<Client, LibraryError> {
        let failed = |error: TlsError| LibraryError::Certificates { message: error.to_string() };
        Ok(Client { trust: Trust::system(ca_file).map_err(failed)?, stall })
    }

    /// Asks for a file, through redirects. `on_host` hears of each host that is asked.
    ///
    /// # Errors
    /// Fatal for refusals, bad redirects and untrusted servers; temporary for the network, for
    /// 408, 425, 429 and for 5xx.
    pub async fn get(
        &self,
        start: &Uri,
        ask: &Ask,
        on_host: &mut dyn FnMut(&str),
    ) -> Result<Answer, HttpError> {
        let mut uri = start.clone();
        for _ in 0..=PULL_REDIRECTS_MAX {
            let (host, _) = url::host_and_port(&uri);
            on_host(&host);
            let response = self.request(&uri, ask).await?;
            let status = response.status();
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                uri = redirect_target(&uri, response.headers())?;
                continue;
            }
            if !matches!(status.as_u16(), 200 | 206 | 416) {
                return Err(refused(&uri, status, response.headers()));
            }
            let (parts, body) = response.into_parts();
            return Ok(Answer { status, headers: parts.headers, body, stall: self.stall });
        }
        Err(HttpError::Fatal(LibraryError::Redirect {
            from: start.to_string(),
            to: uri.to_string(),
            reason: "there are too many of them",
        }))
    }

    async fn request(&self, uri: &Uri, ask: &Ask) -> Result<Response<Incoming>, HttpError> {
        let (host, port) = url::host_and_port(uri);
        let connect = TcpStream::connect((host.as_str(), port));
        let stream = self
            .bounded("connecting", connect)
            .await?
            .map_err(|error| HttpError::temporary(format!("cannot reach {host}: {error}")))?;
        if !url::is_https(uri) {
            return self.exchange(stream, uri, ask).await;
        }
        let stream = self
            .bounded("the TLS handshake", self.trust.connect(&host, stream))
            .await?
            .map_err(|error| tls_error(uri, &host, error))?;
        self.exchange(stream, uri, ask).await
    }

    async fn exchange<S>(
        &self,
        stream: S,
        uri: &Uri,
        ask: &Ask,
    ) -> Result<Response<Incoming>, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| HttpError::temporary(describe(&error));
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) =
            self.bounded("the connection", handshake).await?.map_err(broken)?;
        // The connection ends with the body; its error shows there as well.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = build_request(uri, ask)?;
        self.bounded("the answer", sender.send_request(request)).await?.map_err(broken)
    }

    async fn bounded<F: Future>(&self, what: &str, future: F) -> Result<F::Output, HttpError> {
        tokio::time::timeout(self.stall, future)
            .await
            .map_err(|_| HttpError::temporary(format!("{what} took longer than {:?}", self.stall)))
    }
}

impl Answer {
    /// The next piece of the body, `None` at its end.
    ///
    /// # Errors
    /// Temporary when the connection breaks or stalls.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.body.frame())
                .await
                .map_err(|_| HttpError::temporary(format!("no data for {:?}", self.stall)))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(HttpError::temporary(describe(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }

    /// A header as text.
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

fn build_request(uri: &Uri, ask: &Ask) -> Result<Request<Empty<Bytes>>, HttpError> {
    let authority = uri.authority().map_or("", |a| a.as_str());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut builder = Request::get(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("jetforge/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::ACCEPT_ENCODING, "identity");
    if ask.from > 0 {
        builder = builder.header(header::RANGE, format!("bytes={}-", ask.from));
        if let Some(etag) = &ask.if_range {
            let value = HeaderValue::from_str(etag);
            builder = builder.header(
                header::IF_RANGE,
                value.map_err(|_| HttpError::temporary("the ETag cannot be sent back"))?,
            );
        }
    }
    builder.body(Empty::new()).map_err(|error| {
        HttpError::Fatal(LibraryError::BadUrl { url: uri.to_string(), reason: error.to_string() })
    })
}

fn redirect_target(uri: &Uri, headers: &HeaderMap) -> Result<Uri, HttpError> {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| LibraryError::Redirect {
        from: uri.to_string(),
        to: String::new(),
        reason: "it names no place",
    })?;
    Ok(url::redirect(uri, location)?)
}

fn refused(uri: &Uri, status: StatusCode, headers: &HeaderMap) -> HttpError {
    if matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error() {
        let seconds = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        return HttpError::Temporary {
            reason: format!("the server answers {status}"),
            retry_after: seconds.map(Duration::from_secs),
        };
    }
    HttpError::Fatal(LibraryError::Refused { url: uri.to_string(), status: status.to_string() })
}

/// A certificate that is not trusted stays so; anything else may pass.
fn tls_error(uri: &Uri, host: &str, error: TlsError) -> HttpError {
    let host = host.to_owned();
    match error {
        TlsError::Untrusted { why: reason } => {
            HttpError::Fatal(LibraryError::Untrusted { host, reason })
        }
        TlsError::Name { .. } => HttpError::Fatal(LibraryError::BadUrl {
            url: uri.to_string(),
            reason: "its host is no name that a certificate can prove".to_owned(),
        }),
        error => HttpError::temporary(format!("{host}: {error}")),
    }
}

/// A hyper error with its causes, which hold what really happened.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
