//! The steps that change logits: bias, repetition penalties, temperature.

use super::candidates::Candidates;
use crate::inference::tokenizer::TokenId;

/// Adds to the logits of some tokens. Only right before any step reorders the list.
pub fn bias(c: &mut Candidates, biases: &[(TokenId, f32)]) {
    for &(token, bias) in biases {
        c.list[token as usize].logit += bias;
    }
}

/// The last tokens, newest first, up to a fixed number.
#[derive(Clone, Debug)]
pub struct LastTokens {
    ring: Vec<TokenId>,
    next: usize,
    len: usize,
}

impl LastTokens {
    /// Remembers `capacity` tokens, at least 1.
    pub fn new(capacity: usize) -> LastTokens {
        LastTokens { ring: vec![0; capacity.max(1)], next: 0, len: 0 }
    }

    /// Remembers a token; the one that is forgotten for it is returned.
    pub fn push(&mut self, token: TokenId) -> Option<TokenId> {
        let old = std::mem::replace(&mut self.ring[self.next], token);
        self.next = (self.next + 1) % self.ring.len();
        if self.len == self.ring.len() {
            return Some(old);
        }
        self.len += 1;
        None
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The token `back` steps before the newest; `back` below `len`.
    pub fn back(&self, back: usize) -> TokenId {
        let n = self.ring.len();
        self.ring[(self.next + n - 1 - back) % n]
    }

    pub fn clear(&mut self) {
        (self.next, self.len) = (0, 0);
    }
}

/// Repeat, frequency and presence penalties on the last tokens.
#[derive(Clone, Debug)]
pub struct Penalties {
    pub repeat: f32,
    pub freq: f32,
    pub present: f32,
    last: LastTokens,
    /// How often each token of the vocabulary stands in `last`.
    counts: Vec<u32>,
}

impl Penalties {
    pub fn new(last_n: usize, n_vocab: usize, [repeat, freq, present]: [f32; 3]) -> Penalties {
        let last = LastTokens::new(last_n);
        Penalties { repeat, freq, present, last, counts: vec![0; n_vocab] }
    }

    /// Whether no logit can become higher.
    pub fn only_lower(&self) -> bool {
        self.repeat >= 1.0 && self.freq >= 0.0 && self.present >= 0.0
    }

    /// Tokens that it looks back over now.
    pub fn n_last(&self) -> usize {
        self.last.len()
    }

    pub fn accept(&mut self, token: TokenId) {
        self.counts[token as usize] += 1;
        if let Some(old) = self.last.push(token) {
            self.counts[old as usize] -= 1;
        }
    }

    pub fn reset(&mut self) {
        self.last.clear();
        self.counts.fill(0);
    }

    pub fn apply(&self, c: &mut Candidates) {
        for x in &mut c.list {
            let count = self.counts[x.id as usize];
            if count == 0 {
                continue;
            }
            // Dividing a negative logit would reward the token.
            if x.logit <= 0.0 {
                x.logit *= self.repeat;
            } else {
                x.logit /= self.repeat;
            }
            x.logit -= count as f32 * self.freq + self.present;
        }
        c.sorted = false;
    }
}

/// Temperature, fixed or following the entropy.
#[derive(Clone, Debug)]
pub struct Temperature {
    pub temp: f32,
    /// How far the temperature may move to either side; 0 and below fix it.
    pub range: f32,
    pub exponent: f32,
}

impl Temperature {
    pub fn apply(&self, c: &mut Candidates) {
        if self.range <= 0.0 {
            divide(c, self.temp);
            return;
        }
        if c.list.len() <= 1 {
            return;
        }
        c.sort();
        c.softmax();
        let entropy_max = -(1.0 / c.list.len() as f32).ln();
        let probs = c.list.iter().map(|x| x.p).filter(|&p| p > 0.0);
        let entropy = probs.fold(0.0f32, |sum, p| sum - p * p.ln());
        let low = (self.temp - self.range).max(0.0);
        let high = self.temp + self.range;
        divide(c, low + (high - low) * (entropy / entropy_max).powf(self.exponent));
    }
}

/// Divides by the temperature; at 0 and below only the first highest logit stays possible.
fn divide(c: &mut Candidates, temp: f32) {
    if temp > 0.0 {
        for x in &mut c.list {
            x.logit /= temp;
        }
        return;
    }
    let best = c.argmax();
    for (i, x) in c.list.iter_mut().enumerate() {
        if i != best {
            x.logit = f32::NEG_INFINITY;
        }
    }
}
