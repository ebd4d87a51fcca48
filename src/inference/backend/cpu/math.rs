//! Functions of one number, written so that a loop over them vectorises and every instruction set
//! gives the same bits.

/// `e^x`, within 2 ulp for `-87 <= x <= 88` and clamped outside.
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`; a degree-6 Taylor polynomial of `e^r` times `2^n`, with
/// `ln 2` in two parts (Cody and Waite) so that `r` stays exact.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0f32 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, c);
    }
    // The clamp keeps n within -126..=127; of NaN it makes NaN, which the cast would not survive.
    let n = if n.is_nan() { 0.0 } else { n };
    // SAFETY: a whole number within i32, as said above.
    let n = unsafe { n.to_int_unchecked::<i32>() };
    p * f32::from_bits(((n + 127) << 23).cast_unsigned())
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, as `x / (1 + e^-2u)`, with argument and
/// value rounded to f16 between -10 and 10.
///
/// The rounding is llama.cpp's, which looks the function up in a table: models that people have
/// measured were measured with it, and without it logits differ by more than 1e-3.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let h = round_to_f16(x);
    let u = SQRT_2_OVER_PI * h * (0.044_715 * h).mul_add(h, 1.0);
    let inside = round_to_f16(h / (1.0 + exp(-2.0 * u)));
    let outside = if x > 0.0 { x } else { 0.0 };
    if x > -10.0 && x < 10.0 { inside } else { outside }
}

/// `tanh x`, as `1 - 2 / (e^2x + 1)`: absolute error of about one ulp of 1.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The nearest number with the 11 bits of an f16, for magnitudes below 2^15.
#[inline(always)]
fn round_to_f16(x: f32) -> f32 {
    // Veltkamp's split keeps the upper bits; below the smallest normal f16 the last bit is 2^-24,
    // which adding 0.75 moves to the end of the mantissa.
    let c = x * 8193.0;
    let normal = c - (c - x);
    let subnormal = (x + 0.75) - 0.75;
    if x.abs() < 6.103_515_6e-5 { subnormal } else { normal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_near_and_ends_at_one() {
        for i in -20_000..20_000 {
            let x = i as f32 * 1e-3;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 3e-7, "tanh({x})");
        }
        assert_eq!((tanh(1e30), tanh(-1e30)), (1.0, -1.0));
    }

    #[test]
    fn exp_is_within_two_ulp_and_clamped() {
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}): relative error {error}");
        }
        assert!(exp(-1e30) > 0.0 && exp(-1e30) < 1e-37);
        assert!(exp(1e30).is_finite());
    }

    #[test]
    fn rounding_to_f16_is_that_of_the_half_crate() {
        for i in -100_000..100_000 {
            let x = i as f32 * 9.7e-5 + 1.3e-8;
            assert_eq!(round_to_f16(x), half::f16::from_f32(x).to_f32(), "{x}");
            let tiny = x * 1e-6;
            assert_eq!(round_to_f16(tiny), half::f16::from_f32(tiny).to_f32(), "{tiny}");
        }
    }

    #[test]
    fn the_activations_follow_their_formulas() {
        for i in -2000..2000 {
            let x = f64::from(i) * 1e-2;
            let silu64 = x / (1.0 + (-x).exp());
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let gelu64 = 0.5 * x * (1.0 + u.tanh());
            assert!((f64::from(silu(x as f32)) - silu64).abs() <= 1e-6 * (1.0 + silu64.abs()));
            // f16 has 11 bits, before and after.
            assert!(
                (f64::from(gelu(x as f32)) - gelu64).abs()
                    <= 1e-3 * (1e-3 + gelu64.abs()).max(x.abs())
            );
        }
    }
}
