//! DRY ("don't repeat yourself"): a penalty that grows with the length of a repetition.
//!
//! ```text
//! last tokens     a b c c b c y a b c
//! also the end        3 1   2            `a b c`, `c`, `b c` stood here before
//! would extend          c:3   b:1 y:2    the tokens that came next then
//! ```
//!
//! A token that would extend a repetition of length `n` loses
//! `multiplier * base ^ (n - allowed_length)`. Sequence breakers (a newline, a quote) end the part
//! of the text that is compared, and are not penalised themselves.

use std::collections::HashMap;

use super::candidates::Candidates;
use super::logits::LastTokens;
use crate::base::limits::{DRY_BREAKER_BYTES_MAX, DRY_BREAKER_TAIL_MAX};
use crate::inference::tokenizer::TokenId;

/// Largest natural logarithm of an `f32`: keeps `base ^ exponent` finite.
const LN_F32_MAX: f32 = 88.722_84;

/// What DRY asks of a vocabulary to find its sequence breakers in it.
#[derive(Clone, Copy)]
pub struct BreakerVocab<'a> {
    /// The text of a token that stands alone, special tokens written out.
    pub piece: &'a dyn Fn(TokenId) -> Vec<u8>,
    /// The tokens of a text, special tokens neither added nor recognised.
    pub encode: &'a dyn Fn(&[u8]) -> Vec<TokenId>,
}

/// The DRY step and its memory.
#[derive(Clone, Debug)]
pub struct Dry {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    breakers: Breakers,
    last: LastTokens,
    /// Length of the repetition that ends at each of the last tokens, newest first.
    lengths: Vec<usize>,
    /// For each token of the vocabulary, 1 + the longest repetition that it would extend, or 0.
    extends: Vec<u32>,
    /// The tokens whose `extends` is not 0.
    touched: Vec<TokenId>,
}

impl Dry {
    pub fn new(
        [multiplier, base]: [f32; 2],
        allowed_length: usize,
        last_n: usize,
        breakers: Breakers,
        n_vocab: usize,
    ) -> Dry {
        Dry {
            multiplier,
            base,
            allowed_length,
            breakers,
            last: LastTokens::new(last_n),
            lengths: Vec::with_capacity(last_n),
            extends: vec![0; n_vocab],
            touched: Vec::with_capacity(last_n),
        }
    }

    pub fn accept(&mut self, token: TokenId) {
        self.last.push(token);
    }

    pub fn reset(&mut self) {
        self.last.clear();
    }

    pub fn apply(&mut self, c: &mut Candidates) {
        let n = self.last.len();
        if n <= self.allowed_length {
            return;
        }
        let length_max = self.breakers.distance(&self.last).unwrap_or(n);
        if length_max < self.allowed_length {
            return;
        }
        self.measure_repetitions();
        self.find_extensions(length_max);
        self.penalise(c);
        for token in self.touched.drain(..) {
            self.extends[token as usize] = 0;
        }
    }

    /// Fills `lengths` by the Z algorithm on the reversed text: `lengths[k]` is how many tokens
    /// agree when the text is laid over itself, shifted by `k`. Linear, for within the furthest
    /// match found so far the answer is mostly known.
    fn measure_repetitions(&mut self) {
        let n = self.last.len();
        self.lengths.clear();
        self.lengths.resize(n, 0);
        // The match that reaches furthest: it starts at `start`, and ends before `end`.
        let (mut start, mut end) = (0, 0);
        for k in 1..n {
            let mut len = if k < end { self.lengths[k - start].min(end - k) } else { 0 };
            while k + len < n && self.last.back(len) == self.last.back(k + len) {
                len += 1;
            }
            self.lengths[k] = len;
            if k + len > end {
                (start, end) = (k, k + len);
            }
        }
    }

    fn find_extensions(&mut self, length_max: usize) {
        for k in 1..self.last.len() {
            let len = self.lengths[k].min(length_max);
            if len < self.allowed_length {
                continue;
            }
            let token = self.last.back(k - 1);
            let longest = &mut self.extends[token as usize];
            if *longest == 0 {
                self.touched.push(token);
            }
            *longest = (*longest).max(len as u32 + 1);
        }
    }

    fn penalise(&self, c: &mut Candidates) {
        let exponent_max =
            if self.base > 1.000_001 { (LN_F32_MAX / self.base.ln()) as usize } else { 0 };
        for x in &mut c.list {
            let extends = self.extends[x.id as usize] as usize;
            if extends == 0 || self.breakers.is_whole(x.id) {
                continue;
            }
            let mut exponent = extends - 1 - self.allowed_length;
            if exponent_max > 0 {
                exponent = exponent.min(exponent_max);
            }
            let growth = f64::from(self.base).powf(exponent as f64);
            x.logit -= (f64::from(self.multiplier) * growth) as f32;
        }
        c.sorted = false;
    }
}

/// Sequence breakers as tokens: by first token, the tails that may follow it.
#[derive(Clone, Debug, Default)]
pub struct Breakers(HashMap<TokenId, Vec<Vec<TokenId>>>);

