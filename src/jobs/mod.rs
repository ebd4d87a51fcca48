//! Floor 3: work that survives: jobs with their states, when each may run, and what is promised.
//!
//! ```text
//! machine    what may become of a job: a pure function
//! schedule   which job runs next: a pure function
//! pace       whether jobs may run at all now, and why not
//! job        what is asked for, stands, runs and ends
//! queue      all of them over the store
//! ```
//!
//! Nothing here runs a job: whoever can answer requests takes one, says how it went, and hears
//! what that means. A job is acknowledged when it is on the disk, and so is every answer.

mod body;
mod config;
mod job;
mod machine;
mod pace;
mod pieces;
mod queue;
mod schedule;

pub use config::JobsConfig;
pub use job::{Asked, Counts, Ended, Job, Outcome, Run, Submitted, Taken};
pub use machine::{Happening, State, Way};
pub use pace::{AlwaysGo, Pace, Verdict};
pub use pieces::{Piece, Place};
pub use queue::Jobs;

use crate::store::{Full, StoreError};

/// Why a job is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is a job of this name with another body.
    #[error("request {request_id:?} is job {id} with another body")]
    Conflict {
        /// The name.
        request_id: String,
        /// The job that has it.
        id: String,
    },
    /// As many jobs wait as may.
    #[error("{n} jobs wait; no more may")]
    FullCount {
        /// How many.
        n: i64,
    },
    /// Jobs take as much of the disk as they may.
    #[error("jobs take {n_bytes} bytes of the disk, and this one finds no room beside them")]
    FullBytes {
        /// How much.
        n_bytes: i64,
    },
    /// It would find no room if it were the only one.
    #[error("a job's body may take {n_bytes_max} bytes here, half of jobs.bytes_max")]
    TooLarge {
        /// How much it may take.
        n_bytes_max: i64,
    },
    /// There is no such job.
    #[error("there is no such job")]
    Unknown,
    /// It is in no state in which that can be done.
    #[error("the job is {}", state.name())]
    Illegal {
        /// The state.
        state: State,
    },
    /// What is kept of a job makes no sense.
    #[error("job {id}: its record is broken")]
    Record {
        /// Its id.
        id: String,
    },
}

impl From<Full> for JobsError {
    fn from(full: Full) -> JobsError {
        match full {
            Full::Count(n) => JobsError::FullCount { n },
            Full::Bytes(n_bytes) => JobsError::FullBytes { n_bytes },
            Full::Body(n_bytes_max) => JobsError::TooLarge { n_bytes_max },
        }
    }
}
