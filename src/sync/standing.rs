//! How a link stands, in words that are true: `synced`, `3 waiting (oldest 2 h)`, `1 needs you`.

use std::fmt;

/// How a link stands, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Entries that the peer does not have yet.
    pub n_waiting: u64,
    /// How long the oldest of them waits, where the clock can tell.
    pub oldest_ms: Option<i64>,
    /// Entries of the peer that are not here yet, as it last said.
    pub n_to_come: u64,
    /// Entries of the peer that were set aside here.
    pub n_held: u64,
    /// Entries that had to go before the peer had them, there or here.
    pub n_lost: u64,
    /// Why the two do not speak, where somebody has to do something.
    pub trouble: Option<String>,
}

impl Standing {
    /// Things that somebody has to look at.
    pub fn n_needs_you(&self) -> u64 {
        self.n_held + u64::from(self.n_lost > 0) + u64::from(self.trouble.is_some())
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.n_waiting > 0 {
            let oldest = self.oldest_ms.map(|ms| format!(" (oldest {})", age(ms)));
            parts.push(format!("{} waiting{}", self.n_waiting, oldest.unwrap_or_default()));
        }
        if self.n_to_come > 0 {
            parts.push(format!("{} to come", self.n_to_come));
        }
        match self.n_needs_you() {
            0 => {}
            1 => parts.push("1 needs you".to_owned()),
            n => parts.push(format!("{n} need you")),
        }
        match parts.is_empty() {
            true => f.write_str("synced"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

/// A time as people say it, in its largest unit.
fn age(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..172_800 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_says_what_is_so() {
        let none = Standing::default();
        let waiting = Standing { n_waiting: 3, oldest_ms: Some(7_300_000), ..none.clone() };
        let held = Standing { n_held: 1, ..none.clone() };
        let all =
            Standing { n_lost: 9, trouble: Some("x".into()), n_to_come: 2, ..waiting.clone() };
        for (standing, text) in [
            (none, "synced"),
            (waiting, "3 waiting (oldest 2 h)"),
            (held, "1 needs you"),
            (all, "3 waiting (oldest 2 h), 2 to come, 2 need you"),
        ] {
            assert_eq!(standing.to_string(), text);
        }
        assert_eq!(
            [age(-5), age(59_999), age(90_000), age(260_000_000)],
            ["0 s", "59 s", "1 min", "3 d"]
        );
    }
}
