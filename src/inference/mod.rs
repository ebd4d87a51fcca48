//! Floor 2: the runtime, from a GGUF file to a stream of text.
//!
//! Its inner floors, lowest first: `quant` (block formats), `gguf` (files), `tokenizer`,
//! `grammar` (structured output), `backend` (operations), `model` (the forward pass), `engine`
//! (generation). Other rooms use this face.

pub mod backend;
pub mod disk_cache;
pub mod engine;
pub mod gguf;
pub mod grammar;
pub mod model;
mod native;
pub mod quant;
pub mod tokenizer;

pub use backend::cases::MatMulCase;
pub use backend::cpu::{Isa, probe};
pub use backend::cuda::launch::ProductCost;
pub use backend::{BackendError, LoadProgress};
pub use disk_cache::{DiskCache, DiskCacheError, DiskCacheOptions, DiskCacheStats, Miss};
pub use engine::sampler::{SamplerKind, SamplerOptions};
pub use engine::{
    CpuLayers, DeviceChoice, DeviceReport, EMBEDDED_MODEL, Engine, EngineError, EngineOptions,
    EnginePhase, EngineStats, Event, EventStream, Finish, GenerateRequest, Generated,
    GrammarRequest, HISTOGRAM_BOUNDS_S, Histogram, InferenceError, LoadOptions, MemoryPlan, Model,
    ModelInfo, ModelSource, N_DISK_MIN, Perplexity, Priority, Reply, Request, RequestTimeline,
    Script, SlotFile, SlotView, SpeculationOptions, Tempo, TenantId, Timings, TokenEvent, find_gpu,
    plan_memory,
};
pub use gguf::Gguf;
pub use grammar::{GrammarError, GrammarSpec, GrammarVocab, Matcher, Trigger};
pub use model::Pooling;
pub use native::{NativeError, NativeTensor, NativeWriter, Target, convert, outline};
pub use quant::Form;
pub use quant::TensorType;
pub use tokenizer::{
    ChatTemplate, EncodeOptions, Message, RenderOptions, TokenId, Tokenizer, Utf8Stream,
};
