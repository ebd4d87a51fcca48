//! Streams of chunks: what completions and chats have in common.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Head, Tally};
use crate::inference::{Event, Timings, TokenEvent};
use crate::server::error::ApiError;
use crate::server::report::timings_json;
use crate::server::request::Wishes;
use crate::server::sse::{SseWriter, Translate};

/// The choices of a stream, in a dialect's form.
pub(super) trait Choices: Send + Unpin + 'static {
    /// `chat.completion.chunk`, for example.
    const OBJECT: &'static str;

    /// Chunks of a choice that grew.
    fn grow(&mut self, choice_idx: usize, text: &str, tokens: &[TokenEvent]) -> Vec<Value>;

    /// The last chunks of a choice.
    fn end(&mut self, choice_idx: usize, finish: &crate::inference::Finish) -> Vec<Value>;

    /// A chunk that says nothing, for the progress of the prompt.
    fn nothing(&mut self, choice_idx: usize) -> Value;
}

/// Events as chunks.
pub(super) struct Chunks<C> {
    pub choices: C,
    head: Head,
    wishes: Wishes,
    tally: Tally,
    /// Choices that are not over.
    n_open: usize,
    /// `[n_prompt]`: tokens whose progress was told.
    n_told: Vec<usize>,
    started: Instant,
}

impl<C: Choices> Chunks<C> {
    /// Of a request whose answers `tally` counts.
    pub fn new(choices: C, head: Head, wishes: Wishes, tally: Tally) -> Chunks<C> {
        let n_open = tally.timings.len();
        let n_told = vec![0; n_open / tally.n.max(1)];
        Chunks { choices, head, wishes, tally, n_open, n_told, started: Instant::now() }
    }

    /// Says how far a prompt is, where that is wanted and new.
    fn progress(
        &mut self,
        prompt_idx: usize,
        (n_done, n_prompt, n_cached): (usize, usize, usize),
        out: &mut SseWriter,
    ) {
        if !self.wishes.return_progress || n_done <= self.n_told[prompt_idx] {
            return;
        }
        self.n_told[prompt_idx] = n_done;
        let choice = self.choices.nothing(prompt_idx * self.tally.n);
        let mut chunk = self.chunk(vec![choice]);
        let progress = json!({
            "total": n_prompt,
            "cache": n_cached,
            "processed": n_done,
            "time_ms": self.started.elapsed().as_millis() as u64,
        });
        chunk.insert("prompt_progress".into(), progress);
        out.data(&chunk);
    }

    fn chunk(&self, choices: Vec<Value>) -> Map<String, Value> {
        self.head.object(C::OBJECT, choices)
    }

    fn send(&self, choice: Value, timings: Option<&Timings>, out: &mut SseWriter) {
        let mut chunk = self.chunk(vec![choice]);
        if let Some(timings) = timings.filter(|_| self.wishes.timings_per_token) {
            chunk.insert("timings".into(), timings_json(timings));
        }
        out.data(&chunk);
    }
}

impl<C: Choices> Translate for Chunks<C> {
    fn event(&mut self, prompt_idx: usize, event: Event, out: &mut SseWriter) {
        let first_idx = prompt_idx * self.tally.n;
        match event {
            Event::Progress { n_done, n_prompt, n_cached } => {
                self.progress(prompt_idx, (n_done, n_prompt, n_cached), out);
            }
            Event::Text { answer_idx, text, tokens, timings } => {
                let choice_idx = first_idx + answer_idx;
                self.tally.timings[choice_idx] = timings;
                // The step that ends the prompt already has a token.
                let n_prompt = timings.n_prompt;
                self.progress(prompt_idx, (n_prompt, n_prompt, timings.n_cached), out);
                for choice in self.choices.grow(choice_idx, &text, &tokens) {
                    self.send(choice, Some(&timings), out);
                }
            }
            Event::Done { answer_idx, finish, was_shifted, timings, .. } => {
                let choice_idx = first_idx + answer_idx;
                self.tally.timings[choice_idx] = timings;
                self.n_open -= 1;
                let mut choices = self.choices.end(choice_idx, &finish);
                let last = choices.pop();
                for choice in choices {
                    self.send(choice, None, out);
                }
                let Some(mut last) = last else { return };
                if was_shifted {
                    last["context_shifted"] = true.into();
                }
                let mut chunk = self.chunk(vec![last]);
                // With usage, one more chunk follows and has them.
                if self.n_open == 0 && !self.wishes.include_usage {
                    self.tally.close(&mut chunk);
                }
                out.data(&chunk);
            }
            Event::Failed(error) => out.error(&ApiError::from(error.as_ref())),
        }
    }

    fn end(&mut self, out: &mut SseWriter) {
        if self.n_open > 0 {
            return out.error(&ApiError::from(crate::inference::EngineError::Stopping));
        }
        if self.wishes.include_usage {
            let mut chunk = self.chunk(Vec::new());
            chunk.insert("usage".into(), self.tally.usage());
            self.tally.close(&mut chunk);
            out.data(&chunk);
        }
        out.done();
    }
}
