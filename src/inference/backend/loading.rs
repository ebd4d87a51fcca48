//! How far the loading of a model is, for whoever waits for it.
//!
//! Who loads says once how many bytes there are in all, and counts them as each piece is in its
//! place; who waits reads at any time. What is counted are weights as they are computed with: those
//! that are used as the file has them are mapped, and nobody waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of weights that are in their place, and those that there will be. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LoadProgress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl LoadProgress {
    /// Begins to count, of `total_bytes`: once for each model, and once more where another device
    /// takes over from one that failed.
    pub fn begin(&self, total_bytes: u64) {
        self.0.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.0.done_bytes.store(0, Ordering::Release);
    }

    /// Counts bytes that are in their place.
    pub fn add(&self, n_bytes: usize) {
        self.0.done_bytes.fetch_add(n_bytes as u64, Ordering::Release);
    }

    /// Bytes in their place, and in all; both 0 until that is known.
    pub fn read(&self) -> (u64, u64) {
        // In this order: whoever sees bytes that are counted sees of how many they are, or those of
        // a device that failed, which are never too many.
        let done_bytes = self.0.done_bytes.load(Ordering::Acquire);
        let total_bytes = self.0.total_bytes.load(Ordering::Relaxed);
        (done_bytes.min(total_bytes), total_bytes)
    }

    /// What is in its place of what there will be, from 0 to 1; nothing until that is known.
    pub fn fraction(&self) -> Option<f64> {
        let (done_bytes, total_bytes) = self.read();
        (total_bytes > 0).then(|| done_bytes as f64 / total_bytes as f64)
    }
}
