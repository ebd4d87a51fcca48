//! A node and its blobs: files that travel, and texts that are too large for an entry.
//!
//! ```text
//! send_file -> vault, and an entry of kind `file`        a job's text beyond 1 MiB -> vault
//! entry of a peer -> note_wants -> haul, call by call -> whole, for whoever asks for it
//! ```

use std::io::{self, Read, Seek};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::SyncError;
use super::blob::{self, Ask, BlobId, Haul, Hauled, Keep, Progress, Want};
use super::clock::Stamp;
use super::disk::Disk;
use super::ledger::Ledger;
use super::link::Change;
use super::node::Node;
use super::rules::{Record, blobs_of, is_taken_back};
use super::spool::{Spool, Told};
use crate::base::limits::{SYNC_ACTS_MAX, SYNC_FILES_SHOWN_MAX, SYNC_PASSED_MS_MAX};
use crate::store::{ActRow, StoreError, SyncTx, now_ms};

/// A file that this machine knows of.
#[derive(Clone, Debug, PartialEq)]
pub struct FileView {
    /// Who has it.
    pub node: String,
    /// What it is called there; nothing if no record names what lies here.
    pub name: String,
    /// What it is: `file`, `bundle`, `report`, `model`; `kept` if no record names it.
    pub what: String,
    /// The BLAKE3 of its bytes.
    pub id: BlobId,
    /// How many these are.
    pub n_bytes: u64,
    /// How far it is here.
    pub progress: Progress,
}

/// What a record asks of other rooms, by the entry that it was then.
#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    row: ActRow,
    /// The id of that entry and its time; `None` if the record has gone.
    entry: Option<(u64, Stamp)>,
}

impl Act {
    /// Which thing it is about.
    pub fn key(&self) -> &str {
        &self.row.key
    }
}

/// An act with what its record says, and not with all of its text.
struct Asked {
    act: Act,
    is_job: bool,
    is_taken_back: bool,
    blobs: Vec<(BlobId, u64)>,
}

impl Node {
    fn vault_failed(source: io::Error) -> SyncError {
        SyncError::File { source }
    }

