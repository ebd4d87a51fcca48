//! Matrix multiplication: weight rows of any type times activation columns, `out = W x + bias`.
//!
//! ```text
//! task           a run of weight rows, taken by one thread
//! row block      rows whose expansion fits the L2 cache; 4 when there are few columns
//! column tile    a few columns, whose activations stay in L1
//! tile           4 rows x a few columns, whose sums stay in registers, over the whole row
//! ```
//!
//! Quantised weights meet activations rounded to 8 bits (`chunk`); float weights are widened and
//! meet the activations as they are. Decode and prefill are the same code with other block sizes,
//! and every dot product is summed in the same order in both.

use super::chunk::{ActChunk, CHUNK_LEN, Format, Tile, WeightChunk};
use super::isa::{Isa, with_isa};
use super::pool::Pool;
use super::shared::{PerWorker, SharedMut};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{LANES, Scalar, Simd};
use crate::inference::quant::{Codes, TensorType, dequantize};

/// Rows of a tile.
const TILE_ROWS: usize = 4;
/// Bytes of expanded weights that a thread keeps at a time.
const ROW_BLOCK_BYTES: usize = 384 << 10;
/// Columns up to which a row block is one tile high: nothing would be reused.
const FEW_COLUMNS: usize = 8;

/// A weight matrix `[n_rows, n_cols]` in the file's form.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Tensor type of the rows.
    pub ty: TensorType,
    /// The rows, one after another.
    pub data: &'a [u8],
    /// Rows.
    pub n_rows: usize,
    /// Values in a row.
    pub n_cols: usize,
}

impl Matrix<'_> {
    fn row_bytes(&self) -> usize {
        self.data.len() / self.n_rows
    }

    fn n_chunk(&self) -> usize {
        self.n_cols.div_ceil(CHUNK_LEN)
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

/// Scratch of one thread.
#[derive(Default)]
pub struct Scratch {
    chunks: Vec<WeightChunk>,
    floats: Vec<f32>,
}

/// What every task of a multiplication reads.
struct Job<'a> {
    w: Matrix<'a>,
    x: Rows<'a>,
    /// `[n_chunk][n]`: the columns of a tile lie side by side.
    acts: &'a [ActChunk],
    bias: Option<&'a [f32]>,
    out: SharedMut<f32>,
    out_stride: usize,
}

impl Job<'_> {
    /// # Safety
    /// No other thread writes the same place.
    #[inline(always)]
    unsafe fn write(&self, row: usize, col: usize, sum: f32) {
        let bias = self.bias.map_or(0.0, |b| b[row]);
        // SAFETY: the caller owns this place.
        unsafe { self.out.write(col * self.out_stride + row, sum + bias) };
    }
}

