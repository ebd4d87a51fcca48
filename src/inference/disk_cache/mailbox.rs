//! Where the disk's thread leaves what an engine fetched.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Miss;
use crate::base::limits::PREFIX_MAILBOX_BYTES;

/// A page that was fetched, or the end of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The fetch.
    pub ticket: u64,
    /// The next page; or why there is none, `None` when that was the last.
    pub page: Result<Vec<u8>, Option<Miss>>,
}

impl Letter {
    fn n_bytes(&self) -> usize {
        self.page.as_ref().map_or(0, Vec::len)
    }
}

/// Letters to one engine; bounded, because the disk waits until there is room.
pub struct Mailbox {
    letters: Mutex<VecDeque<Letter>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Mailbox {
    /// An empty mailbox; `wake` is called after each letter.
    pub fn new(wake: Box<dyn Fn() + Send + Sync>) -> Mailbox {
        Mailbox { letters: Mutex::default(), wake }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Letter>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are no letters.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn take(&self) -> Option<Letter> {
        self.lock().pop_front()
    }

    pub(super) fn has_room(&self, n_bytes: usize) -> bool {
        let letters = self.lock();
        let held: usize = letters.iter().map(Letter::n_bytes).sum();
        held == 0 || held + n_bytes <= PREFIX_MAILBOX_BYTES
    }

    pub(super) fn put(&self, letter: Letter) {
        self.lock().push_back(letter);
        (self.wake)();
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }
}
