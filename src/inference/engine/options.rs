//! How an engine runs.

use std::time::Duration;

use crate::base::limits::{ANSWERS_MAX, QUEUE_MAX};
use crate::inference::disk_cache::DiskCache;

/// Longest gap between two tokens of an answer that prefill beside it may cause.
pub const ITL_BUDGET: Duration = Duration::from_millis(150);

/// Tokens of a prompt that is worth a place on the disk: computing fewer takes a second or two even
/// on a weak device.
pub const N_DISK_MIN: usize = 128;

/// What an engine is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that run at once. The model is loaded for as many.
    pub n_parallel: usize,
    /// Sequences that may wait.
    pub n_queue_max: usize,
    /// Sequences of one tenant that run while another tenant waits.
    pub n_tenant_max: usize,
    /// Answers to one prompt.
    pub n_answer_max: usize,
    /// Longest gap between two tokens of an answer that prefill beside it may cause.
    pub itl_budget: Duration,
    /// Where prefixes are kept that outlive the program.
    pub disk_cache: Option<DiskCache>,
    /// Shorter prompts are neither kept there nor looked up.
    pub n_disk_min: usize,
    /// Keeps what it sees for the first time even when much was written today.
    pub keeps_everything: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            n_parallel: 1,
            n_queue_max: QUEUE_MAX,
            n_tenant_max: usize::MAX,
            n_answer_max: ANSWERS_MAX,
            itl_budget: ITL_BUDGET,
            disk_cache: None,
            n_disk_min: N_DISK_MIN,
            keeps_everything: false,
        }
    }
}
