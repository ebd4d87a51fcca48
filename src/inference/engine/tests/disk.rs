//! Prefixes that outlive the engine, on disks that fail in every way.

use std::sync::Arc;

use super::*;
use crate::inference::DiskCacheStats;
use crate::inference::disk_cache::Identity;
use crate::inference::disk_cache::memory_disk::MemoryDisk;

fn options() -> DiskCacheOptions {
    DiskCacheOptions {
        dir: std::env::temp_dir().join("jetforge-no-such-directory"),
        key_file: "/nowhere".into(),
        bytes_max: u64::MAX,
        write_bytes_per_day_max: u64::MAX,
        read_bytes_per_s_max: None,
    }
}

fn cache_on(disk: &Arc<MemoryDisk>, device: u8) -> DiskCache {
    DiskCache::on(Arc::clone(disk) as _, device, options())
}

fn with_disk(model: Model, n_parallel: usize, cache: &DiskCache) -> Engine {
    let disk_cache = Some(cache.clone());
    let options = EngineOptions { n_parallel, disk_cache, n_disk_min: 40, ..Default::default() };
    Engine::start(model, options, Box::new(|reason| panic!("{reason}"))).unwrap()
}

fn script() -> Model {
    load(512, 2).with_script(Box::new(count))
}

/// Waits until everything that shall be kept is.
fn settle(engine: &Engine, cache: &DiskCache) {
    engine.slots().wait().unwrap();
    while engine.stats().n_keeping > 0 || !cache.is_idle() {
        std::thread::yield_now();
    }
}

fn ask(engine: &Engine, request: &Request) -> Heard {
    listen(engine.submit(request.clone()).unwrap(), 1).unwrap()
}

/// Answers in an engine of their own, which keeps what it computes.
fn run(cache: &DiskCache, model: Model, request: &Request) -> Heard {
    let engine = with_disk(model, 2, cache);
    let heard = ask(&engine, request);
    settle(&engine, cache);
    assert_at_rest(&engine);
    heard
}

#[test]
fn a_prefix_outlives_the_engine_and_changes_nothing() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = cache_on(&disk, 1);
    let first = run(&cache, script(), &request(300, 20));
    assert_eq!((first.timings[0].n_cached, disk.keys().len()), (0, 10), "9 pages and a tail of 11");
    let again = run(&cache, script(), &request(300, 20));
    assert_eq!((&again.tokens, again.timings[0].n_cached), (&first.tokens, 299));
    // What was answered comes back as part of a prompt, and is kept then.
    let mut longer = request(300, 20);
    longer.prompt.extend(&first.tokens[0]);
    longer.prompt.extend(&[310; 41]);
    let heard = run(&cache, script(), &longer);
    assert_eq!((heard.timings[0].n_cached, heard.tokens[0].clone()), (299, expected(&longer)));
    assert_eq!(run(&cache, script(), &longer).timings[0].n_cached, 360);
    let short = run(&cache, script(), &request(39, 3));
    assert_eq!(short.timings[0].n_cached, 0, "too short to be looked for");
}

#[test]
fn scopes_and_fingerprints_do_not_meet() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = cache_on(&disk, 1);
    let asked = request(300, 5);
    run(&cache, script(), &asked);
    let n_cached = |request: &Request| {
        let heard = run(&cache, script(), request);
        assert_eq!(heard.tokens[0], expected(request));
        heard.timings[0].n_cached
    };
    let own =
        |tenant| Request { is_cache_private: true, tenant: TenantId(tenant), ..asked.clone() };
    assert_eq!([n_cached(&own(1)), n_cached(&own(2)), n_cached(&own(1))], [0, 0, 299]);
    assert_eq!(n_cached(&Request { uses_cache: false, ..asked.clone() }), 0);
    let kv = |kv_type: &str| {
        let kv_type = Some(kv_type.to_owned());
        let options = LoadOptions { n_ctx: Some(512), kv_type, ..LoadOptions::default() };
        Model::load(&ModelSource::Embedded, &options).unwrap()
    };
    assert_eq!(run(&cache, kv("f16"), &asked).timings[0].n_cached, 0, "a script is no model");
    assert_eq!(run(&cache, kv("f32"), &asked).timings[0].n_cached, 0);
    assert_eq!(run(&cache, kv("f16"), &asked).timings[0].n_cached, 299);
    let other = cache_on(&disk, 2);
    assert_eq!(run(&other, script(), &asked).timings[0].n_cached, 0, "another device");
}

