//! The accept loop: connections from the kernel to the router, within limits, until told to stop.
//!
//! ```text
//! accept --> below the cap: a task that speaks HTTP/1.1
//!        --> above it: 503 and good-bye, for a bounded number; the rest is closed
//! stop   --> no more connections; each finishes its request; after the grace they are cut
//! ```
//!
//! A header that does not come in time ends the connection, and so does a reader that takes no
//! byte of its answer for a while: see [`Patient`]. hyper buffers a bounded part of an answer, so
//! a slow reader costs its buffer and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after the system refused a connection, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
        Ok(Listener { address: tcp.local_addr()?, tcps: vec![tcp], options })
    }

    /// Binds a further port of the same address, and returns it; 0 takes a free one. Its connections
    /// are served as those of the first, within the same limits.
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

    /// The first address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is done, then lets what is in flight finish for at most `grace`.
    pub async fn serve(self, app: Router, stop: impl Future<Output = ()>, grace: Duration) {
        let Listener { tcps, options, .. } = self;
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
                let connection = serve_connection(stream, app.clone(), options, stopped.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            } else if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
                connections.spawn(async move {
                    refuse(stream).await;
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

/// One connection's life: requests one after the other, until either side has had enough.
async fn serve_connection(
    stream: TcpStream,
    app: Router,
    options: ListenOptions,
    mut stopped: watch::Receiver<bool>,
) {
    // Tokens are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, options.write_stall));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_read)
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .max_headers(HTTP_HEADERS_MAX)
        .serve_connection(io, TowerToHyperService::new(app))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // What goes wrong from here on is the peer's: it left, stalled or spoke no HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Says that there is no place, and reads what was on its way so that the answer is not lost.
async fn refuse(mut stream: TcpStream) {
    let busy = "too many connections; try again in a second";
    let body = ApiError::unavailable(busy, Duration::from_secs(1)).to_json().to_string();
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
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
