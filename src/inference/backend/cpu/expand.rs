//! Panels expanded to bytes, for multiplications with many columns.
//!
//! ```text
//! expanded   groups of 8 blocks, the last may be shorter
//! group      codes of its blocks, 512 bytes each: vector j holds chunk j, as in a panel of 8 bits
//! ```
//!
//! Taking codes apart costs as much as multiplying two or three columns, so many columns share it:
//! a task expands its panels into a buffer that stays in the L2 cache while the columns pass. Where
//! scale times code fits a byte, what is written is that product ([`Fold`]), and the kernel adds
//! 256 products with nothing between them. Every sum is the same integer either way.

use super::lanes::Lanes;
use super::panel::{Format, GROUP_BLOCKS, Layout, PANEL_ROWS, Scales, VECTOR_BYTES};
use super::panel_kernel::unpack_chunk;
use crate::inference::quant::TensorType;
use std::cell::RefCell;

/// Columns from which on expanding is worth its price.
pub const EXPAND_COLS: usize = 24;
/// Bytes of a block of a panel, expanded.
pub const WIDE_BYTES: usize = 8 * VECTOR_BYTES;

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
    /// A task's expanded panels; no more than `matmul` lets a task have.
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

/// Writes a panel of `n_block` blocks to `out`, [`WIDE_BYTES`] for each.
///
/// # Safety
/// As [`Lanes`]; panel and `out` have their bytes, and `out` is aligned to a cache line.
#[inline(always)]
pub unsafe fn expand<L: Lanes, F: Format>(panel: *const u8, n_block: usize, out: *mut u8) {
    let layout = F::LAYOUT;
    let mut group = panel;
    for first in (0..n_block).step_by(GROUP_BLOCKS) {
        let n_block = (n_block - first).min(GROUP_BLOCKS);
        // SAFETY: every address lies in the panel or in `out`, as the caller vouches.
        unsafe {
            let codes = group.add(layout.scales_bytes(n_block));
            for b in 0..n_block {
                let out = out.add((first + b) * WIDE_BYTES);
                let codes = codes.add(b * layout.code_bytes());
                for row in (0..PANEL_ROWS).step_by(L::ROWS) {
                    for j in 0..8 {
                        let chunk = unpack_chunk::<L>(layout, codes.add(4 * row), j);
                        out.add(j * VECTOR_BYTES + 4 * row).cast::<L::I>().write_unaligned(chunk);
                    }
                }
                if let Some(fold) = Fold::of(F::TYPE) {
                    fold_block(layout, fold, group, b, out);
                }
            }
            group = codes.add(n_block * layout.code_bytes());
        }
    }
}

/// Multiplies the expanded codes of block `b` of a group by their scales.
#[inline(always)]
unsafe fn fold_block(layout: Layout, fold: Fold, group: *const u8, b: usize, out: *mut u8) {
    debug_assert!(matches!(layout.scales, Scales::Two | Scales::TwoMin));
    for half in 0..2 {
        // SAFETY: the caller vouches for the group's scales and for the block at `out`.
        unsafe {
            let mut scales = [[0i16; 4]; PANEL_ROWS];
            for (row, scale) in scales.iter_mut().enumerate() {
                *scale = [i16::from(scale_of(layout, group, b, half, row)); 4];
            }
            let scales = scales.as_flattened();
            for j in 4 * half..4 * half + 4 {
                let codes = &mut *out.add(j * VECTOR_BYTES).cast::<[u8; VECTOR_BYTES]>();
                for (code, &scale) in codes.iter_mut().zip(scales) {
                    let product = scale * (i16::from(*code) - fold.code_zero);
                    *code = (product + fold.product_zero) as u8;
                }
            }
        }
    }
}

/// The integer scale of half `half` of block `b` of a row.
#[inline(always)]
unsafe fn scale_of(layout: Layout, group: *const u8, b: usize, half: usize, row: usize) -> i8 {
    let at = layout.head_bytes() + b * layout.scale_bytes() + half * PANEL_ROWS + row;
    // SAFETY: the caller vouches for the group's scales.
    let scale = unsafe { group.add(at).read() };
    if layout.scales == Scales::TwoMin { scale.cast_signed() & 15 } else { scale.cast_signed() }
}
