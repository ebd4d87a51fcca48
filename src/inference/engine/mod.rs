//! engine.
pub mod sampler;
