//! The engine as callers meet it, on a scripted model and on the real one.

mod disk;
mod speculation;
mod tempo;

use std::time::Duration;

use super::*;
use crate::inference::disk_cache::{DiskCache, DiskCacheOptions, Miss};
use crate::inference::tokenizer::{EncodeOptions, TokenId};

/// Counts on from the last token, and repeats itself every 50 tokens.
fn count(history: &[TokenId]) -> TokenId {
    300 + (history.last().unwrap_or(&0) + 1) % 50
}

fn load(n_ctx: u32, n_parallel: usize) -> Model {
    let options = LoadOptions {
        n_ctx: Some(n_ctx),
        n_parallel: Some(n_parallel),
        n_threads: Some(1),
        ..LoadOptions::default()
    };
    Model::load(&ModelSource::Embedded, &options).unwrap()
}

fn start(model: Model, n_parallel: usize) -> Engine {
    let options = EngineOptions { n_parallel, ..EngineOptions::default() };
    Engine::start(model, options, Box::new(|reason| panic!("{reason}"))).unwrap()
}

fn scripted(n_ctx: u32, n_parallel: usize) -> Engine {
    start(load(n_ctx, n_parallel).with_script(Box::new(count)), n_parallel)
}

fn request(n_prompt: u32, n_predict: usize) -> Request {
    let mut request = Request {
        id: format!("r{n_prompt}"),
        prompt: (0..n_prompt).map(|i| 300 + i % 97).collect(),
        n_predict: Some(n_predict),
        ignore_eos: true,
        ..Request::default()
    };
    request.sampler.temp = 0.0;
    request
}

#[derive(Debug, Default, PartialEq)]
struct Heard {
    tokens: Vec<Vec<TokenId>>,
    text: Vec<String>,
    finish: Vec<Option<Finish>>,
    timings: Vec<Timings>,
    was_shifted: bool,
}

fn listen(mut stream: EventStream, n: usize) -> Result<Heard, String> {
    let mut heard = Heard {
        tokens: vec![Vec::new(); n],
        text: vec![String::new(); n],
        finish: vec![None; n],
        timings: vec![Timings::default(); n],
        was_shifted: false,
    };
    while let Some(event) = stream.recv() {
        match event {
            Event::Progress { .. } => {}
            Event::Text { answer_idx, text, tokens, .. } => {
                heard.text[answer_idx] += &text;
                heard.tokens[answer_idx].extend(tokens.iter().map(|t| t.token));
            }
            Event::Done { answer_idx, finish, was_shifted, timings, .. } => {
                heard.finish[answer_idx] = Some(finish);
                heard.timings[answer_idx] = timings;
                heard.was_shifted |= was_shifted;
            }
            Event::Failed(error) => return Err(error.to_string()),
        }
    }
    Ok(heard)
}

fn expected(request: &Request) -> Vec<TokenId> {
    let mut history = request.prompt.clone();
    for _ in 0..request.n_predict.unwrap() {
        history.push(count(&history));
    }
    history.split_off(request.prompt.len())
}

fn assert_at_rest(engine: &Engine) {
    // Answered between two steps: what the last one did is counted by then.
    engine.slots().wait().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.n_running, stats.n_waiting, stats.n_page_used), (0, 0, 0));
}

#[test]
fn many_at_once_get_what_each_would_get_alone() {
    let engine = scripted(512, 3);
    let requests: Vec<Request> =
        (0..40).map(|i| request(1 + i * 11 % 400, 1 + i as usize)).collect();
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    for (request, stream) in requests.iter().zip(streams) {
        let heard = listen(stream, 1).unwrap();
        assert_eq!(heard.tokens[0], expected(request));
        assert_eq!(heard.finish[0], Some(Finish::Length));
    }
    assert_at_rest(&engine);
    let stats = engine.stats();
    assert!(stats.accepted_tokens_total > 0, "the script repeats itself, guesses must hit");
    assert!(stats.cached_tokens_total > 0, "the prompts begin alike");
}

#[test]
fn a_prefix_is_found_again_and_changes_nothing() {
    let engine = scripted(512, 2);
    let first = listen(engine.submit(request(300, 20)).unwrap(), 1).unwrap();
    let again = listen(engine.submit(request(300, 20)).unwrap(), 1).unwrap();
    assert_eq!(first.tokens, again.tokens);
    assert_eq!((first.timings[0].n_cached, again.timings[0].n_cached), (0, 299));
    let private = Request { is_cache_private: true, ..request(300, 20) };
    let private = listen(engine.submit(private).unwrap(), 1).unwrap();
    assert_eq!(private.timings[0].n_cached, 0, "a private prefix is nobody else's");
    let off = Request { uses_cache: false, ..request(300, 20) };
    assert_eq!(listen(engine.submit(off).unwrap(), 1).unwrap().timings[0].n_cached, 0);
}

