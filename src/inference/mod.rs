//! Floor 2: the runtime, from a GGUF file to a stream of text.
//!
//! Its inner floors, lowest first: `quant` (block formats), `gguf` (files), `tokenizer`, `backend`
//! (operations), `model` (the forward pass), `engine` (generation). Other rooms use this face.

pub mod backend;
pub mod engine;
pub mod gguf;
pub mod grammar;
pub mod model;
pub mod quant;
pub mod tokenizer;

pub use engine::sampler::{SamplerKind, SamplerOptions};
pub use engine::{
    EMBEDDED_MODEL, Finish, GenerateRequest, Generated, InferenceError, LoadOptions, MemoryPlan,
    Model, ModelSource, Perplexity, plan_memory,
};
pub use gguf::Gguf;
pub use grammar::{GrammarError, GrammarSpec, GrammarVocab, Matcher, Trigger};
pub use tokenizer::{ChatTemplate, EncodeOptions, Message, RenderOptions, TokenId, Tokenizer};
