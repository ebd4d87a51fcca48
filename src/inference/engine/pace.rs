//! How long steps take, and how much prefill a step may hold so that those who decode beside it
//! wait no longer than the budget.
//!
//! The budget is for the slow steps, not for the mean: what a token of prefill takes is estimated
//! together with how far single steps stray from it, and a chunk is as long as fits even when a
//! step strays three times as far. Where steps are steady that costs nothing.

use std::time::Duration;

/// Tokens of a prefill chunk at the least: fewer waste the pass over the weights.
const N_CHUNK_MIN: usize = 16;
/// Weight of a new measurement.
const ALPHA: f64 = 0.2;
/// Mean deviations that a chunk leaves room for. Three of them are 2.4 standard deviations of a
/// normal distribution, which one step in a hundred exceeds.
const N_DEVIATION: f64 = 3.0;

/// Running estimates of step times.
#[derive(Clone, Debug)]
pub struct Pace {
    budget_s: f64,
    n_batch: usize,
    /// Seconds of a step that only decodes.
    decode_s: f64,
    /// Seconds that a token of prefill adds; 0 before the first measurement.
    token_s: f64,
    /// Mean deviation from that.
    deviation_s: f64,
}

impl Pace {
    /// No measurements yet: chunks are small until the first.
    pub fn new(budget: Duration, n_batch: usize) -> Pace {
        Pace {
            budget_s: budget.as_secs_f64(),
            n_batch,
            decode_s: 0.0,
            token_s: 0.0,
            deviation_s: 0.0,
        }
    }

    /// Takes the time of a step with `n_prefill` prefill tokens and `n_decode` others.
    pub fn learn(&mut self, n_prefill: usize, n_decode: usize, took: Duration) {
        let took_s = took.as_secs_f64();
        let blend = |old: &mut f64, new: f64| {
            *old = if *old == 0.0 { new } else { *old + ALPHA * (new - *old) };
        };
        if n_prefill == 0 {
            blend(&mut self.decode_s, took_s);
        } else if n_prefill >= N_CHUNK_MIN {
            let others_s = if n_decode > 0 { self.decode_s } else { 0.0 };
            let token_s = (took_s - others_s).max(1e-6) / n_prefill as f64;
            // Of one measurement nobody knows how far the next strays from it.
            let is_first = self.token_s == 0.0;
            let off_s = if is_first { token_s / 2.0 } else { (token_s - self.token_s).abs() };
            blend(&mut self.deviation_s, off_s);
            blend(&mut self.token_s, token_s);
        }
    }

    /// Prefill tokens of a step beside which others decode.
    pub fn n_chunk(&self) -> usize {
        if self.token_s == 0.0 {
            return N_CHUNK_MIN.min(self.n_batch);
        }
        let token_s = self.token_s + N_DEVIATION * self.deviation_s;
        let n = (self.budget_s - self.decode_s).max(0.0) / token_s.max(1e-9);
        (n as usize / N_CHUNK_MIN * N_CHUNK_MIN).max(N_CHUNK_MIN).min(self.n_batch)
    }

    /// Microseconds that a token of prefill takes.
    pub fn prefill_token_us(&self) -> u64 {
        (self.token_s * 1e6) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunk_fills_what_decoding_leaves_of_the_budget() {
        let mut pace = Pace::new(Duration::from_millis(100), 512);
        assert_eq!(pace.n_chunk(), 16);
        pace.learn(0, 4, Duration::from_millis(18));
        (0..100).for_each(|_| pace.learn(64, 4, Duration::from_millis(18 + 64)));
        assert_eq!(pace.n_chunk(), 80, "82 ms for tokens of 1 ms, in whole tiles");
        (0..100).for_each(|_| pace.learn(64, 4, Duration::from_millis(20 + 640)));
        assert_eq!(pace.n_chunk(), 16, "never less than a chunk that is worth its pass");
        (0..100).for_each(|_| pace.learn(512, 0, Duration::from_micros(512)));
        assert_eq!(pace.n_chunk(), 512);
    }

    #[test]
    fn steps_that_stray_leave_room_for_the_slow_ones() {
        let mut pace = Pace::new(Duration::from_millis(150), 512);
        pace.learn(0, 1, Duration::from_millis(10));
        for i in 0..100 {
            pace.learn(32, 1, Duration::from_millis(10 + if i % 2 == 0 { 48 } else { 80 }));
        }
        let slow_ms = 10.0 + 2.5 * pace.n_chunk() as f64;
        assert!(slow_ms <= 150.0, "{} tokens of at most 2.5 ms", pace.n_chunk());
        assert!(pace.n_chunk() >= 32);
    }
}
