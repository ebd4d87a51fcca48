//! Blobs: files and texts that are too large for an entry, by the hash of their bytes.
//!
//! `tree` names and checks them, `haul` moves them between two machines, `vault` keeps them. An
//! entry says that there is one and what it is; here nobody knows what is in it.

mod haul;
#[cfg(test)]
mod tests;
mod tree;
mod vault;

pub use haul::{Ask, HAUL_BYTES_MAX, Haul, Hauled, Want, hear, speak};
pub use tree::{BlobId, n_piece};
pub use vault::{Keep, Progress, Vault};
