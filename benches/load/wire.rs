//! HTTP to the service under load: kept connections, streams read frame by frame, and hanging up.
//!
//! An [`Answer`] that is read to its end gives its connection back; one that is dropped before
//! closes it, as a client does that leaves.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Longest silence of a server before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of one frame of a stream.
const FRAME_BYTES_MAX: usize = 8 << 20;

/// A server's address.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    host: String,
    path: String,
    api_key: Option<String>,
    idle: Mutex<Vec<Connection>>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // With its task the socket goes: nothing drains what nobody wants.
        self.task.abort();
    }
}

/// An answer whose body comes.
#[derive(Debug)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// Whether it says when to try again.
    pub has_retry_after: bool,
    body: Incoming,
    /// Bytes that came and were not yet asked for.
    rest: Vec<u8>,
    connection: Option<Connection>,
    client: &'a Client,
}

impl Client {
    /// Of `http://HOST:PORT[/PATH]`.
    pub fn new(url: &str, api_key: Option<String>) -> anyhow::Result<Client> {
        let bare = url.strip_prefix("http://").context("the URL has to begin with http://")?;
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        let full = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let mut found = full.to_socket_addrs().with_context(|| format!("looking for {host}"))?;
        let address = found.next().context("the URL's host has no address")?;
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Client { address, host: host.to_owned(), path, api_key, idle: Mutex::default() })
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.host, self.path)
    }

    /// A connection without a word of HTTP on it.
    pub async fn socket(&self) -> std::io::Result<TcpStream> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let socket = self.socket().await.context("connecting")?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await?;
        let task = tokio::spawn(async move {
            // Its error is told to whoever waits for the answer.
            let _ = connection.await;
        });
        Ok(Connection { sender, task })
    }

    /// Closes what is kept, so that the next request opens a connection.
    pub fn forget(&self) {
        self.idle.lock().expect("no one panics with it").clear();
    }

    /// Sends a request, on a kept connection if there is one.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer<'_>> {
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        self.send_bytes(method, path, body).await
    }

    /// [`Client::send`] with any bytes as a body.
    pub async fn send_bytes(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Answer<'_>> {
        loop {
            let kept = self.idle.lock().expect("no one panics with it").pop();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if is_kept && connection.sender.ready().await.is_err() {
                continue;
            }
            let request = self.request(method, path, body.clone())?;
            let sent = connection.sender.send_request(request);
            match tokio::time::timeout(PATIENCE, sent).await {
                Err(_) => bail!("no answer in {} s", PATIENCE.as_secs()),
                // A server may close what is kept just while it is used again.
                Ok(Err(_)) if is_kept => continue,
                Ok(Err(error)) => return Err(anyhow!(error).context("sending")),
                Ok(Ok(response)) => return Ok(self.answer(response, connection)),
            }
        }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(header::HOST, &self.host);
        if let Some(key) = &self.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        Ok(request.body(Full::new(body))?)
    }

    fn answer(&self, response: Response<Incoming>, connection: Connection) -> Answer<'_> {
        Answer {
            status: response.status().as_u16(),
            has_retry_after: response.headers().contains_key(header::RETRY_AFTER),
            body: response.into_body(),
            rest: Vec::new(),
            connection: Some(connection),
            client: self,
        }
    }

    /// The JSON at a path.
    pub async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.send("GET", path, None).await?;
        let status = answer.status;
        let body = answer.bytes().await?;
        if status != 200 {
            bail!("GET {path}: {status} {}", String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body).with_context(|| format!("GET {path}"))
    }

    /// The text at a path.
    pub async fn get_text(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.send("GET", path, None).await?;
        let status = answer.status;
        let body = answer.bytes().await?;
        if status != 200 {
            bail!("GET {path}: {status}");
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

impl Answer<'_> {
    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await;
            let Some(frame) = frame.context("the server fell silent")? else {
                self.give_back();
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.client.idle.lock().expect("no one panics with it").push(connection);
        }
    }

    /// The data of the next server-sent event; `None` at the end.
    pub async fn event(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                let event =
                    std::str::from_utf8(&event[..end]).context("a frame that is no text")?;
                // Comments keep a connection alive and say nothing.
                if let Some(data) = event.strip_prefix("data: ") {
                    return Ok(Some(data.to_owned()));
                }
                continue;
            }
            if self.rest.len() > FRAME_BYTES_MAX {
                bail!("a frame without an end");
            }
            match self.chunk().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None if self.rest.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => bail!("the stream broke off within a frame"),
            }
        }
    }

    /// The whole body.
    pub async fn bytes(mut self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
