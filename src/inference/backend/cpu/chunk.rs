//! Chunks: 256 values of a row in the form that the inner loops read.
//!
//! A weight row and an activation row are cut into chunks of 256; a short last chunk is filled
//! with zeros, which add nothing. Weights are expanded on the fly (see `quant::expand`), a few
//! rows at a time, so what streams from memory is the file's own compact form.

use super::simd::{LANES, Simd};
use crate::inference::quant::{Codes, TensorType, expand, expand_signed};

/// Values in a chunk.
pub const CHUNK_LEN: usize = 256;
/// Weights under one activation scale.
pub const BLOCK_LEN: usize = 32;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: usize = CHUNK_LEN / BLOCK_LEN;

/// 256 weights: `weight[k] = scale[k / 16] * codes[k] - min[k / 16]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct WeightChunk {
    /// Unsigned, at most 63, or signed, as the type has it.
    pub codes: [u8; CHUNK_LEN],
    /// A scale for each 16 weights.
    pub scale: [f32; 2 * CHUNK_BLOCKS],
    /// What each 16 weights subtract; zeros where codes are signed.
    pub min: [f32; 2 * CHUNK_BLOCKS],
}

impl WeightChunk {
    /// All zeros.
    pub const ZERO: WeightChunk = WeightChunk {
        codes: [0; CHUNK_LEN],
        scale: [0.0; 2 * CHUNK_BLOCKS],
        min: [0.0; 2 * CHUNK_BLOCKS],
    };
}

/// 256 activations: `x[k] = scale[k / 32] * codes[k]`, rounded to the nearest code.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ActChunk {
    /// -127 to 127.
    pub codes: [i8; CHUNK_LEN],
    /// `max |x| / 127` of each block.
    pub scale: [f32; CHUNK_BLOCKS],
    /// `scale` times the sum of the codes, for each 16 values.
    pub sums: [f32; 2 * CHUNK_BLOCKS],
}

impl ActChunk {
    /// All zeros.
    pub const ZERO: ActChunk = ActChunk {
        codes: [0; CHUNK_LEN],
        scale: [0.0; CHUNK_BLOCKS],
        sums: [0.0; 2 * CHUNK_BLOCKS],
    };

    /// Rounds up to 256 values; those past the end of `x` are zero.
    #[inline(always)]
    pub fn quantize(&mut self, x: &[f32]) {
        let mut padded = [0f32; CHUNK_LEN];
        padded[..x.len()].copy_from_slice(x);
        for (b, block) in padded.as_chunks::<BLOCK_LEN>().0.iter().enumerate() {
            let mut lanes = [0f32; LANES];
            for (k, v) in block.iter().enumerate() {
                lanes[k % LANES] = lanes[k % LANES].max(v.abs());
            }
            let max = lanes.iter().fold(0f32, |m, &v| m.max(v));
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            self.scale[b] = max / 127.0;
            let codes = &mut self.codes[b * BLOCK_LEN..][..BLOCK_LEN];
            for (code, v) in codes.iter_mut().zip(block) {
                *code = (v * inverse).round_ties_even() as i32 as i8;
            }
            for half in 0..2 {
                let sum: i32 = codes[16 * half..][..16].iter().map(|&c| i32::from(c)).sum();
                self.sums[2 * b + half] = self.scale[b] * sum as f32;
            }
        }
    }
}

/// A tensor type as a type, so that a kernel is compiled for it.
pub trait Format: Copy {
    /// Which.
    const TYPE: TensorType;
    /// Whether its codes are signed, and have no minimum.
    const SIGNED: bool = matches!(Codes::of(Self::TYPE), Codes::Signed);

