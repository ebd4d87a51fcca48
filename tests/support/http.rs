//! HTTP as bytes: what a test writes is what goes over the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for anything; a test that gets there has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `is_so`, and panics with `what` when it never is.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The envelope's type, if it is one.
    pub fn error_type_if_any(&self) -> Option<String> {
        (self.status >= 400).then(|| self.error_type())
    }

    /// The envelope's type, after a look at its code.
    pub fn error_type(&self) -> String {
        let error = &self.json()["error"];
        assert_eq!(error["code"], self.status, "{error}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        error["type"].as_str().unwrap().to_owned()
    }
}

/// A connection.
pub struct Wire {
    stream: BufReader<TcpStream>,
}

impl Wire {
    pub fn open(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire { stream: BufReader::new(stream) }
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // The peer may have hung up on us already; what it said is still there to be read.
        let _ = self.stream.get_mut().write_all(bytes.as_ref());
    }

    /// The next answer; `None` when the peer has hung up.
    pub fn read(&mut self) -> Option<Answer> {
        let (status, headers) = self.read_head()?;
        let mut answer = Answer { status, headers, body: Vec::new() };
        match (answer.header("content-length"), answer.header("transfer-encoding")) {
            (Some(n), _) => {
                answer.body = vec![0; n.parse().unwrap()];
                self.stream.read_exact(&mut answer.body).unwrap();
            }
            (None, Some("chunked")) => {
                while let Some(chunk) = self.read_chunk() {
                    answer.body.extend(chunk);
                }
            }
            _ => {}
        }
        Some(answer)
    }

    /// Status and header fields of the next answer.
    pub fn read_head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let line = self.read_line()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some((status, headers))
    }

    /// The next piece of a body in chunks; `None` at its end, or when the peer has hung up.
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let n = usize::from_str_radix(&self.read_line()?, 16).ok()?;
        let mut chunk = vec![0; n + 2];
        self.stream.read_exact(&mut chunk).ok()?;
        chunk.truncate(n);
        (n > 0).then_some(chunk)
    }

    /// Whether an answer begins.
    pub fn read_chunk_after_head(&mut self) -> bool {
        self.read_head().is_some_and(|(status, _)| status == 200) && self.read_chunk().is_some()
    }

    /// Whether the peer has nothing more to say.
    pub fn is_closed(&mut self) -> bool {
        !matches!(self.stream.read(&mut [0]), Ok(1))
    }

    fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        let n = self.stream.read_line(&mut line).ok()?;
        (n > 0).then(|| line.trim_end().to_owned())
    }
}

/// One request as text, with the fields that every request has.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += "host: localhost\r\n";
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += "content-type: application/json\r\n";
        text += &format!("content-length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

/// Sends one request on a connection of its own.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut wire = Wire::open(address);
    wire.write(request(method, path, headers, body));
    wire.read().expect("the service answers")
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, &[], "")
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    send(address, "POST", path, &[], &body.to_string())
}
