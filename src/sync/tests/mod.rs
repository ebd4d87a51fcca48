//! The machine under everything that can happen to it.

mod memory;
mod simulation;
mod store;