type RowsFn = unsafe fn(&Job<'_>, usize, usize, &mut Scratch);

/// Rounds `x` to 8 bits for [`matmul`], `[n_chunk][n]`.
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

/// `out[col][row] = w[row] . x[col] + bias[row]`, with `out` `[x.n, out_stride]`.
///
/// `acts` is [`quantize_rows`] of `x` where [`needs_acts`] says so, else unused.
#[allow(clippy::too_many_arguments)] // the operands of one operation
pub fn matmul(
    pool: &mut Pool,
    isa: Isa,
    scratch: &PerWorker<Scratch>,
    w: Matrix<'_>,
    x: Rows<'_>,
    acts: &[ActChunk],
    bias: Option<&[f32]>,
    out: &mut [f32],
    out_stride: usize,
) {
    assert!(x.n == 0 || out.len() >= (x.n - 1) * out_stride + w.n_rows);
    assert!(x.data.len() >= x.n * x.stride && x.stride >= w.n_cols);
    assert!(!needs_acts(w.ty) || acts.len() >= w.n_chunk() * x.n);
    assert!(w.n_cols % w.ty.block_len() == 0 && w.row_bytes() * w.n_rows == w.data.len());
    let rows_fn = rows_fn(isa, w.ty);
    let job = Job { w, x, acts, bias, out: SharedMut::new(out), out_stride };
    // Enough tasks to even out the threads, few enough that each streams a long run.
    let task_rows = (w.n_rows / (pool.n_threads() * 8)).next_multiple_of(TILE_ROWS);
    let task_rows = task_rows.max(4 * TILE_ROWS);
    pool.run(w.n_rows.div_ceil(task_rows), &|task_idx, worker_idx| {
        let start = task_idx * task_rows;
        let end = (start + task_rows).min(w.n_rows);
        // SAFETY: a worker runs one task at a time and tasks own disjoint rows; the instruction
        // set is of this machine.
        unsafe { rows_fn(&job, start, end, scratch.get(worker_idx)) };
    });
}

/// Whether weights of this type meet activations rounded to 8 bits.
pub fn needs_acts(ty: TensorType) -> bool {
    !matches!(Codes::of(ty), Codes::Float)
}

/// Rows of a row block for rows of `row_bytes` expanded bytes and `n` columns.
fn row_block(row_bytes: usize, n: usize) -> usize {
    if n <= FEW_COLUMNS {
        return TILE_ROWS;
    }
    (ROW_BLOCK_BYTES / row_bytes.max(1) / TILE_ROWS * TILE_ROWS).clamp(TILE_ROWS, 64)
}

/// Rows `start..end` of a quantised matrix.
#[inline(always)]
unsafe fn code_rows<S: Simd, F: Format>(
    job: &Job<'_>,
    start: usize,
    end: usize,
    scratch: &mut Scratch,
) {
    let n_chunk = job.w.n_chunk();
    let block = row_block(n_chunk * size_of::<WeightChunk>(), job.x.n);
    if scratch.chunks.len() < block * n_chunk {
        scratch.chunks.resize(block * n_chunk, WeightChunk::ZERO);
    }
    let mut row = start;
    while row < end {
        let n_rows = block.min(end - row);
        expand_rows::<F>(&job.w, row, n_rows, &mut scratch.chunks);
        let mut col = 0;
        while col < job.x.n {
            let cols = S::TILE_COLS.min(job.x.n - col);
            let mut r = 0;
            while r < n_rows {
                let chunks = scratch.chunks[r..].as_ptr();
                // SAFETY: passed on; `chunks` holds `n_rows` rows, chunk by chunk.
                unsafe {
                    if n_rows - r >= TILE_ROWS {
                        code_tile_n::<S, F, TILE_ROWS>(job, chunks, n_rows, row + r, col, cols);
                        r += TILE_ROWS;
                    } else {
                        code_tile_n::<S, F, 1>(job, chunks, n_rows, row + r, col, cols);
                        r += 1;
                    }
                }
            }
            col += cols;
        }
        row += n_rows;
    }
}

/// Expands `n_rows` rows from `row` as `[n_chunk][n_rows]`.
#[inline(always)]
fn expand_rows<F: Format>(w: &Matrix<'_>, row: usize, n_rows: usize, out: &mut [WeightChunk]) {
    let row_bytes = w.row_bytes();
    let chunk_bytes = CHUNK_LEN / F::TYPE.block_len() * F::TYPE.block_bytes();
    for r in 0..n_rows {
        let src = &w.data[(row + r) * row_bytes..][..row_bytes];
        for (i, src) in src.chunks(chunk_bytes).enumerate() {
            let chunk = &mut out[i * n_rows + r];
            if src.len() < chunk_bytes {
                *chunk = WeightChunk::ZERO;
            }
            F::expand(src, chunk);
        }
    }
}

#[inline(always)]
unsafe fn code_tile_n<S: Simd, F: Format, const R: usize>(
    job: &Job<'_>,
    chunks: *const WeightChunk,
    stride: usize,
    row: usize,
    col: usize,
    cols: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match cols {
            1 => code_tile::<S, F, R, 1>(job, chunks, stride, row, col),
            2 => code_tile::<S, F, R, 2>(job, chunks, stride, row, col),
            3 => code_tile::<S, F, R, 3>(job, chunks, stride, row, col),
            _ => code_tile::<S, F, R, 4>(job, chunks, stride, row, col),
        }
    }
}

