//! What jobs tell peers of, from the transactions that change them.
//!
//! ```text
//! own tables      a job changes | its entry is in the outbox             one transaction
//! shared tables   a job changes | what it tells is in `told`             one transaction
//!                 told -> the shared outbox | its id is in `forwarded`   one transaction
//!                 it is gone from `told`
//! ```
//!
//! Jobs are on this machine's disk, also where the tables of sync are shared with other processes.
//! Then no transaction holds both, so what a job tells waits in between and is handed on under an
//! id: who dies between the last two lines hands it on again, and it is known.

use std::sync::{Arc, OnceLock};

use rusqlite::{Connection, params};

use super::sql::Value::{Bytes, Int, Text};
use super::sync::{BYTES_LOOK_EVERY, SyncTx};
use super::{AnswerRow, JobRow, Store, StoreError};
use crate::base::limits::{
    SYNC_TOLD_BATCH, SYNC_TOLD_BATCH_BYTES, SYNC_TOLD_BYTES_MAX, SYNC_TOLD_MAX, SYNC_TOLD_SEEN_MAX,
};
use crate::seal::Sealer;

/// A job that came to be, is over, or is tried again.
pub struct JobTold<'a> {
    /// As it stands.
    pub row: &'a JobRow,
    /// Its body, when it came to be.
    pub body: Option<&'a [u8]>,
    /// Its answer, when it has one.
    pub answer: Option<&'a AnswerRow>,
}

/// What a job told that is not yet where peers are told from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ToldRow {
    pub n: i64,
    pub id: u64,
    /// `None` if it does not open.
    pub text: Option<Vec<u8>>,
}

/// Who tells peers of changes, in the transactions that make them.
pub trait Tells: Send + Sync {
    /// A job came to be, is over, or is tried again; `tx` is of this machine's own tables.
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
        mut connection: &Connection,
        told: &JobTold<'_>,
    ) -> Result<(), StoreError> {
        match self.tells.get() {
            Some(tells) => tells.job(&mut SyncTx::new(&mut connection, &self.sealer), told),
            None => Ok(()),
        }
    }
}

fn told_name(id: u64) -> String {
    format!("told {id}")
}

impl SyncTx<'_> {
    /// Keeps what a job tells until it is handed on; the oldest makes room. Only in a transaction
    /// of this machine's own tables.
    pub fn put_told(&mut self, id: u64, text: &[u8]) -> Result<(), StoreError> {
        let sealed = self.seal(&told_name(id), text)?;
        let sql = "INSERT INTO told (id, sealed_change) VALUES (?1, ?2)";
        let values = [Int(id as i64), Bytes(&sealed)];
        if self.number(sql, &values)? % BYTES_LOOK_EVERY == 0 {
            let sql = "DELETE FROM told WHERE n IN (SELECT n FROM (SELECT n, \
                       sum(length(sealed_change)) OVER newest AS n_bytes, \
                       count(*) OVER newest AS n_row FROM told \
                       WINDOW newest AS (ORDER BY n DESC)) AS counted \
                       WHERE n_bytes > ?1 OR n_row > ?2)";
            let n = self.run(sql, &[Int(SYNC_TOLD_BYTES_MAX), Int(SYNC_TOLD_MAX)])?;
            if n > 0 {
                tracing::error!(n, "too much waits for the shared store; the oldest is not told");
            }
        }
        Ok(())
    }

    /// Whether what `source` hands on was never handed on before; from now on it was.
    pub fn is_new_told(&mut self, source: &str, id: u64) -> Result<bool, StoreError> {
        let id = Int(id as i64);
        let sql = "SELECT id FROM forwarded WHERE source = ?1 AND id = ?2";
        if self.one(sql, &[Text(source), id])?.is_some() {
            return Ok(false);
        }
        let sql = "INSERT INTO forwarded (source, id) VALUES (?1, ?2)";
        if self.insert(sql, &[Text(source), id])? {
            let sql = "DELETE FROM forwarded WHERE source = ?1 AND n <= (SELECT n FROM forwarded \
                       WHERE source = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)";
            self.run(sql, &[Text(source), Int(SYNC_TOLD_SEEN_MAX)])?;
        }
        Ok(true)
    }
}

impl Store {
    /// From now on changes are told by `tells`; only the first call counts.
    pub fn tell_by(&self, tells: Box<dyn Tells>) {
        let _ = self.0.teller.tells.set(tells);
    }

    /// What waits to be handed on, the oldest first: so much that it can be held at a time.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn told(&self) -> Result<Vec<ToldRow>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT n, id, sealed_change FROM told ORDER BY n LIMIT ?1";
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query([SYNC_TOLD_BATCH as i64])?;
            let (mut told, mut n_bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let (n, id, sealed): (i64, i64, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
                n_bytes += sealed.len();
                if !told.is_empty() && n_bytes > SYNC_TOLD_BATCH_BYTES {
                    break;
                }
                let id = id as u64;
                let text = self.0.sealer.unwrap(&told_name(id), &sealed);
                told.push(ToldRow { n, id, text });
            }
            Ok(told)
        })
    }

    /// It was handed on, up to the row `n`.
    ///
    /// # Errors
    /// If the disk does not take it; then it is handed on again.
    pub fn drop_told(&self, n: i64) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection.execute("DELETE FROM told WHERE n <= ?1", params![n])?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_handed_on_in_parts_that_can_be_held() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let put = |n: u64, n_bytes: usize| {
            let put = move |tx: &mut SyncTx<'_>| {
                (0..n).try_for_each(|id| tx.put_told(id, &vec![b'x'; n_bytes]))
            };
            store.sync(put).unwrap();
        };
        let next = || {
            let told = store.told().unwrap();
            if let Some(last) = told.last() {
                store.drop_told(last.n).unwrap();
            }
            told.len()
        };
        put(5, 1 << 20);
        assert_eq!([next(), next(), next()], [3, 2, 0], "4 MiB, seals included");
        put(1, SYNC_TOLD_BATCH_BYTES);
        assert_eq!([next(), next()], [1, 0], "one at least");
        put(SYNC_TOLD_BATCH as u64 + 1, 9);
        assert_eq!([next(), next()], [SYNC_TOLD_BATCH, 1]);
    }
}
