//! The tokens still in the running, and the buffers that cutting them down needs.
//!
//! Every buffer is as long as the vocabulary from the start, so that no token costs an allocation.
//! The order of the list means something: it is the order in which the final draw walks, and it
//! decides between equal logits. So each step moves candidates exactly as llama.cpp does.

use super::probs::TokenLogProb;
use super::sort;
use crate::inference::tokenizer::TokenId;

/// Logits are cut here when they come in, so that no option within its range makes an infinity
/// above or a NaN out of them. Models stay below 1e5.
pub const LOGIT_MAX: f32 = 1e20;

/// A prefix up to this length is selected by heap, a longer one by buckets.
const HEAP_MAX: usize = 128;

/// A token in the running. `p` holds what the last softmax made of the logit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    pub id: TokenId,
    pub logit: f32,
    pub p: f32,
}

/// The list of candidates, with its scratch.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// Never empty once loaded.
    pub list: Vec<Candidate>,
    /// Whether `list` is known to fall from high logits to low.
    pub sorted: bool,
    /// A second list, for steps that cannot work in place.
    pub spare: Vec<Candidate>,
    buckets: Vec<u8>,
    /// Places in `list`, and a score for each place.
    pub order: Vec<u32>,
    pub scores: Vec<f32>,
}

impl Candidates {
    /// Buffers for a vocabulary of `n_vocab` tokens.
    pub fn new(n_vocab: usize) -> Candidates {
        Candidates {
            list: Vec::with_capacity(n_vocab),
            sorted: false,
            spare: Vec::with_capacity(n_vocab),
            buckets: Vec::with_capacity(n_vocab),
            order: Vec::with_capacity(n_vocab),
            scores: Vec::with_capacity(n_vocab),
        }
    }

    /// Starts over with every token of the vocabulary, in its order. NaN counts as impossible.
    pub fn load(&mut self, logits: &[f32]) {
        self.sorted = false;
        self.list.clear();
        self.list.extend(logits.iter().enumerate().map(|(id, &logit)| {
            let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(LOGIT_MAX) };
            Candidate { id: id as TokenId, logit, p: 0.0 }
        }));
    }

    /// Starts over with these tokens; those past the vocabulary's end are none of it.
    pub fn load_some(&mut self, logits: &[(TokenId, f32)], n_vocab: usize) {
        self.sorted = false;
        self.list.clear();
        let known = logits.iter().filter(|(id, _)| (*id as usize) < n_vocab);
        self.list.extend(known.map(|&(id, logit)| Candidate { id, logit, p: 0.0 }));
    }

    /// Keeps the `n` highest logits, sorted. The list must not be sorted yet.
    pub fn sort_top(&mut self, n: usize) {
        if n <= HEAP_MAX {
            sort::partial_sort(&mut self.list, n, &sort::by_logit);
        } else {
            self.copy_top(n);
            std::mem::swap(&mut self.list, &mut self.spare);
        }
        self.list.truncate(n);
        self.sorted = true;
    }

    /// Writes the `n` highest logits, sorted, to the front of `spare`.
    pub fn copy_top(&mut self, n: usize) {
        sort::bucket_top(&self.list, n, &mut self.buckets, &mut self.spare);
    }

    /// Sorts the whole list by logit, unless it is.
    pub fn sort(&mut self) {
        if !self.sorted {
            self.sort_top(self.list.len());
        }
    }

    /// Fills in `p`, summing in `f32` from the front as llama.cpp does.
    pub fn softmax(&mut self) {
        let max = self.max_logit();
        let mut sum = 0.0f32;
        for c in &mut self.list {
            c.p = (c.logit - max).exp();
            sum += c.p;
        }
        for c in &mut self.list {
            c.p /= sum;
        }
    }

    /// Log probability of `token` and of the `n_top` likeliest candidates, falling, without those
    /// that are impossible.
    pub fn log_probs(&self, token: TokenId, n_top: usize) -> TokenLogProb {
        let max = self.max_logit();
        let sum: f64 = self.list.iter().map(|c| f64::from(c.logit - max).exp()).sum();
        let log_prob = |c: &Candidate| (f64::from(c.logit - max) - sum.ln()) as f32;
        let mut top: Vec<(TokenId, f32)> = self.list.iter().map(|c| (c.id, log_prob(c))).collect();
        top.retain(|(_, log_prob)| log_prob.exp() > 0.0);
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let logprob = top.iter().find(|(id, _)| *id == token);
        let logprob = logprob.map_or(f32::NEG_INFINITY, |(_, log_prob)| *log_prob);
        top.truncate(n_top);
        TokenLogProb { logprob, top }
    }

    /// The highest logit.
    pub fn max_logit(&self) -> f32 {
        let first = self.list[0].logit;
        if self.sorted { first } else { self.list.iter().fold(first, |m, c| m.max(c.logit)) }
    }

    /// The first place with the highest logit.
    pub fn argmax(&self) -> usize {
        let mut best = 0;
        for (i, c) in self.list.iter().enumerate() {
            if c.logit > self.list[best].logit {
                best = i;
            }
        }
        best
    }
}
