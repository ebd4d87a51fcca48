//! A loaded model: file, tokenizer, template and backend, with one sequence of its own.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;

use super::device::Placed;
use super::draft_model::DraftModel;
use super::memory::prepare;
use super::runner::Runner;
use super::{InferenceError, LoadOptions, ModelInfo};
use crate::inference::backend::{AdapterIdx, Batch, LoadProgress, PageIdx, Span};
use crate::inference::gguf::Gguf;
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

impl ModelSource {
    /// Opens the file.
    ///
    /// # Errors
    /// If it cannot be read or breaks a rule of the format.
    pub fn open(&self) -> Result<Arc<Gguf>, InferenceError> {
        Ok(Arc::new(match self {
            ModelSource::File(path) => Gguf::open(path)?,
            ModelSource::Embedded => Gguf::from_static(EMBEDDED_MODEL)?,
        }))
    }
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ModelSource::File(path) => path.display().fmt(f),
            ModelSource::Embedded => f.write_str("default"),
        }
    }
}

/// A model that is ready to run: what is known of it, and what computes.
///
/// It can run one sequence by itself; an engine takes it apart to run many.
pub struct Model {
    pub(super) info: Arc<ModelInfo>,
    pub(super) runner: Box<dyn Runner>,
    /// Guesses for an engine.
    pub(super) draft: Option<DraftModel>,
    /// Every page of the cache, in order: this is the only sequence.
    pub(super) pages: Vec<PageIdx>,
    /// LoRA adapters in effect.
    adapters: Vec<(AdapterIdx, f32)>,
    /// Tokens whose keys and values are in the cache.
    pub(super) cached: Vec<TokenId>,
}

impl std::ops::Deref for Model {
    type Target = ModelInfo;
    fn deref(&self) -> &ModelInfo {
        &self.info
    }
}

