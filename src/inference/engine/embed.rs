//! Embeddings and reranking: a text becomes a vector, a question and a text become a score.
//!
//! ```text
//! encoder        rows of the last layer           first row, mean, last row
//! other models   rows before the output matrix    the same choice; each row knows what came before
//! reranker       [CLS] query [SEP] document ..    first row -> head -> score
//! ```

use super::{InferenceError, Model};
use crate::inference::backend::cpu::CpuBackend;
use crate::inference::backend::{Batch, Span};
use crate::inference::model::Pooling;
use crate::inference::tokenizer::{EncodeOptions, TokenId};

impl Model {
    /// The embedding of a text, `[n_embd]`, not normalised. Without `pooling` it is that of the
    /// file; where the file says nothing, an encoder gives its first row and other models the last.
    ///
    /// # Errors
    /// If the text is empty or does not fit the context.
    pub fn embed(
        &mut self,
        text: &str,
        pooling: Option<Pooling>,
    ) -> Result<Vec<f32>, InferenceError> {
        let options = EncodeOptions { add_special: true, parse_special: false };
        let tokens = self.tokenizer.encode(text, options)?;
        let n = tokens.len();
        if n == 0 {
            return Err(InferenceError::PromptEmpty);
        }
        let pooling = match pooling.unwrap_or(self.hparams.pooling) {
            Pooling::None | Pooling::Rank if self.hparams.arch.causal => Pooling::Last,
            Pooling::None | Pooling::Rank => Pooling::Cls,
            asked => asked,
        };
        let mut pooled = vec![0f32; self.hparams.n_embd];
        let first = if pooling == Pooling::Last { n - 1 } else { 0 };
        self.truncate(0);
        self.advance_with(CpuBackend::embed, &tokens, first, |i, row| match pooling {
            Pooling::Mean => pooled.iter_mut().zip(row).for_each(|(p, x)| *p += x / n as f32),
            Pooling::Last => pooled.copy_from_slice(row),
            _ if i == 0 => pooled.copy_from_slice(row),
            _ => {}
        })?;
        self.truncate(0);
        Ok(pooled)
    }

    /// How well `document` answers `query`: the score of the model's head, the higher the better,
    /// of no fixed range.
    ///
    /// # Errors
    /// If the model has no such head, or both texts together do not fit the context.
    pub fn rerank(&mut self, query: &str, document: &str) -> Result<f32, InferenceError> {
        if self.hparams.pooling != Pooling::Rank || self.hparams.arch.causal {
            return Err(InferenceError::NotReranker);
        }
        let tokens: Vec<TokenId> = self.tokenizer.pair_prompt(query, document)?;
        let (n_prompt, n_ctx) = (tokens.len(), self.n_ctx);
        if n_prompt == 0 {
            return Err(InferenceError::PromptEmpty);
        }
        if n_prompt > n_ctx {
            return Err(InferenceError::PromptTooLong { n_prompt, n_ctx });
        }
        self.truncate(0);
        let spans = [Span { pages: &self.pages, pos: 0, n_tokens: n_prompt }];
        let batch = Batch { tokens: &tokens, spans: &spans, outputs: &[0] };
        let rows = self.backend.forward(&batch)?;
        // Of several labels the first is the one that counts, as in llama.cpp's server.
        let score = rows.first().and_then(|row| row.first());
        score.copied().ok_or(InferenceError::NotReranker)
    }
}
