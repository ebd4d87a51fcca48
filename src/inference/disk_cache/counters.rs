//! What the disk cache counts.

/// Why a page that was looked for was not had from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Miss {
    /// It is not there.
    Absent,
    /// It is shorter or longer than its page: a write that did not end.
    Torn,
    /// It does not open: changed, swapped, or of another device.
    Damaged,
    /// The disk failed.
    Failed,
    /// The disk took too long.
    Stalled,
    /// Computing it is faster than reading it.
    Slow,
    /// The model's files are still being digested.
    Unready,
}

impl Miss {
    /// Every reason.
    pub const ALL: [Miss; 7] = [
        Miss::Absent,
        Miss::Torn,
        Miss::Damaged,
        Miss::Failed,
        Miss::Stalled,
        Miss::Slow,
        Miss::Unready,
    ];

    /// The reason as a label.
    pub fn name(self) -> &'static str {
        match self {
            Miss::Absent => "absent",
            Miss::Torn => "torn",
            Miss::Damaged => "damaged",
            Miss::Failed => "failed",
            Miss::Stalled => "stalled",
            Miss::Slow => "slow",
            Miss::Unready => "unready",
        }
    }
}

/// A reading of everything that a disk cache counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskCacheStats {
    /// Entries on the disk.
    pub n_entry: usize,
    /// Their bytes.
    pub n_bytes: u64,
    /// Bytes that they may have.
    pub bytes_max: u64,
    /// Bytes written today, as far as the budget is concerned.
    pub written_today: u64,
    /// Bytes that may be written in a day.
    pub write_bytes_per_day_max: u64,
    /// Pages read and opened.
    pub hits: u64,
    /// Pages looked for and not had, by reason in the order of [`Miss::ALL`].
    pub misses: [u64; Miss::ALL.len()],
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes in a second that reads got lately.
    pub read_bytes_per_s: f64,
    /// Pages written.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Pages removed to make room.
    pub evictions: u64,
    /// Pages not written: the queue was full.
    pub drops_queue: u64,
    /// Pages not written: they left the KV cache before there was room in the queue.
    pub drops_gone: u64,
    /// Pages not written: the day's budget was spent.
    pub drops_budget: u64,
    /// Pages not written: the disk is full, or the page larger than the budget.
    pub drops_space: u64,
    /// Pages not written: the disk failed.
    pub drops_failed: u64,
}

impl DiskCacheStats {
    pub(super) fn miss(&mut self, miss: Miss, n: u64) {
        let i = Miss::ALL.iter().position(|m| *m == miss).unwrap_or_default();
        self.misses[i] += n;
    }

    /// Pages that were missed for this reason.
    pub fn missed(&self, miss: Miss) -> u64 {
        Miss::ALL.iter().zip(self.misses).find(|(m, _)| **m == miss).map_or(0, |(_, n)| n)
    }
}
