//! What queries take from one page: scores, softmax weights, weighted values.
//!
//! ```text
//! scores[query][32]  = q[query] . keys [head_dim][32]        for all queries, keys in L1
//! weights, rescale   = softmax over the slots that are seen
//! sums[query]        = rescale * sums + weights . values [32][head_dim]
//! ```
//!
//! Both products are one kernel: a few queries by a few vectors of sums in registers, each sum
//! taken in the order of its terms. So a query's numbers do not depend on its neighbours.

use std::ops::Range;

use crate::inference::backend::PAGE_LEN;
use crate::inference::backend::cpu::kv_cache::{BLOCK_LEN, Plane};
use crate::inference::backend::cpu::kv_rotated::{rotate, unpack};
use crate::inference::backend::cpu::math;
use crate::inference::backend::cpu::simd::{Element, LANES, Simd, prefetch};
use crate::inference::quant::f16_to_f32;

/// Vectors of sums that a query has in registers.
const VECS: usize = PAGE_LEN / LANES;

/// Scratch of one thread; everything is in whole cache lines.
#[derive(Default)]
pub struct PageScratch {
    /// A page's keys `[head_dim][32]` and values `[32][head_dim]`, widened.
    keys: Vec<Line>,
    values: Vec<Line>,
    /// Scaled queries, `[n_query][head_dim]`.
    q: Vec<Line>,
    /// Scores, then weights, `[n_query][32]`.
    scores: Vec<Line>,
    /// Factor on what a query summed before this page.
    rescale: Vec<f32>,
    n_query: usize,
    is_wide: bool,
    ahead: Ahead,
}

/// Cache lines of the page that comes next, asked for while this one is computed: a page begins
/// where the hardware's own prefetching has not looked, and one query computes as long as reading
/// its page takes.
#[derive(Default)]
struct Ahead {
    next_addr: usize,
    n_line: usize,
}

/// Lines that are asked for at a time, fewer than a core can wait for.
const AHEAD_LINES: usize = 12;

impl Ahead {
    #[inline(always)]
    fn pull(&mut self) {
        let n = self.n_line.min(AHEAD_LINES);
        for i in 0..n {
            prefetch(std::ptr::without_provenance(self.next_addr + i * LINE_BYTES));
        }
        self.next_addr += n * LINE_BYTES;
        self.n_line -= n;
    }
}

const LINE_BYTES: usize = size_of::<Line>();

/// A cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; 16]); // read through `floats`

fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is sixteen f32 and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), 16 * lines.len()) }
}

/// The first `n` floats of a buffer that grows as needed.
fn floats_mut(lines: &mut Vec<Line>, n: usize) -> &mut [f32] {
    lines.resize(n.div_ceil(16).max(lines.len()), Line::default());
    // SAFETY: as above, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), n) }
}

/// What queries have summed up, in one run of floats.
pub struct Sums<'a> {
    /// `[n_query][head_dim]`
    pub values: &'a mut [f32],
    /// Largest score, `[n_query]`.
    pub max: &'a mut [f32],
    /// Sum of the weights under that maximum, `[n_query]`.
    pub weight: &'a mut [f32],
}

impl<'a> Sums<'a> {
    /// Floats for `n_query` queries.
    pub fn len_of(n_query: usize, head_dim: usize) -> usize {
        n_query * (head_dim + 2)
    }

    /// The sums of `n_query` queries in `flat`.
    #[inline(always)]
    pub fn of(flat: &'a mut [f32], n_query: usize) -> Sums<'a> {
        let (values, rest) = flat.split_at_mut(flat.len() - 2 * n_query);
        let (max, weight) = rest.split_at_mut(n_query);
        Sums { values, max, weight }
    }

    /// Nothing summed.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.values.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.weight.fill(0.0);
    }
}

