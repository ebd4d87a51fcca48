//! Whether jobs may run now: the door for power, heat and times of the day.

/// What is said about jobs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may run.
    Go,
    /// They wait.
    Wait {
        /// Why, in words for people.
        reason: String,
        /// Until when, if that is known.
        until_ms: Option<i64>,
    },
}

/// Somebody who says whether jobs may run, such as who watches the board's heat. Requests of
/// people are not asked about.
pub trait Pace: Send + Sync {
    /// Whether they may at `now_ms` since the Unix epoch.
    fn verdict(&self, now_ms: i64) -> Verdict;

    /// Whether the clock can be believed; until then jobs with a deadline or a moment to begin
    /// wait.
    fn knows_time(&self) -> bool {
        true
    }
}

/// Lets jobs run at any time, where nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysGo;

impl Pace for AlwaysGo {
    fn verdict(&self, _: i64) -> Verdict {
        Verdict::Go
    }
}

const MINUTE_MS: i64 = 60_000;
const DAY_MIN: i64 = 24 * 60;

/// Times of the day at which jobs may run, in UTC; none for any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows(Vec<(i64, i64)>);

impl Windows {
    /// Reads windows such as `22:00-06:00`; `None` for a text that is none.
    pub fn parse(texts: &[String]) -> Option<Windows> {
        let minute = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let (hour, minute): (i64, i64) = (hour.parse().ok()?, minute.parse().ok()?);
            ((0..24).contains(&hour) && (0..60).contains(&minute)).then_some(hour * 60 + minute)
        };
        let window = |text: &String| {
            let (from, to) = text.split_once('-')?;
            Some((minute(from)?, minute(to)?))
        };
        texts.iter().map(window).collect::<Option<Vec<_>>>().map(Windows)
    }
}

impl Pace for Windows {
    fn verdict(&self, now_ms: i64) -> Verdict {
        let now = now_ms.div_euclid(MINUTE_MS).rem_euclid(DAY_MIN);
        // From when to when they are the same it is the whole day.
        let is_in = |&(from, to): &(i64, i64)| match from < to {
            true => (from..to).contains(&now),
            false => now >= from || now < to,
        };
        if self.0.is_empty() || self.0.iter().any(is_in) {
            return Verdict::Go;
        }
        let wait = self.0.iter().map(|(from, _)| (from - now).rem_euclid(DAY_MIN)).min();
        let start_ms = now_ms.div_euclid(MINUTE_MS) * MINUTE_MS;
        Verdict::Wait {
            reason: "outside the hours of jobs".to_owned(),
            until_ms: wait.map(|minutes| start_ms + minutes * MINUTE_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_go_over_midnight() {
        let windows = Windows::parse(&["22:00-06:30".to_owned(), "12:00-13:00".to_owned()]);
        let windows = windows.unwrap();
        let at = |hour: i64, minute: i64| {
            windows.verdict((3 * DAY_MIN + hour * 60 + minute) * MINUTE_MS + 17)
        };
        for (hour, minute) in [(22, 0), (23, 59), (0, 0), (6, 29), (12, 30)] {
            assert_eq!(at(hour, minute), Verdict::Go, "{hour}:{minute}");
        }
        for (hour, minute, next) in [(6, 30, 12), (11, 59, 12), (13, 0, 22), (21, 59, 22)] {
            let Verdict::Wait { until_ms, .. } = at(hour, minute) else { panic!("{hour}") };
            assert_eq!(until_ms, Some((3 * DAY_MIN + next * 60) * MINUTE_MS));
        }
        assert_eq!(Windows::default().verdict(5), Verdict::Go);
        for wrong in ["22-6", "24:00-01:00", "a:b-c:d", "12:00", "12:60-13:00"] {
            assert_eq!(Windows::parse(&[wrong.to_owned()]), None, "{wrong}");
        }
    }
}
