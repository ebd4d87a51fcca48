//! When a peer is called: at once while all is well, with growing pauses while it is not there.
//!
//! ```text
//! well     something to say: now     nothing: every SYNC_IDLE_MS, for what the peer has to say
//! failing  pauses double from SYNC_PAUSE_MS_MIN to SYNC_PAUSE_MS_MAX, each with jitter
//! ```
//!
//! A local write does not make a peer reachable, so while calls fail it changes nothing; a sign of
//! life of the peer does.

use crate::base::limits::{SYNC_IDLE_MS, SYNC_PAUSE_MS_MAX, SYNC_PAUSE_MS_MIN};

/// When to call next. Times are milliseconds of a clock that never jumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    n_failed: u32,
    due_ms: u64,
}

impl Pace {
    /// When the peer is to be called.
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// Calls that failed since the last one that did not.
    pub fn n_failed(&self) -> u32 {
        self.n_failed
    }

    /// A call went well; whether there is more to say or to hear.
    pub fn succeeded(&mut self, now_ms: u64, has_more: bool) {
        self.n_failed = 0;
        self.due_ms = if has_more { now_ms } else { now_ms + SYNC_IDLE_MS };
    }

    /// A call failed; `random` is any number.
    pub fn failed(&mut self, now_ms: u64, random: u64) {
        let pause = SYNC_PAUSE_MS_MIN << self.n_failed.min(20);
        let pause = pause.min(SYNC_PAUSE_MS_MAX);
        self.n_failed = self.n_failed.saturating_add(1);
        self.due_ms = now_ms + pause / 2 + random % (pause / 2 + 1);
    }

    /// Something was written here.
    pub fn has_news(&mut self, now_ms: u64) {
        if self.n_failed == 0 {
            self.due_ms = self.due_ms.min(now_ms);
        }
    }

    /// The peer gave a sign of life, or somebody asks for a call.
    pub fn is_there(&mut self, now_ms: u64) {
        if self.n_failed > 0 {
            *self = Pace { n_failed: 0, due_ms: now_ms };
        }
    }

    /// Somebody asks for a call now.
    pub fn now(&mut self, now_ms: u64) {
        self.due_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_end_with_a_sign_of_life() {
        let mut pace = Pace::default();
        let mut now = 0;
        for i in 0..40 {
            pace.failed(now, 7919 * i);
            let pause = pace.due_ms() - now;
            let whole = (SYNC_PAUSE_MS_MIN << i.min(20)).min(SYNC_PAUSE_MS_MAX);
            assert!((whole / 2..=whole).contains(&pause), "{pause} of {whole}");
            let due = pace.due_ms();
            pace.has_news(now);
            assert_eq!(pace.due_ms(), due, "a local write brings nobody back");
            now = due;
        }
        pace.failed(now, 3);
        pace.is_there(now);
        assert_eq!(pace.due_ms(), now);
        pace.succeeded(now, false);
        assert_eq!(pace.due_ms(), now + SYNC_IDLE_MS);
        pace.has_news(now + 1);
        assert_eq!(pace.due_ms(), now + 1);
    }
}
