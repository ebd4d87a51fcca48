//! The machine's disk over the tables of the store.

use super::clock::Stamp;
use super::disk::{Disk, Front};
use super::link::Link;
use super::rules::{Record, VOID, asks_for_act, blobs_of, is_of_before, may_run};
use super::wire::Entry;
use crate::store::{OutRow, RecordRow, StoreError, SyncTx};

/// See the module.
pub struct Ledger<'a, 'b> {
    tx: &'a mut SyncTx<'b>,
    node: String,
}

impl<'a, 'b> Ledger<'a, 'b> {
    /// The tables of `node`.
    pub fn new(tx: &'a mut SyncTx<'b>, node: &str) -> Ledger<'a, 'b> {
        Ledger { tx, node: node.to_owned() }
    }
}

fn text(entry: &Entry) -> Vec<u8> {
    serde_json::to_vec(entry).unwrap_or_default()
}

/// A record out of its row.
///
/// # Errors
/// If it makes no sense.
fn record_of(row: RecordRow) -> Result<Record, StoreError> {
    let what = || StoreError::Sealed { what: format!("{} {}", row.kind, row.key) };
    let entry = serde_json::from_slice(&row.text).map_err(|_| what())?;
    Ok(Record { origin: row.origin, entry })
}

/// A record of a list, where one that makes no sense must not hide the others.
pub fn readable(row: RecordRow) -> Option<Record> {
    let record = record_of(row);
    record.inspect_err(|error| tracing::warn!(%error, "a record is left out")).ok()
}

fn row_of(record: &Record) -> RecordRow {
    let Entry { kind, key, .. } = &record.entry;
    let (origin, text) = (record.origin.clone(), text(&record.entry));
    RecordRow { kind: kind.clone(), key: key.clone(), origin, text }
}

/// An entry out of its row. One that was changed on the disk goes as what it is, so that those
/// behind it arrive.
fn entry_of(row: OutRow) -> Entry {
    let read = row.text.as_deref().and_then(|text| serde_json::from_slice::<Entry>(text).ok());
    let broken = || Entry {
        seq: row.seq,
        id: row.id,
        at: Stamp::default(),
        over: None,
        kind: VOID.to_owned(),
        key: format!("entry {}", row.seq),
        rank: 0,
        body: serde_json::json!({ "why": "it was changed on the disk" }),
    };
    // Its place is the row's: a log can be laid anew.
    Entry { seq: row.seq, id: row.id, ..read.unwrap_or_else(broken) }
}

impl Disk for Ledger<'_, '_> {
    type Error = StoreError;

    fn node(&self) -> &str {
        &self.node
    }

    fn peers(&mut self) -> Result<Vec<String>, StoreError> {
        self.tx.peers()
    }

    fn is_hub(&mut self, peer: &str) -> Result<bool, StoreError> {
        self.tx.has_paired_here(peer)
    }

    fn clock(&mut self) -> Result<Stamp, StoreError> {
        self.tx.clock().map(Stamp)
    }

    fn set_clock(&mut self, clock: Stamp) -> Result<(), StoreError> {
        self.tx.set_clock(clock.0)
    }

    fn link(&mut self, peer: &str) -> Result<Link, StoreError> {
        let Some(state) = self.tx.link(peer)? else { return Ok(Link::default()) };
        let what = || StoreError::Sealed { what: format!("the link with {peer}") };
        serde_json::from_str(&state).map_err(|_| what())
    }

    fn set_link(&mut self, peer: &str, link: &Link) -> Result<(), StoreError> {
        self.tx.set_link(peer, &serde_json::to_string(link).unwrap_or_default())
    }

    fn put_entry(&mut self, peer: &str, entry: &Entry, front: Front) -> Result<(), StoreError> {
        let Front { seq, id, n_bytes, written_ms } = front;
        let text = Some(text(entry));
        self.tx.put_out(peer, &OutRow { seq, id, n_bytes, written_ms, text })
    }

    fn entries(
        &mut self,
        peer: &str,
        from: u64,
        n_max: usize,
        n_bytes_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let rows = self.tx.outs(peer, from, n_max, n_bytes_max)?;
        Ok(rows.into_iter().map(entry_of).collect())
    }

    fn entry_id(&mut self, peer: &str, seq: u64) -> Result<Option<u64>, StoreError> {
        self.tx.out_id(peer, seq)
    }

    fn front(&mut self, peer: &str) -> Result<Option<Front>, StoreError> {
        let row = self.tx.out_front(peer, 0)?;
        Ok(row.map(|OutRow { seq, id, n_bytes, written_ms, .. }| Front {
            seq,
            id,
            n_bytes,
            written_ms,
        }))
    }

    fn drop_entry(&mut self, peer: &str, seq: u64) -> Result<(), StoreError> {
        self.tx.drop_out(peer, seq)
    }

    fn shift_entries(&mut self, peer: &str, n: u64) -> Result<(), StoreError> {
        self.tx.shift_outs(peer, n)
    }

    fn is_new(&mut self, peer: &str, id: u64) -> Result<bool, StoreError> {
        self.tx.see(peer, id)
    }

    fn record(&mut self, kind: &str, key: &str) -> Result<Option<Record>, StoreError> {
        // One that was changed on the disk is as if it had never been: what comes replaces it, and
        // nothing waits for it.
        match self.tx.record(kind, key).and_then(|row| row.map(record_of).transpose()) {
            Err(StoreError::Sealed { what }) => {
                tracing::warn!(what, "a record cannot be read and is let go");
                Ok(None)
            }
            record => record,
        }
    }

    fn put_record(&mut self, record: &Record) -> Result<(), StoreError> {
        self.tx.put_record(&row_of(record))
    }

    fn put_copy(&mut self, record: &Record) -> Result<(), StoreError> {
        self.tx.put_copy(&row_of(record))
    }

    fn act(&mut self, peer: &str, entry: &Entry) -> Result<(), StoreError> {
        if !asks_for_act(entry) {
            return Ok(());
        }
        // A job that was tried again meanwhile is not the one that was taken back, and one that
        // another machine runs is nothing to take back here.
        let known = self.record(&entry.kind, &entry.key)?;
        let is_idle = |known: Record| {
            let is_others = !may_run(&known, &self.node) && blobs_of(entry).is_empty();
            is_of_before(entry, &known) || is_others
        };
        match known.is_some_and(is_idle) {
            true => Ok(()),
            false => self.tx.put_act(peer, &entry.kind, &entry.key),
        }
    }

    fn hold(&mut self, peer: &str, entry: &Entry, why: &str) -> Result<(), StoreError> {
        self.tx.hold(peer, &text(entry), why)
    }
}
