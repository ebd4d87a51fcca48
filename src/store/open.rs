//! Opening: whose it is, whether it is whole, of which version; else the way back to a backup.
//!
//! ```text
//! lock -> device key -> is the file whole? -> no: restore the newest whole backup
//!      -> older version: checked copy, then migrate -> mark "in use" -> the writer
//! ```
//!
//! A file that was not closed cleanly is checked before it is used; so is every small one. Where
//! the disk is full, the reserve makes room for that, so what was acknowledged goes on.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rusqlite::Connection;

use super::writer::Writer;
use super::{Opened, Store, StoreError, backup, connection, reserve, schema};
use crate::base::limits::STORE_CHECK_BYTES_MAX;
use crate::seal::{Sealer, device_key};

/// What is sealed in `meta`, to know the device key again.
const TOUCHSTONE: &[u8] = b"jetforge state 1";

/// How the file was found.
enum Found {
    Whole { is_clean: bool },
    Broken { why: String },
}

/// See [`Store::open`].
pub fn open(dir: &Path) -> Result<Opened, StoreError> {
    let failed = |source| StoreError::File { path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let lock = lock(dir)?;
    reserve::spend(dir);
    let sealer = Sealer::new(&device_key(&dir.join("device.key"))?, "jetforge state 1");
    let path = connection::file(dir);
    let mut notes = Vec::new();
    if path.exists() {
        match examine(&path)? {
            Found::Whole { is_clean: true } => {}
            Found::Whole { is_clean: false } => {
                tracing::info!("the state store was not closed cleanly; it is whole");
            }
            Found::Broken { why } => notes.push(backup::restore(dir, &why)?),
        }
    } else if backup::file(dir, 1).exists() {
        // The power went while a backup was put in its place.
        notes.push(backup::restore(dir, "it is missing")?);
    } else {
        // Only its owner may read it; the log beside it gets the same mode.
        let private =
            File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        private.map_err(failed)?;
    }
    let mut writer = connection::writer(&path)?;
    update(&mut writer, dir)?;
    know_key(&writer, &sealer, &path)?;
    schema::set_meta(&writer, "is_clean", 0)?;
    if !backup::file(dir, 1).exists() {
        backup::make(&writer)?;
    }
    let writer = Writer::start(writer).map_err(failed)?;
    reserve::keep(dir);
    Ok(Opened { store: Store::new(dir, sealer, writer, lock), notes })
}

/// See [`Store::hold`].
pub fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("state.lock");
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|source| StoreError::File { path: path.clone(), source })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(StoreError::Locked { path }),
    }
}

/// Whether a file can be used.
fn examine(path: &Path) -> Result<Found, StoreError> {
    let look = || -> rusqlite::Result<(i64, bool, Option<String>)> {
        let connection = connection::writer(path)?;
        let version = schema::version(&connection)?;
        let is_clean = version > 0 && schema::meta(&connection, "is_clean")? == Some(1);
        let is_small = path.metadata().is_ok_and(|file| file.len() <= STORE_CHECK_BYTES_MAX);
        let why = match is_clean && !is_small {
            true => None,
            false => connection::check(&connection)?,
        };
        Ok((version, is_clean, why))
    };
    match look() {
        Ok((version, ..)) if version > schema::NEWEST => {
            Err(StoreError::TooNew { path: path.into(), found: version, known: schema::NEWEST })
        }
        Ok((_, _, Some(why))) => Ok(Found::Broken { why }),
        // A file without a version is one that a loss of power left before its first transaction,
        // or one that somebody emptied: then a backup knows more.
        Ok((0, ..)) if backup::file(path.parent().unwrap_or(path), 1).exists() => {
            Ok(Found::Broken { why: "it is empty".to_owned() })
        }
        Ok((_, is_clean, None)) => Ok(Found::Whole { is_clean }),
        Err(error) if connection::is_broken(&error) || is_misshapen(&error) => {
            Ok(Found::Broken { why: error.to_string() })
        }
        Err(error) => Err(error.into()),
    }
}

/// A version without its tables.
fn is_misshapen(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown)
}

fn update(writer: &mut Connection, dir: &Path) -> Result<(), StoreError> {
    update_by(writer, dir, &schema::STEPS)
}

/// Takes a file to the version of these steps, after a checked copy of what it was.
pub(super) fn update_by(
    writer: &mut Connection,
    dir: &Path,
    steps: &[&str],
) -> Result<(), StoreError> {
    let version = schema::version(writer)?;
    if version == steps.len() as i64 {
        return Ok(());
    }
    if version > 0 {
        backup::copy(writer, &dir.join(format!("state.{}.before", steps.len())))?;
    }
    Ok(schema::migrate_by(writer, steps)?)
}

