//! Texts as vectors of length 1: what dialects do between their two ends.

use super::error::ApiError;
use super::generate::blocking;
use super::state::Server;
use crate::hosting::Lease;
use crate::inference::{InferenceError, Pooling, TokenId};

/// Vectors, and how many tokens they are of.
pub(super) struct Embedded {
    pub model: String,
    pub vectors: Vec<Vec<f32>>,
    pub n_tokens: usize,
}

/// One vector for each text, whose tokens `read` makes elsewhere than on the threads that serve
/// connections.
///
/// # Errors
/// A model that is here to write, one that pools nothing, and what `read` or the engine says.
pub(super) async fn embedded(
    server: &Server,
    lease: Lease,
    read: impl FnOnce(&Lease) -> Result<Vec<Vec<TokenId>>, ApiError> + Send + 'static,
) -> Result<Embedded, ApiError> {
    let options = &server.0.options;
    // An encoder does nothing else, so it needs no option.
    if !options.serves_embeddings && lease.info().hparams().arch.causal {
        let message = "this service makes no embeddings of a model that writes; start it with \
                       --embeddings";
        return Err(ApiError::not_supported(message));
    }
    let pooling = lease.info().pooling_of(options.pooling);
    if pooling == Pooling::None {
        let message = "nothing is pooled here, so a text has no one vector; use /embedding";
        return Err(ApiError::invalid(message));
    }
    let (inputs, lease) = blocking(move || Ok((read(&lease)?, lease))).await?;
    let n_tokens = inputs.iter().map(Vec::len).sum();
    let replies: Vec<_> = inputs.into_iter().map(|tokens| lease.embed(tokens, pooling)).collect();
    let mut vectors = Vec::with_capacity(replies.len());
    for reply in replies {
        vectors.push(normalized(reply.await?.into_iter().next().unwrap_or_default()));
    }
    Ok(Embedded { model: lease.name().to_owned(), vectors, n_tokens })
}

/// Refuses a text without tokens, and one with more than fit.
///
/// # Errors
/// See above, as an error of the field `param`.
pub(super) fn check(tokens: &[TokenId], n_ctx: usize, param: &str) -> Result<(), ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::field(param, format!("{param} holds an empty text")));
    }
    if tokens.len() > n_ctx {
        let too_long = InferenceError::PromptTooLong { n_prompt: tokens.len(), n_ctx };
        return Err(ApiError::from(&too_long).at(param));
    }
    Ok(())
}

/// The vector at length 1; one without a direction stays.
pub(super) fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::normalized;

    #[test]
    fn vectors_have_length_one() {
        assert_eq!(normalized(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalized(vec![0.0]), [0.0]);
    }
}
