//! A run of groups that share one f16 factor: their integer scales and their codes.
//!
//! ```text
//! 1  for each group, scale (and minimum) of least error     search
//! 2  a factor for the scales, one for the minima             weighted by what the group weighs
//! 3  codes, rounded with the scales that are really stored
//! 4  only where asked: choose the integers again among their neighbours, then both factors by
//!    least squares over the whole run, then the codes, for as long as the error falls
//! ```
//!
//! What a weight's error counts is its importance, or 1 without an importance row; for the K-quants
//! times `sqrt(s2 + weight^2)`, where s2 is twice the mean square over the run: large weights count
//! more, but none counts nothing.

use half::f16;

use super::search::{Affine, Grid, affine, affine_error, centered, inverse, nearest, positive};

/// Weights of a whole run.
pub(super) const RUN_LEN: usize = 256;
/// Groups of a run, at most.
pub(super) const GROUPS_MAX: usize = 16;

/// A type whose weights are `d * scale * code - dmin * min`.
#[derive(Clone, Copy, Debug)]
pub(super) struct AffineSpec {
    /// Weights that share a scale: 16 or 32.
    pub(super) group_len: usize,
    /// The largest code.
    pub(super) code_max: u8,
    /// The largest integer scale and minimum.
    pub(super) scale_max: u8,
    /// Whether the error of a large weight counts more than that of a small one.
    pub(super) large_counts_more: bool,
    /// Rounds of step 4.
    pub(super) n_refine: usize,
    /// Where the search looks.
    pub(super) grid: Grid,
}

/// A run in integers.
#[derive(Clone, Debug)]
pub(super) struct AffineRun {
    /// f16 bits of the scales' factor.
    pub(super) d: u16,
    /// f16 bits of the minima's factor.
    pub(super) dmin: u16,
    /// Integer scales, one for each group.
    pub(super) scale: [u8; GROUPS_MAX],
    /// Integer minima.
    pub(super) min: [u8; GROUPS_MAX],
    /// Codes in the order of the weights.
    pub(super) codes: [u8; RUN_LEN],
}

/// A type whose weights are `d * scale * (code - zero)`, 16 of them to a scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct CenteredSpec {
    /// The code of a weight that is 0.
    pub(super) zero: u8,
    /// Integer scales run from `-scale_zero` to `scale_zero - 1`.
    pub(super) scale_zero: u8,
}

/// A run in integers.
#[derive(Clone, Debug)]
pub(super) struct CenteredRun {
    /// f16 bits of the scales' factor.
    pub(super) d: u16,
    /// Integer scales.
    pub(super) scale: [i8; GROUPS_MAX],
    /// Codes in the order of the weights.
    pub(super) codes: [u8; RUN_LEN],
}

/// Mean square of the weights.
fn mean_square(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>() / x.len().max(1) as f32
}

/// `importance * sqrt(floor + weight^2)`: what the error of each weight counts.
pub(super) fn emphasis(x: &[f32], importance: &[f32], floor: f32, out: &mut [f32]) {
    for ((out, x), importance) in out.iter_mut().zip(x).zip(importance) {
        *out = importance * (floor + x * x).sqrt();
    }
}

/// The f16 nearest to a factor, kept finite.
fn f16_of(factor: f32) -> f16 {
    let bits = f16::from_f32(factor);
    if bits.is_finite() { bits } else { f16::MAX.copysign(bits) }
}

/// Step 3 for one group.
fn write_codes(x: &[f32], scale: f32, min: f32, code_max: u8, codes: &mut [u8]) {
    let (inverse, code_max) = (inverse(scale), f32::from(code_max));
    for (code, x) in codes.iter_mut().zip(x) {
        *code = nearest((x + min) * inverse, code_max) as u8;
    }
}

/// The integers for a run of up to 256 weights, whole groups.
pub(super) fn affine_run(spec: AffineSpec, x: &[f32], importance: Option<&[f32]>) -> AffineRun {
    let (len, n) = (spec.group_len, x.len() / spec.group_len);
    let mut w = [0.0; RUN_LEN];
    let importance = importance.unwrap_or(&[1.0; RUN_LEN]);
    if spec.large_counts_more {
        emphasis(x, importance, 2.0 * mean_square(x), &mut w);
    } else {
        w[..x.len()].copy_from_slice(&importance[..x.len()]);
    }
    let w = &w[..x.len()];
    let mut fits = [Affine::default(); GROUPS_MAX];
    for (fit, (x, w)) in fits.iter_mut().zip(x.chunks_exact(len).zip(w.chunks_exact(len))) {
        *fit = affine(x, w, spec.code_max, spec.grid);
    }
    let (scales, mins) = (fits.map(|fit| fit.scale), fits.map(|fit| fit.min));
    let mut group_w = [0.0; GROUPS_MAX];
    group_w.iter_mut().zip(w.chunks_exact(len)).for_each(|(sum, w)| *sum = w.iter().sum());
    let (mut scale, mut min) = ([0; GROUPS_MAX], [0; GROUPS_MAX]);
    let d = f16_of(positive(&scales[..n], &group_w[..n], spec.scale_max, &mut scale[..n]));
    let dmin = f16_of(positive(&mins[..n], &group_w[..n], spec.scale_max, &mut min[..n]));
    let mut run =
        AffineRun { d: d.to_bits(), dmin: dmin.to_bits(), scale, min, codes: [0; RUN_LEN] };
    run.round(spec, x);
    if spec.n_refine > 0 {
        run.refine(spec, x, w);
    }
    run
}

impl AffineRun {
    fn factors(&self) -> (f32, f32) {
        (f16::from_bits(self.d).to_f32(), f16::from_bits(self.dmin).to_f32())
    }

