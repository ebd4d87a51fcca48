//! The tables of jobs, as rows: what they mean is the business of the room `jobs`.
//!
//! Every change names the state that it starts from, so of two that race one wins and the other
//! hears that it did not. Bodies, answers and pieces of answers are sealed under the job's id.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::sync::{JobTold, Teller};
use super::{Store, StoreError};

/// A job that is to be.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct NewJobRow {
    pub id: String,
    pub tenant: i64,
    pub request_id: Option<String>,
    pub body_hash: Vec<u8>,
    pub endpoint: String,
    pub body: Vec<u8>,
    pub seed: i64,
    pub priority: i64,
    pub created_ms: i64,
    pub deadline_ms: Option<i64>,
    pub n_attempt_max: i64,
    pub callback: Option<String>,
    pub ledger: LedgerRow,
}

/// What changes while a job lives.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct LedgerRow {
    pub state: String,
    pub due_ms: i64,
    pub n_attempt: i64,
    pub n_broken: i64,
    /// Counts texts: one more each time a text begins that is not the one before.
    pub epoch: i64,
    /// Tokens that were durable when it was last started.
    pub n_token_start: i64,
    /// How it went on after its last start.
    pub way: String,
    pub started_ms: Option<i64>,
    pub finished_ms: Option<i64>,
    pub reason: Option<String>,
}

/// A job as it stands, without its texts.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct JobRow {
    pub n: i64,
    pub id: String,
    pub tenant: i64,
    pub request_id: Option<String>,
    pub body_hash: Vec<u8>,
    pub endpoint: String,
    pub n_bytes: i64,
    pub seed: i64,
    pub priority: i64,
    pub created_ms: i64,
    pub deadline_ms: Option<i64>,
    pub n_attempt_max: i64,
    pub callback: Option<String>,
    pub callback_state: Option<String>,
    pub ledger: LedgerRow,
    pub status: Option<i64>,
    /// Tokens of its answer that are on the disk.
    pub n_token: i64,
}

/// An answer as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRow {
    /// HTTP status.
    pub status: i64,
    /// Media type.
    pub media_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Pieces of an answer that become durable together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceRow {
    /// Which text.
    pub epoch: i64,
    /// Tokens of the text up to the end of these.
    pub end: i64,
    /// What the room `jobs` makes of them.
    pub pieces: Vec<u8>,
}

/// A callback that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CallbackRow {
    pub id: String,
    pub url: String,
    pub n_try: i64,
    pub due_ms: i64,
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Jobs that are not over.
    pub n_max: i64,
    /// Bytes of all jobs' bodies and answers.
    pub bytes_max: i64,
}

/// What became of a new job.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Insert {
    /// It is on the disk.
    New(JobRow),
    /// There is one of this tenant and request id.
    Exists(JobRow),
    /// So many wait already.
    FullCount(i64),
    /// So many bytes are taken already.
    FullBytes(i64),
}

/// A change of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which job.
    pub n: i64,
    /// Its id.
    pub id: String,
    /// The state that it is in now.
    pub from: &'static str,
    /// What it becomes.
    pub ledger: LedgerRow,
    /// With this answer.
    pub answer: Option<AnswerRow>,
    /// And these last pieces.
    pub pieces: Option<PieceRow>,
    /// Its callback is due from now on.
    pub calls_back: bool,
}

/// Jobs of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateCount {
    /// The state.
    pub state: String,
    /// Jobs.
    pub n: i64,
    /// Bytes of their bodies and answers.
    pub n_bytes: i64,
}

/// Which jobs are listed, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of whom; `None` for everybody.
    pub tenant: Option<i64>,
    /// In which state; `None` for any.
    pub state: Option<String>,
    /// Older than this one.
    pub before_n: Option<i64>,
    /// How many.
    pub n_max: i64,
}

