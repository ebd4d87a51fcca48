//! Block formats: how a GGUF file stores weights, each with a plain reference.
//!
//! A tensor's row is a whole number of blocks; a block holds `block_len` weights in `block_bytes`
//! bytes. Only the native types may end a row in a shorter block. The layouts belong to the file
//! format and are never reordered here: backends repack or expand, and this room stays plain, the
//! reference that every faster path is measured by.
//!
//! ```text
//! plain.rs     F32 F16 BF16                 one weight, no block
//! legacy.rs    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0     32 weights share one scale
//! k_quants.rs  Q2_K Q3_K Q4_K Q5_K Q6_K     256 weights, scales are themselves quantised
//! iq4.rs       IQ4_NL IQ4_XS                codes point into a table of 16 steps
//! iq3.rs       IQ3_XXS IQ3_S              four weights are a point of a grid, and signs
//! native.rs    N4 N3                        as Q4_K, but rows of any multiple of 32
//! panel.rs     sixteen rows of any of these, woven for wide registers
//! strip.rs     four rows of any of these, for the Jetson's GPU
//! form.rs      rows, panels or strips: what a file holds, and how it is taken apart
//! expansion.rs any of the blocks, 32 weights at a time, as codes and integer scales
//! ```
//!
//! A family file knows where the bits lie; `expansion` knows what they mean; `dequantize` is the
//! two together.
//!
//! Writing goes the other way:
//!
//! ```text
//! write.rs        a row of weights to the blocks of any type
//! search.rs       scale and minimum of least error for a group of weights
//! super_block.rs  a run of groups in integers: scales, their factor, codes
//! k_write.rs      those integers, put where k_quants.rs and native.rs read them
//! ```

mod expansion;
mod form;
mod iq3;
mod iq4;
mod k_quants;
mod k_write;
mod legacy;
mod native;
pub mod panel;
mod plain;
mod search;
pub mod strip;
mod super_block;
#[cfg(test)]
mod tests;
mod write;

pub use expansion::{Codes, Part, part};
pub use form::Form;
pub use iq4::Steps;
pub use native::{NativePart, write_super};
pub use write::{is_written, quantize};

/// A tensor type that the runtime reads. Names and ids are those of the GGUF specification, but
/// for the native types, which it does not know.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ3_XXS,
    IQ4_NL,
    IQ3_S,
    IQ4_XS,
    BF16,
    N4,
    N3,
}

/// Stands for "not a type of GGUF" in the type table.
const NO_ID: u32 = u32::MAX;

impl TensorType {
    /// Every type: those of the file format in the order of their ids, then the native ones.
    pub const ALL: [TensorType; 19] = [
        TensorType::F32,
        TensorType::F16,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q8_0,
        TensorType::Q2_K,
        TensorType::Q3_K,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
        TensorType::IQ3_XXS,
        TensorType::IQ4_NL,
        TensorType::IQ3_S,
        TensorType::IQ4_XS,
        TensorType::BF16,
        TensorType::N4,
        TensorType::N3,
    ];

    /// The row of the type table: (name, GGUF id, weights per block, bytes per block). The native
    /// types carry ids that no file has.
    const fn row(self) -> (&'static str, u32, usize, usize) {
        match self {
            TensorType::F32 => ("F32", 0, 1, 4),
            TensorType::F16 => ("F16", 1, 1, 2),
            TensorType::Q4_0 => ("Q4_0", 2, 32, 18),
            TensorType::Q4_1 => ("Q4_1", 3, 32, 20),
            TensorType::Q5_0 => ("Q5_0", 6, 32, 22),
            TensorType::Q5_1 => ("Q5_1", 7, 32, 24),
            TensorType::Q8_0 => ("Q8_0", 8, 32, 34),
            TensorType::Q2_K => ("Q2_K", 10, 256, 84),
            TensorType::Q3_K => ("Q3_K", 11, 256, 110),
            TensorType::Q4_K => ("Q4_K", 12, 256, 144),
            TensorType::Q5_K => ("Q5_K", 13, 256, 176),
            TensorType::Q6_K => ("Q6_K", 14, 256, 210),
            TensorType::IQ3_XXS => ("IQ3_XXS", 18, 256, 98),
            TensorType::IQ4_NL => ("IQ4_NL", 20, 32, 18),
            TensorType::IQ3_S => ("IQ3_S", 21, 256, 110),
            TensorType::IQ4_XS => ("IQ4_XS", 23, 256, 136),
            TensorType::BF16 => ("BF16", 30, 1, 2),
            TensorType::N4 => ("N4", NO_ID, 256, 144),
            TensorType::N3 => ("N3", NO_ID, 256, 112),
        }
    }

