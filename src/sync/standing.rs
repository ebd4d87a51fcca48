//! How a link stands, in words that are true: `synced`, `3 waiting (oldest 2 h)`, `1 needs you`,
//! `synced, last heard 3 weeks ago`.

use std::fmt;

use crate::base::limits::SYNC_QUIET_MS;

/// When a peer was last heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastHeard {
    /// Not yet.
    #[default]
    Never,
    /// Once, at a time that the clock cannot tell: it was set meanwhile.
    Once,
    /// So many milliseconds ago.
    Ago(i64),
}

impl LastHeard {
    /// What has to be said of it; nothing while the peer is heard as often as it should be.
    fn remark(self) -> Option<String> {
        match self {
            LastHeard::Never => Some("never heard".to_owned()),
            LastHeard::Once => Some("not heard of late".to_owned()),
            LastHeard::Ago(ms) => {
                (ms >= SYNC_QUIET_MS).then(|| format!("last heard {} ago", age(ms)))
            }
        }
    }
}

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
    /// When the peer was last heard.
    pub heard: LastHeard,
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
        // Who was never heard cannot be in step, though nothing waits for it.
        if parts.is_empty() && self.heard != LastHeard::Never {
            parts.push("synced".to_owned());
        }
        parts.extend(self.heard.remark());
        f.write_str(&parts.join(", "))
    }
}

/// A time as people say it, in its largest unit.
fn age(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..172_800 => format!("{} h", s / 3600),
        172_800..1_209_600 => format!("{} d", s / 86_400),
        _ => format!("{} weeks", s / 604_800),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_says_what_is_so() {
        let none = Standing { heard: LastHeard::Ago(15_000), ..Standing::default() };
        let waiting = Standing { n_waiting: 3, oldest_ms: Some(7_300_000), ..none.clone() };
        let held = Standing { n_held: 1, ..none.clone() };
        let all =
            Standing { n_lost: 9, trouble: Some("x".into()), n_to_come: 2, ..waiting.clone() };
        for (standing, text) in [
            (none.clone(), "synced"),
            (Standing::default(), "never heard"),
            (Standing { n_waiting: 1, ..Standing::default() }, "1 waiting, never heard"),
            (Standing { heard: LastHeard::Once, ..none.clone() }, "synced, not heard of late"),
            (
                Standing { heard: LastHeard::Ago(1_900_000_000), ..none.clone() },
                "synced, last heard 3 weeks ago",
            ),
            (
                Standing { heard: LastHeard::Ago(7_300_000), ..waiting.clone() },
                "3 waiting (oldest 2 h), last heard 2 h ago",
            ),
            (waiting, "3 waiting (oldest 2 h)"),
            (held, "1 needs you"),
            (all, "3 waiting (oldest 2 h), 2 to come, 2 need you"),
        ] {
            assert_eq!(standing.to_string(), text);
        }
        assert_eq!(
            [age(-5), age(59_999), age(90_000), age(260_000_000), age(1_209_600_000)],
            ["0 s", "59 s", "1 min", "3 d", "2 weeks"]
        );
    }
}
