//! Panels expanded to bytes, for multiplications with many columns, and the buffer that a task
//! expands its weights to.
//!
//! ```text
//! expanded   groups of 8 blocks, the last may be shorter
//! group      a head for each vector of rows ([`HeadPlan`]), then the codes of its blocks,
//!            512 bytes each: vector j holds chunk j, as in a panel of 8 bits; signed codes
//!            stand in the order of `ActChunk::biased`
//! ```
//!
//! Taking codes and scales apart costs as much as multiplying two or three columns, so many columns
//! share it: a task expands its panels into a buffer that stays in the L2 cache while the columns
//! pass. Where scale times code fits a byte, what is written is that product ([`Fold`]), and the
//! kernel adds 256 products with nothing between them. Where a set multiplies signed bytes by
//! unsigned ones and codes have a zero, they are written signed, the activations are made unsigned
//! ([`is_biased`]), and what that adds is a number of the weights alone. Every sum is the same
//! integer in each way.

use super::acts::{ACT_BIAS, ActScale, BLOCK_LEN};
use super::ahead::Ahead;
use super::lanes::{WideLanes, unroll};
use super::panel::{Format, GROUP_BLOCKS, PANEL_ROWS, Scales, VECTOR_BYTES};
use super::panel_kernel::{load_d, n_rest, neg_scale_pairs, rests, scale, unpack_codes};
use crate::inference::quant::TensorType;
use std::cell::RefCell;

/// Columns from which on expanding is worth its price: with 16 it was a quarter slower.
pub const EXPAND_COLS: usize = 24;
/// Bytes of a block of a panel, expanded.
pub const WIDE_BYTES: usize = 8 * VECTOR_BYTES;

/// Bytes of an expanded group at most: codes, two floats, 16 scales and 8 pairs for each row.
pub const GROUP_BYTES_MAX: usize = GROUP_BLOCKS * WIDE_BYTES + PANEL_ROWS * (8 + 16 * 4 + 8 * 8);

/// A type whose codes, times the integer scale they stand under, fit a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// What is taken from a code before it meets its scale.
    pub code_zero: i16,
    /// What is added to the product.
    pub product_zero: i16,
}

impl Fold {
    /// How a type folds; `None` where its products are too wide.
    pub const fn of(ty: TensorType) -> Option<Fold> {
        match ty {
            // -32 to 31 times -4 to 3: from -124 to 128.
            TensorType::Q3_K => Some(Fold { code_zero: 4, product_zero: 124 }),
            // 0 to 15 times 0 to 3.
            TensorType::Q2_K => Some(Fold { code_zero: 0, product_zero: 0 }),
            _ => None,
        }
    }
}

/// A cache line of a buffer.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(#[allow(dead_code, reason = "read through a pointer")] [u8; VECTOR_BYTES]);

