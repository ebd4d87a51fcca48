//! Server-sent events: what a dialect says, as bytes of a body that hyper polls.
//!
//! ```text
//! Generation -- events --> Translate -- frames --> SseBody -- "data: {...}\n\n" --> hyper
//! ```
//!
//! The body is pulled: a slow reader polls less often, the engine merges what waits meanwhile, and
//! nothing here grows. A reader who leaves drops the body, with it the generation, and so ends the
//! request. While nothing happens, a comment shows that the connection is alive; lines of JSON have
//! none, so a blank comes before the next one.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::generate::Generation;
use crate::base::limits::{KEEP_ALIVE_MS, SSE_FRAME_BYTES_MAX};
use crate::inference::Event;

/// Silence after which a comment is sent.
const KEEP_ALIVE: Duration = Duration::from_millis(KEEP_ALIVE_MS);

/// A dialect's words for what happens.
pub(super) trait Translate: Send + Unpin + 'static {
    /// Writes what `event` of the prompt `prompt_idx` means to the reader. A failure ends the
    /// stream after this call.
    fn event(&mut self, prompt_idx: usize, event: Event, out: &mut SseWriter);

    /// Writes what stands after the last event; not called after a failure.
    fn end(&mut self, out: &mut SseWriter);
}

/// Frames on their way out.
#[derive(Default)]
pub(super) struct SseWriter {
    bytes: Vec<u8>,
}

impl SseWriter {
    /// A frame of JSON.
    pub fn data(&mut self, value: &impl Serialize) {
        self.frame("data: ", value);
    }

    /// A frame of JSON under the name of an event.
    pub fn event(&mut self, name: &'static str, value: &impl Serialize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(format!("event: {name}\n").as_bytes());
        let head = self.bytes.len();
        self.frame("data: ", value);
        if self.bytes.len() == head {
            self.bytes.truncate(start);
        }
    }

    /// What went wrong, in the envelope of every error.
    pub fn error(&mut self, error: &ApiError) {
        self.data(&error.to_json());
    }

    /// A line of JSON, where lines are all that a stream has.
    pub fn line(&mut self, value: &impl Serialize) {
        let start = self.bytes.len();
        match serde_json::to_writer(&mut self.bytes, value) {
            Ok(()) => self.bytes.push(b'\n'),
            Err(_) => self.bytes.truncate(start),
        }
    }

    /// OpenAI's last frame.
    pub fn done(&mut self) {
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn silence(&mut self, form: Form) {
        self.bytes.extend_from_slice(match form {
            Form::Events => b":\n\n",
            Form::Lines => b" ",
        });
    }

    fn frame(&mut self, head: &str, value: &impl Serialize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(head.as_bytes());
        // JSON has no raw line ends, so a frame is one line. A value that is no JSON (a map with
        // keys that are no strings) leaves no frame.
        match serde_json::to_writer(&mut self.bytes, value) {
            Ok(()) => self.bytes.extend_from_slice(b"\n\n"),
            Err(_) => self.bytes.truncate(start),
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let bytes = std::mem::take(&mut self.bytes);
        (!bytes.is_empty()).then(|| bytes.into())
    }
}

/// An answer that streams `generation` in the words of `translate`.
pub(super) fn respond(generation: Generation, translate: impl Translate) -> Response {
    stream(generation, translate, Form::Events)
}

/// An answer that streams `generation` as lines of JSON.
pub(super) fn respond_lines(generation: Generation, translate: impl Translate) -> Response {
    stream(generation, translate, Form::Lines)
}

/// How frames are divided.
#[derive(Clone, Copy)]
enum Form {
    Events,
    Lines,
}

fn stream(generation: Generation, translate: impl Translate, form: Form) -> Response {
    let content_type = match form {
        Form::Events => "text/event-stream",
        Form::Lines => "application/x-ndjson",
    };
    let body = SseBody {
        generation: Some(generation),
        translate,
        form,
        out: SseWriter::default(),
        silence: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
    };
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would hold back the tokens.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct SseBody<T> {
    /// `None` when everything is said.
    generation: Option<Generation>,
    translate: T,
    out: SseWriter,
    silence: Pin<Box<Sleep>>,
    form: Form,
}

impl<T: Translate> SseBody<T> {
    /// Writes what is there, up to a bound; whether more may come.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while let Some(generation) = &mut self.generation
            && self.out.bytes.len() < SSE_FRAME_BYTES_MAX
        {
            match generation.poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some((prompt_idx, event))) => {
                    let has_failed = matches!(event, Event::Failed(_));
                    self.translate.event(prompt_idx, event, &mut self.out);
                    if has_failed {
                        self.generation = None;
                    }
                }
                Poll::Ready(None) => {
                    self.translate.end(&mut self.out);
                    self.generation = None;
                }
            }
        }
    }
}

impl<T: Translate> HttpBody for SseBody<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        this.fill(cx);
        if this.generation.is_some()
            && this.out.bytes.is_empty()
            && this.silence.as_mut().poll(cx).is_ready()
        {
            this.out.silence(this.form);
        }
        match this.out.take() {
            Some(bytes) => {
                this.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            None if this.generation.is_none() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_frame_is_one_line_whatever_the_text() {
        let mut out = SseWriter::default();
        out.data(&json!({"text": "a\n\ndata: b\r\u{2028}"}));
        out.silence(Form::Events);
        out.done();
        let text = String::from_utf8(out.take().unwrap().to_vec()).unwrap();
        let frames: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(frames.len(), 3);
        assert!(frames[0].starts_with("data: {") && !frames[0].contains(['\n', '\r']));
        assert_eq!(&frames[1..], [":", "data: [DONE]"]);
        assert!(out.take().is_none());
    }
}
