//! The machine under everything that can happen to it.

mod blocks;
mod files;
mod memory;
pub mod random;
mod simulation;
mod store;
