//! Draft models: they change how many steps an answer takes, and nothing else.

use super::*;
use crate::inference::backend::BackendError;
use crate::inference::engine::draft_model::DraftModel;
use crate::inference::engine::runner::FnRunner;
use crate::inference::gguf::Gguf;

/// Hardly ever says the same three tokens twice, so that lookup finds nothing.
fn wander(history: &[TokenId]) -> TokenId {
    let last = history.last().copied().unwrap_or_default() as usize;
    300 + ((last * 31 + history.len() * history.len() * 7) % 401) as TokenId
}

/// Right three times out of four.
fn stray(history: &[TokenId]) -> TokenId {
    wander(history) + TokenId::from(history.len().is_multiple_of(4))
}

fn wish(n_prompt: u32, n_predict: usize) -> Request {
    let prompt = (0..n_prompt).map(|i| 300 + (i * i * 13 + i * n_prompt) % 389).collect();
    Request { prompt, ..request(n_prompt, n_predict) }
}

fn wandering(n_ctx: u32, n_parallel: usize) -> Model {
    load(n_ctx, n_parallel).with_script(Box::new(wander))
}

fn answer(request: &Request) -> Vec<TokenId> {
    let mut history = request.prompt.clone();
    for _ in 0..request.n_predict.unwrap() {
        history.push(wander(&history));
    }
    history.split_off(request.prompt.len())
}

/// Runs them all at once; what each heard.
fn run(engine: &Engine, requests: &[Request]) -> Vec<Heard> {
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    streams.into_iter().map(|stream| listen(stream, 1).unwrap()).collect()
}

#[test]
fn a_draft_model_that_knows_the_answer_saves_its_steps() {
    let engine = start(wandering(512, 1).with_draft_script(Box::new(wander), 1), 1);
    let request = wish(100, 200);
    let heard = &run(&engine, std::slice::from_ref(&request))[0];
    assert_eq!(heard.tokens[0], answer(&request));
    let timings = heard.timings[0];
    assert_eq!(timings.n_accepted, timings.n_draft, "every guess is right");
    let stats = engine.stats();
    assert_eq!(stats.accepted_tokens_total, timings.n_accepted as u64);
    assert_eq!(stats.draft_tokens_total, timings.n_draft as u64);
    // Up to 9 tokens in a step, once the draft model has read the prompt.
    assert!(stats.steps_total < 200 / 3, "{}", stats.steps_total);
    assert_at_rest(&engine);
}

#[test]
fn no_draft_model_changes_a_text() {
    let mut requests: Vec<Request> =
        (0..12).map(|i| wish(1 + i * 37 % 300, 5 + i as usize * 9)).collect();
    for (i, request) in requests.iter_mut().enumerate().skip(4) {
        request.sampler.temp = 3.0;
        request.sampler.seed = i as u32;
    }
    let texts = |engine: Engine| {
        let heard = run(&engine, &requests);
        assert_at_rest(&engine);
        let luck = heard[..4].iter().map(|h| h.timings[0].n_accepted).sum::<usize>();
        (luck, heard.into_iter().map(|heard| (heard.tokens, heard.text)).collect::<Vec<_>>())
    };
    let (_, alone) = texts(start(wandering(512, 3), 3));
    for (script, is_lucky) in
        [(wander as fn(&[TokenId]) -> TokenId, true), (stray, true), (count, false)]
    {
        let model = wandering(512, 3).with_draft_script(Box::new(script), 3);
        let (luck, beside) = texts(start(model, 3));
        assert_eq!(alone, beside);
        assert_eq!(luck > 20, is_lucky, "{luck}");
    }
}

#[test]
fn it_reads_what_the_prefix_cache_had_and_what_a_chunk_left() {
    let options = LoadOptions {
        n_ctx: Some(512),
        n_batch: Some(32),
        n_threads: Some(1),
        ..LoadOptions::default()
    };
    let model = Model::load(&ModelSource::Embedded, &options).unwrap();
    let model = model.with_script(Box::new(wander)).with_draft_script(Box::new(wander), 1);
    let engine = start(model, 1);
    let (first, other) = (wish(300, 60), wish(200, 60));
    for (request, is_cached) in [(&first, false), (&other, false), (&first, true)] {
        let heard = &run(&engine, std::slice::from_ref(request))[0];
        assert_eq!(heard.tokens[0], answer(request));
        let timings = heard.timings[0];
        assert_eq!(timings.n_accepted, timings.n_draft);
        assert_eq!(timings.n_cached > 200, is_cached, "{timings:?}");
        assert!(timings.n_draft > 30, "{timings:?}");
    }
}

#[test]
fn whoever_gave_up_its_place_is_guessed_for_again() {
    let engine = start(wandering(512, 1).with_draft_script(Box::new(wander), 1), 1);
    let slow = Request { priority: Priority::Background, ..wish(200, 250) };
    let mut stream = engine.submit(slow.clone()).unwrap();
    while !matches!(stream.recv().unwrap(), Event::Text { .. }) {}
    let fast = &run(&engine, &[wish(20, 30)])[0];
    assert_eq!(fast.tokens[0], answer(&wish(20, 30)));
    assert_eq!(fast.timings[0].n_accepted, fast.timings[0].n_draft);
    let mut timings = None;
    while let Some(event) = stream.recv() {
        if let Event::Done { timings: done, .. } = event {
            timings = Some(done);
        }
    }
    let timings = timings.unwrap();
    assert_eq!((timings.n_generated, timings.n_accepted), (250, timings.n_draft));
    assert_at_rest(&engine);
}

