//! The tables of sync, as rows: what they mean is the business of the room `sync`.
//!
//! ```text
//! links    one row a peer: where its two logs stand         outbox   what is told to a peer
//! inbox    ids of what a peer told                          records  what is known of each thing
//! copies   what did not count          held   what could not take effect
//! acts     what a record asks of other rooms, until it is done
//! ```
//!
//! Texts are sealed under their row's name. The statements are of [`super::sql`], so the tables can
//! be this machine's own or a server's.

use super::sql::Value::{self, Bytes, Int, Text};
use super::sql::{Row, Sql};
use super::{Store, StoreError, now_ms};
use crate::base::limits::{
    SYNC_ACTS_KEPT, SYNC_COPIES_BYTES_MAX, SYNC_COPIES_MAX, SYNC_HELD_BYTES_MAX, SYNC_HELD_MAX,
    SYNC_RECORDS_BYTES_MAX, SYNC_RECORDS_MAX, SYNC_SEEN_MAX, SYNC_SHOWN_BYTES_MAX,
};
use crate::seal::Sealer;

/// Ids between two looks at how many there are.
const LOOK_EVERY: i64 = 512;
/// Rows that may be large between two looks at what all of them take.
pub(super) const BYTES_LOOK_EVERY: i64 = 16;

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

/// The tables within a transaction.
pub struct SyncTx<'a> {
    sql: &'a mut dyn Sql,
    sealer: &'a Sealer,
}

impl Store {
    /// Runs `work` over the tables of sync in a transaction, and returns when it is on the disk.
    ///
    /// # Errors
    /// Those of `work`, or if the disk does not take it; then nothing has changed. Where the tables
    /// are a server's that goes away at the end, nobody knows whether it has: see
    /// [`StoreError::Away`].
    pub fn sync<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SyncTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if let Some(shared) = self.0.shared.get() {
            return shared.sync(work);
        }
        let sealer = self.0.sealer.clone();
        self.write(move |mut connection| work(&mut SyncTx::new(&mut connection, &sealer)))
    }

    /// Looks at the tables of sync.
    ///
    /// # Errors
    /// Those of `work`; one that writes fails.
    pub fn sync_look<T: Send>(
        &self,
        work: impl FnOnce(&mut SyncTx<'_>) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        if let Some(shared) = self.0.shared.get() {
            return shared.look(work);
        }
        self.read(|mut connection| work(&mut SyncTx::new(&mut connection, &self.0.sealer)))
    }
}

fn out_name(peer: &str, id: i64) -> String {
    format!("entry {id} for {peer}")
}

pub(super) fn record_name(kind: &str, key: &str) -> String {
    format!("record of {kind} {key}")
}

pub(super) fn held_name(peer: &str) -> String {
    format!("entry held from {peer}")
}

impl<'a> SyncTx<'a> {
    pub(super) fn new(sql: &'a mut dyn Sql, sealer: &'a Sealer) -> SyncTx<'a> {
        SyncTx { sql, sealer }
    }
}

