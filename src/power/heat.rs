//! Heat: pauses first, lower clocks if that is not enough, and never the kernel's own throttle.
//!
//! ```text
//! share of the time that computes
//!   1 |---------.
//!     |          \         below soft - 8: all of it     at soft: a tenth
//! 0.1 |           '-----   at hard: nothing, until soft - 4
//!     +---------|---|----- temperature of the hottest chip
//!            soft-8 soft
//! ```
//!
//! The line has no memory, so nothing winds up: a board that can be held below `soft` at all
//! settles somewhere on it. Pauses act within a second but cost more energy than lower clocks, so
//! half a minute of many pauses takes one level away; a minute without any gives one back, and each
//! level that was given back too early doubles that minute, up to half an hour.
//!
//! A sensor that falls silent is waited for ten seconds; then the board runs at half time and a
//! third of its levels, until the sensor speaks again. The zones of cores and GPU count one by one:
//! when either is silent, the others do not speak for it.

use super::profile::FanCurve;

/// What heat may be.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatPolicy {
    /// Where pauses hold it, in thousandths of a degree.
    pub soft_mc: i32,
    /// Where all computing stops.
    pub hard_mc: i32,
    /// Above this, nobody's job runs.
    pub background_mc: i32,
    /// Whether a board without a sensor is a board whose sensor broke.
    pub needs_sensor: bool,
}

/// Width of the line.
const BAND_MC: i32 = 8_000;
/// The least share of the time that computes below the hard limit.
pub const DUTY_MIN: f64 = 0.1;
/// A change of the share smaller than this is not worth it: sensors have steps of half a degree.
const SLACK: f64 = 0.06;
/// What an unknown temperature counts as.
const COLD_MC: i32 = -100_000;
/// How fast the share rises and falls, in a second.
const UP_PER_S: f64 = 0.02;
const DOWN_PER_S: f64 = 0.2;
/// Longest silence of a sensor, and what is done then.
const SILENCE_MS: u64 = 10_000;
const BLIND_DUTY: f64 = 0.5;
/// Pauses that are many, for how long until a level goes, and how long without until one comes.
const MANY_PAUSES: f64 = 0.75;
const DOWN_AFTER_MS: u64 = 30_000;
const UP_AFTER_MS: u64 = 60_000;
const UP_AFTER_MS_MAX: u64 = 1_920_000;
/// A level that is taken away so soon after one was given back was given back too early.
const REGRET_MS: u64 = 600_000;
/// How far it must cool before jobs run again, and before the fan slows.
const COOLER_MC: i32 = 5_000;
const FAN_BACK_MC: i32 = 3_000;
const FAN_FULL: u32 = 255;

/// What is remembered of heat.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat {
    temp_mc: Option<i32>,
    seen_ms: Option<u64>,
    /// When the zone of the cores and that of the GPU last answered.
    answered_ms: [Option<u64>; 2],
    duty: f64,
    is_stopped: bool,
    is_too_warm: bool,
    /// Levels that were taken away.
    n_taken: usize,
    many_since_ms: Option<u64>,
    none_since_ms: Option<u64>,
    up_after_ms: u64,
    given_ms: Option<u64>,
    fan_mc: i32,
}

impl Default for Heat {
    fn default() -> Heat {
        Heat {
            temp_mc: None,
            seen_ms: None,
            answered_ms: [None; 2],
            duty: 1.0,
            is_stopped: false,
            is_too_warm: false,
            n_taken: 0,
            many_since_ms: None,
            none_since_ms: None,
            up_after_ms: UP_AFTER_MS,
            given_ms: None,
            fan_mc: COLD_MC,
        }
    }
}

/// What heat allows now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeatLimit {
    /// Share of the time that may compute.
    pub duty: f64,
    /// The highest level.
    pub level_max: usize,
    /// Whether it is cool enough for jobs.
    pub is_cool: bool,
    /// Whether the sensor is silent.
    pub is_blind: bool,
    /// Pulse width of the fan: full while blind; none where no temperature is known or expected.
    pub fan_pwm: Option<u32>,
}

impl Heat {
    /// Notes which of the two zones that matter answer, and says the temperature that counts: while
    /// one that once answered is silent, cooler ones say nothing of it.
    pub fn listen(
        &mut self,
        temp_mc: Option<i32>,
        answers: [Option<bool>; 2],
        now_ms: u64,
    ) -> Option<i32> {
        for (at_ms, answers) in self.answered_ms.iter_mut().zip(answers) {
            *at_ms = match answers {
                Some(true) => Some(now_ms),
                Some(false) => *at_ms,
                None => at_ms.map(|_| now_ms),
            };
        }
        let is_silent = self.answered_ms.iter().flatten().any(|at_ms| *at_ms < now_ms);
        match (temp_mc, self.temp_mc) {
            (Some(now), Some(before)) if is_silent => Some(now.max(before)),
            _ => temp_mc,
        }
    }