#[test]
fn the_model_says_the_same_with_pages_from_the_disk() {
    let model = || load(512, 2);
    let text = "def quick_sort(items):\n    if len(items) <= 1:\n        return items\n".repeat(6);
    let prompt = model().tokenizer().encode(&text, EncodeOptions::default()).unwrap();
    let mut asked = Request { prompt, n_predict: Some(40), ..Request::default() };
    asked.sampler.temp = 0.0;
    let cache = cache_on(&Arc::default(), 1);
    let first = run(&cache, model(), &asked);
    let again = run(&cache, model(), &asked);
    assert_eq!((&first.text, first.timings[0].n_cached), (&again.text, 0));
    assert!(again.timings[0].n_cached >= asked.prompt.len() - 8, "{:?}", again.timings);
}

#[test]
fn whatever_happens_to_the_disk_the_answer_is_the_same() {
    let asked = request(300, 20);
    let misses = |stats: DiskCacheStats| Miss::ALL.map(|miss| stats.missed(miss));
    for damage in 0..7 {
        let disk = Arc::new(MemoryDisk::default());
        let cache = cache_on(&disk, 1);
        run(&cache, script(), &asked);
        let keys = disk.keys();
        match damage {
            0 => disk.tamper(&keys[4], |bytes| bytes[60] ^= 1),
            1 => disk.tamper(&keys[4], |bytes| bytes.truncate(bytes.len() - 1)),
            2 => disk.tamper(&keys[0], Vec::clear),
            3 => disk.take_away(&keys[9]),
            4 => disk.swap(&keys[2], &keys[3]),
            5 => disk.fail(true, true),
            _ => keys.iter().for_each(|key| disk.take_away(key)),
        }
        let before = misses(cache.stats());
        let heard = run(&cache, script(), &asked);
        assert_eq!(heard.tokens[0], expected(&asked), "damage {damage}");
        assert!(heard.timings[0].n_cached < 299, "damage {damage}");
        assert_ne!(misses(cache.stats()), before, "damage {damage} is counted");
        disk.fail(false, false);
        run(&cache, script(), &asked);
        let healed = run(&cache, script(), &asked);
        assert_eq!((healed.timings[0].n_cached, &healed.tokens[0]), (299, &expected(&asked)));
    }
}

#[test]
fn a_disk_that_hangs_holds_nobody_up() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = cache_on(&disk, 1);
    run(&cache, script(), &request(300, 20));
    let engine = with_disk(script(), 2, &cache);
    disk.shut(true);
    let held = engine.submit(request(300, 20)).unwrap();
    let mut free = request(200, 20);
    free.prompt.reverse();
    assert_eq!(ask(&engine, &free).tokens[0], expected(&free), "others go on");
    assert_eq!(engine.stats().n_fetching, 1);
    // Its pages do not come: after two seconds it computes them.
    let heard = listen(held, 1).unwrap();
    assert_eq!((&heard.tokens[0], heard.timings[0].n_cached), (&expected(&request(300, 20)), 0));
    assert_eq!(cache.stats().missed(Miss::Stalled), 10);
    // Whoever leaves while its pages are on their way frees everything.
    let other = with_disk(script(), 2, &cache);
    drop(other.submit(request(300, 20)).unwrap());
    assert_eq!(ask(&other, &free).tokens[0], expected(&free));
    disk.shut(false);
    settle(&engine, &cache);
    assert_at_rest(&engine);
    assert_at_rest(&other);
}

#[test]
fn what_would_be_slower_to_read_is_computed() {
    let disk = Arc::new(MemoryDisk::default());
    let slow = DiskCacheOptions { read_bytes_per_s_max: Some(1), ..options() };
    let cache = DiskCache::on(Arc::clone(&disk) as _, 1, slow);
    let engine = with_disk(load(512, 2), 2, &cache);
    assert_eq!(ask(&engine, &request(300, 5)).tokens[0].len(), 5);
    settle(&engine, &cache);
    assert_eq!(disk.keys().len(), 0, "what is not worth reading is not worth writing");
}

/// Now and then something happens to the disk.
fn strike(disk: &MemoryDisk, below: &mut impl FnMut(u64) -> u64) {
    match below(40) {
        0 => disk.fail(below(2) == 0, below(2) == 0),
        1 => disk.fail(false, false),
        2 => disk.keys().iter().take(3).for_each(|key| disk.take_away(key)),
        3 => disk.keys().iter().take(1).for_each(|key| {
            disk.tamper(key, |bytes| bytes.iter_mut().take(1).for_each(|b| *b ^= 1));
        }),
        _ => {}
    }
}

