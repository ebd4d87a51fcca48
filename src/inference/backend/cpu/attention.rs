//! Attention over the paged KV cache, with a running softmax.
//!
//! ```text
//! task: a span, a few of its tokens, a kv head; all runs of 8 pages, or one of them
//!   for each run of pages that the tokens see, in order
//!     for each page of the run, in order              see `page`
//!       m' = max(m, scores); rescale what was summed by e^(m - m')
//!       sums += e^(score - m') (1, value)             position by position
//!     total = total + sums of the run, each rescaled to the larger of their maxima
//!   out = values / weight
//! ```
//!
//! Pages and runs begin at fixed positions of the sequence, so a token's sums run in the same order
//! in any chunk or batch. That a run is summed on its own lets the runs of a short span be tasks of
//! their own: one token at depth keeps every thread busy, and its bits do not show it.

mod page;
#[cfg(test)]
mod tests;

use std::ops::Range;

use self::page::{PageScratch, Sums, add_page};
use super::acts::Rows;
use super::isa::{Isa, with_isa};
use super::kv_cache::{KvCache, Side};
use super::kv_rotated::rotate;
use super::math;
use super::pool::Pool;
use super::shared::{PerWorker, SharedMut};
use super::simd::{Scalar, Simd};
use crate::base::limits::ATTENTION_PARTIALS_MAX;
use crate::inference::backend::{AttentionSpec, Op, PAGE_LEN, Plan, Span};

/// Positions of a run.
const RUN_LEN: usize = 8 * PAGE_LEN;
/// Queries of a task: they share the widening of a page, and stay in L1 with it.
const TILE_QUERIES: usize = 64;
/// Tokens up to which a span's runs are tasks of their own.
const SPLIT_TOKENS: usize = 8;

/// Everything that attention keeps from one call to the next.
pub struct Attention {
    scratch: PerWorker<Scratch>,
    tasks: Vec<Task>,
    /// Tasks whose runs were split, to put together.
    splits: Vec<Task>,
    /// Sums of the runs of split tasks.
    partials: Vec<f32>,
}

/// Scratch of one thread.
#[derive(Default)]
struct Scratch {
    page: PageScratch,
    run: Vec<f32>,
    total: Vec<f32>,
}

/// Tokens `start..end` of a span, and one kv head.
#[derive(Clone, Copy)]
struct Task {
    span_idx: usize,
    /// Row of the span's first token in the batch.
    row: usize,
    start: usize,
    end: usize,
    kv_head: usize,
    /// Runs that it adds up.
    run_start: usize,
    run_end: usize,
    /// Where the sums of its first run stand among the partials, if it was split.
    partial: Option<usize>,
}

/// What every task reads.
struct Job<'a> {
    spec: AttentionSpec,
    kv: &'a KvCache,
    spans: &'a [Span<'a>],
    q: Rows<'a>,
    out: SharedMut<f32>,
    partials: SharedMut<f32>,
}

impl Attention {
    /// For a pool of `n_threads`.
    pub fn new(n_threads: usize) -> Attention {
        let scratch = PerWorker::new(n_threads);
        Attention { scratch, tasks: Vec::new(), splits: Vec::new(), partials: Vec::new() }
    }

    /// Bytes of partial sums at most, for a context of `n_page` pages and batches of `n_batch`.
    pub fn partial_bytes(plan: &Plan, n_page: usize, n_batch: usize) -> usize {
        let per_token = |op: &Op| match op {
            Op::Attention { spec, .. } => spec.n_head * Sums::len_of(1, spec.head_dim),
            _ => 0,
        };
        let n_run = (n_page * PAGE_LEN).div_ceil(RUN_LEN);
        let most = plan.ops.iter().map(per_token).max().unwrap_or(0) * n_run * n_batch;
        most.min(ATTENTION_PARTIALS_MAX) * size_of::<f32>()
    }

    /// `out = softmax(q . K^T) . V` for each token and head; `out` is `[q.n, q.stride]`.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn run(
        &mut self,
        pool: &mut Pool,
        isa: Isa,
        spec: AttentionSpec,
        kv: &KvCache,
        spans: &[Span<'_>],
        q: Rows<'_>,
        out: &mut [f32],
    ) {
        assert!(q.data.len() >= q.n * q.stride && out.len() >= q.n * q.stride);
        self.plan_tasks(&spec, spans);
        let (out, partials) = (SharedMut::new(out), SharedMut::new(&mut self.partials));
        let job = Job { spec, kv, spans, q, out, partials };
        let (scratch, tasks, splits) = (&self.scratch, &self.tasks, &self.splits);
        pool.run(tasks.len(), &|i, worker_idx| {
            // SAFETY: tasks own disjoint tokens, heads and partials, workers their scratch, and
            // the instruction set is of this machine.
            unsafe { run_task(isa, &job, &tasks[i], scratch.get(worker_idx)) };
        });
        pool.run(splits.len(), &|i, worker_idx| {
            // SAFETY: as above; the partials are complete.
            unsafe { join_task(isa, &job, &splits[i], scratch.get(worker_idx)) };
        });
    }

