//! The engine: a loaded model that generates text.
//!
//! ```text
//! Model::load      file -> memory plan -> backend, tokenizer, template
//! Model::generate  prompt -> prefill in chunks -> sampler -> stop strings -> UTF-8 text
//! Model::embed     text -> rows before the output matrix -> one vector
//! Model::rerank    query and document -> score
//! ```

mod embed;
mod generate;
mod loaded;
mod memory;
pub mod sampler;
mod score;
mod stop;

pub use generate::{Finish, GenerateRequest, Generated};
pub use loaded::{EMBEDDED_MODEL, Model, ModelSource};
pub use memory::{LoadOptions, MemoryPlan, plan_memory};
pub use score::Perplexity;

use self::sampler::SamplerError;
use super::backend::BackendError;
use super::gguf::GgufError;
use super::model::ModelError;
use super::tokenizer::{TemplateError, TokenizerError};

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// The file could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file is not a model that the runtime knows.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The vocabulary could not be built, or a text not encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is broken.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The backend could not be made or run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A sampling option is out of range.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The model does not fit.
    #[error(
        "the model does not fit: {plan}, but {} MiB are available, {} MiB too few; {}",
        plan.available_bytes >> 20,
        missing_bytes.div_ceil(1 << 20),
        fits_text(*n_ctx_fits)
    )]
    Memory {
        /// What was planned.
        plan: Box<MemoryPlan>,
        /// Bytes beyond what there is.
        missing_bytes: u64,
        /// The largest context that fits, if any does.
        n_ctx_fits: Option<u32>,
    },
    /// More context than learned positions.
    #[error("a context of {asked} positions, but the model knows {trained}; ask for fewer")]
    ContextTrained {
        /// Asked for.
        asked: usize,
        /// Learned.
        trained: usize,
    },
    /// The prompt has no room.
    #[error(
        "the prompt has {n_prompt} tokens and the context {n_ctx}; shorten it or use a larger \
         --ctx-size"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Positions of the context.
        n_ctx: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty")]
    PromptEmpty,
    /// An encoder was asked to write.
    #[error("this model is an encoder: it makes embeddings, not text")]
    NotGenerative,
    /// A model without a classification head was asked for a score.
    #[error("this model is no reranker: it has no head that scores a query and a document")]
    NotReranker,
    /// Too few tokens for a measurement.
    #[error("{n_tokens} tokens are too few: perplexity with a context of {n_ctx} needs {needed}")]
    TextTooShort {
        /// Tokens of the text.
        n_tokens: usize,
        /// Context of the measurement.
        n_ctx: usize,
        /// Tokens that it needs.
        needed: usize,
    },
}

fn fits_text(n_ctx: Option<u32>) -> String {
    match n_ctx {
        Some(n) => format!("--ctx-size {n} would fit"),
        None => "no context fits: use a smaller model or a smaller quantisation".to_owned(),
    }
}
