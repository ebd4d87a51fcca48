//! A client for the verbs that speak with a running service: one request, one connection.
//!
//! It waits on the thread that asks, which is what a verb does anyway, and reads an answer whole
//! or, for events, line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::base::limits::JOB_ANSWER_BYTES_MAX;

/// Longest silence of a service: it says something every 15 s while nothing happens.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why a service did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It is not there.
    #[error("no service answers at {address}: {source}; `jetforge serve` starts one")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It refuses.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// What it says is no HTTP of ours.
    #[error("{address} speaks otherwise: {why}")]
    Foreign {
        /// Where.
        address: String,
        /// What was heard.
        why: String,
    },
}

/// A service, by its address and the caller's key.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    key: Option<String>,
}

impl Client {
    /// The service at `host:port`, with or without `http://`.
    pub fn new(address: &str, key: Option<String>) -> Client {
        let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        Client { address: address.to_owned(), key }
    }

    fn foreign(&self, why: impl Into<String>) -> ClientError {
        ClientError::Foreign { address: self.address.clone(), why: why.into() }
    }

    fn broken(&self, source: std::io::Error) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), source }
    }

    /// Asks and reads JSON.
    ///
    /// # Errors
    /// If it is not there or refuses.
    pub fn json(&self, method: &str, path: &str) -> Result<Value, ClientError> {
        self.post(method, path, &[])
    }

    /// Sends a body and reads JSON.
    ///
    /// # Errors
    /// If it is not there or refuses.
    pub fn post(&self, method: &str, path: &str, body: &[u8]) -> Result<Value, ClientError> {
        let told = self.bytes(method, path, body)?;
        serde_json::from_slice(&told).map_err(|error| self.foreign(error.to_string()))
    }

    /// Sends a body and reads bytes.
    ///
    /// # Errors
    /// If it is not there or refuses.
    pub fn bytes(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let mut told = Vec::new();
        let mut answer = self.send(method, path, &[], body)?;
        let mut bounded = (&mut answer).take(JOB_ANSWER_BYTES_MAX as u64);
        bounded.read_to_end(&mut told).map_err(|error| self.broken(error))?;
        Ok(told)
    }

    /// Follows server-sent events: each with its id, name and data, until `hear` says enough or
    /// the service ends them. The id of the last one comes back.
    ///
    /// # Errors
    /// If it is not there or refuses.
    pub fn events(
        &self,
        path: &str,
        last_id: Option<&str>,
        mut hear: impl FnMut(&str, &Value) -> bool,
    ) -> Result<Option<String>, ClientError> {
        let headers: Vec<(&str, &str)> =
            last_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let answer = BufReader::new(self.send("GET", path, &headers, &[])?);
        let mut last = last_id.map(str::to_owned);
        let (mut id, mut event) = (None, String::new());
        for line in answer.lines() {
            // A service that went in the middle is one that can be asked again.
            let Ok(line) = line else { break };
            match line.split_once(": ") {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("event", value)) => event = value.to_owned(),
                Some(("data", value)) => {
                    let data = serde_json::from_str(value);
                    let data = data.map_err(|error| self.foreign(error.to_string()))?;
                    let goes_on = hear(&event, &data);
                    last = id.take().or(last);
                    if !goes_on {
                        break;
                    }
                }
                _ => {}
            }
        }
        Ok(last)
    }

    /// Asks for a stream and hears each of its values.
    ///
    /// # Errors
    /// If it is not there, refuses, fails on its way or breaks off.
    pub fn stream(
        &self,
        path: &str,
        value: &Value,
        mut hear: impl FnMut(&Value),
    ) -> Result<(), ClientError> {
        let answer = self.send("POST", path, &[], value.to_string().as_bytes())?;
        for line in BufReader::new(answer).lines() {
            let line = line.map_err(|error| self.broken(error))?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return Ok(());
            }
            let data: Value =
                serde_json::from_str(data).map_err(|error| self.foreign(error.to_string()))?;
            if let Some(message) = data["error"]["message"].as_str() {
                let status = data["error"]["code"].as_u64().and_then(|n| u16::try_from(n).ok());
                let (status, message) = (status.unwrap_or(500), message.to_owned());
                return Err(ClientError::Refused { status, message });
            }
            hear(&data);
        }
        Err(self.foreign("the answer broke off"))
    }

    /// Sends a request and reads the head of its answer.
    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ClientError> {
        let mut stream = TcpStream::connect(&self.address).map_err(|error| self.broken(error))?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(|error| self.broken(error))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        head += &format!("connection: close\r\ncontent-length: {}\r\n", body.len());
        if !body.is_empty() {
            head += "content-type: application/json\r\n";
        }
        if let Some(key) = &self.key {
            head += &format!("authorization: Bearer {key}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        written.map_err(|error| self.broken(error))?;
        let mut stream = BufReader::new(stream);
        let (status, is_chunked) = self.read_head(&mut stream)?;
        let mut answer = Answer { stream, is_chunked, n_left: 0, is_over: false };
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let mut body = Vec::new();
        let _ = (&mut answer).take(JOB_ANSWER_BYTES_MAX as u64).read_to_end(&mut body);
        let told: Option<Value> = serde_json::from_slice(&body).ok();
        let told = told.and_then(|value| value["error"]["message"].as_str().map(str::to_owned));
        let message = told.unwrap_or_else(|| format!("the service answers {status}"));
        Err(ClientError::Refused { status, message })
    }

    /// Status, and whether the body comes in chunks.
    fn read_head(&self, stream: &mut BufReader<TcpStream>) -> Result<(u16, bool), ClientError> {
        let mut status = None;
        let mut is_chunked = false;
        loop {
            let mut line = String::new();
            let n = stream.by_ref().take(16_384).read_line(&mut line);
            if n.map_err(|error| self.broken(error))? == 0 {
                return Err(self.foreign("it hung up"));
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            match status {
                None => {
                    let code = line.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3));
                    let code = code.and_then(|code| code.parse().ok());
                    status = Some(code.ok_or_else(|| self.foreign("that is no HTTP"))?);
                }
                Some(_) => is_chunked |= line == "transfer-encoding: chunked",
            }
        }
        Ok((status.ok_or_else(|| self.foreign("that is no HTTP"))?, is_chunked))
    }
}

/// The body of an answer.
struct Answer {
    stream: BufReader<TcpStream>,
    is_chunked: bool,
    /// Bytes of this chunk that were not read yet.
    n_left: usize,
    is_over: bool,
}

impl Answer {
    /// Reads the head of the next chunk.
    fn next_chunk(&mut self) -> std::io::Result<()> {
        let mut line = String::new();
        let mut is_empty = true;
        // The end of the chunk before leaves an empty line.
        while is_empty {
            line.clear();
            if self.stream.by_ref().take(64).read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            is_empty = line.trim().is_empty();
        }
        let n = usize::from_str_radix(line.trim(), 16);
        self.n_left = n.map_err(|_| std::io::Error::other("that is no chunk"))?;
        self.is_over = self.n_left == 0;
        Ok(())
    }
}

impl Read for Answer {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if !self.is_chunked {
            return self.stream.read(out);
        }
        if self.n_left == 0 && !self.is_over {
            self.next_chunk()?;
        }
        if self.is_over {
            return Ok(0);
        }
        let n_max = self.n_left.min(out.len());
        let n = self.stream.read(&mut out[..n_max])?;
        self.n_left -= n;
        match n {
            0 if n_max > 0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        }
    }
}
