//! A streamed answer cut into its frames: events of SSE, or lines of JSON.
//!
//! Bytes come as the network cuts them; frames leave whole, as they were written. A frame is
//! bounded, so a peer that never ends one cannot fill the memory.

use std::ops::Range;

use axum::body::Bytes;
use serde_json::Value;

use crate::base::limits::HUB_FRAME_BYTES_MAX;

/// How frames are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An empty line ends a frame.
    Events,
    /// A line is a frame.
    Lines,
}

impl Form {
    /// The form of a media type; `None` for an answer that comes whole.
    pub fn of(media_type: &str) -> Option<Form> {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            "text/event-stream" => Some(Form::Events),
            "application/x-ndjson" => Some(Form::Lines),
            _ => None,
        }
    }
}

/// A frame that is longer than any should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame has more than {HUB_FRAME_BYTES_MAX} bytes")]
pub struct TooLong;

/// Cuts bytes into frames.
#[derive(Debug)]
pub struct Splitter {
    form: Form,
    bytes: Vec<u8>,
    /// Bytes at the start that are known to hold no end.
    n_seen: usize,
}

impl Splitter {
    /// A splitter of an empty stream.
    pub fn new(form: Form) -> Splitter {
        Splitter { form, bytes: Vec::new(), n_seen: 0 }
    }

    /// Takes bytes in.
    ///
    /// # Errors
    /// If a frame becomes too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        self.bytes.extend_from_slice(bytes);
        match self.bytes.len() > HUB_FRAME_BYTES_MAX && self.end().is_none() {
            true => Err(TooLong),
            false => Ok(()),
        }
    }

    /// The next whole frame with what ends it.
    pub fn next_frame(&mut self) -> Option<Bytes> {
        let end = self.end()?;
        let rest = self.bytes.split_off(end);
        let frame = std::mem::replace(&mut self.bytes, rest);
        self.n_seen = 0;
        Some(frame.into())
    }

    /// Whether a frame has begun and not ended.
    pub fn has_rest(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Where the first frame ends.
    fn end(&mut self) -> Option<usize> {
        let from = self.n_seen.saturating_sub(3);
        for idx in from..self.bytes.len() {
            if self.bytes[idx] != b'\n' {
                continue;
            }
            let before = &self.bytes[..idx];
            let is_end =
                self.form == Form::Lines || before.ends_with(b"\n") || before.ends_with(b"\n\r");
            if is_end {
                return Some(idx + 1);
            }
        }
        self.n_seen = self.bytes.len();
        None
    }
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Nothing: a comment, an empty line.
    Nothing,
    /// OpenAI's last frame.
    Done,
    /// A value.
    Value(Value),
    /// Something that is no JSON.
    Other,
}

/// Reads a frame.
pub fn read(form: Form, frame: &[u8]) -> Said {
    match data(form, frame) {
        None => Said::Nothing,
        Some(data) if frame[data.clone()].trim_ascii() == b"[DONE]" => Said::Done,
        Some(data) => serde_json::from_slice(&frame[data]).map_or(Said::Other, Said::Value),
    }
}

/// Whether a value says that the answer failed.
pub fn has_error(value: &Value) -> bool {
    value.get("error").is_some_and(|error| !error.is_null())
}

/// The same frame with another value.
pub fn write(form: Form, value: &Value) -> Bytes {
    match form {
        Form::Events => format!("data: {value}\n\n").into(),
        Form::Lines => format!("{value}\n").into(),
    }
}

/// What shows that a stream is alive, and says nothing.
pub fn silence(form: Form) -> Bytes {
    Bytes::from_static(match form {
        Form::Events => b":\n\n",
        Form::Lines => b" ",
    })
}

/// Where a frame's data stands; several lines of data are taken as one that is no JSON.
fn data(form: Form, frame: &[u8]) -> Option<Range<usize>> {
    if form == Form::Lines {
        return (!frame.trim_ascii().is_empty()).then_some(0..frame.len());
    }
    let mut start = 0;
    let mut found: Option<Range<usize>> = None;
    for line in frame.split_inclusive(|byte| *byte == b'\n') {
        if let Some(value) = line.strip_prefix(b"data:") {
            let end = start + line.len();
            found = Some(found.map_or(end - value.len()..end, |range| range.start..end));
        }
        start += line.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_the_same_however_the_network_cuts_them() {
        let text = ": hi\r\n\r\ndata: {\"a\":1}\n\nevent: x\ndata: {\"b\":\"\\n\"}\r\n\r\n\
                    data: [DONE]\n\n";
        let whole = |n: usize| {
            let mut splitter = Splitter::new(Form::Events);
            let mut frames = Vec::new();
            for piece in text.as_bytes().chunks(n) {
                splitter.push(piece).unwrap();
                while let Some(frame) = splitter.next_frame() {
                    frames.push(frame);
                }
            }
            assert!(!splitter.has_rest());
            frames
        };
        let all = whole(text.len());
        assert_eq!(all.concat(), text.as_bytes());
        for n in 1..text.len() {
            assert_eq!(whole(n), all, "{n}");
        }
        let said: Vec<Said> = all.iter().map(|frame| read(Form::Events, frame)).collect();
        let values = [json!({"a": 1}), json!({"b": "\n"})].map(Said::Value);
        let [one, two] = values;
        assert_eq!(said, [Said::Nothing, one, two, Said::Done]);
    }

    #[test]
    fn lines_are_frames_where_a_stream_has_lines() {
        let mut splitter = Splitter::new(Form::Lines);
        splitter.push(b"{\"a\":1}\n{\"b\"").unwrap();
        let frame = splitter.next_frame().unwrap();
        assert_eq!(read(Form::Lines, &frame), Said::Value(json!({"a": 1})));
        assert_eq!(write(Form::Lines, &json!({"a": 1})), frame);
        assert!(splitter.next_frame().is_none() && splitter.has_rest());
        assert_eq!(read(Form::Lines, b"no json\n"), Said::Other);
        assert_eq!(read(Form::Lines, b" \r\n"), Said::Nothing);
    }

    #[test]
    fn a_frame_without_an_end_is_refused() {
        let mut splitter = Splitter::new(Form::Events);
        let piece = vec![b'x'; HUB_FRAME_BYTES_MAX / 4];
        let refused = (0..5).map(|_| splitter.push(&piece)).collect::<Vec<_>>();
        assert_eq!(refused[3..], [Ok(()), Err(TooLong)]);
    }

    #[test]
    fn media_types_tell_the_form() {
        assert_eq!(Form::of("text/event-stream; charset=utf-8"), Some(Form::Events));
        assert_eq!(Form::of("application/x-ndjson"), Some(Form::Lines));
        assert_eq!(Form::of("application/json"), None);
    }
}
