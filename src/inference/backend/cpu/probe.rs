//! What this machine's memory and kernels can do by themselves: the limits that a model's figures
//! are held against.
//!
//! Each figure is a list of rounds, for the caller to take a median of; a round lasts long enough
//! for the clock to be exact.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::acts::{ActChunk, Rows, quantize_rows};
use super::isa::{Isa, with_isa};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::lanes::unroll;
use super::matmul::{Matrix, act_scale, matmul, needs_acts, panel_bytes};
use super::panel::{self, PANEL_ROWS};
use super::pool::Pool;
use super::simd::Scalar;
use crate::inference::backend::BackendError;
use crate::inference::backend::cases::{MatMulCase, activations, weights};
use crate::inference::quant::TensorType;

/// A round of a probe lasts at least as long.
const ROUND: Duration = Duration::from_millis(60);
/// Steps of a task of the peak probe.
const PEAK_STEPS: usize = 20_000;

/// Bytes that `n_threads` threads read from memory, per second, for each of `n_rounds` rounds.
/// `n_bytes` is the size of what they read over and over; it should be far larger than the caches.
///
/// # Errors
/// If the threads cannot be had.
pub fn read_bandwidth(
    n_threads: usize,
    n_bytes: usize,
    n_rounds: usize,
) -> Result<Vec<f64>, BackendError> {
    let isa = Isa::choose(None)?;
    let mut pool = Pool::new(n_threads).map_err(BackendError::Threads)?;
    let n_words = (n_bytes / size_of::<u64>()).max(1);
    let refused = |_| BackendError::Memory { what: "the probe", bytes: n_bytes };
    let mut map = MmapMut::map_anon(n_words * size_of::<u64>()).map_err(refused)?;
    // As the weights lie.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    // Written once, or every page would be the same page of zeros.
    map.fill(1);
    // SAFETY: a map begins at a page, and any bits are a number.
    let (_, words, _) = unsafe { map.align_to::<u64>() };
    // A stretch for each thread: threads that read next to each other were a tenth slower.
    let n_each = words.len().div_ceil(pool.n_threads());
    let n_tasks = words.len().div_ceil(n_each);
    let mut pass = || {
        pool.run(n_tasks, &|i, _| {
            let end = words.len().min((i + 1) * n_each);
            let mut all = 0;
            // SAFETY: the instruction set is of this machine.
            unsafe { fold(isa, &words[i * n_each..end], &mut all) };
            black_box(all);
        });
        size_of_val(words) as f64
    };
    Ok(rounds(n_rounds, &mut pass))
}

/// Multiply-adds per second of one multiplication of random data, for each of `n_rounds` rounds.
/// The activations are rounded once, before.
///
/// # Errors
/// If the threads cannot be had.
pub fn matmul_rate(
    ty: TensorType,
    case: MatMulCase,
    isa: Isa,
    n_rounds: usize,
) -> Result<Vec<f64>, BackendError> {
    let mut product = Product::new(ty, case, isa)?;
    Ok(rounds(n_rounds, &mut || product.pass() as f64))
}

/// A multiplication of random data that can be done again and again.
pub struct Product {
    pool: Pool,
    isa: Isa,
    ty: TensorType,
    n_rows: usize,
    n_cols: usize,
    data: Vec<u8>,
    n: usize,
    stride: usize,
    x: Vec<f32>,
    acts: Vec<ActChunk>,
    out: Vec<f32>,
}

impl Product {
    /// Its operands, with the activations rounded.
    ///
    /// # Errors
    /// If the threads cannot be had, or the instruction set is not of this machine.
    pub fn new(ty: TensorType, case: MatMulCase, isa: Isa) -> Result<Product, BackendError> {
        Isa::choose(Some(isa.name()))?;
        let mut pool = Pool::new(case.n_threads).map_err(BackendError::Threads)?;
        let (n_cols, n_rows, n) = (case.n_cols(ty), case.n_rows, case.n);
        let stride = n_cols.next_multiple_of(32);
        let data = packed(isa, ty, n_rows, n_cols);
        let x = activations(n, n_cols, stride, 2);
        let mut acts = Vec::new();
        if let Some(per) = act_scale(ty) {
            let x = Rows { data: &x, stride, n };
            quantize_rows(&mut pool, isa, x, n_cols, per, &mut acts);
        }
        let out = vec![0f32; n * n_rows];
        Ok(Product { pool, isa, ty, n_rows, n_cols, data, n, stride, x, acts, out })
    }

