//! A backend's health as a state machine: ejected when it fails, readmitted when a probe finds it
//! well again.
//!
//! ```text
//! unknown --- it answers ---> well --- 3 failures in a row, or it is gone ---> ejected
//!                              ^                                                 |
//!                              +-- on trial: one failure ejects <-- its probe ---+
//! ```
//!
//! Requests are no probes: a person never waits to find out whether a backend is back. The pause
//! doubles with each ejection until a request was answered, so that one that answers probes and
//! fails requests is asked less and less. It spreads by a quarter, so that several hubs do not
//! come back at once. Time is what the caller says it is.

use super::policy::Standing;
use crate::base::limits::{HUB_EJECT_FAILURES, HUB_PAUSE_MS, HUB_PAUSE_MS_MAX};

/// How a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It does not listen, or broke off.
    Gone,
    /// It took too long.
    Slow,
    /// What it says is wrong: an error of its own, or nothing that can be read.
    Wrong,
    /// It does not take our key.
    Denied,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Health {
    standing: Standing,
    n_failed: u32,
    /// Probes that failed in a row: they and requests do not add up.
    n_probe_failed: u32,
    n_ejection: u32,
    /// When it is to be probed next.
    probe_ms: u64,
    /// It is full until then, as it says.
    busy_until_ms: u64,
    /// Usual time to its first word, and when that was last heard.
    first_word_ms: u64,
    heard_ms: u64,
    why: Option<String>,
}

/// Time in which a measured wait counts half as much.
const FORGET_MS: u64 = 60_000;

impl Health {
    /// How it stands.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Why it failed last, as long as that counts.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Whether it said that it has no place.
    pub fn is_busy(&self, now_ms: u64) -> bool {
        now_ms < self.busy_until_ms
    }

    /// Its usual time to a first word. What is long ago counts less: who is never asked cannot
    /// show that it became faster.
    pub fn first_word_ms(&self, now_ms: u64) -> u64 {
        let n_half = now_ms.saturating_sub(self.heard_ms) / FORGET_MS;
        self.first_word_ms.checked_shr(u32::try_from(n_half).unwrap_or(u32::MAX)).unwrap_or(0)
    }

    /// When it is to be probed.
    pub fn probe_ms(&self) -> u64 {
        self.probe_ms
    }

    /// A probe found it well; the next one is due after `every_ms`.
    pub fn probed(&mut self, now_ms: u64, every_ms: u64) {
        self.n_probe_failed = 0;
        if let Standing::Ejected { .. } = self.standing {
            // On trial.
            self.n_failed = HUB_EJECT_FAILURES - 1;
        }
        self.standing = Standing::Well;
        self.why = None;
        self.probe_ms = now_ms.saturating_add(every_ms);
    }

    /// It answered a request, the first word after `wait_ms`.
    pub fn answered(&mut self, now_ms: u64, wait_ms: u64) {
        let old = self.first_word_ms(now_ms);
        self.first_word_ms = if old == 0 { wait_ms } else { (3 * old + wait_ms) / 4 };
        self.heard_ms = now_ms;
        self.standing = Standing::Well;
        (self.n_failed, self.n_ejection, self.why) = (0, 0, None);
    }

    /// It said that it has no place for `for_ms`.
    pub fn refused(&mut self, now_ms: u64, for_ms: u64) {
        self.busy_until_ms = now_ms + for_ms.min(HUB_PAUSE_MS_MAX);
    }

    /// It is there and not ready; the next probe is due after `every_ms`.
    pub fn loading(&mut self, now_ms: u64, every_ms: u64) {
        self.refused(now_ms, 2 * every_ms);
        self.probe_ms = now_ms + every_ms;
    }

    /// A probe that failed is to be repeated after `every_ms`, unless it ejects.
    pub fn probe_failed(&mut self, failure: Failure, why: String, at: Moment, every_ms: u64) {
        self.probe_ms = at.now_ms + every_ms;
        self.n_probe_failed = self.n_probe_failed.saturating_add(1);
        // One that is out already stays out with every probe that fails.
        let is_out = matches!(self.standing, Standing::Ejected { .. });
        let n_failed = if is_out { HUB_EJECT_FAILURES } else { self.n_probe_failed };
        self.eject_after(n_failed, failure, why, at);
    }

