//! What guesses are worth: a file that is written again with changes, and a step of several tokens.
//!
//! Random weights copy nothing, so the tokens are forced: the model's passes run as they would, and
//! a script says what they pick. The engine's lookup, its steps and their cost are the real ones.

use super::BenchError;
use super::ask::{self, Run, request, run};
use super::figures::{Figure, Unit};
use crate::inference::{
    Engine, EngineOptions, LoadOptions, Model, ModelSource, Script, SpeculationOptions, TokenId,
};

/// Tokens of the file that is edited, and of the answer.
const N_FILE: usize = 400;
/// Of so many tokens of the answer ...
const RUN: usize = 40;
/// ... the first ones are new, and the others copied: 80 %.
const N_NEW: usize = 8;
/// Tokens of an answer that only repeats what was guessed.
const N_VERIFY: usize = 96;
/// Tokens of a step that verifies.
const STEP: usize = 4;

/// Times of the edit with and without guesses, and of a step of four tokens beside one of one.
///
/// # Errors
/// If the model cannot be loaded, or an answer is not what the script says.
pub fn measure(
    source: &ModelSource,
    load: &LoadOptions,
    n_rounds: usize,
) -> Result<Vec<Figure>, BenchError> {
    let n_ctx = (2 * N_FILE + 2 * STEP) as u32;
    let load = LoadOptions { n_ctx: Some(n_ctx), n_parallel: Some(1), ..load.clone() };
    let model = Model::load(source, &load)?;
    let tokens = |n, seed| ask::tokens(model.info(), n, seed);
    let (file, letter, reply) = (tokens(N_FILE, 1), tokens(STEP, 2), tokens(N_VERIFY, 3));
    let edited = edited(&file, &tokens(N_FILE, 4));
    let texts = vec![(file.clone(), edited), (letter.clone(), reply.clone())];
    let engine = Engine::start(
        model.with_forced_tokens(script(texts)),
        EngineOptions::default(),
        Box::new(|_| {}),
    )?;
    let edits = Rounds::new(&engine, &file, N_FILE, n_rounds, SpeculationOptions::default())?;
    // The prediction is the answer: every guess is right, three of them at a time.
    let prediction = letter.iter().chain(&reply).copied().collect();
    let always =
        SpeculationOptions { n_draft_max: STEP - 1, prediction, ..SpeculationOptions::default() };
    let steps = Rounds::new(&engine, &letter, N_VERIFY, n_rounds, always)?;
    Ok(vec![
        Figure::new("edit, one by one", Unit::TokensPerSecond, edits.rates(&edits.plain)),
        Figure::new("edit, prompt lookup", Unit::TokensPerSecond, edits.rates(&edits.guessed)),
        Figure::new("edit, prompt lookup over one by one", Unit::Times, edits.gains()),
        Figure::new("step of 4 tokens over a step of 1", Unit::TimeRatio, steps.step_costs()),
    ])
}

/// Runs in turn, without guesses and with them.
struct Rounds {
    n_tokens: usize,
    plain: Vec<Run>,
    guessed: Vec<Run>,
}

impl Rounds {
    fn new(
        engine: &Engine,
        prompt: &[TokenId],
        n_tokens: usize,
        n_rounds: usize,
        speculation: SpeculationOptions,
    ) -> Result<Rounds, BenchError> {
        let mut rounds = Rounds { n_tokens, plain: Vec::new(), guessed: Vec::new() };
        run(engine, request(prompt.to_vec(), 1, true))?;
        for _ in 0..n_rounds {
            let plain = request(prompt.to_vec(), n_tokens, true);
            rounds.plain.push(run(engine, plain.clone())?);
            let guessing = crate::inference::Request { speculation: speculation.clone(), ..plain };
            let guessed = run(engine, guessing)?;
            if rounds.plain.last().is_some_and(|plain| plain.tokens != guessed.tokens) {
                return Err(BenchError::Edit);
            }
            rounds.guessed.push(guessed);
        }
        Ok(rounds)
    }

    fn rates(&self, runs: &[Run]) -> Vec<f64> {
        runs.iter().map(Run::decode_rate).collect()
    }

    fn gains(&self) -> Vec<f64> {
        let pairs = self.plain.iter().zip(&self.guessed);
        pairs.map(|(plain, guessed)| guessed.decode_rate() / plain.decode_rate()).collect()
    }

    /// Time of a step with guesses over that of one without, if every guess was right.
    fn step_costs(&self) -> Vec<f64> {
        let n_steps = (self.n_tokens as f64 / STEP as f64).ceil();
        let per_token = (self.n_tokens - 1) as f64;
        let cost = |(plain, guessed): (&Run, &Run)| {
            let (one, all) = (plain.timings.decode_ms / per_token, guessed.timings.decode_ms);
            all / (n_steps - 1.0).max(1.0) / one
        };
        self.plain.iter().zip(&self.guessed).map(cost).collect()
    }
}

/// The file with the first tokens of every run replaced.
fn edited(file: &[TokenId], new: &[TokenId]) -> Vec<TokenId> {
    let pick = |(i, (old, new)): (usize, (&TokenId, &TokenId))| {
        if i % RUN < N_NEW { *new } else { *old }
    };
    file.iter().zip(new).enumerate().map(pick).collect()
}

/// After each prompt its answer, token by token.
fn script(texts: Vec<(Vec<TokenId>, Vec<TokenId>)>) -> Script {
    Box::new(move |history: &[TokenId]| {
        let text = texts.iter().find(|(prompt, _)| history.starts_with(prompt));
        let next = text.and_then(|(prompt, answer)| answer.get(history.len() - prompt.len()));
        next.copied().unwrap_or_default()
    })
}
