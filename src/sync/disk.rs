//! What the machine keeps, as one transaction sees it: all of it comes to be, or none.
//!
//! The store is one, the simulation's memory another. Nothing here decides anything.

use super::clock::Stamp;
use super::link::Link;
use super::rules::Record;
use super::wire::Entry;

/// The oldest entry of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub id: u64,
    /// What it takes.
    pub n_bytes: u64,
    /// When it was written, by this machine's clock.
    pub written_ms: i64,
}

/// A transaction. Methods with a `peer` are about the link with that node; each fails if the disk
/// does not take or give it.
pub trait Disk {
    /// Why it does not work; the transaction is taken back.
    type Error;

    /// This node.
    fn node(&self) -> &str;
    /// The nodes that it is paired with.
    fn peers(&mut self) -> Result<Vec<String>, Self::Error>;
    /// Whether a peer is a hub: a machine that paired by a code of this one.
    fn is_hub(&mut self, peer: &str) -> Result<bool, Self::Error>;
    /// Where the clock stands.
    fn clock(&mut self) -> Result<Stamp, Self::Error>;
    /// Sets the clock.
    fn set_clock(&mut self, clock: Stamp) -> Result<(), Self::Error>;

    /// The link with a peer; a new one if there is none.
    fn link(&mut self, peer: &str) -> Result<Link, Self::Error>;
    /// Keeps a link.
    fn set_link(&mut self, peer: &str, link: &Link) -> Result<(), Self::Error>;

    /// Appends to the outbox.
    fn put_entry(&mut self, peer: &str, entry: &Entry, front: Front) -> Result<(), Self::Error>;
    /// Entries of the outbox from a place on: as many as fit, and one at least.
    fn entries(
        &mut self,
        peer: &str,
        from: u64,
        n_max: usize,
        n_bytes_max: usize,
    ) -> Result<Vec<Entry>, Self::Error>;
    /// The id of an entry of the outbox.
    fn entry_id(&mut self, peer: &str, seq: u64) -> Result<Option<u64>, Self::Error>;
    /// The oldest entry of the outbox.
    fn front(&mut self, peer: &str) -> Result<Option<Front>, Self::Error>;
    /// Removes an entry of the outbox.
    fn drop_entry(&mut self, peer: &str, seq: u64) -> Result<(), Self::Error>;
    /// Moves all entries of the outbox up.
    fn shift_entries(&mut self, peer: &str, n: u64) -> Result<(), Self::Error>;

    /// Whether an entry of the peer was never seen; from now on it was.
    fn is_new(&mut self, peer: &str, id: u64) -> Result<bool, Self::Error>;
    /// What is known of a thing.
    fn record(&mut self, kind: &str, key: &str) -> Result<Option<Record>, Self::Error>;
    /// Keeps what is known of a thing.
    fn put_record(&mut self, record: &Record) -> Result<(), Self::Error>;
    /// Keeps what does not count; the oldest copies of a thing go.
    fn put_copy(&mut self, record: &Record) -> Result<(), Self::Error>;
    /// An entry of the peer has taken effect: what hangs on it elsewhere is noted.
    fn act(&mut self, peer: &str, entry: &Entry) -> Result<(), Self::Error>;
    /// Sets an entry of the peer aside, for somebody to look at.
    fn hold(&mut self, peer: &str, entry: &Entry, why: &str) -> Result<(), Self::Error>;
}
