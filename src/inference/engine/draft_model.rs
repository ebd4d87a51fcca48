//! The draft model: a second, small model that guesses what the model will pick.
//!
//! ```text
//! place 0   pages 0..k    tokens whose keys and values they hold
//! place 1   pages k..2k
//!
//! draft     1 each place forgets what its sequence does not begin with
//!           2 one pass reads what is new of every sequence, as much as the step has time for
//!           3 one pass for each further token of the drafts, all sequences together
//! ```
//!
//! A place keeps its pages for good and nothing is shared, so there is nothing to free: whoever
//! comes next in a place goes on from the beginning that it has in common with the last one. That
//! is also how wrong guesses, shifts and preemption are undone.
//!
//! Guesses are the likeliest tokens, whatever the request's sampler; it is the sampler that then
//! agrees or does not.

use super::InferenceError;
use super::draft::Ask;
use super::memory::{Prepared, PreparedDraft};
use super::runner::Runner;
use crate::inference::backend::{BackendError, Batch, PAGE_LEN, PageIdx, Span};
use crate::inference::gguf::Metadata;
use crate::inference::tokenizer::{TokenId, Tokenizer, same_vocab};

/// Tokens among which a guess's probability is measured, as in llama.cpp.
const N_TOP: usize = 10;

/// A place of the draft model.
#[derive(Default)]
struct Place {
    pages: Vec<PageIdx>,
    /// Tokens whose keys and values are in the pages.
    tokens: Vec<TokenId>,
    /// Whose they are, where that matters.
    tenant: Option<u64>,
}

/// What goes through the draft model for one sequence in a pass.
struct Turn {
    ask_idx: usize,
    /// Position of the first token.
    pos: usize,
    tokens: Vec<TokenId>,
    /// Whether what follows them is wanted.
    guesses: bool,
}

/// A model that guesses for every place.
pub struct DraftModel {
    runner: Box<dyn Runner>,
    places: Vec<Place>,
    n_ctx: usize,
    n_batch: usize,
    /// Tokens that both models know.
    n_vocab: usize,
    /// Tokens that end an answer; nothing is guessed beyond them.
    eog: Vec<TokenId>,
}

impl DraftModel {
    /// What computes.
    pub fn runner(&mut self) -> &mut dyn Runner {
        &mut *self.runner
    }

    /// A draft model for a model of this vocabulary, with what runs it.
    ///
    /// # Errors
    /// If the vocabularies differ.
    pub fn load(
        draft: PreparedDraft,
        runner: Box<dyn Runner>,
        (meta, tokenizer): (&Metadata, &Tokenizer),
        n_vocab: usize,
    ) -> Result<DraftModel, InferenceError> {
        let theirs = Tokenizer::from_gguf(draft.gguf.metadata());
        let theirs = theirs.map_err(|error| draft.broken(error.into()))?;
        let PreparedDraft { name, gguf, prepared } = draft;
        same_vocab((meta, tokenizer), (gguf.metadata(), &theirs))
            .map_err(|mismatch| InferenceError::DraftVocab { name, mismatch })?;
        let n_vocab = n_vocab.min(prepared.hparams.n_vocab);
        let eog = tokenizer.special().eog.clone();
        let Prepared { n_parallel, n_ctx, ref config, .. } = prepared;
        Ok(DraftModel::new(runner, n_parallel, n_ctx, config.n_batch, n_vocab, eog))
    }

    /// A draft model of its parts: `runner` has pages for `n_parallel` contexts of `n_ctx`.
    pub fn new(
        runner: Box<dyn Runner>,
        n_parallel: usize,
        n_ctx: usize,
        n_batch: usize,
        n_vocab: usize,
        eog: Vec<TokenId>,
    ) -> DraftModel {
        let n_page = n_ctx.div_ceil(PAGE_LEN);
        let pages = |i: usize| (i * n_page..(i + 1) * n_page).map(|page| page as PageIdx);
        let place = |i| Place { pages: pages(i).collect(), ..Place::default() };
        let places = (0..n_parallel).map(place).collect();
        DraftModel { runner, places, n_ctx, n_batch, n_vocab, eog }
    }

