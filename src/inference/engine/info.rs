//! What is known of a loaded model and never changes: shared by the engine and those who ask.

use std::path::PathBuf;
use std::sync::Arc;

use super::{DeviceReport, MemoryPlan, ModelSource};
use crate::inference::gguf::Gguf;
use crate::inference::model::Hparams;
use crate::inference::tokenizer::{ChatTemplate, Tokenizer};

/// A loaded model's file, numbers, vocabulary and template.
pub struct ModelInfo {
    pub(super) gguf: Arc<Gguf>,
    pub(super) hparams: Hparams,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) memory: MemoryPlan,
    pub(super) name: String,
    pub(super) n_ctx: usize,
    pub(super) n_batch: usize,
    pub(super) n_outputs: usize,
    pub(super) n_page: usize,
    pub(super) backend_name: String,
    pub(super) device: DeviceReport,
    pub(super) adapters: Vec<PathBuf>,
    /// The adapters as they were read.
    pub(super) adapter_ggufs: Vec<Gguf>,
    pub(super) draft: Option<ModelSource>,
}

impl ModelInfo {
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

    /// Positions of one sequence's context.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// What was planned.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.memory
    }

    /// What computes, `cpu (avx2, 4 threads)` for example; a GPU with its driver.
    pub fn backend_name(&self) -> &str {
        &self.backend_name
    }

    /// Where it runs, and why there.
    pub fn device(&self) -> &DeviceReport {
        &self.device
    }

    /// Files of the LoRA adapters that were loaded, by index.
    pub fn adapters(&self) -> &[PathBuf] {
        &self.adapters
    }

    /// The draft model that guesses for it, if one was loaded.
    pub fn draft(&self) -> Option<&ModelSource> {
        self.draft.as_ref()
    }
}
