//! The tables of jobs, as rows: what they mean is the business of the room `jobs`.
//!
//! Every change names the revision of its job that it starts from and makes the next one, so of two
//! that race one wins and the other hears that it did not, and so do pieces of a run that is over.
//! Bodies, answers and pieces of answers are sealed under the job's id.

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, ToSql, params, params_from_iter};

use super::rows::{
    AnswerRow, Append, CallbackRow, Changed, Full, Insert, JobFilter, JobRow, LedgerRow, NewJobRow,
    PieceRow, QueueLimits, StateCount, Update,
};
use super::told::{JobTold, Teller};
use super::{Store, StoreError, schema, unwanted};

const COLUMNS: &str = "n, id, tenant, request_id, body_hash, endpoint, n_bytes, seed, priority, \
    created_ms, deadline_ms, n_attempt_max, callback, callback_state, state, due_ms, n_attempt, \
    n_broken, epoch, n_token_start, way, started_ms, finished_ms, reason, status, \
    (SELECT coalesce(max(end), 0) FROM pieces WHERE job = jobs.n AND epoch = jobs.epoch), \
    revision, holder";
/// The ledger's columns, as [`of_ledger`] has their values.
const LEDGER: [&str; 11] = [
    "state",
    "due_ms",
    "n_attempt",
    "n_broken",
    "epoch",
    "n_token_start",
    "way",
    "started_ms",
    "finished_ms",
    "reason",
    "holder",
];
/// The tenant of those who showed no key.
const NOBODY: i64 = 0;
/// States in which a job waits or runs.
const OPEN: &str = "state IN ('queued', 'running')";
/// What a job takes of the disk. Pieces of one that runs are added up now: to write their sum with
/// each commit would cost another page of it.
const BYTES: &str = "(n_bytes + coalesce(length(sealed_answer), 0) + CASE state WHEN 'running' \
    THEN (SELECT coalesce(sum(length(sealed_pieces)), 0) FROM pieces WHERE job = jobs.n) \
    ELSE piece_bytes END)";

fn of_ledger(ledger: &LedgerRow) -> [&dyn ToSql; LEDGER.len()] {
    [
        &ledger.state,
        &ledger.due_ms,
        &ledger.n_attempt,
        &ledger.n_broken,
        &ledger.epoch,
        &ledger.n_token_start,
        &ledger.way,
        &ledger.started_ms,
        &ledger.finished_ms,
        &ledger.reason,
        &ledger.holder,
    ]
}

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
        holder: row.get(27)?,
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
        revision: row.get(26)?,
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

