//! How fast the engine may go, told from outside while it runs: pauses, threads, tokens of a step.
//!
//! ```text
//! step ==== took ====|---- pause = took * (1000 - duty) / duty ----| step
//! ```
//!
//! None of it shows in an answer: results depend neither on the batch nor on the number of threads,
//! and a pause only takes time. Pauses come between steps, so a share of the time is held only as
//! finely as steps are short: while there are pauses, a step has at most [`N_BATCH_PAUSED`] tokens.

use std::time::{Duration, Instant};

/// Tokens of a step while there are pauses: a chip heats within seconds, and a long prompt in one
/// step would be seconds without a pause.
const N_BATCH_PAUSED: usize = 64;
/// The whole of the time.
const WHOLE: u16 = 1000;

/// How fast the engine may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tempo {
    /// Of a thousand milliseconds, how many may compute; at 0 nothing does until this changes.
    pub duty_permille: u16,
    /// Threads that compute, of those that it was loaded with; `None` for all.
    pub n_threads: Option<usize>,
    /// Most tokens of a step, of those that it was loaded for; `None` for all.
    pub n_batch: Option<usize>,
}

impl Default for Tempo {
    fn default() -> Tempo {
        Tempo { duty_permille: WHOLE, n_threads: None, n_batch: None }
    }
}

impl Tempo {
    /// Tokens of a step, for a model of `n_batch` at most and with room for a token of each of
    /// `n_parallel` sequences: fewer would starve the last of them.
    pub(super) fn n_batch(&self, n_batch: usize, n_parallel: usize) -> usize {
        let asked = self.n_batch.unwrap_or(n_batch);
        let asked = if self.duty_permille < WHOLE { asked.min(N_BATCH_PAUSED) } else { asked };
        asked.max(n_parallel).min(n_batch)
    }
}

/// What was computed last, and so what is owed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    last: Option<(Instant, Duration)>,
}

impl Rest {
    /// Notes work that took `took` and ended at `ended`.
    pub fn after(&mut self, ended: Instant, took: Duration) {
        self.last = Some((ended, took));
    }

    /// How long nothing may be computed from `now` on, if the tempo stays.
    pub fn left(&self, tempo: &Tempo, now: Instant) -> Duration {
        let duty = u32::from(tempo.duty_permille.min(WHOLE));
        if duty == 0 {
            return Duration::MAX;
        }
        let Some((ended, took)) = self.last else { return Duration::ZERO };
        let pause = took.saturating_mul(u32::from(WHOLE) - duty) / duty;
        pause.saturating_sub(now.saturating_duration_since(ended))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_the_rest_of_the_time_and_follows_the_tempo() {
        let (mut rest, start) = (Rest::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let tempo = |duty_permille| Tempo { duty_permille, ..Tempo::default() };
        assert_eq!(rest.left(&tempo(100), start), Duration::ZERO, "nothing was computed yet");
        assert_eq!(rest.left(&tempo(0), start), Duration::MAX);
        rest.after(start, Duration::from_millis(100));
        assert_eq!(rest.left(&tempo(1000), start), Duration::ZERO);
        assert_eq!(rest.left(&tempo(250), at(0)), Duration::from_millis(300));
        assert_eq!(rest.left(&tempo(250), at(200)), Duration::from_millis(100));
        assert_eq!(rest.left(&tempo(500), at(200)), Duration::ZERO, "told to go faster meanwhile");
        assert_eq!(rest.left(&tempo(u16::MAX), at(0)), Duration::ZERO);
    }

    #[test]
    fn a_step_has_room_for_everyone_and_never_more_than_was_allocated() {
        let n = |duty_permille, n_batch| {
            Tempo { duty_permille, n_batch, n_threads: None }.n_batch(512, 4)
        };
        assert_eq!((n(1000, None), n(1000, Some(128)), n(1000, Some(4096))), (512, 128, 512));
        assert_eq!((n(900, None), n(900, Some(1)), n(0, Some(32))), (64, 4, 32));
    }
}
