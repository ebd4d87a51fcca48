//! The client's end of a WebSocket, as bytes: what a test writes is what goes over the wire.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::http::PATIENCE;

/// An open WebSocket.
pub struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Opens one; the status and the head of the answer where that is refused.
    pub fn open(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Socket, (u16, String)> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: AAECAwQFBgcICQoLDA0ODw==\r\n"
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        let said = String::from_utf8(said).unwrap();
        let status = said.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 101 { Ok(Socket { stream }) } else { Err((status, said)) }
    }

    /// Sends a text.
    pub fn send(&mut self, text: &str) {
        self.send_frame(0x81, text.as_bytes());
    }

    /// Sends a frame whose first byte is `first`, masked with zeros.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            n @ 0..126 => frame.push(0x80 | n as u8),
            n @ 126..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend((n as u16).to_be_bytes());
            }
            n => {
                frame.push(0x80 | 127);
                frame.extend((n as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        // The peer may have hung up on us already; what it said is still there to be read.
        let _ = self.stream.write_all(&frame);
    }

    /// The next text; `None` when the peer has closed.
    pub fn read(&mut self) -> Option<String> {
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head).ok()?;
            let n_more = match head[1] & 0x7f {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let mut more = [0; 8];
            self.stream.read_exact(&mut more[8 - n_more..]).ok()?;
            let n = if n_more == 0 { u64::from(head[1] & 0x7f) } else { u64::from_be_bytes(more) };
            let mut payload = vec![0; n as usize];
            self.stream.read_exact(&mut payload).ok()?;
            match head[0] & 0xf {
                1 => return Some(String::from_utf8(payload).unwrap()),
                8 => return None,
                _ => {} // a ping, which may go unanswered for as long as a test takes
            }
        }
    }

    /// The next text as JSON.
    pub fn json(&mut self) -> Value {
        serde_json::from_str(&self.read().expect("a message")).unwrap()
    }
}
