//! The accept loop: connections from the kernel to the router, within limits, until told to stop.
//!
//! ```text
//! accept --> below the cap: a task that speaks HTTP/1.1, within TLS where there is an identity
//!        --> above it: 503 and good-bye, for a bounded number; the rest is closed
//! stop   --> no more connections; each finishes its request; after the grace they are cut
//! ```
//!
//! A header that does not come in time ends the connection, and so does a reader that takes no
//! byte of its answer for a while: see [`Patient`]. hyper buffers a bounded part of an answer, so
//! a slow reader costs its buffer and nothing else.
//!
//! Who speaks plain HTTP to a port of TLS is told so, in plain HTTP. Above the cap a port of TLS
//! only closes: a refusal within TLS would cost more than what is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::ApiError;
use super::patient::Patient;
use crate::base::limits::{
    HTTP_BUFFER_BYTES_MAX, HTTP_CONNECTIONS_MAX, HTTP_FAREWELL_MS, HTTP_HEADER_READ_MS,
    HTTP_HEADERS_MAX, HTTP_REFUSAL_MS, HTTP_REFUSALS_MAX, HTTP_SEND_BUFFER_BYTES,
    HTTP_WRITE_STALL_MS,
};
use crate::tls::Identity;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after the system refused a connection, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The first byte of every TLS handshake, and of no HTTP request.
const TLS_HANDSHAKE: u8 = 0x16;

/// How connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that are served at once.
    pub n_connection_max: usize,
    /// Time in which a header has to come, and that a kept connection may be idle.
    pub header_read: Duration,
    /// Time without a byte taken after which a reader counts as gone.
    pub write_stall: Duration,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            n_connection_max: HTTP_CONNECTIONS_MAX,
            header_read: Duration::from_millis(HTTP_HEADER_READ_MS),
            write_stall: Duration::from_millis(HTTP_WRITE_STALL_MS),
        }
    }
}

/// A bound address, before anything is served.
pub struct Listener {
    tcps: Vec<TcpListener>,
    address: SocketAddr,
    options: ListenOptions,
    identity: Option<Identity>,
}

impl Listener {
    /// Binds an address; port 0 takes a free one.
    ///
    /// # Errors
    /// If the system does not give the address.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(address: SocketAddr, options: ListenOptions) -> std::io::Result<Listener> {
        let tcp = bound(address)?;
        Ok(Listener { address: tcp.local_addr()?, tcps: vec![tcp], options, identity: None })
    }

    /// Binds a further port of the same address, and returns it; 0 takes a free one. Its
    /// connections are served as those of the first, within the same limits.
    ///
    /// # Errors
    /// If the system does not give it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn also(&mut self, port: u16) -> std::io::Result<u16> {
        let tcp = bound(SocketAddr::new(self.address.ip(), port))?;
        let port = tcp.local_addr()?.port();
        self.tcps.push(tcp);
        Ok(port)
    }

    /// Speaks TLS as `identity`, if there is one.
    pub fn secured(self, identity: Option<Identity>) -> Listener {
        Listener { identity, ..self }
    }

    /// The address as a URL, with its real port.
    pub fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The first address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is done, then lets what is in flight finish for at most `grace`.
    pub async fn serve(self, app: Router, stop: impl Future<Output = ()>, grace: Duration) {
        let Listener { tcps, options, identity, .. } = self;
        let places = Arc::new(Semaphore::new(options.n_connection_max));
        let refusals = Arc::new(Semaphore::new(HTTP_REFUSALS_MAX));
        let (stopping, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let stream = tokio::select! {
                () = &mut stop => break,
                accepted = accept(&tcps) => match accepted {
                    Ok(stream) => stream,
                    Err(_) => {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            while connections.try_join_next().is_some() {}
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                let connection = Connection { app: app.clone(), options, stopped: stopped.clone() };
                let identity = identity.clone();
                connections.spawn(async move {
                    connection.attend(stream, identity).await;
                    drop(place);
                });
            } else if identity.is_some() {
                drop(stream);
            } else if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
                connections.spawn(async move {
                    refuse(stream, &busy()).await;
                    drop(refusal);
                });
            }
        }
        drop(tcps);
        stopping.send_replace(true);
        let finish = async { while connections.join_next().await.is_some() {} };
        let farewell = Duration::from_millis(HTTP_FAREWELL_MS);
        let _ = tokio::time::timeout(grace + farewell, finish).await;
        connections.shutdown().await;
    }
}

fn bound(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Inherited by every connection.
    socket.set_send_buffer_size(HTTP_SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The next connection to any of the ports.
async fn accept(tcps: &[TcpListener]) -> std::io::Result<TcpStream> {
    std::future::poll_fn(|cx| {
        for tcp in tcps {
            if let Poll::Ready(accepted) = tcp.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, _)| stream));
            }
        }
        Poll::Pending
    })
    .await
}

/// What a connection is served with.
struct Connection {
    app: Router,
    options: ListenOptions,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    /// One connection's life, secured first where there is an identity.
    async fn attend(self, stream: TcpStream, identity: Option<Identity>) {
        // Tokens are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let Some(identity) = identity else { return self.serve(stream).await };
        let mut first = [0];
        let secured = async {
            match stream.peek(&mut first).await {
                Ok(1) if first[0] != TLS_HANDSHAKE => Err(Some(stream)),
                Ok(1) => identity.accept(stream).await.map_err(|_| None),
                _ => Err(None),
            }
        };
        match tokio::time::timeout(self.options.header_read, secured).await {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(Some(stream))) => refuse(stream, &plain()).await,
            // It left, stalled, or does not take who we are.
            Ok(Err(None)) | Err(_) => {}
        }
    }

    /// Requests one after the other, until either side has had enough.
    async fn serve<S>(mut self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Patient::new(stream, self.options.write_stall));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.header_read)
            .max_buf_size(HTTP_BUFFER_BYTES_MAX)
            .max_headers(HTTP_HEADERS_MAX)
            .serve_connection(io, TowerToHyperService::new(self.app))
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        // What goes wrong from here on is the peer's: it left, stalled or spoke no HTTP.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = self.stopped.wait_for(|is| *is) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

fn busy() -> ApiError {
    let busy = "too many connections; try again in a second";
    ApiError::unavailable(busy, Duration::from_secs(1))
}

fn plain() -> ApiError {
    ApiError::invalid(
        "this port speaks TLS: use https; machines that were paired before are paired anew \
         (`jetforge pair` here, `jetforge setup` there)",
    )
}

/// Says why there is no service, and reads what was on its way so that the answer is not lost.
async fn refuse(mut stream: TcpStream, error: &ApiError) {
    let body = error.to_json().to_string();
    let retry = error.retry_after.map(|after| format!("retry-after: {}\r\n", after.as_secs()));
    let answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         {}connection: close\r\n\r\n{body}",
        error.status,
        body.len(),
        retry.unwrap_or_default(),
    );
    let farewell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_millis(HTTP_REFUSAL_MS), farewell).await;
}
