//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod cli;
mod grammar;
mod model_parity;
mod pull;
mod sampler;
mod support;
mod tidy;
mod tokenizer;
