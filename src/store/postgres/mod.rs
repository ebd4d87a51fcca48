//! The shared tables on a PostgreSQL server: a few connections, lent to one transaction at a time.
//!
//! ```text
//! transaction -> a kept connection, or a new one -> begin -> work -> commit -> it is kept again
//! the server is away -> at once, until the pause is over: 0.1 s, doubled up to 10 s
//! ```
//!
//! A kept connection may have lost its server. That shows when a transaction begins, before any of
//! its work was done; so it is begun once more on a new one, and never later.
//!
//! The driver waits on a small runtime of its own, which a thread of another one may not do, so
//! each transaction has a thread for as long as it takes. Beside the ways to a server and back that
//! costs nothing. Nobody waits for ever: see [`line`].

mod line;
mod schema;
mod wire;

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use self::wire::{Begin, Wire};
use super::StoreError;
use super::shared::{Database, SharedOptions, SharedPlace, Work};
use crate::base::limits::{
    SHARED_CONNECTIONS_MAX, SHARED_PAUSE_MS_MAX, SHARED_PAUSE_MS_MIN, SHARED_WAIT_MS,
};
use crate::seal::Sealer;

/// See the module.
pub struct Postgres {
    place: SharedPlace,
    password: Option<String>,
    sealer: Sealer,
    node: OnceLock<String>,
    pool: Mutex<Pool>,
    /// A connection was given back, or is no more.
    freed: Condvar,
}

#[derive(Default)]
struct Pool {
    kept: Vec<Wire>,
    /// All that there are, lent ones included.
    n_open: usize,
    /// Connections that failed since the last one that did not.
    n_failed: u32,
    /// None is tried before this; whether the server was away, and what it said else.
    rests: Option<(Instant, bool, String)>,
}

impl Postgres {
    /// The server of these options, which nobody has asked yet. Its processes were called `node`
    /// before, if they were.
    ///
    /// # Errors
    /// If the password cannot be read.
    pub fn new(
        options: &SharedOptions,
        sealer: &Sealer,
        node: Option<String>,
    ) -> Result<Postgres, StoreError> {
        let known = OnceLock::new();
        if let Some(node) = node {
            let _ = known.set(node);
        }
        Ok(Postgres {
            place: options.place.clone(),
            password: options.password()?,
            sealer: sealer.clone(),
            node: known,
            pool: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection, and whether it was kept.
    fn lend(&self) -> Result<(Lent<'_>, bool), StoreError> {
        let until = Instant::now() + Duration::from_millis(SHARED_WAIT_MS);
        let mut pool = self.pool();
        loop {
            if let Some(wire) = pool.kept.pop() {
                return Ok((Lent { owner: self, wire: Some(wire) }, true));
            }
            if pool.n_open < SHARED_CONNECTIONS_MAX {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::Busy);
            }
            let waited = self.freed.wait_timeout(pool, left);
            pool = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let rests = pool.rests.as_ref().filter(|(until, ..)| Instant::now() < *until);
        if let Some((_, is_away, why)) = rests {
            return Err(self.failed(*is_away, why.clone()));
        }
        pool.n_open += 1;
        drop(pool);
        // From here on its end is counted, also where it never begins.
        let mut lent = Lent { owner: self, wire: None };
        let opened = self.open();
        let mut pool = self.pool();
        match opened {
            Ok(wire) => {
                (pool.n_failed, pool.rests) = (0, None);
                drop(pool);
                lent.wire = Some(wire);
                Ok((lent, false))
            }
            // It is there, and busy with another one that opens; that waited long enough.
            Err(StoreError::Busy) => {
                drop(pool);
                Err(StoreError::Busy)
            }
            Err(error) => {
                let pause = SHARED_PAUSE_MS_MIN << pool.n_failed.min(16);
                let pause = Duration::from_millis(pause.min(SHARED_PAUSE_MS_MAX));
                pool.n_failed += 1;
                let (is_away, why) = match &error {
                    StoreError::Away { why, .. } => (true, why.clone()),
                    StoreError::Shared { why, .. } => (false, why.clone()),
                    error => (false, error.to_string()),
                };
                pool.rests = Some((Instant::now() + pause, is_away, why));
                drop(pool);
                Err(error)
            }
        }
    }

    fn failed(&self, is_away: bool, why: String) -> StoreError {
        let place = self.place.to_string();
        match is_away {
            true => StoreError::Away { place, why },
            false => StoreError::Shared { place, why },
        }
    }

    fn open(&self) -> Result<Wire, StoreError> {
        let (wire, node) = Wire::open(&self.place, self.password.as_deref(), &self.sealer)?;
        if *self.node.get_or_init(|| node.clone()) != node {
            let why = "it is another one than before; start this process again to take it";
            return Err(self.failed(false, why.to_owned()));
        }
        Ok(wire)
    }

    /// A connection in a transaction.
    fn begin(&self, how: Begin) -> Result<Lent<'_>, StoreError> {
        loop {
            let (mut lent, was_kept) = self.lend()?;
            match lent.wire().begin(how) {
                Ok(()) => return Ok(lent),
                Err(StoreError::Away { .. }) if was_kept => {
                    // The others lost their server as well. Each turn of this loop ends one.
                    let lost = std::mem::take(&mut self.pool().kept);
                    self.pool().n_open -= lost.len();
                    lent.wire = None;
                }
                Err(error) => {
                    lent.wire = None;
                    return Err(error);
                }
            }
        }
    }

    fn transact(&self, how: Begin, work: Work<'_>) -> Result<(), StoreError> {
        apart(move || {
            let mut lent = self.begin(how)?;
            // A panic in between ends the connection, and with it the transaction.
            let mut wire = lent.wire.take().ok_or(StoreError::Closed)?;
            let done = work(&mut wire);
            let ended = wire.end(done);
            lent.wire = wire.is_sound().then_some(wire);
            ended
        })
    }
}

impl Database for Postgres {
    fn write(&self, work: Work<'_>) -> Result<(), StoreError> {
        self.transact(Begin::Write, work)
    }

    fn look(&self, work: Work<'_>) -> Result<(), StoreError> {
        self.transact(Begin::Look, work)
    }

    fn node(&self) -> Option<String> {
        self.node.get().cloned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut self.pool().kept);
        // Their runtimes may not end on a thread of another one.
        let _ = apart(move || {
            drop(kept);
            Ok(())
        });
    }
}

/// A connection of a transaction: kept again at its end, if it is still there.
struct Lent<'a> {
    owner: &'a Postgres,
    wire: Option<Wire>,
}

impl Lent<'_> {
    fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("it is taken at the end alone")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut pool = self.owner.pool();
        match self.wire.take() {
            Some(wire) => pool.kept.push(wire),
            None => pool.n_open -= 1,
        }
        drop(pool);
        self.owner.freed.notify_one();
    }
}

/// Runs `work` on a thread that belongs to no other runtime.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, StoreError> + Send) -> Result<T, StoreError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("shared store".into());
        let none = |source| StoreError::File { path: "thread".into(), source };
        let done = thread.spawn_scoped(scope, work).map_err(none)?.join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
