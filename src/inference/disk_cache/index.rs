//! What is on the disk, and in which order it goes when room is needed.
//!
//! Rebuilt from names, sizes and times at each start, so there is nothing that a loss of power
//! could leave wrong. Pages of a chain are noted from its end to its beginning, so that a page goes
//! before the one that it builds upon: without that one nobody finds it.

use std::collections::{BTreeMap, HashMap};

use super::Key;

struct Noted {
    n_bytes: u64,
    order: u64,
    /// Seconds since the Unix epoch at which the disk heard of its last use.
    used_unix_s: u64,
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
    /// Notes an entry as just used.
    pub fn insert(&mut self, key: Key, n_bytes: u64, used_unix_s: u64) {
        self.remove(&key);
        self.clock += 1;
        self.n_bytes += n_bytes;
        self.by_use.insert(self.clock, key);
        self.entries.insert(key, Noted { n_bytes, order: self.clock, used_unix_s });
    }

    /// Forgets an entry.
    pub fn remove(&mut self, key: &Key) {
        if let Some(noted) = self.entries.remove(key) {
            self.by_use.remove(&noted.order);
            self.n_bytes -= noted.n_bytes;
        }
    }

    /// Notes a use.
    pub fn touch(&mut self, key: &Key) {
        if let Some(noted) = self.entries.get_mut(key) {
            self.clock += 1;
            self.by_use.remove(&noted.order);
            self.by_use.insert(self.clock, *key);
            noted.order = self.clock;
        }
    }

    /// Whether the disk should hear of a use now, having last heard of one `every_s` ago.
    pub fn is_stale(&mut self, key: &Key, now_unix_s: u64, every_s: u64) -> bool {
        let noted = self.entries.get_mut(key);
        noted.is_some_and(|noted| {
            let is_stale = now_unix_s.saturating_sub(noted.used_unix_s) >= every_s;
            if is_stale {
                noted.used_unix_s = now_unix_s;
            }
            is_stale
        })
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

    #[test]
    fn the_least_recently_used_is_the_oldest() {
        let mut index = Index::default();
        let key = |i: u8| Key([i; 32]);
        (0..4).for_each(|i| index.insert(key(i), 10, 0));
        index.touch(&key(0));
        assert_eq!(index.oldest(), Some(key(1)));
        index.remove(&key(1));
        index.insert(key(2), 30, 5);
        assert_eq!((index.oldest(), index.n_bytes(), index.n_entry()), (Some(key(3)), 50, 3));
        assert!(index.is_stale(&key(3), 600, 600) && !index.is_stale(&key(3), 700, 600));
        assert!(!index.contains(&key(1)) && !index.is_stale(&key(1), 9999, 600));
    }
}