    fn plan_tasks(&mut self, spec: &AttentionSpec, spans: &[Span<'_>]) {
        self.tasks.clear();
        self.splits.clear();
        let (mut row, mut n_partial) = (0, 0);
        let n_rep = spec.n_head / spec.n_kv_head;
        let tile = (TILE_QUERIES / n_rep).max(1);
        for (span_idx, span) in spans.iter().enumerate() {
            // The last tokens see most: they come first, so that no thread is left with them.
            for start in (0..span.n_tokens).step_by(tile).rev() {
                let end = (start + tile).min(span.n_tokens);
                let runs = visible(spec, span, start).start / RUN_LEN
                    ..visible(spec, span, end - 1).end.div_ceil(RUN_LEN);
                let len = Sums::len_of((end - start) * n_rep, spec.head_dim);
                let n_more = len * runs.len() * spec.n_kv_head;
                let is_split = runs.len() > 1
                    && span.n_tokens <= SPLIT_TOKENS
                    && n_partial + n_more <= ATTENTION_PARTIALS_MAX;
                for kv_head in 0..spec.n_kv_head {
                    let (run_start, run_end) = (runs.start, runs.end);
                    let partial = is_split.then_some(n_partial);
                    let task =
                        Task { span_idx, row, start, end, kv_head, run_start, run_end, partial };
                    if !is_split {
                        self.tasks.push(task);
                        continue;
                    }
                    self.splits.push(task);
                    for run in runs.clone() {
                        let partial = Some(n_partial);
                        self.tasks.push(Task { run_start: run, run_end: run + 1, partial, ..task });
                        n_partial += len;
                    }
                }
            }
            row += span.n_tokens;
        }
        self.partials.resize(n_partial.max(self.partials.len()), 0.0);
    }
}

/// The positions that token `i` of a span sees.
#[inline(always)]
fn visible(spec: &AttentionSpec, span: &Span<'_>, i: usize) -> Range<usize> {
    let pos = span.pos + i;
    let end = if spec.causal { pos + 1 } else { span.pos + span.n_tokens };
    spec.window.map_or(0, |w| (pos + 1).saturating_sub(w))..end
}

impl Task {
    fn n_query(&self, spec: &AttentionSpec) -> usize {
        (self.end - self.start) * (spec.n_head / spec.n_kv_head)
    }
}

unsafe fn run_task(isa: Isa, job: &Job<'_>, task: &Task, s: &mut Scratch) {
    // SAFETY: passed on.
    unsafe { with_isa!(isa, run_task_with(job: &Job<'_>, task: &Task, s: &mut Scratch)) }
}

unsafe fn join_task(isa: Isa, job: &Job<'_>, task: &Task, s: &mut Scratch) {
    // SAFETY: passed on.
    unsafe { with_isa!(isa, join_task_with(job: &Job<'_>, task: &Task, s: &mut Scratch)) }
}

#[inline(always)]
unsafe fn run_task_with<S: Simd>(job: &Job<'_>, task: &Task, s: &mut Scratch) {
    let spec = &job.spec;
    let (head_dim, n_query) = (spec.head_dim, task.n_query(spec));
    let n_rep = spec.n_head / spec.n_kv_head;
    s.page.queries(n_query, head_dim, job.kv.is_rotated(), |query| {
        let row = task.row + task.start + query / n_rep;
        let head = task.kv_head * n_rep + query % n_rep;
        let q = &job.q.data[row * job.q.stride + head * head_dim..][..head_dim];
        q.iter().map(|x| x * spec.scale)
    });
    let len = Sums::len_of(n_query, head_dim);
    if let Some(partial) = task.partial {
        // SAFETY: this task owns its partial.
        let flat = unsafe { job.partials.slice(partial, len) };
        // SAFETY: passed on.
        unsafe { add_run::<S>(job, task, task.run_start, &mut s.page, flat) };
        return;
    }
    s.run.resize(len.max(s.run.len()), 0.0);
    s.total.resize(len.max(s.total.len()), 0.0);
    let (run, total) = (&mut s.run[..len], &mut s.total[..len]);
    Sums::of(total, n_query).clear();
    for run_idx in task.run_start..task.run_end {
        // SAFETY: passed on.
        unsafe { add_run::<S>(job, task, run_idx, &mut s.page, run) };
        join(Sums::of(total, n_query), Sums::of(run, n_query));
    }
    // SAFETY: passed on.
    unsafe { write(job, task, Sums::of(total, n_query)) };
}

/// Puts the runs of a split task together.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)] // `with_isa` names the set that it enables
unsafe fn join_task_with<S>(job: &Job<'_>, task: &Task, s: &mut Scratch) {
    let n_query = task.n_query(&job.spec);
    let len = Sums::len_of(n_query, job.spec.head_dim);
    s.total.resize(len.max(s.total.len()), 0.0);
    let total = &mut s.total[..len];
    Sums::of(total, n_query).clear();
    let first = task.partial.unwrap_or_default();
    for i in 0..task.run_end - task.run_start {
        // SAFETY: the tasks that wrote the partials are done, and this one is the only reader.
        let run = unsafe { job.partials.slice(first + i * len, len) };
        join(Sums::of(total, n_query), Sums::of(run, n_query));
    }
    // SAFETY: passed on.
    unsafe { write(job, task, Sums::of(total, n_query)) };
}

/// The sums of a task over one run of pages.
#[inline(always)]
unsafe fn add_run<S: Simd>(
    job: &Job<'_>,
    task: &Task,
    run_idx: usize,
    s: &mut PageScratch,
    flat: &mut [f32],
) {
    let (spec, span) = (&job.spec, &job.spans[task.span_idx]);
    let n_rep = spec.n_head / spec.n_kv_head;
    let mut sums = Sums::of(flat, task.n_query(spec));
    sums.clear();
    let first = visible(spec, span, task.start).start.max(run_idx * RUN_LEN);
    let last = visible(spec, span, task.end - 1).end.min((run_idx + 1) * RUN_LEN);
    let pages = first / PAGE_LEN..last.div_ceil(PAGE_LEN);
    for page_idx in pages.clone() {
        let page = span.pages[page_idx];
        let plane = |side| job.kv.plane(spec.layer_idx, page, task.kv_head, side);
        let (keys, values) = (plane(Side::Keys), plane(Side::Values));
        // SAFETY: passed on.
        unsafe { s.open::<S>(keys, values, spec.head_dim) };
        let next = span.pages[..pages.end].get(page_idx + 1);
        s.expect(next.map_or(&[], |&p| job.kv.head(spec.layer_idx, p, task.kv_head)));
        // Slots of the page that a token sees.
        let seen = |token: usize| {
            let Range { start, end } = visible(spec, span, token);
            let slot = |pos: usize| pos.saturating_sub(page_idx * PAGE_LEN).min(PAGE_LEN);
            slot(start)..slot(end)
        };
        let mut token = task.start;
        while token < task.end {
            // Tokens that see the same of the page go together.
            let slots = seen(token);
            let mut end = token + 1;
            while end < task.end && seen(end) == slots {
                end += 1;
            }
            if !slots.is_empty() {
                let queries = (token - task.start) * n_rep..(end - task.start) * n_rep;
                // SAFETY: passed on.
                unsafe { add_page::<S>(s, keys, values, queries, slots, &mut sums) };
            }
            token = end;
        }
    }
}

/// `total += run`, query by query.
#[inline(always)]
fn join(total: Sums<'_>, run: Sums<'_>) {
    let head_dim = total.values.len() / total.max.len();
    for query in 0..total.max.len() {
        let (a, b) = (total.max[query], run.max[query]);
        if b == f32::NEG_INFINITY {
            continue; // it sees nothing of this run
        }
        let max = if a > b { a } else { b };
        let scale_a = if a == f32::NEG_INFINITY { 0.0 } else { math::exp(a - max) };
        let scale_b = math::exp(b - max);
        total.max[query] = max;
        total.weight[query] = total.weight[query] * scale_a + run.weight[query] * scale_b;
        let run = &run.values[query * head_dim..][..head_dim];
        for (t, r) in total.values[query * head_dim..][..head_dim].iter_mut().zip(run) {
            *t = *t * scale_a + r * scale_b;
        }
    }
}

/// Writes the rows of a task: `values / weight`.
///
/// # Safety
/// No other thread writes the task's tokens and heads.
#[inline(always)]
unsafe fn write(job: &Job<'_>, task: &Task, total: Sums<'_>) {
    let (head_dim, n_rep) = (job.spec.head_dim, job.spec.n_head / job.spec.n_kv_head);
    for (query, sums) in total.values.chunks_exact(head_dim).enumerate() {
        let row = task.row + task.start + query / n_rep;
        let head = task.kv_head * n_rep + query % n_rep;
        // SAFETY: the caller owns the token's head.
        let out = unsafe { job.out.slice(row * job.q.stride + head * head_dim, head_dim) };
        let weight = total.weight[query];
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = s / weight);
        if job.kv.is_rotated() {
            rotate(out, head_dim);
        }
    }
}
