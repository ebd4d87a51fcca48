//! What the engine counts: gauges, totals, histograms, and what recent requests went through.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::event::{Finish, Timings};
use crate::base::limits::TIMELINES_MAX;

/// Upper bounds of the histograms' buckets, in seconds.
pub const HISTOGRAM_BOUNDS_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Durations, counted in buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Durations up to each bound of [`HISTOGRAM_BOUNDS_S`] that are above the one before; the
    /// last counts the rest.
    pub counts: [u64; HISTOGRAM_BOUNDS_S.len() + 1],
    /// Sum of all durations, in seconds.
    pub sum_s: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        self.counts[HISTOGRAM_BOUNDS_S.partition_point(|&bound| bound < seconds)] += 1;
        self.sum_s += seconds;
    }

    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// What the engine does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnginePhase {
    /// Nothing.
    #[default]
    Idle,
    /// Makes tokens, and reads no prompt beside that.
    Decode,
    /// Reads prompts.
    Prefill,
}

/// A reading of everything that the engine counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// What it does: in a pause, what it did before.
    pub phase: EnginePhase,
    /// Sequences that run or wait for which somebody waits: all but those of the background.
    pub n_interactive: usize,
    /// Sequences that wait for a place.
    pub n_waiting: usize,
    /// Sequences that run.
    pub n_running: usize,
    /// Pages of the KV cache.
    pub n_page: usize,
    /// Pages that sequences hold.
    pub n_page_used: usize,
    /// Pages that only the prefix cache holds.
    pub n_page_cached: usize,
    /// Requests taken.
    pub requests_total: u64,
    /// Requests refused because the queue was full.
    pub refused_total: u64,
    /// Requests whose reader left.
    pub canceled_total: u64,
    /// Requests that failed.
    pub failed_total: u64,
    /// Prompt tokens computed.
    pub prefill_tokens_total: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens_total: u64,
    /// Of these, tokens that came from the disk.
    pub restored_tokens_total: u64,
    /// Sequences that wait for the disk.
    pub n_fetching: usize,
    /// Prompts whose pages wait to be kept on the disk.
    pub n_keeping: usize,
    /// Tokens generated.
    pub generated_tokens_total: u64,
    /// Steps of a sequence that checked guesses.
    pub drafts_total: u64,
    /// Tokens guessed.
    pub draft_tokens_total: u64,
    /// Tokens guessed right.
    pub accepted_tokens_total: u64,
    /// Draft models that failed and were set aside; answers went on without them.
    pub draft_failures_total: u64,
    /// Steps.
    pub steps_total: u64,
    /// Sequences in those steps.
    pub step_sequences_total: u64,
    /// Sequences that gave up their place to a more urgent one.
    pub preempted_total: u64,
    /// Time of prefill steps, in seconds.
    pub prefill_seconds_total: f64,
    /// Time of decode steps, in seconds.
    pub decode_seconds_total: f64,
    /// From arrival to the first token.
    pub ttft: Histogram,
    /// Between two tokens of an answer.
    pub itl: Histogram,
    /// From arrival to the first step.
    pub queue: Histogram,
    /// Mean time that a request ran lately, in seconds.
    pub request_seconds_mean: f64,
}

/// What a request went through.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestTimeline {
    /// The caller's name for it.
    pub id: String,
    /// Which answer.
    pub answer_idx: usize,
    /// Milliseconds since the Unix epoch at which it came.
    pub arrived_unix_ms: u64,
    /// Its parts.
    pub timings: Timings,
    /// Why it ended.
    pub finish: Finish,
}

#[derive(Default)]
struct Inner {
    stats: EngineStats,
    timelines: VecDeque<RequestTimeline>,
}

/// The engine's counters, shared with those who read them.
#[derive(Default)]
pub(super) struct StatsCell(Mutex<Inner>);

impl StatsCell {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn update(&self, change: impl FnOnce(&mut EngineStats)) {
        change(&mut self.lock().stats);
    }

    pub fn snapshot(&self) -> EngineStats {
        self.lock().stats.clone()
    }

    pub fn timelines(&self) -> Vec<RequestTimeline> {
        self.lock().timelines.iter().cloned().collect()
    }

    pub fn n_waiting(&self) -> usize {
        self.lock().stats.n_waiting
    }

    pub fn count_refused(&self) {
        self.lock().stats.refused_total += 1;
    }

    /// When a refused caller may find room: the time that the queue takes at the present pace.
    pub fn retry_after(&self, n_parallel: usize) -> Duration {
        let stats = &self.lock().stats;
        let rounds = stats.n_waiting as f64 / n_parallel.max(1) as f64;
        Duration::from_secs_f64((rounds * stats.request_seconds_mean).clamp(1.0, 60.0).ceil())
    }

    pub fn first_token(&self, seconds: f64) {
        self.lock().stats.ttft.add(seconds);
    }

    pub fn next_token(&self, seconds: f64) {
        self.lock().stats.itl.add(seconds);
    }

    pub fn admitted(&self, seconds: f64) {
        self.lock().stats.queue.add(seconds);
    }

    pub fn finished(&self, timeline: RequestTimeline) {
        let mut inner = self.lock();
        let seconds = (timeline.timings.prefill_ms + timeline.timings.decode_ms) / 1e3;
        let mean = &mut inner.stats.request_seconds_mean;
        *mean = if *mean == 0.0 { seconds } else { 0.9 * *mean + 0.1 * seconds };
        if inner.timelines.len() >= TIMELINES_MAX {
            inner.timelines.pop_front();
        }
        inner.timelines.push_back(timeline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_duration_once() {
        let mut histogram = Histogram::default();
        [0.0005, 0.001, 0.0011, 59.0, 61.0].iter().for_each(|&s| histogram.add(s));
        assert_eq!(histogram.counts[0], 2);
        assert_eq!(histogram.counts[1], 1);
        assert_eq!(histogram.counts[13], 1);
        assert_eq!(histogram.counts[14], 1);
        assert_eq!(histogram.count(), 5);
    }
}
