//! Floor 3: what two machines know, brought together: nothing lost, nothing applied twice.
//!
//! ```text
//! change -> outbox (in its transaction) -> message -> inbox -> record, or a copy, or set aside
//! clock     what happened after what          rules     which of two counts
//! link      the machine, one peer             wire      what they say
//! say       what a peer is told               pace      when it is called
//! ledger    the disk over the store           standing  how it stands, in words
//! node      all of it, for those who have a network
//! stick     for those who have none           tell      jobs, told
//! blob      what is too large for an entry    files     a node and its blobs
//! spool     what other processes have to tell      known    what a node knows
//! together  several processes under one name
//! ```
//!
//! The machine is pure: time and randomness are arguments, the disk is a trait. Nothing here knows
//! a network. [docs/sync.md](../../../docs/sync.md) has the promises.

mod blob;
mod clock;
mod disk;
mod files;
mod known;
mod ledger;
mod link;
mod node;
mod pace;
mod place;
mod rules;
mod say;
mod spool;
mod standing;
mod stick;
mod tell;
#[cfg(test)]
mod tests;
mod together;
mod wire;

use crate::seal::SealError;
use crate::store::StoreError;
pub use blob::{Ask, BlobId, HAUL_BYTES_MAX, Progress, Vault};
pub use files::FileView;
pub use known::{Held, PeerStanding};
pub use link::{Change, Heard};
pub use node::Node;
pub use place::host_of;
pub use rules::Record;
pub use spool::{Spool, Told};
pub use standing::{LastHeard, Standing};
pub use stick::{Imported, StickHead, asks_of, read_frame};
pub use wire::{Entry, Mark, Refusal};

/// Why two machines do not come together.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no key to seal files with.
    #[error(transparent)]
    Key(#[from] SealError),
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