const COLUMNS: &str = "n, id, tenant, request_id, body_hash, endpoint, n_bytes, seed, priority, \
    created_ms, deadline_ms, n_attempt_max, callback, callback_state, state, due_ms, n_attempt, \
    n_broken, epoch, n_token_start, way, started_ms, finished_ms, reason, status, \
    (SELECT coalesce(max(end), 0) FROM pieces WHERE job = jobs.n AND epoch = jobs.epoch)";
/// States in which a job waits or runs.
const OPEN: &str = "state IN ('queued', 'running')";

fn job_of(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let ledger = LedgerRow {
        state: row.get(14)?,
        due_ms: row.get(15)?,
        n_attempt: row.get(16)?,
        n_broken: row.get(17)?,
        epoch: row.get(18)?,
        n_token_start: row.get(19)?,
        way: row.get(20)?,
        started_ms: row.get(21)?,
        finished_ms: row.get(22)?,
        reason: row.get(23)?,
    };
    Ok(JobRow {
        n: row.get(0)?,
        id: row.get(1)?,
        tenant: row.get(2)?,
        request_id: row.get(3)?,
        body_hash: row.get(4)?,
        endpoint: row.get(5)?,
        n_bytes: row.get(6)?,
        seed: row.get(7)?,
        priority: row.get(8)?,
        created_ms: row.get(9)?,
        deadline_ms: row.get(10)?,
        n_attempt_max: row.get(11)?,
        callback: row.get(12)?,
        callback_state: row.get(13)?,
        ledger,
        status: row.get(24)?,
        n_token: row.get(25)?,
    })
}

fn find(
    connection: &Connection,
    condition: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<Option<JobRow>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE {condition}");
    connection.prepare(&sql)?.query_row(values, job_of).optional()
}

pub(super) fn put_pieces(
    connection: &Connection,
    n: i64,
    row: &PieceRow,
    sealed: &[u8],
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO pieces VALUES (?1, ?2, ?3, ?4)";
    let mut insert = connection.prepare(sql)?;
    insert.execute(params![n, row.epoch, row.end, sealed]).map(|_| ())
}

fn body_name(id: &str) -> String {
    format!("body of {id}")
}

fn answer_name(id: &str) -> String {
    format!("answer of {id}")
}

fn piece_name(id: &str, row: (i64, i64)) -> String {
    format!("pieces of {id} up to {}-{}", row.0, row.1)
}

impl Store {
    /// Puts a job into the queue, unless there is one of its request id or no room.
    ///
    /// # Errors
    /// If the disk does not take it; then it is not there.
    pub fn insert_job(&self, new: NewJobRow, limits: QueueLimits) -> Result<Insert, StoreError> {
        let sealed = self.seal(&body_name(&new.id), &new.body)?;
        let teller = self.0.teller.clone();
        self.write(move |connection| {
            let inserted = insert(connection, &new, &sealed, limits)?;
            if let Insert::New(row) = &inserted {
                teller.job(connection, &JobTold { row, body: Some(&new.body), answer: None })?;
            }
            Ok(inserted)
        })
    }

