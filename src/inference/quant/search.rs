//! The search for scales: least squares over a grid of roundings.
//!
//! A group of weights shares a scale, and in some types a minimum. Which are best depends on how
//! the weights round, and how they round depends on them. So a grid of scales around the obvious
//! one is tried: each rounds the weights to codes, and for those codes the best scale (and minimum)
//! is the solution of a small linear system, whose error follows from the same sums. What comes out
//! is the scale and minimum of the least error; the codes are not kept, because scales are rounded
//! themselves before the codes are chosen for good.
//!
//! Every weight has an emphasis, how much its error counts. Sums run in eight lanes, so that the
//! loops are vector code on any machine and give the same bits there.

/// Sums are kept in as many lanes.
const LANES: usize = 8;
/// Adding and subtracting it rounds a small f32 to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// `weight = scale * code - min` with `min` at least 0, and the emphasised squared error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) min: f32,
    pub(super) error: f32,
}

/// The scales that a search starts from: `code_max` steps over the range of the weights, or
/// `first`, `first + step`, .. steps more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) n: usize,
    /// Times that a rounding's solution is rounded by again.
    pub(super) n_again: usize,
}

/// The nearest of the codes `0.0 ..= code_max`; 0 for a NaN.
#[inline(always)]
pub(super) fn nearest(x: f32, code_max: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < code_max { x } else { code_max };
    (x + ROUND) - ROUND
}

/// `1 / x`, or 0 where that is no help.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    lanes.iter().sum()
}

/// Sum of `f` over pairs of equal position.
#[inline(always)]
fn sum(x: &[f32], w: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] += f(x[lane], w[lane]);
        }
    }
    total(sums)
}

/// Emphasised sums of codes: `w l`, `w l l` and `w l x`.
#[inline(always)]
fn code_sums(x: &[f32], w: &[f32], code: impl Fn(f32) -> f32) -> (f32, f32, f32) {
    let (mut l1, mut l2, mut lx) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let code = code(x[lane]);
            let weighted = w[lane] * code;
            l1[lane] += weighted;
            l2[lane] += weighted * code;
            lx[lane] += weighted * x[lane];
        }
    }
    (total(l1), total(l2), total(lx))
}

/// Emphasised squared error of `scale * code - min`, each weight rounded to its nearest code.
#[inline(always)]
pub(super) fn affine_error(x: &[f32], w: &[f32], scale: f32, min: f32, code_max: f32) -> f32 {
    let inverse = inverse(scale);
    sum(x, w, |x, w| {
        let miss = scale * nearest((x + min) * inverse, code_max) - min - x;
        w * miss * miss
    })
}

/// Scale and minimum for a group of weights whose emphases are `w`; lengths are multiples of 8.
pub(super) fn affine(x: &[f32], w: &[f32], code_max: u8, grid: Grid) -> Affine {
    let code_max = f32::from(code_max);
    let low = x.iter().fold(0.0f32, |low, &x| low.min(x));
    let high = x.iter().fold(f32::NEG_INFINITY, |high, &x| high.max(x));
    let range = high - low;
    if range.is_nan() || range <= 0.0 {
        return Affine { scale: 0.0, min: -low, error: affine_error(x, w, 0.0, -low, code_max) };
    }
    let (sum_w, sum_x) = (sum(x, w, |_, w| w), sum(x, w, |x, w| w * x));
    let sum_x2 = sum(x, w, |x, w| w * x * x);
    let solve = |scale_inverse: f32, min: f32| {
        let (l1, l2, lx) = code_sums(x, w, |x| nearest((x + min) * scale_inverse, code_max));
        let determinant = sum_w * l2 - l1 * l1;
        if determinant.is_nan() || determinant <= 0.0 {
            return None;
        }
        let min = (l1 * lx - l2 * sum_x) / determinant;
        if min < 0.0 {
            let scale = lx / l2;
            return Some(Affine { scale, min: 0.0, error: sum_x2 - scale * lx });
        }
        let scale = (sum_w * lx - sum_x * l1) / determinant;
        Some(Affine { scale, min, error: sum_x2 - scale * lx + min * sum_x })
    };
    let scale = range / code_max;
    let mut best = Affine { scale, min: -low, error: affine_error(x, w, scale, -low, code_max) };
    for i in 0..=grid.n {
        let steps = code_max + grid.first + grid.step * i as f32;
        let (mut scale_inverse, mut min) = (steps / range, -low);
        for _ in 0..=grid.n_again {
            let Some(found) = solve(scale_inverse, min).filter(|found| found.scale > 0.0) else {
                break;
            };
            if found.error < best.error {
                best = found;
            }
            (scale_inverse, min) = (inverse(found.scale), found.min);
        }
    }
    best
}

/// The scale of `weight = scale * (code - zero)` with codes below `2 * zero`; lengths are multiples
/// of 8. The weight of largest magnitude is near the lowest code, whatever its sign.
pub(super) fn centered(x: &[f32], w: &[f32], zero: u8) -> f32 {
    let farther = |peak: f32, &x: &f32| if x.abs() > peak.abs() { x } else { peak };
    let peak = x.iter().fold(0.0f32, farther);
    let zero = f32::from(zero);
    let (mut best, mut best_gain) = (peak / -zero, 0.0);
    if inverse(best) == 0.0 {
        return 0.0;
    }
    for i in -9..=9 {
        let scale_inverse = -(zero + 0.1 * i as f32) / peak;
        let (_, l2, lx) =
            code_sums(x, w, |x| nearest(x * scale_inverse + zero, 2.0 * zero - 1.0) - zero);
        // The error is that of no weights at all, less the gain.
        if l2 > 0.0 && lx * lx > best_gain * l2 {
            (best, best_gain) = (lx / l2, lx * lx / l2);
        }
    }
    best
}

/// The factor of `value = factor * code` for values that are not negative, whose emphases are `w`,
/// with codes up to `code_max`, which are written to `codes`.
pub(super) fn positive(values: &[f32], w: &[f32], code_max: u8, codes: &mut [u8]) -> f32 {
    let peak = values.iter().fold(0.0f32, |peak, &v| peak.max(v));
    let code_max = f32::from(code_max);
    codes.fill(0);
    if inverse(peak) == 0.0 {
        return 0.0;
    }
    let sums = |code: &dyn Fn(usize) -> f32| {
        let each = values.iter().zip(w).enumerate();
        each.fold((0.0, 0.0), |(l2, lx), (i, (value, w))| {
            let code = code(i);
            (l2 + w * code * code, lx + w * code * value)
        })
    };
    let (mut best_inverse, mut best_gain) = (code_max / peak, 0.0);
    for i in -8..=8 {
        let factor_inverse = (code_max + 0.1 * i as f32) / peak;
        let (l2, lx): (f32, f32) = sums(&|i| nearest(values[i] * factor_inverse, code_max));
        if l2 > 0.0 && lx * lx > best_gain * l2 {
            (best_inverse, best_gain) = (factor_inverse, lx * lx / l2);
        }
    }
    for (code, value) in codes.iter_mut().zip(values) {
        *code = nearest(value * best_inverse, code_max) as u8;
    }
    let (l2, lx) = sums(&|i| f32::from(codes[i]));
    if l2 > 0.0 { lx / l2 } else { 1.0 / best_inverse }
}