#[test]
fn a_request_sets_its_own_bounds() {
    let engine = start(wandering(512, 1).with_draft_script(Box::new(stray), 1), 1);
    let with = |speculation| Request { speculation, ..wish(50, 100) };
    let timings = |speculation| run(&engine, &[with(speculation)])[0].timings[0];
    let default = SpeculationOptions::default;
    assert_eq!(timings(SpeculationOptions { n_draft_max: 0, ..default() }).n_draft, 0);
    let one = timings(SpeculationOptions { n_draft_max: 1, ..default() });
    assert!(one.n_draft > one.n_accepted && one.n_accepted > 40, "{one:?}");
    // No draft is that long.
    let long = SpeculationOptions { n_draft_max: 4, n_draft_min: 5, ..default() };
    assert_eq!(timings(long).n_draft, 0);
    // The script's token is far above the others, but not as far as this.
    assert_eq!(timings(SpeculationOptions { p_min: 1.1, ..default() }).n_draft, 0);
    assert!(timings(SpeculationOptions { p_min: 0.99, ..default() }).n_draft > 40);
}

#[test]
fn a_draft_model_that_fails_is_set_aside_and_no_answer_hears_of_it() {
    for n_pass in [0, 1, 7, 20] {
        let model = wandering(512, 2);
        let n_vocab = model.hparams().n_vocab;
        let mut row = vec![0.0; n_vocab];
        row[310] = 1.0;
        let mut n_left = n_pass;
        let runner = FnRunner::boxed(move |batch| {
            n_left = usize::checked_sub(n_left, 1).ok_or(BackendError::TooManyAdapters)?;
            Ok(vec![row.clone(); batch.outputs.len()])
        });
        let draft = DraftModel::new(runner, 2, 512, 512, n_vocab, Vec::new());
        let engine = start(model.with_draft(Some(draft)), 2);
        let requests: Vec<Request> = (0..4).map(|i| wish(30 + i * 50, 40)).collect();
        for (request, heard) in requests.iter().zip(run(&engine, &requests)) {
            assert_eq!(heard.tokens[0], answer(request));
        }
        assert_at_rest(&engine);
        let stats = engine.stats();
        assert_eq!((stats.draft_failures_total, stats.failed_total), (1, 0));
    }
}

/// The promise on the real model, which is its own draft model here: the same text, greedy or
/// drawn, alone or beside others, in fewer steps.
#[test]
fn a_real_model_says_the_same_with_itself_as_its_draft_model() {
    let load = |draft| {
        let options = LoadOptions {
            n_ctx: Some(256),
            n_parallel: Some(3),
            n_threads: Some(1),
            draft,
            ..LoadOptions::default()
        };
        Model::load(&ModelSource::Embedded, &options).unwrap()
    };
    let (alone, drafted) = (load(None), load(Some(ModelSource::Embedded)));
    let options = EncodeOptions { add_special: true, parse_special: true };
    let prompts = ["def quick_sort(items):\n", "class Stack:\n", "import os\n\n\ndef walk("];
    let mut requests = Vec::new();
    for (i, text) in prompts.into_iter().enumerate() {
        let prompt = alone.tokenizer().encode(text, options).unwrap();
        let mut request =
            Request { prompt, n_predict: Some(60), ignore_eos: true, ..Request::default() };
        request.sampler.temp = 0.0;
        requests.push(request.clone());
        request.sampler.temp = 0.8;
        request.sampler.seed = i as u32;
        requests.push(request);
    }
    let (alone, drafted) = (start(alone, 3), start(drafted, 3));
    let (expected, heard) = (run(&alone, &requests), run(&drafted, &requests));
    for (expected, heard) in expected.iter().zip(&heard) {
        assert_eq!((&expected.tokens, &expected.text), (&heard.tokens, &heard.text));
    }
    let (n_alone, n_drafted) = (alone.stats().steps_total, drafted.stats().steps_total);
    assert!(n_drafted * 3 < n_alone * 2, "{n_drafted} steps instead of {n_alone}");
    assert_at_rest(&drafted);
}

#[test]
fn the_memory_plan_counts_it_and_says_what_is_missing() {
    let options = |draft, memory_max_bytes| LoadOptions {
        n_ctx: Some(512),
        n_parallel: Some(2),
        draft,
        memory_max_bytes,
        ..LoadOptions::default()
    };
    let embedded = || Some(ModelSource::Embedded);
    let plan = |draft| {
        let gguf = Gguf::from_static(EMBEDDED_MODEL).unwrap();
        plan_memory(&gguf, &options(draft, None), u64::MAX).unwrap()
    };
    let (alone, drafted) = (plan(None), plan(embedded()));
    assert_eq!(alone.draft_bytes, 0);
    assert!(drafted.draft_bytes > alone.weights_bytes);
    assert_eq!(drafted.needed_bytes(), alone.needed_bytes() + drafted.draft_bytes);
    assert!(drafted.to_string().contains(" + draft model "), "{drafted}");
    let room = drafted.needed_bytes() - (3 << 20);
    let error = Model::load(&ModelSource::Embedded, &options(embedded(), Some(room)));
    let error = error.map(|_| ()).unwrap_err();
    let InferenceError::Memory { missing_bytes, .. } = &error else { panic!("{error}") };
    assert_eq!(*missing_bytes, 3 << 20);
    assert!(error.to_string().contains("3 MiB too few"), "{error}");
    Model::load(&ModelSource::Embedded, &options(None, Some(room))).unwrap();
}
