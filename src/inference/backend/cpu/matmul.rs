//! Matrix multiplication: weight rows of any type times activation columns, `out = W x + bias`.
//!
//! ```text
//! task           a run of weight rows, taken by one thread
//! column tile    a few columns, whose activations stay in L1 while the task's rows pass; where
//!                there are few tiles, they take turns at each panel
//! tile           16 rows x up to 16 columns (or fewer of both), whose sums stay in registers
//! ```
//!
//! Quantised weights lie in panels and meet activations rounded to 8 bits (`panel_kernel`); float
//! weights lie as the file has them and meet the activations as they are (`float_rows`). Many
//! columns meet weights that a task expanded before. Every dot product is summed in the same order
//! however many columns there are.

mod floats;
mod wide;

use super::acts::{ActChunk, ActScale, CHUNK_LEN, Rows};
use super::ahead::Ahead;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::expand::{self, EXPAND_COLS, GROUP_BYTES_MAX};
use super::float_rows::{Bf16, F16, F32, FLOAT_LANES, Float};
use super::isa::Isa;
use super::l2::expanded_task_bytes;
#[cfg(target_arch = "x86_64")]
use super::lanes::WideLanes;
use super::lanes::{Lanes, ScalarLanes};
#[cfg(target_arch = "aarch64")]
use super::lanes_neon::NeonLanes;
#[cfg(target_arch = "x86_64")]
use super::lanes_x86::{Avx2Lanes, Avx512Lanes};
use super::panel::{Format, GROUP_BLOCKS, Layout, PANEL_ROWS, with_format};
use super::panel_kernel;
use super::pool::Pool;
use super::shared::SharedMut;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Simd};
use crate::inference::quant::{Codes, TensorType};

/// Bytes of weights that a task goes over as they are, at most: those of single columns are short
/// enough to even out the threads.
const TASK_BYTES: usize = 384 << 10;
/// Columns from which on tiles of AMX are worth it that go over a whole task: with 16, half of what
/// they multiply is thrown away, and vectors were faster where scales are floats.
#[cfg(target_arch = "x86_64")]
const AMX_COLS: usize = 32;
/// Columns from which on tiles are worth it that take panels group by group: nine were a seventh
/// faster than by vectors, whose tiles have eight.
#[cfg(target_arch = "x86_64")]
const FEW_COLS: usize = 9;
/// Panels that tiles take at a time, and vectors of 16 expanded rows.
const TILE_PANELS: usize = 2;
/// Tasks for each thread, at least: enough to even out the threads.
const TASKS_PER_THREAD: usize = 6;

/// A weight matrix `[n_rows, n_cols]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Tensor type of the rows.
    pub ty: TensorType,
    /// Panels of a quantised type, one after another; the rows of a float type.
    pub data: &'a [u8],
    /// Rows.
    pub n_rows: usize,
    /// Values in a row.
    pub n_cols: usize,
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
    ahead: Ahead,
}

