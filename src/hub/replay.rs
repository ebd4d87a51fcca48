//! A stream that broke off, taken up from another backend.
//!
//! ```text
//! heard     "def add(a, b" |  cut
//! replay    "def add(a, b):\n    return a + b"     the same request, from its start
//!            ^^^^^^^^^^^^ compared and left out
//! client                  "):\n    return a + b"
//! ```
//!
//! The other backend writes the text from the start, and what the client has heard is compared
//! with it byte for byte and left out. So the whole is always a text that one model wrote under
//! one request: appending the part to the prompt instead would join two that nobody wrote, for the
//! tokens at the seam and the place of a chat's template would be guesses. Where the texts differ,
//! the client is told that it failed. The price is the time to write the part once more.
//!
//! Texts are followed, and the numbers of their tokens where llama.cpp's frames have them. A stream
//! that has said anything else that grows (calls of tools, probabilities) cannot be compared and is
//! not taken up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use crate::base::limits::HUB_TRANSCRIPT_BYTES_MAX;
use crate::server::frames::has_error;

/// Which text of an answer: the choice's index and the field's name.
type Channel = (u64, &'static str);

/// Fields that grow and are no text.
const OTHER: [&str; 5] =
    ["tool_calls", "function_call", "logprobs", "completion_probabilities", "refusal"];

/// What a client has heard.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// Answers side by side that have to end.
    n_choice: usize,
    texts: BTreeMap<Channel, String>,
    tokens: BTreeMap<u64, VecDeque<Value>>,
    finished: BTreeSet<u64>,
    /// Fields that name the answer in each of its frames.
    names: BTreeMap<&'static str, Value>,
    has_usage: bool,
    n_bytes: usize,
    has_any: bool,
    is_closed: bool,
    is_opaque: bool,
}

/// The other text is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another backend writes another text")]
pub struct Diverged;

impl Transcript {
    /// Of a stream with so many answers side by side that has said nothing yet.
    pub fn new(n_choice: usize) -> Transcript {
        Transcript {
            n_choice,
            texts: BTreeMap::new(),
            tokens: BTreeMap::new(),
            finished: BTreeSet::new(),
            names: BTreeMap::new(),
            has_usage: false,
            n_bytes: 0,
            has_any: false,
            is_closed: false,
            is_opaque: false,
        }
    }

    /// Notes a value that the client gets.
    pub fn hear(&mut self, value: &Value) {
        self.has_any = true;
        self.is_opaque |= is_opaque(value);
        for (channel, text) in texts(value) {
            self.n_bytes += text.len();
            self.texts.entry(channel).or_default().push_str(text);
        }
        if let Some(tokens) = value.get("tokens").and_then(Value::as_array) {
            self.n_bytes += tokens.len() * size_of::<Value>();
            self.tokens.entry(index(value)).or_default().extend(tokens.iter().cloned());
        }
        self.finished.extend(finished(value));
        // llama.cpp's streams end with the last of their answers, Ollama's have one.
        let is_last = value["stop"] == true && self.is_finished();
        self.is_closed |= is_last || value["done"] == true || has_error(value);
        self.has_usage |= is_usage(value);
        for name in ["id", "created"] {
            if let Some(value) = value.get(name) {
                self.names.entry(name).or_insert_with(|| value.clone());
            }
        }
        if self.n_bytes > HUB_TRANSCRIPT_BYTES_MAX {
            self.is_opaque = true;
            self.texts.clear();
            self.tokens.clear();
        }
    }

    /// Notes OpenAI's last frame.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// Whether nothing has to follow.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether every answer has said why it ended.
    pub fn is_finished(&self) -> bool {
        self.finished.len() >= self.n_choice
    }

    /// Whether there is a text at all.
    pub fn is_empty(&self) -> bool {
        !self.has_any
    }

    /// Whether the text can be compared.
    pub fn can_replay(&self) -> bool {
        !self.is_opaque
    }

    /// Begins to compare.
    pub fn replay(&self) -> Replay {
        Replay {
            left: self.texts.clone(),
            tokens: self.tokens.clone(),
            ended: self.finished.clone(),
            finished: self.finished.clone(),
            names: self.names.clone(),
            has_usage: self.has_usage,
            has_any: self.has_any,
        }
    }
}