thread_local! {
    /// A task's expanded panels or widened rows; no more than `matmul` lets a task have.
    static BUFFER: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// This thread's buffer, at least `n_bytes` long; [`give_back`] keeps it for the next task.
pub fn take_buffer(n_bytes: usize) -> Vec<Line> {
    let mut buffer = BUFFER.take();
    let n_line = n_bytes.div_ceil(VECTOR_BYTES);
    if buffer.len() < n_line {
        buffer.resize(n_line, Line([0; VECTOR_BYTES]));
    }
    buffer
}

/// Keeps a buffer for this thread's next task.
pub fn give_back(buffer: Vec<Line>) {
    BUFFER.set(buffer);
}

/// What a head holds for the rows of a vector, in the form that the kernel takes it: where each
/// kind begins in bytes, and how many of it there are.
#[derive(Clone, Copy, Debug)]
pub struct HeadPlan {
    /// Factors of the minima; before them come as many of the scales, one for all blocks or, where
    /// they are the scales, one for each.
    pub mins: usize,
    /// Integer scales of blocks, or of their halves.
    pub scales: usize,
    /// Scales of a block.
    pub n_scale: usize,
    /// What sums of activations are multiplied by, in pairs; where codes are signed, their scales.
    pub rests: usize,
    /// Pairs of them.
    pub n_rest: usize,
    /// What sums with biased activations begin with.
    pub base: usize,
    /// Scales in pairs, negative, where codes are taken from their middle.
    pub centers: usize,
    /// Pairs of them.
    pub n_center: usize,
    /// Bytes of a head.
    pub bytes: usize,
}

impl HeadPlan {
    /// The heads of a type.
    pub const fn of<L: WideLanes, F: Format>() -> HeadPlan {
        let layout = F::LAYOUT;
        let is_folded = L::FOLDS && Fold::of(F::TYPE).is_some();
        let n_d = match ActScale::of(layout) {
            ActScale::Block => GROUP_BLOCKS,
            ActScale::Chunk => 1,
        };
        let n_scale = match layout.scales {
            _ if is_folded || is_biased::<L, F>() => 0,
            Scales::Float => 0,
            Scales::One | Scales::OneMin => 1,
            Scales::Two | Scales::TwoMin => 2,
        };
        let n_rest = match layout.scales {
            Scales::Float => 0,
            _ if is_folded && layout.dot.zero_log2.is_some() => 0,
            _ => n_rest::<L>(layout),
        };
        let n_center =
            if is_narrow::<L, F>() && layout.dot.bits == 4 { GROUP_BLOCKS / 2 } else { 0 };
        let mins = n_d * size_of::<L::F>();
        let scales = 2 * mins;
        let rests = scales + n_scale * GROUP_BLOCKS * size_of::<L::S>();
        let base = rests + n_rest * size_of::<L::P>();
        let centers = base + if is_biased::<L, F>() { size_of::<L::N>() } else { 0 };
        let bytes = (centers + n_center * size_of::<L::P>()).next_multiple_of(VECTOR_BYTES);
        HeadPlan { mins, scales, n_scale, rests, n_rest, base, centers, n_center, bytes }
    }
}

/// Whether the sum of a block fits 16 bits and its scale is positive: 7 times 127, 32 times, or
/// 8 times 127 where four bits are taken from their middle.
pub const fn is_narrow<L: WideLanes, F: Format>() -> bool {
    L::NARROWS && matches!(F::LAYOUT.scales, Scales::OneMin) && F::LAYOUT.dot.bits <= 4
}

/// Whether codes are expanded signed, for activations that are [`ACT_BIAS`] too large. The scales
/// of a block's halves then stand in pairs, as `rests` do that meet sums of activations elsewhere;
/// sums begin with minus what the bias comes to, which is the same for all columns.
pub const fn is_biased<L: WideLanes, F: Format>() -> bool {
    // Eight bits would not fit what sums of pairs have.
    L::BIASES && matches!(F::LAYOUT.scales, Scales::Two) && F::LAYOUT.dot.bits < 8
}

/// Bytes of the heads of a group.
pub const fn heads_bytes<L: WideLanes, F: Format>() -> usize {
    PANEL_ROWS / L::ROWS * HeadPlan::of::<L, F>().bytes
}

/// Bytes of a group of an expanded panel; a short one has as many.
pub const fn group_bytes<L: WideLanes, F: Format>() -> usize {
    let bytes = heads_bytes::<L, F>() + GROUP_BLOCKS * WIDE_BYTES;
    assert!(bytes <= GROUP_BYTES_MAX);
    bytes
}

/// Bytes of an expanded panel of `n_block` blocks.
pub const fn wide_bytes<L: WideLanes, F: Format>(n_block: usize) -> usize {
    n_block.div_ceil(GROUP_BLOCKS) * group_bytes::<L, F>()
}

/// Writes a panel of `n_block` blocks to `out`, [`wide_bytes`] of it.
///
/// # Safety
/// As [`super::lanes::Lanes`]; panel and `out` have their bytes, and `out` is aligned to a cache
/// line.
#[inline(always)]
pub unsafe fn expand<L: WideLanes, F: Format>(
    panel: *const u8,
    n_block: usize,
    out: *mut u8,
    ahead: Ahead,
) {
    let (layout, plan) = (F::LAYOUT, const { HeadPlan::of::<L, F>() });
    let mut group = panel;
    for group_idx in 0..n_block.div_ceil(GROUP_BLOCKS) {
        let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
        // SAFETY: every address lies in the panel or in `out`, as the caller vouches.
        unsafe {
            let heads = out.add(group_idx * group_bytes::<L, F>());
            let out = heads.add(heads_bytes::<L, F>());
            let codes = group.add(layout.scales_bytes(n_block));
            for row in (0..PANEL_ROWS).step_by(L::ROWS) {
                let head = heads.add(row / L::ROWS * plan.bytes);
                match ActScale::of(layout) {
                    ActScale::Block => put_floats::<L, F>(group, n_block, row, head),
                    ActScale::Chunk => put_integers::<L, F>(group, n_block, row, head),
                }
            }
            for b in 0..n_block {
                let (from, to) = (codes.add(b * layout.code_bytes()), out.add(b * WIDE_BYTES));
                ahead.ask::<2>(from, layout.code_bytes() / VECTOR_BYTES);
                for row in (0..PANEL_ROWS).step_by(L::ROWS) {
                    put_codes::<L, F>(group, b, row, from, to);
                }
            }
            if is_biased::<L, F>() {
                put_base::<L, F>(heads, out, n_block);
            }
            group = codes.add(n_block * layout.code_bytes());
        }
    }
}

/// Writes a head of scales that are floats.
#[inline(always)]
unsafe fn put_floats<L: WideLanes, F: Format>(
    group: *const u8,
    n_block: usize,
    row: usize,
    out: *mut u8,
) {
    let (layout, plan) = (F::LAYOUT, const { HeadPlan::of::<L, F>() });
    // SAFETY: the caller vouches for the group's scales and for the head at `out`.
    unsafe {
        for b in 0..n_block {
            let from = group.add(b * layout.super_bytes() + 2 * row);
            out.cast::<L::F>().add(b).write(load_d::<L>(layout, from));
            if layout.dot.zero_log2.is_none() {
                let dmin = L::load_f16(from.add(2 * PANEL_ROWS));
                out.add(plan.mins).cast::<L::F>().add(b).write(dmin);
            }
        }
    }
}

/// Writes a head of scales that are integers under a float.
#[inline(always)]
unsafe fn put_integers<L: WideLanes, F: Format>(
    group: *const u8,
    n_block: usize,
    row: usize,
    out: *mut u8,
) {
    let (layout, plan) = (F::LAYOUT, const { HeadPlan::of::<L, F>() });
    // SAFETY: as above.
    unsafe {
        let of_rows = group.add(row);
        out.cast::<L::F>().write(load_d::<L>(layout, of_rows.add(row)));
        if layout.dot.zero_log2.is_none() {
            let dmin = L::load_f16(of_rows.add(2 * PANEL_ROWS + row));
            out.add(plan.mins).cast::<L::F>().write(dmin);
        }
        for i in 0..n_block * plan.n_scale {
            let (b, half) = (i / plan.n_scale, i % plan.n_scale);
            let scale = L::scales(scale::<L>(layout, of_rows, b, half));
            out.add(plan.scales).cast::<L::S>().add(i).write(scale);
        }
        for (i, rest) in rests::<L>(layout, of_rows).into_iter().take(plan.n_rest).enumerate() {
            out.add(plan.rests).cast::<L::P>().add(i).write(rest);
        }
        if plan.n_center > 0 {
            for (i, pair) in neg_scale_pairs::<L>(layout, of_rows).into_iter().enumerate() {
                out.add(plan.centers).cast::<L::P>().add(i).write(pair);
            }
        }
    }
}

/// Writes the codes of a vector of rows of block `b` of a group, or their products with the scales.
#[inline(always)]
unsafe fn put_codes<L: WideLanes, F: Format>(
    group: *const u8,
    b: usize,
    row: usize,
    from: *const u8,
    to: *mut u8,
) {
    let layout = F::LAYOUT;
    let fold = if L::FOLDS { Fold::of(F::TYPE) } else { None };
    debug_assert!(fold.is_none() || layout.has_halves());
    // SAFETY: the caller vouches for the group's scales and for both blocks.
    unsafe {
        let mut chunks = unpack_codes::<L>(layout, from.add(4 * row));
        if let Some(zero_log2) = layout.dot.zero_log2
            && is_biased::<L, F>()
        {
            chunks = L::signed(chunks, 1 << zero_log2);
        }
        unroll!(8, |j| {
            let mut chunk = chunks[j];
            if let Some(fold) = fold {
                chunk = L::fold(chunk, scale::<L>(layout, group.add(row), b, j / 4), fold);
            }
            to.add(j * VECTOR_BYTES + 4 * row).cast::<L::I>().write_unaligned(chunk);
        });
    }
}

/// Writes what sums begin with: minus what a column of zeros comes to, whose biased codes are
/// [`ACT_BIAS`] each.
#[inline(always)]
unsafe fn put_base<L: WideLanes, F: Format>(heads: *mut u8, codes: *const u8, n_block: usize) {
    let (bits, plan) = (F::LAYOUT.dot.bits, const { HeadPlan::of::<L, F>() });
    const { assert!(!L::BIASES || 2 * L::ROWS == PANEL_ROWS) };
    let zeros = [ACT_BIAS; BLOCK_LEN];
    // SAFETY: as above; both vectors of rows are there.
    unsafe {
        let heads = [heads, heads.add(plan.bytes)];
        let mut ints = [[L::int(0)]; 2];
        for b in 0..n_block {
            let codes = codes.add(b * WIDE_BYTES);
            let w = [codes, codes.add(4 * L::ROWS)];
            let scales = [
                heads[0].add(plan.rests).cast::<L::P>().add(b).read(),
                heads[1].add(plan.rests).cast::<L::P>().add(b).read(),
            ];
            L::add_biased::<1>(&mut ints, w, (zeros.as_ptr(), 0), scales, bits);
        }
        for (head, [int]) in heads.into_iter().zip(ints) {
            head.add(plan.base).cast::<L::N>().write(L::sub_shifted(L::int(0), int, 0));
        }
    }
}
