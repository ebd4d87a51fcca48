//! Floor 3: what two machines know, brought together: nothing lost, nothing applied twice.
//!
//! ```text
//! change -> outbox (in its transaction) -> message -> inbox -> record, or a copy, or set aside
//! clock     what happened after what          rules     which of two counts
//! link      the machine, one peer             wire      what they say
//! pace      when a peer is called             standing  how it stands, in words
//! ledger    the disk over the store       tell      jobs, told
//! node      all of it, for those who have a network
//! ```
//!
//! The machine is pure: time and randomness are arguments, the disk is a trait. Nothing here knows
//! a network. [docs/sync.md](../../../docs/sync.md) has the promises.

mod clock;
mod disk;
mod ledger;
mod link;
mod node;
mod pace;
mod rules;
mod standing;
mod tell;
#[cfg(test)]
mod tests;
mod wire;

use crate::store::StoreError;
pub use link::{Change, Heard};
pub use node::{Held, Node, PeerStanding};
pub use rules::{Record, job_rank};
pub use standing::Standing;
pub use wire::{Entry, Mark, Message, Refusal};

/// Why two machines do not come together.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The peer is not understood, or is none.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file cannot be read or written.
    #[error("{source}")]
    File {
        /// The system's reason.
        source: std::io::Error,
    },
}