    /// The name that people know, `Q4_K` for example.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The number that stands for the type in a GGUF file; `None` for the native types, which
    /// stand there as bytes (see `gguf::native`).
    pub const fn ggml_id(self) -> Option<u32> {
        match self.row().1 {
            NO_ID => None,
            id => Some(id),
        }
    }

    /// Whether the type is one of our own, N4 or N3.
    pub const fn is_native(self) -> bool {
        matches!(self, TensorType::N4 | TensorType::N3)
    }

    /// Weights in a whole block.
    pub const fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a whole block.
    pub const fn block_bytes(self) -> usize {
        self.row().3
    }

    /// What the length of a row is a multiple of: a block, or 32 for the native types, whose rows
    /// may end in a shorter block.
    pub const fn row_unit(self) -> usize {
        if self.is_native() { native::PART_LEN } else { self.block_len() }
    }

    /// The type with this number in a GGUF file, if the runtime reads it.
    pub fn from_ggml_id(id: u32) -> Option<TensorType> {
        TensorType::ALL.into_iter().find(|t| t.ggml_id() == Some(id))
    }

    /// Bytes of a row of `n` weights; `None` unless `n` is a multiple of [`TensorType::row_unit`].
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.row_unit()) {
            return None;
        }
        let whole = (n / self.block_len()).checked_mul(self.block_bytes())?;
        let rest = n % self.block_len() / native::PART_LEN;
        whole.checked_add(match self {
            TensorType::N4 => native::row_bytes(rest, 16),
            TensorType::N3 => native::row_bytes(rest, 12),
            _ => 0,
        })
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Weights of a row, exactly as ggml computes them.
///
/// `src` holds the blocks that make `dst.len()` weights. Several rows at once may only be read of
/// types whose rows are whole blocks. Scales are multiplied in f32, in ggml's
/// order, so the results have its bits (the payload of a NaN aside).
///
/// # Panics
/// Unless `src.len()` is `ty.row_bytes(dst.len())`: lengths are the caller's to check.
pub fn dequantize(ty: TensorType, src: &[u8], dst: &mut [f32]) {
    assert_eq!(ty.row_bytes(dst.len()), Some(src.len()), "bytes of {} {ty} weights", dst.len());
    match Codes::of(ty) {
        Codes::Float => plain::dequantize(ty, src, dst),
        meaning => {
            for (part_idx, out) in dst.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                part(ty, src, part_idx).write(meaning, out);
            }
        }
    }
}

/// The little-endian u16 at byte `at`.
#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// f16 bits to f32, exactly (infinities and NaN included), in a form that vectorises.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    // Shifted into place, the exponent is 112 too small: one exact multiplication repairs it and
    // normalises subnormals on the way (the magic-number method of F. Giesen's half conversions).
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (u32::from(bits & 0x8000) << 16))
}

/// Eight bytes as one word: shifted as a whole, then masked byte by byte. A shift of bytes is not
/// an instruction anywhere, and files are read at the speed of this one.
#[inline(always)]
pub fn each_byte(bytes: [u8; 8], shift: impl Fn(u64) -> u64, mask: u8) -> [u8; 8] {
    (shift(u64::from_le_bytes(bytes)) & u64::from_le_bytes([mask; 8])).to_le_bytes()
}

/// 16 bytes hold 32 nibbles: the low ones come first, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let (low, high) = out.split_at_mut(16);
    let outs = low.as_chunks_mut::<8>().0.iter_mut().zip(high.as_chunks_mut::<8>().0);
    for ((low, high), eight) in outs.zip(bytes.as_chunks::<8>().0) {
        *low = each_byte(*eight, |word| word, 15);
        *high = each_byte(*eight, |word| word >> 4, 15);
    }
    out
}