impl PageScratch {
    /// Takes the queries of a task, and rotates them where keys are.
    #[inline(always)]
    pub fn queries<I: Iterator<Item = f32>>(
        &mut self,
        n_query: usize,
        head_dim: usize,
        is_rotated: bool,
        mut q: impl FnMut(usize) -> I,
    ) {
        let out = floats_mut(&mut self.q, n_query * head_dim);
        for (query, out) in out.chunks_exact_mut(head_dim).enumerate() {
            out.iter_mut().zip(q(query)).for_each(|(out, x)| *out = x);
            if is_rotated {
                rotate(out, head_dim);
            }
        }
        floats_mut(&mut self.scores, n_query * PAGE_LEN);
        self.rescale.resize(n_query.max(self.rescale.len()), 0.0);
        self.n_query = n_query;
    }

    /// Says which page comes after the one that is opened now.
    #[inline(always)]
    pub fn expect(&mut self, next: &[u8]) {
        self.ahead = Ahead { next_addr: next.as_ptr().addr(), n_line: next.len() / LINE_BYTES };
    }

    /// Turns to a page. Its numbers are widened, unless they are f32 already, or f16 that so few
    /// queries read that widening on the way is cheaper.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn open<S: Simd>(&mut self, keys: Plane<'_>, values: Plane<'_>, head_dim: usize) {
        let n = head_dim * PAGE_LEN;
        let (wide_keys, wide_values) =
            (floats_mut(&mut self.keys, n), floats_mut(&mut self.values, n));
        self.is_wide = true;
        match (keys, values) {
            // Not worth it for two tiles: few queries make one for each bit of their number.
            (Plane::F16(keys), Plane::F16(values))
                if self.n_query > S::TILE_ROWS || self.n_query.count_ones() > 2 =>
            {
                // SAFETY: passed on.
                unsafe {
                    widen::<S>(keys, wide_keys);
                    widen::<S>(values, wide_values);
                }
            }
            (Plane::Q8_0(keys, key_scales), Plane::Q8_0(values, value_scales)) => {
                widen_keys(keys, key_scales, wide_keys);
                widen_values(values, value_scales, wide_values);
            }
            (Plane::Q4_0(keys, key_scales), Plane::Q4_0(values, value_scales)) => {
                widen_keys4(keys, key_scales, wide_keys);
                widen_values4(values, value_scales, wide_values);
            }
            _ => self.is_wide = false,
        }
    }
}

#[inline(always)]
unsafe fn widen<S: Simd>(src: &[u16], dst: &mut [f32]) {
    assert!(src.len() == dst.len() && src.len().is_multiple_of(LANES));
    for i in (0..src.len()).step_by(LANES) {
        // SAFETY: inside both slices, which are whole vectors.
        unsafe { S::store(dst.as_mut_ptr().add(i), S::load_f16(src.as_ptr().add(i))) };
    }
}

/// `[head_dim][32]` codes under scales `[n_block][32]`.
#[inline(always)]
fn widen_keys(codes: &[i8], scales: &[u16], out: &mut [f32]) {
    let blocks = codes.chunks(BLOCK_LEN * PAGE_LEN).zip(out.chunks_mut(BLOCK_LEN * PAGE_LEN));
    for ((codes, out), halves) in blocks.zip(scales.as_chunks::<PAGE_LEN>().0) {
        let scales = halves.map(f16_to_f32);
        let rows = codes.as_chunks::<PAGE_LEN>().0.iter().zip(out.as_chunks_mut::<PAGE_LEN>().0);
        for (codes, out) in rows {
            for slot in 0..PAGE_LEN {
                out[slot] = scales[slot] * f32::from(codes[slot]);
            }
        }
    }
}

