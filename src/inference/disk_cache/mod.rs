//! The disk cache: sealed pages by name, on a disk that may lose, tear or swap them.
//!
//! ```text
//! engine threads                                one thread for the disk
//!   find(names)   what is there, from memory
//!   fetch(names) ------------------------------>  read, open the seal ----> mailbox, in order
//!   store(name, page) --> queue, bounded ------>  seal, write, rename; the oldest go for room
//! ```
//!
//! This room knows bytes, names and files, and no model. Nothing here makes a caller wait for the
//! disk: a full queue drops what it is given, and counts it. Reads go before writes. What is
//! missing, cut, changed or foreign is a [`Miss`] with a reason; it is deleted and counted.
//!
//! Several processes may use one directory: entries never change, they come and go whole, the day's
//! writes are counted under a lock, and whoever sees that the directory changed lists it again.
//! What a caller is told of it may be a second old.

mod counters;
mod disk;
mod entry;
mod identity;
mod index;
mod keys;
mod ledger;
mod mailbox;
#[cfg(test)]
pub mod memory_disk;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

pub use counters::{DiskCacheStats, Miss};
pub use identity::{Identity, Part};
pub use keys::Key;
pub use mailbox::{Letter, Mailbox};

use crate::seal::SealError;
use disk::{Directory, Disk};
use keys::Keys;
use worker::{Fetch, Shared, State};

/// How long the last writes may take when the program ends.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// How much a disk cache may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCacheOptions {
    /// Where entries are.
    pub dir: PathBuf,
    /// Where the device key is.
    pub key_file: PathBuf,
    /// Bytes of all entries.
    pub bytes_max: u64,
    /// Bytes written in a day.
    pub write_bytes_per_day_max: u64,
    /// Bytes read in a second; `None` for as many as the disk gives.
    pub read_bytes_per_s_max: Option<u64>,
}

/// Why a disk cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskCacheError {
    /// The directory cannot be used.
    #[error("prefix cache {}: {source}", path.display())]
    Dir {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The device key cannot be read or made.
    #[error("prefix cache: {source}")]
    Key {
        /// What is wrong.
        source: SealError,
    },
    /// The disk's thread could not be started.
    #[error("the disk's thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// What is known of the entries of some names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// So many of the first are there.
    First(usize),
    /// The disk has to be asked: it was not for a while, and somebody else may have written to it.
    Unlisted,
}

struct Inner {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_stopping = true;
        self.shared.wake.notify_all();
        // A disk that hangs does not keep the program from ending.
        let is_running = |state: &mut State| !state.is_over;
        let waited = self.shared.wake.wait_timeout_while(state, LAST_WRITES, is_running);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let is_over = state.is_over;
        drop(state);
        if let Some(thread) = self.thread.take().filter(|_| is_over) {
            let _ = thread.join();
        }
    }
}

/// A disk cache. Clones share it; the last one to go waits for what is still to be written.
#[derive(Clone)]
pub struct DiskCache(Arc<Inner>);

impl std::fmt::Debug for DiskCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.shared.options)
    }
}

impl PartialEq for DiskCache {
    fn eq(&self, other: &DiskCache) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for DiskCache {}

impl DiskCache {
    /// Opens a directory, and makes it and the device key if need be.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn open(options: DiskCacheOptions) -> Result<DiskCache, DiskCacheError> {
        let keys = Keys::load_or_create(&options.key_file)?;
        let failed = |source| DiskCacheError::Dir { path: options.dir.clone(), source };
        let disk = Directory::open(&options.dir).map_err(failed)?;
        DiskCache::start(Arc::new(disk), keys, options)
    }

    /// A cache on a disk that a test wrote, with a device key of `device` in every byte.
    #[cfg(test)]
    pub fn on(disk: Arc<dyn Disk>, device: u8, options: DiskCacheOptions) -> DiskCache {
        DiskCache::start(disk, Keys::new(&[device; crate::seal::KEY_LEN]), options).unwrap()
    }

