//! The disk's thread: one job after another, reads before writes.
//!
//! ```text
//! look    when somebody asks after a while: lists what is there, if somebody else changed it
//! read    the next page of a fetch whose mailbox has room; fetches take turns
//! write   the oldest page of the queue, if the day's budget and the disk have room for it
//! touch   an entry was used that lay in memory: the disk hears of it
//! settle  when nothing is left to write, names are brought to the disk
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::entry::{self, OVERHEAD};
use super::index::Index;
use super::keys::{Key, Keys};
use super::ledger::Ledger;
use super::{DiskCacheOptions, DiskCacheStats, Letter, Mailbox, Miss};
use crate::base::limits::{DISK_RESERVE_BYTES, PREFIX_ENTRIES_MAX, PREFIX_WRITE_QUEUE_BYTES};
use crate::seal::random;

/// How often the disk hears that an entry is in use: an inode is written each time.
pub const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// For how long what a look at the directory said is taken to be true.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes in a second that a disk is taken to give before the first measurement.
const READ_BYTES_PER_S: f64 = 90e6;
/// Weight of a new measurement of the disk's speed.
const ALPHA: f64 = 0.2;
/// The time in which a disk that was found slow becomes half as suspect: it is asked again.
const DOUBT_HALVES_IN: Duration = Duration::from_secs(60);

/// A fetch on its way.
pub struct Fetch {
    pub mailbox: Arc<Mailbox>,
    pub ticket: u64,
    keys: VecDeque<Key>,
    page_bytes: usize,
    /// When the disk, at the speed that it is limited to, will have given what was read so far.
    ready_at: Instant,
}

impl Fetch {
    pub fn new(mailbox: Arc<Mailbox>, ticket: u64, keys: Vec<Key>, page_bytes: usize) -> Fetch {
        Fetch { mailbox, ticket, keys: keys.into(), page_bytes, ready_at: Instant::now() }
    }
}

/// What the callers and the disk's thread share.
pub struct State {
    pub index: Index,
    /// The disk's stamp when it was listed or last written to by us; `None` before the first list.
    stamp: Option<u128>,
    /// When the stamp was last compared with the disk's, by the disk's clock.
    looked_at: Duration,
    pub is_look_wanted: bool,
    /// Whether a look lists in any case.
    is_listing_wanted: bool,
    pub fetches: VecDeque<Fetch>,
    pub writes: VecDeque<(Key, Vec<u8>)>,
    pub write_bytes: usize,
    /// What is being written now.
    pub writing: Option<Key>,
    /// The fetch whose page is being read now, unless it was canceled meanwhile.
    pub reading: Option<(Arc<Mailbox>, u64)>,
    /// Entries that were used without being read.
    pub touches: VecDeque<Key>,
    pub is_touching: bool,
    pub listeners: Vec<Weak<Mailbox>>,
    /// When a read was last measured, by the disk's clock.
    measured_at: Duration,
    pub stats: DiskCacheStats,
    pub is_frugal: bool,
    is_unsettled: bool,
    pub is_stopping: bool,
    pub is_over: bool,
}

impl State {
    /// Whether the index says what is on the disk, or said so a moment ago. The disk itself is not
    /// asked: callers are in a hurry.
    pub fn is_listed(&self, now: Duration) -> bool {
        // A clock that goes back makes what is known old.
        let age = now.checked_sub(self.looked_at);
        // Before a page is written the disk is looked at.
        let is_fresh = self.writing.is_some() || age.is_some_and(|age| age < LOOK_EVERY);
        self.stamp.is_some() && is_fresh
    }

    pub fn has_room(&self, page_bytes: usize) -> bool {
        self.writes.is_empty() || self.write_bytes + page_bytes <= PREFIX_WRITE_QUEUE_BYTES
    }

    pub fn is_on_its_way(&self, key: &Key) -> bool {
        self.writing.as_ref() == Some(key) || self.writes.iter().any(|(queued, _)| queued == key)
    }
}

/// See the module.
pub struct Shared {
    pub disk: Arc<dyn Disk>,
    pub keys: Keys,
    pub options: DiskCacheOptions,
    state: Mutex<State>,
    pub wake: Condvar,
}

