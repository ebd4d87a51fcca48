//! A server that does what a test says: answers, errs, cuts, keeps silent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A request as the server got it.
#[derive(Clone, Debug)]
pub struct Heard {
    pub path: String,
    pub key: Option<String>,
    pub body: String,
}

impl Heard {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What it does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers with a status and JSON.
    Json(u16, Value),
    /// Writes bytes as they are and hangs up.
    Bytes(&'static str),
    /// Streams values, and then says that it is done, or hangs up.
    Stream { values: Vec<Value>, is_whole: bool },
    /// Says nothing until the other hangs up.
    Silence,
}

/// See the module. Its threads end with the test's process.
pub struct Fake {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Fake {
    /// Serves on a free port; `act` says what becomes of each request.
    pub fn start(act: impl Fn(&Heard) -> Act + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let (own, act) = (Arc::clone(&heard), Arc::new(act));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (own, act) = (Arc::clone(&own), Arc::clone(&act));
                std::thread::spawn(move || serve(stream.unwrap(), &own, &*act));
            }
        });
        Fake { address, heard }
    }

    /// A server outside with the model `name`, which does `act` with everything else than
    /// questions for it.
    pub fn external(
        name: &'static str,
        act: impl Fn(&Heard) -> Act + Send + Sync + 'static,
    ) -> Fake {
        Fake::start(move |heard| match heard.path.as_str() {
            "/v1/models" => Act::Json(200, json!({"object": "list", "data": [{"id": name}]})),
            "/props" => Act::Json(404, json!({"error": {"message": "no"}})),
            _ => act(heard),
        })
    }

    /// What it was asked, questions for its models aside.
    pub fn heard(&self) -> Vec<Heard> {
        let heard = self.heard.lock().unwrap().clone();
        let probes = ["/v1/models", "/props"];
        heard.into_iter().filter(|heard| !probes.contains(&heard.path.as_str())).collect()
    }
}

/// OpenAI's answer to a completion.
pub fn completion(text: &str) -> Value {
    json!({
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    })
}

/// OpenAI's frame of a streamed completion.
pub fn piece(id: &str, text: &str, finish: Option<&str>) -> Value {
    json!({"id": id, "choices": [{"index": 0, "text": text, "finish_reason": finish}]})
}

fn serve(stream: TcpStream, heard: &Mutex<Vec<Heard>>, act: &(dyn Fn(&Heard) -> Act + Sync)) {
    let mut stream = BufReader::new(stream);
    let Some(request) = read(&mut stream) else { return };
    let act = act(&request);
    heard.lock().unwrap().push(request);
    let out = stream.get_mut();
    // Whoever asked may have left.
    let _ = match act {
        Act::Bytes(bytes) => out.write_all(bytes.as_bytes()),
        Act::Silence => out.read_to_end(&mut Vec::new()).map(drop),
        Act::Json(status, value) => {
            let body = value.to_string();
            write!(
                out,
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Act::Stream { values, is_whole } => stream_to(out, &values, is_whole),
    };
}

fn stream_to(out: &mut TcpStream, values: &[Value], is_whole: bool) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    out.write_all(head.as_bytes())?;
    for value in values {
        let frame = format!("data: {value}\n\n");
        write!(out, "{:x}\r\n{frame}\r\n", frame.len())?;
    }
    if is_whole {
        out.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")?;
    }
    Ok(())
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Heard> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut key, mut n_bytes) = (None, 0);
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => key = Some(value.trim().to_owned()),
            "content-length" => n_bytes = value.trim().parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; n_bytes];
    stream.read_exact(&mut body).ok()?;
    Some(Heard { path, key, body: String::from_utf8(body).ok()? })
}
