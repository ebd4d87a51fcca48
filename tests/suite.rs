//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod cli;
mod lora;
mod model_parity;
mod pages;
mod pull;
mod sampler;
mod support;
mod tidy;
mod tokenizer;