/// What of a text is still to be compared.
#[derive(Clone, Debug)]
pub struct Replay {
    left: BTreeMap<Channel, String>,
    tokens: BTreeMap<u64, VecDeque<Value>>,
    /// Answers whose end the client has heard: nothing can follow.
    ended: BTreeSet<u64>,
    finished: BTreeSet<u64>,
    names: BTreeMap<&'static str, Value>,
    has_usage: bool,
    has_any: bool,
}

impl Replay {
    /// What of a value the client lacks; `None` if it has heard it all.
    ///
    /// # Errors
    /// If it says something else than what the client has heard.
    pub fn pass(&mut self, mut value: Value) -> Result<Option<Value>, Diverged> {
        if has_error(&value) {
            return Err(Diverged);
        }
        let was_behind = self.is_behind();
        let mut is_new = !was_behind || !self.has_any;
        for (channel, text) in texts_mut(&mut value) {
            let is_over = self.ended.contains(&channel.0);
            let Some(left) = self.left.get_mut(&channel) else {
                if is_over && !text.is_empty() {
                    return Err(Diverged);
                }
                is_new |= !text.is_empty();
                continue;
            };
            let n = left.len().min(text.len());
            if left.as_bytes()[..n] != text.as_bytes()[..n] {
                return Err(Diverged);
            }
            // One of them ends there, so it is between two characters of both.
            left.drain(..n);
            text.drain(..n);
            if is_over && !text.is_empty() {
                return Err(Diverged);
            }
            is_new |= !text.is_empty();
            if left.is_empty() {
                self.left.remove(&channel);
            }
        }
        is_new |= self.pass_tokens(&mut value)?;
        let ends = finished(&value);
        let was_ended = !ends.is_empty() && ends.iter().all(|idx| self.ended.contains(idx));
        for idx in ends {
            if self.left.keys().any(|(own, _)| *own == idx) {
                return Err(Diverged);
            }
            is_new |= self.finished.insert(idx);
        }
        // Ends and usage are told once, and usage after all that it counts.
        let is_told = was_ended || is_usage(&value) && (self.has_usage || self.is_behind());
        if is_told || !is_new && !is_usage(&value) {
            return Ok(None);
        }
        self.has_usage |= is_usage(&value);
        for (name, own) in &self.names {
            if let Some(field) = value.get_mut(name) {
                *field = own.clone();
            }
        }
        Ok(Some(value))
    }

    /// Leaves out the tokens that the client has heard; whether others are left.
    fn pass_tokens(&mut self, value: &mut Value) -> Result<bool, Diverged> {
        let idx = index(value);
        let Some(tokens) = value.get_mut("tokens").and_then(Value::as_array_mut) else {
            return Ok(false);
        };
        if let Some(heard) = self.tokens.get_mut(&idx) {
            let n = heard.len().min(tokens.len());
            if !heard.drain(..n).eq(tokens.drain(..n)) {
                return Err(Diverged);
            }
        }
        Ok(!tokens.is_empty())
    }

    /// Whether the client has heard more than the replay has said.
    pub fn is_behind(&self) -> bool {
        !self.left.is_empty()
    }
}

/// Whether it is the frame that only tells what the whole answer took.
fn is_usage(value: &Value) -> bool {
    let is_alone = value.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
    is_alone && value.get("usage").is_some_and(|usage| !usage.is_null())
}

fn index(value: &Value) -> u64 {
    value.get("index").and_then(Value::as_u64).unwrap_or(0)
}

/// The choices of OpenAI's frames, or the frame itself.
fn parts(value: &Value) -> Vec<&Value> {
    match value.get("choices").and_then(Value::as_array) {
        Some(choices) => choices.iter().collect(),
        None => vec![value],
    }
}

fn is_opaque(value: &Value) -> bool {
    let is_said = |value: &Value, name: &str| match value.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    let says = |value: &Value| OTHER.iter().any(|name| is_said(value, name));
    parts(value).into_iter().any(|part| says(part) || part.get("delta").is_some_and(says))
}

fn finished(value: &Value) -> Vec<u64> {
    let is_over = |part: &&Value| {
        part.get("finish_reason").is_some_and(|reason| !reason.is_null()) || part["stop"] == true
    };
    parts(value).into_iter().filter(is_over).map(index).collect()
}

