//! What a caller hears of its request: a stream of events that never holds the engine up.
//!
//! The engine pushes, the caller polls or waits. A slow caller's text events are merged, so a
//! stream never holds more than the answer itself. Dropping the stream cancels the request, unless
//! it was detached.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::EngineError;
use super::sampler::TokenLogProb;
use crate::inference::tokenizer::TokenId;

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or its grammar left nothing more to say.
    Eog,
    /// A stop string came.
    Stop(String),
    /// `n_predict` was reached.
    Length,
    /// The context is full.
    ContextFull,
    /// Its time was up.
    TimeUp,
    /// A line was indented less than asked for.
    Indent,
    /// The reader broke off.
    Canceled,
}

/// How long the parts of an answer took, and where it ran.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Between arrival and the first prefill step.
    pub queued_ms: f64,
    /// Between the first prefill step and the first token.
    pub prefill_ms: f64,
    /// From the first token on.
    pub decode_ms: f64,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of these, tokens whose keys and values were cached.
    pub n_cached: usize,
    /// Tokens of the answer, the model's end included.
    pub n_generated: usize,
    /// Tokens that were guessed.
    pub n_draft: usize,
    /// Of these, tokens that were right.
    pub n_accepted: usize,
    /// The place that it ran in last.
    pub slot_idx: usize,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token: TokenId,
    /// Its log-probability, if asked for.
    pub probs: Option<TokenLogProb>,
}

/// Something that happened to a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// Prefill goes on: tokens done, of all, of which cached.
    Progress {
        /// Tokens of the prompt that are in the cache now.
        n_done: usize,
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens that were cached before.
        n_cached: usize,
    },
    /// An answer grew. The text can be empty while bytes of a character or a possible stop string
    /// are held back, and can belong to earlier tokens.
    Text {
        /// Which answer, below `n`.
        answer_idx: usize,
        /// New text.
        text: String,
        /// New tokens.
        tokens: Vec<TokenEvent>,
        /// How the answer stands.
        timings: Timings,
    },
    /// An answer ended.
    Done {
        /// Which answer, below `n`.
        answer_idx: usize,
        /// Why.
        finish: Finish,
        /// Whether a grammar ruled it and its text is not complete.
        is_incomplete: bool,
        /// Whether a shift dropped tokens from the context.
        was_shifted: bool,
        /// What it took.
        timings: Timings,
    },
    /// The request failed; nothing follows.
    Failed(Arc<EngineError>),
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    waker: Option<Waker>,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    is_canceled: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller's end.
pub struct EventStream {
    shared: Arc<Shared>,
    is_detached: bool,
}

/// The engine's end. Dropping it ends the stream.
pub(super) struct EventSender(Arc<Shared>);

/// A stream with both of its ends.
pub(super) fn event_stream() -> (EventSender, EventStream) {
    let shared = Arc::new(Shared::default());
    (EventSender(Arc::clone(&shared)), EventStream { shared, is_detached: false })
}

impl EventSender {
    /// Adds an event, merged with the last if both are text of one answer.
    pub fn push(&self, event: Event) {
        let mut state = self.0.lock();
        match (state.events.back_mut(), event) {
            (
                Some(Event::Text { answer_idx: last_idx, text: last, tokens: all, timings: now }),
                Event::Text { answer_idx, text, tokens, timings },
            ) if *last_idx == answer_idx => {
                last.push_str(&text);
                all.extend(tokens);
                *now = timings;
            }
            (Some(last @ Event::Progress { .. }), event @ Event::Progress { .. }) => *last = event,
            (_, event) => state.events.push_back(event),
        }
        self.wake(state);
    }

    /// Whether the caller is gone.
    pub fn is_canceled(&self) -> bool {
        self.0.is_canceled.load(Ordering::Relaxed)
    }

    /// Lets the request's other answers end.
    pub fn cancel(&self) {
        self.0.is_canceled.store(true, Ordering::Relaxed);
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.0.ready.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        self.wake(state);
    }
}

impl EventStream {
    /// The next event; waits for it. `None` when the request is over.
    pub fn recv(&mut self) -> Option<Event> {
        let mut state = self.shared.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Some(event);
            }
            if state.is_closed {
                return None;
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next event as a future, for any executor.
    #[allow(clippy::should_implement_trait)] // as streams of futures name it
    pub fn next(&mut self) -> impl Future<Output = Option<Event>> + Send + '_ {
        Next(self)
    }

    /// Polls for the next event; `None` when the request is over.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.shared.lock();
        match state.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if state.is_closed => Poll::Ready(None),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Lets the request go on when the stream is dropped.
    pub fn detach(&mut self) {
        self.is_detached = true;
    }

    /// Ends the request; what is already there can still be read.
    pub fn cancel(&self) {
        self.shared.is_canceled.store(true, Ordering::Relaxed);
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.is_detached {
            self.cancel();
        }
    }
}

struct Next<'a>(&'a mut EventStream);

impl Future for Next<'_> {
    type Output = Option<Event>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().0.poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Event {
        let (text, tokens) = (text.to_owned(), Vec::new());
        Event::Text { answer_idx: 0, text, tokens, timings: Timings::default() }
    }

    #[test]
    fn text_that_nobody_reads_is_merged_and_nothing_is_lost() {
        let (sender, mut stream) = event_stream();
        (0..1000).for_each(|_| sender.push(text("ab")));
        drop(sender);
        let Some(Event::Text { text, .. }) = stream.recv() else { panic!("no text") };
        assert_eq!(text, "ab".repeat(1000));
        assert!(stream.recv().is_none());
    }

    #[test]
    fn a_dropped_stream_cancels_and_a_detached_one_does_not() {
        let (sender, stream) = event_stream();
        assert!(!sender.is_canceled());
        drop(stream);
        assert!(sender.is_canceled());
        let (sender, mut stream) = event_stream();
        stream.detach();
        drop(stream);
        assert!(!sender.is_canceled());
    }

    #[test]
    fn a_waiting_reader_is_woken() {
        let (sender, mut stream) = event_stream();
        let reader = std::thread::spawn(move || stream.recv().is_some());
        sender.push(text("x"));
        assert!(reader.join().unwrap());
    }
}