/// Whether pieces found their place: not those of a run that is over, and not in another's place.
pub(super) fn put_pieces(
    connection: &Connection,
    n: i64,
    revision: i64,
    row: &PieceRow,
    sealed: &[u8],
) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO pieces SELECT ?1, ?2, ?3, ?4 \
               WHERE EXISTS (SELECT 1 FROM jobs WHERE n = ?1 AND revision = ?5)";
    let put = connection.prepare(sql)?.execute(params![n, row.epoch, row.end, sealed, revision]);
    match put {
        Ok(n_put) => Ok(n_put > 0),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
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

    /// Makes pieces of running jobs durable, all in one transaction; of each whether they were put.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn append_pieces(&self, appends: Vec<Append>) -> Result<Vec<bool>, StoreError> {
        let seal = |append: Append| {
            let name = piece_name(&append.id, (append.row.epoch, append.row.end));
            Ok((self.seal(&name, &append.row.pieces)?, append))
        };
        let appends = appends.into_iter().map(seal).collect::<Result<Vec<_>, StoreError>>()?;
        self.write(move |connection| {
            let put = |(sealed, append): &(Vec<u8>, Append)| {
                put_pieces(connection, append.n, append.revision, &append.row, sealed)
            };
            Ok(appends.iter().map(put).collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Changes jobs in one transaction, each if it is of the revision that was expected.
    ///
    /// # Errors
    /// If the disk does not take it; then none has changed.
    pub fn update_jobs(&self, updates: Vec<Update>) -> Result<Vec<Changed>, StoreError> {
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
                let changed = change(connection, update, answer.as_deref(), pieces.as_deref())?;
                // Only what is over calls back. What waits again without a reason was asked for
                // again.
                let ledger = &update.ledger;
                let is_anew = ledger.state == "queued" && ledger.reason.is_none();
                if changed == Changed::Done && (update.calls_back || is_anew) {
                    tell_over(connection, &teller, update)?;
                }
                Ok(changed)
            };
            sealed.iter().map(change).collect()
        })
    }

    /// How many jobs there are in each state, counted.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn job_counts(&self) -> Result<Vec<StateCount>, StoreError> {
        let sql = format!("SELECT state, count(*), sum({BYTES}) FROM jobs GROUP BY state");
        self.read(|connection| {
            let mut rows = connection.prepare(&sql)?;
            let row = |row: &Row<'_>| {
                Ok(StateCount { state: row.get(0)?, n: row.get(1)?, n_bytes: row.get(2)? })
            };
            Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Removes jobs that have been over for `keep_ms`, then the oldest that are over until all take
    /// at most `bytes_max`; how many went. A callback that is due keeps its job.
    ///
    /// The time is the machine's uptime, which is added up here, `up_ms` since the last look: its
    /// clock may have been wrong when a job ended, or be wrong now.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn purge_jobs(
        &self,
        up_ms: i64,
        keep_ms: i64,
        bytes_max: i64,
    ) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let up_ms = schema::meta::<i64>(connection, "up_ms")?.unwrap_or(0) + up_ms;
            schema::set_meta(connection, "up_ms", up_ms)?;
            let seen =
                format!("UPDATE jobs SET over_up_ms = ?1 WHERE NOT {OPEN} AND over_up_ms IS NULL");
            connection.execute(&seen, [up_ms])?;
            let over = format!("NOT {OPEN} AND callback_state IS NOT 'due'");
            let old = format!("DELETE FROM jobs WHERE {over} AND over_up_ms + ?1 <= ?2");
            let n_old = connection.execute(&old, [keep_ms, up_ms])?;
            // What waits takes its room first, and no more than half of all: see `room`.
            let heavy = format!(
                "DELETE FROM jobs WHERE {over} AND n IN (SELECT n FROM (SELECT n, sum({BYTES}) \
                 OVER (ORDER BY n DESC) AS total FROM jobs WHERE NOT {OPEN}) WHERE total > ?1 - \
                 (SELECT coalesce(sum({BYTES}), 0) FROM jobs WHERE {OPEN}))"
            );
            Ok(n_old + connection.execute(&heavy, [bytes_max])?)
        })
    }

    /// Callbacks that are due to a host, or to all, the longest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn due_callbacks(
        &self,
        host: Option<&str>,
        n_max: i64,
    ) -> Result<Vec<CallbackRow>, StoreError> {
        let sql = format!(
            "SELECT id, revision, callback, n_callback, callback_due_ms FROM jobs \
             WHERE callback_state = 'due' AND NOT {OPEN} AND (?1 IS NULL OR \
             (substr(callback, 8, length(?1)) = ?1 AND \
             substr(callback, 8 + length(?1), 1) IN ('', '/', '?', '#'))) \
             ORDER BY callback_due_ms LIMIT ?2"
        );
        self.read(|connection| {
            let mut rows = connection.prepare(&sql)?;
            let row = |row: &Row<'_>| {
                Ok(CallbackRow {
                    id: row.get(0)?,
                    revision: row.get(1)?,
                    url: row.get(2)?,
                    n_try: row.get(3)?,
                    due_ms: row.get(4)?,
                })
            };
            Ok(rows.query_map(params![host, n_max], row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Says how a callback went: `sent`, `failed`, or `due` again at `due_ms`. Of a job that has
    /// gone on meanwhile nothing is said.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn settle_callback(
        &self,
        row: &CallbackRow,
        state: &'static str,
        due_ms: i64,
    ) -> Result<(), StoreError> {
        let (id, revision) = (row.id.clone(), row.revision);
        let sql = "UPDATE jobs SET callback_state = ?3, callback_due_ms = ?4, \
                   n_callback = n_callback + 1 \
                   WHERE id = ?1 AND revision = ?2 AND callback_state = 'due'";
        self.write(move |c| Ok(c.execute(sql, params![id, revision, state, due_ms]).map(|_| ())?))
    }
}

/// Whether one more job may wait, whose body takes `n_body` bytes, `n_new` of them not yet there.
fn room(
    connection: &Connection,
    limits: QueueLimits,
    n_body: i64,
    n_new: i64,
) -> rusqlite::Result<Option<Full>> {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE {OPEN}), coalesce(sum({BYTES}), 0), \
         coalesce(sum(n_bytes) FILTER (WHERE {OPEN}), 0) FROM jobs"
    );
    let (n, n_bytes, n_open_bytes): (i64, i64, i64) =
        connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    // What waits leaves half of the room to answers that nobody has fetched yet.
    let open_bytes_max = limits.bytes_max / 2;
    let is_heavy = n_bytes + n_new > limits.bytes_max || n_open_bytes + n_body > open_bytes_max;
    Ok(match () {
        () if n_body > open_bytes_max => Some(Full::Body(open_bytes_max)),
        () if n >= limits.n_max => Some(Full::Count(n)),
        () => is_heavy.then_some(Full::Bytes(n_bytes)),
    })
}

