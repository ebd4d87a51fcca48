//! A model whose first layers run on the CPU and whose last ones on a GPU.
//!
//! ```text
//! batch -> head (CPU)  embedding, layers 0 .. s  -> rows -> tail (GPU)  layers s .. n, output
//! page     [ the head's layers | the tail's ]
//! ```
//!
//! Both see the same batches and the same pages, so each keeps the keys and values of its layers,
//! and the adapters' pairs for its matrices, and nobody else needs to know. What crosses between
//! them is a row for each token.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::runner::Runner;
use crate::inference::backend::cpu::CpuBackend;
use crate::inference::backend::cuda::CudaBackend;
use crate::inference::backend::{Adapter, AdapterIdx, BackendError, Batch, PageIdx};
use crate::inference::gguf::Gguf;

/// Runs the halves of a plan one after the other.
pub struct SplitRunner {
    head: CpuBackend,
    /// Its layers.
    n_head: usize,
    tail: CudaBackend,
}

impl SplitRunner {
    /// Of backends for the halves of a plan, the first of which has `n_head` layers.
    pub fn new(head: CpuBackend, n_head: usize, tail: CudaBackend) -> SplitRunner {
        SplitRunner { head, n_head, tail }
    }

    /// Runs the head, and gives its rows to the tail.
    fn begin(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let rows = self.head.forward(batch)?;
        self.tail.set_input(&rows);
        Ok(())
    }
}

impl Runner for SplitRunner {
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.begin(batch)?;
        self.tail.forward(batch)
    }

    fn n_top_max(&self) -> usize {
        self.tail.n_top_max()
    }

    fn forward_top(&mut self, batch: &Batch<'_>, n_top: &[usize]) -> Result<(), BackendError> {
        self.begin(batch)?;
        self.tail.forward_top(batch, n_top)
    }

    fn top(&self, row_idx: usize) -> &[(u32, f32)] {
        self.tail.top(row_idx)
    }

    fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError> {
        self.tail.row(row_idx)
    }

    fn sets_prompts_apart(&self) -> bool {
        self.tail.sets_prompts_apart()
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.begin(batch)?;
        self.tail.embed(batch)
    }

    fn set_n_threads(&mut self, n: Option<usize>) {
        self.head.set_n_threads(n);
    }

    fn count_on(&mut self, beat: &Arc<AtomicU64>) {
        self.head.count_on(beat);
        self.tail.count_on(beat);
    }

    fn add_adapter(&mut self, gguf: &Gguf, arch: &str) -> Result<AdapterIdx, BackendError> {
        let plans = (self.head.plan(), self.tail.plan());
        let (head, tail) = Adapter::read_halves(gguf, plans, arch).map_err(Box::new)?;
        // A GPU may have no memory for it. The head refuses none that the tail took, since both
        // have as many, so their numbers are alike.
        self.tail.take_adapter(tail)?;
        self.head.take_adapter(head)
    }

    fn copy_page(&mut self, from: PageIdx, to: PageIdx) -> Result<(), BackendError> {
        self.head.copy_page(from, to)?;
        self.tail.copy_page(from, to)
    }

    fn numerics(&self) -> String {
        format!("{} of {} + {}", self.n_head, self.head.numerics(), self.tail.numerics())
    }

    fn page_bytes(&self) -> usize {
        self.head.page_bytes() + self.tail.page_bytes()
    }

    fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        self.check_page(out.len())?;
        let (first, second) = out.split_at_mut(self.head.page_bytes());
        self.head.read_page(page, first)?;
        self.tail.read_page(page, second)
    }

    fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        self.check_page(bytes.len())?;
        let (first, second) = bytes.split_at(self.head.page_bytes());
        self.head.write_page(page, first)?;
        self.tail.write_page(page, second)
    }
}

impl SplitRunner {
    fn check_page(&self, got: usize) -> Result<(), BackendError> {
        let expected = self.page_bytes();
        if got == expected { Ok(()) } else { Err(BackendError::PageBytes { expected, got }) }
    }
}
