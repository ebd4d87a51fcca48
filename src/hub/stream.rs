//! A stream on its way from a backend to the client, and from the next backend where it breaks off.
//!
//! ```text
//! backend -> frames -> 16 of them at most -> client
//!    |                                         what the client has heard is remembered
//!    +- cut --> the same request elsewhere --> what the client lacks --> client
//!                                          \-> another text: an error frame, and the end
//! ```
//!
//! Frames pass as they are. A client that reads slowly holds the backend up and nothing else grows;
//! one that leaves ends the generation. While there is nothing to say, as when what was heard is
//! written once more, a comment shows that the connection is alive: a blank before a line of JSON,
//! which every reader of JSON skips.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::HeaderMap;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::Instant;

use super::backend::{Backend, Busy};
use super::dial::describe;
use super::health::Failure;
use super::policy::Speech;
use super::relay::{Opened, Trip};
use super::replay::{Replay, Transcript};
use super::retry::{self, Next, Outcome};
use crate::base::limits::{HUB_FRAMES_MAX, HUB_HOLD_MS, KEEP_ALIVE_MS};
use crate::server::ApiError;
use crate::server::frames::{self, Form, Said, Splitter};

/// Silence after which a client hears that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_millis(KEEP_ALIVE_MS);

/// How a backend fails, and its words or ours for it.
type Fault = (Failure, String);

/// A backend's stream.
pub(super) struct Incoming {
    backend: Arc<Backend>,
    body: Body,
    form: Form,
    splitter: Splitter,
    /// A frame that was read while the stream was held.
    held: Option<Bytes>,
    _busy: Busy,
}

impl Incoming {
    pub fn new(backend: Arc<Backend>, busy: Busy, body: Body, form: Form) -> Incoming {
        let splitter = Splitter::new(form);
        Incoming { backend, body, form, splitter, held: None, _busy: busy }
    }

    /// Waits for the first frame that says something, for as long as the client can be left in
    /// the dark.
    pub async fn hold(&mut self, idle: Duration) -> Result<(), Fault> {
        let first = async {
            while let Some(frame) = self.next(idle).await? {
                match frames::read(self.form, &frame) {
                    Said::Nothing => {}
                    Said::Value(value) if frames::has_error(&value) => {
                        return Err((Failure::Wrong, format!("it says {}", value["error"])));
                    }
                    Said::Other => return Err((Failure::Wrong, "no stream of ours".to_owned())),
                    Said::Value(_) | Said::Done => return Ok(Some(frame)),
                }
            }
            Err((Failure::Gone, "an empty stream".to_owned()))
        };
        match tokio::time::timeout(Duration::from_millis(HUB_HOLD_MS), first).await {
            Ok(first) => {
                self.held = first?;
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Whether a frame that says something has come.
    pub fn has_words(&self) -> bool {
        self.held.is_some()
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self, idle: Duration) -> Result<Option<Bytes>, Fault> {
        if let Some(frame) = self.held.take() {
            return Ok(Some(frame));
        }
        loop {
            if let Some(frame) = self.splitter.next_frame() {
                return Ok(Some(frame));
            }
            let piece = tokio::select! {
                piece = tokio::time::timeout(idle, self.body.frame()) => piece,
                () = self.backend.gone() => {
                    return Err((Failure::Gone, "it does not answer its probes".to_owned()));
                }
            };
            match piece {
                Err(_) => return Err((Failure::Slow, "it fell silent".to_owned())),
                Ok(None) if self.splitter.has_rest() => {
                    return Err((Failure::Gone, "it broke off within a frame".to_owned()));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err((Failure::Gone, describe(&error))),
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let pushed = self.splitter.push(&data);
                    pushed.map_err(|error| (Failure::Wrong, error.to_string()))?;
                }
            }
        }
    }
}

/// The answer that streams `incoming`, and what takes its place if it breaks off.
pub(super) fn respond(trip: Trip, incoming: Incoming, headers: HeaderMap) -> Response {
    let (out, frames) = mpsc::channel(HUB_FRAMES_MAX);
    let flow = Flow {
        form: incoming.form,
        transcript: Transcript::new(trip.asked.n_choice),
        trip,
        out: Voice { out, said_at: Instant::now() },
        replay: None,
        is_named: false,
    };
    tokio::spawn(flow.run(incoming));
    let mut response = Response::new(Body::new(Outgoing(frames)));
    *response.headers_mut() = headers;
    response
}

/// Frames that wait for hyper.
struct Outgoing(Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
    }
}

/// What the client hears, and when it last heard something.
struct Voice {
    out: Sender<io::Result<Bytes>>,
    said_at: Instant,
}

impl Voice {
    /// Says something; whether the client is there.
    async fn say(&mut self, said: io::Result<Bytes>) -> bool {
        let is_there = self.out.send(said).await.is_ok();
        self.said_at = Instant::now();
        is_there
    }

    /// Waits for something, and shows meanwhile that the connection is alive; `None` when the
    /// client has left.
    async fn wait<T>(&mut self, form: Form, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.out.closed() => return None,
                () = tokio::time::sleep_until(self.said_at + KEEP_ALIVE) => {
                    // Where the client reads slowly, enough waits for it already.
                    let _ = self.out.try_send(Ok(frames::silence(form)));
                    self.said_at = Instant::now();
                }
            }
        }
    }
}

