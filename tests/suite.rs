//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod sampler;
mod tokenizer;