    /// Reads what is new of each sequence, at most `n_read` tokens of all together, and guesses for
    /// those that it is abreast of. Returns the tokens read.
    ///
    /// # Errors
    /// If a pass fails; guesses made before it stand.
    pub fn draft(&mut self, asks: &mut [Ask<'_>], n_read: usize) -> Result<usize, BackendError> {
        let mut turns = self.read_along(asks, n_read);
        let n_read = turns.iter().map(|turn| turn.tokens.len()).sum();
        while !turns.is_empty() {
            let guesses = self.forward(asks, &turns)?;
            let mut next = Vec::with_capacity(guesses.len());
            for (turn, (token, p)) in turns.iter().filter(|turn| turn.guesses).zip(guesses) {
                let ask = &mut asks[turn.ask_idx];
                if p < ask.p_min || self.eog.binary_search(&token).is_ok() {
                    continue;
                }
                ask.draft.push(token);
                let pos = turn.pos + turn.tokens.len();
                if ask.draft.len() < ask.n_max && pos < self.n_ctx {
                    next.push(Turn { pos, tokens: vec![token], ..*turn });
                }
            }
            turns = next;
        }
        asks.iter_mut().filter(|a| a.draft.len() < a.n_min).for_each(|a| a.draft.clear());
        Ok(n_read)
    }

    /// Forgets what a place holds.
    pub fn forget(&mut self, slot_idx: usize) {
        if let Some(place) = self.places.get_mut(slot_idx) {
            place.tokens.clear();
        }
    }

    /// The first turns: what each sequence has beyond what its place holds, short ones first, so
    /// that a long prompt holds nobody up.
    fn read_along(&mut self, asks: &[Ask<'_>], n_read: usize) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::with_capacity(asks.len());
        for (ask_idx, ask) in asks.iter().enumerate() {
            let Some(place) = self.places.get_mut(ask.slot_idx) else { continue };
            let same = place.tokens.iter().zip(ask.tokens).take_while(|(a, b)| a == b);
            let n_same = if place.tenant == ask.tenant { same.count() } else { 0 };
            // The last token runs again in any case: its logits are not kept.
            let pos = n_same.min(ask.tokens.len().saturating_sub(1));
            place.tokens.truncate(pos);
            place.tenant = ask.tenant;
            let end = ask.tokens.len().min(self.n_ctx);
            let fresh = ask.tokens[pos..end].iter().copied();
            // A token that only the model knows cannot be read past.
            let tokens: Vec<_> = fresh.take_while(|&t| (t as usize) < self.n_vocab).collect();
            let guesses = ask.n_max > 0 && pos + tokens.len() == ask.tokens.len();
            turns.push(Turn { ask_idx, pos, tokens, guesses });
        }
        turns.sort_by_key(|turn| turn.tokens.len());
        let mut n_left = n_read.max(2 * turns.len()).min(self.n_batch);
        for turn in &mut turns {
            turn.guesses &= turn.tokens.len() <= n_left;
            turn.tokens.truncate(n_left);
            n_left -= turn.tokens.len();
        }
        turns.retain(|turn| !turn.tokens.is_empty());
        turns
    }

    /// One pass over the turns; the likeliest next token, with its probability, of those that want
    /// one.
    fn forward(
        &mut self,
        asks: &[Ask<'_>],
        turns: &[Turn],
    ) -> Result<Vec<(TokenId, f32)>, BackendError> {
        let (mut tokens, mut outputs, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for turn in turns {
            tokens.extend_from_slice(&turn.tokens);
            outputs.extend(turn.guesses.then_some(tokens.len() as u32 - 1));
            let pages = &self.places[asks[turn.ask_idx].slot_idx].pages;
            let (pos, n_tokens) = (turn.pos, turn.tokens.len());
            spans.push(Span { pages, pos, n_tokens, n_prompt: 0, adapters: &[] });
        }
        let batch = Batch { tokens: &tokens, spans: &spans, outputs: &outputs };
        let n_top = N_TOP.min(self.runner.n_top_max());
        self.runner.forward_top(&batch, &vec![n_top; outputs.len()])?;
        let mut guesses = Vec::with_capacity(outputs.len());
        for row_idx in 0..outputs.len() {
            guesses.push(self.guess(row_idx)?);
        }
        for turn in turns {
            let place = &mut self.places[asks[turn.ask_idx].slot_idx];
            place.tokens.extend_from_slice(&turn.tokens);
        }
        Ok(guesses)
    }

    /// What an output row of the last pass foretells: from its largest logits, if they are at hand
    /// and both models know all of them.
    fn guess(&mut self, row_idx: usize) -> Result<(TokenId, f32), BackendError> {
        let top = self.runner.top(row_idx);
        let is_known = |&(token, _): &(TokenId, f32)| (token as usize) < self.n_vocab;
        if top.len() >= N_TOP && top[..N_TOP].iter().all(is_known) {
            return Ok(first_of(&std::array::from_fn::<f32, N_TOP, _>(|i| top[i].1), top[0].0));
        }
        let n_vocab = self.n_vocab;
        let row = self.runner.row(row_idx)?;
        Ok(likeliest(&row[..n_vocab.min(row.len())]))
    }
}

/// The likeliest token and its probability among the likeliest, which fall from the first.
fn first_of(top: &[f32], best: TokenId) -> (TokenId, f32) {
    let sum: f32 = top.iter().map(|logit| (logit - top[0]).exp()).sum();
    (best, 1.0 / sum)
}

/// The likeliest token, the first of equals, and its probability among the ten likeliest.
fn likeliest(logits: &[f32]) -> (TokenId, f32) {
    // Descending.
    let mut top = [f32::NEG_INFINITY; N_TOP];
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > top[N_TOP - 1] {
            let at = top.partition_point(|&other| other >= logit);
            top[at..].rotate_right(1);
            top[at] = logit;
            if at == 0 {
                best = token;
            }
        }
    }
    first_of(&top, best as TokenId)
}

#[cfg(test)]
mod tests;
