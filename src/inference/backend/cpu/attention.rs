//! Attention over the paged KV cache, with a running softmax.
//!
//! ```text
//! task: a span, a kv head, up to 16 tokens
//!   for each page that the tokens see, in order
//!     widen keys [head_dim][32] and values [32][head_dim] to f32, once
//!     for each token and query head of the group
//!       scores = q . K                      summed over head_dim in order, 32 at a time
//!       m' = max(m, scores); rescale what was summed by e^(m - m')
//!       sum += e^(score - m') (1, value)
//!   out = values / weights
//! ```
//!
//! Pages start at fixed positions, so a token's sums run in the same order in any chunk or batch.

use super::isa::{Isa, with_isa};
use super::kv_cache::{KvCache, KvSlice};
use super::math;
use super::pool::Pool;
use super::shared::{PerWorker, SharedMut};
use super::simd::{LANES, Scalar, Simd};
use crate::inference::backend::{AttentionSpec, PAGE_LEN, Span};

/// Tokens of a task: they share the widening of a page.
const TILE_TOKENS: usize = 16;

/// Scratch of one thread.
#[derive(Default)]
pub struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Scaled queries, then sums, `[token][head of the group][head_dim]`.
    q: Vec<f32>,
    sums: Vec<f32>,
    /// Largest score and sum of weights, `[token][head of the group]`.
    state: Vec<(f32, f32)>,
}

/// A task: tokens `start..end` of a span, and one kv head.
#[derive(Clone, Copy)]
struct Task<'a> {
    span: Span<'a>,
    /// Row of the span's first token in the batch.
    row: usize,
    start: usize,
    end: usize,
    kv_head: usize,
}

/// What every task reads.
struct Job<'a> {
    spec: AttentionSpec,
    kv: &'a KvCache,
    q: &'a [f32],
    stride: usize,
    out: SharedMut<f32>,
}

/// `out = softmax(q . K^T) . V` for each token and head; `q` and `out` are `[n, stride]`.
#[allow(clippy::too_many_arguments)] // the operands of one operation
pub fn attention(
    pool: &mut Pool,
    isa: Isa,
    scratch: &PerWorker<Scratch>,
    spec: AttentionSpec,
    kv: &KvCache,
    spans: &[Span<'_>],
    q: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let mut tasks = Vec::new();
    let mut row = 0;
    for &span in spans {
        for start in (0..span.n_tokens).step_by(TILE_TOKENS) {
            let end = (start + TILE_TOKENS).min(span.n_tokens);
            for kv_head in 0..spec.n_kv_head {
                tasks.push(Task { span, row, start, end, kv_head });
            }
        }
        row += span.n_tokens;
    }
    assert!(q.len() >= row * stride && out.len() >= row * stride);
    let out = SharedMut::new(out);
    let job = Job { spec, kv, q, stride, out };
    pool.run(tasks.len(), &|i, worker_idx| {
        // SAFETY: tasks own disjoint tokens and heads, workers their scratch, and the instruction
        // set is of this machine.
        unsafe { run_task(isa, &job, &tasks[i], scratch.get(worker_idx)) };
    });
}

unsafe fn run_task(isa: Isa, job: &Job<'_>, task: &Task<'_>, s: &mut Scratch) {
    // SAFETY: passed on.
    unsafe { with_isa!(isa, task_with(job: &Job<'_>, task: &Task<'_>, s: &mut Scratch)) }
}

#[inline(always)]
unsafe fn task_with<S: Simd>(job: &Job<'_>, task: &Task<'_>, s: &mut Scratch) {
    let spec = &job.spec;
    let (head_dim, n_rep) = (spec.head_dim, spec.n_head / spec.n_kv_head);
    let n_query = (task.end - task.start) * n_rep;
    s.keys.resize(head_dim * PAGE_LEN, 0.0);
    s.values.resize(head_dim * PAGE_LEN, 0.0);
    s.q.clear();
    for i in task.start..task.end {
        let at = (task.row + i) * job.stride + task.kv_head * n_rep * head_dim;
        s.q.extend(job.q[at..][..n_rep * head_dim].iter().map(|x| x * spec.scale));
    }
    s.sums.clear();
    s.sums.resize(n_query * head_dim, 0.0);
    s.state.clear();
    s.state.resize(n_query, (f32::NEG_INFINITY, 0.0));

    let (first, _) = visible(spec, &task.span, task.start);
    let (_, last) = visible(spec, &task.span, task.end - 1);
    for page_idx in first / PAGE_LEN..last.div_ceil(PAGE_LEN) {
        let page = task.span.pages[page_idx];
        // SAFETY: passed on; lengths are those of a page and head.
        unsafe {
            widen::<S>(job.kv.keys(spec.layer_idx, page, task.kv_head), &mut s.keys);
            widen::<S>(job.kv.values(spec.layer_idx, page, task.kv_head), &mut s.values);
        }
        for query in 0..n_query {
            let (from, to) = visible(spec, &task.span, task.start + query / n_rep);
            let from = from.max(page_idx * PAGE_LEN) - page_idx * PAGE_LEN;
            let to = to.min((page_idx + 1) * PAGE_LEN).saturating_sub(page_idx * PAGE_LEN);
            if from >= to {
                continue;
            }
            let at = query * head_dim;
            let (q, sums) = (&s.q[at..][..head_dim], &mut s.sums[at..][..head_dim]);
            // SAFETY: passed on; the slices hold a head and a page.
            unsafe {
                add_page::<S>(q, &s.keys, &s.values, from, to, sums, &mut s.state[query]);
            }
        }
    }
    for (query, (sums, (_, weight))) in s.sums.chunks_exact(head_dim).zip(&s.state).enumerate() {
        let row = task.row + task.start + query / n_rep;
        let head = task.kv_head * n_rep + query % n_rep;
        // SAFETY: this task owns the token's head.
        let out = unsafe { job.out.slice(row * job.stride + head * head_dim, head_dim) };
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = s / weight);
    }
}

