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
    // SAFETY: the clamp keeps n within -126..=127 (NaN clamps to NaN, which the cast below would
    // not like, so it is caught first).
    let n = if n.is_nan() { 0 } else { unsafe { n.to_int_unchecked::<i32>() } };
    p * f32::from_bits(((n + 127) << 23).cast_unsigned())
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, as `x / (1 + e^-2u)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * x * (0.044_715 * x).mul_add(x, 1.0);
    x / (1.0 + exp(-2.0 * u))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_activations_follow_their_formulas() {
        for i in -2000..2000 {
            let x = f64::from(i) * 1e-2;
            let silu64 = x / (1.0 + (-x).exp());
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let gelu64 = 0.5 * x * (1.0 + u.tanh());
            assert!((f64::from(silu(x as f32)) - silu64).abs() <= 1e-6 * (1.0 + silu64.abs()));
            assert!((f64::from(gelu(x as f32)) - gelu64).abs() <= 1e-6 * (1.0 + gelu64.abs()));
        }
    }
}
