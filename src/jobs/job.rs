//! A job as it is asked for, stands, runs and ends.

use std::collections::BTreeMap;

use super::JobsError;
use super::machine::{Happening, State};
use super::pieces::Piece;
use super::schedule::Waiting;
use crate::store::{AnswerRow, JobRow};

/// A job that somebody asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Whose it is.
    pub tenant: u64,
    /// How they call it: the same name and body is the same job.
    pub request_id: Option<String>,
    /// The path that answers its body.
    pub endpoint: String,
    /// JSON.
    pub body: Vec<u8>,
    /// What tells it from others of its name, where that is not the path and the body's fields.
    pub digest: Option<Vec<u8>>,
    /// Higher ones run first.
    pub priority: i64,
    /// Not before this time, in milliseconds since the Unix epoch.
    pub not_before_ms: Option<i64>,
    /// Not after this time.
    pub deadline_ms: Option<i64>,
    /// Attempts.
    pub n_attempt_max: i64,
    /// Whom to tell when it is over.
    pub callback: Option<String>,
    /// Somebody waits for it: it runs from the first moment on, by the one who asked.
    pub starts_now: bool,
}

/// A job as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its row.
    pub row: JobRow,
    /// Where it is.
    pub state: State,
}

/// What became of a job that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// It is new, and on the disk.
    New(Job),
    /// It was asked for before.
    Known(Job),
}

/// A job to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The job.
    pub job: Job,
    /// Its body.
    pub body: Vec<u8>,
    /// What is durable of its text.
    pub pieces: Vec<Piece>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// Run this.
    Run(Box<Run>),
    /// Jobs are over that never ran: tell of it, and ask again.
    Changed,
    /// Ask again when something changes, and at this time at the latest.
    Wait {
        /// The time, if one is known.
        until_ms: Option<i64>,
    },
}

/// An answer as it goes over the wire.
pub type Outcome = AnswerRow;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// What happened.
    pub happening: Happening,
    /// The answer, if there is one.
    pub outcome: Option<Outcome>,
    /// Pieces that are not durable yet, and where they end.
    pub tail: Option<(i64, Vec<Piece>)>,
}

/// How many jobs there are in each state, counted in the table.
pub type Counts = BTreeMap<&'static str, (i64, i64)>;

impl Job {
    /// A job of its row.
    ///
    /// # Errors
    /// If that says a state that there is not.
    pub(super) fn of(row: JobRow) -> Result<Job, JobsError> {
        match State::from_name(&row.ledger.state) {
            Some(state) => Ok(Job { state, row }),
            None => Err(JobsError::Record { id: row.id }),
        }
    }

    /// It broke before.
    pub(super) fn is_suspect(&self) -> bool {
        self.row.ledger.n_broken > 0
    }

    /// As the order of jobs sees it.
    pub(super) fn waiting(&self) -> Waiting {
        Waiting {
            n: self.row.n,
            priority: self.row.priority,
            due_ms: self.row.ledger.due_ms,
            is_suspect: self.is_suspect(),
        }
    }
}
