//! The first formats: 32 weights in a block, one scale, and in the `_1` types one minimum.
//!
//! ```text
//! Q4_0   weight = scale * (code - 8)      4 bits, zero is exact, one step more below than above
//! Q4_1   weight = scale * code + min      4 bits, the range fits the block on both sides
//! Q5_0   weight = scale * (code - 16)     5 bits
//! Q5_1   weight = scale * code + min      5 bits
//! Q8_0   weight = scale * code            8 bits, signed
//! ```
//!
//! `scale` and `min` are f16. Nibbles are packed in halves: byte i holds weight i in its low nibble
//! and weight i + 16 in its high one, so that a SIMD mask and a shift give neighbours back. The
//! fifth bits of Q5 lie apart, as one little-endian u32 whose bit i belongs to weight i.
//!
//! Quantizers round to the nearest code, or search for the scale where weights differ in
//! importance. The `_0` types put the weight of largest magnitude on the lowest code, whatever its
//! sign; hence a block of mostly positive weights has a negative scale.

use half::f16;

use super::expansion::Part;
use super::search::{self, Grid};
use super::u16_at;

/// Scales that a search tries, around the range of the weights.
const GRID: Grid = Grid { first: -0.9, step: 0.05, n: 36, n_again: 1 };

/// Q4_0: 32 weights in 18 bytes.
///
/// ```text
/// byte   0   1 | 2 ................ 17
///        scale | low nibble of byte 2 + i -> weight i, high nibble -> weight i + 16
/// ```
pub(super) mod q4_0 {
    use crate::inference::quant::{expansion::Part, nibbles, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 18]) -> Part {
        Part::plain(nibbles(&block[2..]), u16_at(block, 0))
    }

    pub fn quantize(weights: &[f32; 32], emphasis: Option<&[f32; 32]>) -> [u8; 18] {
        let (scale, codes) = super::find_centered(weights, emphasis, 8);
        let mut block = [0; 18];
        block[..2].copy_from_slice(&super::f16_bytes(scale));
        block[2..].copy_from_slice(&super::pack_nibbles(&codes));
        block
    }
}

/// Q4_1: 32 weights in 20 bytes.
///
/// ```text
/// byte   0   1 | 2 3 | 4 ................ 19
///        scale | min | low nibble of byte 4 + i -> weight i, high nibble -> weight i + 16
/// ```
pub(super) mod q4_1 {
    use crate::inference::quant::{expansion::Part, nibbles};

    #[inline(always)]
    pub fn part(block: &[u8; 20]) -> Part {
        super::with_min(nibbles(&block[4..]), block)
    }

    pub fn quantize(weights: &[f32; 32], emphasis: Option<&[f32; 32]>) -> [u8; 20] {
        let (scale, min, codes) = super::find_with_min(weights, emphasis, 15);
        let mut block = [0; 20];
        block[..2].copy_from_slice(&super::f16_bytes(scale));
        block[2..4].copy_from_slice(&super::f16_bytes(min));
        block[4..].copy_from_slice(&super::pack_nibbles(&codes));
        block
    }
}

/// Q5_0: 32 weights in 22 bytes.
///
/// ```text
/// byte   0   1 | 2 ........ 5 | 6 ................ 21
///        scale | fifth bits   | low nibble of byte 6 + i -> weight i, high nibble -> weight i + 16
/// ```
pub(super) mod q5_0 {
    use crate::inference::quant::{expansion::Part, nibbles, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 22]) -> Part {
        let codes = super::add_fifth_bits(nibbles(&block[6..]), &block[2..6]);
        Part::plain(codes, u16_at(block, 0))
    }

    pub fn quantize(weights: &[f32; 32], emphasis: Option<&[f32; 32]>) -> [u8; 22] {
        let (scale, codes) = super::find_centered(weights, emphasis, 16);
        let mut block = [0; 22];
        block[..2].copy_from_slice(&super::f16_bytes(scale));
        block[2..6].copy_from_slice(&super::pack_fifth_bits(&codes));
        block[6..].copy_from_slice(&super::pack_nibbles(&codes));
        block
    }
}

/// Q5_1: 32 weights in 24 bytes.
///
/// ```text
/// byte   0   1 | 2 3 | 4 ........ 7 | 8 ................ 23
///        scale | min | fifth bits   | low nibble of byte 8 + i -> weight i, high -> weight i + 16
/// ```
pub(super) mod q5_1 {
    use crate::inference::quant::{expansion::Part, nibbles};

    #[inline(always)]
    pub fn part(block: &[u8; 24]) -> Part {
        let codes = super::add_fifth_bits(nibbles(&block[8..]), &block[4..8]);
        super::with_min(codes, block)
    }

    pub fn quantize(weights: &[f32; 32], emphasis: Option<&[f32; 32]>) -> [u8; 24] {
        let (scale, min, codes) = super::find_with_min(weights, emphasis, 31);
        let mut block = [0; 24];
        block[..2].copy_from_slice(&super::f16_bytes(scale));
        block[2..4].copy_from_slice(&super::f16_bytes(min));
        block[4..8].copy_from_slice(&super::pack_fifth_bits(&codes));
        block[8..].copy_from_slice(&super::pack_nibbles(&codes));
        block
    }
}