/// The positions `from..to` that token `i` of a span sees.
#[inline(always)]
fn visible(spec: &AttentionSpec, span: &Span<'_>, i: usize) -> (usize, usize) {
    let pos = span.pos + i;
    let to = if spec.causal { pos + 1 } else { span.pos + span.n_tokens };
    (spec.window.map_or(0, |w| (pos + 1).saturating_sub(w)), to)
}

#[inline(always)]
unsafe fn widen<S: Simd>(src: KvSlice<'_>, dst: &mut [f32]) {
    let src = match src {
        KvSlice::F16(src) => src,
        KvSlice::F32(src) => return dst.copy_from_slice(src),
    };
    assert!(src.len() == dst.len() && src.len().is_multiple_of(LANES));
    for i in (0..src.len()).step_by(LANES) {
        // SAFETY: inside both slices, which are whole vectors.
        unsafe { S::store(dst.as_mut_ptr().add(i), S::load_f16(src.as_ptr().add(i))) };
    }
}

/// Adds positions `from..to` of a page to a query's sums.
#[inline(always)]
unsafe fn add_page<S: Simd>(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    from: usize,
    to: usize,
    sums: &mut [f32],
    (max, weight): &mut (f32, f32),
) {
    const VECS: usize = PAGE_LEN / LANES;
    let head_dim = q.len();
    assert!(keys.len() == head_dim * PAGE_LEN && values.len() == keys.len());
    assert!(sums.len() == head_dim && head_dim % LANES == 0 && to <= PAGE_LEN);
    let mut scores = [0f32; PAGE_LEN];
    // SAFETY: the lengths are asserted above; the rest is the caller's promise.
    unsafe {
        let mut acc = [S::splat(0.0); VECS];
        for (d, &x) in q.iter().enumerate() {
            let x = S::splat(x);
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = S::fma(x, S::load(keys.as_ptr().add(d * PAGE_LEN + j * LANES)), *acc);
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            S::store(scores.as_mut_ptr().add(j * LANES), acc);
        }
    }
    let seen = &mut scores[from..to];
    let new_max = seen.iter().fold(*max, |m, &s| m.max(s));
    let rescale = if *max == f32::NEG_INFINITY { 0.0 } else { math::exp(*max - new_max) };
    seen.iter_mut().for_each(|s| *s = math::exp(*s - new_max));
    *max = new_max;
    *weight = seen.iter().fold(*weight * rescale, |w, s| w + s);
    // SAFETY: as above.
    unsafe {
        let rescale = S::splat(rescale);
        let mut d = 0;
        while d < head_dim {
            let n = VECS.min((head_dim - d) / LANES);
            let mut acc = [S::splat(0.0); VECS];
            for (j, acc) in acc.iter_mut().enumerate().take(n) {
                *acc = S::mul(rescale, S::load(sums.as_ptr().add(d + j * LANES)));
            }
            for (slot, &p) in scores.iter().enumerate().take(to).skip(from) {
                let p = S::splat(p);
                let row = values.as_ptr().add(slot * head_dim + d);
                for (j, acc) in acc.iter_mut().enumerate().take(n) {
                    *acc = S::fma(p, S::load(row.add(j * LANES)), *acc);
                }
            }
            for (j, acc) in acc.into_iter().enumerate().take(n) {
                S::store(sums.as_mut_ptr().add(d + j * LANES), acc);
            }
            d += n * LANES;
        }
    }
}