    fn start(
        disk: Arc<dyn Disk>,
        keys: Keys,
        options: DiskCacheOptions,
    ) -> Result<DiskCache, DiskCacheError> {
        let shared = Arc::new(Shared::new(disk, keys, options));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("disk-cache".into());
        let thread = thread.spawn(move || worker::run(&theirs)).map_err(DiskCacheError::Thread)?;
        Ok(DiskCache(Arc::new(Inner { shared, thread: Some(thread) })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.shared.lock()
    }

    /// The name at which chains of one fingerprint and scope begin.
    pub fn root(&self, fingerprint: &[u8], scope: &[u8]) -> Key {
        self.0.shared.keys.root(fingerprint, scope)
    }

    /// The name of the page that holds `tokens` after what `before` names.
    pub fn next(&self, before: &Key, tokens: &[u32]) -> Key {
        self.0.shared.keys.next(before, tokens)
    }

    /// How many of these entries, from the first on, are there. They count as used.
    pub fn find(&self, keys: &[Key]) -> Found {
        let now = self.0.shared.disk.now();
        let mut state = self.lock();
        if !state.is_listed(now) {
            state.is_look_wanted = true;
            self.0.shared.wake.notify_all();
            return Found::Unlisted;
        }
        let n = keys.iter().take_while(|key| state.index.contains(key)).count();
        self.touch(&mut state, &keys[..n], now);
        Found::First(n)
    }

    /// Notes that these entries were used, wherever they were read from.
    pub fn renew(&self, keys: &[Key]) {
        let now = self.0.shared.disk.now();
        self.touch(&mut self.lock(), keys, now);
    }

    /// A page counts as used after those that build upon it, so that it goes after them.
    fn touch(&self, state: &mut State, keys: &[Key], now: Duration) {
        let n_before = state.touches.len();
        for key in keys.iter().rev() {
            if state.index.touch(key, now, worker::TOUCH_EVERY) {
                state.touches.push_back(*key);
            }
        }
        if state.touches.len() > n_before {
            self.0.shared.wake.notify_all();
        }
    }

    /// Whether an entry is there or on its way.
    pub fn has(&self, key: &Key) -> bool {
        let state = self.lock();
        state.index.contains(key) || state.is_on_its_way(key)
    }

    /// Reads entries of pages of `page_bytes` into the mailbox, one letter for each in order; the
    /// first that is missing ends it, with a letter that says why. Without keys the only letter
    /// comes when the disk was looked at.
    pub fn fetch(&self, mailbox: &Arc<Mailbox>, ticket: u64, keys: Vec<Key>, page_bytes: usize) {
        let mut state = self.lock();
        state.is_look_wanted |= keys.is_empty();
        let mailbox = Arc::clone(mailbox);
        state.fetches.push_back(Fetch::new(mailbox, ticket, keys, page_bytes));
        drop(state);
        self.0.shared.wake.notify_all();
    }

    /// Forgets a fetch; letters that are already in the mailbox stay there.
    pub fn cancel(&self, mailbox: &Arc<Mailbox>, ticket: u64) {
        let is_it = |f: &Fetch| f.ticket == ticket && Arc::ptr_eq(&f.mailbox, mailbox);
        let mut state = self.lock();
        state.fetches.retain(|fetch| !is_it(fetch));
        state.reading.take_if(|(m, t)| *t == ticket && Arc::ptr_eq(m, mailbox));
    }

    /// The oldest letter of a mailbox.
    pub fn take(&self, mailbox: &Mailbox) -> Option<Letter> {
        let letter = mailbox.take()?;
        // There may be room for the next one.
        let _state = self.lock();
        self.0.shared.wake.notify_all();
        Some(letter)
    }

    /// Has a mailbox woken when the queue of writes gets shorter.
    pub fn subscribe(&self, mailbox: &Arc<Mailbox>) {
        self.lock().listeners.push(Arc::downgrade(mailbox));
    }

    /// Whether the queue of writes has room for a page.
    pub fn has_room(&self, page_bytes: usize) -> bool {
        self.lock().has_room(page_bytes)
    }

    /// Has a page written under this name, unless the queue is full.
    pub fn store(&self, key: Key, page: Vec<u8>) {
        let mut state = self.lock();
        if !state.has_room(page.len()) {
            state.stats.drops_queue += 1;
        } else if !state.is_on_its_way(&key) {
            state.write_bytes += page.len();
            state.writes.push_back((key, page));
            self.0.shared.wake.notify_all();
        }
    }

    /// Whether so much was written today that only what comes again is worth it.
    pub fn is_frugal(&self) -> bool {
        self.lock().is_frugal
    }

    /// Bytes in a second that reads are expected to get, the limit included: what they got lately;
    /// where that was little, the more the longer it is ago.
    pub fn read_bytes_per_s(&self) -> f64 {
        self.0.shared.read_bytes_per_s()
    }

    /// Whether nothing is left to write.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        let is_touching = state.is_touching || !state.touches.is_empty();
        let is_writing = !state.writes.is_empty() || state.writing.is_some();
        !is_touching && !is_writing && state.fetches.is_empty()
    }

    /// Waits until nothing is left to write, unless that takes too long.
    pub fn flush(&self) {
        let is_writing = |state: &mut State| !state.writes.is_empty() || state.writing.is_some();
        let shared = &self.0.shared;
        drop(shared.wake.wait_timeout_while(self.lock(), LAST_WRITES, is_writing));
    }

    /// Counts pages that were looked for and not had.
    pub fn count_miss(&self, miss: Miss, n: u64) {
        self.lock().stats.miss(miss, n);
    }

    /// Counts pages that were not kept because they were gone before there was room to write them.
    pub fn count_lost(&self, n: u64) {
        self.lock().stats.drops_gone += n;
    }

    /// Counters and gauges.
    pub fn stats(&self) -> DiskCacheStats {
        let now = self.0.shared.disk.now();
        let mut state = self.lock();
        // Nobody waits for it: the next figures are those of the disk.
        if !state.is_listed(now) {
            state.is_look_wanted = true;
            self.0.shared.wake.notify_all();
        }
        drop(state);
        self.0.shared.stats()
    }

    /// Where entries are.
    pub fn dir(&self) -> &Path {
        &self.0.shared.options.dir
    }

    /// The digest of `parts`, which `done` is told is there. What was digested before and has not
    /// changed since is known at once.
    pub fn identify(
        &self,
        parts: Vec<Part>,
        done: impl FnOnce() + Send + 'static,
    ) -> Arc<Identity> {
        let shared = Arc::clone(&self.0.shared);
        identity::identify(shared, parts, done)
    }
}

/// A directory as it is, without a service on it.
impl DiskCacheOptions {
    fn directory(&self) -> Result<Option<Directory>, DiskCacheError> {
        // Looking makes nothing.
        let is_there = self.dir.join("pages").is_dir();
        let open = is_there.then(|| Directory::open(&self.dir)).transpose();
        open.map_err(|source| DiskCacheError::Dir { path: self.dir.clone(), source })
    }

