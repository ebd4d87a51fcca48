//! The one thread that writes.
//!
//! ```text
//! a write waits in a bounded queue -> joins the transaction that begins next -> commit, fsync
//!                                  -> its caller hears
//! ```
//!
//! Each write is a savepoint of its own: one that fails takes nothing of the others with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{StoreError, backup, now_ms, schema};
use crate::base::limits::{STORE_BACKUP_EVERY_MS, STORE_BATCH_MAX, STORE_QUEUE_MAX};

/// Tells its caller how the commit went.
type Tell = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Writes, and says whom to tell and what was in its way; without a connection it writes nothing.
type Work = Box<dyn FnOnce(Option<&Connection>) -> (Tell, Result<(), StoreError>) + Send>;

enum Order {
    Write(Work),
    BackUp(SyncSender<Result<(), StoreError>>),
    /// Nothing is written any more; the sender is dropped when that is so.
    Close(SyncSender<()>),
}

pub struct Writer {
    /// `None` when it ends.
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    n_commit: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread on a connection.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(connection: Connection) -> std::io::Result<Writer> {
        let (orders, received) = sync_channel(STORE_QUEUE_MAX);
        let n_commit = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&n_commit);
        let thread = std::thread::Builder::new().name("store".into());
        let thread = thread.spawn(move || run(connection, &received, &counted))?;
        Ok(Writer { orders: Some(orders), thread: Some(thread), n_commit })
    }

    pub fn n_commit(&self) -> u64 {
        self.n_commit.load(Ordering::Relaxed)
    }

    pub fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = sync_channel(1);
        let work: Work = Box::new(move |connection| {
            let closed = Err(StoreError::Closed);
            let result = connection.map_or(closed, |connection| in_savepoint(connection, work));
            let written = result.as_ref().map(|_| ()).map_err(lost);
            let tell = move |committed: Result<(), StoreError>| {
                let _ = answer.send(committed.and(result));
            };
            (Box::new(tell), written)
        });
        self.send(Order::Write(work))?;
        answered.recv().map_err(|_| StoreError::Closed)?
    }

    pub fn back_up(&self) -> Result<(), StoreError> {
        let (answer, answered) = sync_channel(1);
        self.send(Order::BackUp(answer))?;
        answered.recv().map_err(|_| StoreError::Closed)?
    }

    /// Ends writing after what was sent before, and waits for it.
    pub fn close(&self) {
        let (held, dropped) = sync_channel(0);
        if let Some(orders) = &self.orders
            && orders.send(Order::Close(held)).is_ok()
        {
            let _ = dropped.recv();
        }
    }

    fn send(&self, order: Order) -> Result<(), StoreError> {
        let orders = self.orders.as_ref().ok_or(StoreError::Closed)?;
        orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT work")?;
    match work(connection) {
        Ok(value) => {
            connection.execute_batch("RELEASE work")?;
            Ok(value)
        }
        Err(error) => {
            // Where all was taken back, no savepoint is left, and the reason is what counts.
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK TO work; RELEASE work")?;
            }
            Err(error)
        }
    }
}

/// The time after a backup that failed in which none is tried.
const BACKUP_PAUSE: Duration = Duration::from_secs(3600);

fn run(connection: Connection, orders: &Receiver<Order>, n_commit: &AtomicU64) {
    let mut failed_at: Option<Instant> = None;
    let mut closing = None;
    while closing.is_none()
        && let Ok(first) = orders.recv()
    {
        let mut works = Vec::new();
        let mut copies = Vec::new();
        for order in std::iter::once(first).chain(orders.try_iter().take(STORE_BATCH_MAX)) {
            match order {
                Order::Write(work) => works.push(work),
                Order::BackUp(answer) => copies.push(answer),
                Order::Close(held) => closing = Some(held),
            }
        }
        if !works.is_empty() {
            commit(&connection, works);
            n_commit.fetch_add(1, Ordering::Relaxed);
        }
        if !copies.is_empty() {
            let made = backup::make(&connection);
            for answer in copies {
                let _ = answer.send(told(&made));
            }
        } else if closing.is_none()
            && failed_at.is_none_or(|at| at.elapsed() >= BACKUP_PAUSE)
            && is_backup_due(&connection)
            && let Err(error) = backup::make(&connection)
        {
            tracing::error!(%error, "the state store could not be backed up");
            failed_at = Some(Instant::now());
        }
    }
    let end = schema::set_meta(&connection, "is_clean", 1)
        .and_then(|()| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    if let Err(error) = end {
        tracing::error!(%error, "the state store could not be closed cleanly");
    }
    drop(closing);
}

fn commit(connection: &Connection, works: Vec<Work>) {
    let mut tells = Vec::new();
    let mut works = works.into_iter();
    let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from);
    let committed = begun.and_then(|()| {
        for work in works.by_ref() {
            let (tell, written) = work(Some(connection));
            tells.push(tell);
            // A full disk, or one that fails, takes the whole transaction back. What comes next
            // would stand alone, and stay although its caller is told that it failed.
            if connection.is_autocommit() {
                let unsaid = StoreError::Commit { why: "it was taken back".to_owned() };
                return Err(written.err().unwrap_or(unsaid));
            }
        }
        Ok(connection.execute_batch("COMMIT")?)
    });
    if committed.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    // Those whose turn did not come hear why as well.
    tells.extend(works.map(|work| work(None).0));
    for tell in tells {
        tell(told(&committed));
    }
}

