//! Speculation in a step: guesses before it, and how long they hold after it.
//!
//! ```text
//! guess       each sequence that decodes looks up; the draft model guesses for the others at once
//! pick_rows   the sequence's own sampler picks from row after row while it picks what was guessed
//! ```
//!
//! Prompt lookup costs nothing and goes first. The draft model also reads along while a prompt is
//! prefilled, a chunk in each step, so that it can guess when the answer begins.

use std::time::{Duration, Instant};

use super::Core;
use crate::inference::engine::EngineError;
use crate::inference::engine::draft::Ask;
use crate::inference::engine::event::Finish;
use crate::inference::engine::info::ModelInfo;
use crate::inference::engine::sequence::{LogitRow, Sequence, Since};
use crate::inference::engine::stats::StatsCell;

/// What a step came to for a sequence that had output rows.
pub(super) struct Pick {
    /// Its place among the sequences.
    pub i: usize,
    pub end: Result<Option<Finish>, EngineError>,
    pub n_accepted: usize,
}

impl Core {
    /// Guesses ahead for whoever may; the time that a draft model took.
    pub(super) fn guess(&mut self) -> Duration {
        let n_ctx = self.info.n_ctx;
        self.sequences.iter_mut().for_each(|sequence| sequence.guess(n_ctx));
        let Some(draft) = &mut self.draft else { return Duration::ZERO };
        let started = Instant::now();
        let running = || self.sequences.iter().filter(|s| s.slot_idx.is_some());
        let (n_running, is_anyone_kept) = (running().count(), running().any(Sequence::is_decoding));
        let n_looked_up: usize = self.sequences.iter().map(|s| s.draft.len()).sum();
        let n_row = self.info.n_outputs.saturating_sub(n_running + n_looked_up);
        let sequences = self.sequences.iter_mut();
        let mut asks: Vec<Ask<'_>> = sequences.filter_map(|s| s.ask(n_ctx)).collect();
        // A guess that finds no room in the step would be made in vain.
        let n_ask = asks.iter().filter(|ask| ask.n_max > 0).count();
        let n_each = n_row.checked_div(n_ask).unwrap_or_default();
        asks.iter_mut().for_each(|ask| ask.n_max = ask.n_max.min(n_each));
        let n_read = if is_anyone_kept { self.draft_pace.n_chunk() } else { self.info.n_batch };
        match draft.draft(&mut asks, n_read) {
            Ok(n_read) => self.draft_pace.learn(n_read, 0, started.elapsed()),
            Err(_) => {
                // Answers go on without it, which `draft_failures_total` tells.
                self.draft = None;
                self.stats.update(|stats| stats.draft_failures_total += 1);
            }
        }
        started.elapsed()
    }
}

/// Picks tokens from `n_row` rows of a sequence, the first of which is `row`, for as long as its
/// guesses hold; the end, if it came, and how many guesses were right.
pub(super) fn pick_rows(
    sequence: &mut Sequence,
    info: &ModelInfo,
    stats: &StatsCell,
    row: &mut LogitRow<'_>,
    n_row: usize,
) -> Result<(Option<Finish>, usize), EngineError> {
    let draft = std::mem::take(&mut sequence.draft);
    let (n_draft, first) = (n_row - 1, row.row_idx);
    let mut n_accepted = 0;
    let mut end = None;
    for row_idx in 0..n_row {
        row.row_idx = first + row_idx;
        let picked = sequence.pick(info, row)?;
        match picked.since {
            Since::Arrival(time) => stats.first_token(time.as_secs_f64()),
            Since::LastToken(time) => stats.next_token(time.as_secs_f64()),
        }
        let is_guessed = row_idx < n_draft && draft[row_idx] == picked.token();
        n_accepted += usize::from(is_guessed);
        end = sequence.show(info, picked, info.n_ctx);
        if !is_guessed || end.is_some() {
            break;
        }
    }
    sequence.learn(n_draft, n_accepted);
    stats.update(|stats| {
        stats.accepted_tokens_total += n_accepted as u64;
        stats.generated_tokens_total += n_accepted as u64 + 1;
    });
    Ok((end, n_accepted))
}
