//! Log probabilities of a token and of the likeliest ones, for answers that show them.

use crate::inference::tokenizer::TokenId;

/// Log probabilities under the softmax of the logits, before any sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProb {
    /// Natural logarithm of the token's probability; negative infinity for an impossible token.
    pub logprob: f32,
    /// The likeliest tokens with their log probability, falling; equal ones by token.
    pub top: Vec<(TokenId, f32)>,
}

/// Log probability of `token` and of the `n_top` likeliest tokens.
///
/// Sums in `f64` below the largest logit, so neither large logits nor large vocabularies lose
/// digits. NaN counts as impossible; a token outside the vocabulary is impossible.
pub fn log_probs(logits: &[f32], token: TokenId, n_top: usize) -> TokenLogProb {
    let logit = |id: usize| {
        let x = logits.get(id).copied().unwrap_or(f32::NEG_INFINITY);
        if x.is_nan() { f32::NEG_INFINITY } else { x.min(f32::MAX) }
    };
    let max = (0..logits.len()).map(logit).fold(f32::NEG_INFINITY, f32::max);
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(n_top.min(logits.len()) + 1);
    let mut sum = 0.0f64;
    for id in 0..logits.len() {
        let x = logit(id);
        sum += f64::from(x - max).exp();
        if top.len() < n_top || top.last().is_some_and(|last| x > last.1) {
            let place = top.partition_point(|other| other.1 >= x);
            top.insert(place, (id as TokenId, x));
            top.truncate(n_top);
        }
    }
    let log_prob = |x: f32| match x {
        f32::NEG_INFINITY => x,
        x => (f64::from(x) - f64::from(max) - sum.ln()) as f32,
    };
    top.iter_mut().for_each(|entry| entry.1 = log_prob(entry.1));
    TokenLogProb { logprob: log_prob(logit(token as usize)), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_values() {
        let quarter = 0.25f32.ln();
        let probs = log_probs(&[0.0, 2f32.ln(), 0.0], 0, 2);
        assert!((probs.logprob - quarter).abs() < 1e-6);
        assert_eq!(probs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0]);
        assert!((probs.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn large_and_impossible_logits_stay_numbers() {
        let logits = [1e30, f32::NEG_INFINITY, f32::NAN, 1e30];
        let probs = log_probs(&logits, 3, 9);
        assert_eq!(probs.logprob, 0.5f32.ln());
        assert_eq!(probs.top.len(), 4);
        assert_eq!(probs.top[2], (1, f32::NEG_INFINITY));
        assert_eq!(log_probs(&logits, 77, 0).logprob, f32::NEG_INFINITY);
        assert_eq!(log_probs(&[f32::INFINITY, 0.0], 0, 1).logprob, 0.0);
        assert_eq!(log_probs(&[], 0, 3), TokenLogProb { logprob: f32::NEG_INFINITY, top: vec![] });
        let none = log_probs(&[f32::NEG_INFINITY; 3], 0, 1);
        assert_eq!(none.top, [(0, f32::NEG_INFINITY)]);
    }

    #[test]
    fn probabilities_of_a_large_vocabulary_sum_to_one() {
        let logits: Vec<f32> = (0..150_000).map(|i| (i % 977) as f32 * 0.01 - 500.0).collect();
        let all = log_probs(&logits, 0, logits.len().min(2000));
        assert!(all.top.windows(2).all(|w| w[0].1 >= w[1].1));
        let sum: f64 =
            (0..977).map(|i| f64::from(log_probs(&logits, i, 0).logprob).exp() * 153.5).sum();
        assert!((sum - 1.0).abs() < 1e-2, "{sum}");
    }
}
