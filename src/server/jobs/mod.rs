//! Jobs over HTTP: taken in, run through the dialects as any request, and told of.
//!
//! ```text
//! POST /v1/jobs, Prefer: respond-async, Idempotency-Key, on_disconnect: detach, named tasks
//!   -> on the disk -> acknowledged -> the runner posts its body to its endpoint, in this process
//!   -> the tap hears the tokens -> pieces on the disk -> readers of /v1/jobs/ID/events
//! ```
//!
//! A job is a path and a body. Whatever dialect answers that path answers the job: a line of
//! [`ENDPOINTS`] is all that a new one needs.

mod callback;
mod door;
mod events;
mod hand;
mod promise;
mod recall;
mod routes;
mod runner;
pub(super) mod tap;
#[cfg(test)]
mod tests;

pub(super) use door::Door;
pub use hand::{Holder, JobHand};
pub use promise::JOB;
pub(super) use promise::{asks_for_job, keep_promise};
pub(super) use routes::routes;
pub use runner::JobRunner;

/// Paths that jobs may be for, and a short name where there is one.
const ENDPOINTS: [(&str, &str); 23] = [
    ("/v1/chat/completions", "chat"),
    ("/v1/completions", "completions"),
    ("/completion", "completion"),
    ("/infill", "infill"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/rerank", "rerank"),
    ("/v1/messages", "messages"),
    ("/generate", "generate"),
    ("/refactor", "refactor"),
    ("/explain", "explain"),
    ("/test", "test"),
    ("/api/generate", ""),
    ("/api/chat", ""),
    ("/api/embed", ""),
    ("/api/embeddings", ""),
    ("/chat/completions", ""),
    ("/completions", ""),
    ("/embedding", ""),
    ("/embeddings", ""),
    ("/rerank", ""),
    ("/reranking", ""),
    ("/v1/reranking", ""),
    ("/tokenize", ""),
];

/// The path of a job's endpoint, by its path or its short name.
fn endpoint(name: &str) -> Option<&'static str> {
    let is_it =
        |(path, short): &&(&str, &str)| *path == name || (!short.is_empty() && *short == name);
    ENDPOINTS.iter().find(is_it).map(|(path, _)| *path)
}
