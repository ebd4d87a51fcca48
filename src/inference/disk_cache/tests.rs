//! The disk cache on a disk that slows down, fails, lies and is shared.

use std::sync::Arc;

use super::memory_disk::MemoryDisk;
use super::*;
use crate::base::limits::PREFIX_WRITE_QUEUE_BYTES;

const PAGE_BYTES: usize = 1000;
const ENTRY_BYTES: u64 = (PAGE_BYTES + entry::OVERHEAD) as u64;

fn options() -> DiskCacheOptions {
    DiskCacheOptions {
        dir: "/nowhere".into(),
        key_file: "/nowhere".into(),
        bytes_max: u64::MAX,
        write_bytes_per_day_max: u64::MAX,
        read_bytes_per_s_max: None,
    }
}

fn on(disk: &Arc<MemoryDisk>, options: DiskCacheOptions) -> DiskCache {
    DiskCache::on(Arc::clone(disk) as Arc<dyn Disk>, 1, options)
}

fn mailbox() -> (Arc<Mailbox>, std::sync::mpsc::Receiver<()>) {
    let (bell, rung) = std::sync::mpsc::channel();
    let ring = move || {
        // Nobody may be listening any more.
        let _ = bell.send(());
    };
    (Arc::new(Mailbox::new(Box::new(ring))), rung)
}

/// Everything that a fetch brings.
fn fetch(cache: &DiskCache, keys: &[Key]) -> (Vec<Vec<u8>>, Option<Miss>) {
    let (mailbox, rung) = mailbox();
    cache.fetch(&mailbox, 7, keys.to_vec(), PAGE_BYTES);
    let mut pages = Vec::new();
    loop {
        rung.recv().unwrap();
        let letter = cache.take(&mailbox).unwrap();
        assert_eq!(letter.ticket, 7);
        match letter.page {
            Ok(page) => pages.push(page),
            Err(end) => return (pages, end),
        }
    }
}

fn settle(cache: &DiskCache) {
    let (mailbox, rung) = mailbox();
    cache.subscribe(&mailbox);
    while !cache.is_idle() {
        let _ = rung.recv_timeout(Duration::from_millis(5));
    }
    // Asked behind the last write.
    fetch(cache, &[]);
}

fn page(i: u8) -> Vec<u8> {
    vec![i; PAGE_BYTES]
}

/// Names of pages that build on each other.
fn chain(cache: &DiskCache, n: u32) -> Vec<Key> {
    let mut at = cache.root(b"model", b"");
    let next = |i| {
        at = cache.next(&at, &[i]);
        at
    };
    (0..n).map(next).collect()
}

fn store_all(cache: &DiskCache, keys: &[Key]) {
    (0..).zip(keys).for_each(|(i, key)| cache.store(*key, page(i)));
    settle(cache);
}

#[test]
fn what_was_stored_is_found_after_a_restart() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, options());
    let keys = chain(&cache, 5);
    store_all(&cache, &keys[..4]);
    assert_eq!(cache.find(&keys), Found::First(4));
    drop(cache);
    let cache = on(&disk, options());
    fetch(&cache, &[]);
    assert_eq!(cache.find(&keys), Found::First(4));
    let (pages, end) = fetch(&cache, &keys[1..4]);
    assert_eq!((pages, end), (vec![page(1), page(2), page(3)], None));
    let (pages, end) = fetch(&cache, &keys[3..]);
    assert_eq!((pages, end), (vec![page(3)], Some(Miss::Absent)));
    assert_eq!((cache.stats().hits, cache.stats().missed(Miss::Absent)), (4, 1));
}

/// Each byte of an entry lies in one of these parts; `entry.rs` flips every bit.
#[test]
fn a_damaged_entry_is_a_miss_with_a_reason_and_goes() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Option<Damage>, Miss); 8] = [
        (Some(|bytes| bytes[0] ^= 1), Miss::Damaged),
        (Some(|bytes| bytes[8] ^= 128), Miss::Damaged),
        (Some(|bytes| bytes[500] ^= 4), Miss::Damaged),
        (Some(|bytes| *bytes.last_mut().expect("an entry has bytes") ^= 1), Miss::Damaged),
        (Some(|bytes| bytes.truncate(bytes.len() - 1)), Miss::Torn),
        (Some(|bytes| bytes.push(0)), Miss::Torn),
        (Some(Vec::clear), Miss::Torn),
        (None, Miss::Absent),
    ];
    for (damage, miss) in damages {
        let disk = Arc::new(MemoryDisk::default());
        let cache = on(&disk, options());
        let keys = chain(&cache, 3);
        store_all(&cache, &keys);
        match damage {
            Some(damage) => disk.tamper(&keys[1], damage),
            None => disk.take_away(&keys[1]),
        }
        assert_eq!(fetch(&cache, &keys), (vec![page(0)], Some(miss)));
        assert_eq!(cache.stats().missed(miss), 1);
        assert!(!disk.keys().contains(&keys[1]), "{miss:?}: it is gone");
        // The place can be filled again.
        cache.store(keys[1], page(1));
        settle(&cache);
        assert_eq!(fetch(&cache, &keys).1, None);
    }
}

