//! Structured output: what an answer must look like, as a mask over the next token.
//!
//! ```text
//! JSON schema, regex, Lark ── guided ── llguidance ─┐
//! GBNF ── gbnf ── network ── walker ────────────────┴─> mask, accept, is_finished
//! triggers ── lazy: nothing is masked until one appears
//! ```
//!
//! A mask allows exactly the tokens after which the text can still become what the grammar wants;
//! those that end a generation only where it is that. Grammars come from requests: each is bounded
//! in size, in time to compile and in work per token, and gives an error beyond.

mod error;
mod gbnf;
mod gbnf_matcher;
mod guided;
mod lazy;
mod network;
mod part;
#[cfg(test)]
mod tests;
mod vocab;
mod walker;

pub use error::GrammarError;
pub use lazy::Trigger;
pub use vocab::GrammarVocab;

use crate::base::limits::GRAMMAR_BYTES_MAX;
use crate::inference::tokenizer::TokenId;
use gbnf_matcher::GbnfMatcher;
use guided::Guided;
use lazy::{Piece, Waiting};

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// A value that the schema admits; the text is JSON, `{}` is any value.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A text that the whole regular expression matches, in the syntax of Rust's `regex`.
    Regex(String),
    /// llguidance's variant of Lark.
    Lark(String),
    /// llama.cpp's notation.
    Gbnf(String),
}

#[derive(Clone)]
enum Engine {
    Guided(Box<Guided>),
    Gbnf(Box<GbnfMatcher>),
}

/// A compiled grammar at a place in an answer. A clone is an independent copy.
#[derive(Clone)]
pub struct Matcher {
    vocab: GrammarVocab,
    engine: Engine,
    /// A lazy grammar that has not been set off.
    waiting: Option<Box<Waiting>>,
    /// A token that ends the generation has been accepted.
    has_ended: bool,
}

impl Matcher {
    /// Compiles a grammar.
    ///
    /// # Errors
    /// A grammar that is wrong, asks for what is not supported, or is too large or complex.
    pub fn new(vocab: &GrammarVocab, spec: &GrammarSpec) -> Result<Matcher, GrammarError> {
        let guided = |guided| Ok::<_, GrammarError>(Engine::Guided(Box::new(guided)));
        let engine = match spec {
            GrammarSpec::JsonSchema(schema) => {
                guided(Guided::json_schema(vocab, bounded(schema)?)?)?
            }
            GrammarSpec::JsonObject => guided(Guided::json_object(vocab)?)?,
            GrammarSpec::Regex(regex) => guided(Guided::regex(vocab, bounded(regex)?)?)?,
            GrammarSpec::Lark(lark) => guided(Guided::lark(vocab, bounded(lark)?)?)?,
            GrammarSpec::Gbnf(text) => {
                Engine::Gbnf(Box::new(GbnfMatcher::new(vocab, bounded(text)?)?))
            }
        };
        Ok(Matcher { vocab: vocab.clone(), engine, waiting: None, has_ended: false })
    }

    /// Compiles a grammar that applies from the first trigger on, the trigger's text included.
    /// Without triggers nothing is ever masked.
    ///
    /// # Errors
    /// As [`Matcher::new`]; triggers that are empty, too many or no regular expressions.
    pub fn lazy(
        vocab: &GrammarVocab,
        spec: &GrammarSpec,
        triggers: &[Trigger],
    ) -> Result<Matcher, GrammarError> {
        let waiting = Some(Box::new(Waiting::new(triggers)?));
        Ok(Matcher { waiting, ..Matcher::new(vocab, spec)? })
    }

