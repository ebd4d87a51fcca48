//! The account of one request: opened when it comes, closed when its answer's last byte is gone.
//!
//! Closing writes one event to the log and counts the request by route and status. Neither has a
//! word of what was asked or answered: the route is the pattern that matched, not the path.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{Method, Response};
use hyper::body::{Body as _, Frame, SizeHint};

use super::quota::Place;

/// Status of a request whose caller left before there was an answer, as other servers count it.
const STATUS_GONE: u16 = 499;
/// Routes whose requests are too regular to be logged by default.
const REGULAR: [&str; 6] = ["/health", "/v1/health", "/models", "/v1/models", "/props", "/metrics"];

/// What a request was counted as.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Outcome {
    pub route: String,
    pub method: &'static str,
    pub status: u16,
}

/// Requests since the start, and those in flight.
#[derive(Default)]
pub(super) struct Requests {
    counts: Mutex<BTreeMap<Outcome, u64>>,
    n_open: AtomicU64,
}

impl Requests {
    /// How often each outcome was.
    pub fn counts(&self) -> BTreeMap<Outcome, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests whose answers are not out yet.
    pub fn n_open(&self) -> u64 {
        self.n_open.load(Ordering::Relaxed)
    }
}

/// See the module.
pub(super) struct Account {
    requests: Arc<Requests>,
    outcome: Outcome,
    request_id: String,
    /// The name of the caller's key.
    pub tenant: String,
    /// The caller's place in its quota, given back at the end.
    pub place: Option<Arc<Place>>,
    started: Instant,
    n_bytes: u64,
    is_complete: bool,
}

impl Account {
    /// Opens the account of a request to `route`, which is `None` for a path that has none.
    pub fn open(
        requests: &Arc<Requests>,
        method: &Method,
        route: Option<&str>,
        request_id: &str,
    ) -> Account {
        requests.n_open.fetch_add(1, Ordering::Relaxed);
        let route = route.unwrap_or("none").to_owned();
        Account {
            requests: Arc::clone(requests),
            outcome: Outcome { route, method: method_name(method), status: STATUS_GONE },
            request_id: request_id.to_owned(),
            tenant: "-".to_owned(),
            place: None,
            started: Instant::now(),
            n_bytes: 0,
            is_complete: false,
        }
    }

    /// Follows the answer to its end.
    pub fn follow(mut self, response: Response<Body>) -> Response<Body> {
        self.outcome.status = response.status().as_u16();
        self.is_complete = response.body().is_end_stream() || self.outcome.method == "HEAD";
        response.map(|inner| Body::new(Followed { inner, account: self }))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.requests.n_open.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.requests.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(self.outcome.clone()).or_default() += 1;
        drop(counts);
        let Outcome { route, method, status } = &self.outcome;
        let ms = self.started.elapsed().as_millis() as u64;
        let (id, tenant) = (&self.request_id, &self.tenant);
        let (n_bytes, cut) = (self.n_bytes, !self.is_complete);
        // 503 is what these say again and again while the model loads.
        if REGULAR.contains(&route.as_str()) && (*status < 500 || *status == 503) {
            tracing::debug!(method, route, status, ms, n_bytes, cut, id, tenant, "request");
        } else {
            tracing::info!(method, route, status, ms, n_bytes, cut, id, tenant, "request");
        }
    }
}

fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// An answer's body with its account.
struct Followed {
    inner: Body,
    account: Account,
}

impl hyper::body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            None => self.account.is_complete = true,
            Some(Ok(frame)) => {
                self.account.n_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.account.is_complete |= self.inner.is_end_stream();
            }
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn count(requests: &Requests, status: u16) -> u64 {
        let counts = requests.counts();
        counts.iter().filter(|(outcome, _)| outcome.status == status).map(|(_, n)| n).sum()
    }

    #[tokio::test]
    async fn a_request_is_open_until_its_answer_is_out_and_counted_once() {
        let requests = Arc::new(Requests::default());
        let account = Account::open(&requests, &Method::GET, Some("/x"), "id");
        let answer = account.follow(Response::new(Body::from("hello")));
        assert_eq!((requests.n_open(), count(&requests, 200)), (1, 0));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
        assert_eq!((requests.n_open(), count(&requests, 200)), (0, 1));
        drop(Account::open(&requests, &Method::GET, Some("/x"), "id"));
        assert_eq!((requests.n_open(), count(&requests, 499)), (0, 1));
    }
}
