//! Canonical expansion: any quantised block, 32 weights at a time, as integer codes and f32 scales.
//!
//! ```text
//! unsigned   weight[k] = scale[k / 16] * code[k] - min[k / 16]     codes 0 to 63
//! signed     weight[k] = scale[k / 16] * code[k]                   codes -128 to 127
//! ```
//!
//! Integer kernels and the plain loops they are tested against both start here, so a kernel needs
//! two shapes, not twelve. Which types take which shape follows from their codes: those that fit
//! in six unsigned bits can meet signed activation bytes in a multiply-add that saturates at 16
//! bits; those that need a sign cannot, and have no minimum to carry.
//!
//! A scale is `d` (f16 to f32) times an integer, and a minimum is one such product or the scale
//! times the code of zero; both are exact in f32. Hence the formula gives the numbers of
//! `dequantize` exactly, except that a zero may lose its sign. A block whose `d` is not finite
//! has no finite weight in either.

use super::TensorType;
use super::iq4::{iq4_nl, iq4_xs};
use super::k_quants::{q2_k, q3_k, q4_k, q5_k, q6_k};
use super::legacy::{q4_0, q4_1, q5_0, q5_1, q8_0};

/// What the weights of a type are before scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Floats: nothing to expand.
    Float,
    /// Codes 0 to 63 and a minimum: [`expand`].
    Unsigned,
    /// Signed bytes: [`expand_signed`].
    Signed,
}

impl Codes {
    /// The shape that `ty` expands to.
    pub const fn of(ty: TensorType) -> Codes {
        match ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Codes::Float,
            TensorType::Q8_0 | TensorType::IQ4_NL | TensorType::IQ4_XS => Codes::Signed,
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q5_0 | TensorType::Q5_1 => {
                Codes::Unsigned
            }
            TensorType::Q2_K
            | TensorType::Q3_K
            | TensorType::Q4_K
            | TensorType::Q5_K
            | TensorType::Q6_K => Codes::Unsigned,
        }
    }
}

/// 32 weights: `weight[k] = scale[k / 16] * codes[k] - min[k / 16]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Expanded {
    /// Codes in the order of the weights, 0 to 63.
    pub codes: [u8; 32],
    /// Scale of the first and of the second 16 weights.
    pub scale: [f32; 2],
    /// What is subtracted from the first and from the second 16 weights.
    pub min: [f32; 2],
}

/// 32 weights: `weight[k] = scale[k / 16] * codes[k]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpandedSigned {
    /// Codes in the order of the weights; -128 can come from a Q8_0 file.
    pub codes: [i8; 32],
    /// Scale of the first and of the second 16 weights.
    pub scale: [f32; 2],
}

/// Weights `32 * block_idx ..` of a row of a type with unsigned codes.
///
/// # Panics
/// If `Codes::of(ty)` is not `Unsigned`, or the row ends before the block.
#[inline]
pub fn expand(ty: TensorType, row: &[u8], block_idx: usize) -> Expanded {
    let part = part(ty, row, block_idx);
    let min = match part.zero {
        Zero::Code(zero) => part.scale.map(|scale| scale * f32::from(zero)),
        Zero::Min(min) => min,
    };
    Expanded { codes: part.codes, scale: part.scale, min }
}

/// Weights `32 * block_idx ..` of a row of a type with signed codes.
///
/// # Panics
/// If `Codes::of(ty)` is not `Signed`, or the row ends before the block.
#[inline]
pub fn expand_signed(ty: TensorType, row: &[u8], block_idx: usize) -> ExpandedSigned {
    match ty {
        TensorType::Q8_0 => q8_0::part(block_at(row, block_idx)),
        TensorType::IQ4_NL => iq4_nl::part(block_at(row, block_idx)),
        TensorType::IQ4_XS => iq4_xs::part(block_at(row, block_idx / 8), block_idx % 8),
        _ => panic!("{ty} has no signed codes"),
    }
}

/// What a family file knows of 32 weights with unsigned codes.
pub(super) struct Part {
    codes: [u8; 32],
    scale: [f32; 2],
    zero: Zero,
}

/// How a format says where zero lies. The two ways round differently, so `dequantize` must know.
enum Zero {
    /// `weight = scale * (code - zero)`
    Code(u8),
    /// `weight = scale * code - min`
    Min([f32; 2]),
}

impl Part {
    #[inline]
    pub(super) fn centered(codes: [u8; 32], scale: [f32; 2], zero: u8) -> Part {
        Part { codes, scale, zero: Zero::Code(zero) }
    }

    #[inline]
    pub(super) fn with_min(codes: [u8; 32], scale: [f32; 2], min: [f32; 2]) -> Part {
        Part { codes, scale, zero: Zero::Min(min) }
    }

    /// The weights, with ggml's roundings.
    #[inline]
    pub(super) fn write(&self, out: &mut [f32; 32]) {
        for (k, weight) in out.iter_mut().enumerate() {
            let code = f32::from(self.codes[k]);
            *weight = match self.zero {
                Zero::Code(zero) => self.scale[k / 16] * (code - f32::from(zero)),
                Zero::Min(min) => self.scale[k / 16] * code - min[k / 16],
            };
        }
    }
}

impl ExpandedSigned {
    /// The weights, with ggml's roundings.
    #[inline]
    pub(super) fn write(&self, out: &mut [f32; 32]) {
        for (k, weight) in out.iter_mut().enumerate() {
            *weight = self.scale[k / 16] * f32::from(self.codes[k]);
        }
    }
}

/// Weights `32 * block_idx ..` of a row, before their zero is settled.
#[inline]
pub(super) fn part(ty: TensorType, row: &[u8], block_idx: usize) -> Part {
    let (super_idx, part_idx) = (block_idx / 8, block_idx % 8);
    match ty {
        TensorType::Q4_0 => q4_0::part(block_at(row, block_idx)),
        TensorType::Q4_1 => q4_1::part(block_at(row, block_idx)),
        TensorType::Q5_0 => q5_0::part(block_at(row, block_idx)),
        TensorType::Q5_1 => q5_1::part(block_at(row, block_idx)),
        TensorType::Q2_K => q2_k::part(block_at(row, super_idx), part_idx),
        TensorType::Q3_K => q3_k::part(block_at(row, super_idx), part_idx),
        TensorType::Q4_K => q4_k::part(block_at(row, super_idx), part_idx),
        TensorType::Q5_K => q5_k::part(block_at(row, super_idx), part_idx),
        TensorType::Q6_K => q6_k::part(block_at(row, super_idx), part_idx),
        _ => panic!("{ty} has no unsigned codes"),
    }
}

#[inline]
fn block_at<const B: usize>(row: &[u8], idx: usize) -> &[u8; B] {
    &row.as_chunks::<B>().0[idx]
}