    /// Sets the logits of tokens that cannot come next to `-inf`; those that end a generation stay
    /// only where the text may end. `logits`: `[n_vocab]`, or more with padding, which never comes.
    ///
    /// # Errors
    /// Too few logits, a bound on the work for one token, no token that can come next. After a
    /// bound the grammar cannot go on.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let n_vocab = self.vocab.n_vocab();
        if logits.len() < n_vocab {
            return Err(GrammarError::Logits { got: logits.len(), n_vocab });
        }
        if self.waiting.is_some() {
            return Ok(());
        }
        let (logits, padding) = logits.split_at_mut(n_vocab);
        padding.fill(f32::NEG_INFINITY);
        if self.has_ended {
            let ids = 0..n_vocab as TokenId;
            let others = ids.filter(|&id| !self.vocab.is_eog(id));
            others.for_each(|id| logits[id as usize] = f32::NEG_INFINITY);
            return Ok(());
        }
        let allowed = match &mut self.engine {
            Engine::Guided(guided) => guided.allowed()?,
            Engine::Gbnf(gbnf) => gbnf.allowed()?,
        };
        allowed.iter_unset_entries(|id| {
            if let Some(logit) = logits.get_mut(id) {
                *logit = f32::NEG_INFINITY;
            }
        });
        Ok(())
    }

    /// Advances by a token that `mask` left in.
    ///
    /// # Errors
    /// A token that the grammar does not allow here, which changes nothing; a bound on the work
    /// for one token; a trigger's text with which the grammar does not begin.
    pub fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        if token as usize >= self.vocab.n_vocab() {
            return Err(GrammarError::NotAllowed { token });
        }
        if self.vocab.is_eog(token) {
            return match self.is_accepting() {
                true => {
                    self.has_ended = true;
                    Ok(())
                }
                false => Err(GrammarError::NotAllowed { token }),
            };
        }
        let Some(waiting) = &mut self.waiting else {
            return match !self.has_ended && self.accept_token(token)? {
                true => Ok(()),
                false => Err(GrammarError::NotAllowed { token }),
            };
        };
        if let Some(pieces) = waiting.push(token, self.vocab.spelled(token))? {
            self.waiting = None;
            pieces.into_iter().try_for_each(|piece| self.accept_piece(piece))?;
        }
        Ok(())
    }

    fn accept_token(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        match &mut self.engine {
            Engine::Guided(guided) => guided.accept(token),
            Engine::Gbnf(gbnf) => gbnf.accept(token),
        }
    }

    /// Reads a piece of a trigger; a control token also by its name.
    fn accept_piece(&mut self, piece: Piece) -> Result<(), GrammarError> {
        let bytes = match piece {
            Piece::Token(token) => {
                let spelled = self.vocab.spelled(token).to_vec();
                if spelled.is_empty() || self.accept_token(token)? {
                    return Ok(());
                }
                spelled
            }
            Piece::Bytes(bytes) => bytes,
        };
        let is_accepted = match &mut self.engine {
            Engine::Guided(guided) => guided.accept_bytes(&bytes)?,
            Engine::Gbnf(gbnf) => gbnf.accept_bytes(&bytes)?,
        };
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        if is_accepted { Ok(()) } else { Err(GrammarError::Trigger { text: text() }) }
    }

    /// Whether a lazy grammar still waits for a trigger.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the text so far is complete and nothing more can follow.
    pub fn is_finished(&mut self) -> bool {
        let is_finished = match &mut self.engine {
            Engine::Guided(guided) => guided.is_finished(),
            Engine::Gbnf(gbnf) => gbnf.is_finished(),
        };
        self.has_ended || self.waiting.is_none() && is_finished
    }

    /// Whether the text so far is complete: it may go on or end.
    pub fn is_accepting(&mut self) -> bool {
        let is_accepting = match &mut self.engine {
            Engine::Guided(guided) => guided.is_accepting(),
            Engine::Gbnf(gbnf) => gbnf.is_accepting(),
        };
        self.has_ended || self.waiting.is_some() || is_accepting
    }
}

fn bounded(text: &str) -> Result<&str, GrammarError> {
    let (n_bytes, max) = (text.len(), GRAMMAR_BYTES_MAX);
    if n_bytes > max { Err(GrammarError::TooLong { n_bytes, max }) } else { Ok(text) }
}
