//! Generation: prefill what is not cached, then sample, decode and look for the end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::answer::Answer;
use super::event::Finish;
use super::sampler::{BreakerVocab, Sampler, SamplerOptions, TokenLogProb, log_probs};
use super::{InferenceError, Model};
use crate::inference::tokenizer::{EncodeOptions, TokenId};

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// Tokens to continue.
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate; by default as many as the context holds.
    pub n_predict: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Alternatives reported with each token; 0 for none.
    pub n_probs: usize,
    /// Goes on past the model's own end.
    pub ignore_eos: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// Its tokens, the model's end included.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of these, tokens that were still in the cache.
    pub n_cached: usize,
    /// Time until the first token could be chosen.
    pub prefill_ms: f64,
    /// Time of the rest.
    pub decode_ms: f64,
    /// Log-probabilities of the tokens, if they were asked for.
    pub probs: Vec<TokenLogProb>,
    /// The seed in use.
    pub seed: u32,
}

impl Model {
    /// Continues a prompt, calling `on_text` with each new piece of the answer, and with an empty
    /// one between the steps of a long prompt, so that it can break off there.
    ///
    /// # Errors
    /// If the prompt is empty or too long, or a sampling option out of range.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, InferenceError> {
        let n_prompt = self.check_prompt(&request.prompt)?;
        let mut sampler = self.sampler(&request.sampler)?;
        request.prompt.iter().for_each(|&t| sampler.accept(t));
        let info = Arc::clone(&self.info);
        let forbidden: &[TokenId] =
            if request.ignore_eos { &info.tokenizer.special().eog } else { &[] };
        let started = Instant::now();
        let mut logits = vec![0f32; self.hparams.n_vocab];
        // Whoever reports probabilities needs whole rows.
        let n_max = if request.n_probs > 0 { 0 } else { self.runner.n_top_max() };
        let n_top = sampler.n_top(forbidden.len(), n_max);
        let (n_cached, is_canceled) = self.prefill(&request.prompt, n_top, on_text)?;
        let prefilled = Instant::now();
        let mut answer = Answer::new(&request.stop, 0);
        let mut out = Generated {
            text: String::new(),
            tokens: Vec::new(),
            finish: Finish::Length,
            n_prompt,
            n_cached,
            prefill_ms: (prefilled - started).as_secs_f64() * 1e3,
            decode_ms: 0.0,
            probs: Vec::new(),
            seed: sampler.seed(),
        };
        out.finish = loop {
            if is_canceled {
                break Finish::Canceled;
            }
            if request.n_predict.is_some_and(|n| out.tokens.len() >= n) {
                break Finish::Length;
            }
            let token = self.pick(&mut sampler, &mut logits, forbidden)?;
            sampler.accept(token);
            out.tokens.push(token);
            if request.n_probs > 0 {
                out.probs.push(log_probs(&logits, token, request.n_probs));
            }
            if self.tokenizer.is_eog(token) {
                break Finish::Eog;
            }
            let (text, end) = answer.push(self.tokenizer.token_bytes(token, false));
            let canceled = give(&mut out.text, &text, on_text);
            if let Some(finish) = canceled.or(end) {
                break finish;
            }
            if self.cached.len() >= self.n_ctx {
                break Finish::ContextFull;
            }
            self.run_last(&[token], false, sampler.n_top(forbidden.len(), n_max))?;
        };
        if self.runner.sets_prompts_apart() {
            // The answer would have other bits as part of a prompt.
            self.truncate(n_prompt);
        }
        if !matches!(out.finish, Finish::Stop(_) | Finish::Canceled) {
            let (text, end) = answer.finish();
            let canceled = give(&mut out.text, &text, on_text);
            out.finish = canceled.or(end).unwrap_or(out.finish);
        }
        out.decode_ms = prefilled.elapsed().as_secs_f64() * 1e3;
        Ok(out)
    }

    /// The length of a prompt that can be continued.
    fn check_prompt(&self, prompt: &[TokenId]) -> Result<usize, InferenceError> {
        let (n_prompt, n_ctx) = (prompt.len(), self.n_ctx);
        match n_prompt {
            _ if !self.hparams.arch.causal => Err(InferenceError::NotGenerative),
            0 => Err(InferenceError::PromptEmpty),
            n if n >= n_ctx => Err(InferenceError::PromptTooLong { n_prompt, n_ctx }),
            n => Ok(n),
        }
    }

    /// The next token: from the largest logits that were fetched, or else from `logits`, which
    /// then has all of them.
    fn pick(
        &mut self,
        sampler: &mut Sampler,
        logits: &mut [f32],
        forbidden: &[TokenId],
    ) -> Result<TokenId, InferenceError> {
        if let Some(token) = sampler.sample_top(self.runner.top(0), forbidden, None) {
            return Ok(token);
        }
        logits.copy_from_slice(self.runner.row(0)?);
        for &token in forbidden {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(sampler.sample(logits))
    }

    /// Brings the prompt into the cache, and fetches `n_top` of the last token's logits. Returns
    /// how much of the prompt was there, and whether the reader broke off.
    fn prefill(
        &mut self,
        prompt: &[TokenId],
        n_top: usize,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(usize, bool), InferenceError> {
        let same = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token runs again even if all are cached: its logits are not kept.
        let n_cached = same.min(prompt.len() - 1);
        self.truncate(n_cached);
        let mut rest = &prompt[n_cached..];
        while rest.len() > self.n_batch {
            let (step, after) = rest.split_at(self.n_batch);
            self.advance(step, step.len(), |_, _| {})?;
            rest = after;
            if on_text("").is_break() {
                return Ok((n_cached, true));
            }
        }
        self.run_last(rest, true, n_top)?;
        Ok((n_cached, false))
    }

    fn sampler(&self, options: &SamplerOptions) -> Result<Sampler, InferenceError> {
        let tokenizer = &self.tokenizer;
        let vocab = BreakerVocab {
            piece: &|token| tokenizer.decode(&[token], true),
            encode: &|bytes| {
                tokenizer.encode_bytes(bytes, EncodeOptions::default()).unwrap_or_default()
            },
        };
        let (n_vocab, n_ctx_train) = (self.hparams.n_vocab, self.hparams.n_ctx_train);
        Ok(Sampler::new(options, n_vocab, n_ctx_train, &vocab)?)
    }
}

/// Shows a piece and adds it to the text; whether the reader broke off.
fn give(
    all: &mut String,
    text: &str,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Option<Finish> {
    all.push_str(text);
    let broke = !text.is_empty() && on_text(text).is_break();
    broke.then_some(Finish::Canceled)
}
