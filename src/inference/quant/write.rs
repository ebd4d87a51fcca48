//! Writing: a row of weights to the blocks of any type.
//!
//! The importance row is made usable here, once for all types, so that no search divides by a sum
//! of nothing: what counts nothing counts a little.

use super::super_block::{self, RUN_LEN};
use super::{TensorType, k_write, legacy, plain};

/// Whether [`quantize`] can write the type.
pub const fn is_written(ty: TensorType) -> bool {
    use TensorType::{IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS};
    !matches!(ty, IQ3_XXS | IQ3_S | IQ4_NL | IQ4_XS)
}

/// The blocks of one row of weights; `None` for a type that nothing here writes.
///
/// `importance` says of each column how much its error counts (the mean square of what it is
/// multiplied by, say); it need not be finite or positive everywhere. Without it, the types of 32
/// weights have the bits of the reference quantizer wherever the weights are finite and a block's
/// scale is a normal f32; everything else is searched for.
///
/// # Panics
/// Unless `src` is a whole number of blocks, and as long as `importance`.
pub fn quantize(ty: TensorType, src: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
    let n_bytes = ty.row_bytes(src.len());
    assert!(n_bytes.is_some(), "{} weights are not whole {ty} blocks", src.len());
    assert!(importance.is_none_or(|row| row.len() == src.len()), "importance of another width");
    let cleaned = importance.and_then(usable);
    let importance = cleaned.as_deref();
    let bytes = match ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => plain::quantize(ty, src),
        TensorType::Q4_0 => each_block(src, importance, legacy::q4_0::quantize),
        TensorType::Q4_1 => each_block(src, importance, legacy::q4_1::quantize),
        TensorType::Q5_0 => each_block(src, importance, legacy::q5_0::quantize),
        TensorType::Q5_1 => each_block(src, importance, legacy::q5_1::quantize),
        TensorType::Q8_0 => each_block(src, importance, legacy::q8_0::quantize),
        TensorType::Q2_K => each_run(src, importance, k_write::q2_k),
        TensorType::Q3_K => each_run(src, importance, k_write::q3_k),
        TensorType::Q4_K => each_run(src, importance, k_write::q4_k),
        TensorType::Q5_K => each_run(src, importance, k_write::q5_k),
        TensorType::Q6_K => each_run(src, importance, k_write::q6_k),
        TensorType::N4 | TensorType::N3 => k_write::native(ty, src, importance),
        TensorType::IQ3_XXS | TensorType::IQ3_S => return None,
        TensorType::IQ4_NL | TensorType::IQ4_XS => return None,
    };
    debug_assert_eq!(Some(bytes.len()), n_bytes);
    Some(bytes)
}

/// An importance row with which sums stay finite and positive: a column that no text used still
/// counts a little. `None` where it says nothing.
fn usable(importance: &[f32]) -> Option<Vec<f32>> {
    let mean = importance.iter().map(|&i| f64::from(i)).sum::<f64>() / importance.len() as f64;
    let floor = (mean * 1e-4) as f32;
    let is_usable = floor.is_normal() && floor > 0.0 && floor < 1e30;
    is_usable.then(|| importance.iter().map(|&i| i.max(floor)).collect())
}

/// Blocks of 32 weights, each by itself.
fn each_block<const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    quantize: fn(&[f32; 32], Option<&[f32; 32]>) -> [u8; B],
) -> Vec<u8> {
    let blocks = src.as_chunks::<32>().0;
    let Some(importance) = importance else {
        return blocks.iter().flat_map(|block| quantize(block, None)).collect();
    };
    let mean_square = src.iter().map(|x| x * x).sum::<f32>() / src.len().max(1) as f32;
    let each = blocks.iter().zip(importance.as_chunks::<32>().0);
    each.flat_map(|(block, importance)| {
        let mut weights = [0.0; 32];
        super_block::emphasis(block, importance, mean_square, &mut weights);
        quantize(block, Some(&weights))
    })
    .collect()
}

/// Blocks of 256 weights.
fn each_run<const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    quantize: fn(&[f32], Option<&[f32]>) -> [u8; B],
) -> Vec<u8> {
    let starts = (0..src.len()).step_by(RUN_LEN);
    let run = |start: usize| start..start + RUN_LEN;
    starts.flat_map(|at| quantize(&src[run(at)], importance.map(|row| &row[run(at)]))).collect()
}
