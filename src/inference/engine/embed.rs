//! Embeddings: a text through the model at once, its rows pooled.

use super::core::Core;
use super::{EngineError, InferenceError};
use crate::inference::backend::{Batch, PAGE_LEN, Span};
use crate::inference::model::Pooling;
use crate::inference::tokenizer::TokenId;

impl Core {
    /// The embedding of `tokens`, `[1, n_embd]`, or `[tokens, n_embd]` without pooling.
    pub fn embed(
        &mut self,
        tokens: &[TokenId],
        pooling: Pooling,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        if self.info.hparams.arch.causal {
            return Err(EngineError::NotEmbedding);
        }
        let (n_prompt, n_ctx) = (tokens.len(), self.info.n_ctx);
        if n_prompt == 0 {
            return Err(InferenceError::PromptEmpty.into());
        }
        if n_prompt > n_ctx {
            return Err(InferenceError::PromptTooLong { n_prompt, n_ctx }.into());
        }
        let pages: Vec<u32> = (0..n_prompt.div_ceil(PAGE_LEN) as u32).collect();
        let outputs: Vec<u32> = (0..n_prompt as u32).collect();
        let spans = [Span { pages: &pages, pos: 0, n_tokens: n_prompt }];
        let batch = Batch { tokens, spans: &spans, outputs: &outputs };
        let rows = self.runner.forward(&batch).map_err(InferenceError::from)?;
        Ok(pool(&rows, pooling))
    }
}

/// Rows `[tokens, n_embd]` as one vector, or all of them.
fn pool(rows: &[&[f32]], pooling: Pooling) -> Vec<Vec<f32>> {
    match pooling {
        Pooling::None => rows.iter().map(|row| row.to_vec()).collect(),
        Pooling::Mean => {
            let mut mean = vec![0f32; rows[0].len()];
            for row in rows {
                mean.iter_mut().zip(*row).for_each(|(m, x)| *m += x / rows.len() as f32);
            }
            vec![mean]
        }
        Pooling::Last => vec![rows[rows.len() - 1].to_vec()],
        Pooling::Cls | Pooling::Rank => vec![rows[0].to_vec()],
    }
}
