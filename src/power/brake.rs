//! The supply: never more than it gives, and at once less when it gives way.
//!
//! ```text
//! the count of over-currents rises    half the level, pauses, no jobs for ten minutes
//! the board takes more than the class  one level less at every look; where there is none to take,
//!                                      or it takes no settings, pauses instead
//! neither for a while                  one level more; the while is 20 s after too many watts,
//!                                      60 s after an alarm and twice that after each further one
//! ```
//!
//! A Nano on a weak cable sags first and says so in its kernel's log before it turns off, so the
//! alarm is worth more than the watts. What was counted before the first look does not count.

/// How long until a level is tried again.
const OVER_WAIT_MS: u64 = 20_000;
const ALARM_WAIT_MS: u64 = 60_000;
const ALARM_WAIT_MS_MAX: u64 = 3_600_000;
/// Without an alarm for so long, the next one is a first one.
const FORGIVE_MS: u64 = 3_600_000;
/// Without an alarm for so long, jobs run again.
const JOBS_AFTER_MS: u64 = 600_000;
/// Share of the time that may compute after an alarm.
const ALARM_DUTY: f64 = 0.7;
/// The same where no level can be halved.
const ALARM_DUTY_ALONE: f64 = 0.5;
/// Of the share of the time, what is left after a look at too many watts, and the least.
const OVER_DUTY: f64 = 0.9;
const OVER_DUTY_MIN: f64 = 0.1;
/// What comes back of it at once.
const DUTY_STEP: f64 = 0.1;
/// Of the supply's class, what must be left before a level is tried again.
const ROOM: f64 = 0.9;

/// What is remembered of the supply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Brake {
    n_seen: Option<u64>,
    level_max: Option<usize>,
    /// Share of the time that is taken away because no level can be.
    paused: f64,
    up_at_ms: u64,
    wait_ms: u64,
    alarm_ms: Option<u64>,
}

/// Where the board is on the ladder.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The level that it was set to.
    pub level_idx: usize,
    /// The highest one.
    pub top: usize,
    /// Whether it took that setting.
    pub is_there: bool,
}

/// What the supply allows now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SupplyLimit {
    /// The highest level.
    pub level_max: usize,
    /// Share of the time that may compute.
    pub duty: f64,
    /// Whether jobs may run.
    pub is_steady: bool,
    /// Whether it was an alarm that holds the level down.
    pub is_alarm: bool,
}

impl Brake {
    /// Takes the watts and the count of alarms at a level, and says what they allow.
    pub fn step(
        &mut self,
        limit_mw: Option<u32>,
        mw: Option<u32>,
        n_over_current: Option<u64>,
        at: At,
        now_ms: u64,
    ) -> SupplyLimit {
        let At { level_idx, top, is_there } = at;
        let present = self.level_max.unwrap_or(top).min(top);
        let held = present.min(level_idx);
        let is_over = matches!((limit_mw, mw), (Some(limit), Some(mw)) if mw > limit);
        if self.is_alarm(n_over_current) {
            let is_again = self.alarm_ms.is_some_and(|at| now_ms.saturating_sub(at) < FORGIVE_MS);
            let doubled = self.wait_ms.saturating_mul(2).clamp(ALARM_WAIT_MS, ALARM_WAIT_MS_MAX);
            self.wait_ms = if is_again { doubled } else { ALARM_WAIT_MS };
            self.alarm_ms = Some(now_ms);
            self.hold(held / 2, now_ms, self.wait_ms);
        } else if is_over {
            let wait_ms = self.wait_ms.max(OVER_WAIT_MS);
            if held == 0 || !is_there {
                self.paused = 1.0 - ((1.0 - self.paused) * OVER_DUTY).max(OVER_DUTY_MIN);
            }
            self.hold(held.saturating_sub(1), now_ms, wait_ms);
        } else if self.level_max.is_some() && now_ms >= self.up_at_ms {
            let room = |limit: u32| f64::from(limit) * ROOM;
            let has_room = match (limit_mw, mw) {
                (Some(limit), Some(mw)) => f64::from(mw) < room(limit),
                _ => true,
            };
            // A level that nobody is at says nothing about the next one.
            let is_used = level_idx >= present;
            if has_room && self.paused > 0.0 {
                self.paused = (self.paused - DUTY_STEP).max(0.0);
                self.hold(present, now_ms, self.wait_ms.max(OVER_WAIT_MS));
            } else if has_room && is_used {
                self.hold(present + 1, now_ms, self.wait_ms.max(OVER_WAIT_MS));
                self.level_max = self.level_max.filter(|level| *level < top);
            }
        }
        let since_ms = self.alarm_ms.map(|at| now_ms.saturating_sub(at));
        let within = |ms: u64| since_ms.is_some_and(|since| since < ms);
        let alarm_duty = if top > 0 && is_there { ALARM_DUTY } else { ALARM_DUTY_ALONE };
        let duty = if within(self.wait_ms) { alarm_duty } else { 1.0 };
        SupplyLimit {
            level_max: self.level_max.unwrap_or(top),
            duty: duty.min(1.0 - self.paused),
            is_steady: !within(JOBS_AFTER_MS),
            is_alarm: within(self.wait_ms),
        }
    }