    /// Expands `src`, the bytes of at most 256 weights, into `out`, whose rest stays as it is.
    #[inline(always)]
    fn expand(src: &[u8], out: &mut WeightChunk) {
        let n_blocks = src.len() / Self::TYPE.block_bytes() * Self::TYPE.block_len() / BLOCK_LEN;
        if n_blocks == CHUNK_BLOCKS {
            // The usual case, with a constant count, so that shifts and fields become constants.
            for b in 0..CHUNK_BLOCKS {
                Self::expand_block(src, b, out);
            }
        } else {
            for b in 0..n_blocks {
                Self::expand_block(src, b, out);
            }
        }
    }

    /// Expands block `b`.
    #[inline(always)]
    fn expand_block(src: &[u8], b: usize, out: &mut WeightChunk) {
        let codes = &mut out.codes[b * BLOCK_LEN..][..BLOCK_LEN];
        if Self::SIGNED {
            let block = expand_signed(Self::TYPE, src, b);
            codes.copy_from_slice(&block.codes.map(i8::cast_unsigned));
            out.scale[2 * b..][..2].copy_from_slice(&block.scale);
        } else {
            let block = expand(Self::TYPE, src, b);
            codes.copy_from_slice(&block.codes);
            out.scale[2 * b..][..2].copy_from_slice(&block.scale);
            out.min[2 * b..][..2].copy_from_slice(&block.min);
        }
    }
}

/// Running sums of a tile of `R` weight rows and `C` activation columns.
///
/// The order of the sums is the same for every `R`, `C`, thread and chunk of the prompt: lane by
/// lane over the blocks, then across lanes; so a token's numbers do not depend on its company.
#[derive(Clone, Copy)]
pub struct Tile<S: Simd, const R: usize, const C: usize> {
    products: [[S::F; C]; R],
    minima: [[S::F; C]; R],
}

impl<S: Simd, const R: usize, const C: usize> Tile<S, R, C> {
    /// Zero.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn new() -> Self {
        // SAFETY: the caller keeps the rule of `Simd`.
        let zero = unsafe { S::splat(0.0) };
        Tile { products: [[zero; C]; R], minima: [[zero; C]; R] }
    }

    /// Adds a chunk of each row times a chunk of each column.
    ///
    /// # Safety
    /// As [`Simd`]; the pointers are to live chunks.
    #[inline(always)]
    pub unsafe fn add<const SIGNED: bool>(
        &mut self,
        w: [*const WeightChunk; R],
        a: [*const ActChunk; C],
    ) {
        // SAFETY: the caller vouches for the chunks and keeps the rule of `Simd`; the offsets stay
        // inside the arrays of a chunk.
        unsafe {
            for b in 0..CHUNK_BLOCKS {
                let codes = a.map(|a| S::load_codes((*a).codes.as_ptr().add(b * BLOCK_LEN).cast()));
                let a_scale = a.map(|a| S::splat((*a).scale[b]));
                for r in 0..R {
                    let weights = S::load_codes((*w[r]).codes.as_ptr().add(b * BLOCK_LEN));
                    let w_scale = S::load_pair((*w[r]).scale.as_ptr().add(2 * b));
                    for c in 0..C {
                        let dot = S::dot::<SIGNED>(weights, codes[c]);
                        let scale = S::mul(w_scale, a_scale[c]);
                        self.products[r][c] = S::fma(dot, scale, self.products[r][c]);
                    }
                }
            }
            if SIGNED {
                return;
            }
            for part in (0..2 * CHUNK_BLOCKS).step_by(LANES) {
                for r in 0..R {
                    let min = S::load((*w[r]).min.as_ptr().add(part));
                    for c in 0..C {
                        let sums = S::load((*a[c]).sums.as_ptr().add(part));
                        self.minima[r][c] = S::fma(min, sums, self.minima[r][c]);
                    }
                }
            }
        }
    }

    /// The dot product of row `r` and column `c`.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn sum<const SIGNED: bool>(&self, r: usize, c: usize) -> f32 {
        // SAFETY: the caller keeps the rule of `Simd`.
        unsafe {
            let products = S::sum(self.products[r][c]);
            if SIGNED { products } else { products - S::sum(self.minima[r][c]) }
        }
    }
}
