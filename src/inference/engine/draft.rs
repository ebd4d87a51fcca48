//! Speculation: guesses at the next tokens, checked by the model in one step.
//!
//! A guess costs a little time when it is wrong and saves a step for each token that is right. It
//! never changes an answer: a token counts only if the sequence's own sampler picks it. Two guess:
//! prompt lookup here, and where it finds nothing a draft model, `draft_model.rs`.

use std::collections::HashMap;

use crate::inference::tokenizer::TokenId;

/// Tokens that must match for what followed them to be guessed.
const NGRAM_LEN: usize = 3;
/// Tokens guessed at once before anything is known of their luck.
const N_DRAFT_START: usize = 4;
/// Tokens guessed at once with the best of luck.
const N_DRAFT_MAX: usize = 64;

/// What a sequence wants of a draft model in a step.
pub struct Ask<'a> {
    /// Its place.
    pub slot_idx: usize,
    /// The tenant of a private prefix, which is not read for another's request.
    pub tenant: Option<u64>,
    /// Its tokens so far.
    pub tokens: &'a [TokenId],
    /// Most tokens guessed; 0 only lets the draft model read along.
    pub n_max: usize,
    /// Fewer guesses than this are none.
    pub n_min: usize,
    /// A guess less likely than this ends the draft.
    pub p_min: f32,
    /// Takes the guesses; empty.
    pub draft: &'a mut Vec<TokenId>,
}

/// How many tokens to guess at once, by the luck so far.
#[derive(Clone, Copy, Debug)]
pub struct Luck {
    n_draft: usize,
}

impl Default for Luck {
    fn default() -> Luck {
        Luck { n_draft: N_DRAFT_START }
    }
}

impl Luck {
    /// Tokens to guess at once.
    pub fn n_draft(&self) -> usize {
        self.n_draft
    }

    /// Hears how many of `n_draft` guesses were right.
    pub fn learn(&mut self, n_draft: usize, n_accepted: usize) {
        self.n_draft = match n_accepted {
            0 => (self.n_draft / 2).max(1),
            n if n == n_draft => (self.n_draft * 2).min(N_DRAFT_MAX),
            n => (n + 1).max(2),
        };
    }
}

/// Prompt lookup: what followed the last three tokens the last time they stood together, in the
/// text so far or in a given prediction of the answer.
#[derive(Debug)]
pub struct PromptLookup {
    /// The prediction, then the tokens seen, then whatever follows.
    corpus: Vec<TokenId>,
    /// Tokens of the prediction at the start of the corpus.
    n_prediction: usize,
    /// After an n-gram: where the next token stood, the last time.
    after: HashMap<[TokenId; NGRAM_LEN], usize>,
    luck: Luck,
}

impl PromptLookup {
    /// Looks up in `prediction` as well as in the text.
    pub fn new(prediction: &[TokenId]) -> PromptLookup {
        let mut lookup = PromptLookup {
            corpus: Vec::new(),
            n_prediction: prediction.len(),
            after: HashMap::new(),
            luck: Luck::default(),
        };
        prediction.iter().for_each(|&token| lookup.push(token));
        lookup
    }

    fn push(&mut self, token: TokenId) {
        self.corpus.push(token);
        let n = self.corpus.len();
        // The n-gram that ends one token earlier is followed by this one. None spans the border
        // between the prediction and the text.
        let start = if n > self.n_prediction { self.n_prediction } else { 0 };
        if n > start + NGRAM_LEN {
            let at = n - 1 - NGRAM_LEN;
            let ngram = std::array::from_fn(|i| self.corpus[at + i]);
            self.after.insert(ngram, n - 1);
        }
    }

    /// At most `n_max` tokens that may follow `tokens`.
    pub fn draft(&mut self, tokens: &[TokenId], n_max: usize) -> Vec<TokenId> {
        let n_seen = self.corpus.len() - self.n_prediction;
        if n_seen > tokens.len() {
            // A shift took tokens away; what is known of the text starts again.
            let prediction: Vec<TokenId> = self.corpus[..self.n_prediction].to_vec();
            let luck = self.luck;
            *self = PromptLookup { luck, ..PromptLookup::new(&prediction) };
            return self.draft(tokens, n_max);
        }
        tokens[n_seen..].iter().for_each(|&token| self.push(token));
        let n_max = n_max.min(self.luck.n_draft());
        if n_max == 0 || tokens.len() < NGRAM_LEN {
            return Vec::new();
        }
        let ngram = std::array::from_fn(|i| tokens[tokens.len() - NGRAM_LEN + i]);
        let Some(&at) = self.after.get(&ngram) else { return Vec::new() };
        let end = if at < self.n_prediction { self.n_prediction } else { self.corpus.len() };
        self.corpus[at..end.min(at + n_max)].to_vec()
    }

    /// Hears how many of `n_draft` guesses were right.
    pub fn learn(&mut self, n_draft: usize, n_accepted: usize) {
        self.luck.learn(n_draft, n_accepted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_is_guessed_again() {
        let mut lookup = PromptLookup::new(&[]);
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 1, 2, 3], 8), [4, 5, 1, 2]);
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 1, 2, 3, 9], 8), Vec::<TokenId>::new());
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 1), [9]);
    }

    #[test]
    fn a_prediction_is_looked_up_but_not_across_its_end() {
        let mut lookup = PromptLookup::new(&[7, 8, 9, 10]);
        assert_eq!(lookup.draft(&[7, 8, 9], 8), [10]);
        assert!(lookup.draft(&[7, 8, 9, 10], 8).is_empty());
    }

    #[test]
    fn luck_sets_the_length() {
        let mut luck = Luck::default();
        luck.learn(4, 4);
        assert_eq!(luck.n_draft(), 8);
        luck.learn(8, 0);
        luck.learn(4, 0);
        assert_eq!(luck.n_draft(), 2);
        luck.learn(2, 1);
        assert_eq!(luck.n_draft(), 2);
    }

    #[test]
    fn a_shifted_text_is_learned_anew() {
        let mut lookup = PromptLookup::new(&[]);
        lookup.draft(&[1, 2, 3, 4, 5, 6, 7, 8], 8);
        assert_eq!(lookup.draft(&[5, 6, 7, 8, 5, 6, 7], 8), [8, 5, 6, 7]);
    }
}
