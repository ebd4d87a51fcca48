//! How an engine runs.

use std::time::Duration;

use crate::base::limits::{ANSWERS_MAX, QUEUE_MAX};

/// Longest gap between two tokens of an answer that prefill beside it may cause.
pub const ITL_BUDGET: Duration = Duration::from_millis(150);

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
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            n_parallel: 1,
            n_queue_max: QUEUE_MAX,
            n_tenant_max: usize::MAX,
            n_answer_max: ANSWERS_MAX,
            itl_budget: ITL_BUDGET,
        }
    }
}
