//! Activations rounded to 8 bits, 256 at a time, in the form that the panel kernels read.
//!
//! ```text
//! acts   [n_chunk][n] ActChunk      the columns of a tile lie side by side
//! ```
//!
//! A row is cut into chunks of 256; a short last chunk is filled with zeros, which add nothing.
//! Weights whose scales are floats have one for each 32, and so have the activations they meet.
//! Where a weight's scales are integers under one float, a chunk has one scale, as in llama.cpp's
//! Q8_K: everything below that float is then an exact integer.
//!
//! Sums of the codes stand beside them: they turn a weight's zero point or minimum into a few
//! additions for each block, so that kernels multiply unsigned codes as the file has them. Kernels
//! that multiply signed ones find the activations unsigned (`biased`).

use super::isa::{Isa, with_isa};
use super::panel::{Layout, Scales};
use super::pool::Pool;
use super::shared::SharedMut;
use super::simd::{LANES, Scalar, Simd};

/// Values in a chunk.
pub const CHUNK_LEN: usize = 256;
/// Values under one scale.
pub const BLOCK_LEN: usize = 32;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: usize = CHUNK_LEN / BLOCK_LEN;

/// What makes a signed code an unsigned one.
pub const ACT_BIAS: u8 = 128;

/// How many activations share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActScale {
    /// 32.
    Block,
    /// 256.
    Chunk,
}

impl ActScale {
    /// How activations are rounded that meet weights of this layout.
    pub const fn of(layout: Layout) -> ActScale {
        match layout.scales {
            Scales::Float => ActScale::Block,
            _ => ActScale::Chunk,
        }
    }
}

/// 256 activations: `x[k] = scale[k / 32] * codes[k]`, rounded to the nearest code.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ActChunk {
    /// -127 to 127.
    pub codes: [i8; CHUNK_LEN],
    /// The codes plus [`ACT_BIAS`], two of a block's first half and two of its last in turn: codes
    /// 0, 1, 16, 17, 2, 3, 18 and so on. Written for whom [`Simd::BIASES`] says, under
    /// [`ActScale::Chunk`].
    pub biased: [u8; CHUNK_LEN],
    /// `max |x| / 127` of what shares it: of each block, or the same eight times.
    pub scale: [f32; CHUNK_BLOCKS],
    /// Minus the sum of the codes of each block.
    pub neg_sum: [i32; CHUNK_BLOCKS],
    /// Eight times `neg_sum`: where the sums of 4-bit codes begin that are to fit 16 bits.
    pub neg_sum8: [i32; CHUNK_BLOCKS],
    /// `scale` times the sum of the codes of each block.
    pub sum: [f32; CHUNK_BLOCKS],
    /// The sum of the codes of each block.
    pub code_sum: [i16; CHUNK_BLOCKS],
    /// The sum of each 16 codes.
    pub code_sum16: [i16; 2 * CHUNK_BLOCKS],
    /// The sum of all codes.
    pub whole_sum: i32,
}

impl ActChunk {
    /// All zeros.
    pub const ZERO: ActChunk = ActChunk {
        codes: [0; CHUNK_LEN],
        biased: [ACT_BIAS; CHUNK_LEN],
        scale: [0.0; CHUNK_BLOCKS],
        neg_sum: [0; CHUNK_BLOCKS],
        neg_sum8: [0; CHUNK_BLOCKS],
        sum: [0.0; CHUNK_BLOCKS],
        code_sum: [0; CHUNK_BLOCKS],
        code_sum16: [0; 2 * CHUNK_BLOCKS],
        whole_sum: 0,
    };

