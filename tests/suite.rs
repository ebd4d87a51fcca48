//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod cli;
mod generation;
mod llama_api;
mod model_parity;
mod perplexity;
mod pull;
mod sampler;
mod support;
mod tidy;
mod tokenizer;
