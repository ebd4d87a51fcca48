//! A job as server-sent events, from any place in its text.
//!
//! ```text
//! event: state     {"state": …}: at once, and whenever it changes
//! event: text      id: EPOCH-TOKENS; {"prompt": 0, "index": 0, "text": "…", "tokens": […]}
//! event: restart   the text began anew: what came before is void
//! event: end       the job with its answer; the last one
//! ```
//!
//! Everything that is told is on the disk. So a reader who names the last id that it saw, after
//! whatever went, gets what follows: nothing twice, and nothing left out.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::door::{Door, view};
use crate::base::limits::SSE_FRAME_BYTES_MAX;
use crate::jobs::{Job, Place, State};
use crate::server::ApiError;

/// Silence after which a comment is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Frames that wait for a slow reader.
const N_FRAME: usize = 4;

/// Frames that a task writes and hyper reads.
pub(super) struct Frames(pub mpsc::Receiver<Bytes>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.get_mut().0.poll_recv(cx);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Follows a job from a place, or from its start.
pub(super) fn follow(door: Door, tenant: u64, job: Job, from: Option<Place>) -> Response {
    let Ok(reader) = door.readers().clone().try_acquire_owned() else {
        let busy = "too many readers follow jobs; try again in a second";
        return ApiError::unavailable(busy, Duration::from_secs(1)).into_response();
    };
    let (frames, received) = mpsc::channel(N_FRAME);
    tokio::spawn(async move {
        let _reader = reader;
        let said_at = Instant::now();
        let mut reading = Reading { door, tenant, place: from, state: None, frames, said_at };
        // A reader who left needs no words.
        if let Err(Some(error)) = reading.run(job.row.id).await {
            let _ = reading.say("error", None, &error.to_json()).await;
        }
    });
    let mut response = Response::new(Body::new(Frames(received)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Reading {
    door: Door,
    tenant: u64,
    place: Option<Place>,
    state: Option<State>,
    frames: mpsc::Sender<Bytes>,
    said_at: Instant,
}

impl Reading {
    /// Tells what is there, and waits for more, until the job is over.
    ///
    /// # Errors
    /// What went wrong; `None` if the reader left.
    async fn run(&mut self, id: String) -> Result<(), Option<ApiError>> {
        let mut changes = self.door.changes();
        loop {
            changes.mark_unchanged();
            let (tenant, wanted) = (self.tenant, id.clone());
            let job = self.door.ask(move |jobs| jobs.get(tenant, &wanted)).await.map_err(Some)?;
            self.tell(&job).await?;
            if job.state.is_over() {
                let view = self.door.view_with_answer(job).await.map_err(Some)?;
                return self.say("end", None, &view).await;
            }
            tokio::select! {
                _ = changes.changed() => {}
                // Also where others' jobs change all the time.
                () = tokio::time::sleep_until(self.said_at + KEEP_ALIVE) => {
                    self.send(":\n\n".into()).await?;
                }
                () = self.frames.closed() => return Err(None),
            }
        }
    }

    /// Tells the state if it is another one, and the pieces behind the place.
    async fn tell(&mut self, job: &Job) -> Result<(), Option<ApiError>> {
        if self.state != Some(job.state) {
            self.state = Some(job.state);
            self.say("state", None, &view(job)).await?;
        }
        let epoch = job.row.ledger.epoch;
        let start = Place { epoch, n_token: 0 };
        let place = match self.place {
            Some(place) if place.epoch == epoch => place,
            Some(_) => {
                self.say("restart", Some(start), &json!({ "epoch": epoch })).await?;
                start
            }
            None => start,
        };
        self.place = Some(place);
        let of = job.clone();
        let pieces = self.door.ask(move |jobs| jobs.pieces(&of, epoch, place.n_token));
        let mut text = String::new();
        for (n_token, piece) in pieces.await.map_err(Some)? {
            let place = Place { epoch, n_token };
            self.place = Some(place);
            let data = json!({
                "prompt": piece.prompt_idx,
                "index": piece.answer_idx,
                "text": piece.text,
                "tokens": piece.tokens,
            });
            text.push_str(&frame("text", Some(place), &data));
            if text.len() > SSE_FRAME_BYTES_MAX {
                self.send(std::mem::take(&mut text)).await?;
            }
        }
        match text.is_empty() {
            true => Ok(()),
            false => self.send(text).await,
        }
    }

    async fn say(
        &mut self,
        event: &str,
        id: Option<Place>,
        data: &Value,
    ) -> Result<(), Option<ApiError>> {
        self.send(frame(event, id, data)).await
    }

    async fn send(&mut self, text: String) -> Result<(), Option<ApiError>> {
        self.said_at = Instant::now();
        self.frames.send(text.into()).await.map_err(|_| None)
    }
}

/// JSON has no raw line ends, so the data are one line.
fn frame(event: &str, id: Option<Place>, data: &Value) -> String {
    let id = id.map(|id| format!("id: {}\n", id.name())).unwrap_or_default();
    format!("{id}event: {event}\ndata: {data}\n\n")
}
