//! Structured output: what an answer must look like.

use crate::inference::tokenizer::{TokenId, Tokenizer};

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrammarSpec {
    /// A JSON value that fits this schema, itself JSON text; `{}` is any value.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A text that matches this regular expression as a whole.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// A grammar in llama.cpp's GBNF.
    Gbnf(String),
}

/// What wakes a lazy grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A text anywhere in the answer.
    Word(String),
    /// A token.
    Token(TokenId),
    /// A regular expression over the answer so far.
    Pattern(String),
}

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(pub String);

/// The vocabulary in the form that grammars need.
#[derive(Clone)]
pub struct GrammarVocab;

impl GrammarVocab {
    /// Of a tokenizer.
    ///
    /// # Errors
    /// If the vocabulary cannot be used.
    pub fn new(_tokenizer: &Tokenizer) -> Result<GrammarVocab, GrammarError> {
        Err(GrammarError("structured output is not part of this build".to_owned()))
    }
}

/// A compiled grammar at a place in an answer.
#[derive(Clone)]
pub struct Matcher;

impl Matcher {
    /// Compiles.
    ///
    /// # Errors
    /// If the grammar is wrong.
    pub fn new(_vocab: &GrammarVocab, _spec: &GrammarSpec) -> Result<Matcher, GrammarError> {
        Ok(Matcher)
    }
    /// Compiles a grammar that sleeps until a trigger comes.
    ///
    /// # Errors
    /// If the grammar is wrong.
    pub fn lazy(
        _vocab: &GrammarVocab,
        _spec: &GrammarSpec,
        _triggers: &[Trigger],
    ) -> Result<Matcher, GrammarError> {
        Ok(Matcher)
    }
    /// Masks what cannot come next.
    ///
    /// # Errors
    /// If the grammar cannot go on.
    pub fn mask(&mut self, _logits: &mut [f32]) -> Result<(), GrammarError> {
        Ok(())
    }
    /// Advances.
    ///
    /// # Errors
    /// If the token was not allowed.
    pub fn accept(&mut self, _token: TokenId) -> Result<(), GrammarError> {
        Ok(())
    }
    /// Whether nothing can follow.
    pub fn is_finished(&mut self) -> bool {
        false
    }
    /// Whether the text so far is complete.
    pub fn is_accepting(&mut self) -> bool {
        true
    }
}
