//! Several processes under one name: what they must know of each other's talks and jobs.
//!
//! ```text
//! talk        what was said to a peer counts, whichever process said it: kept with the links
//! hand_on     what jobs told here -> the tables that peers are told from, each once
//! ```
//!
//! Where a store is this machine's own, talks stay in memory and jobs tell peers directly.

use super::SyncError;
use super::ledger::Ledger;
use super::link::{self, Bounds, Change, Talk};
use super::node::Node;
use super::say;
use super::wire::{Hello, Refusal};
use crate::store::{StoreError, SyncTx, ToldRow, now_ms};

/// The talk of all processes with a peer.
///
/// # Errors
/// If the store does not give it. One that makes no sense begins anew.
pub fn talk_of_all(tx: &mut SyncTx<'_>, peer: &str) -> Result<Talk, StoreError> {
    let talk = tx.talk(peer)?.and_then(|text| serde_json::from_str(&text).ok());
    Ok(talk.unwrap_or_default())
}

/// Keeps it.
///
/// # Errors
/// If the store does not take it.
pub fn keep_talk_of_all(tx: &mut SyncTx<'_>, peer: &str, talk: &Talk) -> Result<(), StoreError> {
    tx.set_talk(peer, &serde_json::to_string(talk).unwrap_or_default())
}

impl Node {
    /// What is to be said to a peer now, known to all processes before it is composed.
    pub(super) fn ask_of_all(
        &self,
        peer: &str,
        nonce: u64,
        hello: Hello,
    ) -> Result<Vec<u8>, SyncError> {
        let (node, of) = (self.node().to_owned(), peer.to_owned());
        let message = self.store().sync(move |tx| {
            if !tx.peers()?.contains(&of) {
                return Ok(None);
            }
            let mut talk = talk_of_all(tx, &of)?;
            talk.say(nonce);
            keep_talk_of_all(tx, &of, &talk)?;
            let mut ledger = Ledger::new(tx, &node);
            let limits = link::known_limits(&mut ledger, &of)?;
            say::compose(&mut ledger, &of, &hello, &talk, nonce, limits).map(Some)
        })?;
        let forgotten = || Refusal::Unpaired { node: peer.to_owned() };
        Ok(message.ok_or_else(forgotten)?.write())
    }

    /// Hands on what jobs told while no transaction held them and the tables that peers are told
    /// from; how many things.
    ///
    /// # Errors
    /// If one of the two stores does not do it; then it is handed on later, and counts once.
    pub fn hand_on(&self) -> Result<usize, SyncError> {
        let mut n = 0;
        loop {
            let told = self.store().told()?;
            let Some(last) = told.last().map(|row| row.n) else { return Ok(n) };
            n += told.len();
            let (node, source) = (self.node().to_owned(), self.store().own_node()?);
            self.store().sync(move |tx| tell(tx, &node, &source, told))?;
            self.store().drop_told(last)?;
            self.has_news();
        }
    }
}

fn tell(
    tx: &mut SyncTx<'_>,
    node: &str,
    source: &str,
    told: Vec<ToldRow>,
) -> Result<(), StoreError> {
    // Nobody is told of what was before a pairing.
    let is_alone = tx.peers()?.is_empty();
    for row in told {
        if is_alone || !tx.is_new_told(source, row.id)? {
            continue;
        }
        let change = row.text.and_then(|text| serde_json::from_slice::<Change>(&text).ok());
        let Some(change) = change else {
            tracing::warn!(n = row.n, "what a job told cannot be read and is let go");
            continue;
        };
        link::change(&mut Ledger::new(tx, node), change, row.id, now_ms(), &Bounds::default())?;
    }
    Ok(())
}
