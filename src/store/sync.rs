//! The tables of sync, as rows: what they mean is the business of the room `sync`.
//!
//! ```text
//! links    one row a peer: where its two logs stand         outbox   what is told to a peer
//! inbox    ids of what a peer told                          records  what is known of each thing
//! copies   what did not count          held   what could not take effect
//! acts     what a record asks of other rooms, until it is done
//! ```
//!
//! Texts are sealed under their row's name. A change of another table and what is told of it are
//! one transaction: see [`Tells`].

use std::sync::{Arc, OnceLock};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{AnswerRow, JobRow, Store, StoreError, now_ms, schema};
use crate::base::limits::{
    SYNC_COPIES_BYTES_MAX, SYNC_COPIES_MAX, SYNC_HELD_BYTES_MAX, SYNC_HELD_MAX,
    SYNC_RECORDS_BYTES_MAX, SYNC_RECORDS_MAX, SYNC_SEEN_MAX, SYNC_SHOWN_BYTES_MAX,
};
use crate::seal::Sealer;

/// Ids between two looks at how many there are.
const LOOK_EVERY: i64 = 512;
/// Copies between two looks at what all of them take.
const COPIES_LOOK_EVERY: i64 = 16;

/// An entry of an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct OutRow {
    pub seq: u64,
    pub id: u64,
    pub n_bytes: u64,
    pub written_ms: i64,
    /// `None` if it does not open.
    pub text: Option<Vec<u8>>,
}

/// What is known of a thing, or a copy of what was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RecordRow {
    pub kind: String,
    pub key: String,
    /// Who wrote it.
    pub origin: String,
    pub text: Vec<u8>,
}

/// An entry that could not take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HeldRow {
    pub n: i64,
    pub peer: String,
    pub why: String,
    pub held_ms: i64,
    pub text: Vec<u8>,
}

/// What a record asks of another room.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ActRow {
    pub n: i64,
    pub peer: String,
    pub kind: String,
    pub key: String,
}

/// A job that came to be, is over, or is tried again.
pub struct JobTold<'a> {
    /// As it stands.
    pub row: &'a JobRow,
    /// Its body, when it came to be.
    pub body: Option<&'a [u8]>,
    /// Its answer, when it has one.
    pub answer: Option<&'a AnswerRow>,
}

/// Who tells peers of changes, in the transactions that make them.
pub trait Tells: Send + Sync {
    /// A job came to be, is over, or is tried again.
    ///
    /// # Errors
    /// If the disk does not take it; then the job has not changed.
    fn job(&self, tx: &mut SyncTx<'_>, told: &JobTold<'_>) -> Result<(), StoreError>;
}

/// Who tells, once there is somebody; the writer's thread has a clone.
#[derive(Clone)]
pub(super) struct Teller {
    sealer: Sealer,
    tells: Arc<OnceLock<Box<dyn Tells>>>,
}

impl Teller {
    pub(super) fn new(sealer: Sealer) -> Teller {
        Teller { sealer, tells: Arc::default() }
    }

    pub(super) fn job(
        &self,
        connection: &Connection,
        told: &JobTold<'_>,
    ) -> Result<(), StoreError> {
        match self.tells.get() {
            Some(tells) => tells.job(&mut SyncTx { connection, sealer: &self.sealer }, told),
            None => Ok(()),
        }
    }
}

/// The tables within a transaction.
pub struct SyncTx<'a> {
    connection: &'a Connection,
    sealer: &'a Sealer,
}

impl Store {
    /// From now on changes are told by `tells`; only the first call counts.
    pub fn tell_by(&self, tells: Box<dyn Tells>) {
        let _ = self.0.teller.tells.set(tells);
    }

    /// Runs `work` over the tables of sync in a transaction, and returns when it is on the disk.
    ///
    /// # Errors
    /// Those of `work`, or if the disk does not take it; then nothing has changed.
    pub fn sync<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SyncTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let sealer = self.0.sealer.clone();
        self.write(move |connection| work(&mut SyncTx { connection, sealer: &sealer }))
    }

    /// Looks at the tables of sync.
    ///
    /// # Errors
    /// Those of `work`; one that writes fails.
    pub fn sync_look<T>(
        &self,
        work: impl FnOnce(&mut SyncTx<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read(|connection| work(&mut SyncTx { connection, sealer: &self.0.sealer }))
    }
}

