//! Which clock a model needs: speed and power of decode at one level after the other.
//!
//! ```text
//! top level -> settle 0.5 s -> measure >= 2 s and >= 48 tokens -> a point -> one level lower ...
//!                 ^ whatever disturbs (another phase, more sequences, a cap) begins here again
//! done: the lowest level, or a speed below 60 % of the best
//! ```
//!
//! The walk goes down because the top is where a person who waits wants to begin, and ends early
//! because below 60 % of the speed there is nothing that anybody asks for. It is a pure machine:
//! time and counters come in, the level to be at comes out. What it found is plain data and can be
//! kept for the next start.

use serde::{Deserialize, Serialize};

use super::profile::Goal;

/// Time at a level before anything is counted.
const SETTLE_MS: u64 = 500;
/// Time and tokens of a point, at the least.
const MEASURE_MS: u64 = 2_000;
const N_TOKEN_MIN: u64 = 48;
/// A point ends after this time with however many tokens.
const MEASURE_MS_MAX: u64 = 20_000;
/// Share of the best speed below which the walk ends.
const SHARE_END: f64 = 0.6;
/// Longest time between two looks over which power is added up.
const GAP_MS_MAX: u64 = 3_000;

/// What was measured at a level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The level.
    pub level_idx: usize,
    /// Tokens a second of decode.
    pub tok_s: f64,
    /// What the board took, in milliwatts, where it can be measured.
    pub mw: Option<f64>,
}

/// What is known of a model on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Points, from the top down.
    points: Vec<Point>,
    is_done: bool,
}

impl Calibration {
    /// What was measured, from the top level down.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether the walk is over.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// The level for a goal, at most `level_max`; `None` as long as nothing is known below it.
    pub fn choose(&self, goal: Goal, level_max: usize) -> Option<usize> {
        let known: Vec<&Point> = self.points.iter().filter(|p| p.level_idx <= level_max).collect();
        let best = known.iter().map(|p| p.tok_s).fold(0.0, f64::max);
        let first = known.first()?;
        match goal {
            Goal::Speed => Some(level_max),
            Goal::Energy(_) if known.iter().all(|p| p.mw.is_some()) => {
                let energy = |p: &&&Point| p.mw.unwrap_or(f64::MAX) / p.tok_s.max(1e-9);
                let least = known.iter().min_by(|a, b| energy(a).total_cmp(&energy(b)));
                least.map(|p| p.level_idx)
            }
            // From the top, so that one point that was lucky does not count.
            Goal::Share(share) | Goal::Energy(share) => {
                let keeps = known.iter().take_while(|p| p.tok_s >= share * best);
                Some(keeps.last().unwrap_or(first).level_idx)
            }
        }
    }

    /// The level to measure next, if any.
    pub fn next(&self, level_max: usize) -> Option<usize> {
        match self.points.last() {
            _ if self.is_done => None,
            None => Some(level_max),
            Some(last) => last.level_idx.checked_sub(1),
        }
    }

    fn add(&mut self, point: Point) {
        self.points.push(point);
        let best = self.points.iter().map(|p| p.tok_s).fold(0.0, f64::max);
        self.is_done = point.level_idx == 0 || point.tok_s < SHARE_END * best;
    }

    /// Whether what was read from a disk can be one of this machine's.
    pub fn is_sound(&self, top: usize) -> bool {
        let falls = self.points.windows(2).all(|pair| pair[0].level_idx > pair[1].level_idx);
        let is_speed = |p: &Point| {
            let mw_fits = p.mw.is_none_or(|mw| mw.is_finite() && mw >= 0.0);
            p.tok_s.is_finite() && p.tok_s > 0.0 && mw_fits && p.level_idx <= top
        };
        falls && self.points.iter().all(is_speed) && (!self.is_done || !self.points.is_empty())
    }
}

/// What the machine sees at one moment of undisturbed decode.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Now.
    pub now_ms: u64,
    /// The level that is set.
    pub level_idx: usize,
    /// Tokens decoded since the engine's start.
    pub n_decoded: u64,
    /// Sequences that decode.
    pub n_sequence: u32,
    /// What the board takes.
    pub mw: Option<u32>,
}

/// A measurement that is under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probe {
    window: Option<Window>,
}

#[derive(Clone, Debug, PartialEq)]
struct Window {
    level_idx: usize,
    n_sequence: u32,
    settled_ms: u64,
    /// Tokens at the moment it was settled, and that moment.
    start: Option<(u64, u64)>,
    last_ms: u64,
    /// Milliwatts times milliseconds, and milliseconds, that were measured.
    mw_ms: f64,
    measured_ms: f64,
}

impl Probe {
    /// Something disturbed: what was counted does not count.
    pub fn disturb(&mut self) {
        self.window = None;
    }