impl SyncTx<'_> {
    pub(super) fn seal(&self, name: &str, text: &[u8]) -> Result<Vec<u8>, StoreError> {
        let failed = |source| StoreError::File { path: "random".into(), source };
        self.sealer.wrap(name, text).map_err(failed)
    }

    pub(super) fn unseal(&self, name: String, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.sealer.unwrap(&name, value).ok_or(StoreError::Sealed { what: name })
    }

    pub(super) fn run(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.sql.run(sql, values)
    }

    pub(super) fn rows(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        self.sql.rows(sql, values)
    }

    /// The first row of a statement.
    pub(super) fn one(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.sql.rows(sql, values)?.into_iter().next())
    }

    /// Inserts a row; whether it is time to look how many there are.
    pub(super) fn insert(&mut self, sql: &str, values: &[Value<'_>]) -> Result<bool, StoreError> {
        Ok(self.number(sql, values)? % LOOK_EVERY == 0)
    }

    /// Inserts a row; its number.
    pub(super) fn number(&mut self, sql: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        let n = self.one(&format!("{sql} RETURNING n"), values)?.map(|mut row| row.int(0));
        Ok(n.transpose()?.unwrap_or(0))
    }

    /// The nodes of all peers.
    pub fn peers(&mut self) -> Result<Vec<String>, StoreError> {
        let rows = self.rows("SELECT node FROM peers ORDER BY node", &[])?;
        rows.into_iter().map(|mut row| row.text(0)).collect()
    }

    /// Whether a peer has paired by a code that was shown here.
    pub fn has_paired_here(&mut self, peer: &str) -> Result<bool, StoreError> {
        let row = self.one("SELECT paired_here FROM peers WHERE node = ?1", &[Text(peer)])?;
        row.map_or(Ok(false), |mut row| Ok(row.int(0)? != 0))
    }

    /// Where the logical clock stands.
    pub fn clock(&mut self) -> Result<u64, StoreError> {
        let row = self.one("SELECT value FROM meta WHERE key = 'sync_clock'", &[])?;
        row.map_or(Ok(0), |mut row| Ok(row.int(0)? as u64))
    }

    /// Sets the logical clock.
    pub fn set_clock(&mut self, clock: u64) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta (key, value) VALUES ('sync_clock', ?1) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.run(sql, &[Int(clock as i64)]).map(drop)
    }

    /// The state of a link, as it was written.
    pub fn link(&mut self, peer: &str) -> Result<Option<String>, StoreError> {
        let row = self.one("SELECT state FROM links WHERE peer = ?1", &[Text(peer)])?;
        row.map(|mut row| row.text(0)).transpose()
    }

    /// Keeps the state of a link.
    pub fn set_link(&mut self, peer: &str, state: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO links (peer, state) VALUES (?1, ?2) \
                   ON CONFLICT (peer) DO UPDATE SET state = excluded.state";
        self.run(sql, &[Text(peer), Text(state)]).map(drop)
    }

    /// The last words with a peer, of all processes; only where they share a store.
    pub fn talk(&mut self, peer: &str) -> Result<Option<String>, StoreError> {
        let row = self.one("SELECT state FROM talks WHERE peer = ?1", &[Text(peer)])?;
        row.map(|mut row| row.text(0)).transpose()
    }

    /// Keeps them; only where processes share a store.
    pub fn set_talk(&mut self, peer: &str, state: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO talks (peer, state) VALUES (?1, ?2) \
                   ON CONFLICT (peer) DO UPDATE SET state = excluded.state";
        self.run(sql, &[Text(peer), Text(state)]).map(drop)
    }

    /// Appends to an outbox; the row has a text.
    pub fn put_out(&mut self, peer: &str, row: &OutRow) -> Result<(), StoreError> {
        let text = row.text.as_deref().unwrap_or_default();
        let sealed = self.seal(&out_name(peer, row.id as i64), text)?;
        let sql = "INSERT INTO outbox (peer, seq, id, n_bytes, written_ms, sealed_entry) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let [seq, id, n_bytes] = [row.seq, row.id, row.n_bytes].map(|n| Int(n as i64));
        let written = Int(row.written_ms);
        self.run(sql, &[Text(peer), seq, id, n_bytes, written, Bytes(&sealed)]).map(drop)
    }

    /// Entries of an outbox from `from` on: so many bytes at most, but one at least.
    pub fn outs(
        &mut self,
        peer: &str,
        from: u64,
        n_max: usize,
        n_bytes_max: usize,
    ) -> Result<Vec<OutRow>, StoreError> {
        // How far first: texts that are not taken must not be read.
        let sql = "SELECT seq, n_bytes FROM outbox WHERE peer = ?1 AND seq >= ?2 \
                   ORDER BY seq LIMIT ?3";
        let rows = self.rows(sql, &[Text(peer), Int(from as i64), Int(n_max as i64)])?;
        let Some(to) = last_within(rows, n_bytes_max)? else { return Ok(Vec::new()) };
        let sql = "SELECT seq, id, n_bytes, written_ms, sealed_entry FROM outbox \
                   WHERE peer = ?1 AND seq >= ?2 AND seq <= ?3 ORDER BY seq";
        let rows = self.rows(sql, &[Text(peer), Int(from as i64), Int(to)])?;
        let open = |mut row: Row| {
            let out = out_of(&mut row)?;
            let text = self.sealer.unwrap(&out_name(peer, out.id as i64), &row.bytes(4)?);
            Ok(OutRow { text, ..out })
        };
        rows.into_iter().map(open).collect()
    }

    /// The id of an entry of an outbox.
    pub fn out_id(&mut self, peer: &str, seq: u64) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT id FROM outbox WHERE peer = ?1 AND seq = ?2";
        let row = self.one(sql, &[Text(peer), Int(seq as i64)])?;
        row.map(|mut row| Ok(row.int(0)? as u64)).transpose()
    }

    /// The first entry of an outbox from `from` on, without its text.
    pub fn out_front(&mut self, peer: &str, from: u64) -> Result<Option<OutRow>, StoreError> {
        let sql = "SELECT seq, id, n_bytes, written_ms FROM outbox \
                   WHERE peer = ?1 AND seq >= ?2 ORDER BY seq LIMIT 1";
        let row = self.one(sql, &[Text(peer), Int(from as i64)])?;
        row.map(|mut row| out_of(&mut row)).transpose()
    }

    /// Removes an entry of an outbox.
    pub fn drop_out(&mut self, peer: &str, seq: u64) -> Result<(), StoreError> {
        let sql = "DELETE FROM outbox WHERE peer = ?1 AND seq = ?2";
        self.run(sql, &[Text(peer), Int(seq as i64)]).map(drop)
    }

    /// Moves all entries of an outbox up by `n`.
    pub fn shift_outs(&mut self, peer: &str, n: u64) -> Result<(), StoreError> {
        // By way of negative numbers: no two rows may have one number on the way.
        let up = "UPDATE outbox SET seq = -(seq + ?2) WHERE peer = ?1";
        self.run(up, &[Text(peer), Int(n as i64)])?;
        let back = "UPDATE outbox SET seq = -seq WHERE peer = ?1 AND seq < 0";
        self.run(back, &[Text(peer)]).map(drop)
    }

    /// Whether an entry of a peer was never seen; from now on it was.
    pub fn see(&mut self, peer: &str, id: u64) -> Result<bool, StoreError> {
        let id = Int(id as i64);
        // Asked first: an INSERT that meets a conflict takes a number all the same on a server.
        let sql = "SELECT id FROM inbox WHERE peer = ?1 AND id = ?2";
        if self.one(sql, &[Text(peer), id])?.is_some() {
            return Ok(false);
        }
        let sql = "INSERT INTO inbox (peer, id) VALUES (?1, ?2)";
        if self.insert(sql, &[Text(peer), id])? {
            let sql = "DELETE FROM inbox WHERE peer = ?1 AND n <= (SELECT n FROM inbox \
                       WHERE peer = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)";
            self.run(sql, &[Text(peer), Int(SYNC_SEEN_MAX as i64)])?;
        }
        Ok(true)
    }

    /// What is known of a thing.
    pub fn record(&mut self, kind: &str, key: &str) -> Result<Option<RecordRow>, StoreError> {
        let sql = "SELECT kind, key, origin, sealed_entry FROM records \
                   WHERE kind = ?1 AND key = ?2";
        let row = self.one(sql, &[Text(kind), Text(key)])?;
        row.map(|row| self.open_record(row)).transpose()
    }

    fn open_record(&self, mut row: Row) -> Result<RecordRow, StoreError> {
        let (kind, key, origin) = (row.text(0)?, row.text(1)?, row.text(2)?);
        let text = self.unseal(record_name(&kind, &key), &row.bytes(3)?)?;
        Ok(RecordRow { kind, key, origin, text })
    }

    /// Things of a kind, the last changed first.
    pub fn records(&mut self, kind: &str, n_max: usize) -> Result<Vec<RecordRow>, StoreError> {
        let sql = "SELECT n, length(sealed_entry) FROM records WHERE kind = ?1 \
                   ORDER BY n DESC LIMIT ?2";
        let rows = self.rows(sql, &[Text(kind), Int(n_max as i64)])?;
        let Some(to) = last_within(rows, SYNC_SHOWN_BYTES_MAX)? else { return Ok(Vec::new()) };
        let sql = "SELECT kind, key, origin, sealed_entry FROM records \
                   WHERE kind = ?1 AND n >= ?2 ORDER BY n DESC LIMIT ?3";
        let rows = self.rows(sql, &[Text(kind), Int(to), Int(n_max as i64)])?;
        self.open_records(rows)
    }

    /// Copies of a thing, the oldest first.
    pub fn copies(&mut self, kind: &str, key: &str) -> Result<Vec<RecordRow>, StoreError> {
        let sql = "SELECT kind, key, origin, sealed_entry FROM copies \
                   WHERE kind = ?1 AND key = ?2 ORDER BY n";
        let rows = self.rows(sql, &[Text(kind), Text(key)])?;
        self.open_records(rows)
    }

    /// Records of rows; one that was changed on the disk must not hide the others.
    fn open_records(&self, rows: Vec<Row>) -> Result<Vec<RecordRow>, StoreError> {
        let opened = rows.into_iter().filter_map(|row| match self.open_record(row) {
            Err(StoreError::Sealed { what }) => {
                tracing::warn!(what, "this cannot be read and is left out");
                None
            }
            opened => Some(opened),
        });
        opened.collect()
    }

    /// How many things there are of each kind.
    pub fn record_counts(&mut self) -> Result<Vec<(String, i64)>, StoreError> {
        let sql = "SELECT kind, count(*) FROM records GROUP BY kind ORDER BY kind";
        let rows = self.rows(sql, &[])?;
        rows.into_iter().map(|mut row| Ok((row.text(0)?, row.int(1)?))).collect()
    }

    /// Keeps what is known of a thing; what changed the longest ago makes room.
    pub fn put_record(&mut self, row: &RecordRow) -> Result<(), StoreError> {
        let sealed = self.seal(&record_name(&row.kind, &row.key), &row.text)?;
        // A row that changes is the newest again.
        let sql = "DELETE FROM records WHERE kind = ?1 AND key = ?2";
        self.run(sql, &[Text(&row.kind), Text(&row.key)])?;
        let sql = "INSERT INTO records (kind, key, origin, sealed_entry) VALUES (?1, ?2, ?3, ?4)";
        if self.insert(sql, &values_of(row, &sealed))? {
            let sql = "DELETE FROM records WHERE n IN (SELECT n FROM (SELECT n, \
                       sum(length(sealed_entry)) OVER newest AS n_bytes, \
                       count(*) OVER newest AS n_row FROM records \
                       WINDOW newest AS (ORDER BY n DESC)) AS counted \
                       WHERE n_bytes > ?1 OR n_row > ?2)";
            self.run(sql, &[Int(SYNC_RECORDS_BYTES_MAX), Int(SYNC_RECORDS_MAX)])?;
        }
        Ok(())
    }

    /// Keeps a copy of what does not count; the oldest of its thing go.
    pub fn put_copy(&mut self, row: &RecordRow) -> Result<(), StoreError> {
        let sealed = self.seal(&record_name(&row.kind, &row.key), &row.text)?;
        let sql = "INSERT INTO copies (kind, key, origin, sealed_entry) VALUES (?1, ?2, ?3, ?4)";
        let n = self.number(sql, &values_of(row, &sealed))?;
        let old = "DELETE FROM copies WHERE kind = ?1 AND key = ?2 AND n <= (SELECT n FROM copies \
                   WHERE kind = ?1 AND key = ?2 ORDER BY n DESC LIMIT 1 OFFSET ?3)";
        self.run(old, &[Text(&row.kind), Text(&row.key), Int(SYNC_COPIES_MAX as i64)])?;
        let all = "DELETE FROM copies WHERE n <= \
                   (SELECT n FROM copies ORDER BY n DESC LIMIT 1 OFFSET ?1)";
        self.run(all, &[Int(SYNC_RECORDS_MAX)])?;
        if n % BYTES_LOOK_EVERY == 0 {
            let large = "DELETE FROM copies WHERE n IN (SELECT n FROM (SELECT n, \
                         sum(length(sealed_entry)) OVER (ORDER BY n DESC) AS n_bytes \
                         FROM copies) AS counted WHERE n_bytes > ?1)";
            self.run(large, &[Int(SYNC_COPIES_BYTES_MAX)])?;
        }
        Ok(())
    }

    /// Sets an entry aside; the oldest of its peer make room.
    pub fn hold(&mut self, peer: &str, text: &[u8], why: &str) -> Result<(), StoreError> {
        let sealed = self.seal(&held_name(peer), text)?;
        let sql = "INSERT INTO held (peer, why, held_ms, sealed_entry) VALUES (?1, ?2, ?3, ?4)";
        // No text of a server has a zero.
        let why = why.replace('\0', "");
        self.run(sql, &[Text(peer), Text(&why), Int(now_ms()), Bytes(&sealed)])?;
        let old = "DELETE FROM held WHERE peer = ?1 AND n <= (SELECT n FROM held \
                   WHERE peer = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)";
        self.run(old, &[Text(peer), Int(SYNC_HELD_MAX as i64)])?;
        let large = "DELETE FROM held WHERE n IN (SELECT n FROM (SELECT n, \
                     sum(length(sealed_entry)) OVER (ORDER BY n DESC) AS n_bytes FROM held \
                     WHERE peer = ?1) AS counted WHERE n_bytes > ?2)";
        self.run(large, &[Text(peer), Int(SYNC_HELD_BYTES_MAX)]).map(drop)
    }

    /// Entries that are set aside, the oldest first.
    pub fn held(&mut self) -> Result<Vec<HeldRow>, StoreError> {
        let sql = "SELECT n, peer, why, held_ms, sealed_entry FROM held ORDER BY n";
        let open = |mut row: Row| {
            let (n, peer, why, held_ms) = (row.int(0)?, row.text(1)?, row.text(2)?, row.int(3)?);
            // What was changed on the disk is shown, and nothing else can be done with it.
            let text = self.sealer.unwrap(&held_name(&peer), &row.bytes(4)?).unwrap_or_default();
            Ok(HeldRow { n, peer, why, held_ms, text })
        };
        self.sql.rows(sql, &[])?.into_iter().map(open).collect()
    }

    /// How many entries of a peer are set aside.
    pub fn n_held(&mut self, peer: &str) -> Result<u64, StoreError> {
        let row = self.one("SELECT count(*) FROM held WHERE peer = ?1", &[Text(peer)])?;
        row.map_or(Ok(0), |mut row| Ok(row.int(0)? as u64))
    }

    /// Forgets an entry that was set aside.
    pub fn drop_held(&mut self, n: i64) -> Result<(), StoreError> {
        self.run("DELETE FROM held WHERE n = ?1", &[Int(n)]).map(drop)
    }

    /// Notes what a record asks of another room; the oldest make room.
    pub fn put_act(&mut self, peer: &str, kind: &str, key: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO acts (peer, kind, key) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        if self.insert(sql, &[Text(peer), Text(kind), Text(key)])? {
            let sql = "DELETE FROM acts WHERE n <= \
                       (SELECT n FROM acts ORDER BY n DESC LIMIT 1 OFFSET ?1)";
            self.run(sql, &[Int(SYNC_ACTS_KEPT)])?;
        }
        Ok(())
    }

    /// What records ask of other rooms, the oldest first, from behind a number on.
    pub fn acts(&mut self, after: i64, n_max: usize) -> Result<Vec<ActRow>, StoreError> {
        let sql = "SELECT n, peer, kind, key FROM acts WHERE n > ?1 ORDER BY n LIMIT ?2";
        let act = |mut row: Row| {
            let (n, peer, kind) = (row.int(0)?, row.text(1)?, row.text(2)?);
            Ok(ActRow { n, peer, kind, key: row.text(3)? })
        };
        self.rows(sql, &[Int(after), Int(n_max as i64)])?.into_iter().map(act).collect()
    }

    /// It is done.
    pub fn drop_act(&mut self, kind: &str, key: &str) -> Result<(), StoreError> {
        // Not by its number, which SQLite gives out again.
        let sql = "DELETE FROM acts WHERE kind = ?1 AND key = ?2";
        self.run(sql, &[Text(kind), Text(key)]).map(drop)
    }
}

/// The number of the last row that is within so many bytes; rows are a number and its bytes, and
/// the first is always within.
fn last_within(rows: Vec<Row>, n_bytes_max: usize) -> Result<Option<i64>, StoreError> {
    let (mut last, mut n_bytes) = (None, 0);
    for mut row in rows {
        n_bytes += row.int(1)?;
        if last.is_some() && n_bytes > n_bytes_max as i64 {
            break;
        }
        last = Some(row.int(0)?);
    }
    Ok(last)
}

fn out_of(row: &mut Row) -> Result<OutRow, StoreError> {
    let mut number = |i: usize| row.int(i).map(|n| n as u64);
    let (seq, id, n_bytes) = (number(0)?, number(1)?, number(2)?);
    Ok(OutRow { seq, id, n_bytes, written_ms: row.int(3)?, text: None })
}

fn values_of<'a>(row: &'a RecordRow, sealed: &'a [u8]) -> [Value<'a>; 4] {
    [Text(&row.kind), Text(&row.key), Text(&row.origin), Bytes(sealed)]
}
