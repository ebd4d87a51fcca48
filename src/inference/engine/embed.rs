//! Embeddings and reranking: a text becomes a vector, a question and a text become a score.
//!
//! ```text
//! encoder        rows of the last layer           first row, mean, last row, or each
//! other models   rows before the output matrix    the same choice; each row knows what came before
//! reranker       [CLS] query [SEP] document ..    first row -> head -> score
//! ```

use super::core::Core;
use super::info::ModelInfo;
use super::runner::Runner;
use super::{EngineError, InferenceError, Model};
use crate::inference::backend::{Batch, PAGE_LEN, PageIdx, Span};
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
        let pooling = self.info.pooling_of(pooling);
        self.truncate(0);
        let runner = self.runner.as_mut();
        let rows = embed_tokens(&self.info, runner, &self.pages, &tokens, pooling)?;
        rows.into_iter().next().ok_or(InferenceError::PromptEmpty)
    }

    /// How well `document` answers `query`: the score of the model's head, the higher the better,
    /// of no fixed range.
    ///
    /// # Errors
    /// If the model has no such head, or both texts together do not fit the context.
    pub fn rerank(&mut self, query: &str, document: &str) -> Result<f32, InferenceError> {
        if !self.info.is_reranker() {
            return Err(InferenceError::NotReranker);
        }
        let tokens = self.tokenizer.pair_prompt(query, document)?;
        self.truncate(0);
        score_tokens(&self.info, self.runner.as_mut(), &self.pages, &tokens)
    }
}

impl Core {
    /// The embedding of `tokens`, `[1, n_embd]`, or `[tokens, n_embd]` without pooling. `None`
    /// while sequences hold the pages that it needs.
    pub fn embed(
        &mut self,
        tokens: &[TokenId],
        pooling: Pooling,
    ) -> Option<Result<Vec<Vec<f32>>, EngineError>> {
        self.with_pages(tokens, |core, pages| {
            embed_tokens(&core.info, core.runner.as_mut(), pages, tokens, pooling)
        })
    }

    /// The score of a query and a document that `tokens` hold.
    pub fn rerank(&mut self, tokens: &[TokenId]) -> Option<Result<f32, EngineError>> {
        self.with_pages(tokens, |core, pages| {
            score_tokens(&core.info, core.runner.as_mut(), pages, tokens)
        })
    }

    /// Runs something in pages that are free again afterwards.
    fn with_pages<T>(
        &mut self,
        tokens: &[TokenId],
        run: impl FnOnce(&mut Core, &[PageIdx]) -> Result<T, InferenceError>,
    ) -> Option<Result<T, EngineError>> {
        let n = tokens.len().min(self.info.n_ctx).div_ceil(PAGE_LEN);
        let mut pages = Vec::with_capacity(n);
        while pages.len() < n {
            match self.pool.alloc() {
                Some(page) => pages.push(page),
                None if self.cache.evict(&mut self.pool) => {}
                None => break,
            }
        }
        let result = (pages.len() == n).then(|| run(self, &pages).map_err(EngineError::from));
        pages.into_iter().for_each(|page| self.pool.release(page));
        result
    }
}

impl ModelInfo {
    /// The pooling to use where `asked` is wished: an encoder without one gives its first row,
    /// other models the last.
    pub fn pooling_of(&self, asked: Option<Pooling>) -> Pooling {
        match asked.unwrap_or(self.hparams.pooling) {
            Pooling::None if asked.is_some() => Pooling::None,
            Pooling::None | Pooling::Rank if self.hparams.arch.causal => Pooling::Last,
            Pooling::None | Pooling::Rank => Pooling::Cls,
            other => other,
        }
    }

    /// Whether it scores a query and a document.
    pub fn is_reranker(&self) -> bool {
        self.hparams.pooling == Pooling::Rank && !self.hparams.arch.causal
    }
}

/// Runs `tokens` from position 0 and pools their rows.
fn embed_tokens(
    info: &ModelInfo,
    runner: &mut dyn Runner,
    pages: &[PageIdx],
    tokens: &[TokenId],
    pooling: Pooling,
) -> Result<Vec<Vec<f32>>, InferenceError> {
    check(info, tokens)?;
    let n = tokens.len();
    let mut pooled = vec![0f32; info.hparams.n_embd];
    let mut rows = Vec::new();
    // An encoder sees its whole text at once; its batch is as long as its context.
    let step = if info.hparams.arch.causal { info.n_batch.min(info.n_outputs) } else { n };
    for pos in (0..n).step_by(step.max(1)) {
        let chunk = &tokens[pos..(pos + step).min(n)];
        let n_tokens = chunk.len();
        let spans = [Span { pages, pos, n_tokens, n_prompt: n_tokens, adapters: &[] }];
        let outputs: Vec<u32> = (0..chunk.len() as u32).collect();
        let batch = Batch { tokens: chunk, spans: &spans, outputs: &outputs };
        for (i, row) in runner.embed(&batch)?.into_iter().enumerate() {
            match pooling {
                Pooling::None => rows.push(row.to_vec()),
                Pooling::Mean => pooled.iter_mut().zip(row).for_each(|(p, x)| *p += x / n as f32),
                Pooling::Last if pos + i + 1 == n => pooled.copy_from_slice(row),
                Pooling::Cls | Pooling::Rank if pos + i == 0 => pooled.copy_from_slice(row),
                _ => {}
            }
        }
    }
    Ok(if pooling == Pooling::None { rows } else { vec![pooled] })
}

/// The score of a reranker's head.
fn score_tokens(
    info: &ModelInfo,
    runner: &mut dyn Runner,
    pages: &[PageIdx],
    tokens: &[TokenId],
) -> Result<f32, InferenceError> {
    if !info.is_reranker() {
        return Err(InferenceError::NotReranker);
    }
    check(info, tokens)?;
    let n_tokens = tokens.len();
    let spans = [Span { pages, pos: 0, n_tokens, n_prompt: n_tokens, adapters: &[] }];
    let rows = runner.forward(&Batch { tokens, spans: &spans, outputs: &[0] })?;
    // Of several labels the first is the one that counts, as in llama.cpp's server.
    let score = rows.first().and_then(|row| row.first());
    score.copied().ok_or(InferenceError::NotReranker)
}

fn check(info: &ModelInfo, tokens: &[TokenId]) -> Result<(), InferenceError> {
    let (n_prompt, n_ctx) = (tokens.len(), info.n_ctx);
    if n_prompt == 0 {
        return Err(InferenceError::PromptEmpty);
    }
    if n_prompt > n_ctx {
        return Err(InferenceError::PromptTooLong { n_prompt, n_ctx });
    }
    Ok(())
}
