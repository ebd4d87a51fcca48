//! 4-bit keys and values: rotated, then rounded to 16 steps under a scale for each 32.
//!
//! ```text
//! rotation   x' = H x / sqrt(n)    H: Hadamard's matrix of n, the largest power of two in head_dim,
//!                                  at most 256
//! block      32 values (the last of a head may be fewer): x' = scale * (code - 8)
//! bytes      value j of a block low, value j + len / 2 high; 16 bytes of a block, then the next
//! ```
//!
//! A few channels of a key are far larger than the rest; rounded as they are, they take all the
//! steps. The rotation spreads them over every channel. It is its own inverse and keeps products,
//! `q' . k' = q . k`, so queries are rotated to meet the keys, and what was summed of the values is
//! rotated back. Chee et al., QuIP (2023), use rotations for weights, llama.cpp for its 4-bit cache.

use half::f16;

use super::kv_cache::BLOCK_LEN;

/// Values that are rotated together, at most.
pub const ROTATION_MAX: usize = 256;
/// The code of zero.
const ZERO: f32 = 8.0;
/// Scales that are tried, as parts of the one that reaches the largest value.
const SHRINKS: [f32; 5] = [1.0, 0.95, 0.9, 0.85, 0.8];

/// Rotates values of heads of `head_dim`, from the beginning of a head or a whole number of
/// [`ROTATION_MAX`] after it; or rotates them back.
#[inline(always)]
pub fn rotate(x: &mut [f32], head_dim: usize) {
    let n = (1usize << head_dim.trailing_zeros()).min(ROTATION_MAX);
    let factor = 1.0 / (n as f32).sqrt();
    for x in x.chunks_exact_mut(n) {
        let mut half = 1;
        while half < n {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Rounds at most 32 values, an even number, to bytes; the scale.
pub fn pack(x: &[f32], bytes: &mut [u8; BLOCK_LEN / 2]) -> f16 {
    let far = x.iter().fold(0f32, |far, v| if v.abs() > far.abs() { *v } else { far });
    let (mut best, mut best_error) = (f16::ZERO, f32::INFINITY);
    for shrink in SHRINKS {
        // The largest value is at -8, which 16 steps reach and 8 do not.
        let limit = f16::MAX.to_f32();
        let scale = f16::from_f32((far * shrink / -ZERO).clamp(-limit, limit));
        let (step, inverse) = (scale.to_f32(), inverse(scale));
        let miss = |x: &f32| {
            let miss = x - step * (f32::from(code(*x, inverse)) - ZERO);
            miss * miss
        };
        let error = x.iter().map(miss).sum::<f32>();
        if error < best_error {
            (best, best_error) = (scale, error);
        }
    }
    let inverse = inverse(best);
    let (low, high) = x.split_at(x.len() / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = code(*low, inverse) | code(*high, inverse) << 4;
    }
    best
}

fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// The nearest code; NaN becomes 0.
#[inline(always)]
fn code(x: f32, inverse: f32) -> u8 {
    (x * inverse + ZERO).round_ties_even().clamp(0.0, 15.0) as u8
}

/// The values of a byte, low and high, under a scale.
#[inline(always)]
pub fn unpack(byte: u8, scale: f32) -> (f32, f32) {
    let value = |code: u8| scale * (f32::from(code) - ZERO);
    (value(byte & 15), value(byte >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 211) as f32 - 105.0) / 64.0).collect()
    }

    #[test]
    fn a_rotation_is_its_own_inverse_and_keeps_products() {
        for head_dim in [8, 64, 80, 96, 128, 256] {
            let (x, y) = (wave(head_dim), wave(head_dim).into_iter().rev().collect::<Vec<_>>());
            let (mut turned_x, mut turned_y) = (x.clone(), y.clone());
            rotate(&mut turned_x, head_dim);
            rotate(&mut turned_y, head_dim);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            assert!((dot(&x, &y) - dot(&turned_x, &turned_y)).abs() < 1e-3);
            rotate(&mut turned_x, head_dim);
            assert!(x.iter().zip(&turned_x).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn rounding_is_within_half_a_step_unless_a_smaller_step_is_better_for_all() {
        let x = wave(32);
        let mut bytes = [0; 16];
        let scale = pack(&x, &mut bytes).to_f32();
        let far = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let mut error = 0.0;
        for (i, byte) in bytes.iter().enumerate() {
            let (low, high) = unpack(*byte, scale);
            error += (low - x[i]).powi(2) + (high - x[i + 16]).powi(2);
        }
        let half_steps = 32.0 * (far / 8.0 * 0.5).powi(2);
        assert!(error <= half_steps, "{error} {half_steps}");
    }

    #[test]
    fn blocks_of_zeros_of_huge_values_and_of_nonsense_are_bytes_under_a_finite_scale() {
        let mut bytes = [9; 16];
        assert_eq!(pack(&[0.0; 32], &mut bytes), f16::ZERO);
        assert!(pack(&[1e30, -1e30], &mut bytes).is_finite());
        assert!(pack(&[f32::NAN; 32], &mut bytes).is_finite());
    }
}