    /// A request failed.
    pub fn failed(&mut self, failure: Failure, why: String, at: Moment) {
        self.n_failed = self.n_failed.saturating_add(1);
        self.eject_after(self.n_failed, failure, why, at);
    }

    fn eject_after(&mut self, n_failed: u32, failure: Failure, why: String, at: Moment) {
        self.why = Some(why);
        let is_certain = matches!(failure, Failure::Gone | Failure::Denied);
        let is_out =
            matches!(self.standing, Standing::Ejected { until_ms } if until_ms > at.now_ms);
        if is_out || !is_certain && n_failed < HUB_EJECT_FAILURES {
            return;
        }
        let pause = HUB_PAUSE_MS.checked_shl(self.n_ejection).unwrap_or(u64::MAX);
        let pause = pause.min(HUB_PAUSE_MS_MAX);
        let pause = pause - pause / 8 + at.random % (pause / 4).max(1);
        self.n_ejection = (self.n_ejection + 1).min(u64::BITS / 2);
        let until_ms = at.now_ms + pause;
        self.standing = Standing::Ejected { until_ms };
        self.probe_ms = until_ms;
    }
}

/// When something happened, and a random number to spread what follows.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Milliseconds of the hub's clock.
    pub now_ms: u64,
    /// Any number.
    pub random: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(now_ms: u64) -> Moment {
        Moment { now_ms, random: 3 }
    }

    fn until(health: &Health) -> Option<u64> {
        match health.standing() {
            Standing::Ejected { until_ms } => Some(until_ms),
            _ => None,
        }
    }

    #[test]
    fn one_that_is_gone_is_out_at_once_and_one_that_errs_after_three_times() {
        let mut health = Health::default();
        health.failed(Failure::Gone, "refused".into(), at(0));
        assert!(until(&health).is_some() && health.why() == Some("refused"));
        let mut health = Health::default();
        for n in 1..=HUB_EJECT_FAILURES {
            assert_eq!(until(&health), None, "{n}");
            health.failed(Failure::Wrong, "500".into(), at(0));
        }
        assert!(until(&health).is_some());
        let mut health = Health::default();
        for _ in 0..10 {
            health.failed(Failure::Slow, "late".into(), at(0));
            health.failed(Failure::Slow, "late".into(), at(0));
            health.answered(0, 1);
        }
        assert_eq!(until(&health), None, "only failures in a row count");
    }

    #[test]
    fn the_pause_doubles_to_a_bound_until_a_request_was_answered() {
        let mut health = Health::default();
        let mut pauses = Vec::new();
        let mut now = 0;
        for _ in 0..40 {
            health.failed(Failure::Gone, String::new(), at(now));
            let until_ms = until(&health).unwrap();
            pauses.push(until_ms - now);
            assert_eq!(health.probe_ms(), until_ms);
            now = until_ms;
            health.probed(now, 5000);
        }
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
        assert!(pauses[39] <= HUB_PAUSE_MS_MAX + HUB_PAUSE_MS_MAX / 8);
        health.answered(now, 1);
        health.failed(Failure::Gone, String::new(), at(now));
        assert_eq!(until(&health).unwrap() - now, pauses[0]);
    }

    #[test]
    fn one_on_trial_is_out_after_one_failure() {
        let mut health = Health::default();
        health.failed(Failure::Gone, String::new(), at(0));
        health.probed(1000, 5000);
        assert_eq!((health.standing(), health.probe_ms()), (Standing::Well, 6000));
        health.failed(Failure::Wrong, String::new(), at(1001));
        assert!(until(&health).is_some());
    }

    #[test]
    fn a_wait_is_an_average_that_fades() {
        let mut health = Health::default();
        health.answered(0, 800);
        health.answered(0, 400);
        assert_eq!(health.first_word_ms(0), 700);
        assert_eq!(health.first_word_ms(60_000), 350);
        assert_eq!(health.first_word_ms(u64::MAX), 0);
        health.refused(5, 1000);
        assert!(health.is_busy(1004) && !health.is_busy(1005));
    }
}