pub(super) fn insert(
    connection: &Connection,
    new: &NewJobRow,
    sealed: &[u8],
    limits: QueueLimits,
) -> Result<Insert, StoreError> {
    if let Some(request_id) = &new.request_id {
        adopt(connection, new, request_id)?;
        let condition = "tenant = ?1 AND request_id = ?2";
        if let Some(job) = find(connection, condition, params![new.tenant, request_id])? {
            return Ok(Insert::Exists(job));
        }
    }
    let n_bytes = sealed.len() as i64;
    if let Some(full) = room(connection, limits, n_bytes, n_bytes)? {
        return Ok(Insert::Full(full));
    }
    let mut columns = vec![
        "id",
        "tenant",
        "request_id",
        "body_hash",
        "endpoint",
        "n_bytes",
        "sealed_body",
        "seed",
        "priority",
        "created_ms",
        "deadline_ms",
        "n_attempt_max",
        "callback",
    ];
    let mut values: Vec<&dyn ToSql> = vec![
        &new.id,
        &new.tenant,
        &new.request_id,
        &new.body_hash,
        &new.endpoint,
        &n_bytes,
        &sealed,
        &new.seed,
        &new.priority,
        &new.created_ms,
        &new.deadline_ms,
        &new.n_attempt_max,
        &new.callback,
    ];
    columns.extend(LEDGER);
    values.extend(of_ledger(&new.ledger));
    let marks: Vec<String> = (1..=columns.len()).map(|i| format!("?{i}")).collect();
    let sql = format!("INSERT INTO jobs ({}) VALUES ({})", columns.join(", "), marks.join(", "));
    connection.prepare(&sql)?.execute(params_from_iter(values))?;
    let job = find(connection, "id = ?1", [&new.id])?;
    Ok(Insert::New(job.ok_or(rusqlite::Error::QueryReturnedNoRows)?))
}

/// A job that was asked for without a key belongs to who knows its name and its body, once there
/// are keys: as a hub does that was paired since. Runs of it are not touched by that; one that
/// somebody else has stays whose it is known as there.
fn adopt(connection: &Connection, new: &NewJobRow, request_id: &str) -> rusqlite::Result<()> {
    if new.tenant == NOBODY {
        return Ok(());
    }
    let sql = "UPDATE jobs SET tenant = ?1 WHERE tenant = ?2 AND request_id = ?3 AND \
               body_hash = ?4 AND holder IS NULL AND NOT EXISTS \
               (SELECT 1 FROM jobs WHERE tenant = ?1 AND request_id = ?3)";
    let values = params![new.tenant, NOBODY, request_id, new.body_hash];
    connection.prepare(sql)?.execute(values).map(|_| ())
}

/// Tells peers of a job that is over, or is tried again.
fn tell_over(connection: &Connection, teller: &Teller, update: &Update) -> Result<(), StoreError> {
    let row = find(connection, "n = ?1", [update.n])?;
    let row = row.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    teller.job(connection, &JobTold { row: &row, body: None, answer: update.answer.as_ref() })
}

fn change(
    connection: &Connection,
    update: &Update,
    sealed_answer: Option<&[u8]>,
    sealed_pieces: Option<&[u8]>,
) -> rusqlite::Result<Changed> {
    if let Some(limits) = update.limits {
        let sql = "SELECT n_bytes FROM jobs WHERE n = ?1";
        let n_body = connection.query_row(sql, [update.n], |row| row.get(0)).optional()?;
        if let Some(full) = room(connection, limits, n_body.unwrap_or(0), 0)? {
            return Ok(Changed::Full(full));
        }
    }
    let ledger: Vec<String> =
        LEDGER.iter().enumerate().map(|(i, name)| format!("{name} = ?{}", i + 6)).collect();
    let sql = format!(
        "UPDATE jobs SET revision = revision + 1, over_up_ms = NULL, status = ?3, \
         answer_type = ?4, sealed_answer = ?5, {} WHERE n = ?1 AND revision = ?2",
        ledger.join(", ")
    );
    let answer = update.answer.as_ref();
    let (status, kind) = (answer.map(|a| a.status), answer.map(|a| a.media_type.as_str()));
    let mut values: Vec<&dyn ToSql> =
        vec![&update.n, &update.revision, &status, &kind, &sealed_answer];
    values.extend(of_ledger(&update.ledger));
    if connection.prepare(&sql)?.execute(params_from_iter(values))? == 0 {
        return Ok(Changed::Stale);
    }
    if let (Some(row), Some(sealed)) = (&update.pieces, sealed_pieces) {
        put_pieces(connection, update.n, update.revision + 1, row, sealed)?;
    }
    // Texts that another one took the place of are of no use.
    let sql = "DELETE FROM pieces WHERE job = ?1 AND epoch < ?2";
    connection.prepare(sql)?.execute([update.n, update.ledger.epoch])?;
    let sql = "UPDATE jobs SET piece_bytes = \
               (SELECT coalesce(sum(length(sealed_pieces)), 0) FROM pieces WHERE job = ?1) \
               WHERE n = ?1";
    connection.prepare(sql)?.execute([update.n])?;
    if update.calls_back {
        let sql = "UPDATE jobs SET callback_state = 'due', callback_due_ms = ?2, n_callback = 0 \
                   WHERE n = ?1 AND callback IS NOT NULL";
        connection.prepare(sql)?.execute([update.n, update.ledger.finished_ms.unwrap_or(0)])?;
    }
    if let Some(holder) = &update.unwanted {
        unwanted::put(connection, update.n, holder)?;
    }
    Ok(Changed::Done)
}