/// `[32][head_dim]` codes under scales `[32][n_block]`.
#[inline(always)]
fn widen_values(codes: &[i8], scales: &[u16], out: &mut [f32]) {
    let head_dim = codes.len() / PAGE_LEN;
    let rows = codes.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
    for ((codes, out), scales) in rows.zip(scales.chunks_exact(head_dim.div_ceil(BLOCK_LEN))) {
        let blocks = codes.chunks(BLOCK_LEN).zip(out.chunks_mut(BLOCK_LEN));
        for ((codes, out), &scale) in blocks.zip(scales) {
            let scale = f16_to_f32(scale);
            out.iter_mut().zip(codes).for_each(|(out, &code)| *out = scale * f32::from(code));
        }
    }
}

/// `[head_dim / 2][32]` bytes of two codes under scales `[n_block][32]`.
#[inline(always)]
fn widen_keys4(bytes: &[u8], scales: &[u16], out: &mut [f32]) {
    let blocks = bytes.chunks(BLOCK_LEN / 2 * PAGE_LEN).zip(out.chunks_mut(BLOCK_LEN * PAGE_LEN));
    for ((bytes, out), halves) in blocks.zip(scales.as_chunks::<PAGE_LEN>().0) {
        let scales = halves.map(f16_to_f32);
        let (low, high) = out.split_at_mut(out.len() / 2);
        let rows = low.as_chunks_mut::<PAGE_LEN>().0.iter_mut();
        let rows = rows.zip(high.as_chunks_mut::<PAGE_LEN>().0);
        for ((low, high), bytes) in rows.zip(bytes.as_chunks::<PAGE_LEN>().0) {
            for slot in 0..PAGE_LEN {
                (low[slot], high[slot]) = unpack(bytes[slot], scales[slot]);
            }
        }
    }
}

/// `[32][head_dim / 2]` bytes of two codes under scales `[32][n_block]`.
#[inline(always)]
fn widen_values4(bytes: &[u8], scales: &[u16], out: &mut [f32]) {
    let head_dim = out.len() / PAGE_LEN;
    let rows = bytes.chunks_exact(head_dim / 2).zip(out.chunks_exact_mut(head_dim));
    for ((bytes, out), scales) in rows.zip(scales.chunks_exact(head_dim.div_ceil(BLOCK_LEN))) {
        let blocks = bytes.chunks(BLOCK_LEN / 2).zip(out.chunks_mut(BLOCK_LEN));
        for ((bytes, out), &scale) in blocks.zip(scales) {
            let scale = f16_to_f32(scale);
            let (low, high) = out.split_at_mut(out.len() / 2);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                (*low, *high) = unpack(*byte, scale);
            }
        }
    }
}

/// Adds `slots` of the page that is open to the sums of `queries`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn add_page<S: Simd>(
    s: &mut PageScratch,
    keys: Plane<'_>,
    values: Plane<'_>,
    queries: Range<usize>,
    slots: Range<usize>,
    sums: &mut Sums<'_>,
) {
    // SAFETY: passed on.
    unsafe {
        match (keys, values) {
            _ if s.is_wide => {
                let (keys, values) = (floats(&s.keys), floats(&s.values));
                let page = Page { keys: keys.as_ptr(), values: values.as_ptr() };
                add_page_of::<S, f32>(s, page, queries, slots, sums);
            }
            (Plane::F32(keys), Plane::F32(values)) => {
                let page = Page { keys: keys.as_ptr(), values: values.as_ptr() };
                add_page_of::<S, f32>(s, page, queries, slots, sums);
            }
            (Plane::F16(keys), Plane::F16(values)) => {
                let page = Page { keys: keys.as_ptr(), values: values.as_ptr() };
                add_page_of::<S, u16>(s, page, queries, slots, sums);
            }
            _ => unreachable!("keys and values have one type, and codes are widened"),
        }
    }
}

/// Where the numbers of a page begin: `[head_dim][32]` and `[32][head_dim]`.
#[derive(Clone, Copy)]
struct Page<T> {
    keys: *const T,
    values: *const T,
}