    /// Multiplies; how many multiply-adds that were.
    pub fn pass(&mut self) -> u64 {
        let &mut Product { isa, ty, n_rows, n_cols, n, stride, .. } = self;
        let w = Matrix { ty, data: &self.data, n_rows, n_cols };
        let x = Rows { data: &self.x, stride, n };
        matmul(&mut self.pool, isa, w, x, &self.acts, None, &mut self.out, n_rows);
        (n_rows * n_cols * n) as u64
    }
}

/// Multiply-adds of 8-bit integers per second that the processor could do if nothing but them were
/// to be done, for each of `n_rounds` rounds; `None` where no such probe is known.
///
/// # Errors
/// If the threads cannot be had.
pub fn integer_peak(
    isa: Isa,
    n_threads: usize,
    n_rounds: usize,
) -> Result<Option<Vec<f64>>, BackendError> {
    Isa::choose(Some(isa.name()))?;
    let mut pool = Pool::new(n_threads).map_err(BackendError::Threads)?;
    let n_tasks = 8 * n_threads;
    let per_step = match isa {
        Isa::Scalar => return Ok(None),
        Isa::Avx2 => 6 * 32,
        Isa::AvxVnni => 12 * 32,
        Isa::Avx512 => 16 * 64,
        Isa::Amx => 4 * 16 * 16 * 64,
        Isa::Neon => 16 * 8,
        Isa::Dotprod => 16 * 16,
    };
    let mut pass = || {
        pool.run(n_tasks, &|_, _| {
            // SAFETY: the instruction set is of this machine.
            unsafe { peak(isa) };
        });
        (n_tasks * PEAK_STEPS * per_step) as f64
    };
    Ok(Some(rounds(n_rounds, &mut pass)))
}

/// Runs `pass`, which returns its amount of work, for `n_rounds` rounds: amounts per second.
fn rounds(n_rounds: usize, pass: &mut dyn FnMut() -> f64) -> Vec<f64> {
    pass();
    let round = |_| {
        let started = Instant::now();
        let mut done = 0.0;
        while started.elapsed() < ROUND {
            done += pass();
        }
        done / started.elapsed().as_secs_f64()
    };
    (0..n_rounds).map(round).collect()
}

/// Random rows in the form that kernels read.
fn packed(isa: Isa, ty: TensorType, n_rows: usize, n_cols: usize) -> Vec<u8> {
    let file = weights(ty, n_rows, n_cols, 1);
    if !needs_acts(ty) {
        return file;
    }
    let panel_bytes = panel_bytes(ty, n_cols);
    let mut panels = vec![0; n_rows.div_ceil(PANEL_ROWS) * panel_bytes];
    let rows = file.chunks(PANEL_ROWS * (file.len() / n_rows));
    for (rows, panel) in rows.zip(panels.chunks_exact_mut(panel_bytes)) {
        panel::pack(isa, ty, rows, n_cols / 32, panel);
    }
    panels
}

/// All words, folded into `out`.
unsafe fn fold(isa: Isa, words: &[u64], out: &mut u64) {
    #[inline(always)]
    #[allow(clippy::extra_unused_type_parameters)] // `with_isa` names the set that it enables
    unsafe fn fold<S>(words: &[u64], out: &mut u64) {
        let mut all = *out;
        for word in words {
            all ^= word;
        }
        *out = all;
    }
    // SAFETY: passed on.
    unsafe { with_isa!(isa, fold(words: &[u64], out: &mut u64)) }
}

