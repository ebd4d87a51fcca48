//! Floor 5: the service. HTTP in, events of the engine out.
//!
//! ```text
//! listener -> limits, keys, Host and Origin -> a dialect parses its wire -> Engine::submit
//!          <- JSON or server-sent events <- the dialect's words <- events
//! ```
//!
//! One folder or file per dialect (`openai`, `llama`, `anthropic`, `ollama`, `tabby`, `autocoder`),
//! each of which only translates between its wire and the engine's one request type.

mod access;
mod account;
mod afar;
mod anthropic;
mod autocoder;
mod cache;
mod chat;
mod client;
mod config;
mod constraint;
mod error;
mod fields;
mod forms;
mod forward;
pub mod frames;
mod gate;
mod generate;
mod health;
mod intake;
mod jobs;
mod journal;
mod keys;
mod listener;
mod live;
mod llama;
mod logs;
mod metrics;
mod ollama;
mod openai;
mod openapi;
mod page;
mod pairing;
mod patient;
mod power;
mod prompts;
mod quota;
mod report;
mod request;
mod ring;
mod router;
mod sampling;
mod settings;
mod shelf;
mod sockets;
mod sse;
mod state;
mod status;
mod sync;
mod tabby;
mod talk;
mod timeline;
mod vectors;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use cache::CacheOptions;
pub use client::{Client, ClientError};
pub use config::ServerConfig;
pub use error::ApiError;
pub use forward::{
    Admitted, Answering, CLASS, Forward, Here, TENANT, Untaken, Unwanted, Withdrawing, Withdrawn,
    class_name,
};
pub use gate::{Gate, GateOptions};
pub use jobs::{JOB, JobHand, JobRunner};
use keys::random_key;
pub use keys::{Class, Grant, KeyFile, KeyRecord, Scope, peer_key_name};
pub use listener::{ListenOptions, Listener};
pub use logs::{LogFormat, flush_logs, redacted, set_log_level, subscriber};
pub use pairing::{Card, PairOffer, PairingError, pair_and_keep};
pub use router::router;
pub use settings::{PutError, Settings};
pub use shelf::{PullStep, Shelf, ShelfError, Shelved};
pub use state::{Caller, ServeOptions, Server};
pub use sync::SyncRunner;

use crate::tls::TlsError;

/// Why the service cannot start, or keys cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Others could use the service without a key.
    #[error(
        "{address} can be reached by others, and there is no API key; `jetforge key create NAME` \
         makes one, or listen on 127.0.0.1"
    )]
    NoKey {
        /// The address.
        address: SocketAddr,
    },
    /// The system does not give the address.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Its certificate cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// A file that the service starts with cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file of keys cannot be used.
    #[error("keys in {}: {source}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// A key's name is no name.
    #[error("{name:?} cannot name a key: use up to 64 letters, digits, `-`, `_`, `.`, `@`")]
    KeyName {
        /// What was given.
        name: String,
    },
    /// There is a key of this name.
    #[error("there is a key {name:?}; `jetforge key revoke {name}` takes it back")]
    KeyTaken {
        /// The name.
        name: String,
    },
    /// The name is one of those that paired machines' keys have.
    #[error(
        "{name:?} would be the key of a paired machine, which gets one by pairing (`jetforge \
         pair`); use a name that does not begin with `peer-`"
    )]
    KeyReserved {
        /// What was given.
        name: String,
    },
    /// There is no key of this name.
    #[error("there is no key {name:?}; `jetforge key list` shows those that there are")]
    KeyUnknown {
        /// The name.
        name: String,
    },
    /// There are as many keys as there can be.
    #[error("there are as many keys as there can be; revoke some")]
    KeysFull,
}
