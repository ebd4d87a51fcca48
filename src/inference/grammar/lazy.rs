//! Waits for the text that sets a lazy grammar off.
//!
//! As in llama.cpp: until a trigger appears, everything is allowed; the trigger's own text is the
//! first that the grammar reads. A pattern hands over from its first group that matched something,
//! or else from where it matched. Triggers are looked for in the text as the model writes it, with
//! control tokens spelled out, and only in its last [`TRIGGER_WINDOW_BYTES`]; there it is tried in
//! the order given.

use std::collections::VecDeque;

use fancy_regex::{Regex, RegexBuilder};

use super::error::GrammarError;
use crate::base::limits::{
    TRIGGER_BACKTRACKS_MAX, TRIGGER_BYTES_MAX, TRIGGER_WINDOW_BYTES, TRIGGERS_MAX,
};
use crate::inference::tokenizer::TokenId;

/// What sets a lazy grammar off.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger {
    /// This text, wherever it stands.
    Word(String),
    /// This token.
    Token(TokenId),
    /// A regular expression; with `^` in front and `$` at the end it must match the whole text.
    Pattern(String),
}

#[derive(Clone)]
enum Watch {
    Word(String),
    Token(TokenId),
    Pattern(Regex),
}

/// What the grammar has to read when it is set off.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Token(TokenId),
    /// The end of a token whose beginning stands before the trigger.
    Bytes(Vec<u8>),
}

/// A text in which no trigger has appeared yet.
#[derive(Clone)]
pub(super) struct Waiting {
    watches: Vec<Watch>,
    /// The end of the text, from the beginning of a token.
    window: Vec<u8>,
    /// The tokens of `window`, and how many bytes each has there.
    tokens: VecDeque<(TokenId, usize)>,
}

impl Waiting {
    /// # Errors
    /// Too many triggers, one that is empty or too long, a pattern that is no regular expression.
    pub(super) fn new(triggers: &[Trigger]) -> Result<Waiting, GrammarError> {
        if triggers.len() > TRIGGERS_MAX {
            let got = triggers.len();
            return Err(GrammarError::TooManyTriggers { got, max: TRIGGERS_MAX });
        }
        let watches = triggers.iter().map(watch).collect::<Result<_, _>>()?;
        Ok(Waiting { watches, window: vec![], tokens: VecDeque::new() })
    }

    /// Takes a token and its text; gives what the grammar has to read if that set it off.
    ///
    /// # Errors
    /// A pattern that takes too many steps.
    pub(super) fn push(
        &mut self,
        token: TokenId,
        spelled: &[u8],
    ) -> Result<Option<Vec<Piece>>, GrammarError> {
        if self.watches.iter().any(|w| matches!(w, Watch::Token(id) if *id == token)) {
            return Ok(Some(vec![Piece::Token(token)]));
        }
        self.window.extend_from_slice(spelled);
        self.tokens.push_back((token, spelled.len()));
        self.trim();
        let text = readable(&self.window);
        for watch in &self.watches {
            let start = match watch {
                Watch::Word(word) => text.find(word.as_str()),
                Watch::Token(_) => None,
                Watch::Pattern(regex) => find(regex, &text)?,
            };
            if let Some(start) = start {
                return Ok(Some(self.pieces_from(start)));
            }
        }
        Ok(None)
    }

    /// Forgets whole tokens beyond the window.
    fn trim(&mut self) {
        while let Some(&(_, n_bytes)) = self.tokens.front()
            && self.window.len() - n_bytes >= TRIGGER_WINDOW_BYTES
        {
            self.window.drain(..n_bytes);
            self.tokens.pop_front();
        }
    }

    fn pieces_from(&self, start: usize) -> Vec<Piece> {
        let mut pieces = vec![];
        let mut from = 0;
        for &(token, n_bytes) in &self.tokens {
            let to = from + n_bytes;
            if from >= start {
                pieces.push(Piece::Token(token));
            } else if to > start {
                pieces.push(Piece::Bytes(self.window[start..to].to_vec()));
            }
            from = to;
        }
        pieces
    }
}

fn watch(trigger: &Trigger) -> Result<Watch, GrammarError> {
    let bad = |text: &str, reason: &str| {
        Err(GrammarError::BadTrigger { trigger: text.to_owned(), reason: reason.to_owned() })
    };
    match trigger {
        Trigger::Token(id) => Ok(Watch::Token(*id)),
        Trigger::Word(text) | Trigger::Pattern(text) if text.is_empty() => bad(text, "it is empty"),
        Trigger::Word(text) | Trigger::Pattern(text) if text.len() > TRIGGER_BYTES_MAX => {
            bad("", &format!("it has {} bytes; {TRIGGER_BYTES_MAX} are allowed", text.len()))
        }
        Trigger::Word(word) => Ok(Watch::Word(word.clone())),
        Trigger::Pattern(pattern) => {
            let regex = RegexBuilder::new(pattern).backtrack_limit(TRIGGER_BACKTRACKS_MAX).build();
            regex.map(Watch::Pattern).or_else(|e| bad(pattern, &e.to_string()))
        }
    }
}

/// Where the grammar begins to read, if the pattern matches.
fn find(regex: &Regex, text: &str) -> Result<Option<usize>, GrammarError> {
    let captures = regex.captures(text).map_err(|e| GrammarError::BadTrigger {
        trigger: regex.as_str().to_owned(),
        reason: e.to_string(),
    })?;
    Ok(captures.and_then(|captures| {
        let groups = captures.iter().skip(1).flatten();
        let mut starts = groups.filter(|group| !group.as_str().is_empty()).map(|g| g.start());
        starts.next().or(captures.get(0).map(|all| all.start()))
    }))
}

/// The bytes as text, each place where it was: bytes that are no UTF-8 count as `?`, and those of
/// a character that has only begun are left away.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let is_last = text.len() + chunk.invalid().len() == bytes.len();
        if !is_last {
            text.extend(chunk.invalid().iter().map(|_| '?'));
        }
    }
    text
}
