//! A figure: what was measured, in rounds, and which part of a limit it reaches.

use serde::{Deserialize, Serialize};

/// What the values of a figure are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Tokens a second.
    #[serde(rename = "tok/s")]
    TokensPerSecond,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Mebibytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// 10^9 bytes a second.
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    /// 10^9 multiply-adds a second.
    #[serde(rename = "GMAC/s")]
    GigaMacs,
    /// One over another.
    #[serde(rename = "x")]
    Times,
    /// One time over another.
    #[serde(rename = "x time")]
    TimeRatio,
    /// Joules.
    #[serde(rename = "J")]
    Joules,
    /// Joules for each token.
    #[serde(rename = "J/token")]
    JoulesPerToken,
    /// Joules a second.
    #[serde(rename = "W")]
    Watts,
}

impl Unit {
    /// The unit's sign.
    pub fn sign(self) -> &'static str {
        match self {
            Unit::TokensPerSecond => "tok/s",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::GigabytesPerSecond => "GB/s",
            Unit::GigaMacs => "GMAC/s",
            Unit::Times | Unit::TimeRatio => "x",
            Unit::Joules => "J",
            Unit::JoulesPerToken => "J/token",
            Unit::Watts => "W",
        }
    }

    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        matches!(
            self,
            Unit::TokensPerSecond | Unit::GigabytesPerSecond | Unit::GigaMacs | Unit::Times
        )
    }
}

/// What a figure comes to in terms of a limit of the machine, and that limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Bytes or multiply-adds that the figure's median stands for.
    pub rate: f64,
    /// What the machine can do by itself.
    pub limit: f64,
    /// Of both.
    pub unit: Unit,
}

impl Share {
    /// The part of the limit.
    pub fn fraction(&self) -> f64 {
        self.rate / self.limit
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was done, `pp512` for example; docs/bench.md explains the names.
    pub test: String,
    /// What the values are.
    pub unit: Unit,
    /// One for each round.
    pub values: Vec<f64>,
    /// Against the machine's limit, where there is one.
    #[serde(default)]
    pub share: Option<Share>,
    /// What arithmetic said before, on a board for which there is some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<f64>,
}

impl Figure {
    /// A figure without a limit.
    pub fn new(test: impl Into<String>, unit: Unit, values: Vec<f64>) -> Figure {
        Figure { test: test.into(), unit, values, share: None, predicted: None }
    }

    /// The same, held against `limit`: one of its units stands for `per_unit` of `unit`.
    pub fn against(mut self, limit: Option<f64>, per_unit: f64, unit: Unit) -> Figure {
        let rate = self.median() * per_unit;
        self.share = limit.map(|limit| Share { rate, limit, unit });
        self
    }

    /// The same times in milliseconds, each for `n_giga` of what `unit` counts by the second, held
    /// against `limit`.
    pub fn taking(mut self, limit: Option<f64>, n_giga: f64, unit: Unit) -> Figure {
        let rate = n_giga * 1e3 / self.median();
        self.share = limit.map(|limit| Share { rate, limit, unit });
        self
    }

    /// The rounds over another figure's median, if that is more than nothing.
    pub fn over(&self, one: &Figure, test: String, unit: Unit) -> Option<Figure> {
        let values = self.values.iter().map(|value| value / one.median()).collect();
        (one.median() > 0.0).then(|| Figure::new(test, unit, values))
    }

    /// The same beside what was predicted.
    pub fn beside(self, predicted: Option<f64>) -> Figure {
        Figure { predicted, ..self }
    }

    /// The middle value; the mean of the middle two.
    pub fn median(&self) -> f64 {
        percentile(&self.values, 50.0)
    }

    /// The lowest value.
    pub fn low(&self) -> f64 {
        percentile(&self.values, 0.0)
    }

    /// The highest value.
    pub fn high(&self) -> f64 {
        percentile(&self.values, 100.0)
    }
}

/// The `p`-th percentile of values in any order, interpolated; 0 of none.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = p / 100.0 * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(percentile(&values, 50.0), 2.5);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 100.0), 4.0);
        assert_eq!(percentile(&[7.0], 95.0), 7.0);
        assert_eq!(percentile(&[], 95.0), 0.0);
    }

    #[test]
    fn a_share_is_of_the_median() {
        let figure = Figure::new("tg", Unit::TokensPerSecond, vec![10.0, 20.0, 30.0]);
        let share = figure.against(Some(40.0), 1.5, Unit::GigabytesPerSecond).share.unwrap();
        assert_eq!((share.rate, share.limit), (30.0, 40.0));
        assert_eq!(share.fraction(), 0.75);
        let load = Figure::new("load", Unit::Milliseconds, vec![500.0]);
        let load = load.taking(Some(10.0), 2.0, Unit::GigabytesPerSecond);
        assert_eq!(load.share.unwrap().rate, 4.0, "2 GB in half a second");
    }

    #[test]
    fn a_ratio_has_a_round_for_each_of_its_own() {
        let one = Figure::new("one", Unit::Milliseconds, vec![1.0, 2.0, 9.0]);
        let other = Figure::new("other", Unit::Milliseconds, vec![1.0, 4.0]);
        let ratio = other.over(&one, "ratio".to_owned(), Unit::TimeRatio).unwrap();
        assert_eq!(ratio.values, [0.5, 2.0]);
        let nothing = Figure::new("nothing", Unit::Milliseconds, vec![0.0]);
        assert!(other.over(&nothing, "ratio".to_owned(), Unit::TimeRatio).is_none());
    }
}
