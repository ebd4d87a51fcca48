//! GBNF, llama.cpp's notation for grammars: its text as rules.
//!
//! ```text
//! rule      name ::= alternates           a rule ends with its line; the last of a name counts
//! alternates sequence | sequence | ...    a line may end after `|`, and anywhere in parentheses
//! item      "text" [a-z] [^a-z] . name (alternates) <[id]> <token> !<[id]> !<token>
//! after it  * + ? {n} {n,} {n,m}
//! escapes   \n \r \t \\ \" \[ \] \- \xNN \uNNNN \UNNNNNNNN, code points all
//! ```
//!
//! Read as llama.cpp reads it, except where it takes a slip for something else: an empty class
//! (there: no text), a range from the greater to the less (never matches), `{5,2}`, and counts
//! over 2,000 (an error as a least count, no bound as a greatest). Here the first three are errors
//! and counts are counted.

use std::collections::HashMap;

use super::error::GrammarError;
use super::vocab::GrammarVocab;
use crate::base::limits::GBNF_NESTING_MAX;
use crate::inference::tokenizer::TokenId;

/// Code points, in ascending ranges that do not touch; never NUL, which no answer contains.
pub(super) type CharSet = Vec<(u32, u32)>;

const CHAR_MAX: u32 = 0x10FFFF;

/// A piece of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Text(String),
    Chars(CharSet),
    /// One token as a whole, or any other one.
    Token {
        id: TokenId,
        is_negated: bool,
    },
    Rule(usize),
    Group(Vec<Vec<Item>>),
    Repeat {
        item: Box<Item>,
        min: u32,
        max: Option<u32>,
    },
}

/// Rules by number; a sequence is a list of items, a rule a list of sequences.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) names: Vec<String>,
    /// `[n_rule]`: what the rule says, if it has been defined.
    pub(super) alternates: Vec<Option<Vec<Vec<Item>>>>,
    numbers: HashMap<String, usize>,
}

impl Rules {
    /// The number of the rule `root`.
    pub(super) fn root(&self) -> Result<usize, GrammarError> {
        self.numbers.get("root").copied().ok_or(GrammarError::NoRule { rule: "root".to_owned() })
    }