/// Random arrivals, departures and faults, engine after engine on one disk: after each step every
/// page is held exactly by those who say so, and every answer is the one without a disk.
#[test]
fn no_page_is_lost_whatever_the_disk_does() {
    let mut n_hit = 0;
    for seed in 1..=16u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x14057b7ef767814f);
            (state >> 33) % n
        };
        let disk = Arc::new(MemoryDisk::default());
        let cache = cache_on(&disk, 1);
        for _ in 0..3 {
            disk.fail(false, false);
            let n_parallel = 1 + below(3) as usize;
            let model = load(256, n_parallel).with_script(Box::new(count));
            let disk_cache = Some(cache.clone());
            let options =
                EngineOptions { n_parallel, disk_cache, n_disk_min: 33, ..Default::default() };
            let (bell, rung) = std::sync::mpsc::channel();
            let waker: disk_link::Waker = Arc::new(move || {
                // Nobody may be listening any more.
                let _ = bell.send(());
            });
            let mut core = core::Core::new(model, options, Arc::default(), &waker);
            let mut streams = Vec::new();
            for _ in 0..80 {
                if below(3) == 0 {
                    let request = Request {
                        n: 1 + below(2) as usize,
                        uses_cache: below(5) > 0,
                        is_cache_private: below(5) == 0,
                        priority: [Priority::Interactive, Priority::Background][below(2) as usize],
                        ..request(1 + below(220) as u32, 1 + below(30) as usize)
                    };
                    let (sender, stream) = event::event_stream();
                    let (arrived, n) = (std::time::Instant::now(), request.n);
                    let wanted = expected(&request);
                    core.submit(handle::Submitted { request, matcher: None, sender, arrived });
                    streams.push((stream, n, wanted));
                }
                if below(40) == 0 && !streams.is_empty() {
                    drop(streams.swap_remove(0));
                }
                strike(&disk, &mut below);
                core.step();
                check_pages(&core, seed);
            }
            while core.has_work() {
                if core.is_waiting() {
                    let _ = rung.recv_timeout(Duration::from_millis(20));
                }
                core.step();
                check_pages(&core, seed);
            }
            for (stream, n, wanted) in streams {
                let heard = listen(stream, n).unwrap();
                assert!(heard.tokens.iter().all(|tokens| *tokens == wanted), "seed {seed}");
            }
            assert!(core.held_pages().is_empty(), "seed {seed}");
            while core.cache.evict(&mut core.pool) {}
            assert_eq!(core.pool.n_free(), core.pool.n_page(), "seed {seed}");
        }
        n_hit += cache.stats().hits;
    }
    assert!(n_hit > 50, "it must have been of use");
}

#[test]
fn a_dropped_engine_does_not_wait_for_the_disk() {
    let disk = Arc::new(MemoryDisk::default());
    let cache = cache_on(&disk, 1);
    let engine = with_disk(script(), 2, &cache);
    disk.shut(true);
    ask(&engine, &request(300, 5));
    while engine.stats().n_keeping > 0 {
        std::thread::yield_now();
    }
    let (sender, dropped) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        drop(engine);
        sender.send(()).unwrap();
    });
    // Waiting for the disk would end after ten seconds.
    dropped.recv_timeout(Duration::from_secs(8)).unwrap();
    thread.join().unwrap();
    disk.shut(false);
    while !cache.is_idle() {
        std::thread::yield_now();
    }
    assert_eq!(disk.keys().len(), 10, "what it handed over is kept all the same");
}

#[test]
fn files_that_cannot_be_digested_hold_nobody_up() {
    let cache = cache_on(&Arc::default(), 1);
    let disk_cache = Some(cache.clone());
    let options = EngineOptions { disk_cache, n_disk_min: 33, ..Default::default() };
    let waker: disk_link::Waker = Arc::new(|| ());
    let mut core = core::Core::new(script(), options, Arc::default(), &waker);
    core.disk.as_mut().unwrap().model = Arc::new(Identity::failed());
    let (sender, stream) = event::event_stream();
    let (request, arrived) = (request(100, 5), std::time::Instant::now());
    let wanted = expected(&request);
    core.submit(handle::Submitted { request, matcher: None, sender, arrived });
    while core.has_work() {
        core.step();
    }
    assert_eq!(listen(stream, 1).unwrap().tokens[0], wanted);
    let stats = cache.stats();
    assert_eq!((stats.missed(Miss::Failed), stats.drops_gone, stats.writes), (3, 4, 0));
}
