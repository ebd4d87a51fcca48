//! Activations rounded to 8 bits, 256 at a time, in the form that the panel kernels read.
//!
//! ```text
//! acts   [n_chunk][n] ActChunk      the columns of a tile lie side by side
//! ```
//!
//! A row is cut into chunks of 256; a short last chunk is filled with zeros, which add nothing.
//! Sums of the codes stand beside them: they turn a weight's zero point or minimum into one
//! addition for each block, so that kernels multiply unsigned codes as the file has them.

use super::isa::{Isa, with_isa};
use super::pool::Pool;
use super::shared::SharedMut;
use super::simd::{LANES, Scalar, Simd};

/// Values in a chunk.
pub const CHUNK_LEN: usize = 256;
/// Values under one scale.
pub const BLOCK_LEN: usize = 32;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: usize = CHUNK_LEN / BLOCK_LEN;

/// 256 activations: `x[k] = scale[k / 32] * codes[k]`, rounded to the nearest code.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ActChunk {
    /// -127 to 127.
    pub codes: [i8; CHUNK_LEN],
    /// `max |x| / 127` of each block.
    pub scale: [f32; CHUNK_BLOCKS],
    /// Minus the sum of the codes of each block.
    pub neg_sum: [i32; CHUNK_BLOCKS],
    /// `scale` times the sum of the codes of each block.
    pub sum: [f32; CHUNK_BLOCKS],
    /// Minus the sum of each 16 codes.
    pub neg_sum16: [i32; 2 * CHUNK_BLOCKS],
    /// `scale` times the sum of each 16 codes.
    pub sum16: [f32; 2 * CHUNK_BLOCKS],
}

impl ActChunk {
    /// All zeros.
    pub const ZERO: ActChunk = ActChunk {
        codes: [0; CHUNK_LEN],
        scale: [0.0; CHUNK_BLOCKS],
        neg_sum: [0; CHUNK_BLOCKS],
        sum: [0.0; CHUNK_BLOCKS],
        neg_sum16: [0; 2 * CHUNK_BLOCKS],
        sum16: [0.0; 2 * CHUNK_BLOCKS],
    };

    /// Rounds up to 256 values; those past the end of `x` are zero.
    #[inline(always)]
    pub fn quantize(&mut self, x: &[f32]) {
        if let Ok(x) = x.try_into() {
            return self.quantize_whole(x);
        }
        let mut padded = [0f32; CHUNK_LEN];
        padded[..x.len()].copy_from_slice(x);
        self.quantize_whole(&padded);
    }

    #[inline(always)]
    fn quantize_whole(&mut self, x: &[f32; CHUNK_LEN]) {
        for (b, block) in x.as_chunks::<BLOCK_LEN>().0.iter().enumerate() {
            let mut lanes = [0f32; LANES];
            for part in block.as_chunks::<LANES>().0 {
                for (lane, v) in lanes.iter_mut().zip(part) {
                    *lane = lane.max(v.abs());
                }
            }
            let max = lanes.iter().fold(0f32, |m, &v| m.max(v));
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            let scale = max / 127.0;
            let mut codes = [0i32; BLOCK_LEN];
            for (code, v) in codes.iter_mut().zip(block) {
                // 1.5 * 2^23 leaves the nearest whole number in the low bits of the sum, ties to
                // even: |v * inverse| is 127 at most, up to a rounding. NaN becomes some code.
                let rounded = v * inverse + 12_582_912.0;
                *code = (rounded.to_bits().cast_signed() - 0x4B40_0000).clamp(-127, 127);
            }
            for (out, &code) in self.codes[b * BLOCK_LEN..][..BLOCK_LEN].iter_mut().zip(&codes) {
                *out = code as i8;
            }
            let (first, second) = codes.split_at(BLOCK_LEN / 2);
            let sums = [first.iter().sum::<i32>(), second.iter().sum::<i32>()];
            self.scale[b] = scale;
            self.neg_sum[b] = -(sums[0] + sums[1]);
            self.sum[b] = scale * (sums[0] + sums[1]) as f32;
            for (half, sum) in sums.into_iter().enumerate() {
                self.neg_sum16[2 * b + half] = -sum;
                self.sum16[2 * b + half] = scale * sum as f32;
            }
        }
    }
}

/// Activations `[n, stride]`, f32; what lies between a row's width and the stride is zero.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Values from one row to the next.
    pub stride: usize,
    /// Rows.
    pub n: usize,
}

/// Rounds `x` to 8 bits, `[n_chunk][n]`.
pub fn quantize_rows(
    pool: &mut Pool,
    isa: Isa,
    x: Rows<'_>,
    width: usize,
    acts: &mut Vec<ActChunk>,
) {
    let n_chunk = width.div_ceil(CHUNK_LEN);
    acts.resize((n_chunk * x.n).max(acts.len()), ActChunk::ZERO);
    let out = SharedMut::new(acts);
    pool.run(x.n, &|col, _| {
        let row = &x.data[col * x.stride..][..width];
        // SAFETY: the instruction set is of this machine, and each task owns its column.
        unsafe { quantize_row(isa, row, &out, x.n, col) };
    });
}

unsafe fn quantize_row(isa: Isa, row: &[f32], out: &SharedMut<ActChunk>, n: usize, col: usize) {
    #[inline(always)]
    unsafe fn quantize<S: Simd>(row: &[f32], out: &SharedMut<ActChunk>, n: usize, col: usize) {
        for (i, x) in row.chunks(CHUNK_LEN).enumerate() {
            // SAFETY: the caller owns this column.
            unsafe { out.get(i * n + col) }.quantize(x);
        }
    }
    // SAFETY: passed on.
    unsafe {
        with_isa!(
            isa,
            quantize(row: &[f32], out: &SharedMut<ActChunk>, n: usize, col: usize)
        );
    }
}