#[inline(always)]
unsafe fn code_tile<S: Simd, F: Format, const R: usize, const C: usize>(
    job: &Job<'_>,
    chunks: *const WeightChunk,
    stride: usize,
    row: usize,
    col: usize,
) {
    // SAFETY: `chunks` and `acts` hold `n_chunk` chunks of each row and column (asserted by
    // `matmul`); the rest is passed on.
    unsafe {
        let mut tile = Tile::<S, R, C>::new();
        for i in 0..job.w.n_chunk() {
            let w = std::array::from_fn(|r| chunks.add(i * stride + r));
            let a = std::array::from_fn(|c| job.acts.as_ptr().add(i * job.x.n + col + c));
            if F::SIGNED {
                tile.add::<true>(w, a);
            } else {
                tile.add::<false>(w, a);
            }
        }
        for r in 0..R {
            for c in 0..C {
                let sum = if F::SIGNED { tile.sum::<true>(r, c) } else { tile.sum::<false>(r, c) };
                job.write(row + r, col + c, sum);
            }
        }
    }
}

/// Rows `start..end` of a float matrix.
#[inline(always)]
unsafe fn float_rows<S: Simd>(job: &Job<'_>, start: usize, end: usize, scratch: &mut Scratch) {
    let (ty, k) = (job.w.ty, job.w.n_cols);
    let row_bytes = job.w.row_bytes();
    let width = k.next_multiple_of(LANES);
    let block = row_block(width * size_of::<f32>(), job.x.n);
    scratch.floats.resize((block * width).max(scratch.floats.len()), 0.0);
    let mut row = start;
    while row < end {
        let n_rows = block.min(end - row);
        for r in 0..n_rows {
            let out = &mut scratch.floats[r * width..][..width];
            out[k..].fill(0.0);
            dequantize(ty, &job.w.data[(row + r) * row_bytes..][..row_bytes], &mut out[..k]);
        }
        for col in 0..job.x.n {
            let x = &job.x.data[col * job.x.stride..][..width.min(job.x.stride)];
            let mut r = 0;
            while r < n_rows {
                let weights = &scratch.floats[r * width..];
                // SAFETY: passed on; the slices hold `R` rows and a column of `width` values.
                unsafe {
                    if n_rows - r >= TILE_ROWS {
                        float_tile::<S, TILE_ROWS>(job, weights, x, width, row + r, col);
                        r += TILE_ROWS;
                    } else {
                        float_tile::<S, 1>(job, weights, x, width, row + r, col);
                        r += 1;
                    }
                }
            }
        }
        row += n_rows;
    }
}

#[inline(always)]
unsafe fn float_tile<S: Simd, const R: usize>(
    job: &Job<'_>,
    weights: &[f32],
    x: &[f32],
    width: usize,
    row: usize,
    col: usize,
) {
    assert!(weights.len() >= R * width && x.len() >= width);
    // SAFETY: the lengths are asserted; the rest is passed on.
    unsafe {
        let mut sums = [S::splat(0.0); R];
        for k in (0..width).step_by(LANES) {
            let x = S::load(x.as_ptr().add(k));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(S::load(weights.as_ptr().add(r * width + k)), x, *sum);
            }
        }
        for (r, &sum) in sums.iter().enumerate() {
            job.write(row + r, col, S::sum(sum));
        }
    }
}

/// The kernel for a type under an instruction set.
fn rows_fn(isa: Isa, ty: TensorType) -> RowsFn {
    macro_rules! codes {
        ($($name:ident),*) => {
            match ty {
                $(TensorType::$name => {
                    #[derive(Clone, Copy)]
                    struct Type;
                    impl Format for Type {
                        const TYPE: TensorType = TensorType::$name;
                    }
                    code_rows_fn::<Type>(isa)
                })*
                TensorType::F32 | TensorType::F16 | TensorType::BF16 => float_rows_fn(isa),
            }
        };
    }
    codes!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS)
}

fn code_rows_fn<F: Format>(isa: Isa) -> RowsFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => code_rows_avx512::<F>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => code_rows_avx2::<F>,
        _ => code_rows::<Scalar, F>,
    }
}

fn float_rows_fn(isa: Isa) -> RowsFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => float_rows_avx2,
        _ => float_rows::<Scalar>,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512bw,avx512vnni")]
unsafe fn code_rows_avx512<F: Format>(job: &Job<'_>, start: usize, end: usize, s: &mut Scratch) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe { code_rows::<Avx512, F>(job, start, end, s) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn code_rows_avx2<F: Format>(job: &Job<'_>, start: usize, end: usize, s: &mut Scratch) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe { code_rows::<Avx2, F>(job, start, end, s) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_rows_avx2(job: &Job<'_>, start: usize, end: usize, s: &mut Scratch) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe { float_rows::<Avx2>(job, start, end, s) }
}