#[inline(always)]
unsafe fn add_page_of<S: Simd, T: Element>(
    s: &mut PageScratch,
    page: Page<T>,
    queries: Range<usize>,
    slots: Range<usize>,
    sums: &mut Sums<'_>,
) {
    let head_dim = sums.values.len() / sums.max.len();
    assert!(queries.end <= sums.max.len() && slots.end <= PAGE_LEN && slots.start < slots.end);
    assert!(head_dim % LANES == 0 && sums.max.len() == s.n_query);
    let q = floats(&s.q).as_ptr();
    let scores = floats_mut(&mut s.scores, s.n_query * PAGE_LEN).as_mut_ptr();
    // SAFETY: the page holds 32 slots of `head_dim` values; queries, scores and sums hold
    // `n_query` rows (asserted); the rest is passed on.
    unsafe {
        let mut query = queries.start;
        while query < queries.end {
            let (q, out) = (q.add(query * head_dim), scores.add(query * PAGE_LEN));
            let n = tile_of::<S>(queries.end - query);
            match n {
                8 => score::<S, T, 8>(q, head_dim, page.keys, out),
                4 => score::<S, T, 4>(q, head_dim, page.keys, out),
                2 => score::<S, T, 2>(q, head_dim, page.keys, out),
                _ => score::<S, T, 1>(q, head_dim, page.keys, out),
            }
            query += n;
            s.ahead.pull();
        }
        soften::<S>(s, queries.clone(), &slots, sums);
        let values = page.values.add(slots.start * head_dim);
        let weights = floats(&s.scores).as_ptr().add(slots.start);
        let mut query = queries.start;
        while query < queries.end {
            let rescale = s.rescale.as_ptr().add(query);
            let weights = Weights { p: weights.add(query * PAGE_LEN), rescale, n: slots.len() };
            let out = sums.values.as_mut_ptr().add(query * head_dim);
            let n = tile_of::<S>(queries.end - query);
            match n {
                8 => weigh::<S, T, 8>(weights, values, head_dim, out),
                4 => weigh::<S, T, 4>(weights, values, head_dim, out),
                2 => weigh::<S, T, 2>(weights, values, head_dim, out),
                _ => weigh::<S, T, 1>(weights, values, head_dim, out),
            }
            query += n;
        }
    }
}

