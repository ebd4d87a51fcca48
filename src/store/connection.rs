//! Connections: the same settings for every one, and what SQLite says in words.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;
use crate::base::limits::{STORE_BUSY_MS, STORE_CHECKPOINT_PAGES, STORE_WAL_BYTES_MAX};

/// The database of a state directory.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("state.db")
}

/// The connection that writes.
///
/// # Errors
/// If the file cannot be opened or is no database.
pub fn writer(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_millis(STORE_BUSY_MS))?;
    let set = |name: &str, value: &dyn rusqlite::ToSql| {
        connection.pragma_update_and_check(None, name, value, |_| Ok(()))
    };
    set("journal_mode", &"WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    set("journal_size_limit", &STORE_WAL_BYTES_MAX)?;
    set("wal_autocheckpoint", &STORE_CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// A connection that reads.
///
/// # Errors
/// If the file cannot be opened.
pub fn reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_millis(STORE_BUSY_MS))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// Whether the file itself is at fault.
pub fn is_broken(error: &rusqlite::Error) -> bool {
    let codes = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
    error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}

/// Whether the disk is full.
pub fn is_disk_full(error: &rusqlite::Error) -> bool {
    let is_index = |code: &rusqlite::ffi::Error| {
        // The index of the log could not grow.
        code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    };
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(is_index)
}

/// What SQLite's own check finds wrong; `None` if nothing.
///
/// # Errors
/// If it cannot look.
pub fn check(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Ok(Some(found));
    }
    let mut keys = connection.prepare("PRAGMA foreign_key_check")?;
    let is_torn = keys.exists([])?;
    Ok(is_torn.then(|| "a row refers to one that is not there".to_owned()))
}
