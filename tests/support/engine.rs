//! Engines and batches of tests: started so that their failures end the test, and what they answer.

use jetforge::inference::backend::{Batch, PageIdx, Span};
use jetforge::inference::{Engine, EngineOptions, Event, Model, Request};

/// What was answered to a request.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<u32>,
    /// How many of them came with their probability.
    pub n_probs: usize,
    /// Tokens of the prompt that a cache had.
    pub n_cached: usize,
}

/// An engine whose end is the test's.
pub fn start(model: Model, options: EngineOptions) -> Engine {
    let engine = Engine::start(model, options, Box::new(|reason| panic!("{reason}")));
    engine.expect("the engine starts")
}

/// Runs requests beside each other.
pub fn answers(engine: &Engine, requests: Vec<Request>) -> Vec<Answer> {
    let streams = requests.into_iter().map(|request| engine.submit(request).expect("taken"));
    let mut streams: Vec<_> = streams.collect();
    let answers = streams.iter_mut().map(|stream| {
        let mut answer = Answer::default();
        while let Some(event) = stream.recv() {
            match event {
                Event::Text { text, tokens, timings, .. } => {
                    answer.text += &text;
                    answer.tokens.extend(tokens.iter().map(|token| token.token));
                    answer.n_probs += tokens.iter().filter(|token| token.probs.is_some()).count();
                    answer.n_cached = timings.n_cached;
                }
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        answer
    });
    answers.collect()
}

/// Tokens of a sequence in a step: its pages, where they begin, and how many are a prompt's.
pub type Part<'a> = (&'a [PageIdx], usize, &'a [u32], usize);

/// Hands `run` the step that these parts are, with an output row for each token.
pub fn with_step<T>(parts: &[Part<'_>], run: impl FnOnce(&Batch<'_>) -> T) -> T {
    let tokens: Vec<u32> = parts.iter().flat_map(|part| part.2).copied().collect();
    let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
    let spans: Vec<Span<'_>> = parts
        .iter()
        .map(|&(pages, pos, tokens, n_prompt)| {
            let n_tokens = tokens.len();
            Span { pages, pos, n_tokens, n_prompt, adapters: &[] }
        })
        .collect();
    run(&Batch { tokens: &tokens, spans: &spans, outputs: &outputs })
}

/// Rows as the bits of their values.
pub fn bits(rows: &[&[f32]]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}