    /// Takes a look, adds a point when one is complete, and says at which level to be.
    pub fn step(&mut self, known: &mut Calibration, level_max: usize, seen: Seen) -> Option<usize> {
        let wanted = known.next(level_max)?;
        let is_same = |w: &Window| {
            w.level_idx == seen.level_idx
                && w.n_sequence == seen.n_sequence
                && seen.now_ms.saturating_sub(w.last_ms) <= GAP_MS_MAX
        };
        let fresh = Window {
            level_idx: seen.level_idx,
            n_sequence: seen.n_sequence,
            settled_ms: seen.now_ms + SETTLE_MS,
            start: None,
            last_ms: seen.now_ms,
            mw_ms: 0.0,
            measured_ms: 0.0,
        };
        let mut window = self.window.take().filter(is_same).unwrap_or(fresh);
        if seen.level_idx != wanted {
            return Some(wanted);
        }
        let done = window.look(seen);
        match done {
            Some(point) => known.add(point),
            None => self.window = Some(window),
        }
        known.next(level_max)
    }
}

impl Window {
    fn look(&mut self, seen: Seen) -> Option<Point> {
        let gap_ms = seen.now_ms.saturating_sub(std::mem::replace(&mut self.last_ms, seen.now_ms));
        let Some((n_start, start_ms)) = self.start else {
            if seen.now_ms >= self.settled_ms {
                self.start = Some((seen.n_decoded, seen.now_ms));
            }
            return None;
        };
        if let Some(mw) = seen.mw {
            self.mw_ms += f64::from(mw) * gap_ms as f64;
            self.measured_ms += gap_ms as f64;
        }
        let took_ms = seen.now_ms.saturating_sub(start_ms);
        let n_token = seen.n_decoded.saturating_sub(n_start);
        let is_enough = took_ms >= MEASURE_MS && n_token >= N_TOKEN_MIN;
        if !is_enough && (took_ms < MEASURE_MS_MAX || n_token == 0) {
            return None;
        }
        let is_measured = self.measured_ms * 2.0 > took_ms as f64;
        Some(Point {
            level_idx: self.level_idx,
            tok_s: n_token as f64 * 1000.0 / took_ms as f64,
            mw: is_measured.then(|| self.mw_ms / self.measured_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose speed saturates at level 6, with a power that grows with the square.
    fn walk(mut known: Calibration, has_power: bool) -> (Calibration, u64) {
        let mut probe = Probe::default();
        let (mut level_idx, mut tokens, mut now_ms) = (9, 0.0, 0);
        while !known.is_done() && now_ms < 200_000 {
            let speed = 5.0 * (level_idx as f64).min(6.0) + 2.0;
            tokens += speed * 0.25;
            now_ms += 250;
            let mw = has_power.then_some(1500 + 100 * (level_idx * level_idx) as u32);
            let seen = Seen { now_ms, level_idx, n_decoded: tokens as u64, n_sequence: 1, mw };
            level_idx = probe.step(&mut known, 9, seen).unwrap_or(level_idx);
        }
        (known, now_ms)
    }

    #[test]
    fn the_lowest_clock_that_keeps_the_speed_is_found() {
        let (known, took_ms) = walk(Calibration::default(), true);
        assert!(known.is_done() && took_ms < 30_000, "{took_ms} {known:?}");
        let levels: Vec<usize> = known.points().iter().map(|p| p.level_idx).collect();
        assert_eq!(levels, [9, 8, 7, 6, 5, 4, 3], "level 3 has 17 of 32 tokens a second");
        assert_eq!(known.choose(Goal::Share(0.95), 9), Some(6));
        assert_eq!(known.choose(Goal::Speed, 9), Some(9));
        assert_eq!(known.choose(Goal::Share(0.95), 5), Some(5), "what a cap leaves is the best");
        assert_eq!(known.choose(Goal::Share(0.95), 2), None, "nothing is known there");
        // (1500 + 100 l^2) / (5 l + 2): 159 at 6, 148 at 5, 141 at 4, 141.2 at 3.
        assert_eq!(known.choose(Goal::Energy(0.75), 9), Some(4));
        let (known, _) = walk(Calibration::default(), false);
        assert_eq!(known.choose(Goal::Energy(0.75), 9), Some(5), "27 of 32, and 22 is too few");
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), known);
        assert!(known.is_sound(9) && !known.is_sound(8));
    }

    #[test]
    fn what_disturbs_begins_the_point_again() {
        let (mut known, mut probe) = (Calibration::default(), Probe::default());
        for i in 0..1000u64 {
            let seen = Seen {
                now_ms: i * 100,
                level_idx: 9,
                n_decoded: i * 10,
                n_sequence: 1 + (i / 20) as u32 % 2,
                mw: None,
            };
            assert_eq!(probe.step(&mut known, 9, seen), Some(9));
        }
        assert!(known.points().is_empty(), "sequences came and went every two seconds");
    }
}