    fn number(&mut self, name: &str) -> usize {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = self.names.len();
        self.names.push(name.to_owned());
        self.alternates.push(None);
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// Reads a grammar.
///
/// # Errors
/// The place and the problem, or the name of a rule that is used and not defined.
pub(super) fn parse(text: &str, vocab: &GrammarVocab) -> Result<Rules, GrammarError> {
    let mut parser = Parser { text, at: 0, depth: 0, rules: Rules::default(), vocab };
    parser.space(true);
    while parser.peek().is_some() {
        parser.rule()?;
    }
    let rules = parser.rules;
    rules.root()?;
    match rules.alternates.iter().position(Option::is_none) {
        Some(number) => Err(GrammarError::NoRule { rule: rules.names[number].clone() }),
        None => Ok(rules),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Open parentheses.
    depth: usize,
    rules: Rules,
    vocab: &'a GrammarVocab,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, what: &str) -> bool {
        let is_here = self.rest().starts_with(what);
        if is_here {
            self.at += what.len();
        }
        is_here
    }

    fn expect(&mut self, what: &str) -> Result<(), GrammarError> {
        if self.eat(what) { Ok(()) } else { Err(self.error(format!("expected `{what}`"))) }
    }

    fn error(&self, problem: impl Into<String>) -> GrammarError {
        let before = &self.text[..self.at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        GrammarError::Gbnf { line, column, problem: problem.into() }
    }

    /// Skips blanks and comments, and line ends where the grammar goes on behind them.
    fn space(&mut self, over_lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if over_lines => self.at += 1,
                '#' => self.at += self.rest().find(['\r', '\n']).unwrap_or(self.rest().len()),
                _ => break,
            }
        }
    }

    fn space_here(&mut self) {
        self.space(self.depth > 0);
    }

    fn name(&mut self) -> Result<&'a str, GrammarError> {
        let rest = self.rest();
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.error("expected the name of a rule"));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let name = self.name()?;
        let number = self.rules.number(name);
        self.space(false);
        self.expect("::=")?;
        self.space(true);
        let alternates = self.alternates()?;
        self.rules.alternates[number] = Some(alternates);
        if let Some(c) = self.peek()
            && !matches!(c, '\r' | '\n')
        {
            return Err(self.error(format!("expected the end of the rule, found `{c}`")));
        }
        self.space(true);
        Ok(())
    }

    fn alternates(&mut self) -> Result<Vec<Vec<Item>>, GrammarError> {
        let mut alternates = vec![self.sequence()?];
        while self.eat("|") {
            self.space(true);
            alternates.push(self.sequence()?);
        }
        Ok(alternates)
    }

    fn sequence(&mut self) -> Result<Vec<Item>, GrammarError> {
        let mut items = Vec::new();
        let mut n_counts = 0;
        while let Some(c) = self.peek() {
            if matches!(c, '*' | '+' | '?' | '{') {
                n_counts += 1;
                self.check_nesting(n_counts)?;
                let item = items.pop().filter(|item| *item != Item::Text(String::new()));
                let item = item.ok_or_else(|| self.error("nothing to repeat before this"))?;
                let (min, max) = self.count()?;
                items.push(Item::Repeat { item: Box::new(item), min, max });
            } else {
                let Some(item) = self.item(c)? else { break };
                items.push(item);
                n_counts = 0;
            }
            self.space_here();
        }
        Ok(items)
    }

    fn check_nesting(&self, depth: usize) -> Result<(), GrammarError> {
        let what = "parentheses or counts inside each other";
        match depth > GBNF_NESTING_MAX {
            true => Err(GrammarError::TooComplex { what, max: GBNF_NESTING_MAX }),
            false => Ok(()),
        }
    }

    /// One item, or nothing where a sequence ends.
    fn item(&mut self, first: char) -> Result<Option<Item>, GrammarError> {
        let item = match first {
            '"' => self.literal()?,
            '[' => self.class()?,
            '.' => {
                self.at += 1;
                Item::Chars(vec![(1, CHAR_MAX)])
            }
            '<' | '!' => self.token()?,
            '(' => self.group()?,
            c if is_name(c) => {
                let name = self.name()?;
                Item::Rule(self.rules.number(name))
            }
            _ => return Ok(None),
        };
        Ok(Some(item))
    }

    fn group(&mut self) -> Result<Item, GrammarError> {
        self.at += 1;
        self.depth += 1;
        self.check_nesting(self.depth)?;
        self.space(true);
        let alternates = self.alternates()?;
        self.expect(")")?;
        self.depth -= 1;
        Ok(Item::Group(alternates))
    }

    fn literal(&mut self) -> Result<Item, GrammarError> {
        self.at += 1;
        let mut text = String::new();
        while !self.eat("\"") {
            let c = self.char()?;
            let c = char::from_u32(c).ok_or_else(|| self.error("a surrogate is no character"))?;
            text.push(c);
        }
        Ok(Item::Text(text))
    }

    fn class(&mut self) -> Result<Item, GrammarError> {
        self.at += 1;
        let is_negated = self.eat("^");
        let mut ranges = CharSet::new();
        while !self.eat("]") {
            let low = self.char()?;
            let mut high = low;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                high = self.char()?;
            }
            if low > high {
                return Err(self.error("the range ends before it begins"));
            }
            ranges.push((low, high));
        }
        if ranges.is_empty() {
            return Err(self.error("the class is empty"));
        }
        Ok(Item::Chars(normalized(ranges, is_negated)))
    }

    /// A code point, written out or escaped.
    fn char(&mut self) -> Result<u32, GrammarError> {
        let end = "the grammar ends inside a text or class";
        let c = self.next().ok_or_else(|| self.error(end))?;
        if c != '\\' {
            return Ok(c as u32);
        }
        let escape = self.next().ok_or_else(|| self.error(end))?;
        let c = match escape {
            'x' => return self.hex(2),
            'u' => return self.hex(4),
            'U' => return self.hex(8),
            't' => '\t',
            'r' => '\r',
            'n' => '\n',
            '\\' | '"' | '[' | ']' | '-' => escape,
            _ => return Err(self.error(format!("`\\{escape}` is no escape"))),
        };
        Ok(c as u32)
    }

    fn hex(&mut self, n_digits: usize) -> Result<u32, GrammarError> {
        let digits = self.rest().get(..n_digits).unwrap_or("");
        let is_hex = digits.len() == n_digits && digits.bytes().all(|b| b.is_ascii_hexdigit());
        match u32::from_str_radix(digits, 16) {
            Ok(c) if is_hex && c <= CHAR_MAX => {
                self.at += n_digits;
                Ok(c)
            }
            Ok(_) if is_hex => Err(self.error("there is no such code point")),
            _ => Err(self.error(format!("expected {n_digits} hexadecimal digits"))),
        }
    }

    fn token(&mut self) -> Result<Item, GrammarError> {
        let is_negated = self.eat("!");
        let rest = self.rest();
        if !rest.starts_with('<') {
            return Err(self.error("expected `<`"));
        }
        let end = rest.find('>').ok_or_else(|| self.error("expected `>`"))? + 1;
        let spelled = &rest[..end];
        let id = match spelled.strip_prefix("<[").and_then(|id| id.strip_suffix("]>")) {
            Some(id) => {
                let id = id.parse().ok().filter(|&id: &TokenId| self.vocab.n_vocab() > id as usize);
                id.ok_or_else(|| self.error("the vocabulary has no such token"))?
            }
            None => self
                .vocab
                .find(spelled)
                .ok_or_else(|| self.error(format!("`{spelled}` is not one token")))?,
        };
        self.at += end;
        Ok(Item::Token { id, is_negated })
    }

    /// How often the item before is repeated.
    fn count(&mut self) -> Result<(u32, Option<u32>), GrammarError> {
        match self.next() {
            Some('*') => return Ok((0, None)),
            Some('+') => return Ok((1, None)),
            Some('?') => return Ok((0, Some(1))),
            _ => {}
        }
        self.space_here();
        let min = self.number()?;
        self.space_here();
        let mut max = Some(min);
        if self.eat(",") {
            self.space_here();
            max = match self.peek() {
                Some('}') => None,
                _ => Some(self.number()?),
            };
            self.space_here();
        }
        if max.is_some_and(|max| max < min) {
            return Err(self.error("the greatest count is below the least"));
        }
        self.expect("}")?;
        Ok((min, max))
    }

    fn number(&mut self) -> Result<u32, GrammarError> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..end].parse();
        let number = number.map_err(|_| self.error("expected a number below 4294967296"))?;
        self.at += end;
        Ok(number)
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

/// The ranges in order and without overlap, or what they leave out.
fn normalized(mut ranges: CharSet, is_negated: bool) -> CharSet {
    ranges.sort_unstable();
    let mut merged = CharSet::new();
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    let mut set = CharSet::new();
    if is_negated {
        let mut next = 1;
        for (low, high) in merged {
            if next < low {
                set.push((next, low - 1));
            }
            next = next.max(high + 1);
        }
        if next <= CHAR_MAX {
            set.push((next, CHAR_MAX));
        }
    } else {
        set.extend(merged.into_iter().map(|(low, high)| (low.max(1), high)));
        set.retain(|(low, high)| low <= high);
    }
    set
}