    /// Chooses the codes for the scales and minima at hand.
    fn round(&mut self, spec: AffineSpec, x: &[f32]) {
        let (d, dmin) = self.factors();
        let groups = x.chunks_exact(spec.group_len);
        for (i, (x, codes)) in groups.zip(self.codes.chunks_exact_mut(spec.group_len)).enumerate() {
            let (scale, min) = (d * f32::from(self.scale[i]), dmin * f32::from(self.min[i]));
            write_codes(x, scale, min, spec.code_max, codes);
        }
    }

    /// Emphasised squared error with the scales and minima at hand.
    fn error(&self, spec: AffineSpec, x: &[f32], w: &[f32]) -> f32 {
        let (d, dmin) = self.factors();
        let groups = x.chunks_exact(spec.group_len).zip(w.chunks_exact(spec.group_len));
        let each = groups.enumerate().map(|(i, (x, w))| {
            let (scale, min) = (d * f32::from(self.scale[i]), dmin * f32::from(self.min[i]));
            affine_error(x, w, scale, min, f32::from(spec.code_max))
        });
        each.sum()
    }

    /// Step 4.
    fn refine(&mut self, spec: AffineSpec, x: &[f32], w: &[f32]) {
        let mut best_error = self.error(spec, x, w);
        for _ in 0..spec.n_refine {
            let mut next = self.clone();
            next.choose_neighbours(spec, x, w);
            next.round(spec, x);
            next.solve_factors(spec, x, w);
            let error = next.error(spec, x, w);
            if error.is_nan() || error >= best_error {
                // The neighbours alone cannot be worse.
                (next.d, next.dmin) = (self.d, self.dmin);
                let error = next.error(spec, x, w);
                if error < best_error {
                    *self = next;
                }
                break;
            }
            (*self, best_error) = (next, error);
        }
        self.round(spec, x);
    }

    /// For each group, the integer scale and minimum of least error near those at hand.
    fn choose_neighbours(&mut self, spec: AffineSpec, x: &[f32], w: &[f32]) {
        let (d, dmin) = self.factors();
        let near = |at: u8| at.saturating_sub(2)..=(at + 2).min(spec.scale_max);
        let groups = x.chunks_exact(spec.group_len).zip(w.chunks_exact(spec.group_len));
        for (i, (x, w)) in groups.enumerate() {
            let mut best = (f32::INFINITY, self.scale[i], self.min[i]);
            for scale in near(self.scale[i]) {
                for min in near(self.min[i]) {
                    let (s, m) = (d * f32::from(scale), dmin * f32::from(min));
                    let error = affine_error(x, w, s, m, f32::from(spec.code_max));
                    if error < best.0 {
                        best = (error, scale, min);
                    }
                }
            }
            (_, self.scale[i], self.min[i]) = best;
        }
    }

    /// Both factors by least squares over the run, for the integers at hand.
    fn solve_factors(&mut self, spec: AffineSpec, x: &[f32], w: &[f32]) {
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            let group = i / spec.group_len;
            let a = f64::from(self.scale[group]) * f64::from(self.codes[i]);
            let (b, x, w) = (-f64::from(self.min[group]), f64::from(*x), f64::from(*w));
            aa += w * a * a;
            ab += w * a * b;
            bb += w * b * b;
            ax += w * a * x;
            bx += w * b * x;
        }
        let determinant = aa * bb - ab * ab;
        let (d, dmin) = if determinant > 1e-9 * aa * bb {
            ((ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant)
        } else if aa > 0.0 {
            (ax / aa, f64::from(self.factors().1))
        } else {
            return;
        };
        if d > 0.0 && dmin >= 0.0 {
            self.d = f16_of(d as f32).to_bits();
            self.dmin = f16_of(dmin as f32).to_bits();
        }
    }
}

/// The integers for a run of 256 weights.
pub(super) fn centered_run(
    spec: CenteredSpec,
    x: &[f32],
    importance: Option<&[f32]>,
) -> CenteredRun {
    let mut w = [0.0; RUN_LEN];
    let importance = importance.unwrap_or(&[1.0; RUN_LEN]);
    if spec.zero < 32 {
        emphasis(x, importance, 2.0 * mean_square(x), &mut w);
    } else {
        // With fine codes, the importance alone is the better guide.
        w[..x.len()].copy_from_slice(importance);
    }
    let (mut scales, mut group_w) = ([0f32; GROUPS_MAX], [0f32; GROUPS_MAX]);
    for (i, (x, w)) in x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0).enumerate() {
        scales[i] = centered(x, w, spec.zero);
        group_w[i] = w.iter().sum();
    }
    let farther = |peak: f32, &s: &f32| if s.abs() > peak.abs() { s } else { peak };
    let peak = scales.iter().fold(0.0f32, farther);
    let scale_zero = f32::from(spec.scale_zero);
    let factor = if spec.scale_zero <= 32 {
        centered(&scales, &group_w, spec.scale_zero)
    } else {
        peak / -scale_zero
    };
    let d = f16_of(factor);
    let inverse_d = inverse(d.to_f32());
    let scale = scales
        .map(|s| (nearest(s * inverse_d + scale_zero, 2.0 * scale_zero - 1.0) - scale_zero) as i8);
    let mut run = CenteredRun { d: d.to_bits(), scale, codes: [0; RUN_LEN] };
    let groups = x.as_chunks::<16>().0.iter().zip(run.codes.as_chunks_mut::<16>().0);
    for ((x, codes), scale) in groups.zip(scale) {
        let inverse = inverse(d.to_f32() * f32::from(scale));
        let zero = f32::from(spec.zero);
        for (code, x) in codes.iter_mut().zip(x) {
            *code = nearest(x * inverse + zero, 2.0 * zero - 1.0) as u8;
        }
    }
    run
}