impl Shared {
    pub fn new(disk: Arc<dyn Disk>, keys: Keys, options: DiskCacheOptions) -> Shared {
        let read_bytes_per_s = first_speed(&options);
        let stats = DiskCacheStats { read_bytes_per_s, ..DiskCacheStats::default() };
        let state = State {
            index: Index::default(),
            stamp: None,
            looked_at: Duration::ZERO,
            is_look_wanted: true,
            is_listing_wanted: false,
            fetches: VecDeque::new(),
            writes: VecDeque::new(),
            write_bytes: 0,
            writing: None,
            reading: None,
            touches: VecDeque::new(),
            is_touching: false,
            listeners: Vec::new(),
            measured_at: Duration::ZERO,
            stats,
            is_frugal: false,
            is_unsettled: false,
            is_stopping: false,
            is_over: false,
        };
        Shared { disk, keys, options, state: Mutex::new(state), wake: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in a second that a read is expected to get.
    pub fn read_bytes_per_s(&self) -> f64 {
        let state = self.lock();
        let (measured, at) = (state.stats.read_bytes_per_s, state.measured_at);
        drop(state);
        let at_first = first_speed(&self.options);
        expected_speed(measured, at_first, self.disk.now().checked_sub(at))
    }

    pub fn stats(&self) -> DiskCacheStats {
        let state = self.lock();
        DiskCacheStats {
            n_entry: state.index.n_entry(),
            n_bytes: state.index.n_bytes(),
            bytes_max: self.options.bytes_max,
            write_bytes_per_day_max: self.options.write_bytes_per_day_max,
            ..state.stats.clone()
        }
    }
}

/// What a disk is taken to give before it was measured.
fn first_speed(options: &DiskCacheOptions) -> f64 {
    let limit = options.read_bytes_per_s_max.map_or(f64::INFINITY, |n| n as f64);
    READ_BYTES_PER_S.min(limit)
}

/// What a disk is taken to give that was measured `age` ago; a clock that went back says nothing.
fn expected_speed(measured: f64, at_first: f64, age: Option<Duration>) -> f64 {
    if measured >= at_first {
        return measured;
    }
    let Some(age) = age else { return at_first };
    let doubt = 0.5f64.powf(age.as_secs_f64() / DOUBT_HALVES_IN.as_secs_f64());
    at_first + (measured - at_first) * doubt
}

enum Job {
    Look,
    Read { fetch: Fetch, key: Key },
    End { fetch: Fetch },
    Write { key: Key, page: Vec<u8> },
    Touch { key: Key },
    Settle,
}

/// The thread.
pub fn run(shared: &Shared) {
    let mut ledger = Ledger::new(shared.options.write_bytes_per_day_max, &*shared.disk);
    shared.lock().stats.written_today = ledger.n_today();
    while let Some(job) = next_job(shared) {
        match job {
            Job::Look => look(shared),
            Job::Read { fetch, key } => read(shared, fetch, key),
            Job::End { fetch } => {
                fetch.mailbox.put(Letter { ticket: fetch.ticket, page: Err(None) });
            }
            Job::Write { key, page } => write(shared, &mut ledger, key, page),
            Job::Touch { key } => {
                shared.disk.touch(&key);
                shared.lock().is_touching = false;
            }
            Job::Settle => shared.disk.settle(),
        }
    }
    shared.lock().is_over = true;
    shared.wake.notify_all();
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut state = shared.lock();
    loop {
        if state.is_look_wanted {
            return Some(Job::Look);
        }
        let is_due = |f: &Fetch| !state.is_stopping && f.mailbox.has_room(f.page_bytes);
        if let Some(i) = state.fetches.iter().position(is_due) {
            let mut fetch = state.fetches.remove(i)?;
            return Some(match fetch.keys.pop_front() {
                Some(key) => {
                    state.reading = Some((Arc::clone(&fetch.mailbox), fetch.ticket));
                    Job::Read { fetch, key }
                }
                None => Job::End { fetch },
            });
        }
        if let Some((key, page)) = state.writes.pop_front() {
            state.write_bytes -= page.len();
            state.writing = Some(key);
            state.is_unsettled = true;
            return Some(Job::Write { key, page });
        }
        if let Some(key) = state.touches.pop_front() {
            state.is_touching = true;
            return Some(Job::Touch { key });
        }
        if std::mem::take(&mut state.is_unsettled) {
            return Some(Job::Settle);
        }
        if state.is_stopping {
            return None;
        }
        state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Learns what is on the disk, unless that is known.
fn look(shared: &Shared) {
    // Before the list, so that what changes meanwhile is listed again.
    let (now, stamp) = (shared.disk.now(), shared.disk.stamp());
    let is_known = {
        let mut state = shared.lock();
        state.is_look_wanted = false;
        !std::mem::take(&mut state.is_listing_wanted) && state.stamp == Some(stamp)
    };
    let listed = if is_known { None } else { shared.disk.list().ok() };
    let mut state = shared.lock();
    if let Some(listed) = listed {
        state.index = state.index.renewed(listed);
        state.stamp = Some(stamp);
    }
    // What cannot be listed: what was known is better than nothing. The budget holds, and reads say
    // what is gone.
    state.looked_at = now;
}

fn read(shared: &Shared, mut fetch: Fetch, key: Key) {
    let (disk, started) = (&shared.disk, Instant::now());
    let page_bytes = fetch.page_bytes;
    let bytes = disk.read(&key, page_bytes + OVERHEAD);
    if let Some(next) = fetch.keys.front() {
        // The disk goes on while this page is opened.
        disk.expect(next);
    }
    let n_bytes = bytes.as_ref().map_or(0, Vec::len);
    let page = match bytes {
        Ok(bytes) => entry::open(&shared.keys, &key, bytes, page_bytes),
        Err(error) => Err(match error.kind() {
            std::io::ErrorKind::NotFound => Miss::Absent,
            std::io::ErrorKind::FileTooLarge => Miss::Torn,
            _ => Miss::Failed,
        }),
    };
    if let Some(limit) = shared.options.read_bytes_per_s_max {
        fetch.ready_at += Duration::from_secs_f64(n_bytes as f64 / limit.max(1) as f64);
        std::thread::sleep(fetch.ready_at.saturating_duration_since(Instant::now()));
    }
    if matches!(page, Err(Miss::Torn | Miss::Damaged)) {
        disk.remove(&key);
    }
    let (now, stamp) = (disk.now(), disk.stamp());
    let is_stale = {
        let mut state = shared.lock();
        match &page {
            Ok(_) => {
                state.stats.hits += 1;
                state.stats.read_bytes += n_bytes as u64;
                let speed = n_bytes as f64 / started.elapsed().as_secs_f64().max(1e-6);
                let mean = &mut state.stats.read_bytes_per_s;
                *mean += ALPHA * (speed - *mean);
                state.measured_at = now;
            }
            Err(miss) => {
                state.stats.miss(*miss, 1);
                if *miss != Miss::Failed {
                    state.index.remove(&key);
                }
                // Somebody else removed it, and perhaps more; or we did.
                state.is_listing_wanted |= *miss == Miss::Absent;
                state.is_look_wanted |= *miss == Miss::Absent;
                state.stamp = state.stamp.map(|_| stamp);
            }
        }
        state.index.touch(&key, now, TOUCH_EVERY)
    };
    if is_stale {
        disk.touch(&key);
    }
    let (mailbox, ticket) = (Arc::clone(&fetch.mailbox), fetch.ticket);
    {
        let mut state = shared.lock();
        if state.reading.take().is_none() {
            return;
        }
        if page.is_ok() {
            // Before the letter, so that whoever cancels on reading it finds it.
            state.fetches.push_back(fetch);
        }
    }
    mailbox.put(Letter { ticket, page: page.map_err(Some) });
}

fn write(shared: &Shared, ledger: &mut Ledger, key: Key, page: Vec<u8>) {
    let disk = &shared.disk;
    let n_bytes = (page.len() + OVERHEAD) as u64;
    look(shared);
    let written = !shared.lock().index.contains(&key)
        && make_room(shared, n_bytes)
        && is_granted(shared, ledger, n_bytes)
        && keep(shared, &key, &page);
    let (now, stamp) = (disk.now(), disk.stamp());
    let mut state = shared.lock();
    if written {
        state.index.insert(key, n_bytes, now);
        state.stats.writes += 1;
        state.stats.write_bytes += n_bytes;
    }
    state.stamp = Some(stamp);
    state.writing = None;
    state.is_frugal = ledger.is_half_gone();
    state.stats.written_today = ledger.n_today();
    let listeners: Vec<_> = state.listeners.iter().filter_map(Weak::upgrade).collect();
    state.listeners.retain(|listener| listener.strong_count() > 0);
    drop(state);
    shared.wake.notify_all();
    listeners.iter().for_each(|mailbox| mailbox.wake());
}

/// Removes what was not used for longest until an entry fits; whether it does.
fn make_room(shared: &Shared, n_bytes: u64) -> bool {
    let bytes_max = shared.options.bytes_max;
    loop {
        let free = shared.disk.n_free().saturating_sub(DISK_RESERVE_BYTES);
        let mut state = shared.lock();
        let is_full = state.index.n_bytes() + n_bytes > bytes_max
            || state.index.n_entry() >= PREFIX_ENTRIES_MAX
            || free < n_bytes;
        if !is_full {
            return true;
        }
        let oldest = state.index.oldest().filter(|_| n_bytes <= bytes_max);
        let Some(oldest) = oldest else {
            state.stats.drops_space += 1;
            return false;
        };
        state.index.remove(&oldest);
        state.stats.evictions += 1;
        drop(state);
        shared.disk.remove(&oldest);
    }
}

fn is_granted(shared: &Shared, ledger: &mut Ledger, n_bytes: u64) -> bool {
    let is_granted = ledger.take(n_bytes, &*shared.disk);
    shared.lock().stats.drops_budget += u64::from(!is_granted);
    is_granted
}

fn keep(shared: &Shared, key: &Key, page: &[u8]) -> bool {
    let write = || {
        let entry = entry::seal(&shared.keys, key, &random()?, page);
        shared.disk.write(key, &entry)
    };
    let written = write();
    shared.lock().stats.drops_failed += u64::from(written.is_err());
    written.is_ok()
}
