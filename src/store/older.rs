//! Between two programs: a copy before a newer one takes the store, and the way back to it.
//!
//! ```text
//! state.update.before   the store as it was before a newer program was tried
//! state.N.before        what a migration to version N began with; see `open.rs`
//! state.newer           the migrated store, kept after a way back for whoever wants to look
//! ```
//!
//! Both work on stores of versions that this program does not know: it stands between an older
//! program and a newer one. Nobody else may have the store open.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{StoreError, backup, connection, open, schema};

/// Makes a checked copy of a store that a program of the version `newer` will migrate. Its place,
/// or `None` where nothing will be migrated.
///
/// # Errors
/// If the store is in use, or the copy cannot be made or is not whole.
pub fn keep_before(dir: &Path, newer: i64) -> Result<Option<PathBuf>, StoreError> {
    let path = connection::file(dir);
    if !path.exists() {
        return Ok(None);
    }
    let _lock = open::lock(dir)?;
    let writer = connection::writer(&path)?;
    if !(1..newer).contains(&schema::version(&writer)?) {
        return Ok(None);
    }
    let kept = dir.join("state.update.before");
    // The one before stays until this one is whole.
    let part = dir.join("state.part");
    backup::copy(&writer, &part)?;
    let failed = |source| StoreError::File { path: kept.clone(), source };
    fs::rename(&part, &kept).and_then(|()| sync(dir)).map_err(failed)?;
    Ok(Some(kept))
}

/// Takes a store of a version after `known` back to the newest copy that a program of `known`
/// reads; what that lost. `None` where nothing was to be done.
///
/// # Errors
/// If the store is in use, or there is no such copy.
pub fn go_back(dir: &Path, known: i64) -> Result<Option<String>, StoreError> {
    let path = connection::file(dir);
    if !path.exists() {
        return Ok(None);
    }
    let _lock = open::lock(dir)?;
    let failed = |source| StoreError::File { path: path.clone(), source };
    let Ok(found) = connection::writer(&path).and_then(|store| schema::version(&store)) else {
        // One that is broken is the service's own to mend.
        return Ok(None);
    };
    if found <= known {
        return Ok(None);
    }
    let newest = copies(dir, known).into_iter().max();
    let before = newest.map(|(_, _, copy)| copy);
    let before = before.ok_or(StoreError::TooNew { path: path.clone(), found, known })?;
    let (part, newer) = (dir.join("state.part"), dir.join("state.newer"));
    fs::copy(&before, &part).map_err(failed)?;
    File::open(&part).and_then(|file| file.sync_all()).map_err(failed)?;
    // All of it in one file, which stays under both names until the copy takes the first.
    let store = connection::writer(&path)?;
    store.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
    store.close().map_err(|(_, error)| error)?;
    let _ = fs::remove_file(&newer);
    fs::hard_link(&path, &newer).map_err(failed)?;
    sync(dir).map_err(failed)?;
    fs::rename(&part, &path).and_then(|()| sync(dir)).map_err(failed)?;
    let age_s = backup::age_s(&path);
    Ok(Some(format!(
        "the state was of version {found}, and the program that runs again knows {known}: the \
         copy of {age_s} s ago took its place, and {} has the newer one: {}",
        newer.display(),
        backup::lost(&newer, &path)
    )))
}

/// Copies that are whole and of a version that is known, with that and their time.
fn copies(dir: &Path, known: i64) -> Vec<(i64, Option<i64>, PathBuf)> {
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("state.") && name.ends_with(".before")
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let rated = |path: PathBuf| {
        let version = schema::version(&connection::reader(&path).ok()?).ok()?;
        let is_whole = matches!(backup::verify(&path, known), Ok(None));
        is_whole.then(|| (version, backup::saved_ms(&path), path))
    };
    entries.filter(named).filter_map(rated).collect()
}

fn sync(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
