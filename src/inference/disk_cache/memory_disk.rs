//! A disk for tests: in memory, and as slow, forgetful or broken as they say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::Key;
use super::disk::{Disk, Listed};

#[derive(Default)]
struct State {
    entries: BTreeMap<Key, (Vec<u8>, Duration)>,
    ledger: String,
    day: u64,
    clock: u32,
    n_change: u128,
    n_stamp: usize,
    n_free: Option<u64>,
    is_shut: bool,
    fails_reads: bool,
    fails_writes: bool,
}

impl State {
    /// The time, which goes on by a nanosecond whenever somebody asks.
    fn tick(&mut self) -> Duration {
        self.clock += 1;
        Duration::new(self.day * 86_400, self.clock)
    }
}

/// See the module.
#[derive(Default)]
pub struct MemoryDisk {
    state: Mutex<State>,
    opened: Condvar,
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Holds reads and writes up until the gate opens.
    pub fn shut(&self, is_shut: bool) {
        self.lock().is_shut = is_shut;
        self.opened.notify_all();
    }

    /// Reads fail, writes fail.
    pub fn fail(&self, reads: bool, writes: bool) {
        let mut state = self.lock();
        (state.fails_reads, state.fails_writes) = (reads, writes);
    }

    /// The day by the clock.
    pub fn set_day(&self, unix_day: u64) {
        self.lock().day = unix_day;
    }

    /// How often somebody asked whether something changed.
    pub fn n_stamp(&self) -> usize {
        self.lock().n_stamp
    }

    /// Bytes that fit beside what is there.
    pub fn set_free(&self, n_bytes: u64) {
        self.lock().n_free = Some(n_bytes);
    }

    /// Entries, least recently used first.
    pub fn keys(&self) -> Vec<Key> {
        let state = self.lock();
        let mut keys: Vec<_> = state.entries.iter().map(|(k, (_, used))| (*used, *k)).collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Bytes of all entries.
    pub fn n_bytes(&self) -> u64 {
        self.lock().entries.values().map(|(bytes, _)| bytes.len() as u64).sum()
    }

    /// Changes an entry behind the cache's back.
    pub fn tamper(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some((bytes, _)) = self.lock().entries.get_mut(key) {
            change(bytes);
        }
    }

    /// Takes an entry away behind the cache's back.
    pub fn take_away(&self, key: &Key) {
        self.lock().entries.remove(key);
    }

    /// Two entries change places.
    pub fn swap(&self, a: &Key, b: &Key) {
        let mut state = self.lock();
        let (x, y) = (state.entries[a].clone(), state.entries[b].clone());
        state.entries.insert(*a, y);
        state.entries.insert(*b, x);
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<Listed>> {
        let state = self.lock();
        let listed = |(key, (bytes, used)): (&Key, &(Vec<u8>, Duration))| Listed {
            key: *key,
            n_bytes: bytes.len() as u64,
            used: *used,
        };
        Ok(state.entries.iter().map(listed).collect())
    }

    fn read(&self, key: &Key, n_bytes_max: usize) -> io::Result<Vec<u8>> {
        let state = self.opened.wait_while(self.lock(), |state| state.is_shut).unwrap();
        if state.fails_reads {
            return Err(io::Error::other("the test said so"));
        }
        match state.entries.get(key) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some((bytes, _)) if bytes.len() > n_bytes_max => {
                Err(io::ErrorKind::FileTooLarge.into())
            }
            Some((bytes, _)) => Ok(bytes.clone()),
        }
    }

    fn expect(&self, _key: &Key) {}

    fn write(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.opened.wait_while(self.lock(), |state| state.is_shut).unwrap();
        if state.fails_writes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.n_change += 1;
        let used = state.tick();
        state.entries.insert(*key, (bytes.to_vec(), used));
        Ok(())
    }

    fn settle(&self) {}

    fn remove(&self, key: &Key) {
        let mut state = self.lock();
        state.n_change += 1;
        state.entries.remove(key);
    }

    fn touch(&self, key: &Key) {
        let mut state = self.lock();
        let now = state.tick();
        if let Some((_, used)) = state.entries.get_mut(key) {
            *used = now;
        }
    }

    fn stamp(&self) -> u128 {
        let mut state = self.lock();
        state.n_stamp += 1;
        state.n_change
    }

    fn n_free(&self) -> u64 {
        self.lock().n_free.unwrap_or(u64::MAX)
    }

    fn read_ledger(&self) -> io::Result<String> {
        Ok(self.lock().ledger.clone())
    }

    fn write_ledger(&self, text: &str) -> io::Result<()> {
        self.lock().ledger = text.to_owned();
        Ok(())
    }

    fn lock(&self) -> io::Result<Option<File>> {
        Ok(None)
    }

    fn now(&self) -> Duration {
        self.lock().tick()
    }
}