    /// Keeps what a reader gives and tells the peers of it; the name of its bytes. Without a peer
    /// it is kept all the same. What had this name before may go.
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
        let id = body["id"].as_str().and_then(BlobId::read).filter(|_| kind == "file");
        let key = format!("{}/{name}", self.node());
        let (kind, of) = (kind.to_owned(), key.clone());
        // What can fail comes before the entry: what fails behind it would tell it again.
        if let Some(id) = id {
            self.vault().keep(&id, Keep::named(&of)).map_err(Self::vault_failed)?;
        }
        let change = Change { kind, key, rank: 0, body, to: None, is_elsewhere: false };
        let counts = self.change(change)?;
        if let Some(id) = id
            && let Err(error) = self.let_pass(&[(of, id)])
        {
            tracing::warn!(%error, name, "what had this name before stays");
        }
        Ok(counts)
    }

    /// These files are what their names mean from now on: what had one of them before may go,
    /// unless it is the file of another name.
    fn let_pass(&self, named: &[(String, BlobId)]) -> Result<(), SyncError> {
        let is_old =
            |(name, id): &(String, BlobId)| named.iter().any(|(own, is)| own == name && is != id);
        let old: Vec<BlobId> =
            self.vault().named().into_iter().filter(is_old).map(|(_, id)| id).collect();
        if old.is_empty() {
            return Ok(());
        }
        let files = self.records("file", SYNC_FILES_SHOWN_MAX)?;
        let known: Vec<BlobId> =
            files.iter().flat_map(|record| blobs_of(&record.entry)).map(|(id, _)| id).collect();
        for id in old.iter().filter(|id| !known.contains(id)) {
            match self.vault().is_whole(id) {
                true => self.vault().keep(id, Keep::passing()).map_err(Self::vault_failed)?,
                // Nobody waits for it any more.
                false => drop(self.vault().drop_blob(id)),
            }
        }
        Ok(())
    }

    /// What records ask of other rooms, from behind a number on.
    fn asked_behind(&self, n: i64) -> Result<Vec<Asked>, SyncError> {
        let look = |tx: &mut SyncTx<'_>| {
            let asked = tx.acts(n, SYNC_ACTS_MAX)?.into_iter().map(|row| {
                let record = Ledger::new(tx, self.node()).record(&row.kind, &row.key)?;
                let record = record.as_ref();
                let entry = record.map(|record| (record.entry.id, record.entry.at));
                Ok(Asked {
                    act: Act { row, entry },
                    is_job: record.is_some_and(|record| record.entry.kind == "job"),
                    is_taken_back: record.is_some_and(|own| is_taken_back(own, self.node())),
                    blobs: record.map(|record| blobs_of(&record.entry)).unwrap_or_default(),
                })
            });
            asked.collect::<Result<Vec<Asked>, StoreError>>()
        };
        Ok(self.store().sync_look(look)?)
    }

    /// These are done. What came meanwhile about the same things asks for itself.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn acted(&self, acts: Vec<Act>) -> Result<(), SyncError> {
        if acts.is_empty() {
            return Ok(());
        }
        let node = self.node().to_owned();
        Ok(self.store().sync(move |tx| {
            for Act { row, entry } in acts {
                let known = Ledger::new(tx, &node).record(&row.kind, &row.key)?;
                if known.map(|known| known.entry.id) == entry.map(|(id, _)| id) {
                    tx.drop_act(&row.kind, &row.key)?;
                }
            }
            Ok(())
        })?)
    }

    /// It is about something that is not here. Where other processes use the store it is left for
    /// them, as long as one may still come that has it; else it is done.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn pass_on(&self, act: Act) -> Result<(), SyncError> {
        let oldest = Stamp::of_ms(now_ms() - SYNC_PASSED_MS_MAX);
        let may_come = act.entry.is_some_and(|(_, at)| at >= oldest);
        match self.store().is_shared() && may_come {
            true => Ok(()),
            false => self.acted(vec![act]),
        }
    }

    /// Tells the peers which models this machine has, if they are others than it told last; whether
    /// it told. Other processes of the machine may have told of theirs since: that is no reason to
    /// tell again, or two of them would go on for ever.
    ///
    /// # Errors
    /// If the store cannot be read, or the disk does not take it.
    pub fn tell_inventory(&self, body: Value) -> Result<bool, SyncError> {
        let mut told = self.told_models().lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none() {
            *told = self.record("inventory", self.node())?.map(|known| known.entry.body);
        }
        if told.as_ref() == Some(&body) {
            return Ok(false);
        }
        let (kind, key) = ("inventory".to_owned(), self.node().to_owned());
        let change =
            Change { kind, key, rank: 0, body: body.clone(), to: None, is_elsewhere: false };
        let counts = self.change(change)?;
        // Without a peer nobody was told.
        if counts {
            *told = Some(body);
        }
        Ok(counts)
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
    /// jobs that are to be taken back. Each look takes up what stands behind the look before, so
    /// that what cannot be done yet keeps nothing else waiting.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn note_wants(&self) -> Result<Vec<Act>, SyncError> {
        let (others, next) = self.note_wants_behind(self.acts_from().load(Ordering::Relaxed))?;
        self.acts_from().store(next.unwrap_or(0), Ordering::Relaxed);
        Ok(others)
    }

    /// All of that at once.
    ///
    /// # Errors
    /// As [`Node::note_wants`].
    pub(super) fn note_all_wants(&self) -> Result<(), SyncError> {
        let mut from = Some(0);
        while let Some(n) = from {
            from = self.note_wants_behind(n)?.1;
        }
        Ok(())
    }

    /// One look, and behind which act the next one begins.
    fn note_wants_behind(&self, n: i64) -> Result<(Vec<Act>, Option<i64>), SyncError> {
        let asked = self.asked_behind(n)?;
        let last = asked.last().filter(|_| asked.len() == SYNC_ACTS_MAX);
        let next = last.map(|asked| asked.act.row.n);
        let (mut others, mut done, mut named) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_full = false;
        for Asked { act, is_job, is_taken_back, blobs } in asked {
            let wants = !blobs.is_empty();
            is_full |= wants && !is_full && !self.want_all(&act.row, &blobs, is_job);
            match (is_taken_back, is_full && wants) {
                (true, _) => others.push(act),
                (false, false) => {
                    let file = blobs.first().filter(|_| !is_job);
                    named.extend(file.map(|(id, _)| (act.row.key.clone(), *id)));
                    done.push(act);
                }
                // What has no place yet stays to be asked for later.
                (false, true) => {}
            }
        }
        self.acted(done)?;
        self.let_pass(&named)?;
        Ok((others, next))
    }

    /// Wants blobs of an act's peer; whether all have a place.
    fn want_all(&self, act: &ActRow, blobs: &[(BlobId, u64)], is_job: bool) -> bool {
        let keep = || if is_job { Keep::passing() } else { Keep::named(&act.key) };
        blobs.iter().all(|&(id, n_bytes)| {
            let wanted = self.vault().want(&act.peer, Want { id, n_bytes }, keep());
            wanted.unwrap_or_else(|error| {
                tracing::debug!(%error, key = act.key, "it is asked for later");
                false
            })
        })
    }

    /// Files that are known, the last told first, and how far they are here; behind them what is
    /// kept and named by no record.
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
        let records = self.records("file", SYNC_FILES_SHOWN_MAX)?;
        let mut files: Vec<FileView> = records.into_iter().filter_map(view).collect();
        // What takes room can be let go, also where no record names it any more.
        for (id, n_bytes) in self.vault().kept() {
            if !files.iter().any(|file| file.id == id) && files.len() < SYNC_FILES_SHOWN_MAX {
                let (node, name) = (self.node().to_owned(), String::new());
                let (what, progress) = ("kept".to_owned(), Progress::Whole);
                files.push(FileView { node, name, what, id, n_bytes, progress });
            }
        }
        Ok(files)
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
                "a piece of a file is not what it should be; `sync files` shows it"
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