fn out_name(peer: &str, id: i64) -> String {
    format!("entry {id} for {peer}")
}

fn record_name(kind: &str, key: &str) -> String {
    format!("record of {kind} {key}")
}

fn held_name(peer: &str) -> String {
    format!("entry held from {peer}")
}

impl SyncTx<'_> {
    fn seal(&self, name: &str, text: &[u8]) -> Result<Vec<u8>, StoreError> {
        let failed = |source| StoreError::File { path: "random".into(), source };
        self.sealer.wrap(name, text).map_err(failed)
    }

    fn unseal(&self, name: String, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.sealer.unwrap(&name, value).ok_or(StoreError::Sealed { what: name })
    }

    /// The nodes of all peers.
    pub fn peers(&mut self) -> Result<Vec<String>, StoreError> {
        let mut rows = self.connection.prepare("SELECT node FROM peers ORDER BY node")?;
        Ok(rows.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a peer has paired by a code that was shown here: then it calls, and has no address.
    pub fn has_paired_here(&mut self, peer: &str) -> Result<bool, StoreError> {
        let sql = "SELECT address = '' FROM peers WHERE node = ?1";
        let found = self.connection.prepare(sql)?.query_row([peer], |row| row.get(0));
        Ok(found.optional()?.unwrap_or(false))
    }

    /// Where the logical clock stands.
    pub fn clock(&mut self) -> Result<u64, StoreError> {
        let clock: Option<i64> = schema::meta(self.connection, "sync_clock")?;
        Ok(clock.unwrap_or(0) as u64)
    }

    /// Sets the logical clock.
    pub fn set_clock(&mut self, clock: u64) -> Result<(), StoreError> {
        Ok(schema::set_meta(self.connection, "sync_clock", clock as i64)?)
    }

    /// The state of a link, as it was written.
    pub fn link(&mut self, peer: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT state FROM links WHERE peer = ?1";
        let mut rows = self.connection.prepare(sql)?;
        Ok(rows.query_row([peer], |row| row.get(0)).optional()?)
    }

    /// Keeps the state of a link.
    pub fn set_link(&mut self, peer: &str, state: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO links VALUES (?1, ?2) ON CONFLICT (peer) DO UPDATE SET state = ?2";
        self.connection.prepare(sql)?.execute([peer, state])?;
        Ok(())
    }

    /// Appends to an outbox; the row has a text.
    pub fn put_out(&mut self, peer: &str, row: &OutRow) -> Result<(), StoreError> {
        let text = row.text.as_deref().unwrap_or_default();
        let sealed = self.seal(&out_name(peer, row.id as i64), text)?;
        let sql = "INSERT INTO outbox (peer, seq, id, n_bytes, written_ms, sealed_entry) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let (seq, id, n_bytes) = (row.seq as i64, row.id as i64, row.n_bytes as i64);
        let values = params![peer, seq, id, n_bytes, row.written_ms, sealed];
        self.connection.prepare(sql)?.execute(values)?;
        Ok(())
    }

    /// Entries of an outbox from `from` on: so many bytes at most, but one at least.
    pub fn outs(
        &mut self,
        peer: &str,
        from: u64,
        n_max: usize,
        n_bytes_max: usize,
    ) -> Result<Vec<OutRow>, StoreError> {
        let sql = "SELECT seq, id, n_bytes, written_ms, sealed_entry FROM outbox \
                   WHERE peer = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3";
        let mut rows = self.connection.prepare(sql)?;
        let mut rows = rows.query(params![peer, from as i64, n_max as i64])?;
        let mut found: Vec<OutRow> = Vec::new();
        let mut n_bytes = 0;
        while let Some(row) = rows.next()? {
            let (out, sealed) = out_of(row)?;
            n_bytes += out.n_bytes as usize;
            if !found.is_empty() && n_bytes > n_bytes_max {
                break;
            }
            let text = self.sealer.unwrap(&out_name(peer, out.id as i64), &sealed);
            found.push(OutRow { text, ..out });
        }
        Ok(found)
    }

    /// The id of an entry of an outbox.
    pub fn out_id(&mut self, peer: &str, seq: u64) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT id FROM outbox WHERE peer = ?1 AND seq = ?2";
        let id = self
            .connection
            .prepare(sql)?
            .query_row(params![peer, seq as i64], |row| row.get::<_, i64>(0));
        Ok(id.optional()?.map(|id| id as u64))
    }

    /// The first entry of an outbox from `from` on, without its text.
    pub fn out_front(&mut self, peer: &str, from: u64) -> Result<Option<OutRow>, StoreError> {
        let sql = "SELECT seq, id, n_bytes, written_ms, x'' FROM outbox \
                   WHERE peer = ?1 AND seq >= ?2 ORDER BY seq LIMIT 1";
        let found = self.connection.prepare(sql)?.query_row(params![peer, from as i64], out_of);
        Ok(found.optional()?.map(|(row, _)| row))
    }

    /// Removes an entry of an outbox.
    pub fn drop_out(&mut self, peer: &str, seq: u64) -> Result<(), StoreError> {
        let sql = "DELETE FROM outbox WHERE peer = ?1 AND seq = ?2";
        self.connection.prepare(sql)?.execute(params![peer, seq as i64])?;
        Ok(())
    }

    /// Moves all entries of an outbox up by `n`.
    pub fn shift_outs(&mut self, peer: &str, n: u64) -> Result<(), StoreError> {
        // By way of negative numbers: no two rows may have one number on the way.
        let up = "UPDATE outbox SET seq = -(seq + ?2) WHERE peer = ?1";
        self.connection.prepare(up)?.execute(params![peer, n as i64])?;
        let back = "UPDATE outbox SET seq = -seq WHERE peer = ?1 AND seq < 0";
        self.connection.prepare(back)?.execute([peer])?;
        Ok(())
    }

    /// Whether an entry of a peer was never seen; from now on it was.
    pub fn see(&mut self, peer: &str, id: u64) -> Result<bool, StoreError> {
        let sql = "INSERT INTO inbox (peer, id) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        let is_new = self.connection.prepare(sql)?.execute(params![peer, id as i64])? > 0;
        if is_new && self.connection.last_insert_rowid() % LOOK_EVERY == 0 {
            let sql = "DELETE FROM inbox WHERE peer = ?1 AND n <= (SELECT n FROM inbox \
                       WHERE peer = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)";
            self.connection.prepare(sql)?.execute(params![peer, SYNC_SEEN_MAX as i64])?;
        }
        Ok(is_new)
    }

    /// What is known of a thing.
    pub fn record(&mut self, kind: &str, key: &str) -> Result<Option<RecordRow>, StoreError> {
        let sql = "SELECT kind, key, origin, sealed_entry FROM records \
                   WHERE kind = ?1 AND key = ?2";
        let found = self.connection.prepare(sql)?.query_row([kind, key], record_of).optional()?;
        found.map(|found| self.open_record(found)).transpose()
    }

    fn open_record(&self, (row, sealed): (RecordRow, Vec<u8>)) -> Result<RecordRow, StoreError> {
        let text = self.unseal(record_name(&row.kind, &row.key), &sealed)?;
        Ok(RecordRow { text, ..row })
    }

    /// Things of a kind, the last changed first.
    pub fn records(&mut self, kind: &str, n_max: usize) -> Result<Vec<RecordRow>, StoreError> {
        let sql = "SELECT kind, key, origin, sealed_entry FROM records WHERE kind = ?1 \
                   ORDER BY n DESC LIMIT ?2";
        self.found(sql, params![kind, n_max as i64])
    }

    /// Copies of a thing, the oldest first.
    pub fn copies(&mut self, kind: &str, key: &str) -> Result<Vec<RecordRow>, StoreError> {
        let sql = "SELECT kind, key, origin, sealed_entry FROM copies \
                   WHERE kind = ?1 AND key = ?2 ORDER BY n";
        self.found(sql, params![kind, key])
    }

    fn found(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<RecordRow>, StoreError> {
        let mut rows = self.connection.prepare(sql)?;
        let mut rows = rows.query(values)?;
        let (mut found, mut n_bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let record = match self.open_record(record_of(row)?) {
                Ok(record) => record,
                // One that was changed on the disk must not hide the others.
                Err(StoreError::Sealed { what }) => {
                    tracing::warn!(what, "this cannot be read and is left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            n_bytes += record.text.len();
            if !found.is_empty() && n_bytes > SYNC_SHOWN_BYTES_MAX {
                break;
            }
            found.push(record);
        }
        Ok(found)
    }

    /// How many things and copies there are of each kind.
    pub fn record_counts(&mut self) -> Result<Vec<(String, i64)>, StoreError> {
        let mut rows =
            self.connection.prepare("SELECT kind, count(*) FROM records GROUP BY kind")?;
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Keeps what is known of a thing; what changed the longest ago makes room.
    pub fn put_record(&mut self, row: &RecordRow) -> Result<(), StoreError> {
        let sealed = self.seal(&record_name(&row.kind, &row.key), &row.text)?;
        // A row that changes is the newest again.
        let sql = "INSERT OR REPLACE INTO records (kind, key, origin, sealed_entry) \
                   VALUES (?1, ?2, ?3, ?4)";
        let values = params![row.kind, row.key, row.origin, sealed];
        self.connection.prepare(sql)?.execute(values)?;
        if self.connection.last_insert_rowid() % LOOK_EVERY == 0 {
            let sql = "DELETE FROM records WHERE n IN (SELECT n FROM (SELECT n, \
                       sum(length(sealed_entry)) OVER newest AS n_bytes, \
                       count(*) OVER newest AS n_row FROM records \
                       WINDOW newest AS (ORDER BY n DESC)) WHERE n_bytes > ?1 OR n_row > ?2)";
            let values = params![SYNC_RECORDS_BYTES_MAX, SYNC_RECORDS_MAX];
            self.connection.prepare(sql)?.execute(values)?;
        }
        Ok(())
    }

    /// Keeps a copy of what does not count; the oldest of its thing go.
    pub fn put_copy(&mut self, row: &RecordRow) -> Result<(), StoreError> {
        let sealed = self.seal(&record_name(&row.kind, &row.key), &row.text)?;
        let sql = "INSERT INTO copies (kind, key, origin, sealed_entry) VALUES (?1, ?2, ?3, ?4)";
        let values = params![row.kind, row.key, row.origin, sealed];
        self.connection.prepare(sql)?.execute(values)?;
        let old = "DELETE FROM copies WHERE kind = ?1 AND key = ?2 AND n <= (SELECT n FROM copies \
                   WHERE kind = ?1 AND key = ?2 ORDER BY n DESC LIMIT 1 OFFSET ?3)";
        let values = params![row.kind, row.key, SYNC_COPIES_MAX as i64];
        self.connection.prepare(old)?.execute(values)?;
        let all = "DELETE FROM copies WHERE n <= \
                   (SELECT n FROM copies ORDER BY n DESC LIMIT 1 OFFSET ?1)";
        self.connection.prepare(all)?.execute([SYNC_RECORDS_MAX])?;
        if self.connection.last_insert_rowid() % COPIES_LOOK_EVERY == 0 {
            let large = "DELETE FROM copies WHERE n IN (SELECT n FROM (SELECT n, \
                         sum(length(sealed_entry)) OVER (ORDER BY n DESC) AS n_bytes \
                         FROM copies) WHERE n_bytes > ?1)";
            self.connection.prepare(large)?.execute([SYNC_COPIES_BYTES_MAX])?;
        }
        Ok(())
    }

    /// Sets an entry aside; the oldest of its peer make room.
    pub fn hold(&mut self, peer: &str, text: &[u8], why: &str) -> Result<(), StoreError> {
        let sealed = self.seal(&held_name(peer), text)?;
        let sql = "INSERT INTO held (peer, why, held_ms, sealed_entry) VALUES (?1, ?2, ?3, ?4)";
        self.connection.prepare(sql)?.execute(params![peer, why, now_ms(), sealed])?;
        let old = "DELETE FROM held WHERE peer = ?1 AND n <= (SELECT n FROM held \
                   WHERE peer = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)";
        self.connection.prepare(old)?.execute(params![peer, SYNC_HELD_MAX as i64])?;
        let large = "DELETE FROM held WHERE n IN (SELECT n FROM (SELECT n, \
                     sum(length(sealed_entry)) OVER (ORDER BY n DESC) AS n_bytes FROM held \
                     WHERE peer = ?1) WHERE n_bytes > ?2)";
        self.connection.prepare(large)?.execute(params![peer, SYNC_HELD_BYTES_MAX])?;
        Ok(())
    }

    /// Entries that are set aside, the oldest first.
    pub fn held(&mut self) -> Result<Vec<HeldRow>, StoreError> {
        let sql = "SELECT n, peer, why, held_ms, sealed_entry FROM held ORDER BY n";
        let mut rows = self.connection.prepare(sql)?;
        let row = |row: &Row<'_>| {
            let (n, peer, why) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(HeldRow { n, peer, why, held_ms: row.get(3)?, text: row.get(4)? })
        };
        let rows = rows.query_map([], row)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let open = |row: HeldRow| {
            // What was changed on the disk is shown, and nothing else can be done with it.
            let text = self.unseal(held_name(&row.peer), &row.text).unwrap_or_default();
            Ok(HeldRow { text, ..row })
        };
        rows.into_iter().map(open).collect()
    }

    /// How many entries of a peer are set aside.
    pub fn n_held(&mut self, peer: &str) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM held WHERE peer = ?1";
        let n: i64 = self.connection.prepare(sql)?.query_row([peer], |row| row.get(0))?;
        Ok(n as u64)
    }

    /// Forgets an entry that was set aside.
    pub fn drop_held(&mut self, n: i64) -> Result<(), StoreError> {
        self.connection.prepare("DELETE FROM held WHERE n = ?1")?.execute([n])?;
        Ok(())
    }

    /// Notes what a record asks of another room.
    pub fn put_act(&mut self, peer: &str, kind: &str, key: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO acts (peer, kind, key) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        self.connection.prepare(sql)?.execute([peer, kind, key])?;
        Ok(())
    }

    /// What records ask of other rooms, the oldest first, from behind a number on.
    pub fn acts(&mut self, after: i64, n_max: usize) -> Result<Vec<ActRow>, StoreError> {
        let sql = "SELECT n, peer, kind, key FROM acts WHERE n > ?1 ORDER BY n LIMIT ?2";
        let mut rows = self.connection.prepare(sql)?;
        let row = |row: &Row<'_>| {
            let (n, peer, kind) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(ActRow { n, peer, kind, key: row.get(3)? })
        };
        Ok(rows.query_map([after, n_max as i64], row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// It is done.
    pub fn drop_act(&mut self, n: i64) -> Result<(), StoreError> {
        self.connection.prepare("DELETE FROM acts WHERE n = ?1")?.execute([n])?;
        Ok(())
    }
}

fn out_of(row: &Row<'_>) -> rusqlite::Result<(OutRow, Vec<u8>)> {
    let number = |i: usize| row.get::<_, i64>(i).map(|n| n as u64);
    let out = OutRow {
        seq: number(0)?,
        id: number(1)?,
        n_bytes: number(2)?,
        written_ms: row.get(3)?,
        text: None,
    };
    Ok((out, row.get(4)?))
}

fn record_of(row: &Row<'_>) -> rusqlite::Result<(RecordRow, Vec<u8>)> {
    let (kind, key, origin) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok((RecordRow { kind, key, origin, text: Vec::new() }, row.get(3)?))
}