/// Computes units `start..end` of a job: panels, or rows of a float matrix.
type TaskFn = unsafe fn(&Job<'_>, usize, usize);

/// `out[col][row] = w[row] . x[col] + bias[row]`, with `out` `[x.n, out_stride]`.
///
/// `acts` is `quantize_rows` of `x` where [`needs_acts`] says so, else unused.
#[allow(clippy::too_many_arguments)] // the operands of one operation
pub fn matmul(
    pool: &mut Pool,
    isa: Isa,
    w: Matrix<'_>,
    x: Rows<'_>,
    acts: &[ActChunk],
    bias: Option<&[f32]>,
    out: &mut [f32],
    out_stride: usize,
) {
    assert!(x.n == 0 || out.len() >= (x.n - 1) * out_stride + w.n_rows);
    assert!(x.data.len() >= x.n * x.stride && x.stride >= w.n_cols.next_multiple_of(FLOAT_LANES));
    assert!(bias.is_none_or(|b| b.len() >= w.n_rows));
    let (n_unit, unit_bytes, task_fn) = if needs_acts(w.ty) {
        assert!(acts.len() >= w.n_cols.div_ceil(CHUNK_LEN) * x.n);
        (w.n_rows.div_ceil(PANEL_ROWS), panel_bytes(w.ty, w.n_cols), panels_fn(isa, w.ty))
    } else {
        (w.n_rows, w.n_cols * w.ty.block_bytes(), floats_fn(isa, w.ty))
    };
    assert!(w.data.len() == n_unit * unit_bytes);
    let ahead = Ahead::of_machine();
    let job = Job { w, x, acts, bias, out: SharedMut::new(out), out_stride, ahead };
    let task_units = units_of_task(isa, w, x.n, (n_unit, unit_bytes), pool.n_threads());
    pool.run(n_unit.div_ceil(task_units), &|task_idx, _| {
        let start = task_idx * task_units;
        // SAFETY: tasks own disjoint rows; the instruction set is of this machine; operands have
        // the lengths asserted above.
        unsafe { task_fn(&job, start, (start + task_units).min(n_unit)) };
    });
}

/// Panels, or rows of a float matrix, that a task takes of `n_unit` that have `unit_bytes` each.
fn units_of_task(
    isa: Isa,
    w: Matrix<'_>,
    n: usize,
    (n_unit, unit_bytes): (usize, usize),
    n_threads: usize,
) -> usize {
    let is_expanded = is_expanded(isa, w.ty, n);
    let (task_bytes, held_bytes) = match needs_acts(w.ty) {
        _ if !is_expanded => (TASK_BYTES.min(expanded_task_bytes()), unit_bytes.max(1)),
        true => (expanded_task_bytes(), unit_bytes.max(wide_bytes(isa, w, n))),
        false => (expanded_task_bytes(), floats::widened_bytes(w.n_cols)),
    };
    let n_even = n_unit / (n_threads * TASKS_PER_THREAD);
    let n_fit = n_even.min(task_bytes / held_bytes).max(1);
    match needs_acts(w.ty) {
        // However long they are: half of what is multiplied of a single panel is thrown away.
        true if is_expanded => n_fit.next_multiple_of(TILE_PANELS),
        true => n_fit,
        false => n_fit.next_multiple_of(floats::ROWS_MAX),
    }
}

/// Whether a task expands its weights before columns meet them.
fn is_expanded(isa: Isa, ty: TensorType, n: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if needs_acts(ty) && few_on_tiles(isa, Layout::of(ty), n) {
        return false;
    }
    n >= EXPAND_COLS && (!needs_acts(ty) || expands(isa, Layout::of(ty)))
}

/// Whether many columns meet expanded panels of this layout.
const fn expands(isa: Isa, layout: Layout) -> bool {
    match isa {
        // Codes of bytes cost more there than codes of fewer bits.
        Isa::Neon | Isa::Dotprod => false,
        // Sixteen registers do not hold two vectors of sums in floats: only what takes long to
        // take apart gains.
        Isa::Avx2 => matches!(ActScale::of(layout), ActScale::Chunk) || layout.high > 0,
        // Dot products of bytes take whatever codes as bytes. On plain Rust as well: slower, but so
        // the expanded form has a plain twin.
        Isa::Scalar | Isa::AvxVnni | Isa::Avx512 | Isa::Amx => true,
    }
}

/// Whether so many columns are multiplied on tiles.
#[cfg(target_arch = "x86_64")]
fn has_tiles(isa: Isa, n: usize) -> bool {
    isa == Isa::Amx && n >= AMX_COLS
}

/// Whether so many columns meet panels that tiles take group by group.
#[cfg(target_arch = "x86_64")]
fn few_on_tiles(isa: Isa, layout: Layout, n: usize) -> bool {
    isa == Isa::Amx && amx::few::suits(layout) && (FEW_COLS..=amx::few::FEW_COLS_MAX).contains(&n)
}

/// Bytes of an expanded panel that meets `n` columns.
fn wide_bytes(isa: Isa, w: Matrix<'_>, n: usize) -> usize {
    let n_block = w.n_cols / 32;
    macro_rules! of {
        ($format:ident) => {
            match isa {
                #[cfg(target_arch = "x86_64")]
                _ if has_tiles(isa, n) => const { amx::Form::of::<$format>() }.panel_bytes(n_block),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => expand::wide_bytes::<Avx512Lanes, $format>(n_block),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => expand::wide_bytes::<Avx2Lanes<false>, $format>(n_block),
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni => expand::wide_bytes::<Avx2Lanes<true>, $format>(n_block),
                _ => expand::wide_bytes::<ScalarLanes, $format>(n_block),
            }
        };
    }
    let _ = n;
    with_format!(w.ty, of)
}

/// Bytes of what a thread expands at most at a time, of matrices of `n_cols` columns.
pub fn expanded_bytes_max(isa: Isa, n_cols: usize) -> usize {
    // Tasks are rounded up to whole tiles. Four rows of widened floats are shorter than a panel.
    let at_most = |panel: usize| expanded_task_bytes().max(panel) + (TILE_PANELS - 1) * panel;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        return at_most(amx::panel_bytes_max(n_cols / 32));
    }
    let _ = isa;
    at_most((n_cols / 32).div_ceil(GROUP_BLOCKS) * GROUP_BYTES_MAX)
}

