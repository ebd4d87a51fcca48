//! The section `jobs` of the configuration.

use serde::{Deserialize, Serialize};

use super::machine::Policy;
use super::pace::Windows;
use crate::base::limits::{JOBS_AT_ONCE_MAX, JOBS_BYTES_MAX, JOBS_WAITING_MAX};

/// The section `jobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobsConfig {
    /// Whether the service takes jobs.
    pub enabled: bool,
    /// Jobs that run at once.
    pub n_at_once: usize,
    /// Jobs that wait or run.
    pub n_waiting_max: i64,
    /// Bytes that bodies, pieces and answers of all jobs take; bodies that wait take half at most.
    pub bytes_max: i64,
    /// Days of uptime that a job is kept after it is over.
    pub keep_days: i64,
    /// Time between two commits of what running jobs have written.
    pub flush_ms: u64,
    /// Time that a job may run at a stretch.
    pub run_max_s: u64,
    /// Breaks without progress after which a job is set aside.
    pub n_broken_max: i64,
    /// First pause after an attempt that failed; it doubles, up to an hour.
    pub pause_ms: i64,
    /// Times of the day, in UTC, at which jobs run, as in `22:00-06:00`; none for any time.
    pub windows_utc: Vec<String>,
    /// Who may be called back, as `host:port`; none for nobody.
    pub callbacks: Vec<String>,
}

impl Default for JobsConfig {
    fn default() -> JobsConfig {
        JobsConfig {
            enabled: true,
            n_at_once: 2,
            n_waiting_max: 1000,
            bytes_max: 256 << 20,
            keep_days: 14,
            flush_ms: 2000,
            run_max_s: 3600,
            n_broken_max: 3,
            pause_ms: 5000,
            windows_utc: Vec::new(),
            callbacks: Vec::new(),
        }
    }
}

impl JobsConfig {
    /// The first value out of range: its key and what is wrong.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let range = |key, max: i64| Err((key, format!("must be 1 to {max}")));
        if !(1..=JOBS_AT_ONCE_MAX).contains(&self.n_at_once) {
            return range("jobs.n_at_once", JOBS_AT_ONCE_MAX as i64);
        }
        if !(1..=JOBS_WAITING_MAX).contains(&self.n_waiting_max) {
            return range("jobs.n_waiting_max", JOBS_WAITING_MAX);
        }
        if !(1..=JOBS_BYTES_MAX).contains(&self.bytes_max) {
            return range("jobs.bytes_max", JOBS_BYTES_MAX);
        }
        if !(0..=36_500).contains(&self.keep_days) {
            return Err(("jobs.keep_days", "must be 0 to 36500".to_owned()));
        }
        if self.flush_ms == 0 || self.run_max_s == 0 || self.pause_ms < 1 {
            return Err(("jobs.flush_ms", "this and other times must be at least 1".to_owned()));
        }
        if self.n_broken_max < 2 {
            return Err(("jobs.n_broken_max", "must be at least 2".to_owned()));
        }
        if Windows::parse(&self.windows_utc).is_none() {
            return Err(("jobs.windows_utc", "use times such as \"22:00-06:00\"".to_owned()));
        }
        Ok(())
    }

    /// What the state machine is allowed.
    pub(super) fn policy(&self) -> Policy {
        Policy { n_broken_max: self.n_broken_max, pause_ms: self.pause_ms, pause_max_ms: 3_600_000 }
    }
}