impl Model {
    /// Reads, checks and prepares a model.
    ///
    /// # Errors
    /// If the file is broken or not supported, or the memory plan does not fit.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Model, InferenceError> {
        Model::load_counted(source, options, &LoadProgress::default())
    }

    /// As [`Model::load`], and counts on `progress` how far the weights are, those of the draft
    /// model with them.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_counted(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &LoadProgress,
    ) -> Result<Model, InferenceError> {
        let gguf = source.open()?;
        let mut prepared = prepare(&gguf, options)?;
        let template = ChatTemplate::from_gguf(gguf.metadata())?;
        // A large vocabulary takes one thread as long as many weights take all of them.
        let (tokenizer, placed) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::from_gguf(gguf.metadata()));
            let placed = prepared.place(&gguf, options, progress);
            (tokenizer.join().unwrap_or_else(|panic| resume_unwind(panic)), placed)
        });
        let (tokenizer, placed) = (tokenizer?, placed?);
        let Placed { runner, draft, adapters, backend_name, memory, report } = placed;
        let (ours, n_vocab) = ((gguf.metadata(), &tokenizer), prepared.hparams.n_vocab);
        let draft = prepared.draft.take().zip(draft);
        let draft = draft.map(|(draft, runner)| DraftModel::load(*draft, runner, ours, n_vocab));
        let draft = draft.transpose()?;
        let named = gguf.metadata().str("general.name")?;
        let name = match (source, named) {
            (_, Some(name)) if !name.is_empty() => name.to_owned(),
            (ModelSource::File(path), _) => {
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            (ModelSource::Embedded, _) => "default".to_owned(),
        };
        let info = ModelInfo {
            hparams: prepared.hparams,
            tokenizer,
            template,
            memory,
            name,
            n_ctx: prepared.n_ctx,
            n_batch: prepared.config.n_batch,
            n_outputs: prepared.config.n_outputs,
            n_page: prepared.config.n_page,
            backend_name,
            device: report,
            adapters: options.adapters.clone(),
            adapter_ggufs: adapters,
            draft: options.draft.clone(),
            gguf,
        };
        Ok(Model::from_parts(Arc::new(info), runner).with_draft(draft))
    }

    /// A model of its parts.
    pub(super) fn from_parts(info: Arc<ModelInfo>, runner: Box<dyn Runner>) -> Model {
        let pages = (0..info.n_page as PageIdx).collect();
        Model { info, runner, draft: None, pages, adapters: Vec::new(), cached: Vec::new() }
    }

    /// The same model with this or no draft model.
    pub(super) fn with_draft(self, draft: Option<DraftModel>) -> Model {
        Model { draft, ..self }
    }

    /// What is known of it.
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// What is known of it, what computes, and what guesses.
    pub(super) fn into_parts(self) -> (Arc<ModelInfo>, Box<dyn Runner>, Option<DraftModel>) {
        (self.info, self.runner, self.draft)
    }

    /// Loads a LoRA adapter; [`Model::set_adapters`] puts it into effect.
    ///
    /// # Errors
    /// If the file is not an adapter for this model.
    pub fn add_adapter(&mut self, gguf: &Gguf) -> Result<AdapterIdx, InferenceError> {
        Ok(self.runner.add_adapter(gguf, self.info.hparams.arch.name)?)
    }

    /// Puts adapters into effect at their scales, instead of those before; none of them for the
    /// model as it is in its file.
    pub fn set_adapters(&mut self, adapters: &[(AdapterIdx, f32)]) {
        if self.adapters != adapters {
            self.adapters = adapters.to_vec();
            self.truncate(0);
        }
    }

    /// Runs `tokens` from position `cached.len()` in chunks, and calls `each` with the row of every
    /// output: each position from `output_from` on, counted from the first of `tokens`.
    pub(super) fn advance(
        &mut self,
        tokens: &[TokenId],
        output_from: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), InferenceError> {
        let n_ctx = self.info.n_ctx;
        if self.cached.len() + tokens.len() > n_ctx {
            let n_prompt = self.cached.len() + tokens.len();
            return Err(InferenceError::PromptTooLong { n_prompt, n_ctx });
        }
        let mut start = 0;
        while start < tokens.len() {
            let mut n = self.info.n_batch.min(tokens.len() - start);
            // Where every row has an output, steps are as short as the output buffer.
            if start + n > output_from + self.info.n_outputs {
                n = n.min(output_from.saturating_sub(start).max(self.info.n_outputs));
            }
            let chunk = &tokens[start..start + n];
            let outputs: Vec<u32> =
                (output_from.saturating_sub(start).min(n)..n).map(|i| i as u32).collect();
            let pos = self.cached.len();
            let adapters = &self.adapters;
            let spans = [Span { pages: &self.pages, pos, n_tokens: n, n_prompt: n, adapters }];
            let batch = Batch { tokens: chunk, spans: &spans, outputs: &outputs };
            let rows = self.runner.forward(&batch)?;
            for (&i, row) in outputs.iter().zip(rows) {
                each(start + i as usize, row);
            }
            self.cached.extend_from_slice(chunk);
            start += n;
        }
        Ok(())
    }

    /// Runs at most a step of tokens, of a prompt or of an answer, with an output row of the last,
    /// of which `n_top` of the largest logits are fetched.
    pub(super) fn run_last(
        &mut self,
        tokens: &[TokenId],
        is_prompt: bool,
        n_top: usize,
    ) -> Result<(), InferenceError> {
        let (pos, n_tokens) = (self.cached.len(), tokens.len());
        let n_prompt = if is_prompt { n_tokens } else { 0 };
        let (pages, adapters) = (&self.pages, &self.adapters);
        let spans = [Span { pages, pos, n_tokens, n_prompt, adapters }];
        let batch = Batch { tokens, spans: &spans, outputs: &[n_tokens as u32 - 1] };
        self.runner.forward_top(&batch, &[n_top])?;
        self.cached.extend_from_slice(tokens);
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
