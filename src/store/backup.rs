//! Backups: copies that are opened and checked before they count, and the way back from one.
//!
//! ```text
//! state.1.backup   the newest; .2, .3 the ones before
//! state.N.before   what a migration to version N began with
//! ```

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};

use super::{StoreError, connection, now_ms, schema};
use crate::base::limits::{STORE_BACKUPS_MAX, STORE_LOST_NAMED_MAX};

/// A backup's place, 1 for the newest.
pub fn file(dir: &Path, idx: usize) -> PathBuf {
    dir.join(format!("state.{idx}.backup"))
}

/// Copies the store of a connection and puts the copy before the older ones.
///
/// # Errors
/// If the copy cannot be made or is not whole; then the older ones stay as they are.
pub fn make(connection: &Connection) -> Result<(), StoreError> {
    let path = PathBuf::from(connection.path().unwrap_or_default());
    let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
    let part = dir.join("state.part");
    if let Err(error) = copy(connection, &part) {
        // Half a copy would keep a full disk full.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    let failed = |source| StoreError::File { path: part.clone(), source };
    for idx in (1..STORE_BACKUPS_MAX).rev() {
        if file(&dir, idx).exists() {
            fs::rename(file(&dir, idx), file(&dir, idx + 1)).map_err(failed)?;
        }
    }
    fs::rename(&part, file(&dir, 1)).map_err(failed)?;
    File::open(&dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(schema::set_meta(connection, "backup_ms", now_ms())?)
}

/// Copies the store of a connection to a file that is checked and on the disk afterwards.
///
/// # Errors
/// If the copy cannot be made or is not whole.
pub fn copy(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::File { path: to.to_owned(), source };
    if to.exists() {
        fs::remove_file(to).map_err(failed)?;
    }
    File::options().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    let mut target = Connection::open(to)?;
    Backup::new(connection, &mut target)?.step(-1)?;
    // One file without a log beside it.
    target.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
    schema::set_meta(&target, "backup_ms", now_ms())?;
    target.close().map_err(|(_, error)| error)?;
    match verify(to, schema::version(connection)?)? {
        None => File::open(to).and_then(|file| file.sync_all()).map_err(failed),
        Some(why) => Err(StoreError::Broken { path: to.to_owned(), why }),
    }
}

/// What is wrong with a copy of at most this version; `None` if nothing.
pub(super) fn verify(path: &Path, newest: i64) -> rusqlite::Result<Option<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(path, flags)?;
    if !(1..=newest).contains(&schema::version(&copy)?) {
        return Ok(Some("it has no version".to_owned()));
    }
    connection::check(&copy)
}

/// Puts the newest whole backup in the place of a broken store, which is moved aside, and says
/// what that lost.
///
/// # Errors
/// If no backup is whole.
pub fn restore(dir: &Path, why: &str) -> Result<String, StoreError> {
    let path = connection::file(dir);
    let whole = (1..=STORE_BACKUPS_MAX).map(|idx| file(dir, idx));
    let whole = whole
        .into_iter()
        .find(|path| path.exists() && matches!(verify(path, schema::NEWEST), Ok(None)));
    let Some(backup) = whole else {
        return Err(StoreError::Broken { path, why: why.to_owned() });
    };
    let failed = |source| StoreError::File { path: path.clone(), source };
    let part = dir.join("state.part");
    fs::copy(&backup, &part).map_err(failed)?;
    File::open(&part).and_then(|file| file.sync_all()).map_err(failed)?;
    let broken = dir.join("state.broken");
    for end in ["", "-wal", "-shm"] {
        let (from, to) = (with_end(&path, end), with_end(&broken, end));
        let _ = fs::remove_file(&to);
        if from.exists() {
            fs::rename(&from, &to).map_err(failed)?;
        }
    }
    fs::rename(&part, &path).map_err(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    let age_s = age_s(&path);
    Ok(format!(
        "{} was broken ({why}) and is kept as {}; the backup of {age_s} s ago took its place: {}",
        path.display(),
        broken.display(),
        lost(&broken, &path)
    ))
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// When a copy was made, by this machine's clock.
pub(super) fn saved_ms(path: &Path) -> Option<i64> {
    schema::meta(&Connection::open(path).ok()?, "backup_ms").ok()?
}

/// Seconds since a copy was made.
pub(super) fn age_s(path: &Path) -> i64 {
    saved_ms(path).map_or(0, |saved| (now_ms() - saved).max(0) / 1000)
}

/// The jobs that a file still names and the backup in its place does not have.
pub(super) fn lost(broken: &Path, restored: &Path) -> String {
    let unknown = "what came after it is lost, and the broken file does not say what that was";
    let names = |path: &Path| -> Option<Vec<(String, String)>> {
        let store = Connection::open(path).ok()?;
        let mut rows = store.prepare("SELECT id, state FROM jobs ORDER BY n").ok()?;
        let mut rows = rows.query([]).ok()?;
        let mut found = Vec::new();
        // What can be read before the damage counts.
        while let Ok(Some(row)) = rows.next() {
            found.push((row.get(0).ok()?, row.get(1).ok()?));
        }
        Some(found)
    };
    let (Some(had), Some(has)) = (names(broken), names(restored)) else {
        return unknown.to_owned();
    };
    let gone: Vec<&str> = had
        .iter()
        .filter(|(id, _)| !has.iter().any(|(kept, _)| kept == id))
        .map(|(id, _)| id.as_str())
        .collect();
    let older = had.iter().filter(|job| has.iter().any(|k| k.0 == job.0 && k.1 != job.1)).count();
    if had.len() < has.len() {
        return unknown.to_owned();
    }
    let named = gone[..gone.len().min(STORE_LOST_NAMED_MAX)].join(", ");
    format!("{} jobs are lost [{named}], {older} run again or are as they were then", gone.len())
}
