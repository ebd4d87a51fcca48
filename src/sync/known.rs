//! What a node knows: how its links stand, what was set aside, records, and what they ask.

use super::SyncError;
use super::disk::Disk;
use super::ledger::{Ledger, readable};
use super::link;
use super::node::Node;
use super::rules::Record;
use super::standing::{LastHeard, Standing};
use super::wire::{Entry, Refusal};
use crate::store::{HeldRow, Peer, now_ms};

/// How a peer stands.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStanding {
    /// The peer, without its key.
    pub peer: Peer,
    /// How it stands.
    pub standing: Standing,
    /// When it was last heard, if it was since the program began.
    pub heard_ms: Option<i64>,
    /// Calls that failed since the last one that did not.
    pub n_failed: u32,
}

/// An entry that was set aside.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Held {
    pub n: i64,
    pub peer: String,
    pub why: String,
    pub held_ms: i64,
    /// `None` if it cannot be read.
    pub entry: Option<Entry>,
}

impl Node {
    /// How every link stands.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn standing(&self) -> Result<Vec<PeerStanding>, SyncError> {
        let (now, moved) = (self.mono_ms(), self.moved());
        let stands = |peer: Peer| {
            let live = self.with(&peer.node, |live| live.clone());
            let standing = self.store().sync_look(|tx| {
                let n_held = tx.n_held(&peer.node)?;
                let link = Ledger::new(tx, self.node()).link(&peer.node)?;
                let front = tx.out_front(&peer.node, link.sent_from() + 1)?;
                let oldest_ms = front.map(|row| now_ms() - row.written_ms);
                // A clock that was set meanwhile tells nothing.
                let oldest_ms = oldest_ms.filter(|ms| (0..AGE_MS_MAX).contains(ms));
                let heard = match live.heard {
                    Some((_, at)) => LastHeard::Ago((now - at.min(now)) as i64),
                    None => heard_of_disk(link.heard_ms),
                };
                let moved = moved.as_ref().map(Refusal::to_string);
                Ok(Standing {
                    heard,
                    n_waiting: link.n_waiting(),
                    oldest_ms,
                    n_to_come: link.n_to_come(),
                    n_held,
                    n_lost: link.n_lost_unseen(),
                    trouble: moved.or(live.trouble.clone()),
                })
            })?;
            let peer = Peer { key: String::new(), ..peer };
            let heard_ms = live.heard.map(|(at, _)| at);
            let n_failed = live.pace.n_failed();
            Ok(PeerStanding { peer, standing, heard_ms, n_failed })
        };
        self.peers()?.into_iter().map(stands).collect()
    }

    /// What was set aside, the oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn held(&self) -> Result<Vec<Held>, SyncError> {
        let rows = self.store().sync_look(|tx| tx.held())?;
        let held = |row: HeldRow| Held {
            entry: serde_json::from_slice(&row.text).ok(),
            n: row.n,
            peer: row.peer,
            why: row.why,
            held_ms: row.held_ms,
        };
        Ok(rows.into_iter().map(held).collect())
    }

    /// Tries again what was set aside, or forgets it; how many are done with.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn retry(&self, forget: bool) -> Result<usize, SyncError> {
        let held = self.held()?;
        let node = self.node().to_owned();
        Ok(self.store().sync(move |tx| {
            let mut n_done = 0;
            for held in held {
                let is_done = match &held.entry {
                    _ if forget => true,
                    None => false,
                    Some(entry) => {
                        let mut ledger = Ledger::new(tx, &node);
                        link::retry(&mut ledger, &held.peer, entry, now_ms())?.is_ok()
                    }
                };
                if is_done {
                    tx.drop_held(held.n)?;
                    n_done += 1;
                }
            }
            if forget {
                for peer in tx.peers()? {
                    link::forget_lost(&mut Ledger::new(tx, &node), &peer)?;
                }
            }
            Ok(n_done)
        })?)
    }

    /// Things that are known of a kind, the last changed first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn records(&self, kind: &str, n_max: usize) -> Result<Vec<Record>, SyncError> {
        let rows = self.store().sync_look(|tx| tx.records(kind, n_max))?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// What is known of a thing.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn record(&self, kind: &str, key: &str) -> Result<Option<Record>, SyncError> {
        self.look(|ledger| ledger.record(kind, key))
    }

    /// Copies of a thing that did not count, the oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn copies(&self, kind: &str, key: &str) -> Result<Vec<Record>, SyncError> {
        let rows = self.store().sync_look(|tx| tx.copies(kind, key))?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// How many things are known of each kind.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn record_counts(&self) -> Result<Vec<(String, i64)>, SyncError> {
        Ok(self.store().sync_look(|tx| tx.record_counts())?)
    }
}

/// An age beyond this is a clock that was set.
const AGE_MS_MAX: i64 = 10 * 365 * 24 * 3600 * 1000;

/// When a peer was heard by a run of the program before this one.
fn heard_of_disk(heard_ms: i64) -> LastHeard {
    match now_ms() - heard_ms {
        _ if heard_ms == 0 => LastHeard::Never,
        ago if (0..AGE_MS_MAX).contains(&ago) => LastHeard::Ago(ago),
        _ => LastHeard::Once,
    }
}
