//! Reads an answer while it comes: reasoning, text, calls of tools.
//!
//! ```text
//! text -> Reasoning (<think>...</think>) -> Body: text until a mark, then a call, then text ...
//! ```
//!
//! How the text is cut changes nothing: what could be the beginning of a mark, and white space that
//! a mark would swallow, waits for what comes next. What begins like a call and is none is text.

use std::sync::Arc;

use super::calls::{CallReader, GenericReader, ListReader, Part, add};
use super::family::{DEEPSEEK_SEP, Family, MISTRAL_ARGS};
use super::json::{Step, ValueScan};
use super::reasoning::{Reasoning, Thought};
use crate::server::report::random_word;

/// Something new in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum Delta {
    /// More of the reasoning.
    Reasoning(String),
    /// More of the text.
    Content(String),
    /// The next call of a tool begins.
    Call {
        /// Which call of the answer.
        call_idx: usize,
        /// Its id.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of the arguments of a call, JSON text.
    Args {
        /// Which call of the answer.
        call_idx: usize,
        /// The text.
        text: String,
    },
}

/// What an answer is read for; makes one parser for each.
#[derive(Clone, Debug)]
pub(in crate::server) struct ParserSpec {
    pub(super) family: Family,
    /// The tools' names.
    pub(super) names: Arc<[String]>,
    /// Reasoning is told apart from the text.
    pub(super) splits_reasoning: bool,
    /// The prompt ends inside of the reasoning.
    pub(super) begins_in_reasoning: bool,
}

impl ParserSpec {
    /// A parser for an answer.
    pub(in crate::server) fn parser(&self) -> Parser {
        Parser {
            reasoning: Reasoning::new(self.splits_reasoning, self.begins_in_reasoning),
            body: Body::new(self),
            n_calls: 0,
            n_id_chars: self.family.n_id_chars(),
        }
    }
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub(in crate::server) struct Parser {
    reasoning: Reasoning,
    body: Body,
    n_calls: usize,
    n_id_chars: Option<usize>,
}

impl Parser {
    /// Takes more of the answer.
    pub(in crate::server) fn push(&mut self, text: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let thoughts = self.reasoning.push(text);
        self.read(thoughts, &mut deltas);
        deltas
    }

    /// Takes the end; what waited for more is told.
    pub(in crate::server) fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let thoughts = self.reasoning.finish();
        self.read(thoughts, &mut deltas);
        let mut parts = Vec::new();
        self.body.finish(&mut parts);
        self.tell(parts, &mut deltas);
        deltas
    }

    /// Calls that began.
    pub(in crate::server) fn n_calls(&self) -> usize {
        self.n_calls
    }

    fn read(&mut self, thoughts: Vec<Thought>, deltas: &mut Vec<Delta>) {
        for thought in thoughts {
            match thought {
                Thought::Inner(text) => deltas.push(Delta::Reasoning(text)),
                Thought::Spoken(text) => {
                    let mut parts = Vec::new();
                    self.body.push(&text, &mut parts);
                    self.tell(parts, deltas);
                }
            }
        }
    }

    fn tell(&mut self, parts: Vec<Part>, deltas: &mut Vec<Delta>) {
        for part in parts {
            deltas.push(match part {
                Part::Text(text) => Delta::Content(text),
                Part::Name(name) => {
                    self.n_calls += 1;
                    let id = match self.n_id_chars {
                        Some(n) => random_word(n),
                        None => format!("call_{}", random_word(24)),
                    };
                    Delta::Call { call_idx: self.n_calls - 1, id, name }
                }
                Part::Args(text) => Delta::Args { call_idx: self.n_calls.saturating_sub(1), text },
            });
        }
    }
}

