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
/// Writes, and says whom to tell; without a connection it writes nothing.
type Work = Box<dyn FnOnce(Option<&Connection>) -> Tell + Send>;

enum Order {
    Write(Work),
    BackUp(SyncSender<Result<(), StoreError>>),
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
            let result = connection.map(|connection| in_savepoint(connection, work));
            Box::new(move |committed: Result<(), StoreError>| {
                let result = result.unwrap_or(Err(StoreError::Closed));
                let _ = answer.send(committed.and(result));
            })
        });
        self.send(Order::Write(work))?;
        answered.recv().map_err(|_| StoreError::Closed)?
    }

    pub fn back_up(&self) -> Result<(), StoreError> {
        let (answer, answered) = sync_channel(1);
        self.send(Order::BackUp(answer))?;
        answered.recv().map_err(|_| StoreError::Closed)?
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
            connection.execute_batch("ROLLBACK TO work; RELEASE work")?;
            Err(error)
        }
    }
}

/// The time after a backup that failed in which none is tried.
const BACKUP_PAUSE: Duration = Duration::from_secs(3600);

fn run(connection: Connection, orders: &Receiver<Order>, n_commit: &AtomicU64) {
    let mut failed_at: Option<Instant> = None;
    while let Ok(first) = orders.recv() {
        let mut works = Vec::new();
        let mut copies = Vec::new();
        for order in std::iter::once(first).chain(orders.try_iter().take(STORE_BATCH_MAX)) {
            match order {
                Order::Write(work) => works.push(work),
                Order::BackUp(answer) => copies.push(answer),
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
        } else if failed_at.is_none_or(|at| at.elapsed() >= BACKUP_PAUSE)
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
}

fn commit(connection: &Connection, works: Vec<Work>) {
    let mut tells = Vec::new();
    let mut works = works.into_iter();
    let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from);
    let committed = begun.and_then(|()| {
        for work in works.by_ref() {
            tells.push(work(Some(connection)));
            // A full disk takes the whole transaction back. What comes next would stand alone, and
            // stay although its caller is told that it failed.
            if connection.is_autocommit() {
                return Err(StoreError::DiskFull);
            }
        }
        Ok(connection.execute_batch("COMMIT")?)
    });
    if committed.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    // Those whose turn did not come hear why as well.
    tells.extend(works.map(|work| work(None)));
    for tell in tells {
        tell(told(&committed));
    }
}

/// How it went, for each of those that wait.
fn told(result: &Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.is_disk_full() => Err(StoreError::DiskFull),
        Err(StoreError::Sql(error)) => Err(StoreError::Commit { why: error.to_string() }),
        Err(error) => Err(StoreError::Commit { why: error.to_string() }),
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
    use std::sync::mpsc::channel;

    use super::*;
    use crate::store::connection;

    #[test]
    fn on_a_full_disk_all_of_a_transaction_hear_that_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let connection = connection::writer(&dir.path().join("state.db")).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let pages = connection.pragma_update_and_check(None, "max_page_count", 16, |_| Ok(()));
        pages.unwrap();
        let (told, heard) = channel();
        let insert = |n_byte: i64| -> Work {
            let told = told.clone();
            Box::new(move |connection| {
                let sql = "INSERT INTO t VALUES (zeroblob(?1))";
                let ran = connection.map(|connection| connection.execute(sql, [n_byte]));
                Box::new(move |committed| told.send((ran.is_some(), committed)).unwrap())
            })
        };
        commit(&connection, vec![insert(1), insert(1 << 20), insert(1)]);
        let heard: Vec<_> = heard.try_iter().collect();
        let ran: Vec<bool> = heard.iter().map(|(ran, _)| *ran).collect();
        assert_eq!(ran, [true, true, false], "nothing stands alone after it was taken back");
        let is_full =
            |(_, told): &(bool, Result<(), StoreError>)| matches!(told, Err(StoreError::DiskFull));
        assert!(heard.iter().all(is_full), "{heard:?}");
        let count = || -> i64 {
            connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(count(), 0);
        commit(&connection, vec![insert(1)]);
        assert_eq!(count(), 1, "there is room for that");
    }
}
