//! JetForge: the firmware of a code-generation appliance, as a library behind one binary.
//!
//! Rooms stand on floors and import only the faces of rooms strictly below; the map is in
//! ARCHITECTURE.md and `tests/tidy.rs` holds it.

pub mod app;
pub mod base;
pub mod bench;
pub mod cli;
pub mod discovery;
pub mod hosting;
pub mod hub;
pub mod inference;
pub mod jobs;
pub mod library;
pub mod pair;
pub mod power;
pub mod quantize;
pub mod seal;
pub mod server;
pub mod store;
pub mod sync;
pub mod tls;
pub mod update;
