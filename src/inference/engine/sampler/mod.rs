//! The sampling chain: from a step's logits to the next token, with llama.cpp's picks.
//!
//! ```text
//! logits -> bias -> penalties, DRY                 change logits
//!                -> top-n-sigma, top-k, typical,
//!                   top-p, min-p, XTC              drop tokens
//!                -> temperature                    changes logits
//!                -> infill, if asked for           drops tokens
//!                -> the draw                       one token
//! ```
//!
//! The middle is [`SamplerOptions::samplers`]; this is its default. With `mirostat` on, only the
//! bias, the temperature and mirostat's own cut and draw are left.
//!
//! The same logits, options, seed and history give the token that llama.cpp gives (on x86-64,
//! built with libstdc++): same random generator, same sums in the same precision, same order of
//! equal logits. Differences are meant where llama.cpp leaves the numbers: NaN and infinite logits
//! are taken for impossible and very high ones; and where a dynamic temperature near 0 makes
//! infinities, or rounding carries a draw to an impossible token, the likeliest token is taken
//! instead of the last.
//!
//! Nothing is allocated after [`Sampler::new`].

mod candidates;
mod cut;
mod draw;
mod dry;
mod infill;
mod logits;
mod options;
mod probs;
mod rng;
mod sort;
mod top;

use candidates::Candidates;
use cut::Xtc;
use draw::{Draw, Mirostat};
pub use dry::BreakerVocab;
use dry::{Breakers, Dry};
use logits::{Penalties, Temperature};
pub use options::{SEED_RANDOM, SamplerError, SamplerKind, SamplerOptions};
pub use probs::{TokenLogProb, log_probs};
use rng::Mt19937;

use crate::base::limits::SAMPLER_LAST_N_MAX;
use crate::inference::tokenizer::{TokenId, Tokenizer};

/// One sequence's sampling chain, with its random numbers and its memory of past tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    n_vocab: usize,
    seed: u32,
    steps: Vec<Step>,
    draw: Draw,
    candidates: Candidates,
}

/// A step that is turned on.
#[derive(Clone, Debug)]
enum Step {
    Bias(Vec<(TokenId, f32)>),
    Penalties(Penalties),
    Dry(Dry),
    TopNSigma(f32),
    TopK(usize),
    Typical(f32, usize),
    TopP(f32, usize),
    MinP(f32, usize),
    Xtc(Box<Xtc>),
    Temperature(Temperature),
    Infill,
}

impl Sampler {
    /// Builds the chain for logits of `n_vocab` tokens.
    ///
    /// `n_ctx_train` is what -1 stands for in `penalty_last_n` and `dry_penalty_last_n`. `vocab`
    /// is asked only when DRY is on: for every token once, and for the rest of long breakers.
    ///
    /// # Errors
    /// When an option is out of its range.
    pub fn new(
        options: &SamplerOptions,
        n_vocab: usize,
        n_ctx_train: usize,
        vocab: &BreakerVocab,
    ) -> Result<Sampler, SamplerError> {
        options.check(n_vocab)?;
        let seed = match options.seed {
            SEED_RANDOM => random_seed(),
            seed => seed,
        };
        let mut steps = Vec::new();
        if !options.logit_bias.is_empty() {
            steps.push(Step::Bias(options.logit_bias.clone()));
        }
        let build = Build { options, seed, n_vocab, n_ctx_train, vocab };
        let draw = match options.mirostat {
            0 => {
                steps.extend(options.samplers.iter().filter_map(|&kind| build.step(kind)));
                Draw::weighted(seed)
            }
            version => {
                let temp = Temperature { temp: options.temp, range: 0.0, exponent: 1.0 };
                steps.push(Step::Temperature(temp));
                let (tau, eta) = (options.mirostat_tau, options.mirostat_eta);
                Draw::mirostat(Mirostat::new(version == 1, n_vocab, tau, eta), seed)
            }
        };
        let candidates = Candidates::new(n_vocab);
        Ok(Sampler { n_vocab, seed, steps, draw, candidates })
    }

    /// Chooses the next token. It is remembered only by [`Sampler::accept`].
    ///
    /// # Panics
    /// When there are not `n_vocab` logits.
    pub fn sample(&mut self, logits: &[f32]) -> TokenId {
        self.sample_in(logits, None)
    }