#[test]
fn n_answers_share_one_prefill() {
    let engine = scripted(512, 4);
    let request = Request { n: 4, ..request(333, 7) };
    let heard = listen(engine.submit(request.clone()).unwrap(), 4).unwrap();
    for answer in &heard.tokens {
        assert_eq!(*answer, expected(&request));
    }
    let cached: Vec<usize> = heard.timings.iter().map(|t| t.n_cached).collect();
    assert_eq!(cached, [0, 332, 332, 332]);
    assert_at_rest(&engine);
}

#[test]
fn whoever_leaves_frees_everything() {
    let engine = scripted(512, 2);
    let streams: Vec<_> = (0..20).map(|i| engine.submit(request(200 + i, 200)).unwrap()).collect();
    drop(streams);
    let heard = listen(engine.submit(request(10, 3)).unwrap(), 1).unwrap();
    assert_eq!(heard.tokens[0], expected(&request(10, 3)));
    assert_at_rest(&engine);
    assert_eq!(engine.stats().canceled_total, 20);
}

#[test]
fn a_full_context_ends_the_answer_or_shifts_it() {
    let engine = scripted(128, 2);
    let open = Request { n_predict: None, ..request(100, 0) };
    let heard = listen(engine.submit(open.clone()).unwrap(), 1).unwrap();
    assert_eq!((heard.tokens[0].len(), &heard.finish[0]), (28, &Some(Finish::ContextFull)));
    let shifted = Request { context_shift: true, n_keep: 10, ..request(100, 300) };
    let heard = listen(engine.submit(shifted.clone()).unwrap(), 1).unwrap();
    assert_eq!(heard.tokens[0], expected(&shifted), "the script looks at the last token only");
    assert!(heard.was_shifted);
    let error = engine.submit(request(128, 1)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("128 tokens") && error.contains("context 128"), "{error}");
    assert_at_rest(&engine);
}

#[test]
fn a_full_queue_refuses_with_a_time() {
    let options = EngineOptions { n_parallel: 1, n_queue_max: 2, ..EngineOptions::default() };
    let model = load(512, 1).with_script(Box::new(count));
    let engine = Engine::start(model, options, Box::new(|reason| panic!("{reason}"))).unwrap();
    let results: Vec<_> = (0..20).map(|_| engine.submit(request(400, 100))).collect();
    let refused: Vec<_> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|e| matches!(e, EngineError::QueueFull { .. })));
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    let engine = scripted(512, 1);
    let late = Request { deadline: Some(Duration::ZERO), ..request(400, 100) };
    let heard = listen(engine.submit(late).unwrap(), 1).unwrap();
    assert_eq!(heard.finish[0], Some(Finish::TimeUp));
    assert_at_rest(&engine);
}

#[test]
fn stopping_lets_what_runs_finish_and_refuses_the_rest() {
    let engine = scripted(512, 1);
    let stream = engine.submit(request(50, 30)).unwrap();
    engine.stop(Duration::from_secs(60));
    assert_eq!(listen(stream, 1).unwrap().tokens[0], expected(&request(50, 30)));
    assert!(matches!(engine.submit(request(5, 5)), Err(EngineError::Stopping)));
}

#[test]
fn a_panic_is_told_and_closes_every_stream() {
    let model = load(128, 1).with_script(Box::new(|_| panic!("the model broke")));
    let (tell, told) = std::sync::mpsc::channel();
    let on_panic = Box::new(move |reason| tell.send(reason).unwrap());
    let engine = Engine::start(model, EngineOptions::default(), on_panic).unwrap();
    let mut stream = engine.submit(request(5, 5)).unwrap();
    while stream.recv().is_some() {}
    assert_eq!(told.recv().unwrap(), "the model broke");
    assert!(matches!(engine.submit(request(5, 5)), Err(EngineError::Stopping)));
}

#[test]
fn work_nobody_waits_for_gives_way_and_still_ends_the_same() {
    let engine = scripted(512, 1);
    let background = Request { priority: Priority::Background, ..request(200, 250) };
    let slow = engine.submit(background.clone()).unwrap();
    let mut slow_started = slow;
    loop {
        match slow_started.recv().unwrap() {
            Event::Text { .. } => break,
            _ => continue,
        }
    }
    let fast = listen(engine.submit(request(20, 5)).unwrap(), 1).unwrap();
    assert_eq!(fast.tokens[0], expected(&request(20, 5)));
    let mut last = None;
    while let Some(event) = slow_started.recv() {
        last = Some(event);
    }
    let Some(Event::Done { timings, finish, .. }) = last else { panic!("it must end") };
    assert_eq!((timings.n_generated, finish), (250, Finish::Length));
    assert_at_rest(&engine);
}

