//! One answer from the engine thread, for those who wait and for those who poll.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::EngineError;

struct State<T> {
    value: Option<Result<T, EngineError>>,
    is_closed: bool,
    waker: Option<Waker>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
}

/// The asker's end: a future, or something to wait for.
pub struct Reply<T>(Arc<Shared<T>>);

/// The engine's end. Dropped without an answer, it says that the engine stops.
pub(super) struct ReplySender<T>(Arc<Shared<T>>);

pub(super) fn reply<T>() -> (ReplySender<T>, Reply<T>) {
    let state = State { value: None, is_closed: false, waker: None };
    let shared = Arc::new(Shared { state: Mutex::new(state), ready: Condvar::new() });
    (ReplySender(Arc::clone(&shared)), Reply(shared))
}

impl<T> ReplySender<T> {
    pub fn send(self, value: Result<T, EngineError>) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).value = Some(value);
    }
}

impl<T> Drop for ReplySender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_closed = true;
        let waker = state.waker.take();
        drop(state);
        self.0.ready.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Reply<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// What the engine says, or that it stops.
    pub fn wait(self) -> Result<T, EngineError> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.is_closed {
            state = self.0.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.value.take().unwrap_or(Err(EngineError::Stopping))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, EngineError>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Poll::Ready(state.value.take().unwrap_or(Err(EngineError::Stopping)));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
