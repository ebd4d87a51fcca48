//! Tells what a model thinks, between `<think>` and `</think>`, from what it says.

use super::parser::n_begun;

pub(super) const THINK_OPEN: &str = "<think>";
pub(super) const THINK_CLOSE: &str = "</think>";

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Thought {
    /// Between the marks.
    Inner(String),
    /// The rest.
    Spoken(String),
}

/// Splits an answer while it comes.
#[derive(Clone, Debug)]
pub(super) struct Reasoning {
    state: State,
    pending: String,
    /// White space inside that counts only if more is thought.
    blank: String,
    has_begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// A mark may come first.
    Lead,
    Inside,
    /// Behind the end mark, where white space says nothing.
    Behind,
    Outside,
}

impl Reasoning {
    /// For an answer whose reasoning is split off, or not; `is_inside` if the prompt opened it.
    pub fn new(splits: bool, is_inside: bool) -> Reasoning {
        let state = match (splits, is_inside) {
            (false, _) => State::Outside,
            (true, true) => State::Inside,
            (true, false) => State::Lead,
        };
        Reasoning { state, pending: String::new(), blank: String::new(), has_begun: false }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<Thought> {
        self.pending.push_str(text);
        let mut thoughts = Vec::new();
        if self.state == State::Lead {
            let begun = self.pending.trim_start();
            if let Some(rest) = begun.strip_prefix(THINK_OPEN) {
                self.pending = rest.to_owned();
                self.state = State::Inside;
            } else if THINK_OPEN.starts_with(begun) {
                return thoughts;
            } else {
                self.state = State::Outside;
            }
        }
        if self.state == State::Inside {
            match self.pending.split_once(THINK_CLOSE) {
                Some((inner, rest)) => {
                    let (inner, rest) = (inner.to_owned(), rest.to_owned());
                    self.think(&inner, &mut thoughts);
                    self.pending = rest;
                    self.state = State::Behind;
                }
                None => {
                    let n_held = n_begun(&self.pending, THINK_CLOSE);
                    let held = self.pending.split_off(self.pending.len() - n_held);
                    let inner = std::mem::replace(&mut self.pending, held);
                    self.think(&inner, &mut thoughts);
                    return thoughts;
                }
            }
        }
        let text = std::mem::take(&mut self.pending);
        let text = if self.state == State::Behind { text.trim_start() } else { &text };
        if !text.is_empty() {
            self.state = State::Outside;
            thoughts.push(Thought::Spoken(text.to_owned()));
        }
        thoughts
    }

    /// Takes the end.
    pub fn finish(&mut self) -> Vec<Thought> {
        let mut thoughts = Vec::new();
        let rest = std::mem::take(&mut self.pending);
        match self.state {
            State::Inside => self.think(&rest, &mut thoughts),
            _ if rest.is_empty() => {}
            _ => thoughts.push(Thought::Spoken(rest)),
        }
        thoughts
    }

    fn think(&mut self, text: &str, thoughts: &mut Vec<Thought>) {
        let text = if self.has_begun { text } else { text.trim_start() };
        let kept = text.trim_end();
        if !kept.is_empty() {
            self.has_begun = true;
            thoughts.push(Thought::Inner(std::mem::take(&mut self.blank) + kept));
        }
        self.blank.push_str(&text[kept.len()..]);
    }
}
