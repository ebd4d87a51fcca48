//! Floor 1: what must survive: one SQLite file in the state directory, and the only SQL.
//!
//! ```text
//! state.db          WAL, synchronous=FULL; prompts and answers sealed with the device key
//! state.lock        held by the one process that may write
//! state.reserve     room that a start on a full disk takes
//! state.1.backup …  copies that were opened and checked, the newest first
//! state.N.before    what a migration began with; state.update.before, before a newer program
//! state.broken      what could not be used, kept for whoever wants to look; state.newer, of a
//!                   newer program
//! ```
//!
//! One thread writes. What waits for it goes into one transaction, and nobody hears of a write
//! before its commit is on the disk. Readers have connections of their own and never wait.
//!
//! There is no second file for what may be lost: the prefix cache keeps its own, and nothing else
//! needs one.
//!
//! What peers are told of and what they told stands behind a trait ([`sql`]): it is in the same
//! file, or on a PostgreSQL server that several processes share ([`shared`]).

mod backup;
mod connection;
mod export;
mod jobs;
mod older;
mod open;
mod peers;
#[cfg(feature = "postgres")]
mod postgres;
mod reserve;
mod rows;
mod schema;
mod shared;
mod sql;
mod sync;
#[cfg(test)]
mod tests;
mod told;
mod unwanted;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use rusqlite::{Connection, ErrorCode};

use crate::base::file::is_disk_full;
use crate::base::limits::STORE_READERS_KEPT;
use crate::seal::{SealError, Sealer};
pub use export::{ExportFormat, Imported};
pub use older::{go_back, keep_before};
pub use peers::{Peer, pinned};
pub use rows::{
    AnswerRow, Append, CallbackRow, Changed, Full, Insert, JobFilter, JobRow, LedgerRow, NewJobRow,
    PieceRow, QueueLimits, StateCount, UnwantedRow, Update,
};
use shared::Shared;
pub use shared::{SharedOptions, SharedPlace};
pub use sync::{ActRow, HeldRow, OutRow, RecordRow, SyncTx};
use told::Teller;
pub use told::{JobTold, Tells, ToldRow};
use writer::Writer;

/// The version of the store that this program makes and reads.
pub const STATE_SCHEMA: i64 = schema::NEWEST;

/// Why the store cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{}: another jetforge uses it; stop that one first", path.display())]
    Locked {
        /// The file of the lock.
        path: PathBuf,
    },
    /// SQLite says no.
    #[error("the state store: {0}")]
    Sql(rusqlite::Error),
    /// The disk takes no more. Nothing of it was kept.
    #[error(
        "the disk with the state is full, so this was not kept; remove something from that disk \
         and ask again"
    )]
    DiskFull,
    /// The disk itself does not read or write. Nothing of it was kept.
    #[error(
        "the disk with the state fails ({why}), so nothing of this was kept; look at the card or \
         disk, and at the system's log"
    )]
    DiskFails {
        /// What SQLite says.
        why: String,
    },
    /// What was written did not reach the disk.
    #[error("the state store could not write: {why}")]
    Commit {
        /// What happened.
        why: String,
    },
    /// It is broken, and no backup is whole.
    #[error(
        "{}: it is broken ({why}), and there is no backup that is whole; move it away to start \
         with nothing",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A newer program wrote it.
    #[error("{}: version {found} was written by a newer program; this one knows {known}",
        path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// The device key cannot be had.
    #[error(transparent)]
    Key(#[from] SealError),
    /// It was sealed with another device key.
    #[error("{}: another device key sealed it; put that key back beside it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Something sealed does not open.
    #[error("{what} does not open: it was changed")]
    Sealed {
        /// What it is.
        what: String,
    },
    /// A line of an import cannot be read.
    #[error("line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// There are as many peers as there can be.
    #[error("there are {n} peers already; forget one first")]
    PeersFull {
        /// How many.
        n: usize,
    },
    /// The server of a shared store cannot be reached. What was being written may be there.
    #[error("the shared store {place} is away: {why}; try again")]
    Away {
        /// Which store.
        place: String,
        /// What happened.
        why: String,
    },
    /// The server of a shared store says no, or what it has is not ours to use.
    #[error("the shared store {place}: {why}")]
    Shared {
        /// Which store.
        place: String,
        /// What it says.
        why: String,
    },
    /// Too many writes wait.
    #[error("the disk is slower than what is to be written; try again in a second")]
    Busy,
    /// The store has been closed, or its disk takes no transaction.
    #[error("the state store takes no more writes")]
    Closed,
}