    /// Chooses the next token of a text in this vocabulary, which the infill step looks at.
    ///
    /// # Panics
    /// When there are not `n_vocab` logits.
    pub fn sample_text(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> TokenId {
        self.sample_in(logits, Some(tokenizer))
    }

    fn sample_in(&mut self, logits: &[f32], tokenizer: Option<&Tokenizer>) -> TokenId {
        assert_eq!(logits.len(), self.n_vocab, "one logit for each token of the vocabulary");
        self.candidates.load(logits);
        self.rest_of_chain(0, tokenizer)
    }

    /// Applies the steps from `from` on, and draws.
    fn rest_of_chain(&mut self, from: usize, tokenizer: Option<&Tokenizer>) -> TokenId {
        let candidates = &mut self.candidates;
        for step in &mut self.steps[from..] {
            step.apply(candidates, tokenizer);
        }
        let mut pick = self.draw.pick(candidates);
        if candidates.list[pick].logit == f32::NEG_INFINITY {
            // Rounding can carry a draw past the last possible token.
            pick = candidates.argmax();
        }
        candidates.list[pick].id
    }

    /// Log probability of `token` and of the `n_top` likeliest tokens in the list that the last
    /// draw was made from. Impossible tokens are not listed.
    pub fn last_log_probs(&self, token: TokenId, n_top: usize) -> TokenLogProb {
        self.candidates.log_probs(token, n_top)
    }

    /// Remembers a token of the text, from the prompt or sampled. Unknown tokens are ignored.
    pub fn accept(&mut self, token: TokenId) {
        if token as usize >= self.n_vocab {
            return;
        }
        for step in &mut self.steps {
            match step {
                Step::Penalties(penalties) => penalties.accept(token),
                Step::Dry(dry) => dry.accept(token),
                _ => {}
            }
        }
    }

    /// Forgets all tokens and starts the random numbers over, from the same seed.
    pub fn reset(&mut self) {
        for step in &mut self.steps {
            match step {
                Step::Penalties(penalties) => penalties.reset(),
                Step::Dry(dry) => dry.reset(),
                Step::Xtc(xtc) => xtc.rng = Mt19937::new(self.seed),
                _ => {}
            }
        }
        self.draw.reset(self.seed);
    }

    /// The seed in use: the one asked for, or the one that was taken from the system.
    pub fn seed(&self) -> u32 {
        self.seed
    }
}

impl Step {
    fn apply(&mut self, c: &mut Candidates, tokenizer: Option<&Tokenizer>) {
        match self {
            Step::Bias(biases) => logits::bias(c, biases),
            Step::Penalties(penalties) => penalties.apply(c),
            Step::Dry(dry) => dry.apply(c),
            Step::TopNSigma(n) => cut::top_n_sigma(c, *n),
            Step::TopK(k) => cut::top_k(c, *k),
            Step::Typical(p, min_keep) => cut::typical(c, *p, *min_keep),
            Step::TopP(p, min_keep) => cut::top_p(c, *p, *min_keep),
            Step::MinP(p, min_keep) => cut::min_p(c, *p, *min_keep),
            Step::Xtc(xtc) => xtc.apply(c),
            Step::Temperature(temperature) => temperature.apply(c),
            Step::Infill => {
                if let Some(tokenizer) = tokenizer {
                    infill::infill(c, tokenizer);
                }
            }
        }
    }
}

/// What the steps are built from.
struct Build<'a> {
    options: &'a SamplerOptions,
    seed: u32,
    n_vocab: usize,
    n_ctx_train: usize,
    vocab: &'a BreakerVocab<'a>,
}

impl Build<'_> {
    /// The step, unless its options turn it off. An idle step would not be harmless: some of them
    /// count the list as unsorted, others spend random numbers.
    fn step(&self, kind: SamplerKind) -> Option<Step> {
        let o = self.options;
        let min_keep = o.min_keep as usize;
        match kind {
            SamplerKind::Penalties => self.penalties(),
            SamplerKind::Dry => self.dry(),
            SamplerKind::TopNSigma => {
                (o.top_n_sigma > 0.0).then_some(Step::TopNSigma(o.top_n_sigma))
            }
            SamplerKind::TopK => (o.top_k > 0).then_some(Step::TopK(o.top_k as usize)),
            SamplerKind::TypP => (o.typ_p < 1.0).then_some(Step::Typical(o.typ_p, min_keep)),
            SamplerKind::TopP => (o.top_p < 1.0).then_some(Step::TopP(o.top_p, min_keep)),
            SamplerKind::MinP => (o.min_p > 0.0).then_some(Step::MinP(o.min_p, min_keep)),
            SamplerKind::Xtc => {
                let (probability, threshold) = (o.xtc_probability, o.xtc_threshold);
                (probability > 0.0 && threshold <= 0.5).then(|| {
                    let rng = Mt19937::new(self.seed);
                    Step::Xtc(Box::new(Xtc { probability, threshold, min_keep, rng }))
                })
            }
            SamplerKind::Temperature => (o.temp != 1.0 || o.dynatemp_range > 0.0).then(|| {
                let (range, exponent) = (o.dynatemp_range, o.dynatemp_exponent);
                Step::Temperature(Temperature { temp: o.temp, range, exponent })
            }),
            SamplerKind::Infill => Some(Step::Infill),
        }
    }

    fn penalties(&self) -> Option<Step> {
        let o = self.options;
        let last_n = self.last_n(o.penalty_last_n);
        let factors = [o.penalty_repeat, o.penalty_freq, o.penalty_present];
        (last_n > 0 && factors != [1.0, 0.0, 0.0])
            .then(|| Step::Penalties(Penalties::new(last_n, self.n_vocab, factors)))
    }

    fn dry(&self) -> Option<Step> {
        let o = self.options;
        let last_n = self.last_n(o.dry_penalty_last_n);
        (last_n > 0 && o.dry_multiplier != 0.0 && o.dry_base >= 1.0).then(|| {
            let breakers = Breakers::find(&o.dry_sequence_breakers, self.n_vocab, self.vocab);
            let factors = [o.dry_multiplier, o.dry_base];
            let allowed = o.dry_allowed_length as usize;
            Step::Dry(Dry::new(factors, allowed, last_n, breakers, self.n_vocab))
        })
    }

    fn last_n(&self, n: i32) -> usize {
        usize::try_from(n).unwrap_or(self.n_ctx_train).min(SAMPLER_LAST_N_MAX as usize)
    }
}

/// A seed from the system's randomness, never the one that asks for it.
fn random_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u32 % SEED_RANDOM
}

#[cfg(test)]
mod tests;
