//! What goes into the tables of jobs and comes out of them.

/// A job that is to be.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct NewJobRow {
    pub id: String,
    pub tenant: i64,
    pub request_id: Option<String>,
    pub body_hash: Vec<u8>,
    pub endpoint: String,
    pub body: Vec<u8>,
    pub seed: i64,
    pub priority: i64,
    pub created_ms: i64,
    pub deadline_ms: Option<i64>,
    pub n_attempt_max: i64,
    pub callback: Option<String>,
    pub ledger: LedgerRow,
}

/// What changes while a job lives.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct LedgerRow {
    pub state: String,
    pub due_ms: i64,
    pub n_attempt: i64,
    pub n_broken: i64,
    /// Counts texts: one more each time a text begins that is not the one before.
    pub epoch: i64,
    /// Tokens that were durable when it was last started.
    pub n_token_start: i64,
    /// How it went on after its last start.
    pub way: String,
    pub started_ms: Option<i64>,
    pub finished_ms: Option<i64>,
    pub reason: Option<String>,
    /// The machine that it was given to, and its name there.
    pub holder: Option<String>,
}

/// A job as it stands, without its texts.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct JobRow {
    pub n: i64,
    pub id: String,
    /// Counts the changes of the ledger.
    pub revision: i64,
    pub tenant: i64,
    pub request_id: Option<String>,
    pub body_hash: Vec<u8>,
    pub endpoint: String,
    pub n_bytes: i64,
    pub seed: i64,
    pub priority: i64,
    pub created_ms: i64,
    pub deadline_ms: Option<i64>,
    pub n_attempt_max: i64,
    pub callback: Option<String>,
    pub callback_state: Option<String>,
    pub ledger: LedgerRow,
    pub status: Option<i64>,
    /// Tokens of its answer that are on the disk.
    pub n_token: i64,
}

/// An answer as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRow {
    /// HTTP status.
    pub status: i64,
    /// Media type.
    pub media_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Pieces of an answer that become durable together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceRow {
    /// Which text.
    pub epoch: i64,
    /// Tokens of the text up to the end of these.
    pub end: i64,
    /// What the room `jobs` makes of them.
    pub pieces: Vec<u8>,
}

/// Pieces of a run, of the job's revision that it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Append {
    pub n: i64,
    pub id: String,
    pub revision: i64,
    pub row: PieceRow,
}

/// A callback that is to be sent: of the end that is this revision of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CallbackRow {
    pub id: String,
    pub revision: i64,
    pub url: String,
    pub n_try: i64,
    pub due_ms: i64,
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Jobs that are not over.
    pub n_max: i64,
    /// Bytes of all jobs' bodies, pieces and answers; half of them for bodies that wait.
    pub bytes_max: i64,
}

/// There is no room for a job that is to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// So many wait already.
    Count(i64),
    /// So many bytes are taken already.
    Bytes(i64),
    /// Its body has more bytes than these, which is all that may wait.
    Body(i64),
}

/// What became of a new job.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Insert {
    /// It is on the disk.
    New(JobRow),
    /// There is one of this tenant and request id.
    Exists(JobRow),
    /// It has no room.
    Full(Full),
}

/// A change of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which job.
    pub n: i64,
    /// Its id.
    pub id: String,
    /// The revision that it starts from.
    pub revision: i64,
    /// What it becomes.
    pub ledger: LedgerRow,
    /// With this answer; without one, an earlier answer goes.
    pub answer: Option<AnswerRow>,
    /// And these last pieces.
    pub pieces: Option<PieceRow>,
    /// Its callback is due from now on.
    pub calls_back: bool,
    /// It waits from now on, if there is room.
    pub limits: Option<QueueLimits>,
    /// Who has it is to hear that nobody wants it.
    pub unwanted: Option<String>,
}

impl Update {
    /// A job in hand becomes this, and no more.
    pub fn of(job: &JobRow, ledger: LedgerRow) -> Update {
        Update {
            n: job.n,
            id: job.id.clone(),
            revision: job.revision,
            ledger,
            answer: None,
            pieces: None,
            calls_back: false,
            limits: None,
            unwanted: None,
        }
    }
}

/// A machine that has a job which nobody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwantedRow {
    /// The machine, and the job's name there.
    pub holder: String,
    /// The id of the job.
    pub id: String,
    /// The job's revision since nobody wants it there.
    pub revision: i64,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is on the disk.
    Done,
    /// The job is of another revision by now.
    Stale,
    /// There is no room for one more that waits.
    Full(Full),
}

/// Jobs of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateCount {
    /// The state.
    pub state: String,
    /// Jobs.
    pub n: i64,
    /// Bytes of their bodies, pieces and answers.
    pub n_bytes: i64,
}

/// Which jobs are listed, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of whom; `None` for everybody.
    pub tenant: Option<i64>,
    /// In which state; `None` for any.
    pub state: Option<String>,
    /// Older than this one.
    pub before_n: Option<i64>,
    /// How many.
    pub n_max: i64,
}