/// Names under which a choice, and its delta, have text.
const OF_PART: [&str; 2] = ["text", "content"];
const OF_DELTA: [&str; 2] = ["content", "reasoning_content"];

fn texts(value: &Value) -> Vec<(Channel, &str)> {
    let mut found = Vec::new();
    for part in parts(value) {
        let idx = index(part);
        let of = |value: &'_ Value, name: &str| value.get(name).and_then(Value::as_str).is_some();
        for name in OF_PART.into_iter().filter(|name| of(part, name)) {
            found.push(((idx, name), part[name].as_str().unwrap_or_default()));
        }
        let Some(delta) = part.get("delta") else { continue };
        for name in OF_DELTA.into_iter().filter(|name| of(delta, name)) {
            found.push(((idx, name), delta[name].as_str().unwrap_or_default()));
        }
    }
    found
}

fn texts_mut(value: &mut Value) -> Vec<(Channel, &mut String)> {
    let mut found = Vec::new();
    let parts: Vec<&mut Value> = match value.get("choices").is_some_and(Value::is_array) {
        true => value["choices"].as_array_mut().into_iter().flatten().collect(),
        false => vec![value],
    };
    for part in parts {
        let idx = index(part);
        let Some(fields) = part.as_object_mut() else { continue };
        for (name, value) in fields {
            match (OF_PART.iter().find(|own| *own == name), value) {
                (Some(name), Value::String(text)) => found.push(((idx, *name), text)),
                (None, Value::Object(delta)) if name == "delta" => {
                    for (name, value) in delta {
                        let own = OF_DELTA.iter().find(|own| *own == name);
                        if let (Some(name), Value::String(text)) = (own, value) {
                            found.push(((idx, *name), text));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn chat(id: &str, text: &str) -> Value {
        json!({"id": id, "choices": [{"index": 0, "delta": {"content": text},
            "finish_reason": null}]})
    }

    fn end(id: &str) -> Value {
        json!({"id": id, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    }

    fn heard(values: &[Value]) -> Transcript {
        let mut transcript = Transcript::new(1);
        values.iter().for_each(|value| transcript.hear(value));
        transcript
    }

    #[test]
    fn the_client_gets_what_it_lacks_under_the_name_it_knows() {
        let role = |id: &str| {
            json!({"id": id, "choices": [{"index": 0, "delta": {"role": "assistant",
                "content": null}, "finish_reason": null}]})
        };
        let transcript = heard(&[role("a"), chat("a", "def"), chat("a", " add")]);
        assert!(transcript.can_replay() && !transcript.is_closed());
        let mut replay = transcript.replay();
        assert_eq!(replay.pass(role("b")), Ok(None));
        assert_eq!(replay.pass(chat("b", "def a")), Ok(None));
        assert!(replay.is_behind());
        assert_eq!(replay.pass(chat("b", "dd(x)")), Ok(Some(chat("a", "(x)"))));
        assert_eq!(replay.pass(chat("b", ":")), Ok(Some(chat("a", ":"))));
        assert_eq!(replay.pass(end("b")), Ok(Some(end("a"))));
    }

    #[test]
    fn another_text_is_a_failure_wherever_it_differs() {
        let transcript = heard(&[chat("a", "def add")]);
        assert_eq!(transcript.replay().pass(chat("b", "dex")), Err(Diverged));
        let mut shorter = transcript.replay();
        assert_eq!(shorter.pass(chat("b", "def")), Ok(None));
        assert_eq!(shorter.pass(end("b")), Err(Diverged), "it ends before the cut");
        let error = json!({"error": {"message": "broken"}});
        assert_eq!(transcript.replay().pass(error), Err(Diverged));
    }

    #[test]
    fn an_end_that_was_heard_is_not_said_twice_and_the_usage_after_it_is() {
        let transcript = heard(&[chat("a", "x"), end("a")]);
        let mut replay = transcript.replay();
        assert_eq!(replay.pass(chat("b", "x")), Ok(None));
        let usage = json!({"id": "b", "choices": [], "usage": {"total_tokens": 3}});
        let mut own = usage.clone();
        own["id"] = json!("a");
        assert_eq!(replay.pass(usage.clone()), Ok(Some(own)));
        assert_eq!(replay.pass(usage.clone()), Ok(None), "once");
        let transcript = heard(&[chat("a", "x"), end("a"), usage.clone()]);
        let mut replay = transcript.replay();
        assert_eq!(replay.pass(chat("b", "x")), Ok(None));
        assert_eq!(replay.pass(end("b")), Ok(None));
        assert_eq!(replay.pass(usage), Ok(None), "it was told before the cut");
    }

    #[test]
    fn words_after_an_end_are_another_text() {
        let transcript = heard(&[chat("a", "x"), end("a")]);
        assert_eq!(transcript.replay().pass(chat("b", "xy")), Err(Diverged));
        let mut replay = transcript.replay();
        assert_eq!(replay.pass(chat("b", "x")), Ok(None));
        assert_eq!(replay.pass(chat("b", "y")), Err(Diverged));
    }

    #[test]
    fn a_stream_of_several_answers_ends_with_the_last_of_them() {
        let end = |index: u64| {
            json!({"choices": [{"index": index, "text": "",
            "finish_reason": "stop"}]})
        };
        let mut two = Transcript::new(2);
        two.hear(&end(1));
        assert!(!two.is_finished() && !two.is_closed());
        two.hear(&end(0));
        assert!(two.is_finished());
        let mut two = Transcript::new(2);
        two.hear(&json!({"index": 1, "content": "", "stop": true}));
        assert!(!two.is_closed());
        two.hear(&json!({"index": 0, "content": "", "stop": true}));
        assert!(two.is_closed());
    }

    #[test]
    fn what_is_no_text_cannot_be_compared() {
        let call = json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]});
        assert!(!heard(&[call]).can_replay());
        let mut long = Transcript::new(1);
        let text = "x".repeat(HUB_TRANSCRIPT_BYTES_MAX / 2 + 1);
        (0..2).for_each(|_| long.hear(&json!({ "content": text })));
        assert!(!long.can_replay());
    }

    #[test]
    fn tokens_are_compared_as_texts_are() {
        let frame = |text: &str, tokens: &[u32]| json!({"content": text, "tokens": tokens});
        let transcript = heard(&[frame("a", &[1]), frame("", &[2])]);
        let mut replay = transcript.replay();
        assert_eq!(replay.pass(frame("a", &[1, 2, 3])), Ok(Some(frame("", &[3]))));
        assert_eq!(replay.pass(frame("b", &[4])), Ok(Some(frame("b", &[4]))));
        assert_eq!(transcript.replay().pass(frame("a", &[7])), Err(Diverged));
    }

    #[test]
    fn llama_and_its_answers_side_by_side() {
        let frame = |index: u64, text: &str| json!({"index": index, "content": text});
        let transcript = heard(&[frame(0, "ab"), frame(1, "xy")]);
        let mut replay = transcript.replay();
        assert_eq!(replay.pass(frame(1, "xyz")), Ok(Some(frame(1, "z"))));
        assert_eq!(replay.pass(frame(0, "a")), Ok(None));
        assert_eq!(replay.pass(frame(0, "bc")), Ok(Some(frame(0, "c"))));
        let last = json!({"index": 0, "content": "", "stop": true});
        assert_eq!(replay.pass(last.clone()), Ok(Some(last.clone())));
        assert!(heard(&[last]).is_closed());
    }

    proptest! {
        #[test]
        fn however_both_are_cut_into_frames_the_client_hears_the_text_once(
            text in "\\PC{0,60}",
            n_heard in 0usize..60,
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
            let said = &text[..at(n_heard)];
            let mut transcript = Transcript::new(1);
            if !said.is_empty() {
                transcript.hear(&chat("a", said));
            }
            let mut replay = transcript.replay();
            let mut cuts: Vec<usize> = cuts.into_iter().map(at).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut client = said.to_owned();
            for two in cuts.windows(2) {
                let frame = chat("b", &text[two[0]..two[1]]);
                if let Some(value) = replay.pass(frame).unwrap() {
                    let delta = &value["choices"][0]["delta"];
                    client.push_str(delta["content"].as_str().unwrap());
                }
            }
            prop_assert_eq!(client, text);
        }
    }
}
