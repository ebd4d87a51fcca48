//! The scheduler: a pure function from what waits and runs to the next step.
//!
//! ```text
//! 1 places    the n_parallel sequences with the smallest keys run; key = arrival + class delay
//! 2 decode    every running sequence that only lacks its next token goes along, with its draft
//! 3 prefill   what is left of the step's tokens goes to those that will be ready first
//! ```
//!
//! A class delays a request behind later ones of higher classes, but only so far: keys never
//! change, so whoever waits is overtaken for a bounded time. A more urgent sequence takes the
//! place of a less urgent one, which goes on later with what the prefix cache kept of it.

use super::request::{Priority, TenantId};

/// Head start of a person over a program, in milliseconds.
pub const AGENT_DELAY_MS: u64 = 5_000;
/// Head start of a person over work that nobody waits for, in milliseconds.
pub const BACKGROUND_DELAY_MS: u64 = 30_000;

/// Names a sequence.
pub type SequenceId = u64;

/// What the scheduler sees of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceView {
    /// Its name; rises with arrival.
    pub id: SequenceId,
    /// Class.
    pub priority: Priority,
    /// Owner.
    pub tenant: TenantId,
    /// Milliseconds since the engine started at which it came.
    pub arrived_ms: u64,
    /// Whether it has a place.
    pub is_running: bool,
    /// Whether it waits for pages from the disk: it has its place, and no work.
    pub is_fetching: bool,
    /// Whether it waits for another's prefill, whose pages it will share.
    pub is_follower: bool,
    /// Tokens that must still go through the model before the next one can be chosen; 1 in decode.
    pub n_todo: usize,
    /// Tokens guessed beyond these.
    pub n_draft: usize,
}

/// What a step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Places.
    pub n_parallel: usize,
    /// Places that one tenant may have while another waits.
    pub n_tenant_max: usize,
    /// Tokens of a step.
    pub n_batch: usize,
    /// Output rows of a step.
    pub n_outputs: usize,
    /// Prefill tokens of a step while others decode.
    pub n_chunk: usize,
    /// Microseconds that a token of prefill takes.
    pub prefill_token_us: u64,
}

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Whose.
    pub id: SequenceId,
    /// Tokens that go through the model, without the draft.
    pub n_tokens: usize,
    /// Guessed tokens that go along.
    pub n_draft: usize,
}

/// The next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Sequences that get a place.
    pub admit: Vec<SequenceId>,
    /// Sequences that lose theirs.
    pub preempt: Vec<SequenceId>,
    /// What goes through the model.
    pub work: Vec<Work>,
}

/// The order of places: smaller goes first.
fn place_key(view: &SequenceView) -> (u64, SequenceId) {
    let delay_ms = match view.priority {
        Priority::Interactive => 0,
        Priority::Agent => AGENT_DELAY_MS,
        Priority::Background => BACKGROUND_DELAY_MS,
    };
    (view.arrived_ms.saturating_add(delay_ms), view.id)
}

/// Chooses the next step. `views` in any order.
pub fn schedule(views: &[SequenceView], limits: &StepLimits) -> Step {
    let mut order: Vec<&SequenceView> = views.iter().filter(|v| !v.is_follower).collect();
    order.sort_by_key(|view| place_key(view));
    let placed = places(&order, limits);
    let mut step = Step::default();
    for view in &order {
        let is_placed = placed.iter().any(|p| p.id == view.id);
        match (view.is_running, is_placed) {
            (false, true) => step.admit.push(view.id),
            (true, false) => step.preempt.push(view.id),
            _ => {}
        }
    }
    step.work = work(&placed, limits);
    step
}

/// The sequences that run next.
fn places<'a>(order: &[&'a SequenceView], limits: &StepLimits) -> Vec<&'a SequenceView> {
    let mut placed: Vec<&SequenceView> = Vec::with_capacity(limits.n_parallel);
    let mut over_cap = Vec::new();
    for &view in order {
        if placed.len() == limits.n_parallel {
            break;
        }
        let n_same = placed.iter().filter(|p| p.tenant == view.tenant).count();
        if n_same < limits.n_tenant_max { placed.push(view) } else { over_cap.push(view) }
    }
    // A cap holds only while another tenant wants the place.
    let n_left = limits.n_parallel - placed.len();
    placed.extend(over_cap.into_iter().take(n_left));
    placed
}

fn work(placed: &[&SequenceView], limits: &StepLimits) -> Vec<Work> {
    let (decode, mut prefill): (Vec<&SequenceView>, Vec<_>) =
        placed.iter().copied().filter(|v| !v.is_fetching).partition(|view| view.n_todo <= 1);
    let mut n_tokens = limits.n_batch;
    // Each sequence may need one output row; what is left is for drafts.
    let mut n_draft_rows = limits.n_outputs.saturating_sub(placed.len());
    let mut work = Vec::with_capacity(placed.len());
    let mut n_waiting = decode.len();
    for view in &decode {
        n_waiting -= 1;
        let Some(room) = n_tokens.checked_sub(1 + n_waiting) else { break };
        let n_draft = view.n_draft.min(n_draft_rows).min(room);
        n_draft_rows -= n_draft;
        n_tokens -= 1 + n_draft;
        work.push(Work { id: view.id, n_tokens: 1, n_draft });
    }
    let mut n_chunk = if decode.is_empty() { n_tokens } else { limits.n_chunk.min(n_tokens) };
    prefill.sort_by_key(|view| prefill_key(view, limits));
    for view in prefill {
        let n = view.n_todo.min(n_chunk);
        if n == 0 {
            break;
        }
        n_chunk -= n;
        work.push(Work { id: view.id, n_tokens: n, n_draft: 0 });
    }
    work
}

/// The order of prefill: who would be ready first had everyone started on arrival. A short prompt
/// overtakes a long one for as long as the long one takes, and no longer.
fn prefill_key(view: &SequenceView, limits: &StepLimits) -> (u64, SequenceId) {
    let todo_ms = (view.n_todo as u64).saturating_mul(limits.prefill_token_us) / 1000;
    (place_key(view).0.saturating_add(todo_ms), view.id)
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
