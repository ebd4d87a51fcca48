//! Floor 5: the service. HTTP in, events of the engine out.
//!
//! ```text
//! listener -> limits, keys, Host and Origin -> a dialect parses its wire -> Engine::submit
//!          <- JSON or server-sent events <- the dialect's words <- events
//! ```
//!
//! One file per dialect (`openai`, `llama`), each of which only translates between its wire and
//! the engine's one request type.

mod error;
mod fields;
mod generate;
mod health;
mod listener;
mod llama;
mod patient;
mod router;
mod sse;
mod state;

pub use error::ApiError;
pub use listener::{ListenOptions, Listener};
pub use router::router;
pub use state::{Caller, ServeOptions, Server};
