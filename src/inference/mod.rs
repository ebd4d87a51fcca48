//! Floor 2: the runtime, from a GGUF file to a stream of text.

pub mod backend;
pub mod engine;
pub mod gguf;
pub mod model;
pub mod quant;
pub mod tokenizer;
