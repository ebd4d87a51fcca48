//! The model's face towards the engine: batches in, rows of logits out.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::inference::backend::cpu::CpuBackend;
use crate::inference::backend::cuda::CudaBackend;
use crate::inference::backend::{AdapterIdx, BackendError, Batch, InputSums, PageIdx};
use crate::inference::gguf::Gguf;

/// Runs batches and keeps the pages of the KV cache.
pub trait Runner: Send {
    /// Output rows of a batch, `[outputs, n_vocab]` (or `n_embd` of an encoder).
    ///
    /// # Errors
    /// If the batch breaks a rule of [`Batch::check`].
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError>;

    /// How many of a row's largest logits can be had alone; 0 where all of them cost no more.
    fn n_top_max(&self) -> usize {
        0
    }

    /// Runs a batch, and gets ready so many of the largest logits of each output row, or more, for
    /// [`Runner::top`]: `[outputs]`, each at most [`Runner::n_top_max`].
    ///
    /// # Errors
    /// As [`Runner::forward`].
    fn forward_top(&mut self, batch: &Batch<'_>, _n_top: &[usize]) -> Result<(), BackendError> {
        self.forward(batch).map(drop)
    }

    /// The largest logits of an output row of the last batch, from the largest, with their tokens;
    /// of equals the first token first. None if they were not asked for.
    fn top(&self, _row_idx: usize) -> &[(u32, f32)] {
        &[]
    }

    /// All logits of an output row of the last batch.
    ///
    /// # Errors
    /// If the device cannot be read.
    ///
    /// # Panics
    /// If the batch had no such row.
    fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError>;

    /// Whether the tokens that spans call a prompt's get other bits than they would in an answer.
    fn sets_prompts_apart(&self) -> bool {
        false
    }

    /// Rows before the output matrix, `[outputs, n_embd]`.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError>;

    /// Lets `n` threads compute from now on, of those that there are; `None` for all.
    fn set_n_threads(&mut self, _n: Option<usize>) {}

    /// Counts on `beat` as work goes on, several times within a long batch.
    fn count_on(&mut self, _beat: &Arc<AtomicU64>) {}

    /// Starts or ends gathering what weights are multiplied by; returns what was gathered, which is
    /// nothing where there are no weights.
    fn gather_inputs(&mut self, _on: bool) -> InputSums {
        InputSums::default()
    }

    /// Takes a LoRA adapter for a model of architecture `arch`.
    ///
    /// # Errors
    /// If the file is no adapter for this model.
    fn add_adapter(&mut self, gguf: &Gguf, arch: &str) -> Result<AdapterIdx, BackendError>;

    /// Copies a page with the keys and values of every layer.
    ///
    /// # Errors
    /// If a page is not in the cache.
    fn copy_page(&mut self, from: PageIdx, to: PageIdx) -> Result<(), BackendError>;

    /// What decides the bits of keys and values besides the weights and the program.
    fn numerics(&self) -> String;

    /// Bytes of a page.
    fn page_bytes(&self) -> usize;

    /// Writes a page's bytes to `out`.
    ///
    /// # Errors
    /// If the page is not in the cache, or `out` has another length.
    fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError>;

    /// Fills a page with bytes of [`Runner::read_page`].
    ///
    /// # Errors
    /// As [`Runner::read_page`].
    fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError>;
}