    /// A job by its id.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn job(&self, id: &str) -> Result<Option<JobRow>, StoreError> {
        self.read(|connection| Ok(find(connection, "id = ?1", [id])?))
    }

    /// A job by whose it is and how they called it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn job_of_request(&self, tenant: i64, id: &str) -> Result<Option<JobRow>, StoreError> {
        let condition = "tenant = ?1 AND request_id = ?2";
        self.read(|connection| Ok(find(connection, condition, params![tenant, id])?))
    }

    /// Jobs, the newest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE (?1 IS NULL OR tenant = ?1) AND \
             (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR n < ?3) ORDER BY n DESC LIMIT ?4"
        );
        self.read(|connection| {
            let mut rows = connection.prepare(&sql)?;
            let values = params![filter.tenant, filter.state, filter.before_n, filter.n_max];
            let rows = rows.query_map(values, job_of)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Jobs that wait or run, in the order of their arrival.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE {OPEN} ORDER BY n");
        self.read(|connection| {
            let mut rows = connection.prepare(&sql)?;
            Ok(rows.query_map([], job_of)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The body of a job.
    ///
    /// # Errors
    /// If it is not there or does not open.
    pub fn job_body(&self, job: &JobRow) -> Result<Vec<u8>, StoreError> {
        let sql = "SELECT sealed_body FROM jobs WHERE n = ?1";
        let sealed: Vec<u8> = self.read(|c| Ok(c.query_row(sql, [job.n], |row| row.get(0))?))?;
        self.unseal(&body_name(&job.id), &sealed)
    }

    /// The answer of a job, if it has one.
    ///
    /// # Errors
    /// If it does not open.
    pub fn job_answer(&self, job: &JobRow) -> Result<Option<AnswerRow>, StoreError> {
        type Found = (Option<i64>, Option<String>, Option<Vec<u8>>);
        let sql = "SELECT status, answer_type, sealed_answer FROM jobs WHERE n = ?1";
        let found: Option<Found> = self.read(|c| {
            let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            Ok(c.query_row(sql, [job.n], row).optional()?)
        })?;
        let Some((Some(status), Some(media_type), Some(sealed))) = found else { return Ok(None) };
        let body = self.unseal(&answer_name(&job.id), &sealed)?;
        Ok(Some(AnswerRow { status, media_type, body }))
    }

    /// Pieces of a job's text `epoch` that end after `token`, in their order.
    ///
    /// # Errors
    /// If one does not open.
    pub fn job_pieces(
        &self,
        job: &JobRow,
        epoch: i64,
        token: i64,
    ) -> Result<Vec<PieceRow>, StoreError> {
        let sql = "SELECT end, sealed_pieces FROM pieces \
                   WHERE job = ?1 AND epoch = ?2 AND end > ?3 ORDER BY end";
        let rows: Vec<(i64, Vec<u8>)> = self.read(|connection| {
            let mut rows = connection.prepare(sql)?;
            let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            Ok(rows.query_map([job.n, epoch, token], row)?.collect::<rusqlite::Result<_>>()?)
        })?;
        let open = |(end, sealed): (i64, Vec<u8>)| {
            let pieces = self.unseal(&piece_name(&job.id, (epoch, end)), &sealed)?;
            Ok(PieceRow { epoch, end, pieces })
        };
        rows.into_iter().map(open).collect()
    }

    /// Makes pieces of running jobs durable, all in one transaction.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn append_pieces(&self, rows: Vec<(i64, String, PieceRow)>) -> Result<(), StoreError> {
        let seal = |(n, id, row): (i64, String, PieceRow)| {
            let sealed = self.seal(&piece_name(&id, (row.epoch, row.end)), &row.pieces)?;
            Ok((n, row, sealed))
        };
        let rows = rows.into_iter().map(seal).collect::<Result<Vec<_>, StoreError>>()?;
        self.write(move |connection| {
            let put = |(n, row, sealed): &(i64, PieceRow, Vec<u8>)| {
                put_pieces(connection, *n, row, sealed)
            };
            Ok(rows.iter().try_for_each(put)?)
        })
    }

    /// Changes jobs in one transaction; for each whether it was in the state that was expected.
    ///
    /// # Errors
    /// If the disk does not take it; then none has changed.
    pub fn update_jobs(&self, updates: Vec<Update>) -> Result<Vec<bool>, StoreError> {
        let seal = |update: Update| {
            let answer = update.answer.as_ref();
            let answer =
                answer.map(|a| self.seal(&answer_name(&update.id), &a.body)).transpose()?;
            let pieces = update
                .pieces
                .as_ref()
                .map(|row| self.seal(&piece_name(&update.id, (row.epoch, row.end)), &row.pieces));
            Ok((answer, pieces.transpose()?, update))
        };
        let sealed = updates.into_iter().map(seal).collect::<Result<Vec<_>, StoreError>>()?;
        let teller = self.0.teller.clone();
        self.write(move |connection| {
            let change = |(answer, pieces, update): &(Option<Vec<u8>>, Option<Vec<u8>>, Update)| {
                let is_done = change(connection, update, answer.as_deref(), pieces.as_deref())?;
                // Only what is over calls back.
                if is_done && update.calls_back {
                    tell_over(connection, &teller, update)?;
                }
                Ok(is_done)
            };
            sealed.iter().map(change).collect()
        })
    }

    /// How many jobs there are in each state, counted.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn job_counts(&self) -> Result<Vec<StateCount>, StoreError> {
        let sql = "SELECT state, count(*), sum(n_bytes + coalesce(length(sealed_answer), 0)) \
                   FROM jobs GROUP BY state";
        self.read(|connection| {
            let mut rows = connection.prepare(sql)?;
            let row = |row: &Row<'_>| {
                Ok(StateCount { state: row.get(0)?, n: row.get(1)?, n_bytes: row.get(2)? })
            };
            Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Removes jobs that were over before `before_ms`, then the oldest that are over until all
    /// take at most `bytes_max`; how many went. A callback that is due keeps its job.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn purge_jobs(&self, before_ms: i64, bytes_max: i64) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let over = format!("NOT {OPEN} AND callback_state IS NOT 'due'");
            let old = format!("DELETE FROM jobs WHERE {over} AND finished_ms < ?1");
            let n_old = connection.execute(&old, [before_ms])?;
            // What waits takes its room first, and no more than half of all: see `insert`.
            let heavy = format!(
                "DELETE FROM jobs WHERE {over} AND n IN (SELECT n FROM (SELECT n, sum(n_bytes + \
                 coalesce(length(sealed_answer), 0)) OVER (ORDER BY n DESC) AS total FROM jobs \
                 WHERE NOT {OPEN}) WHERE total > ?1 - (SELECT coalesce(sum(n_bytes), 0) FROM jobs \
                 WHERE {OPEN}))"
            );
            Ok(n_old + connection.execute(&heavy, [bytes_max])?)
        })
    }

    /// Callbacks that are due, the longest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn due_callbacks(&self) -> Result<Vec<CallbackRow>, StoreError> {
        let sql = "SELECT id, callback, n_callback, callback_due_ms FROM jobs \
                   WHERE callback_state = 'due' ORDER BY callback_due_ms LIMIT 16";
        self.read(|connection| {
            let mut rows = connection.prepare(sql)?;
            let row = |row: &Row<'_>| {
                let (id, url) = (row.get(0)?, row.get(1)?);
                Ok(CallbackRow { id, url, n_try: row.get(2)?, due_ms: row.get(3)? })
            };
            Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Says how a callback went: `sent`, `failed`, or `due` again at `due_ms`.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn settle_callback(
        &self,
        id: &str,
        state: &'static str,
        due_ms: i64,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        let sql = "UPDATE jobs SET callback_state = ?2, callback_due_ms = ?3, \
                   n_callback = n_callback + 1 WHERE id = ?1";
        self.write(move |c| Ok(c.execute(sql, params![id, state, due_ms]).map(|_| ())?))
    }
}

/// Tells peers of a job that is over.
fn tell_over(connection: &Connection, teller: &Teller, update: &Update) -> Result<(), StoreError> {
    let row = find(connection, "n = ?1", [update.n])?;
    let row = row.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    teller.job(connection, &JobTold { row: &row, body: None, answer: update.answer.as_ref() })
}

pub(super) fn insert(
    connection: &Connection,
    new: &NewJobRow,
    sealed: &[u8],
    limits: QueueLimits,
) -> Result<Insert, StoreError> {
    if let Some(request_id) = &new.request_id {
        let condition = "tenant = ?1 AND request_id = ?2";
        if let Some(job) = find(connection, condition, params![new.tenant, request_id])? {
            return Ok(Insert::Exists(job));
        }
    }
    let sql = format!(
        "SELECT count(*) FILTER (WHERE {OPEN}), \
         coalesce(sum(n_bytes + coalesce(length(sealed_answer), 0)), 0), \
         coalesce(sum(n_bytes) FILTER (WHERE {OPEN}), 0) FROM jobs"
    );
    let (n, n_bytes, n_open_bytes): (i64, i64, i64) =
        connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if n >= limits.n_max {
        return Ok(Insert::FullCount(n));
    }
    // What waits leaves half of the room to answers that nobody has fetched yet.
    let n_more = sealed.len() as i64;
    if n_bytes + n_more > limits.bytes_max || n_open_bytes + n_more > limits.bytes_max / 2 {
        return Ok(Insert::FullBytes(n_bytes));
    }
    let sql = "INSERT INTO jobs (id, tenant, request_id, body_hash, endpoint, n_bytes, \
        sealed_body, seed, priority, created_ms, deadline_ms, n_attempt_max, callback, state, \
        due_ms, n_attempt, n_broken, epoch, n_token_start, way, started_ms, reason) VALUES \
        (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, \
        ?20, ?21, ?22)";
    let ledger = &new.ledger;
    connection.prepare(sql)?.execute(params![
        new.id,
        new.tenant,
        new.request_id,
        new.body_hash,
        new.endpoint,
        sealed.len() as i64,
        sealed,
        new.seed,
        new.priority,
        new.created_ms,
        new.deadline_ms,
        new.n_attempt_max,
        new.callback,
        ledger.state,
        ledger.due_ms,
        ledger.n_attempt,
        ledger.n_broken,
        ledger.epoch,
        ledger.n_token_start,
        ledger.way,
        ledger.started_ms,
        ledger.reason,
    ])?;
    let job = find(connection, "id = ?1", [&new.id])?;
    Ok(Insert::New(job.ok_or(rusqlite::Error::QueryReturnedNoRows)?))
}

fn change(
    connection: &Connection,
    update: &Update,
    sealed_answer: Option<&[u8]>,
    sealed_pieces: Option<&[u8]>,
) -> rusqlite::Result<bool> {
    let sql = "UPDATE jobs SET state = ?3, due_ms = ?4, n_attempt = ?5, n_broken = ?6, \
        epoch = ?7, n_token_start = ?8, way = ?9, started_ms = ?10, finished_ms = ?11, \
        reason = ?12 WHERE n = ?1 AND state = ?2";
    let ledger = &update.ledger;
    let n_changed = connection.prepare(sql)?.execute(params![
        update.n,
        update.from,
        ledger.state,
        ledger.due_ms,
        ledger.n_attempt,
        ledger.n_broken,
        ledger.epoch,
        ledger.n_token_start,
        ledger.way,
        ledger.started_ms,
        ledger.finished_ms,
        ledger.reason,
    ])?;
    if n_changed == 0 {
        return Ok(false);
    }
    if let (Some(answer), Some(sealed)) = (&update.answer, sealed_answer) {
        let sql = "UPDATE jobs SET status = ?2, answer_type = ?3, sealed_answer = ?4 WHERE n = ?1";
        let values = params![update.n, answer.status, answer.media_type, sealed];
        connection.prepare(sql)?.execute(values)?;
    }
    if let (Some(row), Some(sealed)) = (&update.pieces, sealed_pieces) {
        put_pieces(connection, update.n, row, sealed)?;
    }
    // Texts that another one took the place of are of no use.
    let sql = "DELETE FROM pieces WHERE job = ?1 AND epoch < ?2";
    connection.prepare(sql)?.execute([update.n, ledger.epoch])?;
    if update.calls_back {
        let sql = "UPDATE jobs SET callback_state = 'due', callback_due_ms = ?2 \
                   WHERE n = ?1 AND callback IS NOT NULL";
        connection.prepare(sql)?.execute([update.n, ledger.finished_ms.unwrap_or(0)])?;
    }
    Ok(true)
}
