//! The engine: a loaded model that answers many at once.
//!
//! ```text
//! Model::load      file -> device, memory plan -> backend, tokenizer, template
//! Engine::start    a thread that steps: scheduler -> batch -> model -> samplers -> events
//! Engine::submit   a request -> a stream of events
//! Model::generate  one answer without a thread, for the command line
//! Model::embed     text -> rows before the output matrix -> one vector
//! Model::rerank    query and document -> score
//! ```

mod answer;
mod core;
mod device;
mod disk_link;
mod draft;
mod draft_model;
mod embed;
mod event;
mod generate;
mod handle;
mod info;
mod loaded;
mod memory;
mod options;
mod pace;
mod pages;
mod prefix_cache;
mod reply;
mod request;
mod runner;
pub mod sampler;
mod scheduler;
mod score;
mod scripted;
mod sequence;
mod slots;
mod split;
mod stats;
mod stop;
mod tempo;

pub use device::{DeviceChoice, DeviceReport, find_gpu};
pub use event::{Event, EventStream, Finish, Timings, TokenEvent};
pub use generate::{GenerateRequest, Generated};
pub use handle::{Engine, SlotFile, SlotView};
pub use info::ModelInfo;
pub use loaded::{EMBEDDED_MODEL, Model, ModelSource};
pub use memory::{CpuLayers, LoadOptions, MemoryPlan, plan_memory};
pub use options::{EngineOptions, N_DISK_MIN};
pub use reply::Reply;
pub use request::{GrammarRequest, Priority, Request, SpeculationOptions, TenantId};
pub use sampler::SamplerOptions;
pub use score::Perplexity;
pub use scripted::Script;
pub use stats::{EnginePhase, EngineStats, HISTOGRAM_BOUNDS_S, Histogram, RequestTimeline};
pub use tempo::Tempo;

use std::time::Duration;

use self::sampler::SamplerError;
use super::backend::BackendError;
use super::gguf::GgufError;
use super::grammar::GrammarError;
use super::model::ModelError;
use super::tokenizer::{TemplateError, TokenizerError, VocabMismatch};

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
    /// The draft model cannot be used.
    #[error("draft model {name}: {source}")]
    Draft {
        /// Its file.
        name: String,
        /// Why.
        source: Box<InferenceError>,
    },
    /// The draft model has another vocabulary than the model.
    #[error("draft model {name} has another vocabulary: {mismatch}")]
    DraftVocab {
        /// Its file.
        name: String,
        /// What differs.
        mismatch: VocabMismatch,
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
    /// The engine's thread could not be started.
    #[error("the engine's thread could not be started")]
    Thread(#[source] std::io::Error),
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

impl InferenceError {
    /// Whether less of something else in memory would help.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            InferenceError::Memory { .. } => true,
            InferenceError::Backend(error) => error.is_gpu_memory(),
            InferenceError::Draft { source, .. } => source.is_out_of_memory(),
            _ => false,
        }
    }
}

fn fits_text(n_ctx: Option<u32>) -> String {
    match n_ctx {
        Some(n) => format!("--ctx-size {n} would fit"),
        None => "no context fits: use a smaller model or a smaller quantisation".to_owned(),
    }
}

/// Why a request was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It cannot be run on this model.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// A sampling option is out of range.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The grammar cannot be used.
    #[error("grammar: {0}")]
    Grammar(#[from] GrammarError),
    /// Too many wait.
    #[error("{n_waiting} requests wait already; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// Requests that wait.
        n_waiting: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The engine is about to end.
    #[error("the engine is stopping")]
    Stopping,
    /// No answers, or too many at once.
    #[error("{got} answers were asked for; 1 to {max} are possible")]
    Answers {
        /// Asked for.
        got: usize,
        /// Limit.
        max: usize,
    },
    /// A token that the model does not know.
    #[error("token {token} is outside the vocabulary of {n_vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// An adapter that was not loaded.
    #[error("there is no adapter {adapter}; {n_adapter} were loaded")]
    Adapter {
        /// Asked for.
        adapter: usize,
        /// Loaded.
        n_adapter: usize,
    },
    /// A step could not run.
    #[error("a step of the model failed: {reason}")]
    Step {
        /// What the backend says.
        reason: String,
    },
    /// No such slot.
    #[error("there is no slot {slot_idx}; there are {n_slot}")]
    Slot {
        /// Asked for.
        slot_idx: usize,
        /// Slots.
        n_slot: usize,
    },
    /// A slot's file could not be used.
    #[error("slot file {path}: {reason}")]
    SlotFile {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