impl Breakers {
    /// Finds every token that holds a breaker, or begins one.
    ///
    /// A token that ends in the beginning of a breaker is followed by the tokens of its rest, as
    /// the tokenizer would write that rest alone.
    pub fn find(texts: &[String], n_vocab: usize, vocab: &BreakerVocab) -> Breakers {
        let mut found: HashMap<TokenId, Vec<Vec<TokenId>>> = HashMap::new();
        let texts: Vec<&[u8]> = texts
            .iter()
            .map(|text| &text.as_bytes()[..text.len().min(DRY_BREAKER_BYTES_MAX)])
            .filter(|text| !text.is_empty())
            .collect();
        let n_vocab = if texts.is_empty() { 0 } else { n_vocab };
        // Few rests exist, and many tokens begin them.
        let mut tails: HashMap<&[u8], Vec<TokenId>> = HashMap::new();
        for token in 0..n_vocab as TokenId {
            let piece = (vocab.piece)(token);
            for text in &texts {
                if piece.windows(text.len()).any(|window| window == *text) {
                    found.entry(token).or_default().push(Vec::new());
                    continue;
                }
                let overlaps = (1..text.len()).filter(|&n| piece.ends_with(&text[..n]));
                for rest in overlaps.map(|n| &text[n..]) {
                    let tail = tails.entry(rest).or_insert_with(|| {
                        let mut tail = (vocab.encode)(rest);
                        tail.truncate(DRY_BREAKER_TAIL_MAX);
                        tail
                    });
                    found.entry(token).or_default().push(tail.clone());
                }
            }
        }
        for tails in found.values_mut() {
            tails.sort();
            tails.dedup();
        }
        Breakers(found)
    }

    /// How many tokens stand after the newest breaker; `None` without one.
    fn distance(&self, last: &LastTokens) -> Option<usize> {
        (0..last.len()).find_map(|i| {
            let tails = self.0.get(&last.back(i))?;
            let follows = |tail: &&Vec<TokenId>| {
                tail.len() <= i && tail.iter().enumerate().all(|(j, &t)| t == last.back(i - j - 1))
            };
            let longest = tails.iter().filter(follows).map(Vec::len).max()?;
            Some(i - longest)
        })
    }

    /// Whether the token is a breaker by itself.
    fn is_whole(&self, token: TokenId) -> bool {
        self.0.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dry(allowed_length: usize, text: &[TokenId], breakers: Breakers) -> Dry {
        let mut dry = Dry::new([1.0, 2.0], allowed_length, 32, breakers, 32);
        text.iter().for_each(|&token| dry.accept(token));
        dry
    }

    /// What DRY takes from each token's logit.
    fn penalties(dry: &mut Dry) -> Vec<(TokenId, f32)> {
        let mut c = Candidates::new(32);
        c.load(&[0.0; 32]);
        dry.apply(&mut c);
        c.list.iter().filter(|x| x.logit != 0.0).map(|x| (x.id, -x.logit)).collect()
    }

    #[test]
    fn the_example_of_the_header() {
        // a b c c b c y a b c
        let text = [1, 2, 3, 3, 2, 3, 9, 1, 2, 3];
        assert_eq!(
            penalties(&mut dry(1, &text, Breakers::default())),
            [(2, 1.0), (3, 4.0), (9, 2.0)]
        );
        assert_eq!(penalties(&mut dry(2, &text, Breakers::default())), [(3, 2.0), (9, 1.0)]);
        assert_eq!(penalties(&mut dry(4, &text, Breakers::default())), []);
    }

    #[test]
    fn breakers_end_the_comparison_and_go_free() {
        let letters = |id: TokenId| vec![b'a' + id as u8];
        let encode = |text: &[u8]| text.iter().map(|&b| TokenId::from(b - b'a')).collect();
        let vocab = BreakerVocab { piece: &letters, encode: &encode };
        let find = |text: &str| Breakers::find(&[text.to_string()], 26, &vocab);
        let text = [1, 2, 3, 4, 1, 2, 3];
        assert_eq!(penalties(&mut dry(1, &text, Breakers::default())), [(4, 4.0)]);
        // Two tokens stand after `b` (1): only they count. `bc` leaves one, `abcd` never came.
        assert_eq!(penalties(&mut dry(1, &text, find("b"))), [(4, 2.0)]);
        assert_eq!(penalties(&mut dry(1, &text, find("bc"))), [(4, 1.0)]);
        assert_eq!(penalties(&mut dry(1, &text, find("abcd"))), [(4, 4.0)]);
        assert_eq!(penalties(&mut dry(1, &text, find("e"))), []);
    }

    #[test]
    fn tokens_that_overlap_a_breaker_are_found() {
        let pieces = ["x", "ab", "xa", "b", "ba", "xabx", "aab"];
        let piece = |id: TokenId| pieces[id as usize].as_bytes().to_vec();
        let encode = |text: &[u8]| vec![TokenId::from(text[0])];
        let vocab = BreakerVocab { piece: &piece, encode: &encode };
        let found = Breakers::find(&["ab".to_string(), String::new()], pieces.len(), &vocab);
        let b = TokenId::from(b'b');
        for (id, tails) in
            [(1, vec![vec![]]), (2, vec![vec![b]]), (4, vec![vec![b]]), (5, vec![vec![]])]
        {
            assert_eq!(found.0.get(&id), Some(&tails), "{}", pieces[id as usize]);
        }
        assert!(!found.0.contains_key(&0) && !found.0.contains_key(&3));
    }
}
