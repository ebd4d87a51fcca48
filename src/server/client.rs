//! A client for the verbs that speak with a running service: one request, one connection.
//!
//! It waits on the thread that asks, which is what a verb does anyway, and reads an answer whole
//! or, for events, line by line. `https` trusts the system's authorities unless it is told whom.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::base::limits::JOB_ANSWER_BYTES_MAX;
use crate::tls::{Fingerprint, TlsError, Trust};

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
    /// It is not who it should be, or speaks no TLS where it should.
    #[error("{address}: {source}")]
    Insecure {
        /// Where.
        address: String,
        /// What is wrong.
        source: TlsError,
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
    /// Whom it trusts, where it speaks TLS.
    trust: Option<Trust>,
}

impl Client {
    /// The service at `host:port`, with or without `http://` or `https://`. `trust` says whom TLS
    /// trusts, and that it is spoken.
    ///
    /// # Errors
    /// If there is nobody to trust.
    pub fn new(
        address: &str,
        key: Option<String>,
        trust: Option<Trust>,
    ) -> Result<Client, ClientError> {
        let (address, is_https) = match address.strip_prefix("https://") {
            Some(rest) => (rest, true),
            None => (address.strip_prefix("http://").unwrap_or(address), false),
        };
        let mut client = Client { address: address.trim_end_matches('/').to_owned(), key, trust };
        if is_https && client.trust.is_none() {
            let system = Trust::system(None).map_err(|error| client.insecure(error))?;
            client.trust = Some(system);
        }
        Ok(client)
    }

    /// A service that nobody knows yet: its certificate, where it speaks TLS, is told and counts
    /// from now on. For an exchange that finds out by itself who it is.
    ///
    /// # Errors
    /// If it is not there.
    pub fn meet(address: &str) -> Result<(Client, Option<Fingerprint>), ClientError> {
        let is_https = address.starts_with("https://");
        let mut client = Client::new(address, None, Some(Trust::anyone()))?;
        if address.starts_with("http://") {
            return Ok((Client { trust: None, ..client }, None));
        }
        let stream = client.connect()?;
        let secured = Trust::anyone().connect_blocking(client.host(), stream);
        match secured {
            Ok(stream) => {
                let shown = Trust::shown_blocking(&stream);
                client.trust = shown.map(Trust::pinned);
                Ok((client, shown))
            }
            Err(TlsError::NotTls | TlsError::Handshake(_) | TlsError::Name { .. }) if !is_https => {
                Ok((Client { trust: None, ..client }, None))
            }
            Err(error) => Err(client.insecure(error)),
        }
    }

    /// By which address it sees this machine, if it is there.
    pub fn seen_at(&self) -> Option<IpAddr> {
        Some(self.connect().ok()?.local_addr().ok()?.ip())
    }

    /// `host:port`, or what stood for that.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `host:port`, with the port that is spoken with where the address names none.
    pub fn place(&self) -> String {
        match self.host().len() == self.address.len() {
            true => format!("{}:{}", self.address, self.usual_port()),
            false => self.address.clone(),
        }
    }

    fn usual_port(&self) -> u16 {
        if self.trust.is_some() { 443 } else { 80 }
    }

    fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
        host.map_or(self.address.as_str(), |(host, _)| host)
    }

    fn insecure(&self, source: TlsError) -> ClientError {
        ClientError::Insecure { address: self.address.clone(), source }
    }

    fn connect(&self) -> Result<TcpStream, ClientError> {
        let stream = match self.host().len() == self.address.len() {
            true => TcpStream::connect((self.address.trim_matches(['[', ']']), self.usual_port())),
            false => TcpStream::connect(&self.address),
        };
        let stream = stream.map_err(|error| self.broken(error))?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(|error| self.broken(error))?;
        Ok(stream)
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
        let stream = self.connect()?;
        let mut stream: Box<dyn Wire> = match &self.trust {
            None => Box::new(stream),
            Some(trust) => match trust.connect_blocking(self.host(), stream) {
                Ok(stream) => Box::new(stream),
                Err(error) => return Err(self.insecure(error)),
            },
        };
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
        let written = written.and_then(|()| stream.flush());
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
    fn read_head(&self, stream: &mut BufReader<Box<dyn Wire>>) -> Result<(u16, bool), ClientError> {
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

/// A connection, secured or not.
trait Wire: Read + Write {}

impl<S: Read + Write> Wire for S {}

/// The body of an answer.
struct Answer {
    stream: BufReader<Box<dyn Wire>>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_means_the_one_that_is_spoken_with() {
        let place = |address: &str, trust: Option<Trust>| {
            Client::new(address, None, trust).unwrap().place()
        };
        assert_eq!(place("http://nano.lan/", None), "nano.lan:80");
        assert_eq!(place("nano.lan", Some(Trust::anyone())), "nano.lan:443");
        assert_eq!(place("https://[::1]", Some(Trust::anyone())), "[::1]:443");
        assert_eq!(place("https://nano.lan:8443", Some(Trust::anyone())), "nano.lan:8443");
    }
}