/// `PEAK_STEPS` steps of as many independent multiply-adds as hide their latency.
unsafe fn peak(isa: Isa) {
    // SAFETY: passed on.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match isa {
            Isa::Avx512 => peak_avx512(),
            Isa::Amx => super::amx::peak(PEAK_STEPS),
            Isa::Avx2 => peak_avx2(),
            Isa::AvxVnni => peak_avx_vnni(),
            _ => {}
        }
    }
    // SAFETY: passed on.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        match isa {
            Isa::Neon => peak_neon(),
            Isa::Dotprod => peak_dotprod(),
            _ => {}
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = isa;
}

/// `vpdpbusd`: 64 products a time, 16 times a step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn peak_avx512() {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); 16];
    for _ in 0..PEAK_STEPS {
        unroll!(16, |i| {
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
        });
    }
    black_box(sums);
}

/// `vpdpbusd` as of AVX-VNNI: 32 products a time, 12 times a step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn peak_avx_vnni() {
    use std::arch::x86_64::{_mm256_dpbusd_avx_epi32, _mm256_set1_epi8, _mm256_setzero_si256};
    let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
    let mut sums = [_mm256_setzero_si256(); 12];
    for _ in 0..PEAK_STEPS {
        unroll!(12, |i| {
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], a, b);
        });
    }
    black_box(sums);
}

/// `vpmaddubsw` with one `vpaddw` each, as kernels that widen late do: 32 products a time, 6 times
/// a step. Each sum has factors of its own, or one product would serve them all.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn peak_avx2() {
    use std::arch::x86_64::{
        _mm256_add_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_setzero_si256,
    };
    let mut sums = [_mm256_setzero_si256(); 6];
    let factors = black_box([1, 2, 3, 4, 5, 6].map(|x: i8| _mm256_set1_epi8(x)));
    let mut a = black_box(_mm256_set1_epi8(3));
    for _ in 0..PEAK_STEPS {
        // Or the products would be taken out of the loop.
        a = _mm256_add_epi16(a, factors[0]);
        unroll!(6, |i| {
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(a, factors[i]));
        });
    }
    black_box(sums);
}

/// `smlal`: 8 products a time, 16 times a step.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn peak_neon() {
    use std::arch::aarch64::{vdup_n_s8, vdupq_n_s16, vmlal_s8};
    let mut sums = [vdupq_n_s16(0); 16];
    let b = black_box([vdup_n_s8(1), vdup_n_s8(2), vdup_n_s8(3), vdup_n_s8(4)]);
    for _ in 0..PEAK_STEPS {
        // Sixteen different products, new at each step, or the compiler would share them.
        let a = black_box([vdup_n_s8(5), vdup_n_s8(6), vdup_n_s8(7), vdup_n_s8(8)]);
        unroll!(16, |i| {
            sums[i] = vmlal_s8(sums[i], a[i % 4], b[i / 4]);
        });
    }
    black_box(sums);
}

/// `sdot`: 16 products a time, 16 times a step.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod")]
fn peak_dotprod() {
    use super::lanes_neon::sdot;
    use std::arch::aarch64::{vdupq_n_s8, vdupq_n_s32};
    let (a, b) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
    let mut sums = [vdupq_n_s32(0); 16];
    for _ in 0..PEAK_STEPS {
        unroll!(16, |i| {
            sums[i] = sdot::<0>(sums[i], a, b);
        });
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_counts_its_work() {
        assert!(read_bandwidth(2, 1 << 20, 2).unwrap().iter().all(|&rate| rate > 0.0));
        let case = MatMulCase { n_rows: 20, n_cols_min: 64, n: 2, n_threads: 2 };
        for isa in Isa::available() {
            let rates = matmul_rate(TensorType::Q4_0, case, isa, 1).unwrap();
            assert!(rates.len() == 1 && rates[0] > 0.0);
            assert_eq!(integer_peak(isa, 1, 1).unwrap().is_none(), isa == Isa::Scalar);
        }
    }

    #[test]
    fn folding_reads_every_word() {
        let words: Vec<u64> = (0..100).map(|i| 1 << (i % 64)).collect();
        for isa in Isa::available() {
            let mut got = 0;
            // SAFETY: the instruction set is of this machine.
            unsafe { fold(isa, &words, &mut got) };
            assert_eq!(got, words.iter().fold(0, |a, b| a ^ b));
        }
    }
}
