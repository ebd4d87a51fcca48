//! How long an idle model stays, as people write it: seconds or `1h30m`, 0 for not at all, -1 for
//! ever.

use std::time::Duration;

use crate::base::limits::KEEP_ALIVE_S_MAX;

/// Longer than any service runs. A model kept for ever still makes room for one that is asked for.
pub const FOREVER: Duration = Duration::MAX;

/// A time that is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no time: use seconds, 90s, 5m, 1h30m, 0 for not at all or -1 for ever")]
pub struct KeepAliveError {
    text: String,
}

/// Reads seconds (`300`, `0.5`) or numbers with units (`h`, `m`, `s`, `ms`), each bigger or smaller
/// than the last. What is below 0 is [`FOREVER`].
///
/// # Errors
/// Any other text, and a time beyond `KEEP_ALIVE_S_MAX`.
pub fn parse_keep_alive(text: &str) -> Result<Duration, KeepAliveError> {
    let wrong = || KeepAliveError { text: text.chars().take(40).collect() };
    let (is_negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let seconds = seconds_of(rest).filter(|s| *s <= KEEP_ALIVE_S_MAX as f64).ok_or_else(wrong)?;
    match is_negative && seconds > 0.0 {
        true => Ok(FOREVER),
        false => Ok(Duration::from_secs_f64(seconds)),
    }
}

/// Seconds of a time without a sign.
fn seconds_of(text: &str) -> Option<f64> {
    if !text.contains(|c: char| c.is_ascii_alphabetic()) {
        return number(text);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let n_number = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let (amount, tail) = rest.split_at(n_number);
        let n_unit = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(n_unit);
        let unit_s = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        seconds += number(amount)? * unit_s;
        rest = tail;
    }
    Some(seconds)
}

/// Digits, with a point or without; no sign, no exponent.
fn number(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let seconds = |text: &str| parse_keep_alive(text).map(|time| time.as_secs_f64());
        for (text, s) in [
            ("300", 300.0),
            ("0", 0.0),
            ("0s", 0.0),
            ("-0", 0.0),
            ("1.5", 1.5),
            ("90s", 90.0),
            ("5m", 300.0),
            ("1h30m", 5400.0),
            ("1.5h", 5400.0),
            ("500ms", 0.5),
            ("1h1m1s1ms", 3661.001),
        ] {
            assert_eq!(seconds(text), Ok(s), "{text}");
        }
        for text in ["-1", "-5m", "-0.5"] {
            assert_eq!(parse_keep_alive(text), Ok(FOREVER), "{text}");
        }
        for text in [
            "",
            "-",
            "m",
            "5x",
            "5 m",
            "m5",
            "5m3",
            "1e3",
            "--1",
            "+5",
            ".",
            "nan",
            "inf",
            "5M",
            "99999999999h",
        ] {
            let error = parse_keep_alive(text).unwrap_err().to_string();
            assert!(error.contains("1h30m"), "{text}: {error}");
        }
    }
}