/// Whether the device key is the one that sealed what is there.
fn know_key(writer: &Connection, sealer: &Sealer, path: &Path) -> Result<(), StoreError> {
    match schema::meta::<Vec<u8>>(writer, "touchstone")? {
        Some(sealed) if sealer.unwrap("touchstone", &sealed).as_deref() == Some(TOUCHSTONE) => {
            Ok(())
        }
        Some(_) => Err(StoreError::Foreign { path: path.to_owned() }),
        None => {
            let failed = |source| StoreError::File { path: path.to_owned(), source };
            let sealed = sealer.wrap("touchstone", TOUCHSTONE).map_err(failed)?;
            Ok(schema::set_meta(writer, "touchstone", sealed)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::store::{AnswerRow, PieceRow};

    const INSERT: &str = "INSERT INTO jobs (n, id, tenant, request_id, body_hash, endpoint, \
        n_bytes, sealed_body, seed, priority, created_ms, n_attempt_max, state, due_ms, n_attempt, \
        n_broken, epoch, n_token_start, way, status, answer_type, sealed_answer) VALUES \
        (?1, ?2, 7, ?3, x'0102', '/completion', 9, ?4, 5, 1, 11, 3, ?5, 12, 1, 0, 1, 0, 'fresh', \
        ?6, ?7, ?8)";

    /// The file as the first program left it: its tables, with a job that waits and one that is
    /// done.
    fn first(dir: &Path) {
        let sealer = Sealer::new(&device_key(&dir.join("device.key")).unwrap(), "jetforge state 1");
        let seal = |name: &str, text: &str| sealer.wrap(name, text.as_bytes()).unwrap();
        let mut file = connection::writer(&connection::file(dir)).unwrap();
        schema::migrate_by(&mut file, &schema::STEPS[..1]).unwrap();
        let touchstone = sealer.wrap("touchstone", TOUCHSTONE).unwrap();
        schema::set_meta(&file, "touchstone", touchstone).unwrap();
        let none: Option<i64> = None;
        let body = seal("body of job-1", "waits");
        file.execute(INSERT, params![1, "job-1", "mine", body, "queued", none, none, none])
            .unwrap();
        let (body, answer) = (seal("body of job-2", "asks"), seal("answer of job-2", "said"));
        let media = "text/plain";
        file.execute(INSERT, params![2, "job-2", none, body, "done", 200, media, answer]).unwrap();
        let pieces = seal("pieces of job-1 up to 1-4", "a few");
        file.execute("INSERT INTO pieces VALUES (1, 1, 4, ?1)", [pieces]).unwrap();
    }

    #[test]
    fn a_file_of_the_first_version_comes_to_the_newest_with_all_that_was_in_it() {
        let dir = tempfile::tempdir().unwrap();
        first(dir.path());
        let Opened { store, notes } = open(dir.path()).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        let [waits, done] = ["job-1", "job-2"].map(|id| store.job(id).unwrap().unwrap());
        assert_eq!(
            (waits.tenant, waits.request_id.as_deref(), waits.n_token),
            (7, Some("mine"), 4)
        );
        assert_eq!(
            (waits.ledger.state.as_str(), waits.ledger.due_ms, waits.seed),
            ("queued", 12, 5)
        );
        assert_eq!((done.ledger.state.as_str(), &done.body_hash), ("done", &vec![1, 2]));
        assert_eq!(store.job_body(&waits).unwrap(), b"waits");
        let pieces = PieceRow { epoch: 1, end: 4, pieces: b"a few".to_vec() };
        assert_eq!(store.job_pieces(&waits, 1, 0).unwrap(), [pieces]);
        let (status, media_type) = (200, "text/plain".to_owned());
        let answer = AnswerRow { status, media_type, body: b"said".to_vec() };
        assert_eq!(store.job_answer(&done).unwrap(), Some(answer));
        assert_eq!((waits.revision, store.peers().unwrap()), (0, Vec::new()));
        // Steps that look at what was there have done so.
        let sum = "SELECT n FROM jobs WHERE piece_bytes = \
                   (SELECT sum(length(sealed_pieces)) FROM pieces WHERE job = jobs.n)";
        let n: i64 = store.read(|c| Ok(c.query_row(sum, [], |row| row.get(0))?)).unwrap();
        assert_eq!(n, 1);
        let before = dir.path().join(format!("state.{}.before", schema::NEWEST));
        let before = connection::reader(&before).unwrap();
        assert_eq!(schema::version(&before).unwrap(), 1, "as it was, should that be needed");
    }
}
