//! The place where a request may leave for another machine, and where its answer comes back.
//!
//! ```text
//! gate -> jobs -> forward --> this process: the dialects
//!                         --> elsewhere, as whoever wires the service says
//! ```
//!
//! A service that was given a [`Forward`] asks it to answer every request of a dialect; without
//! one, every answer is written here. The bodies of jobs come the same way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;

use serde_json::Value;

use super::jobs::Holder;
use super::{ApiError, autocoder};
use crate::base::limits::HTTP_BODIES_BYTES_MAX;
use crate::inference::{Priority, TenantId};
use crate::store::Peer;

/// A request as it was let in: its head, with the caller in its extensions, and its whole body.
#[derive(Clone)]
pub struct Admitted {
    /// The head.
    pub parts: Parts,
    /// The body.
    pub body: Bytes,
}

/// The dialects of this process.
#[derive(Clone)]
pub struct Here(Next);

impl Here {
    /// Answers a request in this process.
    pub async fn answer(&self, Admitted { mut parts, body }: Admitted) -> Response {
        // The body may be another than the one that came.
        parts.headers.remove(header::CONTENT_LENGTH);
        self.0.clone().run(Request::from_parts(parts, Body::from(body))).await
    }
}

/// Stands in the extensions of an answer that is none: whoever wants it has lost nothing by asking
/// again.
#[derive(Clone, Copy, Debug)]
pub enum Untaken {
    /// Nobody took the request.
    ByAnybody,
    /// Somebody has it, who cannot say now how it goes.
    Held,
}

impl Untaken {
    /// What an answer says of that.
    pub fn of(answer: &Response) -> Option<Untaken> {
        answer.extensions().get::<Untaken>().copied()
    }
}

/// Header by which a hub says for which class it asks; it can only make a request less urgent.
pub const CLASS: HeaderName = HeaderName::from_static("x-jetforge-class");
/// The classes and their words, as in the field `priority` of a request.
const CLASSES: [(&str, Priority); 3] = [
    ("interactive", Priority::Interactive),
    ("agent", Priority::Agent),
    ("background", Priority::Background),
];

/// The word of a class.
pub fn class_name(class: Priority) -> &'static str {
    CLASSES.iter().find(|(_, own)| *own == class).map_or("interactive", |(word, _)| word)
}

/// The class of a word.
pub(super) fn class_of(word: &str) -> Option<Priority> {
    CLASSES.iter().find(|(own, _)| *own == word).map(|(_, class)| *class)
}

/// Header by which a paired hub tells its callers apart: each gets a share of its own.
pub const TENANT: HeaderName = HeaderName::from_static("x-jetforge-tenant");

/// A job that another machine may have, and that nobody wants of it any more.
#[derive(Clone, Debug)]
pub struct Unwanted {
    /// The machine, and the job's name there.
    pub holder: Holder,
    /// Whose job it is here.
    pub tenant: TenantId,
    /// The path that was asked.
    pub endpoint: String,
    /// What it was asked: an object.
    pub body: Value,
}

/// What became of such a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// Nothing comes of it there, now or later.
    Over,
    /// It was answered before.
    Answered,
    /// The machine could not be told, and why.
    Untold(String),
}

/// A job to be withdrawn.
pub type Withdrawing = Pin<Box<dyn Future<Output = Withdrawn> + Send>>;

/// An answer to be awaited.
pub type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Who decides where requests are answered.
pub trait Forward: Send + Sync {
    /// Answers a request, by `here` or by somebody else.
    fn answer(self: Arc<Self>, request: Admitted, here: Here) -> Answering;

    /// Whether a machine that jobs were given to can be told something now.
    fn reaches(&self, host: &str) -> bool;

    /// Takes a job back from the machine that has it, or is about to get it.
    fn withdraw(self: Arc<Self>, unwanted: Unwanted) -> Withdrawing;

    /// Takes a machine in that this one was paired with just now; whether there is a place for it.
    fn join(self: Arc<Self>, peer: Peer) -> bool;

    /// Asks, of all machines that this one was ever paired with, exactly these from now on.
    fn meet(self: Arc<Self>, peers: Vec<Peer>);

    /// Asks the machine that was paired as `node` for nothing any more: it was forgotten.
    fn leave(&self, node: &str);
}

/// The layer itself.
pub(super) async fn pass_on(
    State(forward): State<Arc<dyn Forward>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    // The gate has bounded it already.
    match Limited::new(body, HTTP_BODIES_BYTES_MAX).collect().await {
        Ok(body) => {
            let (path, body) = (parts.extensions.get::<MatchedPath>().cloned(), body.to_bytes());
            let request = Admitted { parts, body: body.clone() };
            let mut answer = forward.answer(request, Here(next)).await;
            autocoder::put_id(path.as_ref().map(MatchedPath::as_str), &body, &mut answer);
            answer
        }
        Err(_) => ApiError::invalid("the body broke off").into_response(),
    }
}
