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
use axum::extract::{Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;

use super::ApiError;
use crate::base::limits::HTTP_BODIES_BYTES_MAX;
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

/// An answer to be awaited.
pub type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Who decides where requests are answered.
pub trait Forward: Send + Sync {
    /// Answers a request, by `here` or by somebody else.
    fn answer(self: Arc<Self>, request: Admitted, here: Here) -> Answering;

    /// Takes a machine in that this one was paired with just now.
    fn join(self: Arc<Self>, peer: Peer);
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
            let request = Admitted { parts, body: body.to_bytes() };
            forward.answer(request, Here(next)).await
        }
        Err(_) => ApiError::invalid("the body broke off").into_response(),
    }
}
