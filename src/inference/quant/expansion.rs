//! The common form of quantised blocks: 32 weights at a time, as codes and integer scales.
//!
//! ```text
//! centered   weight = d * scale * (code - zero)            Q4_0 Q5_0 Q8_0 Q3_K Q6_K
//! with min   weight = d * scale * code - dmin * min        Q4_1 Q5_1 Q2_K Q4_K Q5_K N4 N3
//! steps      weight = d * scale * steps[code]              IQ4_NL IQ4_XS IQ3_XXS IQ3_S
//! ```
//!
//! A family file knows where the bits lie and makes a [`Part`]; here is what they mean. Backends
//! pack parts in an order of their own, `dequantize` multiplies them out, and both read the same
//! codes, so a kernel needs three formulas, not sixteen layouts.
//!
//! `d` and `dmin` stay f16 bits: their products with the integers are exact in f32 (11 bits of
//! mantissa times 8 at most), so whoever multiplies them gets the same scale. A block whose `d` is
//! not finite has no finite weight.

use super::TensorType;
use super::f16_to_f32;
use super::iq3::{IQ3_S_STEPS, IQ3_XXS_STEPS, iq3_s, iq3_xxs};
use super::iq4::{IQ4_STEPS, Steps, iq4_nl, iq4_xs};
use super::k_quants::{q2_k, q3_k, q4_k, q5_k, q6_k};
use super::legacy::{q4_0, q4_1, q5_0, q5_1, q8_0};
use super::native;

/// What the codes of a type mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// No codes: the weights are floats.
    Float,
    /// `d * scale * (code - zero)`, and the zero.
    Centered(u8),
    /// `d * scale * code - dmin * min`
    WithMin,
    /// `d * scale * factor * steps[code]`
    Steps(&'static Steps),
}

impl Codes {
    /// The meaning of the codes of `ty`.
    pub const fn of(ty: TensorType) -> Codes {
        match ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Codes::Float,
            TensorType::Q4_0 => Codes::Centered(8),
            TensorType::Q5_0 => Codes::Centered(16),
            TensorType::Q8_0 => Codes::Centered(128),
            TensorType::Q3_K => Codes::Centered(4),
            TensorType::Q6_K => Codes::Centered(32),
            TensorType::Q4_1 | TensorType::Q5_1 => Codes::WithMin,
            TensorType::Q2_K | TensorType::Q4_K | TensorType::Q5_K => Codes::WithMin,
            TensorType::N4 | TensorType::N3 => Codes::WithMin,
            TensorType::IQ4_NL | TensorType::IQ4_XS => Codes::Steps(&IQ4_STEPS),
            TensorType::IQ3_XXS => Codes::Steps(&IQ3_XXS_STEPS),
            TensorType::IQ3_S => Codes::Steps(&IQ3_S_STEPS),
        }
    }
}

/// 32 weights; scale and minimum of weight `k` are at `k / 16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Codes in the order of the weights.
    pub codes: [u8; 32],
    /// f16 bits of the scale's factor.
    pub d: u16,
    /// f16 bits of the minimum's factor; zero where there is no minimum.
    pub dmin: u16,
    /// Integer scales; 1 where a type has none.
    pub scale: [i8; 2],
    /// Integer minima; 1 where a type has a `dmin` only.
    pub min: [u8; 2],
}

impl Part {
    /// A part with one f16 scale.
    #[inline(always)]
    pub(super) fn plain(codes: [u8; 32], d: u16) -> Part {
        Part { codes, d, dmin: 0, scale: [1; 2], min: [0; 2] }
    }

    /// The weights, with ggml's roundings.
    ///
    /// # Panics
    /// If `meaning` is that of floats.
    #[inline(always)]
    pub fn write(&self, meaning: Codes, out: &mut [f32; 32]) {
        let scale = self.scale.map(|s| f16_to_f32(self.d) * f32::from(s));
        let min = self.min.map(|m| f16_to_f32(self.dmin) * f32::from(m));
        for (k, weight) in out.iter_mut().enumerate() {
            let (scale, code) = (scale[k / 16], self.codes[k]);
            *weight = match meaning {
                Codes::Centered(zero) => scale * (f32::from(code) - f32::from(zero)),
                Codes::WithMin => scale * f32::from(code) - min[k / 16],
                Codes::Steps(steps) => scale * steps.factor() * steps.value(code),
                Codes::Float => unreachable!("floats have no parts"),
            };
        }
    }
}

/// Weights `32 * part_idx ..` of a row: of the native types exactly one row, because its length
/// says where its last block ends.
///
/// # Panics
/// If `ty` is a float type, or the row ends before the part.
#[inline(always)]
pub fn part(ty: TensorType, row: &[u8], part_idx: usize) -> Part {
    let (super_idx, in_super) = (part_idx / 8, part_idx % 8);
    match ty {
        TensorType::Q4_0 => q4_0::part(block_at(row, part_idx)),
        TensorType::Q4_1 => q4_1::part(block_at(row, part_idx)),
        TensorType::Q5_0 => q5_0::part(block_at(row, part_idx)),
        TensorType::Q5_1 => q5_1::part(block_at(row, part_idx)),
        TensorType::Q8_0 => q8_0::part(block_at(row, part_idx)),
        TensorType::Q2_K => q2_k::part(block_at(row, super_idx), in_super),
        TensorType::Q3_K => q3_k::part(block_at(row, super_idx), in_super),
        TensorType::Q4_K => q4_k::part(block_at(row, super_idx), in_super),
        TensorType::Q5_K => q5_k::part(block_at(row, super_idx), in_super),
        TensorType::Q6_K => q6_k::part(block_at(row, super_idx), in_super),
        TensorType::IQ3_XXS => iq3_xxs::part(block_at(row, super_idx), in_super),
        TensorType::IQ3_S => iq3_s::part(block_at(row, super_idx), in_super),
        TensorType::IQ4_NL => iq4_nl::part(block_at(row, part_idx)),
        TensorType::IQ4_XS => iq4_xs::part(block_at(row, super_idx), in_super),
        TensorType::N4 => native::n4_part(row, part_idx),
        TensorType::N3 => native::n3_part(row, part_idx),
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => panic!("{ty} has no parts"),
    }
}

#[inline(always)]
fn block_at<const B: usize>(row: &[u8], idx: usize) -> &[u8; B] {
    &row.as_chunks::<B>().0[idx]
}