    /// Takes a temperature, `dt_s` seconds after the one before, and says what it allows on a
    /// ladder up to `top`, with a fan by this curve.
    pub fn step(
        &mut self,
        policy: &HeatPolicy,
        fan: &FanCurve,
        temp_mc: Option<i32>,
        now_ms: u64,
        dt_s: f64,
        top: usize,
    ) -> HeatLimit {
        if temp_mc.is_some() || self.seen_ms.is_none() {
            self.seen_ms = Some(now_ms);
        }
        self.temp_mc = temp_mc.or(self.temp_mc);
        let silence_ms = now_ms.saturating_sub(self.seen_ms.unwrap_or(now_ms));
        let is_expected = policy.needs_sensor || self.temp_mc.is_some();
        let is_long = |at_ms: &u64| now_ms.saturating_sub(*at_ms) > SILENCE_MS;
        let is_half = self.answered_ms.iter().flatten().any(is_long);
        let is_blind = is_half || is_expected && silence_ms > SILENCE_MS;
        self.pause(policy, is_blind, dt_s);
        self.move_levels(policy, now_ms, top);
        let temp_mc = self.temp_mc.unwrap_or(COLD_MC);
        self.is_too_warm = match self.is_too_warm {
            true => temp_mc > policy.background_mc - COOLER_MC,
            false => temp_mc > policy.background_mc,
        };
        if temp_mc > self.fan_mc || temp_mc < self.fan_mc - FAN_BACK_MC {
            self.fan_mc = temp_mc;
        }
        let by_curve = self.temp_mc.map(|_| fan.pwm(self.fan_mc));
        let blind_max = if is_blind { top / 3 } else { top };
        HeatLimit {
            duty: self.duty,
            level_max: top.saturating_sub(self.n_taken).min(blind_max),
            is_cool: !self.is_too_warm && !is_blind && !self.is_stopped,
            is_blind,
            fan_pwm: if is_blind { Some(FAN_FULL) } else { by_curve },
        }
    }

    /// Moves the share of the time that computes towards what the line says.
    fn pause(&mut self, policy: &HeatPolicy, is_blind: bool, dt_s: f64) {
        let temp_mc = self.temp_mc.unwrap_or(COLD_MC);
        self.is_stopped = match self.is_stopped {
            // What cannot be seen has not cooled.
            is_stopped if is_blind => is_stopped,
            true => temp_mc > policy.soft_mc - BAND_MC / 2,
            false => temp_mc >= policy.hard_mc,
        };
        if self.is_stopped {
            self.duty = 0.0;
            return;
        }
        let below = f64::from(policy.soft_mc) - f64::from(temp_mc);
        let part = (below / f64::from(BAND_MC)).clamp(0.0, 1.0);
        let mut wanted = DUTY_MIN + (1.0 - DUTY_MIN) * part;
        if is_blind {
            wanted = wanted.min(BLIND_DUTY);
        }
        if (wanted - self.duty).abs() < SLACK && wanted > DUTY_MIN && wanted < 1.0 {
            return;
        }
        let change = (wanted - self.duty).clamp(-DOWN_PER_S * dt_s, UP_PER_S * dt_s);
        self.duty = (self.duty + change).clamp(DUTY_MIN, 1.0);
    }

    /// Takes a level away or gives one back.
    fn move_levels(&mut self, policy: &HeatPolicy, now_ms: u64, top: usize) {
        let since = |is: bool, since: &mut Option<u64>| {
            *since = is.then(|| since.unwrap_or(now_ms));
            since.map_or(0, |start| now_ms.saturating_sub(start))
        };
        let is_cool = self.temp_mc.is_none_or(|mc| mc < policy.soft_mc - BAND_MC);
        let many_ms = since(self.duty < MANY_PAUSES, &mut self.many_since_ms);
        let none_ms = since(self.duty >= 1.0 && is_cool, &mut self.none_since_ms);
        if many_ms >= DOWN_AFTER_MS && self.n_taken < top - top / 3 {
            self.n_taken += 1;
            self.many_since_ms = None;
            let is_regret = self.given_ms.is_some_and(|at| now_ms.saturating_sub(at) < REGRET_MS);
            let doubled = self.up_after_ms.saturating_mul(2).min(UP_AFTER_MS_MAX);
            self.up_after_ms = if is_regret { doubled } else { UP_AFTER_MS };
        } else if none_ms >= self.up_after_ms && self.n_taken > 0 {
            self.n_taken -= 1;
            self.none_since_ms = None;
            self.given_ms = Some(now_ms);
        }
    }
}
