//! Any text in a stream of server-sent events: the frames are whole, each is JSON on one line, and
//! together they say what the whole answer says.
//!
//! The input is what the scripted model says, two bytes to a token.

#![no_main]

use std::sync::{Mutex, OnceLock, PoisonError};

use jetforge_fuzz::service::Service;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Longer answers only repeat what short ones show.
const TOKENS_MAX: usize = 64;

static SAID: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static SERVICE: OnceLock<Service> = OnceLock::new();

fn said() -> std::sync::MutexGuard<'static, Vec<u32>> {
    SAID.lock().unwrap_or_else(PoisonError::into_inner)
}

fuzz_target!(|input: &[u8]| {
    let service = SERVICE.get_or_init(|| {
        Service::new(Box::new(|history, end| {
            // The prompt is one token.
            said().get(history.len() - 1).copied().unwrap_or(end)
        }))
    });
    let tokens = input.chunks_exact(2).take(TOKENS_MAX);
    let token = |pair: &[u8]| u32::from(u16::from_le_bytes([pair[0], pair[1]])) % service.n_vocab;
    *said() = tokens.map(token).collect();
    let ask = |stream: bool| {
        let body = json!({
            "prompt": [7], "n_predict": TOKENS_MAX, "stream": stream, "temperature": 0,
            "cache_prompt": false, "stop": ["\n\n", "data:"],
        });
        let (status, text) = service.post("/completion", body.to_string().as_bytes());
        assert_eq!(status, 200, "{text}");
        text
    };
    let whole: Value = serde_json::from_str(&ask(false)).expect("an answer is JSON");
    let stream = ask(true);
    assert!(stream.ends_with("\n\n"));
    let mut content = String::new();
    let mut n_stop = 0;
    for frame in stream.split_terminator("\n\n").filter(|frame| *frame != ":") {
        let line = frame.strip_prefix("data: ").expect("a frame has data");
        assert!(!line.contains(['\n', '\r']), "a frame is one line");
        let chunk: Value = serde_json::from_str(line).expect("a frame is JSON");
        content += chunk["content"].as_str().expect("a chunk has text");
        n_stop += usize::from(chunk["stop"] == true);
    }
    if cfg!(feature = "canary") {
        assert!(!content.contains('@'), "canary");
    }
    assert_eq!(n_stop, 1, "one chunk is the last");
    assert_eq!(Some(content.as_str()), whole["content"].as_str());
});