/// How it went, for each of those that wait.
fn told(result: &Result<(), StoreError>) -> Result<(), StoreError> {
    result.as_ref().copied().map_err(lost)
}

/// Why nothing of a transaction was kept, for one of those that wait.
fn lost(error: &StoreError) -> StoreError {
    match error {
        error if error.is_disk_full() => StoreError::DiskFull,
        StoreError::DiskFails { why } => StoreError::DiskFails { why: why.clone() },
        StoreError::Commit { why } => StoreError::Commit { why: why.clone() },
        StoreError::Sql(error) => StoreError::Commit { why: error.to_string() },
        error => StoreError::Commit { why: error.to_string() },
    }
}

fn is_backup_due(connection: &Connection) -> bool {
    let saved: Option<i64> = schema::meta(connection, "backup_ms").unwrap_or_default();
    let age_ms = now_ms() - saved.unwrap_or(0);
    // A clock that was set back is no reason to wait for ever.
    !(0..STORE_BACKUP_EVERY_MS).contains(&age_ms)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::store::connection;

    /// Whether a work was done, and what it heard.
    type Heard = (bool, Result<(), StoreError>);

    /// A table with room for a few pages.
    fn table() -> (tempfile::TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let connection = connection::writer(&dir.path().join("state.db")).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let pages = connection.pragma_update_and_check(None, "max_page_count", 16, |_| Ok(()));
        pages.unwrap();
        (dir, connection)
    }

    fn work(
        told: &Sender<Heard>,
        does: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Work {
        let told = told.clone();
        Box::new(move |connection| {
            let done = connection.map(|connection| in_savepoint(connection, does));
            let is_done = done.is_some();
            let tell = move |committed| told.send((is_done, committed)).unwrap();
            (Box::new(tell), done.unwrap_or(Ok(())))
        })
    }

    fn insert(told: &Sender<Heard>, n_byte: i64) -> Work {
        let sql = "INSERT INTO t VALUES (zeroblob(?1))";
        work(told, move |connection| Ok(connection.execute(sql, [n_byte]).map(|_| ())?))
    }

    fn count(connection: &Connection) -> i64 {
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn on_a_full_disk_all_of_a_transaction_hear_that_it_is_full() {
        let (_dir, connection) = table();
        let (told, heard) = channel();
        let works = [1, 1 << 20, 1].map(|n_byte| insert(&told, n_byte));
        commit(&connection, works.into());
        let heard: Vec<Heard> = heard.try_iter().collect();
        let done: Vec<bool> = heard.iter().map(|(is_done, _)| *is_done).collect();
        assert_eq!(done, [true, true, false], "nothing stands alone after it was taken back");
        let is_full = |(_, told): &Heard| matches!(told, Err(StoreError::DiskFull));
        assert!(heard.iter().all(is_full), "{heard:?}");
        assert_eq!(count(&connection), 0);
        commit(&connection, vec![insert(&told, 1)]);
        assert_eq!(count(&connection), 1, "there is room for that");
    }

    #[test]
    fn a_card_that_fails_is_not_told_as_a_full_one() {
        let (_dir, connection) = table();
        let (told, heard) = channel();
        // What SQLite does by itself where the system cannot write.
        let fails = |connection: &Connection| -> Result<(), StoreError> {
            connection.execute_batch("ROLLBACK")?;
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_WRITE);
            Err(rusqlite::Error::SqliteFailure(code, None).into())
        };
        commit(&connection, vec![insert(&told, 1), work(&told, fails), insert(&told, 1)]);
        let heard: Vec<Heard> = heard.try_iter().collect();
        let is_told_so = |(_, told): &Heard| {
            let error = told.as_ref().unwrap_err();
            matches!(error, StoreError::DiskFails { .. }) && error.to_string().contains("the card")
        };
        assert!(heard.len() == 3 && heard.iter().all(is_told_so), "{heard:?}");
        assert_eq!(count(&connection), 0);
    }
}