    /// Rounds up to 256 values; those past the end of `x` are zero.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn quantize<S: Simd>(&mut self, x: &[f32], per: ActScale) {
        // SAFETY: passed on.
        unsafe {
            if let Ok(x) = x.try_into() {
                return self.quantize_whole::<S>(x, per);
            }
            let mut padded = [0f32; CHUNK_LEN];
            padded[..x.len()].copy_from_slice(x);
            self.quantize_whole::<S>(&padded, per);
        }
    }

    #[inline(always)]
    unsafe fn quantize_whole<S: Simd>(&mut self, x: &[f32; CHUNK_LEN], per: ActScale) {
        let mut max = [0f32; CHUNK_BLOCKS];
        for (max, block) in max.iter_mut().zip(x.as_chunks::<BLOCK_LEN>().0) {
            *max = largest(block);
        }
        if per == ActScale::Chunk {
            max = [max.iter().fold(0f32, |m, &v| m.max(v)); CHUNK_BLOCKS];
        }
        self.scale = max.map(|max| max / 127.0);
        let factors = max.map(|max| if max > 0.0 { 127.0 / max } else { 0.0 });
        let mut sums = [[0; 2]; CHUNK_BLOCKS];
        for b in 0..CHUNK_BLOCKS {
            let (x, out) = (&x[b * BLOCK_LEN..][..BLOCK_LEN], &mut self.codes[b * BLOCK_LEN..]);
            // SAFETY: 32 values and places; the rest is passed on.
            sums[b] = unsafe { S::put_codes(x.as_ptr(), factors[b], out.as_mut_ptr()) };
        }
        for (out, sum) in self.code_sum16.iter_mut().zip(sums.as_flattened()) {
            *out = *sum as i16;
        }
        for (b, [first, last]) in sums.into_iter().enumerate() {
            let sum = first + last;
            self.neg_sum[b] = -sum;
            self.neg_sum8[b] = -8 * sum;
            self.sum[b] = self.scale[b] * sum as f32;
            self.code_sum[b] = sum as i16;
        }
        self.whole_sum = -self.neg_sum.iter().sum::<i32>();
        if S::BIASES && per == ActScale::Chunk {
            self.put_biased();
        }
    }

    /// Writes `biased`.
    #[inline(always)]
    fn put_biased(&mut self) {
        let blocks = self.codes.as_chunks::<BLOCK_LEN>().0;
        for (out, codes) in self.biased.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(blocks) {
            for (i, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let codes = [codes[2 * i], codes[2 * i + 1], codes[16 + 2 * i], codes[17 + 2 * i]];
                *four = codes.map(|code| code.cast_unsigned() ^ ACT_BIAS);
            }
        }
    }
}

/// `max |x|`
#[inline(always)]
fn largest(block: &[f32; BLOCK_LEN]) -> f32 {
    let mut lanes = [0f32; LANES];
    for part in block.as_chunks::<LANES>().0 {
        for (lane, v) in lanes.iter_mut().zip(part) {
            *lane = lane.max(v.abs());
        }
    }
    lanes.iter().fold(0f32, |m, &v| m.max(v))
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
    per: ActScale,
    acts: &mut Vec<ActChunk>,
) {
    make_room(acts, width, x.n);
    let out = SharedMut::new(acts);
    pool.run(x.n, &|col, _| {
        let row = &x.data[col * x.stride..][..width];
        // SAFETY: the instruction set is of this machine, and each task owns its column.
        unsafe { quantize_row(isa, row, per, &out, x.n, col) };
    });
}

/// Makes `acts` long enough for `n` rows of `width`.
pub fn make_room(acts: &mut Vec<ActChunk>, width: usize, n: usize) {
    acts.resize((width.div_ceil(CHUNK_LEN) * n).max(acts.len()), ActChunk::ZERO);
}

/// Rounds a row to column `col` of the `n` of `out`.
///
/// # Safety
/// `isa` comes from [`Isa::available`], and no other thread touches the column.
pub unsafe fn quantize_row(
    isa: Isa,
    row: &[f32],
    per: ActScale,
    out: &SharedMut<ActChunk>,
    n: usize,
    col: usize,
) {
    #[inline(always)]
    unsafe fn quantize<S: Simd>(
        row: &[f32],
        per: ActScale,
        out: &SharedMut<ActChunk>,
        n: usize,
        col: usize,
    ) {
        for (i, x) in row.chunks(CHUNK_LEN).enumerate() {
            // SAFETY: the caller owns this column and keeps the rule of `Simd`.
            unsafe { out.get(i * n + col).quantize::<S>(x, per) };
        }
    }
    // SAFETY: passed on.
    unsafe {
        with_isa!(
            isa,
            quantize(
                row: &[f32],
                per: ActScale,
                out: &SharedMut<ActChunk>,
                n: usize,
                col: usize
            )
        );
    }
}
