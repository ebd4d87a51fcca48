//! What is on the disk, and in which order it goes when room is needed.
//!
//! Rebuilt from names, sizes and times at each start, so there is nothing that a loss of power
//! could leave wrong. A list that is made anew knows what the disk was not told yet: of two times
//! of a last use the later one counts. Pages of a chain are noted from its end to its beginning, so
//! that a page goes before the one that it builds upon: without that one nobody finds it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Key;
use super::disk::Listed;

struct Noted {
    n_bytes: u64,
    order: u64,
    /// When it was last used, since the Unix epoch.
    used: Duration,
    /// The last use that the disk heard of.
    told: Duration,
}

/// Entries by name and by use.
#[derive(Default)]
pub struct Index {
    entries: HashMap<Key, Noted>,
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    n_bytes: u64,
}

impl Index {
    /// What a disk lists, in the order of use, with what `self` knows of it beyond that.
    pub fn renewed(&self, mut listed: Vec<Listed>) -> Index {
        let known = |entry: &Listed| self.entries.get(&entry.key);
        listed.sort_by_key(|entry| {
            let used = known(entry).map_or(entry.used, |noted| noted.used.max(entry.used));
            (used, known(entry).map_or(0, |noted| noted.order), entry.key)
        });
        let mut index = Index::default();
        for entry in listed {
            let used = known(&entry).map_or(entry.used, |noted| noted.used.max(entry.used));
            index.note(entry.key, entry.n_bytes, used, entry.used);
        }
        index
    }

    /// Notes an entry as just written.
    pub fn insert(&mut self, key: Key, n_bytes: u64, now: Duration) {
        self.note(key, n_bytes, now, now);
    }

    fn note(&mut self, key: Key, n_bytes: u64, used: Duration, told: Duration) {
        self.remove(&key);
        self.clock += 1;
        self.n_bytes += n_bytes;
        self.by_use.insert(self.clock, key);
        self.entries.insert(key, Noted { n_bytes, order: self.clock, used, told });
    }

    /// Forgets an entry.
    pub fn remove(&mut self, key: &Key) {
        if let Some(noted) = self.entries.remove(key) {
            self.by_use.remove(&noted.order);
            self.n_bytes -= noted.n_bytes;
        }
    }

    /// Notes a use; whether the disk should hear of it, having last heard of one `every` ago.
    pub fn touch(&mut self, key: &Key, now: Duration, every: Duration) -> bool {
        let Some(noted) = self.entries.get_mut(key) else { return false };
        self.clock += 1;
        self.by_use.remove(&noted.order);
        self.by_use.insert(self.clock, *key);
        (noted.order, noted.used) = (self.clock, now);
        let is_stale = now.saturating_sub(noted.told) >= every;
        if is_stale {
            noted.told = now;
        }
        is_stale
    }

    /// Whether an entry is there.
    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// The entry that was not used for longest.
    pub fn oldest(&self) -> Option<Key> {
        self.by_use.first_key_value().map(|(_, key)| *key)
    }

    /// Bytes of all entries.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Entries.
    pub fn n_entry(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(i: u8) -> Key {
        Key([i; 32])
    }

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_least_recently_used_is_the_oldest() {
        let mut index = Index::default();
        (0..4).for_each(|i| index.insert(key(i), 10, s(0)));
        index.touch(&key(0), s(1), s(600));
        assert_eq!(index.oldest(), Some(key(1)));
        index.remove(&key(1));
        index.insert(key(2), 30, s(5));
        assert_eq!((index.oldest(), index.n_bytes(), index.n_entry()), (Some(key(3)), 50, 3));
        assert!(!index.contains(&key(1)) && !index.touch(&key(1), s(9999), s(600)));
    }

    #[test]
    fn the_disk_hears_of_a_use_now_and_then() {
        let mut index = Index::default();
        index.insert(key(1), 10, s(0));
        let mut hears = |at| index.touch(&key(1), s(at), s(600));
        assert_eq!([599, 600, 1199, 1200].map(&mut hears), [false, true, false, true]);
    }

    #[test]
    fn a_list_made_anew_keeps_the_order_that_the_disk_was_not_told() {
        let mut index = Index::default();
        (0..4).for_each(|i| index.insert(key(i), 10, s(i.into())));
        // One moment, in this order; the disk hears of none.
        for i in [2, 0] {
            assert!(!index.touch(&key(i), s(10), s(600)));
        }
        let listed = |i: u8, used| Listed { key: key(i), n_bytes: 10, used: s(used) };
        // Another process used 1 since, and wrote 5.
        let list = vec![listed(0, 0), listed(1, 20), listed(2, 2), listed(3, 3), listed(5, 7)];
        let mut renewed = index.renewed(list);
        let mut order = Vec::new();
        while let Some(oldest) = renewed.oldest() {
            renewed.remove(&oldest);
            order.push(oldest);
        }
        assert_eq!(order, [3, 5, 2, 0, 1].map(key));
        assert_eq!(renewed.n_bytes(), 0);
    }
}
