//! A node and its blobs: files that travel, and texts that are too large for an entry.
//!
//! ```text
//! send_file -> vault, and an entry of kind `file`        a job's text beyond 1 MiB -> vault
//! entry of a peer -> note_wants -> haul, call by call -> whole, for whoever asks for it
//! ```

use std::io::{self, ErrorKind, Read, Seek};
use std::sync::PoisonError;

use serde_json::{Value, json};

use super::SyncError;
use super::blob::{self, Ask, BlobId, Haul, Hauled, Progress, Want};
use super::link::Change;
use super::node::Node;
use super::rules::{Record, blobs_of};
use super::spool::{Spool, Told};
use crate::base::limits::SYNC_FILES_SHOWN_MAX;
use crate::store::ActRow;

/// A file that this machine knows of.
#[derive(Clone, Debug, PartialEq)]
pub struct FileView {
    /// Who has it.
    pub node: String,
    /// What it is called there.
    pub name: String,
    /// What it is: `file`, `bundle`, `report`, `model`.
    pub what: String,
    /// The BLAKE3 of its bytes.
    pub id: BlobId,
    /// How many these are.
    pub n_bytes: u64,
    /// How far it is here.
    pub progress: Progress,
}

impl Node {
    fn vault_failed(source: io::Error) -> SyncError {
        SyncError::File { source }
    }

    /// Keeps what a reader gives and tells the peers of it; the name of its bytes. Without a peer
    /// it is kept all the same.
    ///
    /// # Errors
    /// If the reader fails, there is no room, or the disk does not take it.
    pub fn send_file(
        &self,
        reader: &mut (impl Read + Seek),
        name: &str,
        what: &str,
    ) -> Result<BlobId, SyncError> {
        let (id, n_bytes) = self.vault().put(reader, false).map_err(Self::vault_failed)?;
        self.tell_own("file", name, json!({ "id": id, "n_bytes": n_bytes, "what": what }))?;
        Ok(id)
    }

    /// Tells the peers of something of this machine's own under a name; whether it counts.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn tell_own(&self, kind: &str, name: &str, body: Value) -> Result<bool, SyncError> {
        self.change(Change {
            kind: kind.to_owned(),
            key: format!("{}/{name}", self.node()),
            rank: 0,
            body,
            to: None,
            is_elsewhere: false,
        })
    }

    /// Tells the peers which models this machine has, if they are others than was told last;
    /// whether it told.
    ///
    /// # Errors
    /// If the store cannot be read, or the disk does not take it.
    pub fn tell_inventory(&self, body: Value) -> Result<bool, SyncError> {
        let known = self.record("inventory", self.node())?;
        if known.is_some_and(|known| known.entry.body == body) {
            return Ok(false);
        }
        self.change(Change {
            kind: "inventory".to_owned(),
            key: self.node().to_owned(),
            rank: 0,
            body,
            to: None,
            is_elsewhere: false,
        })
    }

    /// Tells the peers what other processes of this machine have to tell; how many things.
    ///
    /// # Errors
    /// If the disk does not take it; then it stays to be told.
    pub fn take_in_spool(&self) -> Result<usize, SyncError> {
        let spool = Spool::new(self.store().dir());
        spool.take_in(|Told { kind, name, body }| self.tell_own(&kind, &name, body).map(|_| ()))
    }

    /// Wants what records of peers say that there is. Those that ask for something else come back:
    /// jobs that are to be taken back.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn note_wants(&self) -> Result<Vec<ActRow>, SyncError> {
        let mut others = Vec::new();
        for act in self.acts()? {
            let Some(record) = self.record(&act.kind, &act.key)? else {
                self.acted(act.n)?;
                continue;
            };
            let wants = blobs_of(&record.entry).into_iter();
            let mut wants = wants.map(|(id, n_bytes)| Want { id, n_bytes });
            let wanted: io::Result<()> =
                wants.try_for_each(|want| self.vault().want(&act.peer, want));
            match wanted {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::QuotaExceeded => {
                    tracing::warn!(%error, key = act.key, "what is told of here does not come");
                }
                // A disk that is full keeps nobody's job from being taken back.
                Err(error) => {
                    tracing::debug!(%error, key = act.key, "it is asked for later");
                    continue;
                }
            }
            match record.entry.kind == "job" && record.entry.body["state"] == "cancelled" {
                true => others.push(act),
                false => self.acted(act.n)?,
            }
        }
        Ok(others)
    }

    /// Files that are known, the last told first, and how far they are here.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn files(&self) -> Result<Vec<FileView>, SyncError> {
        let view = |record: Record| {
            let (node, name) = record.entry.key.split_once('/')?;
            let (id, n_bytes) = *blobs_of(&record.entry).first()?;
            Some(FileView {
                node: node.to_owned(),
                name: name.to_owned(),
                what: record.entry.body["what"].as_str().unwrap_or("file").to_owned(),
                id,
                n_bytes,
                progress: self.vault().progress(&id),
            })
        };
        Ok(self.records("file", SYNC_FILES_SHOWN_MAX)?.into_iter().filter_map(view).collect())
    }

    /// What is said to a peer about blobs, which asked for `asked` last.
    ///
    /// # Errors
    /// If the disk does not give it, or this machine speaks to nobody.
    pub fn haul_ask(&self, peer: &str, asked: &[Ask]) -> Result<Vec<u8>, SyncError> {
        if let Some(moved) = self.moved() {
            return Err(moved.into());
        }
        let _alone = self.hauling().lock().unwrap_or_else(PoisonError::into_inner);
        let said = blob::speak(&mut self.vault().clone(), peer, asked);
        Ok(said.map_err(Self::vault_failed)?.write())
    }

    /// Takes what a peer says about blobs; what it did, and what it asks for.
    ///
    /// # Errors
    /// If it is no such message, or the disk does not take it; then it comes again.
    pub fn haul_hear(&self, peer: &str, bytes: &[u8]) -> Result<(Hauled, Vec<Ask>), SyncError> {
        let haul = Haul::read(bytes)?;
        let _alone = self.hauling().lock().unwrap_or_else(PoisonError::into_inner);
        let hauled = blob::hear(&mut self.vault().clone(), peer, &haul);
        let hauled = hauled.map_err(Self::vault_failed)?;
        if hauled.is_wrong {
            tracing::warn!(
                peer,
                "a piece of a file is not what it should be; it is asked for again"
            );
        }
        Ok((hauled, haul.wants))
    }

    /// Both: the other side of a call about blobs.
    ///
    /// # Errors
    /// As those.
    pub fn haul_answer(&self, peer: &str, bytes: &[u8]) -> Result<Vec<u8>, SyncError> {
        let (_, asked) = self.haul_hear(peer, bytes)?;
        self.haul_ask(peer, &asked)
    }
}
