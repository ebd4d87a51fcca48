//! Panels: sixteen rows of a quantised matrix, woven so that a lane is a row.
//!
//! ```text
//! panel    groups of 8 blocks, the last may be shorter          block: 32 weights of 16 rows
//! group    scales of its blocks, whole cache lines, then codes of its blocks
//! vector   64 bytes, four weights of each row: chunk j holds weights 4 j .. 4 j + 3
//!
//! codes    low part                              high part
//!   4 bits   vector v: chunks v and v + 4          1 bit    one vector, bit j is chunk j
//!   2 bits   vector v: chunks v + 2 i, bits 2 i    2 bits   as 2 low bits
//!   8 bits   vector j: chunk j
//!
//! scales   for each 1 or 8 blocks   d, and dmin where there are minima     16 f16 each
//!          for each block           integer scales and minima              16 bytes each
//! ```
//!
//! A panel is read from its first byte to its last, as memory likes it best: with codes and scales
//! in two streams a core read a third less in a second.
//!
//! A panel holds the bits of the file and at most 6 % more: what was 6 bits becomes a byte. The
//! rows past the end of a matrix are zeros. Every type lands in one of these shapes, so kernels
//! know bits and scales, not types.
//!
//! The layout is one for every instruction set, and part of the native file format: a file may hold
//! its matrices so (`docs/formats.md`). Backends pack; here is where everything lies, and how a
//! part is taken out again.

use super::{Codes, Part, Steps, TensorType, u16_at};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Weights of a row under one activation scale.
pub const BLOCK_LEN: usize = 32;
/// Blocks of a group.
pub const GROUP_BLOCKS: usize = 8;
/// Bytes of a vector of codes.
pub const VECTOR_BYTES: usize = 4 * PANEL_ROWS;

/// How the integer scales of a block are stored, 16 bytes for each field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// None: `d` and `dmin` are all.
    Float,
    /// One scale.
    One,
    /// A scale and a minimum.
    OneMin,
    /// A scale for each 16 weights.
    Two,
    /// For each 16 weights a byte: scale in the low half, minimum in the high.
    TwoMin,
}

/// How unsigned codes meet activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dot {
    /// Bits of a code.
    pub bits: u32,
    /// Base-2 logarithm of the code that stands for zero; `None` where a minimum is subtracted.
    pub zero_log2: Option<u32>,
}

/// What a kernel must know of a type.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bits of a code in the low part: 2, 4 or 8.
    pub low: u32,
    /// Bits of a code in the high part: 0, 1 or 2.
    pub high: u32,
    /// What codes are numbers of, where they are not numbers themselves.
    pub steps: Option<&'static Steps>,
    /// Integer scales.
    pub scales: Scales,
    /// Blocks under one `d`; the last of a row may be fewer.
    pub n_super: usize,
    /// What the codes mean to a kernel.
    pub dot: Dot,
}

impl Layout {
    /// The layout of a quantised type.
    pub const fn of(ty: TensorType) -> Layout {
        let (low, high, scales) = match ty {
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::IQ4_NL => (4, 0, Scales::Float),
            TensorType::Q5_0 | TensorType::Q5_1 => (4, 1, Scales::Float),
            TensorType::Q8_0 => (8, 0, Scales::Float),
            TensorType::Q2_K => (2, 0, Scales::TwoMin),
            TensorType::Q3_K => (2, 1, Scales::Two),
            TensorType::Q4_K | TensorType::N4 => (4, 0, Scales::OneMin),
            TensorType::N3 => (2, 1, Scales::OneMin),
            TensorType::Q5_K => (4, 1, Scales::OneMin),
            TensorType::Q6_K => (4, 2, Scales::Two),
            TensorType::IQ4_XS | TensorType::IQ3_XXS | TensorType::IQ3_S => (4, 0, Scales::One),
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => panic!("floats have no panels"),
        };
        let (steps, zero_log2) = match Codes::of(ty) {
            Codes::Centered(zero) => (None, Some(zero.ilog2())),
            Codes::Steps(steps) => (Some(steps), Some(steps.zero_log2)),
            Codes::WithMin | Codes::Float => (None, None),
        };
        let bits = match steps {
            Some(steps) => steps.zero_log2 + 1,
            None => low + high,
        };
        let n_super = ty.block_len() / BLOCK_LEN;
        Layout { low, high, steps, scales, n_super, dot: Dot { bits, zero_log2 } }
    }

    /// Whether 16 weights share a scale, and not 32.
    pub const fn has_halves(self) -> bool {
        matches!(self.scales, Scales::Two | Scales::TwoMin)
    }

