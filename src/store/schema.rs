//! The tables, as the steps that made them: step n takes a file of version n - 1 to version n.
//!
//! A step never changes once it is released; a new one follows. Columns named `sealed_…` are under
//! the device key. Times are milliseconds since the Unix epoch by the machine's clock.

use rusqlite::Connection;

/// See the module.
pub const STEPS: [&str; 7] = [
    "
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    n               INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    tenant          INTEGER NOT NULL,
    request_id      TEXT,
    body_hash       BLOB NOT NULL,
    endpoint        TEXT NOT NULL,
    n_bytes         INTEGER NOT NULL,
    sealed_body     BLOB NOT NULL,
    seed            INTEGER NOT NULL,
    priority        INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    deadline_ms     INTEGER,
    n_attempt_max   INTEGER NOT NULL,
    state           TEXT NOT NULL,
    due_ms          INTEGER NOT NULL,
    n_attempt       INTEGER NOT NULL,
    n_broken        INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    n_token_start   INTEGER NOT NULL,
    way             TEXT NOT NULL,
    started_ms      INTEGER,
    finished_ms     INTEGER,
    reason          TEXT,
    status          INTEGER,
    answer_type     TEXT,
    sealed_answer   BLOB,
    callback        TEXT,
    callback_state  TEXT,
    n_callback      INTEGER NOT NULL DEFAULT 0,
    callback_due_ms INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX jobs_by_request ON jobs (tenant, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX jobs_by_state ON jobs (state);

CREATE TABLE pieces (
    job             INTEGER NOT NULL REFERENCES jobs (n) ON DELETE CASCADE,
    epoch           INTEGER NOT NULL,
    end             INTEGER NOT NULL,
    sealed_pieces   BLOB NOT NULL,
    PRIMARY KEY (job, epoch, end)
) STRICT, WITHOUT ROWID;
",
    "
CREATE TABLE peers (
    node            TEXT PRIMARY KEY,
    name            TEXT NOT NULL,
    address         TEXT NOT NULL,
    sealed_key      BLOB NOT NULL,
    key_digest      BLOB NOT NULL,
    certificate     BLOB,
    paired_ms       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
",
    // Counts a job's changes, adds its pieces up, and says at which uptime it was seen to be over.
    "
ALTER TABLE jobs ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN piece_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN over_up_ms INTEGER;
UPDATE jobs SET piece_bytes =
    (SELECT coalesce(sum(length(sealed_pieces)), 0) FROM pieces WHERE job = jobs.n);
",
    "
CREATE TABLE links (
    peer            TEXT PRIMARY KEY REFERENCES peers (node) ON DELETE CASCADE,
    state           TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    n               INTEGER PRIMARY KEY,
    peer            TEXT NOT NULL REFERENCES peers (node) ON DELETE CASCADE,
    seq             INTEGER NOT NULL,
    id              INTEGER NOT NULL,
    n_bytes         INTEGER NOT NULL,
    written_ms      INTEGER NOT NULL,
    sealed_entry    BLOB NOT NULL,
    UNIQUE (peer, seq)
) STRICT;

CREATE TABLE inbox (
    n               INTEGER PRIMARY KEY,
    peer            TEXT NOT NULL REFERENCES peers (node) ON DELETE CASCADE,
    id              INTEGER NOT NULL,
    UNIQUE (peer, id)
) STRICT;

CREATE TABLE records (
    n               INTEGER PRIMARY KEY,
    kind            TEXT NOT NULL,
    key             TEXT NOT NULL,
    origin          TEXT NOT NULL,
    sealed_entry    BLOB NOT NULL,
    UNIQUE (kind, key)
) STRICT;

CREATE TABLE copies (
    n               INTEGER PRIMARY KEY,
    kind            TEXT NOT NULL,
    key             TEXT NOT NULL,
    origin          TEXT NOT NULL,
    sealed_entry    BLOB NOT NULL
) STRICT;
CREATE INDEX copies_by_key ON copies (kind, key);

CREATE TABLE held (
    n               INTEGER PRIMARY KEY,
    peer            TEXT NOT NULL REFERENCES peers (node) ON DELETE CASCADE,
    why             TEXT NOT NULL,
    held_ms         INTEGER NOT NULL,
    sealed_entry    BLOB NOT NULL
) STRICT;
CREATE INDEX held_by_peer ON held (peer);

CREATE TABLE acts (
    n               INTEGER PRIMARY KEY,
    peer            TEXT NOT NULL,
    kind            TEXT NOT NULL,
    key             TEXT NOT NULL,
    UNIQUE (kind, key)
) STRICT;
",
    // What waits for tables that are shared with other processes, and what came to them.
    "
CREATE TABLE told (
    n               INTEGER PRIMARY KEY,
    id              INTEGER NOT NULL,
    sealed_change   BLOB NOT NULL
) STRICT;

CREATE TABLE forwarded (
    n               INTEGER PRIMARY KEY,
    source          TEXT NOT NULL,
    id              INTEGER NOT NULL,
    UNIQUE (source, id)
) STRICT;
",
    // Who paired by a code of this machine may be called as well; and which machine a job was
    // given to, under which name.
    "
ALTER TABLE peers ADD COLUMN paired_here INTEGER NOT NULL DEFAULT 0;
UPDATE peers SET paired_here = 1 WHERE address = '';
ALTER TABLE jobs ADD COLUMN holder TEXT;
",
    // Machines that have a job which nobody wants any more, until they have heard of it. What was
    // over before is nobody's.
    "
CREATE TABLE unwanted (
    holder          TEXT PRIMARY KEY,
    job             INTEGER NOT NULL REFERENCES jobs (n) ON DELETE CASCADE,
    revision        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX unwanted_by_job ON unwanted (job);
UPDATE jobs SET holder = NULL WHERE state IN ('done', 'failed', 'cancelled');
",
];

/// The newest version.
pub const NEWEST: i64 = STEPS.len() as i64;

/// The version of a file; 0 for a new one.
///
/// # Errors
/// If it is no database.
pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Takes a file to the newest version.
#[cfg(test)]
pub fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    migrate_by(connection, &STEPS)
}

/// Takes a file to the version of these steps, in one transaction.
///
/// # Errors
/// If a step does not work; then none has.
pub fn migrate_by(connection: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let from = usize::try_from(version(connection)?).unwrap_or(0);
    let transaction = connection.transaction()?;
    for step in steps.iter().skip(from) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", steps.len() as i64)?;
    transaction.commit()
}

/// A value of the table `meta`.
///
/// # Errors
/// If it cannot be read.
pub fn meta<T: rusqlite::types::FromSql>(
    connection: &Connection,
    key: &str,
) -> rusqlite::Result<Option<T>> {
    let mut rows = connection.prepare("SELECT value FROM meta WHERE key = ?1")?;
    let mut rows = rows.query([key])?;
    rows.next()?.map(|row| row.get(0)).transpose()
}

/// Sets a value of the table `meta`.
///
/// # Errors
/// If it cannot be written.
pub fn set_meta(
    connection: &Connection,
    key: &str,
    value: impl rusqlite::ToSql,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    connection.execute(sql, rusqlite::params![key, value]).map(|_| ())
}
