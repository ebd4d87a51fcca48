//! A loaded model: file, tokenizer, template and backend, with one sequence of its own.

use std::path::PathBuf;
use std::sync::Arc;

use super::memory::prepare;
use super::{InferenceError, LoadOptions, MemoryPlan};
use crate::inference::backend::cpu::CpuBackend;
use crate::inference::backend::{BackendError, Batch, PageIdx, Span};
use crate::inference::gguf::Gguf;
use crate::inference::model::Hparams;
use crate::inference::tokenizer::{ChatTemplate, TokenId, Tokenizer};

/// The model that is part of the program.
pub static EMBEDDED_MODEL: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.gguf"));

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A GGUF file, or the first shard of one.
    File(PathBuf),
    /// [`EMBEDDED_MODEL`].
    Embedded,
}

/// Runs a batch on the backend for its output rows.
pub(super) type Run =
    for<'a, 'b> fn(&'a mut CpuBackend, &Batch<'b>) -> Result<Vec<&'a [f32]>, BackendError>;

/// A model that is ready to run.
pub struct Model {
    pub(super) gguf: Arc<Gguf>,
    pub(super) hparams: Hparams,
    pub(super) tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    pub(super) backend: CpuBackend,
    memory: MemoryPlan,
    name: String,
    pub(super) n_ctx: usize,
    pub(super) n_batch: usize,
    n_outputs: usize,
    /// Every page of the cache, in order: this is the only sequence.
    pub(super) pages: Vec<PageIdx>,
    /// Tokens whose keys and values are in the cache.
    pub(super) cached: Vec<TokenId>,
}

impl Model {
    /// Reads, checks and prepares a model.
    ///
    /// # Errors
    /// If the file is broken or not supported, or the memory plan does not fit.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Model, InferenceError> {
        let gguf = Arc::new(match source {
            ModelSource::File(path) => Gguf::open(path)?,
            ModelSource::Embedded => Gguf::from_static(EMBEDDED_MODEL)?,
        });
        let prepared = prepare(&gguf, options)?;
        let available = options.memory_max_bytes.unwrap_or(u64::MAX);
        let memory = prepared.fit(&gguf, available)?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let template = ChatTemplate::from_gguf(gguf.metadata())?;
        let config = prepared.config;
        let named = gguf.metadata().str("general.name")?;
        let name = match (source, named) {
            (_, Some(name)) if !name.is_empty() => name.to_owned(),
            (ModelSource::File(path), _) => {
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            (ModelSource::Embedded, _) => "default".to_owned(),
        };
        Ok(Model {
            hparams: prepared.hparams,
            tokenizer,
            template,
            memory,
            name,
            n_ctx: prepared.n_ctx,
            n_batch: config.n_batch,
            n_outputs: config.n_outputs,
            pages: (0..config.n_page as PageIdx).collect(),
            backend: CpuBackend::new(prepared.plan, Arc::clone(&gguf), config)?,
            cached: Vec::new(),
            gguf,
        })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The model's numbers.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the file has one or its family is known.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The name in the file, else the file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Positions of the context.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// What was planned.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.memory
    }

    /// What computes, `cpu (avx2, 4 threads)` for example.
    pub fn backend_name(&self) -> String {
        self.backend.describe()
    }

    /// Runs `tokens` from position `cached.len()` in chunks, and calls `each` with the row of every
    /// output: each position from `output_from` on, counted from the first of `tokens`.
    pub(super) fn advance(
        &mut self,
        tokens: &[TokenId],
        output_from: usize,
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), InferenceError> {
        self.advance_with(CpuBackend::forward, tokens, output_from, each)
    }

    /// [`Model::advance`] with another result of the backend, such as [`CpuBackend::embed`].
    pub(super) fn advance_with(
        &mut self,
        run: Run,
        tokens: &[TokenId],
        output_from: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), InferenceError> {
        let n_ctx = self.n_ctx;
        if self.cached.len() + tokens.len() > n_ctx {
            let n_prompt = self.cached.len() + tokens.len();
            return Err(InferenceError::PromptTooLong { n_prompt, n_ctx });
        }
        let mut start = 0;
        while start < tokens.len() {
            let mut n = self.n_batch.min(tokens.len() - start);
            // Where every row has an output, steps are as short as the output buffer.
            if start + n > output_from + self.n_outputs {
                n = n.min(output_from.saturating_sub(start).max(self.n_outputs));
            }
            let chunk = &tokens[start..start + n];
            let outputs: Vec<u32> =
                (output_from.saturating_sub(start).min(n)..n).map(|i| i as u32).collect();
            let pos = self.cached.len();
            let spans = [Span { pages: &self.pages, pos, n_tokens: n }];
            let batch = Batch { tokens: chunk, spans: &spans, outputs: &outputs };
            let rows = run(&mut self.backend, &batch)?;
            for (&i, row) in outputs.iter().zip(rows) {
                each(start + i as usize, row);
            }
            self.cached.extend_from_slice(chunk);
            start += n;
        }
        Ok(())
    }

    /// Forgets cached tokens from `n` on.
    pub(super) fn truncate(&mut self, n: usize) {
        self.cached.truncate(n);
    }

    /// Teacher-forced logits `[tokens, n_vocab]`.
    ///
    /// # Errors
    /// If there are more tokens than the context holds, one is outside the vocabulary, or the
    /// model is an encoder.
    pub fn logits(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>, InferenceError> {
        if !self.hparams.arch.causal {
            return Err(InferenceError::NotGenerative);
        }
        self.truncate(0);
        let mut logits = Vec::with_capacity(tokens.len() * self.hparams.n_vocab);
        self.advance(tokens, 0, |_, row| logits.extend_from_slice(row))?;
        Ok(logits)
    }
}
