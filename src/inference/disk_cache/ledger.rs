//! The write budget: what may be written to the disk on one day, restarts included.
//!
//! The day's sum is kept in a file that is written when a share of the budget is taken, not with
//! each page: what was taken and not used is lost at a crash, so a day writes less, never more. A
//! clock that goes back opens no new day.

use super::disk::Disk;

const DAY_S: u64 = 86_400;
/// Bytes that are taken from the budget at a time.
const SHARE_BYTES: u64 = 16 << 20;
/// The least number of shares in a budget.
const N_SHARE_MIN: u64 = 64;

/// What is left of a day's budget.
pub struct Ledger {
    bytes_per_day_max: u64,
    /// Taken from the budget, not yet written.
    n_left: u64,
    day: Day,
}

/// A day and what was taken on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Day {
    unix_day: u64,
    n_bytes: u64,
}

impl Ledger {
    /// The ledger of a disk.
    pub fn new(bytes_per_day_max: u64, disk: &dyn Disk) -> Ledger {
        let mut ledger = Ledger { bytes_per_day_max, n_left: 0, day: Day::default() };
        ledger.day = today(disk);
        ledger
    }

    /// Takes `n_bytes` from the day's budget; whether they were left.
    pub fn take(&mut self, n_bytes: u64, disk: &dyn Disk) -> bool {
        if self.n_left < n_bytes {
            let Ok(_lock) = disk.lock() else { return false };
            // Another process may have taken its share.
            self.day = today(disk);
            let left = self.bytes_per_day_max.saturating_sub(self.day.n_bytes);
            let wanted = n_bytes - self.n_left;
            if left < wanted {
                return false;
            }
            let share = SHARE_BYTES.min(self.bytes_per_day_max / N_SHARE_MIN).max(wanted);
            let share = share.min(left);
            let day = Day { n_bytes: self.day.n_bytes + share, ..self.day };
            if disk.write_ledger(&format!("{} {}\n", day.unix_day, day.n_bytes)).is_err() {
                return false;
            }
            self.day = day;
            self.n_left += share;
        }
        self.n_left -= n_bytes;
        true
    }

    /// Bytes that were taken today.
    pub fn n_today(&self) -> u64 {
        self.day.n_bytes - self.n_left.min(self.day.n_bytes)
    }

    /// Whether more than half of the day's budget is gone.
    pub fn is_half_gone(&self) -> bool {
        self.n_today() > self.bytes_per_day_max / 2
    }
}

fn today(disk: &dyn Disk) -> Day {
    let unix_day = disk.now().as_secs() / DAY_S;
    match read(&disk.read_ledger().unwrap_or_default()) {
        // A clock that went back opens no new day.
        Some(day) if day.unix_day == unix_day || day.unix_day == unix_day + 1 => day,
        // One that stood far ahead and was corrected does not close all days until then.
        Some(day) if day.unix_day > unix_day => Day { unix_day, ..day },
        _ => Day { unix_day, n_bytes: 0 },
    }
}

fn read(text: &str) -> Option<Day> {
    let (day, n_bytes) = text.trim().split_once(' ')?;
    Some(Day { unix_day: day.parse().ok()?, n_bytes: n_bytes.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::super::memory_disk::MemoryDisk;
    use super::*;

    #[test]
    fn a_day_writes_no_more_than_its_budget_whatever_is_restarted() {
        let disk = MemoryDisk::default();
        disk.set_day(20_000);
        let mut n_written = 0;
        for n in (1..200u64).map(|i| i * 37 % 90) {
            // Each of them another process.
            n_written += if Ledger::new(1000, &disk).take(n, &disk) { n } else { 0 };
        }
        assert!((800..=1000).contains(&n_written), "{n_written}");
        disk.set_day(19_999);
        assert!(!Ledger::new(1000, &disk).take(90, &disk), "a clock that goes back");
        disk.set_day(10_000);
        assert!(!Ledger::new(1000, &disk).take(90, &disk), "nor one that goes far back");
        disk.set_day(20_001);
        let mut ledger = Ledger::new(1000, &disk);
        assert!(ledger.take(400, &disk) && !ledger.is_half_gone());
        assert!(ledger.take(400, &disk) && ledger.is_half_gone());
        assert!(!ledger.take(400, &disk) && ledger.take(200, &disk));
        assert_eq!(ledger.n_today(), 1000);
    }

    #[test]
    fn a_broken_ledger_is_a_new_day() {
        for text in ["", "x", "1", "1 -2", "99999999999999999999 1"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("7 8\n"), Some(Day { unix_day: 7, n_bytes: 8 }));
    }
}
