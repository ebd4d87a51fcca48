//! A GBNF grammar at a place in a text: which tokens it lets in, and where they lead.

use std::sync::Arc;

use llguidance::toktrie::{Recognizer, SimpleVob};

use super::error::GrammarError;
use super::gbnf;
use super::network::Network;
use super::vocab::GrammarVocab;
use super::walker::{DEAD, StateId, Walker};
use crate::base::limits;
use crate::inference::tokenizer::TokenId;

/// A GBNF grammar at a place in a text.
pub(super) struct GbnfMatcher {
    vocab: GrammarVocab,
    walker: Walker,
    state: StateId,
    /// Masks of states that may come again, the latest last.
    masks: Vec<(StateId, SimpleVob)>,
}

impl Clone for GbnfMatcher {
    /// The copy knows where it is and has yet to learn the rest.
    fn clone(&self) -> GbnfMatcher {
        let (walker, state) = self.walker.only(self.state);
        GbnfMatcher { vocab: self.vocab.clone(), walker, state, masks: vec![] }
    }
}

impl GbnfMatcher {
    /// # Errors
    /// What the grammar's text gets wrong, left recursion, a bound.
    pub(super) fn new(vocab: &GrammarVocab, text: &str) -> Result<GbnfMatcher, GrammarError> {
        let network = Network::new(&gbnf::parse(text, vocab)?, vocab)?;
        let (walker, state) = Walker::start(Arc::new(network))?;
        Ok(GbnfMatcher { vocab: vocab.clone(), walker, state, masks: vec![] })
    }

    /// The tokens that may come next.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, GrammarError> {
        self.begin();
        if let Some((_, mask)) = self.masks.iter().find(|(state, _)| *state == self.state) {
            return Ok(mask.clone());
        }
        let mut mask = self.vocab.trie().alloc_token_set();
        let mut probe = Probe { walker: &mut self.walker, path: vec![self.state] };
        self.vocab.trie().add_bias(&mut probe, &mut mask, &[]);
        self.walker.check()?;
        self.vocab.widen(&mut mask);
        for (id, is_negated, ..) in self.walker.tokens(self.state) {
            if is_negated {
                let others = (0..self.vocab.n_vocab() as TokenId)
                    .filter(|&other| other != id && self.vocab.is_whole(other));
                others.for_each(|other| mask.allow_token(other));
            } else {
                mask.allow_token(id);
            }
        }
        let may_end = self.walker.is_accepting(self.state);
        self.vocab.eog().iter().for_each(|&id| mask.set(id as usize, may_end));
        if mask.is_zero() && !may_end {
            return Err(GrammarError::Stuck);
        }
        if self.masks.len() >= limits::GBNF_MASKS_KEPT {
            self.masks.remove(0);
        }
        self.masks.push((self.state, mask.clone()));
        Ok(mask)
    }

    /// Whether the token was allowed; if so, it is now part of the text.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        self.begin();
        let is_whole = self.vocab.is_whole(token);
        let text = self.vocab.text(token);
        let state = self.walker.step_token(self.state, token, text, is_whole);
        self.go(state)
    }

    /// Accepts text that need not end where a token does.
    pub(super) fn accept_bytes(&mut self, bytes: &[u8]) -> Result<bool, GrammarError> {
        self.begin();
        let state = self.walker.steps(self.state, bytes);
        self.go(state)
    }

    fn go(&mut self, state: StateId) -> Result<bool, GrammarError> {
        self.walker.check()?;
        if state != DEAD {
            self.state = state;
        }
        Ok(state != DEAD)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.walker.is_finished(self.state)
    }

    pub(super) fn is_accepting(&self) -> bool {
        self.walker.is_accepting(self.state)
    }

    /// Makes room for the work of one token.
    fn begin(&mut self) {
        self.walker.begin();
        if self.walker.n_states() > limits::GBNF_STATES_KEPT {
            (self.walker, self.state) = self.walker.only(self.state);
            self.masks.clear();
        }
    }
}

/// Walks the vocabulary's tree along with the grammar.
struct Probe<'a> {
    walker: &'a mut Walker,
    path: Vec<StateId>,
}

impl Recognizer for Probe<'_> {
    fn pop_bytes(&mut self, num: usize) {
        self.path.truncate(self.path.len() - num);
    }

    fn collapse(&mut self) {
        self.path.drain(..self.path.len() - 1);
    }

    fn trie_finished(&mut self) {}

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let Some(&from) = self.path.last() else { return false };
        let to = self.walker.step(from, byte);
        if to != DEAD {
            self.path.push(to);
        }
        to != DEAD
    }
}
