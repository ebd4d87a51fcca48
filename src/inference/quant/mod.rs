//! Block formats: how a GGUF file stores weights, each with a plain reference.
//!
//! A tensor's row is a whole number of blocks; a block holds `block_len` weights in `block_bytes`
//! bytes. The layouts belong to the file format and are never reordered here: backends repack or
//! expand, and this room stays plain, the reference that every faster path is measured by.
//!
//! ```text
//! plain.rs     F32 F16 BF16                 one weight, no block
//! legacy.rs    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0     32 weights share one scale
//! k_quants.rs  Q2_K Q3_K Q4_K Q5_K Q6_K     256 weights, scales are themselves quantised
//! iq4.rs       IQ4_NL IQ4_XS                codes point into a table of 16 steps
//! expansion.rs any of the last three, 32 weights at a time, as codes and integer scales
//! ```
//!
//! A family file knows where the bits lie; `expansion` knows what they mean; `dequantize` is the
//! two together.
//!
//! Writing goes the other way:
//!
//! ```text
//! search.rs       scale and minimum of least error for a group of weights
//! super_block.rs  a run of groups in integers: scales, their factor, codes
//! k_write.rs      those integers, put where k_quants.rs reads them
//! ```

mod expansion;
mod iq4;
mod k_quants;
mod k_write;
mod legacy;
mod plain;
mod search;
mod super_block;
#[cfg(test)]
mod tests;

pub use expansion::{Codes, Part, part};
pub use iq4::STEPS;

/// A tensor type that the runtime reads. Names and ids are those of the GGUF specification.
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
    IQ4_NL,
    IQ4_XS,
    BF16,
}

impl TensorType {
    /// Every type, in the order of the file format's ids.
    pub const ALL: [TensorType; 15] = [
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
        TensorType::IQ4_NL,
        TensorType::IQ4_XS,
        TensorType::BF16,
    ];

    /// The row of the type table: (name, GGUF id, weights per block, bytes per block).
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
            TensorType::IQ4_NL => ("IQ4_NL", 20, 32, 18),
            TensorType::IQ4_XS => ("IQ4_XS", 23, 256, 136),
            TensorType::BF16 => ("BF16", 30, 1, 2),
        }
    }

    /// The name that people know, `Q4_K` for example.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The number that stands for the type in a GGUF file.
    pub const fn ggml_id(self) -> u32 {
        self.row().1
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The type with this number in a GGUF file, if the runtime reads it.
    pub fn from_ggml_id(id: u32) -> Option<TensorType> {
        TensorType::ALL.into_iter().find(|t| t.ggml_id() == id)
    }

    /// Bytes of `n` weights in a row; `None` unless `n` is a whole number of blocks.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Weights of whole blocks, exactly as ggml computes them.
///
/// `src` holds the blocks that make `dst.len()` weights. Scales are multiplied in f32, in ggml's
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

/// Whether [`quantize`] can write the type.
pub const fn is_written(ty: TensorType) -> bool {
    !matches!(ty, TensorType::IQ4_NL | TensorType::IQ4_XS)
}

/// The blocks of one row of weights; `None` for a type that nothing here writes.
///
/// `importance` says of each column how much its error counts (the mean square of what it is
/// multiplied by, say); it need not be finite or positive everywhere. Without it, the types of 32
/// weights have the bits of the reference quantizer wherever the weights are finite and a block's
/// scale is a normal f32; everything else is searched for.
///
/// # Panics
/// Unless `src` is a whole number of blocks, and as long as `importance`.
pub fn quantize(ty: TensorType, src: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
    let n_bytes = ty.row_bytes(src.len());
    assert!(n_bytes.is_some(), "{} weights are not whole {ty} blocks", src.len());
    assert!(importance.is_none_or(|row| row.len() == src.len()), "importance of another width");
    let cleaned = importance.and_then(usable);
    let importance = cleaned.as_deref();
    let bytes = match ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => plain::quantize(ty, src),
        TensorType::Q4_0 => each_block(src, importance, legacy::q4_0::quantize),
        TensorType::Q4_1 => each_block(src, importance, legacy::q4_1::quantize),
        TensorType::Q5_0 => each_block(src, importance, legacy::q5_0::quantize),
        TensorType::Q5_1 => each_block(src, importance, legacy::q5_1::quantize),
        TensorType::Q8_0 => each_block(src, importance, legacy::q8_0::quantize),
        TensorType::Q2_K => each_run(src, importance, k_write::q2_k),
        TensorType::Q3_K => each_run(src, importance, k_write::q3_k),
        TensorType::Q4_K => each_run(src, importance, k_write::q4_k),
        TensorType::Q5_K => each_run(src, importance, k_write::q5_k),
        TensorType::Q6_K => each_run(src, importance, k_write::q6_k),
        TensorType::IQ4_NL | TensorType::IQ4_XS => return None,
    };
    debug_assert_eq!(Some(bytes.len()), n_bytes);
    Some(bytes)
}

/// An importance row with which sums stay finite and positive: a column that no text used still
/// counts a little. `None` where it says nothing.
fn usable(importance: &[f32]) -> Option<Vec<f32>> {
    let mean = importance.iter().map(|&i| f64::from(i)).sum::<f64>() / importance.len() as f64;
    let floor = (mean * 1e-4) as f32;
    let is_usable = floor.is_normal() && floor > 0.0 && floor < 1e30;
    is_usable.then(|| importance.iter().map(|&i| i.max(floor)).collect())
}

/// Blocks of 32 weights, each by itself.
fn each_block<const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    quantize: fn(&[f32; 32], Option<&[f32; 32]>) -> [u8; B],
) -> Vec<u8> {
    let blocks = src.as_chunks::<32>().0;
    let Some(importance) = importance else {
        return blocks.iter().flat_map(|block| quantize(block, None)).collect();
    };
    let mean_square = src.iter().map(|x| x * x).sum::<f32>() / src.len().max(1) as f32;
    let each = blocks.iter().zip(importance.as_chunks::<32>().0);
    each.flat_map(|(block, importance)| {
        let mut weights = [0.0; 32];
        super_block::emphasis(block, importance, mean_square, &mut weights);
        quantize(block, Some(&weights))
    })
    .collect()
}

/// Blocks of 256 weights.
fn each_run<const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    quantize: fn(&[f32], Option<&[f32]>) -> [u8; B],
) -> Vec<u8> {
    let starts = (0..src.len()).step_by(super_block::RUN_LEN);
    let run = |start: usize| start..start + super_block::RUN_LEN;
    starts.flat_map(|at| quantize(&src[run(at)], importance.map(|row| &row[run(at)]))).collect()
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