/// How one backend's part ended.
enum Part {
    /// All is said, or the client left.
    Over,
    /// It broke off.
    Cut(Fault),
    /// It writes another text than the client has heard.
    Diverged,
}

struct Flow {
    trip: Trip,
    form: Form,
    out: Voice,
    transcript: Transcript,
    replay: Option<Replay>,
    /// Whether the host's name stands in a frame since the last change.
    is_named: bool,
}

impl Flow {
    async fn run(mut self, mut incoming: Incoming) {
        loop {
            let name = incoming.backend.name.clone();
            let why = match self.pass(&mut incoming).await {
                Part::Over => return,
                Part::Diverged => {
                    let why = format!("{name} does not write what was heard before");
                    return self.fail(&why).await;
                }
                Part::Cut((failure, why)) => {
                    self.trip.note(&incoming.backend, failure, &why);
                    format!("{name}: {why}")
                }
            };
            // Its place there is free while another one is looked for.
            drop(incoming);
            tracing::info!(why, "a stream broke off");
            match self.another().await {
                Some(next) => incoming = next,
                None => return self.fail(&format!("the answer broke off; {why}")).await,
            }
        }
    }

    /// Passes one backend's frames on.
    async fn pass(&mut self, incoming: &mut Incoming) -> Part {
        let idle = self.trip.hub.waits_of(&incoming.backend).idle;
        loop {
            let Some(frame) = self.out.wait(self.form, incoming.next(idle)).await else {
                return Part::Over;
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) if self.is_complete() => return Part::Over,
                Ok(None) => return Part::Cut((Failure::Gone, "it ended too early".to_owned())),
                Err(_) if self.transcript.is_closed() => return Part::Over,
                Err(fault) => return Part::Cut(fault),
            };
            let frame = match frames::read(self.form, &frame) {
                Said::Nothing => frame,
                Said::Done => {
                    if self.replay.as_ref().is_some_and(Replay::is_behind) {
                        return Part::Diverged;
                    }
                    self.transcript.close();
                    frame
                }
                Said::Other => {
                    return Part::Cut((Failure::Wrong, "a frame that is no JSON".to_owned()));
                }
                Said::Value(value) if frames::has_error(&value) => {
                    return Part::Cut((Failure::Wrong, format!("it says {}", value["error"])));
                }
                Said::Value(value) => match self.take(value, frame, &incoming.backend.name) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => continue,
                    Err(part) => return part,
                },
            };
            if !self.out.say(Ok(frame)).await {
                return Part::Over;
            }
        }
    }

    /// A value as the client gets it.
    fn take(&mut self, value: Value, frame: Bytes, host: &str) -> Result<Option<Bytes>, Part> {
        let is_replayed = self.replay.is_some();
        let mut value = match &mut self.replay {
            None => value,
            Some(replay) => match replay.pass(value) {
                Ok(Some(value)) => value,
                Ok(None) => return Ok(None),
                Err(_) => return Err(Part::Diverged),
            },
        };
        self.transcript.hear(&value);
        let has_room = self.trip.asked.need.speech != Speech::Own && value.is_object();
        if has_room && !self.is_named {
            value["jetforge_host"] = host.into();
            self.is_named = true;
            return Ok(Some(frames::write(self.form, &value)));
        }
        Ok(Some(if is_replayed { frames::write(self.form, &value) } else { frame }))
    }

    /// Whether an end here is the end of the answer.
    fn is_complete(&self) -> bool {
        let is_behind = self.replay.as_ref().is_some_and(Replay::is_behind);
        let has_ended = match self.trip.asked.need.speech {
            // These have ends of their own, which are not read.
            Speech::Own => true,
            Speech::Openai | Speech::Llama => {
                self.transcript.is_closed() || self.transcript.is_finished()
            }
        };
        has_ended && !is_behind
    }

    /// The stream of another backend, to be compared with what was heard.
    async fn another(&mut self) -> Option<Incoming> {
        // Others have come and gone since it began.
        self.trip.rank();
        let can_replay = self.transcript.is_empty()
            || self.trip.asked.is_repeatable && self.transcript.can_replay();
        loop {
            if retry::next(Outcome::Cut, self.trip.stakes(can_replay)) != Next::Replay {
                return None;
            }
            let backend = self.trip.next()?;
            match self.out.wait(self.form, self.trip.open(&backend)).await? {
                Ok(Opened::Stream(incoming, _)) if incoming.form == self.form => {
                    self.replay = Some(self.transcript.replay());
                    self.is_named = false;
                    if self.form == Form::Events {
                        let note = format!(": goes on at {}\n\n", backend.name);
                        self.out.say(Ok(note.into())).await;
                    }
                    return Some(incoming);
                }
                Ok(_) => {}
                Err(missed) => {
                    tracing::info!(host = backend.name, why = missed.why, "no answer in its place");
                }
            }
        }
    }

    /// Tells the client that it failed, in the words of its dialect.
    async fn fail(mut self, why: &str) {
        let error = ApiError::new(axum::http::StatusCode::BAD_GATEWAY, "upstream_error", why);
        let frame = match (self.form, self.trip.asked.route.as_str()) {
            (Form::Lines, _) => frames::write(Form::Lines, &json!({ "error": why })),
            (Form::Events, "/v1/messages") => {
                let error = json!({"type": "api_error", "message": why});
                let value = json!({"type": "error", "error": error});
                format!("event: error\ndata: {value}\n\n").into()
            }
            (Form::Events, _) => frames::write(Form::Events, &error.to_json()),
        };
        self.out.say(Ok(frame)).await;
        if self.trip.is_job {
            // What ends in good order would be kept as the answer.
            self.out.say(Err(io::Error::other(why.to_owned()))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_hears_nothing_hears_that_it_is_not_forgotten() {
        let (out, mut frames) = mpsc::channel(HUB_FRAMES_MAX);
        let mut voice = Voice { out, said_at: Instant::now() };
        let long = async {
            tokio::time::sleep(KEEP_ALIVE * 5 / 2).await;
            7
        };
        assert_eq!(voice.wait(Form::Events, long).await, Some(7));
        assert_eq!(voice.wait(Form::Lines, tokio::time::sleep(KEEP_ALIVE * 2)).await, Some(()));
        drop(voice);
        let mut heard = Vec::new();
        while let Some(frame) = frames.recv().await {
            heard.push(frame.unwrap());
        }
        assert_eq!(heard[..3], [&b":\n\n"[..], b":\n\n", b" "]);
        let line = b" {\"done\":true}\n";
        assert_eq!(frames::read(Form::Lines, line), Said::Value(json!({"done": true})));
    }
}
