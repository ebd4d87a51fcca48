//! A running job in the hands of whoever gives it to another machine.
//!
//! Who gets it is on the disk before it does, with the name that it has there. So a program that
//! dies meanwhile asks the same machine for the same job again, and nobody writes it twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::door::Door;
use super::tap::Tap;
use crate::inference::TokenId;
use crate::server::ApiError;

/// The machine that has a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which machine.
    pub host: String,
    /// What the job is called there.
    pub name: String,
}

impl Holder {
    /// As it is on the disk.
    pub(super) fn read(text: &str) -> Option<Holder> {
        let (host, name) = text.split_once(' ')?;
        Some(Holder { host: host.to_owned(), name: name.to_owned() })
    }
}

/// See the module. Stands in the extensions of a job's request; clones share it.
#[derive(Clone)]
pub struct JobHand {
    door: Door,
    run_idx: u64,
    tap: Tap,
    is_settled: Arc<AtomicBool>,
}

impl JobHand {
    pub(super) fn new(door: Door, run_idx: u64, tap: Tap) -> JobHand {
        JobHand { door, run_idx, tap, is_settled: Arc::default() }
    }

    /// Who has it and is not done with it.
    pub fn holder(&self) -> Option<Holder> {
        let is_settled = self.is_settled.load(Ordering::Relaxed);
        let live = self.door.live();
        let job = live.get(&self.run_idx).filter(|_| !is_settled).map(|live| &live.job)?;
        Holder::read(job.row.ledger.holder.as_ref()?)
    }

    /// Writes down that `host`, a word without blanks, gets it, under a name that is new.
    ///
    /// # Errors
    /// If the disk does not take it, or the run is over.
    pub async fn give(&self, host: &str) -> Result<Holder, ApiError> {
        self.is_settled.store(false, Ordering::Relaxed);
        self.write_down(Some(host.to_owned())).await?;
        self.holder().ok_or_else(over)
    }

    /// Writes down that nobody has it: it was not sent, not taken, or failed there.
    ///
    /// # Errors
    /// As [`JobHand::give`].
    pub async fn take_back(&self) -> Result<(), ApiError> {
        self.write_down(None).await
    }

    async fn write_down(&self, host: Option<String>) -> Result<(), ApiError> {
        let (door, run_idx) = (self.door.clone(), self.run_idx);
        // A run that is ended meanwhile would know another revision than the disk.
        let written = tokio::spawn(async move {
            // What was said before is made durable under the job's revision of then.
            let _flushing = door.flushing().lock().await;
            let job = door.live().get(&run_idx).map(|live| live.job.clone());
            let job = job.ok_or_else(over)?;
            let given = door.ask(move |jobs| jobs.give(&job, host.as_deref())).await?;
            let given = given.ok_or_else(over)?;
            if let Some(live) = door.live().get_mut(&run_idx) {
                live.job = given;
            }
            Ok(())
        });
        written.await.map_err(|_| over())?
    }

    /// Whoever has it is not waited for: they are done with it, or may have lost it.
    pub fn settle(&self) {
        self.is_settled.store(true, Ordering::Relaxed);
    }

    /// Hears a piece of its text, in their order from the first one.
    pub fn hear(&self, prompt_idx: usize, answer_idx: usize, text: &str, tokens: &[TokenId]) {
        self.tap.hear((prompt_idx, answer_idx), text, tokens);
    }

    /// What was heard is void: it is written anew.
    pub fn begin_anew(&self) {
        self.tap.forget();
    }

    /// Whoever wrote it gave it up: another one begins at the start.
    pub fn pass_on(&self) {
        self.tap.pass_on();
    }
}

fn over() -> ApiError {
    ApiError::conflict("this run of the job is over")
}
