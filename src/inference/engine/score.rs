//! Perplexity: how well a model foretells a text.

use super::{InferenceError, Model};
use crate::inference::backend::{BackendError, InputSums};
use crate::inference::tokenizer::TokenId;

/// Perplexity over the second halves of consecutive windows, as llama.cpp measures it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean negative log-probability.
    pub value: f64,
    /// Tokens that were scored.
    pub n_tokens: usize,
    /// Standard error of `value`.
    pub stderr: f64,
}

impl Model {
    /// Perplexity of `tokens` in windows of `n_ctx`; each window starts with BOS where the model
    /// wants one, and its first half is only context. `progress` gets windows done and in all.
    ///
    /// # Errors
    /// If there is not one whole window, `n_ctx` is larger than the model's context, or the model
    /// is an encoder.
    pub fn perplexity(
        &mut self,
        tokens: &[TokenId],
        n_ctx: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Perplexity, InferenceError> {
        let (mut n, mut sum, mut sum_squares) = (0usize, 0f64, 0f64);
        let n_windows = self.check_windows(tokens, n_ctx)?;
        for (i, window) in tokens.chunks_exact(n_ctx).enumerate() {
            self.windows(window, n_ctx, &mut |row, next| {
                let nll = -log_prob(row, next);
                n += 1;
                sum += nll;
                sum_squares += nll * nll;
            })?;
            progress(i + 1, n_windows);
        }
        let mean = sum / n as f64;
        let variance = (sum_squares / n as f64 - mean * mean).max(0.0);
        let value = mean.exp();
        let stderr = value * (variance / (n as f64 - 1.0).max(1.0)).sqrt();
        Ok(Perplexity { value, n_tokens: n, stderr })
    }

    /// Calls `each` with the logits of every scored position of `tokens` in windows of `n_ctx`, and
    /// the token that follows: what perplexity is the summary of.
    ///
    /// # Errors
    /// As [`Model::perplexity`].
    pub fn windows(
        &mut self,
        tokens: &[TokenId],
        n_ctx: usize,
        each: &mut dyn FnMut(&[f32], TokenId),
    ) -> Result<(), InferenceError> {
        self.check_windows(tokens, n_ctx)?;
        self.each_window(tokens, n_ctx, n_ctx / 2, each)
    }

    /// What every weight is multiplied by while `tokens` run through in windows of `n_ctx`.
    ///
    /// # Errors
    /// As [`Model::perplexity`].
    pub fn input_sums(
        &mut self,
        tokens: &[TokenId],
        n_ctx: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<InputSums, InferenceError> {
        let n_windows = self.check_windows(tokens, n_ctx)?;
        if self.device().name != "cpu" {
            let what = "gathering what matrices are multiplied by";
            return Err(BackendError::CpuOnly { what }.into());
        }
        self.runner.gather_inputs(true);
        let mut result = Ok(());
        for (i, window) in tokens.chunks_exact(n_ctx).enumerate() {
            // Every position passes the layers; the logits of the last are enough.
            result = self.each_window(window, n_ctx, n_ctx - 1, &mut |_, _| {});
            if result.is_err() {
                break;
            }
            progress(i + 1, n_windows);
        }
        let sums = self.runner.gather_inputs(false);
        result.map(|()| sums)
    }

    /// Runs whole windows from an empty cache, the first token replaced by BOS where the model
    /// wants one.
    fn each_window(
        &mut self,
        tokens: &[TokenId],
        n_ctx: usize,
        first: usize,
        each: &mut dyn FnMut(&[f32], TokenId),
    ) -> Result<(), InferenceError> {
        let special = self.tokenizer.special();
        let bos = special.bos.filter(|_| special.add_bos);
        for window in tokens.chunks_exact(n_ctx) {
            let mut window = window.to_vec();
            if let Some(bos) = bos {
                window[0] = bos;
            }
            self.truncate(0);
            self.advance(&window, first, |pos, row| {
                if let Some(&next) = window.get(pos + 1) {
                    each(row, next);
                }
            })?;
        }
        self.truncate(0);
        Ok(())
    }

    /// How many windows of `n_ctx` there are.
    ///
    /// # Errors
    /// If there is none, or the model does not generate.
    pub fn check_windows(&self, tokens: &[TokenId], n_ctx: usize) -> Result<usize, InferenceError> {
        if !self.hparams.arch.causal {
            return Err(InferenceError::NotGenerative);
        }
        let n_windows = tokens.len().checked_div(n_ctx).unwrap_or(0);
        if n_windows == 0 || n_ctx < 4 {
            let n_tokens = tokens.len();
            return Err(InferenceError::TextTooShort { n_tokens, n_ctx, needed: n_ctx.max(4) });
        }
        Ok(n_windows)
    }
}

/// The log-probability of `token` under a row of logits.
fn log_prob(row: &[f32], token: TokenId) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(row[token as usize] - max) - sum.ln()
}
