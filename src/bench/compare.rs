//! Two reports beside each other: ratios with their spread.

use std::collections::BTreeMap;

use super::figures::Unit;
use super::report::Line;

/// A test that stands in both reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Model and test.
    pub test: String,
    /// Of the medians' unit.
    pub unit: Unit,
    /// Medians, first and second report.
    pub medians: (f64, f64),
    /// How much better the second is: above 1 it is faster, or smaller.
    pub ratio: f64,
    /// The ratio at its worst and at its best, by the rounds' extremes.
    pub spread: (f64, f64),
}

impl Compared {
    /// Whether every round of one report is better than every round of the other.
    pub fn is_clear(&self) -> bool {
        self.spread.0 > 1.0 || self.spread.1 < 1.0
    }
}

/// Compares tests of the same name on models of the same name, in the first report's order, and
/// counts those that stand in one report alone.
pub fn compare(first: &[Line], second: &[Line]) -> (Vec<Compared>, usize) {
    let key = |line: &Line| (line.model.clone(), line.figure.test.clone());
    // Of a test that was measured again, the last counts.
    let of_second: BTreeMap<_, &Line> = second.iter().map(|line| (key(line), line)).collect();
    let of_first: BTreeMap<_, &Line> = first.iter().map(|line| (key(line), line)).collect();
    let mut compared = Vec::new();
    let mut order: Vec<_> = first.iter().map(key).collect();
    order.dedup();
    for key in order {
        let (Some(a), Some(b)) = (of_first.get(&key), of_second.get(&key)) else { continue };
        let (a, b) = (&a.figure, &b.figure);
        if a.unit != b.unit || compared.iter().any(|c: &Compared| c.test == name(&key)) {
            continue;
        }
        // Of times and sizes the smaller is better.
        let better = |first: f64, second: f64| {
            let (over, under) = if b.unit.is_rate() { (second, first) } else { (first, second) };
            // Also of two that are too small to be told.
            if over == under { 1.0 } else { over / under.max(f64::MIN_POSITIVE) }
        };
        let (worst, best) = if b.unit.is_rate() {
            (better(a.high(), b.low()), better(a.low(), b.high()))
        } else {
            (better(a.low(), b.high()), better(a.high(), b.low()))
        };
        compared.push(Compared {
            test: name(&key),
            unit: b.unit,
            medians: (a.median(), b.median()),
            ratio: better(a.median(), b.median()),
            spread: (worst, best),
        });
    }
    let n_both = of_first.keys().filter(|key| of_second.contains_key(*key)).count();
    (compared, of_first.len() + of_second.len() - 2 * n_both)
}

fn name((model, test): &(String, String)) -> String {
    if model.is_empty() { test.clone() } else { format!("{model}: {test}") }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figure;
    use super::super::report::{read_lines, tests::report, to_lines};
    use super::*;

    #[test]
    fn the_second_report_is_held_against_the_first() {
        let lines = |scale| read_lines(&to_lines(&report(scale))).unwrap();
        let (compared, n_alone) = compare(&lines(1.0), &lines(2.0));
        assert_eq!((compared.len(), n_alone), (2, 0));
        assert_eq!(compared[0].medians, (110.0, 220.0));
        assert_eq!(compared[0].ratio, 2.0);
        assert_eq!(compared[0].spread, (200.0 / 120.0, 240.0 / 100.0));
        assert!(compared[0].is_clear());
        assert!(!compare(&lines(1.0), &lines(1.0)).0[0].is_clear());
        assert_eq!(compare(&lines(1.0), &lines(1.0)[1..]).1, 1);
    }

    #[test]
    fn less_time_is_better() {
        let lines = |ms: f64| {
            let mut report = report(1.0);
            report.figures = vec![Figure::new("load", Unit::Milliseconds, vec![ms, 2.0 * ms])];
            read_lines(&to_lines(&report)).unwrap()
        };
        let (compared, _) = compare(&lines(100.0), &lines(50.0));
        assert_eq!(compared[0].ratio, 2.0);
        assert_eq!(compared[0].spread, (1.0, 4.0));
    }
}