/// Q8_0: 32 weights in 34 bytes.
///
/// ```text
/// byte   0   1 | 2 ................ 33
///        scale | byte 2 + i, signed -> weight i
/// ```
///
/// A quantizer never writes -128, but a file may hold it.
pub(super) mod q8_0 {
    use crate::inference::quant::{expansion::Part, u16_at};

    /// Codes are the bytes with their sign bit flipped, so that zero is 128.
    #[inline(always)]
    pub fn part(block: &[u8; 34]) -> Part {
        let mut codes = [0; 32];
        for (code, byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte ^ 0x80;
        }
        Part::plain(codes, u16_at(block, 0))
    }

    /// The scale of 8-bit codes is not searched for: there is next to nothing to gain.
    pub fn quantize(weights: &[f32; 32], _emphasis: Option<&[f32; 32]>) -> [u8; 34] {
        let peak = weights.iter().fold(0.0f32, |peak, w| peak.max(w.abs()));
        let scale = peak / 127.0;
        let inverse = super::inverse(scale);
        let mut block = [0; 34];
        block[..2].copy_from_slice(&super::f16_bytes(scale));
        for (code, weight) in block[2..].iter_mut().zip(weights) {
            // `round` breaks ties away from zero, as the reference does.
            *code = ((weight * inverse).round() as i8).cast_unsigned();
        }
        block
    }
}

/// A part of a `_1` type: the file adds its minimum, a part subtracts it.
#[inline(always)]
fn with_min(codes: [u8; 32], block: &[u8]) -> Part {
    Part { dmin: u16_at(block, 2) ^ 0x8000, min: [1; 2], ..Part::plain(codes, u16_at(block, 0)) }
}

#[inline(always)]
fn add_fifth_bits(mut codes: [u8; 32], bits: &[u8]) -> [u8; 32] {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bits[i / 8] >> (i % 8) & 1) << 4;
    }
    codes
}

/// Scale and codes for `weight = scale * (code - zero)`, codes below `2 * zero`: searched for where
/// the weights have an emphasis.
fn find_centered(weights: &[f32; 32], emphasis: Option<&[f32; 32]>, zero: u8) -> (f32, [u8; 32]) {
    let Some(emphasis) = emphasis else { return nearest_centered(weights, zero) };
    let scale = f16::from_f32(search::centered(weights, emphasis, zero)).to_f32();
    let (inverse, zero) = (search::inverse(scale), f32::from(zero));
    let code = |w: f32| search::nearest(w * inverse + zero, 2.0 * zero - 1.0) as u8;
    (scale, weights.map(code))
}

/// Scale, minimum and codes for `weight = scale * code + min`, codes up to `code_max`: searched for
/// where the weights have an emphasis.
fn find_with_min(
    weights: &[f32; 32],
    emphasis: Option<&[f32; 32]>,
    code_max: u8,
) -> (f32, f32, [u8; 32]) {
    let Some(emphasis) = emphasis else { return nearest_with_min(weights, code_max) };
    let found = search::affine(weights, emphasis, code_max, GRID);
    let [scale, min] = [found.scale, found.min].map(|x| f16::from_f32(x).to_f32());
    let (inverse, code_max) = (search::inverse(scale), f32::from(code_max));
    let code = |w: f32| search::nearest((w + min) * inverse, code_max) as u8;
    (scale, -min, weights.map(code))
}

/// Scale and codes for `weight = scale * (code - zero)`, codes below `2 * zero`.
fn nearest_centered(weights: &[f32; 32], zero: u8) -> (f32, [u8; 32]) {
    // The first of equal magnitudes wins, and an all-zero block keeps the sign of its first zero.
    let farther = |peak: f32, &w: &f32| if w.abs() > peak.abs() { w } else { peak };
    let scale = weights.iter().fold(weights[0], farther) / -f32::from(zero);
    let inverse = inverse(scale);
    let half_up = f32::from(zero) + 0.5;
    let code = |w: f32| ((w * inverse + half_up) as u8).min(2 * zero - 1);
    (scale, weights.map(code))
}

/// Scale, minimum and codes for `weight = scale * code + min`, codes up to `code_max`.
fn nearest_with_min(weights: &[f32; 32], code_max: u8) -> (f32, f32, [u8; 32]) {
    let min = weights.iter().copied().fold(weights[0], f32::min);
    let max = weights.iter().copied().fold(weights[0], f32::max);
    let scale = (max - min) / f32::from(code_max);
    let inverse = inverse(scale);
    let code = |w: f32| (((w - min) * inverse + 0.5) as u8).min(code_max);
    (scale, min, weights.map(code))
}

/// Codes are found with the scale in f32, before it is rounded to the f16 that is stored: so does
/// the reference, and its bits are what we promise.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn f16_bytes(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

fn pack_nibbles(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| codes[i] & 15 | codes[i + 16] << 4)
}

fn pack_fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    let bits = codes.iter().rev().fold(0u32, |bits, code| bits << 1 | u32::from(code >> 4));
    bits.to_le_bytes()
}
