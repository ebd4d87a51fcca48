//! Packing: rows of a quantised matrix become panels, whose layout `quant::panel` tells.
//!
//! Loading packs what a file has in rows, so this is plain code made wide: a part is read by
//! `quant::part` and its codes move eight at a time.

use super::isa::Isa;
pub use crate::inference::quant::panel::{
    BLOCK_LEN, GROUP_BLOCKS, Layout, PANEL_ROWS, Scales, VECTOR_BYTES,
};
use crate::inference::quant::{Form, Part, TensorType, part};

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
            $ty, $f: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ3_XXS IQ3_S IQ4_NL IQ4_XS
            N4 N3
        )
    };
    ($ty:expr, $f:ident: $($name:ident)*) => {
        match $ty {
            $(TensorType::$name => {
                // Its name is that of the type, so that symbols of kernels say it.
                #[allow(non_camel_case_types)]
                #[derive(Clone, Copy)]
                struct $name;
                impl $crate::inference::backend::cpu::panel::Format for $name {
                    const TYPE: TensorType = TensorType::$name;
                }
                $f!($name)
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
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Amx => unsafe {
                    pack_avx2::<$format>(rows, n_block, panel)
                },
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

/// Packs rows `first..first + n_rows` (16 at most) of a matrix that stands in `form`, in `bytes`,
/// into `panel`, which is zero before: for slices that begin inside a panel, and for files of
/// targets that multiply something else.
///
/// # Panics
/// If `panel` is not one panel, or the rows are not in `bytes`.
pub fn repack(
    (ty, form): (TensorType, Form),
    bytes: &[u8],
    n_cols: usize,
    first: usize,
    n_rows: usize,
    panel: &mut [u8],
) {
    let layout = Layout::of(ty);
    let n_block = n_cols / BLOCK_LEN;
    assert!(panel.len() == layout.panel_bytes(n_block) && n_rows <= PANEL_ROWS);
    for block_idx in 0..n_block {
        let (group_idx, b) = (block_idx / GROUP_BLOCKS, block_idx % GROUP_BLOCKS);
        let group = &mut panel[group_idx * layout.group_bytes(GROUP_BLOCKS)..];
        let n_in_group = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
        let (scales, codes) = group.split_at_mut(layout.scales_bytes(n_in_group));
        let codes = &mut codes[b * layout.code_bytes()..][..layout.code_bytes()];
        for row_idx in 0..n_rows {
            let part = form.part(ty, bytes, n_cols, first + row_idx, block_idx);
            put_codes(layout, &part.codes, row_idx, codes);
            put_scales(layout, &part, row_idx, b, scales);
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
