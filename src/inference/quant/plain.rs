//! F32, F16 and BF16: a weight is a little-endian float, and a block is one weight.
//!
//! ```text
//! F32   sign 1 | exponent 8 | mantissa 23
//! F16   sign 1 | exponent 5 | mantissa 10    finite up to 65504, steps of 2^-24 near zero
//! BF16  sign 1 | exponent 8 | mantissa  7    the upper half of an F32
//! ```
//!
//! Every F16 and BF16 is an F32, so reading is exact; writing rounds to nearest, ties to even,
//! and overflows to infinity.

use super::TensorType;
use half::{bf16, f16};

/// Reads floats; lengths were checked by the caller.
pub(super) fn dequantize(ty: TensorType, src: &[u8], dst: &mut [f32]) {
    match ty {
        TensorType::F32 => read(src, dst, f32::from_le_bytes),
        TensorType::F16 => read(src, dst, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::BF16 => read(src, dst, |b| bf16::from_le_bytes(b).to_f32()),
        _ => unreachable!("{ty} is not a float type"),
    }
}

/// Writes floats, rounding to nearest.
pub(super) fn quantize(ty: TensorType, src: &[f32]) -> Vec<u8> {
    match ty {
        TensorType::F32 => src.iter().flat_map(|w| w.to_le_bytes()).collect(),
        TensorType::F16 => src.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect(),
        TensorType::BF16 => src.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect(),
        _ => unreachable!("{ty} is not a float type"),
    }
}

fn read<const B: usize>(src: &[u8], dst: &mut [f32], float: impl Fn([u8; B]) -> f32) {
    for (weight, &bytes) in dst.iter_mut().zip(src.as_chunks::<B>().0) {
        *weight = float(bytes);
    }
}