/// Whether weights of this type meet activations rounded to 8 bits.
pub fn needs_acts(ty: TensorType) -> bool {
    !matches!(Codes::of(ty), Codes::Float)
}

/// How activations are rounded that meet weights of this type; `None` where they are not.
pub fn act_scale(ty: TensorType) -> Option<ActScale> {
    needs_acts(ty).then(|| ActScale::of(Layout::of(ty)))
}

/// Bytes of a panel of 16 rows of `n_cols` weights.
pub fn panel_bytes(ty: TensorType, n_cols: usize) -> usize {
    Layout::of(ty).panel_bytes(n_cols / 32)
}

/// Panels `start..end`, tile after tile of columns. Few columns meet a panel at a time, so that
/// memory brings the next one meanwhile.
#[inline(always)]
unsafe fn panels<L: Lanes, F: Format>(job: &Job<'_>, start: usize, end: usize) {
    let n = job.x.n;
    let n_panel = if n < EXPAND_COLS { 1 } else { (end - start).max(1) };
    let panel_bytes = F::LAYOUT.panel_bytes(job.w.n_cols / 32);
    // What comes next must not push out what is there.
    let again = match n < EXPAND_COLS && 2 * panel_bytes <= TASK_BYTES.min(expanded_task_bytes()) {
        true => job.ahead.again(panel_bytes),
        false => job.ahead,
    };
    // Sums of integers stand beside those of floats.
    let cols = match ActScale::of(F::LAYOUT) {
        ActScale::Block => L::COLS,
        ActScale::Chunk => L::COLS.min(8),
    };
    for start in (start..end).step_by(n_panel) {
        let end = (start + n_panel).min(end);
        let (mut col, mut ahead) = (0, job.ahead);
        while col < n {
            // SAFETY: passed on.
            let done = unsafe {
                match n - col {
                    16.. if cols >= 16 => panel_columns::<L, F, 16>(job, start, end, col, ahead),
                    8.. if cols >= 8 => panel_columns::<L, F, 8>(job, start, end, col, ahead),
                    4.. if cols >= 4 => panel_columns::<L, F, 4>(job, start, end, col, ahead),
                    2.. if cols >= 2 => panel_columns::<L, F, 2>(job, start, end, col, ahead),
                    _ => panel_columns::<L, F, 1>(job, start, end, col, ahead),
                }
            };
            (col, ahead) = (col + done, again);
        }
    }
}

/// Panels `start..end` times `C` columns; returns `C`.
#[inline(always)]
unsafe fn panel_columns<L: Lanes, F: Format, const C: usize>(
    job: &Job<'_>,
    start: usize,
    end: usize,
    col: usize,
    ahead: Ahead,
) -> usize {
    let panel_bytes = F::LAYOUT.panel_bytes(job.w.n_cols / 32);
    for panel_idx in start..end {
        // SAFETY: as above.
        unsafe {
            let panel = job.w.data.as_ptr().add(panel_idx * panel_bytes);
            job.tile::<L, F, C>(panel, panel_idx, col, ahead);
        }
    }
    C
}

