//! Rotary frequencies with the scaling that a file asks for: linear, YaRN, or factors per pair.

use std::f64::consts::PI;

use super::hparams::Keys;
use super::{Hparams, ModelError};
use crate::inference::backend::{RopeSpec, RopeStyle};
use crate::inference::gguf::Gguf;

/// Rotations over the original context between which YaRN blends (its paper's alpha and beta).
const YARN_BETA_FAST: f64 = 32.0;
const YARN_BETA_SLOW: f64 = 1.0;

/// The frequencies with base `theta`, scaled as the file says where `scaled` is true.
///
/// # Errors
/// If the file asks for a scaling that is not known, or its keys make no sense.
pub(super) fn rope_spec(
    gguf: &Gguf,
    hparams: &Hparams,
    style: RopeStyle,
    theta: f32,
    scaled: bool,
) -> Result<RopeSpec, ModelError> {
    let keys = Keys::new(gguf, hparams.arch.name);
    let (n_rot, theta) = (hparams.n_rot, f64::from(theta));
    let mut inv_freq: Vec<f64> =
        (0..n_rot / 2).map(|i| theta.powf(-2.0 * i as f64 / n_rot as f64)).collect();
    let mut magnitude = 1.0;
    if scaled {
        let kind = keys.str("rope.scaling.type")?.unwrap_or("linear");
        let factor = match keys.f32("rope.scaling.factor")? {
            None => keys.f32("rope.scale_linear")?,
            factor => factor,
        };
        let factor = f64::from(factor.filter(|&f| f != 0.0).unwrap_or(1.0));
        if factor < 0.0 {
            return Err(keys.bad("rope.scaling.factor", factor, "it must be positive"));
        }
        match kind {
            "none" => {}
            "linear" => inv_freq.iter_mut().for_each(|f| *f /= factor),
            "yarn" => {
                let key = "rope.scaling.original_context_length";
                let n_ctx = keys.count(key, usize::MAX)?.unwrap_or(hparams.n_ctx_train);
                yarn(&mut inv_freq, n_rot, theta, factor, n_ctx as f64);
                magnitude = yarn_magnitude(&keys, factor)?;
            }
            other => {
                let reason = "supported are none, linear and yarn";
                return Err(keys.bad("rope.scaling.type", other, reason));
            }
        }
        magnitude *= f64::from(keys.f32("rope.scaling.attn_factor")?.unwrap_or(1.0));
    }
    for (f, factor) in inv_freq.iter_mut().zip(freq_factors(gguf, n_rot)?) {
        *f /= f64::from(factor);
    }
    Ok(RopeSpec { style, inv_freq, magnitude: magnitude as f32 })
}

/// YaRN (Peng et al., arXiv 2309.00071): pairs that turn often keep their frequency, pairs that
/// turn less than once over the original context are interpolated, those between are blended.
fn yarn(inv_freq: &mut [f64], n_rot: usize, theta: f64, factor: f64, n_ctx: f64) {
    let pair_of =
        |turns: f64| n_rot as f64 * (n_ctx / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let low = pair_of(YARN_BETA_FAST).floor().max(0.0);
    let high = pair_of(YARN_BETA_SLOW).ceil().min(n_rot as f64 - 1.0);
    for (i, f) in inv_freq.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        *f *= keep + (1.0 - keep) / factor;
    }
}

/// YaRN's factor on sine and cosine, `1 + 0.1 ln(factor)`.
fn yarn_magnitude(keys: &Keys<'_>, factor: f64) -> Result<f64, ModelError> {
    let of = |m: f64| {
        if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
    };
    let log_mul = f64::from(keys.f32("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0));
    Ok(if log_mul == 0.0 { of(1.0) } else { of(1.0) / of(log_mul) })
}

/// The factors of `rope_freqs.weight` (Llama 3), or ones.
fn freq_factors(gguf: &Gguf, n_rot: usize) -> Result<Vec<f32>, ModelError> {
    let mut factors = vec![1.0; n_rot / 2];
    if let Some(info) = gguf.tensor("rope_freqs.weight") {
        if info.shape != [n_rot as u64 / 2] {
            return Err(ModelError::Value {
                key: info.name.clone(),
                value: format!("{:?}", info.shape),
                reason: format!("its shape must be [{}]", n_rot / 2),
            });
        }
        gguf.read(info, &mut factors);
    }
    Ok(factors)
}
