//! Hybrid logical time: what happened after what, on machines whose clocks may be a day apart.
//!
//! ```text
//! stamp = milliseconds since 1970 (upper bits) | counter (lower 16)
//! tick    later than every stamp of this machine, and than now
//! hear    later than what the peer says, but never far beyond this machine's own clock
//! ```
//!
//! The board has no clock that outlives a power cut: it may wake up in 1970. A peer with a wrong
//! clock drags us forward by [`SYNC_DRIFT_MS_MAX`] at most. An entry still comes after the one that
//! it replaces, because it is stamped behind that one, whatever the clocks say.

use serde::{Deserialize, Serialize};

use crate::base::limits::{SYNC_AHEAD_MS_MAX, SYNC_DRIFT_MS_MAX};

/// A clock before this was never set: 2026-01-01.
const FLOOR_MS: i64 = 1_767_225_600_000;
/// Bits of the counter.
const COUNTER_BITS: u32 = 16;
/// The last millisecond that a stamp can say; it fits a signed number of 64 bits.
const MS_MAX: i64 = (1 << 47) - 1;

/// When something happened, by hybrid logical time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The first stamp of a millisecond since 1970.
    pub fn of_ms(ms: i64) -> Stamp {
        Stamp((ms.clamp(0, MS_MAX) as u64) << COUNTER_BITS)
    }

    /// Whether a clock can say this.
    pub fn is_sound(self) -> bool {
        self.0 < Stamp::of_ms(MS_MAX).0
    }

    /// The stamp behind this one.
    pub fn next(self) -> Stamp {
        Stamp((self.0 + 1).min(Stamp::of_ms(MS_MAX).0))
    }
}

/// The next stamp of a clock that stands at `last`.
pub fn tick(last: Stamp, now_ms: i64) -> Stamp {
    Stamp::of_ms(now_ms).max(last.next())
}

/// Where a clock stands that hears of `theirs`.
pub fn hear(last: Stamp, theirs: Stamp, now_ms: i64) -> Stamp {
    let bound = Stamp::of_ms(now_ms.max(FLOOR_MS).saturating_add(SYNC_DRIFT_MS_MAX));
    last.max(theirs.min(bound))
}

/// Whether a stamp is further ahead than any clock that people still call set.
///
/// Without a bound, one entry of the last millisecond there is would never be written over: nothing
/// can be stamped behind it.
pub fn is_ahead(at: Stamp, now_ms: i64) -> bool {
    at > Stamp::of_ms(now_ms.max(FLOOR_MS).saturating_add(SYNC_AHEAD_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_and_follows_its_peer_so_far() {
        let now = FLOOR_MS + 1000;
        let first = tick(Stamp::default(), now);
        let second = tick(first, now - 500_000);
        assert!(second > first, "though the wall clock was set back");
        let theirs = Stamp::of_ms(now + 3_600_000);
        assert_eq!(hear(second, theirs, now), theirs);
        let far = hear(second, Stamp::of_ms(now + 100 * SYNC_DRIFT_MS_MAX), now);
        assert_eq!(far, Stamp::of_ms(now + SYNC_DRIFT_MS_MAX));
        let unset = hear(Stamp::default(), theirs, 5);
        assert_eq!(unset, theirs, "a board that wakes up in 1970 follows");
        assert!(tick(Stamp::of_ms(i64::MAX), i64::MAX).0 <= i64::MAX as u64);
        assert!(!is_ahead(theirs, now) && !is_ahead(theirs, 5), "nor does 1970 refuse anybody");
        assert!(is_ahead(Stamp::of_ms(now + SYNC_AHEAD_MS_MAX + 1), now));
    }
}
