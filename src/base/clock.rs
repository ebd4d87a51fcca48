//! Whether this machine's clock can be believed.
//!
//! A Jetson has no battery for its clock: it begins with the time at which it went off, or with
//! 1970, until somebody on the network sets it. That shows in a mark of systemd (239 and later)
//! and, on every system, in a jump. The kernel's own word, `adjtimex`, is not for a sandboxed
//! service. Where nobody ever sets it, such as without a network, the clock is what there is and
//! counts after a while; so does one that was set before anybody looked.

use std::path::Path;
use std::time::SystemTime;

use super::limits::CLOCK_WAIT_S;

/// What systemd makes when the clock is set.
const MARK: &str = "/run/systemd/timesync/synchronized";
/// Seconds by which a clock moves that is set; half of it may be rounding.
const JUMP_S: i64 = 4;

/// The clock as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    booted_s: i64,
}

impl Clock {
    /// Begins to look.
    pub fn look() -> Clock {
        Clock { booted_s: now_s() - uptime_s() }
    }

    /// Whether its times may be acted on.
    pub fn is_believed(&self) -> bool {
        Path::new(MARK).exists() || self.counts(now_s(), uptime_s())
    }

    fn counts(&self, now_s: i64, uptime_s: i64) -> bool {
        let moved_s = (now_s - uptime_s).abs_diff(self.booted_s);
        uptime_s >= CLOCK_WAIT_S || moved_s >= JUMP_S.unsigned_abs()
    }
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn uptime_s() -> i64 {
    rustix::system::sysinfo().uptime
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_when_somebody_has_set_it_or_nobody_ever_does() {
        let clock = Clock { booted_s: 1_000_000 };
        assert!(!clock.counts(1_000_020, 20));
        assert!(!clock.counts(1_000_022, 21), "rounding");
        assert!(clock.counts(1_790_000_030, 30), "it was set");
        assert!(clock.counts(900_000, 30), "to an earlier time, too");
        assert!(!clock.counts(1_000_599, 599));
        assert!(clock.counts(1_000_600, 600), "nobody is there to set it");
    }
}