    /// Bytes of a block's codes.
    pub const fn code_bytes(self) -> usize {
        (self.low + self.high) as usize * BLOCK_LEN / 8 * PANEL_ROWS
    }

    /// Bytes of `d` and `dmin`.
    pub const fn head_bytes(self) -> usize {
        if self.dot.zero_log2.is_none() { 4 * PANEL_ROWS } else { 2 * PANEL_ROWS }
    }

    /// Bytes of a block's integer scales and minima.
    pub const fn scale_bytes(self) -> usize {
        PANEL_ROWS
            * match self.scales {
                Scales::Float => 0,
                Scales::One => 1,
                Scales::OneMin | Scales::Two | Scales::TwoMin => 2,
            }
    }

    /// Bytes of what belongs to one `d`, beside the codes.
    pub const fn super_bytes(self) -> usize {
        self.head_bytes() + self.n_super * self.scale_bytes()
    }

    /// Bytes of the scales of a group of `n_block` blocks, whole cache lines. Fewer blocks than
    /// `n_super` still have one `d`.
    #[inline(always)]
    pub const fn scales_bytes(self, n_block: usize) -> usize {
        let heads = n_block.div_ceil(self.n_super) * self.head_bytes();
        (heads + n_block * self.scale_bytes()).next_multiple_of(VECTOR_BYTES)
    }

    /// Bytes of a group of `n_block` blocks.
    #[inline(always)]
    pub const fn group_bytes(self, n_block: usize) -> usize {
        self.scales_bytes(n_block) + n_block * self.code_bytes()
    }

    /// Bytes of a panel of `n_block` blocks.
    pub const fn panel_bytes(self, n_block: usize) -> usize {
        n_block / GROUP_BLOCKS * self.group_bytes(GROUP_BLOCKS)
            + self.group_bytes(n_block % GROUP_BLOCKS)
    }
}

/// The part that was packed as block `block_idx` of a panel's row, bit for bit.
///
/// # Panics
/// If `panel` is shorter than a panel of `n_block` blocks, or the block is not in it.
pub fn unpack(
    ty: TensorType,
    panel: &[u8],
    n_block: usize,
    row_idx: usize,
    block_idx: usize,
) -> Part {
    assert!(row_idx < PANEL_ROWS && block_idx < n_block);
    let layout = Layout::of(ty);
    let (group_idx, b) = (block_idx / GROUP_BLOCKS, block_idx % GROUP_BLOCKS);
    let group = &panel[group_idx * layout.group_bytes(GROUP_BLOCKS)..];
    let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
    let (scales, codes) = group.split_at(layout.scales_bytes(n_block));
    let codes = &codes[b * layout.code_bytes()..][..layout.code_bytes()];
    let head = &scales[b / layout.n_super * layout.super_bytes()..];
    let fields = &head[layout.head_bytes() + b % layout.n_super * layout.scale_bytes()..];
    let has_min = layout.dot.zero_log2.is_none();
    let field = |i: usize| fields[i * PANEL_ROWS + row_idx];
    let (scale, min) = match layout.scales {
        Scales::Float => ([1; 2], [u8::from(has_min); 2]),
        Scales::One => ([field(0).cast_signed(); 2], [0; 2]),
        Scales::OneMin => ([field(0).cast_signed(); 2], [field(1); 2]),
        Scales::Two => ([0, 1].map(|i| field(i).cast_signed()), [0; 2]),
        Scales::TwoMin => {
            ([0, 1].map(|i| (field(i) & 15).cast_signed()), [0, 1].map(|i| field(i) >> 4))
        }
    };
    Part {
        codes: std::array::from_fn(|k| code(layout, codes, row_idx, k)),
        d: u16_at(head, 2 * row_idx),
        dmin: if has_min { u16_at(head, 2 * (PANEL_ROWS + row_idx)) } else { 0 },
        scale,
        min,
    }
}

/// Code `k` of a row in a block.
fn code(layout: Layout, block: &[u8], row_idx: usize, k: usize) -> u8 {
    let j = k / 4;
    let byte = |vector: usize| block[vector * VECTOR_BYTES + 4 * row_idx + k % 4];
    let low = match layout.low {
        8 => byte(j),
        4 => byte(j % 4) >> (4 * (j / 4)) & 15,
        _ => byte(j % 2) >> (2 * (j / 2)) & 3,
    };
    let first_high = layout.low as usize;
    let high = match layout.high {
        1 => byte(first_high) >> j & 1,
        2 => byte(first_high + j % 2) >> (2 * (j / 2)) & 3,
        _ => return low,
    };
    low | high << layout.low
}