#[test]
fn entries_under_each_others_names_and_of_other_devices_do_not_open() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, options());
    let keys = chain(&cache, 2);
    store_all(&cache, &keys);
    disk.swap(&keys[0], &keys[1]);
    assert_eq!(fetch(&cache, &keys), (vec![], Some(Miss::Damaged)));
    drop(cache);
    let other = DiskCache::on(Arc::clone(&disk) as Arc<dyn Disk>, 2, options());
    assert_ne!(chain(&other, 1)[0], keys[0], "another device has other names");
    assert_eq!(fetch(&other, &keys[1..]), (vec![], Some(Miss::Damaged)));
}

#[test]
fn the_budget_holds_and_the_least_recently_used_goes_with_its_end_first() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, DiskCacheOptions { bytes_max: 6 * ENTRY_BYTES, ..options() });
    let old = chain(&cache, 3);
    let mut at = cache.root(b"other model", b"");
    let new: Vec<Key> = (0..5)
        .map(|i| {
            at = cache.next(&at, &[i]);
            at
        })
        .collect();
    store_all(&cache, &old);
    store_all(&cache, &new[..3]);
    assert_eq!(cache.find(&old), Found::First(3));
    assert_eq!(cache.find(&new), Found::First(3));
    store_all(&cache, &new[3..]);
    assert_eq!((cache.find(&old), cache.find(&new)), (Found::First(1), Found::First(5)));
    assert_eq!((disk.n_bytes(), cache.stats().evictions), (6 * ENTRY_BYTES, 2));
}

#[test]
fn budgets_hold_under_any_load() {
    for seed in 1..=20u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x14057b7ef767814f);
            (state >> 33) % n
        };
        let disk = Arc::new(MemoryDisk::default());
        let bytes_max = (1 + below(9)) * ENTRY_BYTES + below(500);
        let per_day = (1 + below(30)) * ENTRY_BYTES;
        let with = DiskCacheOptions { bytes_max, write_bytes_per_day_max: per_day, ..options() };
        let mut cache = on(&disk, with.clone());
        let (mut n_written, mut day) = (0, 0);
        let mut written_before = 0;
        for _ in 0..120 {
            let mut at = cache.root(b"model", &[below(3) as u8]);
            for i in 0..below(5) as u32 {
                at = cache.next(&at, &[i]);
                cache.store(at, page(i as u8));
            }
            if below(10) == 0 {
                fetch(&cache, &[at]);
            }
            if below(20) == 0 {
                settle(&cache);
                written_before += cache.stats().write_bytes;
                drop(cache);
                cache = on(&disk, with.clone());
            }
            if below(30) == 0 {
                settle(&cache);
                day += 1;
                disk.set_day(day);
                n_written = written_before + cache.stats().write_bytes;
            }
            settle(&cache);
            assert!(disk.n_bytes() <= bytes_max, "seed {seed}");
            let today = written_before + cache.stats().write_bytes - n_written;
            // A share that was taken and not used may be used on the day after.
            assert!(today <= per_day + per_day / 64 + ENTRY_BYTES, "seed {seed}: {today}");
        }
    }
}

#[test]
fn a_full_queue_drops_and_a_failing_or_full_disk_is_survived() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, options());
    let keys = chain(&cache, 40);
    disk.shut(true);
    let large = PREFIX_WRITE_QUEUE_BYTES / 8;
    keys.iter().for_each(|key| cache.store(*key, vec![0; large]));
    let stats = cache.stats();
    assert!((29..=32).contains(&stats.drops_queue), "{stats:?}");
    disk.shut(false);
    settle(&cache);
    assert_eq!(cache.stats().writes + stats.drops_queue, 40);
    disk.fail(false, true);
    cache.store(keys[39], page(0));
    settle(&cache);
    assert_eq!((cache.stats().drops_failed, cache.has(&keys[39])), (1, false));
    disk.fail(true, false);
    cache.store(keys[39], page(0));
    settle(&cache);
    assert_eq!(fetch(&cache, &keys[39..]), (vec![], Some(Miss::Failed)));
    assert!(disk.keys().contains(&keys[39]), "it may be read another time");
    disk.set_free(0);
    disk.fail(false, false);
    cache.store(keys[38], page(0));
    settle(&cache);
    assert_eq!((cache.stats().drops_space, disk.keys().len()), (1, 0), "the models need the room");
}

