//! A stream of chunks, one for each token, as llama-server sends them.
//!
//! The engine merges what a slow reader has not taken: then a chunk stands for each token still,
//! and the text is in the last of them. Text that was held back as the beginning of a stop string
//! and was none comes with the last chunk of an answer.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::json;

use super::answer::{Wire, timings_json};
use crate::inference::{Event, Timings, TokenEvent};
use crate::server::ApiError;
use crate::server::generate::Answer;
use crate::server::sse::{SseWriter, Translate};

/// What a stream knows of its answers.
pub struct Stream {
    wire: Wire,
    answers: Vec<Growing>,
    /// Events that were read before the stream began.
    early: VecDeque<(usize, Event)>,
    started: Instant,
}

#[derive(Default)]
struct Growing {
    /// Text that came after the last token.
    rest: String,
    has_new_line: bool,
    /// Tokens of the prompt that were reported as done.
    n_progress: Option<usize>,
}

impl Stream {
    /// A stream of `n` answers that begins with these events.
    pub fn new(wire: Wire, n: usize, early: VecDeque<(usize, Event)>) -> Stream {
        let answers = (0..n).map(|_| Growing::default()).collect();
        Stream { wire, answers, early, started: Instant::now() }
    }

    fn say(&mut self, prompt_idx: usize, event: Event, out: &mut SseWriter) {
        let first = prompt_idx * self.wire.n_answer();
        match event {
            Event::Progress { n_done, n_prompt, n_cached } => {
                self.progress(first, n_done, n_prompt, n_cached, out);
            }
            Event::Text { answer_idx, text, tokens, timings } => {
                self.text(first + answer_idx, text, &tokens, &timings, out);
            }
            Event::Done { answer_idx, finish, is_incomplete, was_shifted, timings } => {
                let index = first + answer_idx;
                let growing = &mut self.answers[index];
                let (text, has_new_line) =
                    (std::mem::take(&mut growing.rest), growing.has_new_line);
                let finish = Some(finish);
                let tokens = Vec::new();
                let answer = Answer { text, tokens, finish, is_incomplete, was_shifted, timings };
                out.data(&self.wire.whole(index, &answer, has_new_line));
            }
            Event::Failed(error) => out.error(&ApiError::from(error.as_ref())),
        }
    }

    fn text(
        &mut self,
        index: usize,
        text: String,
        tokens: &[TokenEvent],
        timings: &Timings,
        out: &mut SseWriter,
    ) {
        let n_prompt = timings.n_prompt;
        // A prompt that was done in one step is reported only by its first token.
        if self.answers[index].n_progress.is_none_or(|n| n < n_prompt) {
            self.progress(index, n_prompt, n_prompt, timings.n_cached, out);
        }
        let growing = &mut self.answers[index];
        growing.has_new_line |= text.contains('\n');
        if tokens.is_empty() {
            growing.rest.push_str(&text);
            return;
        }
        let n_before = timings.n_generated.saturating_sub(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            let is_last = i + 1 == tokens.len();
            let shown = if is_last { text.as_str() } else { "" };
            let n_done = n_before + i + 1;
            let mut chunk = self.wire.chunk(index, shown, std::slice::from_ref(token), n_done);
            if self.wire.params.timings_per_token {
                chunk["timings"] = timings_json(&Timings { n_generated: n_done, ..*timings });
            }
            out.data(&chunk);
        }
    }

    /// Says how far a prompt is, where that was asked for; begins with what was cached.
    fn progress(
        &mut self,
        index: usize,
        n_done: usize,
        n_prompt: usize,
        n_cached: usize,
        out: &mut SseWriter,
    ) {
        if !self.wire.params.return_progress {
            return;
        }
        let last = self.answers[index].n_progress.replace(n_done);
        let steps = [Some(n_cached).filter(|_| last.is_none()), Some(n_done)];
        for n in steps.into_iter().flatten().filter(|&n| last.is_none_or(|last| n > last)) {
            let mut chunk = self.wire.chunk(index, "", &[], 0);
            chunk["prompt_progress"] = json!({
                "total": n_prompt,
                "cache": n_cached,
                "processed": n,
                "time_ms": self.started.elapsed().as_millis() as u64,
            });
            out.data(&chunk);
        }
    }

    fn say_early(&mut self, out: &mut SseWriter) {
        while let Some((prompt_idx, event)) = self.early.pop_front() {
            self.say(prompt_idx, event, out);
        }
    }
}

impl Translate for Stream {
    fn event(&mut self, prompt_idx: usize, event: Event, out: &mut SseWriter) {
        self.say_early(out);
        self.say(prompt_idx, event, out);
    }

    fn end(&mut self, out: &mut SseWriter) {
        self.say_early(out);
    }
}
