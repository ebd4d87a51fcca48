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
/// Writes, and says whom to tell.
type Work = Box<dyn FnOnce(&Connection) -> Tell + Send>;

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
            let result = in_savepoint(connection, work);
            Box::new(move |committed: Result<(), StoreError>| {
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
            let why = backup::make(&connection).err().map(|error| error.to_string());
            for answer in copies {
                let result = why.clone().map_or(Ok(()), |why| Err(StoreError::Commit { why }));
                let _ = answer.send(result);
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
    let begun = connection.execute_batch("BEGIN IMMEDIATE");
    let committed = begun.and_then(|()| {
        for work in works {
            tells.push(work(connection));
            // A full disk takes the whole transaction back. What comes next would stand alone, and
            // stay although its caller is told that it failed; those that wait hear of no answer.
            if connection.is_autocommit() {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                return Err(rusqlite::Error::SqliteFailure(full, None));
            }
        }
        connection.execute_batch("COMMIT")
    });
    if committed.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    let why = committed.err().map(|error| error.to_string());
    for tell in tells {
        tell(why.clone().map_or(Ok(()), |why| Err(StoreError::Commit { why })));
    }
}

fn is_backup_due(connection: &Connection) -> bool {
    let saved: Option<i64> = schema::meta(connection, "backup_ms").unwrap_or_default();
    let age_ms = now_ms() - saved.unwrap_or(0);
    // A clock that was set back is no reason to wait for ever.
    !(0..STORE_BACKUP_EVERY_MS).contains(&age_ms)
}
