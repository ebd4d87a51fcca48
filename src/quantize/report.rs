//! The report: how far a quantised model is from its source, over a text.
//!
//! Both read the same windows, as perplexity does (the first half of each is only context), and at
//! every scored position their distributions over the next token are compared. They run at the same
//! time, a few rows apart, so that no window's rows have to be kept.

use std::sync::mpsc::sync_channel;

use crate::base::limits::REPORT_ROWS_MAX;
use crate::inference::{InferenceError, Model, TokenId};

/// How a model does beside its source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Perplexity of the source.
    pub source_perplexity: f64,
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Mean Kullback-Leibler divergence of the model from the source, in nats.
    pub kl: f64,
    /// The divergence that one position in a hundred exceeds.
    pub kl_99: f64,
    /// The part of positions where both find the same token likeliest.
    pub same_top: f64,
    /// Positions that were scored.
    pub n_tokens: usize,
}

/// Compares `model` with `source` over `tokens` in windows of `n_ctx`; `progress` gets windows done
/// and in all.
///
/// # Errors
/// As [`Model::windows`].
pub fn compare(
    source: &mut Model,
    model: &mut Model,
    tokens: &[TokenId],
    n_ctx: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, InferenceError> {
    let mut divergences = Vec::new();
    let (mut source_nll, mut nll, mut n_same) = (0.0, 0.0, 0usize);
    let n_windows = source.check_windows(tokens, n_ctx)?;
    for (i, window) in tokens.chunks_exact(n_ctx).enumerate() {
        // A row of a large vocabulary has half a megabyte, and a window hundreds: so few wait.
        let (sender, expected) = sync_channel::<Vec<f32>>(REPORT_ROWS_MAX);
        let source = &mut *source;
        std::thread::scope(|scope| {
            let source = scope.spawn(move || {
                source.windows(window, n_ctx, &mut |row, _| {
                    // Nobody listens when the model failed, which is told there.
                    let _ = sender.send(log_probs(row));
                })
            });
            let compared = model.windows(window, n_ctx, &mut |row, next| {
                // Nothing comes when the source failed, which is told below.
                let Ok(expected) = expected.recv() else { return };
                let row = log_probs(row);
                source_nll -= f64::from(expected[next as usize]);
                nll -= f64::from(row[next as usize]);
                let terms = expected.iter().zip(&row);
                let terms = terms.map(|(p, q)| f64::from(*p).exp() * f64::from(p - q));
                divergences.push(terms.sum::<f64>().max(0.0));
                n_same += usize::from(top(&expected) == top(&row));
            });
            drop(expected);
            match source.join() {
                Ok(result) => result.and(compared),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        progress(i + 1, n_windows);
    }
    let n = divergences.len();
    divergences.sort_by(f64::total_cmp);
    let mean = |sum: f64| sum / n.max(1) as f64;
    Ok(Comparison {
        source_perplexity: mean(source_nll).exp(),
        perplexity: mean(nll).exp(),
        kl: mean(divergences.iter().sum()),
        kl_99: divergences.get(n * 99 / 100).copied().unwrap_or(0.0),
        same_top: mean(n_same as f64),
        n_tokens: n,
    })
}

fn log_probs(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_sum = sum.ln() as f32;
    logits.iter().map(|x| x - max - log_sum).collect()
}

fn top(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (0..row.len()).fold(0, better)
}
