//! The machine's own limits, which figures are held against: reading memory, and multiplying.

use super::figures::{Figure, Unit};
use super::predicted::NANO_MEMORY_PEAK;
use crate::inference::{BackendError, Isa, MatMulCase, TensorType, probe};

/// Bytes that the memory probe reads over and over: far more than any cache holds.
const PROBE_BYTES: usize = 512 << 20;
/// Weights of the kernel probe, in rows and columns: a matrix of a 1.1B model.
const PROBE_ROWS: usize = 2048;
const PROBE_COLS: usize = 2048;
/// Columns that the kernel probe multiplies at once: decode, a batch, a larger one, prefill.
const PROBE_BATCHES: [usize; 4] = [1, 4, 16, 128];

/// What the machine can do by itself, with so many threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// 10^9 bytes read from memory a second.
    pub memory_gb_s: Option<f64>,
    /// 10^9 multiply-adds of 8-bit integers a second.
    pub integer_gmac_s: Option<f64>,
}

impl Limits {
    /// Measures both.
    ///
    /// # Errors
    /// If the threads cannot be had.
    pub fn measure(n_threads: usize, isa: Isa, n_rounds: usize) -> Result<Limits, BackendError> {
        let memory = Figure::new("", Unit::GigabytesPerSecond, bandwidth(n_threads, n_rounds)?);
        let integer = probe::integer_peak(isa, n_threads, n_rounds)?;
        let median = |values| Figure::new("", Unit::GigaMacs, giga(values)).median();
        Ok(Limits { memory_gb_s: Some(memory.median()), integer_gmac_s: integer.map(median) })
    }

    /// Those of the GPU that all of a model is on: what its memory's clock and wires allow, by its
    /// driver or, of a board whose driver does not tell, by its maker. Its multiply-adds have no
    /// probe.
    pub fn of_gpu(told_bytes_s: Option<u64>, is_nano: bool) -> Limits {
        let bytes_s = told_bytes_s.map(|n| n as f64).or(is_nano.then_some(NANO_MEMORY_PEAK));
        Limits { memory_gb_s: bytes_s.map(|n| n / 1e9), integer_gmac_s: None }
    }
}

/// What memory gives to 1, 2, 4 ... and all threads that may be used.
///
/// # Errors
/// If the threads cannot be had.
pub fn memory(n_threads: usize, n_rounds: usize) -> Result<Vec<Figure>, BackendError> {
    let figure = |n: usize| {
        let values = bandwidth(n, n_rounds)?;
        Ok(Figure::new(format!("read, {}", threads(n)), Unit::GigabytesPerSecond, values))
    };
    thread_counts(n_threads).map(figure).collect()
}

/// What the kernels of each tensor type do by themselves, against what the processor could.
///
/// # Errors
/// If the threads cannot be had.
pub fn kernels(
    n_threads: usize,
    isa: Isa,
    n_rounds: usize,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, BackendError> {
    let peak = probe::integer_peak(isa, n_threads, n_rounds)?.map(giga);
    let mut figures = Vec::new();
    let mut limit = None;
    if let Some(values) = peak {
        let name = format!("8-bit integer peak, {}, {}", isa.name(), threads(n_threads));
        let figure = Figure::new(name, Unit::GigaMacs, values);
        limit = Some(figure.median());
        figures.push(figure);
    }
    for ty in TensorType::ALL {
        for n in PROBE_BATCHES {
            let (n_rows, n_cols_min) = (PROBE_ROWS, PROBE_COLS);
            let case = MatMulCase { n_rows, n_cols_min, n, n_threads };
            let test = format!("{ty} x {n}");
            progress(&test);
            let values = giga(probe::matmul_rate(ty, case, isa, n_rounds)?);
            let figure = Figure::new(test, Unit::GigaMacs, values);
            figures.push(figure.against(limit, 1.0, Unit::GigaMacs));
        }
    }
    Ok(figures)
}

fn bandwidth(n_threads: usize, n_rounds: usize) -> Result<Vec<f64>, BackendError> {
    Ok(giga(probe::read_bandwidth(n_threads, PROBE_BYTES, n_rounds)?))
}

fn giga(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|value| value / 1e9).collect()
}

fn threads(n: usize) -> String {
    if n == 1 { "1 thread".to_owned() } else { format!("{n} threads") }
}

/// Powers of two below `n`, and `n`.
fn thread_counts(n: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(1), |k| Some(k * 2)).take_while(move |k| *k < n);
    powers.chain([n.max(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpus_limit_is_that_of_its_memory_alone() {
        let limits = |memory_gb_s| Limits { memory_gb_s, integer_gmac_s: None };
        assert_eq!(Limits::of_gpu(Some(320_000_000_000), false), limits(Some(320.0)));
        assert_eq!(Limits::of_gpu(Some(20_000_000_000), true), limits(Some(20.0)));
        assert_eq!(Limits::of_gpu(None, true), limits(Some(25.6)));
        assert_eq!(Limits::of_gpu(None, false), limits(None));
    }

    #[test]
    fn threads_double_up_to_all() {
        let counts = |n| thread_counts(n).collect::<Vec<_>>();
        assert_eq!(counts(1), [1]);
        assert_eq!(counts(2), [1, 2]);
        assert_eq!(counts(6), [1, 2, 4, 6]);
    }
}