impl StoreError {
    /// Whether all that is wrong is that the disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            StoreError::DiskFull => true,
            StoreError::File { source, .. } | StoreError::Key(SealError::File { source, .. }) => {
                is_disk_full(source)
            }
            _ => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            _ if connection::is_disk_full(&error) => StoreError::DiskFull,
            Some(ErrorCode::SystemIoFailure) => StoreError::DiskFails { why: error.to_string() },
            _ => StoreError::Sql(error),
        }
    }
}

/// A store, and what its owner should know of how it was found.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Such as a restored backup with what was lost.
    pub notes: Vec<String>,
}

/// See the module. Clones share it; the last one to go closes it, if nobody did before.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    sealer: Sealer,
    teller: Teller,
    /// The tables of sync, if other processes use them as well.
    shared: OnceLock<Shared>,
    /// Before the lock, so that it is dropped first.
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    _lock: std::fs::File,
}

impl Store {
    /// Opens the store of a state directory, and makes it if there is none.
    ///
    /// # Errors
    /// If another process has it, or neither it nor a backup can be used.
    pub fn open(dir: &Path) -> Result<Opened, StoreError> {
        open::open(dir)
    }

    /// Keeps everybody else from opening the store of a state directory until the file is dropped.
    ///
    /// # Errors
    /// If another process has it, or the directory takes no file.
    pub fn hold(dir: &Path) -> Result<std::fs::File, StoreError> {
        open::lock(dir)
    }

    fn new(dir: &Path, sealer: Sealer, writer: Writer, lock: std::fs::File) -> Store {
        let (dir, readers, teller) =
            (dir.to_owned(), Mutex::default(), Teller::new(sealer.clone()));
        let shared = OnceLock::new();
        Store(Arc::new(Inner { dir, sealer, teller, shared, writer, readers, _lock: lock }))
    }

    /// Runs `work` in a transaction and returns when it is on the disk.
    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.0.writer.write(work)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let lock = || self.0.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let connection = match kept {
            Some(connection) => connection,
            None => connection::reader(&connection::file(&self.0.dir))?,
        };
        let result = work(&connection);
        let mut readers = lock();
        if readers.len() < STORE_READERS_KEPT {
            readers.push(connection);
        }
        result
    }

    /// The state directory that it is in.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Copies the store to a checked backup now.
    ///
    /// # Errors
    /// If the disk does not take it, or the copy is not whole.
    pub fn back_up(&self) -> Result<(), StoreError> {
        self.0.writer.back_up()
    }

    /// Ends writing, and marks the store as closed cleanly, whoever still has it: what comes later
    /// is refused as [`StoreError::Closed`].
    pub fn close(&self) {
        self.0.writer.close();
    }

    /// Commits since the store was opened.
    pub fn n_commit(&self) -> u64 {
        self.0.writer.n_commit()
    }

    fn seal(&self, name: &str, text: &[u8]) -> Result<Vec<u8>, StoreError> {
        let sealed = self.0.sealer.wrap(name, text);
        sealed.map_err(|source| StoreError::File { path: self.0.dir.clone(), source })
    }

    fn unseal(&self, name: &str, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let text = self.0.sealer.unwrap(name, value);
        text.ok_or_else(|| StoreError::Sealed { what: name.to_owned() })
    }
}

/// Milliseconds since the Unix epoch, by this machine's clock.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
