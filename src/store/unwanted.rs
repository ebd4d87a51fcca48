//! Machines that have a job which nobody wants any more, until they have heard of it.
//!
//! A row comes with the change that makes its job unwanted, in one transaction, and goes when the
//! machine was told, or with the job. Of each job there are [`JOB_UNWANTED_MAX`] at most.

use rusqlite::{Connection, Row, params};

use super::{Store, StoreError, UnwantedRow};
use crate::base::limits::JOB_UNWANTED_MAX;

/// Writes down that the job `n`, at its revision of now, is not wanted where `holder` says.
pub(super) fn put(connection: &Connection, n: i64, holder: &str) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO unwanted SELECT ?2, n, revision FROM jobs WHERE n = ?1";
    connection.prepare(sql)?.execute(params![n, holder])?;
    // One that is taken back and given again without end forgets the oldest.
    let sql = "DELETE FROM unwanted WHERE job = ?1 AND holder NOT IN (SELECT holder FROM unwanted \
               WHERE job = ?1 ORDER BY revision DESC LIMIT ?2)";
    connection.prepare(sql)?.execute(params![n, JOB_UNWANTED_MAX]).map(|_| ())
}

impl Store {
    /// Who is to hear that nobody wants a job, the oldest job first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn unwanted(&self) -> Result<Vec<UnwantedRow>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT unwanted.holder, jobs.id, unwanted.revision FROM unwanted \
                       JOIN jobs ON jobs.n = unwanted.job ORDER BY job, unwanted.revision";
            let mut rows = connection.prepare(sql)?;
            let row = |row: &Row<'_>| {
                Ok(UnwantedRow { holder: row.get(0)?, id: row.get(1)?, revision: row.get(2)? })
            };
            Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The machine was told. Where the job was given to it and taken back once more meanwhile, it
    /// is to hear that as well.
    ///
    /// # Errors
    /// If the disk does not take it; then it is told again.
    pub fn drop_unwanted(&self, row: &UnwantedRow) -> Result<(), StoreError> {
        let (holder, revision) = (row.holder.clone(), row.revision);
        let sql = "DELETE FROM unwanted WHERE holder = ?1 AND revision = ?2";
        self.write(move |connection| {
            Ok(connection.execute(sql, params![holder, revision]).map(|_| ())?)
        })
    }
}