impl Job<'_> {
    /// A panel times `C` columns.
    ///
    /// # Safety
    /// As [`panel_kernel::tile`]; no other thread writes these places.
    #[inline(always)]
    unsafe fn tile<L: Lanes, F: Format, const C: usize>(
        &self,
        panel: *const u8,
        panel_idx: usize,
        col: usize,
        ahead: Ahead,
    ) {
        let (n_block, n) = (self.w.n_cols / 32, self.x.n);
        for row in (0..PANEL_ROWS).step_by(L::ROWS) {
            // SAFETY: passed on.
            unsafe {
                let acts = (self.acts.as_ptr().add(col), n);
                let sums = panel_kernel::tile::<L, F, C>(panel, n_block, row, acts, ahead);
                let row = panel_idx * PANEL_ROWS + row;
                for (c, sum) in sums.into_iter().enumerate() {
                    self.store::<L>(row, col + c, sum);
                }
            }
        }
    }

    /// Writes the sums of rows `row..row + L::ROWS`, those past the last row aside.
    ///
    /// # Safety
    /// As [`Lanes`]; no other thread writes these places.
    #[inline(always)]
    unsafe fn store<L: Lanes>(&self, row: usize, col: usize, sum: L::F) {
        let n = L::ROWS.min(self.w.n_rows.saturating_sub(row));
        // SAFETY: the caller owns the places; whole vectors stay inside rows and bias.
        unsafe {
            let out = self.out.slice(col * self.out_stride + row.min(self.w.n_rows), n);
            if n == L::ROWS {
                let sum = match self.bias {
                    Some(bias) => L::add(sum, L::load(bias.as_ptr().add(row))),
                    None => sum,
                };
                return L::store(out.as_mut_ptr(), sum);
            }
            let mut values = [0f32; PANEL_ROWS];
            L::store(values.as_mut_ptr(), sum);
            for (i, (out, value)) in out.iter_mut().zip(values).enumerate() {
                *out = self.bias.map_or(value, |bias| value + bias[row + i]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Job<'_> {
    /// Panels `start + pair[0]` and `start + pair[1]`, expanded in `wide`, times the columns from
    /// `col` on; the two may be one.
    ///
    /// # Safety
    /// As [`amx::multiply`]; no other thread writes these places.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // where two tiles of columns meet two panels
    unsafe fn tiles(
        &self,
        form: amx::Form,
        wide: *const u8,
        pair: [usize; amx::TILES],
        start: usize,
        col: usize,
        n: [usize; amx::TILES],
        scratch: &mut amx::Scratch,
    ) {
        let n_block = self.w.n_cols / 32;
        // Where there is no second tile of columns, the first stands there again.
        let cols = [col, if n[1] == 0 { col } else { col + amx::TILE_COLS }];
        // SAFETY: passed on.
        unsafe {
            let block = amx::Block {
                panels: pair.map(|i| wide.add(i * form.panel_bytes(n_block))),
                n_block,
                acts: cols.map(|col| self.acts.as_ptr().add(col)),
                stride: self.x.n,
                n,
            };
            amx::multiply(form, &block, scratch);
            for (tile, sums) in scratch.sums.iter().enumerate() {
                let (of_cols, of_pair) = (tile / amx::TILES, tile % amx::TILES);
                if of_pair == 1 && pair[0] == pair[1] {
                    continue;
                }
                let row = (start + pair[of_pair]) * PANEL_ROWS;
                for (c, sum) in sums.iter().enumerate().take(n[of_cols]) {
                    let sum = Avx512Lanes::load(sum.as_ptr());
                    self.store::<Avx512Lanes>(row, cols[of_cols] + c, sum);
                }
            }
        }
    }
}

/// The kernel for a quantised type under an instruction set.
fn panels_fn(isa: Isa, ty: TensorType) -> TaskFn {
    macro_rules! of {
        ($format:ident) => {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => panels_avx512::<$format>,
                #[cfg(target_arch = "x86_64")]
                Isa::Amx => panels_amx::<$format>,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => panels_avx2::<$format>,
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni => panels_avx_vnni::<$format>,
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => panels::<NeonLanes<false>, $format>,
                #[cfg(target_arch = "aarch64")]
                Isa::Dotprod => panels_dotprod::<$format>,
                _ => panels_scalar::<$format>,
            }
        };
    }
    with_format!(ty, of)
}

/// The kernel for a float type under an instruction set.
fn floats_fn(isa: Isa, ty: TensorType) -> TaskFn {
    fn of<W: Float>(isa: Isa) -> TaskFn {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => floats_avx512::<W>,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => floats_avx2::<W>,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::Dotprod => floats::task::<NeonLanes<false>, W, 2, 3, 4>,
            _ => floats::task::<ScalarLanes, W, 2, 3, 1>,
        }
    }
    match ty {
        TensorType::F32 => of::<F32>(isa),
        TensorType::F16 => of::<F16>(isa),
        _ => of::<Bf16>(isa),
    }
}

/// In plain Rust.
unsafe fn panels_scalar<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    // SAFETY: passed on.
    unsafe {
        match job.x.n >= EXPAND_COLS {
            true => wide::expanded::<ScalarLanes, F, 2>(job, start, end),
            false => panels::<ScalarLanes, F>(job, start, end),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn panels_avx512<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe {
        match job.x.n >= EXPAND_COLS {
            true => wide::expanded::<Avx512Lanes, F, 6>(job, start, end),
            false => panels::<Avx512Lanes, F>(job, start, end),
        }
    }
}

/// All columns on tiles, or all as with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn panels_amx<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    let (n, n_block, form) = (job.x.n, job.w.n_cols / 32, const { amx::Form::of::<F>() });
    if few_on_tiles(Isa::Amx, F::LAYOUT, n) {
        // SAFETY: passed on.
        return unsafe { panels_few::<F>(job, start, end) };
    }
    if !has_tiles(Isa::Amx, n) {
        // SAFETY: passed on.
        return unsafe { panels_avx512::<F>(job, start, end) };
    }
    let (panel_bytes, wide_bytes) = (F::LAYOUT.panel_bytes(n_block), form.panel_bytes(n_block));
    let mut buffer = expand::take_buffer((end - start) * wide_bytes);
    let wide = buffer.as_mut_ptr().cast::<u8>();
    let mut scratch = amx::Scratch::ZERO;
    // SAFETY: `matmul` asserted that panels and chunks are there; the buffer has room for all, and
    // the tiles are shaped for the columns of their block.
    unsafe {
        for i in 0..end - start {
            let panel = job.w.data.as_ptr().add((start + i) * panel_bytes);
            amx::expand::<F>(panel, n_block, wide.add(i * wide_bytes), job.ahead);
        }
        let mut tiles = None;
        const { assert!(TILE_PANELS == amx::TILES) };
        for col in (0..n).step_by(amx::TILES * amx::TILE_COLS) {
            let n_left = [n - col, (n - col).saturating_sub(amx::TILE_COLS)];
            let n = n_left.map(|n| n.min(amx::TILE_COLS));
            if tiles.as_ref().is_none_or(|(_, of)| *of != n) {
                drop(tiles.take());
                tiles = Some((amx::Tiles::shape(form, n), n));
            }
            for i in (0..end - start).step_by(amx::TILES) {
                job.tiles(
                    form,
                    wide,
                    [i, (i + 1).min(end - start - 1)],
                    start,
                    col,
                    n,
                    &mut scratch,
                );
            }
        }
    }
    expand::give_back(buffer);
}

/// Few columns on tiles.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn panels_few<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    use amx::few;
    let (n, n_block) = (job.x.n, job.w.n_cols / 32);
    let panel_bytes = F::LAYOUT.panel_bytes(n_block);
    // SAFETY: passed on; the tiles are shaped for these columns.
    unsafe {
        let (panels, acts) = (job.w.data.as_ptr(), job.acts.as_ptr());
        let mut block = few::Block { panels, n_block, acts, n, ahead: job.ahead };
        let _tiles = amx::Tiles::shape(const { amx::Form::of::<F>() }, block.tile_cols());
        for first in (start..end).step_by(few::N_PANEL) {
            let mut sums = [few::ZERO; few::N_PANEL];
            let sums = &mut sums[..few::N_PANEL.min(end - first)];
            block.panels = panels.add(first * panel_bytes);
            few::multiply::<F>(&block, sums);
            for (i, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate().take(n) {
                    let sum = Avx512Lanes::load(sum.as_ptr());
                    job.store::<Avx512Lanes>((first + i) * PANEL_ROWS, c, sum);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panels_avx2<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    // What is rounded for these kernels has what they read.
    const { assert!(Avx2::BIASES == Avx2Lanes::<false>::BIASES) };
    // SAFETY: the features are on; the rest is passed on.
    unsafe {
        match const { expands(Isa::Avx2, F::LAYOUT) } && job.x.n >= EXPAND_COLS {
            true => wide::expanded::<Avx2Lanes<false>, F, 3>(job, start, end),
            false => panels::<Avx2Lanes<false>, F>(job, start, end),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn panels_avx_vnni<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe {
        match job.x.n >= EXPAND_COLS {
            // Ten and twelve chains of dot products hide how long each takes, though what they are
            // added to has no registers then. With three columns, which leave it there, prompts
            // in N3_M and Q4_K_M had 3 to 4 % fewer tokens a second (Emerald Rapids).
            true if const { expand::is_narrow::<Avx2Lanes<true>, F>() } => {
                wide::expanded::<Avx2Lanes<true>, F, 5>(job, start, end)
            }
            true => wide::expanded::<Avx2Lanes<true>, F, 6>(job, start, end),
            false => panels::<Avx2Lanes<true>, F>(job, start, end),
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod")]
unsafe fn panels_dotprod<F: Format>(job: &Job<'_>, start: usize, end: usize) {
    // SAFETY: the feature is on; the rest is passed on.
    unsafe { panels::<NeonLanes<true>, F>(job, start, end) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn floats_avx512<W: Float>(job: &Job<'_>, start: usize, end: usize) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe { floats::task::<Avx512Lanes, W, 4, 6, 1>(job, start, end) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn floats_avx2<W: Float>(job: &Job<'_>, start: usize, end: usize) {
    // SAFETY: the features are on; the rest is passed on.
    unsafe { floats::task::<Avx2Lanes<false>, W, 2, 3, 2>(job, start, end) }
}