#[test]
fn two_services_on_one_directory_see_what_the_other_writes_and_clears() {
    let dir = tempfile::tempdir().unwrap();
    let with = DiskCacheOptions {
        dir: dir.path().join("cache"),
        key_file: dir.path().join("state/prefix.key"),
        ..options()
    };
    assert_eq!(with.survey().unwrap(), (0, 0, 0));
    let [one, two] = [0, 1].map(|_| DiskCache::open(with.clone()).unwrap());
    let keys = chain(&one, 3);
    store_all(&two, &keys[..1]);
    store_all(&one, &keys);
    assert_eq!(fetch(&two, &keys), ((0..3).map(page).collect(), None));
    let see = |cache: &DiskCache| {
        // What was seen a moment ago is believed; asking looks.
        fetch(cache, &[]);
        cache.find(&keys)
    };
    assert_eq!(see(&two), Found::First(3));
    let (n_page, n_bytes, _) = with.survey().unwrap();
    assert_eq!((n_page, n_bytes), (3, 3 * ENTRY_BYTES));
    assert_eq!(with.clear().unwrap(), (3, 3 * ENTRY_BYTES));
    assert_eq!((see(&one), see(&two)), (Found::First(0), Found::First(0)));
    store_all(&one, &keys);
    assert_eq!(see(&one), Found::First(3));
}

#[test]
fn whoever_cancels_is_sent_no_more() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, options());
    let keys = chain(&cache, 3);
    store_all(&cache, &keys);
    disk.shut(true);
    let (mailbox, _rung) = mailbox();
    cache.fetch(&mailbox, 1, keys.clone(), PAGE_BYTES);
    cache.cancel(&mailbox, 1);
    disk.shut(false);
    assert_eq!(fetch(&cache, &keys).0.len(), 3);
    assert!(mailbox.is_empty());
}

#[test]
fn a_digest_is_remembered_until_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let with = DiskCacheOptions {
        dir: dir.path().join("cache"),
        key_file: dir.path().join("prefix.key"),
        ..options()
    };
    let cache = DiskCache::open(with).unwrap();
    let path = dir.path().join("model");
    std::fs::write(&path, b"weights").unwrap();
    let old = std::time::SystemTime::now() - Duration::from_secs(100);
    let digest = || {
        let file = std::fs::File::open(&path).unwrap();
        *cache.identify(vec![Part::Bytes(vec![1]), Part::File(file)], || ()).get().unwrap()
    };
    let first = digest();
    assert_eq!(digest(), first);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(digest(), first, "the same contents at another time");
    std::fs::write(&path, b"Weights").unwrap();
    file.set_modified(old).unwrap();
    assert_ne!(digest(), first, "a time that was set back hides nothing");
}

#[test]
fn what_is_used_in_memory_gets_no_older_on_the_disk() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, DiskCacheOptions { bytes_max: 4 * ENTRY_BYTES, ..options() });
    let old = chain(&cache, 2);
    store_all(&cache, &old);
    let other = cache.next(&cache.root(b"other", b""), &[1]);
    cache.store(other, page(9));
    settle(&cache);
    disk.set_day(1);
    cache.renew(&old);
    settle(&cache);
    assert_eq!(disk.keys(), [other, old[1], old[0]], "a page after those that build upon it");
    disk.take_away(&other);
    drop(cache);
    let cache = on(&disk, DiskCacheOptions { bytes_max: 2 * ENTRY_BYTES, ..options() });
    cache.store(other, page(9));
    settle(&cache);
    assert_eq!(disk.keys(), [old[0], other]);
}

#[test]
fn nobody_asks_the_disk_twice_within_a_moment() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = on(&disk, options());
    let keys = chain(&cache, 2);
    store_all(&cache, &keys);
    assert_eq!(cache.find(&keys), Found::First(2));
    let n_before = disk.n_stamp();
    (0..100).for_each(|_| assert_eq!(cache.find(&keys), Found::First(2)));
    assert_eq!(disk.n_stamp(), n_before);
    disk.set_day(1);
    assert_eq!(cache.find(&keys), Found::Unlisted, "a day later it may have changed");
    fetch(&cache, &[]);
    assert_eq!(cache.find(&keys), Found::First(2));
}

#[test]
fn a_disk_that_was_slow_is_asked_again() {
    let disk = Arc::new(MemoryDisk::default());
    // A page takes a millisecond at this speed.
    let with = DiskCacheOptions { read_bytes_per_s_max: Some(1_000_000), ..options() };
    let cache = on(&disk, with);
    let keys = chain(&cache, 1);
    store_all(&cache, &keys);
    assert_eq!(cache.read_bytes_per_s(), 1e6);
    cache.lock().stats.read_bytes_per_s = 1.0;
    assert_eq!(fetch(&cache, &keys).1, None);
    let found = cache.stats().read_bytes_per_s;
    assert!(found < 3e5, "{found}");
    let at_once = cache.read_bytes_per_s();
    assert!(at_once < found * 1.01, "{at_once}");
    disk.set_day(1);
    let later = cache.read_bytes_per_s();
    assert!(later > 0.99e6, "{later}");
    assert_eq!(cache.stats().read_bytes_per_s, found, "what was measured stays what it was");
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    std::fs::write(&path, b"weights").unwrap();
    let cache = on(&Arc::default(), options());
    let part = |file| vec![Part::File(file)];
    // Open for writing alone: reading fails.
    let file = std::fs::File::options().append(true).open(&path).unwrap();
    let identity = cache.identify(part(file), || ());
    assert!(identity.has_failed() && identity.get().is_none());
    let identity = cache.identify(part(std::fs::File::open(&path).unwrap()), || ());
    assert!(!identity.has_failed() && identity.get().is_some());
}
