//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod batch_invariance;
mod cli;
mod model_parity;
mod pull;
mod sampler;
mod support;
mod tidy;
mod tokenizer;