/// Text and calls.
#[derive(Clone, Debug)]
struct Body {
    family: Family,
    names: Arc<[String]>,
    state: State,
    /// Text that is not read yet: it may be the beginning of a mark.
    pending: String,
    /// White space that counts only if text follows.
    blank: String,
    /// A call came last: white space behind it says nothing.
    is_after_call: bool,
    /// What was read of a call whose name is not known: text, if it turns out to be no call.
    raw: String,
    /// It was a call.
    is_committed: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// Text; a mark may come.
    Text,
    /// Text to the end.
    TextOnly,
    /// The start of an answer that may be a call as a whole.
    Lead,
    Call(CallReader),
    Generic(GenericReader),
    /// Behind Mistral's mark.
    ListOrName,
    List(ListReader),
    /// A name until its separator, which is the second.
    Name(String, &'static str),
    /// Behind DeepSeek's separator: arguments, or a name if what stood before was `function`.
    ArgsOrName(String),
    /// R1's name, to the end of its line.
    FencedName(String),
    /// To the first brace of the arguments of this call.
    ArgsOpen(String),
    Args(ValueScan),
    /// What closes R1's fence.
    Fence,
}

/// A call's name is not longer; a mark that no call follows shows early.
const NAME_CHARS_MAX: usize = 256;

impl Body {
    fn new(spec: &ParserSpec) -> Body {
        let state = match spec.family {
            Family::Plain => State::TextOnly,
            Family::Llama3 | Family::Generic => State::Lead,
            Family::Hermes | Family::Mistral { .. } | Family::DeepSeek { .. } => State::Text,
        };
        Body {
            family: spec.family,
            names: Arc::clone(&spec.names),
            state,
            pending: String::new(),
            blank: String::new(),
            is_after_call: false,
            raw: String::new(),
            is_committed: false,
        }
    }

    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.pending.push_str(text);
        loop {
            match self.state {
                State::TextOnly => {
                    let text = std::mem::take(&mut self.pending);
                    self.text(&text, out);
                    return;
                }
                State::Text => {
                    if !self.seek(out) {
                        return;
                    }
                }
                _ => {
                    let Some(c) = self.pending.chars().next() else { return };
                    self.pending.drain(..c.len_utf8());
                    self.step(c, out);
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<Part>) {
        let rest = std::mem::take(&mut self.raw) + &std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.text(&rest, out);
        }
        let blank = std::mem::take(&mut self.blank);
        if !self.is_after_call && !blank.is_empty() {
            add(out, Part::Text(blank));
        }
    }

    /// Tells text up to the next mark; whether there was one.
    fn seek(&mut self, out: &mut Vec<Part>) -> bool {
        let (opens, drops) = (self.family.opens(), self.family.drops());
        let marks = opens.iter().chain(drops);
        let found = marks.filter_map(|mark| Some((self.pending.find(mark)?, *mark))).min();
        let Some((at, mark)) = found else {
            let marks = opens.iter().chain(drops);
            let n_held = marks.map(|mark| n_begun(&self.pending, mark)).max().unwrap_or(0);
            let held = self.pending.split_off(self.pending.len() - n_held);
            let text = std::mem::replace(&mut self.pending, held);
            self.text(&text, out);
            return false;
        };
        let rest = self.pending.split_off(at + mark.len());
        let mut text = std::mem::replace(&mut self.pending, rest);
        text.truncate(at);
        self.text(&text, out);
        if opens.contains(&mark) {
            self.raw = mark.to_owned();
            self.is_committed = false;
            self.state = match self.family {
                Family::Mistral { .. } => State::ListOrName,
                Family::DeepSeek { .. } => State::Name(String::new(), DEEPSEEK_SEP),
                _ => State::Call(CallReader::default()),
            };
        }
        true
    }

    /// Tells text, but for white space at its end.
    fn text(&mut self, text: &str, out: &mut Vec<Part>) {
        let text = if self.is_after_call { text.trim_start() } else { text };
        let kept = match self.family {
            Family::Plain => text,
            _ => text.trim_end(),
        };
        if !kept.is_empty() {
            self.is_after_call = false;
            let blank = std::mem::take(&mut self.blank);
            add(out, Part::Text(blank + kept));
        }
        self.blank.push_str(&text[kept.len()..]);
    }

    /// Takes a character of anything but text.
    fn step(&mut self, c: char, out: &mut Vec<Part>) {
        if !self.is_committed {
            self.raw.push(c);
        }
        let mut parts = Vec::new();
        let mut state = std::mem::replace(&mut self.state, State::Text);
        let step = match &mut state {
            State::Call(call) => call.push(c, &mut parts),
            State::List(list) => list.push(c, &mut parts),
            State::Generic(generic) => generic.push(c, &mut parts),
            State::Args(scan) => {
                parts.push(Part::Args(c.into()));
                scan.push(c)
            }
            _ => return self.turn(state, c, out),
        };
        if let Some(Part::Name(name)) = parts.first()
            && self.family == Family::Llama3
            && !self.names.contains(name)
        {
            // JSON that calls nothing is an answer.
            return self.give_up(out);
        }
        if !parts.is_empty() {
            self.commit();
            parts.into_iter().for_each(|part| add(out, part));
        }
        match step {
            Step::Inside => self.state = state,
            Step::End => self.end(),
            Step::Bad | Step::Past => self.give_up(out),
        }
    }

    /// Something was told of what is being read: there is no way back to text.
    fn commit(&mut self) {
        self.is_committed = true;
        self.raw.clear();
    }

    /// A call ended.
    fn end(&mut self) {
        self.raw.clear();
        self.is_committed = false;
        self.blank.clear();
        self.is_after_call = true;
        self.state = match self.family {
            Family::Llama3 => State::Lead,
            Family::Generic => State::TextOnly,
            Family::DeepSeek { .. } => State::Fence,
            _ => State::Text,
        };
    }

    /// It was no call: what was read is text.
    fn give_up(&mut self, out: &mut Vec<Part>) {
        let raw = std::mem::take(&mut self.raw);
        self.is_committed = false;
        self.state = match self.family {
            Family::Llama3 | Family::Generic => State::TextOnly,
            _ => State::Text,
        };
        self.text(&raw, out);
    }

    /// Takes a character where what it is decides what comes.
    fn turn(&mut self, state: State, c: char, out: &mut Vec<Part>) {
        let is_blank = c.is_ascii_whitespace();
        self.state = match state {
            State::Lead if is_blank => State::Lead,
            State::Lead if c == ';' && self.is_after_call => State::Lead,
            State::Lead if c == '{' => return self.lead(out),
            State::ListOrName if is_blank => State::ListOrName,
            State::ListOrName if c == '[' => {
                let mut list = ListReader::default();
                list.push(c, out);
                State::List(list)
            }
            State::ListOrName => return self.name(c.into(), MISTRAL_ARGS, out),
            State::Name(mut name, end) => {
                name.push(c);
                return self.name(name, end, out);
            }
            State::ArgsOrName(name) if is_blank => State::ArgsOrName(name),
            State::ArgsOrName(name) if c == '{' => return self.args(name, c, out),
            State::ArgsOrName(_) => State::FencedName(c.into()),
            State::FencedName(name) if c == '\n' => State::ArgsOpen(name.trim().to_owned()),
            State::FencedName(mut name) if name.len() < NAME_CHARS_MAX => {
                name.push(c);
                State::FencedName(name)
            }
            State::ArgsOpen(name) if c == '{' => return self.args(name, c, out),
            State::ArgsOpen(name) if is_blank || "`json".contains(c) => State::ArgsOpen(name),
            State::Fence if is_blank || c == '`' => {
                self.raw.clear();
                State::Fence
            }
            State::Fence => {
                self.raw.clear();
                self.pending.insert(0, c);
                State::Text
            }
            _ => return self.give_up(out),
        };
    }

    /// A brace where a call as a whole may stand.
    fn lead(&mut self, out: &mut Vec<Part>) {
        self.state = match self.family {
            Family::Generic => {
                let mut generic = GenericReader::default();
                generic.push('{', out);
                State::Generic(generic)
            }
            _ => {
                let mut call = CallReader::default();
                call.push('{', out);
                State::Call(call)
            }
        };
    }

    /// A name that ends with `end`.
    fn name(&mut self, name: String, end: &'static str, out: &mut Vec<Part>) {
        self.state = match name.strip_suffix(end) {
            Some(name) if end == MISTRAL_ARGS => State::ArgsOpen(name.trim().to_owned()),
            Some(name) => State::ArgsOrName(name.trim().to_owned()),
            None if name.len() < NAME_CHARS_MAX => State::Name(name, end),
            None => return self.give_up(out),
        };
    }

    /// The arguments of a call begin.
    fn args(&mut self, name: String, c: char, out: &mut Vec<Part>) {
        self.commit();
        add(out, Part::Name(name));
        add(out, Part::Args(c.into()));
        let mut scan = ValueScan::default();
        scan.push(c);
        self.state = State::Args(scan);
    }
}

/// Bytes at the end of `text` that could become `mark`.
pub(super) fn n_begun(text: &str, mark: &str) -> usize {
    let max = text.len().min(mark.len() - 1);
    let begins = |n: &usize| mark.as_bytes().starts_with(&text.as_bytes()[text.len() - n..]);
    (1..=max).rev().find(begins).unwrap_or(0)
}