    /// Entries of the directory and their bytes, and bytes written today as far as the budget is
    /// concerned.
    ///
    /// # Errors
    /// If it cannot be listed. A directory that is not there holds nothing.
    pub fn survey(&self) -> Result<(usize, u64, u64), DiskCacheError> {
        let Some(disk) = self.directory()? else { return Ok((0, 0, 0)) };
        let listed = self.listed(&disk)?;
        let written_today = ledger::Ledger::new(self.write_bytes_per_day_max, &disk).n_today();
        Ok((listed.len(), listed.iter().map(|entry| entry.n_bytes).sum(), written_today))
    }

    /// Removes every entry and what is remembered of files; the day's writes stay counted. Returns
    /// entries and their bytes. A service that runs notices with its next look-up.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn clear(&self) -> Result<(usize, u64), DiskCacheError> {
        let Some(disk) = self.directory()? else { return Ok((0, 0)) };
        let listed = self.listed(&disk)?;
        listed.iter().for_each(|entry| disk.remove(&entry.key));
        disk.settle();
        identity::forget(&self.dir);
        Ok((listed.len(), listed.iter().map(|entry| entry.n_bytes).sum()))
    }

    fn listed(&self, disk: &Directory) -> Result<Vec<disk::Listed>, DiskCacheError> {
        disk.list().map_err(|source| DiskCacheError::Dir { path: self.dir.clone(), source })
    }
}

#[cfg(test)]
mod tests;
