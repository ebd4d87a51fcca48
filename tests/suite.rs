//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod batch_invariance;
mod bench;
mod browser;
mod cli;
mod generation;
mod grammar;
mod jobs;
mod llama_api;
mod lora;
mod memory;
mod model_parity;
mod native;
mod openai;
mod pages;
mod perplexity;
mod prefixes;
mod pull;
mod quantize;
mod sampler;
mod serve;
mod server;
mod speculation;
mod support;
mod terminal;
mod tidy;
mod tokenizer;
