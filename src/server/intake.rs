//! A request's body, read whole before anything looks at it: within its size, its time, and the
//! room that all bodies share.
//!
//! A request that is refused gets its body read and thrown away, within bounds: a peer that is
//! still sending would otherwise lose the answer with the connection.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use crate::base::limits::{HTTP_BODIES_BYTES_MAX, HTTP_DRAIN_BYTES_MAX, HTTP_DRAIN_MS};

/// When a caller may try again whose body found no room.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// Bounds of bodies.
pub(super) struct Intake {
    bytes_max: usize,
    time_max: Duration,
    room: Arc<Semaphore>,
}

/// A body, and the room that it takes until this is dropped.
pub(super) struct Taken {
    pub bytes: Bytes,
    pub room: Option<OwnedSemaphorePermit>,
}

impl Intake {
    /// Bodies of at most `bytes_max`, each within `time_max`.
    pub fn new(bytes_max: usize, time_max: Duration) -> Intake {
        Intake { bytes_max, time_max, room: Arc::new(Semaphore::new(HTTP_BODIES_BYTES_MAX)) }
    }

    /// Room for a message that is no body, in the same room as all bodies.
    pub fn reserve(&self, n_bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let n = u32::try_from(n_bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(n).map_err(|_| no_room())
    }

    /// Reads a body.
    pub async fn read(&self, headers: &HeaderMap, mut body: Body) -> Result<Taken, ApiError> {
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|n| n.to_str().ok()).and_then(|n| n.parse::<usize>().ok());
        if length.is_some_and(|n| n > self.bytes_max) {
            drain(headers, body).await;
            return Err(self.too_large());
        }
        let read = tokio::time::timeout(self.time_max, self.collect(&mut body));
        let result = match read.await {
            Ok(result) => result,
            Err(_) => {
                let s = self.time_max.as_secs();
                let message = format!("the body did not come within {s} s");
                let status = StatusCode::REQUEST_TIMEOUT;
                return Err(ApiError::new(status, "invalid_request_error", message));
            }
        };
        if result.is_err() {
            drain(headers, body).await;
        }
        result
    }

    async fn collect(&self, body: &mut Body) -> Result<Taken, ApiError> {
        let mut bytes = Vec::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.bytes_max {
                return Err(self.too_large());
            }
            let n = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(n) else {
                return Err(no_room());
            };
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Taken { bytes: bytes.into(), room })
    }

    fn too_large(&self) -> ApiError {
        let message = format!("the body has more than {} bytes", self.bytes_max);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }
}

fn no_room() -> ApiError {
    ApiError::unavailable("too many large requests at once; try again in a second", ROOM_RETRY)
}

/// Reads the rest of a body and throws it away, unless its sender waits to be told to send it.
pub(super) async fn drain(headers: &HeaderMap, mut body: Body) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let read = async {
        let mut n_bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            n_bytes += frame.data_ref().map_or(0, Bytes::len);
            if n_bytes > HTTP_DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(HTTP_DRAIN_MS), read).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// A body of which nothing comes.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_at_the_limit_passes_and_one_byte_more_does_not() {
        let intake = Intake::new(1000, Duration::from_secs(1));
        let read = async |n: usize| {
            let taken = intake.read(&HeaderMap::new(), Body::from(vec![7; n])).await;
            taken.map(|taken| taken.bytes.len()).map_err(|error| error.status.as_u16())
        };
        assert_eq!(read(1000).await, Ok(1000));
        assert_eq!(read(1001).await, Err(413));
        assert_eq!(read(0).await, Ok(0));
        assert_eq!(intake.room.available_permits(), HTTP_BODIES_BYTES_MAX, "all room is free");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let intake = Intake::new(1000, Duration::from_secs(60));
        let late = intake.read(&HeaderMap::new(), Body::new(Never)).await;
        let late = late.map(|_| ()).unwrap_err();
        assert_eq!(late.status.as_u16(), 408);
    }

    #[tokio::test]
    async fn bodies_share_their_room() {
        let intake = Intake::new(HTTP_BODIES_BYTES_MAX, Duration::from_secs(1));
        let half = || Body::from(vec![0; HTTP_BODIES_BYTES_MAX / 2 + 1]);
        let first = intake.read(&HeaderMap::new(), half()).await.unwrap();
        let error = intake.read(&HeaderMap::new(), half()).await.map(|_| ()).unwrap_err();
        assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
        drop(first);
        assert!(intake.read(&HeaderMap::new(), half()).await.is_ok());
    }
}
