//! What a key may spend: requests per minute and requests at once.
//!
//! The first is a bucket of tokens that holds a minute's worth and fills evenly, so a caller may
//! spend a minute at once and then waits for single tokens.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

/// When a caller who is at its limit of requests at once may try again: one of its own has to end.
const BUSY_RETRY: Duration = Duration::from_secs(1);

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

/// The account of one key.
pub(super) struct Quota {
    per_minute: Option<u32>,
    at_once: Option<u32>,
    bucket: Mutex<Bucket>,
    n_running: AtomicUsize,
}

/// A request that was let in; dropping it makes room for the next.
pub(super) struct Place(Arc<Quota>);

/// What a request takes of what all share, until its last copy is dropped: whoever works for a
/// caller holds it with the caller's name, also after the connection is gone.
#[derive(Clone, Default)]
pub(super) struct Held {
    /// In the key's quota.
    pub place: Option<Arc<Place>>,
    /// For its body.
    pub room: Option<Arc<OwnedSemaphorePermit>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (place, room) = (self.place.is_some(), self.room.is_some());
        f.debug_struct("Held").field("place", &place).field("room", &room).finish()
    }
}

impl Quota {
    /// A full account with these limits; `None` is no limit.
    pub fn new(per_minute: Option<u32>, at_once: Option<u32>, now: Instant) -> Quota {
        let tokens = f64::from(per_minute.unwrap_or(0));
        let bucket = Mutex::new(Bucket { tokens, filled_at: now });
        Quota { per_minute, at_once, bucket, n_running: AtomicUsize::new(0) }
    }

    /// Whether these are its limits.
    pub fn has_limits(&self, per_minute: Option<u32>, at_once: Option<u32>) -> bool {
        self.per_minute == per_minute && self.at_once == at_once
    }

    /// Lets a request in, or says when to come back.
    pub fn admit(self: &Arc<Quota>, now: Instant) -> Result<Place, Duration> {
        let place = self.enter()?;
        self.spend(now).map(|()| place)
    }

    /// A place among the requests at once.
    pub fn enter(self: &Arc<Quota>) -> Result<Place, Duration> {
        let n = self.n_running.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(self));
        match self.at_once.is_some_and(|max| n >= max as usize) {
            true => Err(BUSY_RETRY),
            false => Ok(place),
        }
    }

    /// Spends one request of the minute.
    pub fn spend(&self, now: Instant) -> Result<(), Duration> {
        let Some(per_minute) = self.per_minute.map(f64::from) else { return Ok(()) };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(bucket.filled_at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * per_minute / 60.0).min(per_minute);
        bucket.filled_at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - bucket.tokens) * 60.0 / per_minute).ceil()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.n_running.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_can_be_spent_at_once_and_then_fills_evenly() {
        let start = Instant::now();
        let quota = Arc::new(Quota::new(Some(6), None, start));
        for _ in 0..6 {
            assert!(quota.admit(start).is_ok());
        }
        let wait = quota.admit(start).map(|_| ()).unwrap_err();
        assert_eq!(wait, Duration::from_secs(10));
        assert!(quota.admit(start + Duration::from_secs(9)).is_err());
        assert!(quota.admit(start + Duration::from_secs(10)).is_ok());
        assert!(quota.admit(start + Duration::from_secs(10)).is_err());
    }

    #[test]
    fn a_finished_request_makes_room() {
        let now = Instant::now();
        let quota = Arc::new(Quota::new(None, Some(2), now));
        let first = quota.admit(now).ok().unwrap();
        let _second = quota.admit(now).ok().unwrap();
        assert!(quota.admit(now).is_err() && quota.admit(now).is_err());
        drop(first);
        assert!(quota.admit(now).is_ok());
    }
}