/// The promise on the real model: the same seed gives the same text alone or beside others, with a
/// cached prefix or without, with guesses or without.
#[test]
fn the_same_seed_gives_the_same_text_in_any_company() {
    let model = load(256, 4);
    let options = EncodeOptions { add_special: true, parse_special: true };
    let text = "def quick_sort(items):\n    if len(items) <= 1:\n        return items\n";
    let prompt = model.tokenizer().encode(text, options).unwrap();
    let engine = start(model, 4);
    let mut request = Request { prompt, n_predict: Some(60), ..Request::default() };
    request.sampler.seed = 7;
    request.sampler.temp = 0.9;
    let plain = Request {
        uses_cache: false,
        speculation: SpeculationOptions { n_draft_max: 0, ..Default::default() },
        ..request.clone()
    };
    let alone = listen(engine.submit(plain).unwrap(), 1).unwrap();
    assert!(alone.tokens[0].len() > 5, "{alone:?}");
    let cached = listen(engine.submit(request.clone()).unwrap(), 1).unwrap();
    assert_eq!(alone.text, cached.text);
    let others: Vec<_> =
        (0..6).map(|i| engine.submit(self::request(20 + i * 31, 40)).unwrap()).collect();
    let beside = listen(engine.submit(request.clone()).unwrap(), 1).unwrap();
    assert_eq!(alone.text, beside.text);
    let prediction = alone.tokens[0].clone();
    let guessed = Request {
        speculation: SpeculationOptions { prediction, ..Default::default() },
        ..request.clone()
    };
    let guessed = listen(engine.submit(guessed).unwrap(), 1).unwrap();
    assert_eq!(alone.text, guessed.text);
    assert!(guessed.timings[0].n_accepted > 10, "{:?}", guessed.timings);
    drop(others);
}

#[test]
fn a_saved_slot_is_a_cached_prefix_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("slot.bin");
    let engine = scripted(512, 1);
    let first = listen(engine.submit(request(300, 20)).unwrap(), 1).unwrap();
    let saved = engine.save_slot(0, file.clone()).wait().unwrap();
    assert_eq!(saved.n_tokens, 319, "the last token was never computed");
    let other = scripted(512, 1);
    assert_eq!(other.restore_slot(0, file.clone()).wait().unwrap(), saved);
    let again = listen(other.submit(request(300, 20)).unwrap(), 1).unwrap();
    assert_eq!((again.timings[0].n_cached, &again.tokens), (299, &first.tokens));
    assert_eq!(other.erase_slot(0).wait().unwrap(), 319);
    let bytes = std::fs::read(&file).unwrap();
    for (n, change) in [(bytes.len() - 1, 0), (bytes.len(), 1), (20, 0)] {
        let mut broken = bytes[..n].to_vec();
        broken[n / 2] ^= change;
        std::fs::write(&file, broken).unwrap();
        let error = other.restore_slot(0, file.clone()).wait().unwrap_err().to_string();
        assert!(error.contains("it is"), "{error}");
    }
    assert!(matches!(other.save_slot(1, file).wait(), Err(EngineError::Slot { .. })));
}

/// Random arrivals, wishes and departures through the core itself: after each step every page is
/// held exactly by those who say so, and at the end nobody holds any.
#[test]
fn no_page_is_lost_or_freed_twice_whatever_comes() {
    for seed in 1..=100u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x14057b7ef767814f);
            (state >> 33) % n
        };
        let n_parallel = 1 + below(4) as usize;
        let model = load(96 + 32 * below(4) as u32, n_parallel).with_script(Box::new(count));
        let model = match seed % 2 {
            0 => model,
            _ => model.with_draft_script(Box::new(count), n_parallel),
        };
        let options = EngineOptions { n_parallel, ..EngineOptions::default() };
        let waker: disk_link::Waker = std::sync::Arc::new(|| ());
        let mut core = core::Core::new(model, options, std::sync::Arc::default(), &waker);
        let mut streams = Vec::new();
        for _ in 0..300 {
            if below(3) == 0 {
                let request = Request {
                    n: 1 + below(3) as usize,
                    context_shift: below(3) == 0,
                    n_keep: below(40) as usize,
                    uses_cache: below(4) > 0,
                    is_cache_private: below(4) == 0,
                    priority: [Priority::Interactive, Priority::Background][below(2) as usize],
                    tenant: TenantId(below(2)),
                    ..request(1 + below(90) as u32, below(120) as usize)
                };
                let (sender, stream) = event::event_stream();
                let arrived = std::time::Instant::now();
                core.submit(handle::Submitted { request, matcher: None, sender, arrived });
                streams.push(stream);
            }
            if !streams.is_empty() && below(9) == 0 {
                drop(streams.swap_remove(below(streams.len() as u64) as usize));
            }
            core.step();
            check_pages(&core, seed);
        }
        while core.has_work() {
            core.step();
            check_pages(&core, seed);
        }
        assert!(core.held_pages().is_empty(), "seed {seed}");
        while core.cache.evict(&mut core.pool) {}
        assert_eq!(core.pool.n_free(), core.pool.n_page(), "seed {seed}");
    }
}

fn check_pages(core: &core::Core, seed: u64) {
    let mut held = core.held_pages();
    core.cache.pages().into_iter().for_each(|page| *held.entry(page).or_default() += 1);
    for page in 0..core.pool.n_page() as u32 {
        let expected = held.get(&page).copied().unwrap_or(0);
        assert_eq!(core.pool.n_holder(page), expected, "seed {seed}, page {page}");
    }
}