/// Queries that go together when so many are left: 8, 4, 2 or 1, as many as leave their sums in
/// registers. (A closure over the groups would be a function without the instruction set, into
/// which no vector operation is inlined.)
#[inline(always)]
fn tile_of<S: Simd>(left: usize) -> usize {
    match left.min(S::TILE_ROWS) {
        8.. => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// The scores of `Q` queries over a whole page.
#[inline(always)]
unsafe fn score<S: Simd, T: Element, const Q: usize>(
    q: *const f32,
    head_dim: usize,
    keys: *const T,
    out: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        let mut acc = [[S::splat(0.0); VECS]; Q];
        S::add_products::<T, Q, VECS>(&mut acc, (q, head_dim), (keys, PAGE_LEN), head_dim);
        for i in 0..Q {
            for j in 0..VECS {
                S::store(out.add(i * PAGE_LEN + j * LANES), acc[i][j]);
            }
        }
    }
}

/// Turns the scores of the slots that queries see into weights, and the others into zeros, and
/// gives the factors on what they summed before.
#[inline(always)]
unsafe fn soften<S: Simd>(
    s: &mut PageScratch,
    queries: Range<usize>,
    slots: &Range<usize>,
    sums: &mut Sums<'_>,
) {
    let is_whole = slots.len() == PAGE_LEN;
    let rows = floats_mut(&mut s.scores, s.n_query * PAGE_LEN).as_chunks_mut::<PAGE_LEN>().0;
    let (rows, rescale) = (&mut rows[queries.clone()], &mut s.rescale[queries.clone()]);
    let (max, weight) = (&mut sums.max[queries.clone()], &mut sums.weight[queries]);
    for (i, row) in rows.iter_mut().enumerate() {
        if !is_whole {
            row[..slots.start].fill(f32::NEG_INFINITY);
            row[slots.end..].fill(f32::NEG_INFINITY);
        }
        // SAFETY: passed on.
        let new_max = larger(max[i], across(unsafe { max_lanes::<S>(row) }, larger));
        // Before the first page it is -infinity.
        rescale[i] = max[i] - new_max;
        max[i] = new_max;
    }
    // Of many queries at a time: alone, each waits for every step of the polynomial.
    for x in rescale.iter_mut() {
        *x = if *x == f32::NEG_INFINITY { 0.0 } else { math::exp(*x) };
    }
    for (i, row) in rows.iter_mut().enumerate() {
        for x in row.iter_mut() {
            *x = math::exp(*x - max[i]);
        }
        if !is_whole {
            row[..slots.start].fill(0.0);
            row[slots.end..].fill(0.0);
        }
        // SAFETY: passed on.
        let sum = across(unsafe { add_lanes::<S>(row) }, |a, b| a + b);
        weight[i] = weight[i] * rescale[i] + sum;
        s.ahead.pull();
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest of each eighth number.
#[inline(always)]
unsafe fn max_lanes<S: Simd>(row: &[f32; PAGE_LEN]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: whole vectors inside the row.
    unsafe {
        let mut max = S::load(row.as_ptr());
        for j in 1..VECS {
            max = S::max(max, S::load(row.as_ptr().add(j * LANES)));
        }
        S::store(lanes.as_mut_ptr(), max);
    }
    lanes
}

/// The sum of each eighth number.
#[inline(always)]
unsafe fn add_lanes<S: Simd>(row: &[f32; PAGE_LEN]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: as above.
    unsafe {
        let mut sum = S::load(row.as_ptr());
        for j in 1..VECS {
            sum = S::add(sum, S::load(row.as_ptr().add(j * LANES)));
        }
        S::store(lanes.as_mut_ptr(), sum);
    }
    lanes
}

/// Eight lanes to one number, halves first.
#[inline(always)]
fn across(l: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    f(f(f(l[0], l[4]), f(l[2], l[6])), f(f(l[1], l[5]), f(l[3], l[7])))
}

/// The weights of a few queries, `n` slots each, 32 from one query to the next.
#[derive(Clone, Copy)]
struct Weights {
    p: *const f32,
    /// Factor on the sums so far, of each query.
    rescale: *const f32,
    n: usize,
}

/// `out [Q][head_dim] = rescale * out + weights . values`
#[inline(always)]
unsafe fn weigh<S: Simd, T: Element, const Q: usize>(
    weights: Weights,
    values: *const T,
    head_dim: usize,
    out: *mut f32,
) {
    let mut d = 0;
    while d < head_dim {
        let left = (head_dim - d) / LANES;
        // SAFETY: passed on; the vectors lie inside the head.
        unsafe {
            let (values, out) = (values.add(d), out.add(d));
            d += match left {
                VECS.. => weigh_part::<S, T, Q, VECS>(weights, values, head_dim, out),
                2.. => weigh_part::<S, T, Q, 2>(weights, values, head_dim, out),
                _ => weigh_part::<S, T, Q, 1>(weights, values, head_dim, out),
            };
        }
    }
}

/// `V` vectors of every head; how many values that is.
#[inline(always)]
unsafe fn weigh_part<S: Simd, T: Element, const Q: usize, const V: usize>(
    weights: Weights,
    values: *const T,
    head_dim: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; Q];
        for i in 0..Q {
            let rescale = S::splat(*weights.rescale.add(i));
            for j in 0..V {
                acc[i][j] = S::mul(rescale, S::load(out.add(i * head_dim + j * LANES)));
            }
        }
        S::add_products::<T, Q, V>(&mut acc, (weights.p, PAGE_LEN), (values, head_dim), weights.n);
        for i in 0..Q {
            for j in 0..V {
                S::store(out.add(i * head_dim + j * LANES), acc[i][j]);
            }
        }
    }
    V * LANES
}
