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
//! know bits and scales, not types; the packing is plain code over `quant::part`.

use super::isa::Isa;
use super::lanes::Dot;
use crate::inference::quant::{Codes, Part, TensorType, part};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Weights of a row under one activation scale.
const BLOCK_LEN: usize = 32;
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

/// What a kernel must know of a type.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bits of a code in the low part: 2, 4 or 8.
    pub low: u32,
    /// Bits of a code in the high part: 0, 1 or 2.
    pub high: u32,
    /// Whether codes are numbers of IQ4 steps.
    pub steps: bool,
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
            TensorType::IQ4_XS => (4, 0, Scales::One),
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => panic!("floats have no panels"),
        };
        let (steps, zero_log2) = match Codes::of(ty) {
            Codes::Centered(zero) => (false, Some(zero.ilog2())),
            Codes::Steps => (true, Some(7)),
            Codes::WithMin | Codes::Float => (false, None),
        };
        let bits = if steps { 8 } else { low + high };
        let n_super = ty.block_len() / BLOCK_LEN;
        Layout { low, high, steps, scales, n_super, dot: Dot { bits, zero_log2 } }
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

/// A tensor type as a type, so that a kernel is compiled for it.
pub trait Format: Copy {
    /// Which.
    const TYPE: TensorType;
    /// Its layout.
    const LAYOUT: Layout = Layout::of(Self::TYPE);
}

/// Calls `$f!(F)` with the [`Format`] of a quantised type.
macro_rules! with_format {
    ($ty:expr, $f:ident) => {
        with_format!(
            $ty, $f: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS N4 N3
        )
    };
    ($ty:expr, $f:ident: $($name:ident)*) => {
        match $ty {
            $(TensorType::$name => {
                #[derive(Clone, Copy)]
                struct Type;
                impl $crate::inference::backend::cpu::panel::Format for Type {
                    const TYPE: TensorType = TensorType::$name;
                }
                $f!(Type)
            })*
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                unreachable!("floats have no panels")
            }
        }
    };
}
pub(super) use with_format;

/// Packs up to 16 rows of `n_block` blocks, one after another in `rows`, into `panel`, which is
/// zero before.
///
/// # Panics
/// If `panel` is not one panel, or `rows` not whole rows.
pub fn pack(isa: Isa, ty: TensorType, rows: &[u8], n_block: usize, panel: &mut [u8]) {
    macro_rules! pack_as {
        ($format:ident) => {
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the instruction set is of this machine.
                Isa::Avx2 | Isa::Avx512 => unsafe { pack_avx2::<$format>(rows, n_block, panel) },
                _ => pack_rows::<$format>(rows, n_block, panel),
            }
        };
    }
    with_format!(ty, pack_as);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn pack_avx2<F: Format>(rows: &[u8], n_block: usize, panel: &mut [u8]) {
    pack_rows::<F>(rows, n_block, panel);
}

#[inline(always)]
fn pack_rows<F: Format>(rows: &[u8], n_block: usize, panel: &mut [u8]) {
    let layout = F::LAYOUT;
    let row_bytes = F::TYPE.row_bytes(n_block * BLOCK_LEN).expect("columns are whole rows");
    assert!(panel.len() == layout.panel_bytes(n_block));
    assert!(rows.len() <= PANEL_ROWS * row_bytes && rows.len().is_multiple_of(row_bytes));
    let groups = panel.chunks_mut(layout.group_bytes(GROUP_BLOCKS));
    for (group_idx, group) in groups.enumerate() {
        let first = group_idx * GROUP_BLOCKS;
        let n_block = (n_block - first).min(GROUP_BLOCKS);
        let (scales, codes) = group.split_at_mut(layout.scales_bytes(n_block));
        for (row_idx, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (b, codes) in codes.chunks_exact_mut(layout.code_bytes()).enumerate() {
                let part = part(F::TYPE, row, first + b);
                put_codes(layout, &part.codes, row_idx, codes);
                put_scales(layout, &part, row_idx, b, scales);
            }
        }
    }
}

/// Weaves the codes of a row into a block.
#[inline(always)]
fn put_codes(layout: Layout, codes: &[u8; BLOCK_LEN], row_idx: usize, out: &mut [u8]) {
    let mut words = [0u64; 4];
    for (word, eight) in words.iter_mut().zip(codes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*eight);
    }
    match layout.low {
        8 => put_words(&words, row_idx, out),
        4 => {
            let keep = u64::from_le_bytes([15; 8]);
            let pair = |i: usize| words[i] & keep | (words[i + 2] & keep) << 4;
            put_words(&[pair(0), pair(1)], row_idx, out);
        }
        _ => put_words(&[weave_pairs(words, 0)], row_idx, out),
    }
    let high = &mut out[layout.low as usize * VECTOR_BYTES..];
    match layout.high {
        2 => put_words(&[weave_pairs(words, layout.low)], row_idx, high),
        1 => {
            let keep = u64::from_le_bytes([1; 8]);
            let mut woven = 0;
            for (i, word) in words.iter().enumerate() {
                // The low half is chunk 2 i, the high half chunk 2 i + 1.
                let bits = word >> layout.low & keep;
                woven |= (bits | bits >> 31) << (2 * i);
            }
            high[4 * row_idx..][..4].copy_from_slice(&(woven as u32).to_le_bytes());
        }
        _ => {}
    }
}

/// Bits `shift` and `shift + 1` of each code, four codes to a byte.
#[inline(always)]
fn weave_pairs(words: [u64; 4], shift: u32) -> u64 {
    let keep = u64::from_le_bytes([3; 8]);
    let pair = |i: usize| (words[i] >> shift & keep) << (2 * i);
    pair(0) | pair(1) | pair(2) | pair(3)
}

/// Writes each half of each word into the row's place of a vector.
#[inline(always)]
fn put_words(words: &[u64], row_idx: usize, out: &mut [u8]) {
    let vectors = out.as_chunks_mut::<{ 2 * VECTOR_BYTES }>().0;
    for (word, pair) in words.iter().zip(vectors) {
        let bytes = word.to_le_bytes();
        pair[4 * row_idx..][..4].copy_from_slice(&bytes[..4]);
        pair[VECTOR_BYTES + 4 * row_idx..][..4].copy_from_slice(&bytes[4..]);
    }
}

/// Puts the scales of a row's block `b` into those of a group.
#[inline(always)]
fn put_scales(layout: Layout, part: &Part, row_idx: usize, b: usize, out: &mut [u8]) {
    let out = &mut out[b / layout.n_super * layout.super_bytes()..];
    let (head, scales) = out.split_at_mut(layout.head_bytes());
    let b = b % layout.n_super;
    if b == 0 {
        head[2 * row_idx..][..2].copy_from_slice(&part.d.to_le_bytes());
        if layout.dot.zero_log2.is_none() {
            let at = 2 * (PANEL_ROWS + row_idx);
            head[at..][..2].copy_from_slice(&part.dmin.to_le_bytes());
        }
    }
    let fields = match layout.scales {
        Scales::Float => return,
        Scales::One => [part.scale[0].cast_unsigned(); 2],
        Scales::OneMin => [part.scale[0].cast_unsigned(), part.min[0]],
        Scales::Two => part.scale.map(i8::cast_unsigned),
        Scales::TwoMin => [0, 1].map(|i| part.scale[i].cast_unsigned() | part.min[i] << 4),
    };
    let out = &mut scales[b * layout.scale_bytes()..][..layout.scale_bytes()];
    for (field, out) in fields.into_iter().zip(out.chunks_exact_mut(PANEL_ROWS)) {
        out[row_idx] = field;
    }
}