impl Runner for CpuBackend {
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        CpuBackend::forward(self, batch)
    }

    fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError> {
        Ok(CpuBackend::row(self, row_idx))
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        CpuBackend::embed(self, batch)
    }

    fn set_n_threads(&mut self, n: Option<usize>) {
        CpuBackend::set_n_threads(self, n);
    }

    fn count_on(&mut self, beat: &Arc<AtomicU64>) {
        CpuBackend::count_on(self, beat);
    }

    fn gather_inputs(&mut self, on: bool) -> InputSums {
        CpuBackend::gather_inputs(self, on)
    }

    fn add_adapter(&mut self, gguf: &Gguf, arch: &str) -> Result<AdapterIdx, BackendError> {
        CpuBackend::add_adapter(self, gguf, arch)
    }

    fn copy_page(&mut self, from: PageIdx, to: PageIdx) -> Result<(), BackendError> {
        CpuBackend::copy_page(self, from, to)
    }

    fn numerics(&self) -> String {
        CpuBackend::numerics(self)
    }

    fn page_bytes(&self) -> usize {
        CpuBackend::page_bytes(self)
    }

    fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        CpuBackend::read_page(self, page, out)
    }

    fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        CpuBackend::write_page(self, page, bytes)
    }
}

/// Gathered inputs are the CPU's: a model that needs them is loaded there.
impl Runner for CudaBackend {
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        CudaBackend::forward(self, batch)
    }

    fn n_top_max(&self) -> usize {
        CudaBackend::n_top_max(self)
    }

    fn sets_prompts_apart(&self) -> bool {
        CudaBackend::sets_prompts_apart(self)
    }

    fn forward_top(&mut self, batch: &Batch<'_>, n_top: &[usize]) -> Result<(), BackendError> {
        CudaBackend::forward_top(self, batch, n_top)
    }

    fn top(&self, row_idx: usize) -> &[(u32, f32)] {
        CudaBackend::top(self, row_idx)
    }

    fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError> {
        CudaBackend::row(self, row_idx)
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        CudaBackend::embed(self, batch)
    }

    fn count_on(&mut self, beat: &Arc<AtomicU64>) {
        CudaBackend::count_on(self, beat);
    }

    fn add_adapter(&mut self, gguf: &Gguf, arch: &str) -> Result<AdapterIdx, BackendError> {
        CudaBackend::add_adapter(self, gguf, arch)
    }

    fn copy_page(&mut self, from: PageIdx, to: PageIdx) -> Result<(), BackendError> {
        CudaBackend::copy_page(self, from, to)
    }

    fn numerics(&self) -> String {
        CudaBackend::numerics(self)
    }

    fn page_bytes(&self) -> usize {
        CudaBackend::page_bytes(self)
    }

    fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        CudaBackend::read_page(self, page, out)
    }

    fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        CudaBackend::write_page(self, page, bytes)
    }
}

/// A runner whose passes a test writes: `forward` gives the rows of a batch. It keeps no pages.
#[cfg(test)]
pub struct FnRunner<F> {
    forward: F,
    rows: Vec<Vec<f32>>,
}

#[cfg(test)]
impl<F> FnRunner<F>
where
    F: FnMut(&Batch<'_>) -> Result<Vec<Vec<f32>>, BackendError> + Send + 'static,
{
    /// A runner that passes are asked of.
    pub fn boxed(forward: F) -> Box<dyn Runner> {
        Box::new(FnRunner { forward, rows: Vec::new() })
    }
}

#[cfg(test)]
impl<F: FnMut(&Batch<'_>) -> Result<Vec<Vec<f32>>, BackendError> + Send> Runner for FnRunner<F> {
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.rows = (self.forward)(batch)?;
        Ok(self.rows.iter().map(Vec::as_slice).collect())
    }

    fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError> {
        Ok(&self.rows[row_idx])
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.forward(batch)
    }

    fn add_adapter(&mut self, _gguf: &Gguf, _arch: &str) -> Result<AdapterIdx, BackendError> {
        Ok(0)
    }

    fn copy_page(&mut self, _from: PageIdx, _to: PageIdx) -> Result<(), BackendError> {
        Ok(())
    }

    fn numerics(&self) -> String {
        String::new()
    }

    fn page_bytes(&self) -> usize {
        0
    }

    fn read_page(&self, _page: PageIdx, _out: &mut [u8]) -> Result<(), BackendError> {
        Ok(())
    }

    fn write_page(&mut self, _page: PageIdx, _bytes: &[u8]) -> Result<(), BackendError> {
        Ok(())
    }
}
