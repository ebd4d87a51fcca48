//! Everything that crosses rooms, in one binary; the modules are its table of contents.

mod model_parity;
mod sampler;
mod support;
mod tidy;