    /// Whether the count rose. One that fell began anew, and says nothing.
    fn is_alarm(&mut self, n_over_current: Option<u64>) -> bool {
        let Some(n) = n_over_current else { return false };
        self.n_seen.replace(n).is_some_and(|before| n > before)
    }

    fn hold(&mut self, level_max: usize, now_ms: u64, wait_ms: u64) {
        self.level_max = Some(level_max);
        self.up_at_ms = now_ms.saturating_add(wait_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(level_idx: usize, top: usize) -> At {
        At { level_idx, top, is_there: true }
    }

    #[test]
    fn a_board_whose_clocks_nobody_sets_is_paused() {
        for place in [at(0, 0), At { is_there: false, ..at(10, 10) }] {
            let mut brake = Brake::default();
            let mut look = |s: u64, mw: u32, n: u64| {
                brake.step(Some(5_000), Some(mw), Some(n), place, s * 1000).duty
            };
            assert_eq!(look(0, 4_000, 0), 1.0);
            let duties = [1, 2, 3].map(|s| (look(s, 5_500, 0) * 1000.0).round());
            assert_eq!(duties, [900.0, 810.0, 729.0]);
            assert!((4..200).all(|s| look(s, 9_000, 0) >= 0.099), "never quite still");
            assert!((200..600).all(|s| look(s, 4_000, 0) >= 0.099));
            assert_eq!(look(600, 4_000, 0), 1.0, "and back");
            assert_eq!(look(601, 4_000, 1), 0.5);
        }
    }

    #[test]
    fn an_alarm_halves_at_once_and_comes_back_slowly() {
        let mut brake = Brake::default();
        let mut look = |s: u64, n: u64, level: usize| {
            brake.step(Some(10_000), Some(6_000), Some(n), at(level, 10), s * 1000)
        };
        assert_eq!(look(0, 7, 10).level_max, 10, "what was before does not count");
        let limit = look(1, 8, 10);
        assert_eq!((limit.level_max, limit.duty, limit.is_steady), (5, 0.7, false));
        assert_eq!(look(60, 8, 5).level_max, 5);
        assert_eq!(look(61, 8, 5).level_max, 6);
        assert_eq!(look(122, 9, 6).level_max, 3);
        assert_eq!(look(241, 9, 3).level_max, 3, "the second wait is twice as long");
        assert_eq!(look(242, 9, 3).level_max, 4);
        assert_eq!(look(243, 2, 4).level_max, 4, "a log that began anew is no alarm");
        assert!(!look(721, 2, 0).is_steady && look(722, 2, 0).is_steady);
    }

    #[test]
    fn more_watts_than_the_class_take_a_level_at_every_look() {
        let mut brake = Brake::default();
        let mut look = |s: u64, mw: u32, level: usize| {
            brake.step(Some(5_000), Some(mw), None, at(level, 10), s * 1000).level_max
        };
        assert_eq!([look(0, 5_200, 10), look(1, 5_100, 9), look(2, 4_900, 8)], [9, 8, 8]);
        assert_eq!(look(30, 4_900, 8), 8, "there is no room for another level");
        assert_eq!([look(31, 4_400, 8), look(32, 4_400, 9)], [9, 9]);
        assert_eq!(look(60, 4_400, 3), 9, "nobody is there to try it");
        assert_eq!(look(61, 4_400, 9), 10);
    }
}
