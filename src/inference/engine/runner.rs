//! The model's face towards the engine: batches in, rows of logits out.

use crate::inference::backend::cpu::CpuBackend;
use crate::inference::backend::{BackendError, Batch, PageIdx};

/// Runs batches and keeps the pages of the KV cache.
pub trait Runner: Send {
    /// Output rows of a batch, `[outputs, n_vocab]` (or `n_embd` of an encoder).
    ///
    /// # Errors
    /// If the batch breaks a rule of [`Batch::check`].
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError>;

    /// Rows before the output matrix, `[outputs, n_embd]`.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError>;

    /// Copies a page with the keys and values of every layer.
    fn copy_page(&mut self, from: PageIdx, to: PageIdx);
}

impl Runner for CpuBackend {
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        CpuBackend::forward(self, batch)
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        CpuBackend::embed(self, batch)
    }

    fn copy_page(&mut self, from: PageIdx, to: PageIdx) {
        CpuBackend::copy_page(self, from, to);
    }
}
