//! What of a batch's output rows comes to the host: the largest logits of each, or whole rows, and
//! of these only the ones that somebody asks for.

use super::CudaError;
use super::backend::CudaConfig;
use super::driver::{Buffer, Device};
use super::launch::{RowKernels, RowShape, TOP_K_MAX};
use crate::inference::backend::{Plan, Rows};

/// Bytes of a logit with its token.
const PAIR_BYTES: usize = 8;

/// The memory for it, here and there.
pub struct Outputs {
    /// Largest logits on the device, `[n_outputs][TOP_K_MAX]` at most; empty without logits.
    pairs: Buffer,
    /// The same of the last batch, `[n_rows][n_top]`.
    top: Vec<(u32, f32)>,
    n_top: usize,
    /// Pairs as they come.
    words: Vec<f32>,
    /// Whole rows.
    rows: Vec<f32>,
}

impl Outputs {
    /// How many of a row's largest logits can be asked for: of short rows, and of what are no
    /// logits, none.
    pub fn n_top_max(plan: &Plan) -> usize {
        let (width, rows) = plan.bufs[plan.output.0];
        let is_logits = rows == Rows::Outputs && width == plan.n_vocab && width > TOP_K_MAX;
        if is_logits { TOP_K_MAX } else { 0 }
    }

    /// Bytes of the device.
    pub fn n_bytes(plan: &Plan, config: &CudaConfig) -> usize {
        PAIR_BYTES * Outputs::n_top_max(plan) * config.n_outputs
    }

    /// Bytes of the host: rows of the output or of embeddings, and pairs as they come and as they
    /// are.
    pub fn host_bytes(plan: &Plan, config: &CudaConfig) -> usize {
        4 * Outputs::n_floats_max(plan, config) + 2 * Outputs::n_bytes(plan, config)
    }

    /// Values of the most rows that are read at a time.
    fn n_floats_max(plan: &Plan, config: &CudaConfig) -> usize {
        let floats = [plan.output, plan.embedding.1].map(|buf| match plan.bufs[buf.0] {
            (width, Rows::Tokens) => width * config.n_batch,
            (width, Rows::Outputs) => width * config.n_outputs,
        });
        floats[0].max(floats[1])
    }

    /// Memory for the largest batch.
    ///
    /// # Errors
    /// If the device has none.
    pub fn new(device: &Device, plan: &Plan, config: &CudaConfig) -> Result<Outputs, CudaError> {
        let pairs = device.allocate("the largest logits", Outputs::n_bytes(plan, config))?;
        let n_pair = Outputs::n_top_max(plan) * config.n_outputs;
        let (top, words) = (Vec::with_capacity(n_pair), Vec::with_capacity(2 * n_pair));
        let rows = Vec::with_capacity(Outputs::n_floats_max(plan, config));
        Ok(Outputs { pairs, top, n_top: 0, words, rows })
    }

    /// Fetches the `n_top` largest of each row of `logits`, of which nothing was fetched yet; none
    /// of them for 0.
    ///
    /// # Errors
    /// If the driver refuses, or something before failed.
    pub fn fetch_top(
        &mut self,
        kernels: &RowKernels,
        (logits, shape): (&Buffer, RowShape),
        n_top: usize,
    ) -> Result<(), CudaError> {
        self.n_top = n_top;
        if n_top == 0 || shape.n_rows == 0 {
            return Ok(());
        }
        kernels.top_k(shape, logits, n_top, &self.pairs)?;
        self.words.resize(2 * shape.n_rows * n_top, 0.0);
        self.pairs.read_floats(&mut self.words)?;
        let pairs = self.words.as_chunks::<2>().0.iter();
        self.top.extend(pairs.map(|&[logit, token]| (token.to_bits(), logit)));
        Ok(())
    }

    /// Forgets what was fetched of the batch before.
    pub fn forget(&mut self) {
        self.top.clear();
    }

    /// What was fetched of a row.
    pub fn top(&self, row_idx: usize) -> &[(u32, f32)] {
        match self.top.is_empty() {
            true => &[],
            false => &self.top[row_idx * self.n_top..][..self.n_top],
        }
    }

    /// Reads `n` rows of `width` values from the `first` on.
    ///
    /// # Errors
    /// If the driver refuses, or something before failed.
    ///
    /// # Panics
    /// If `from` has fewer.
    pub fn read(
        &mut self,
        from: &Buffer,
        width: usize,
        (first, n): (usize, usize),
    ) -> Result<&[f32], CudaError> {
        self.rows.resize(n * width, 0.0);
        from.part(4 * first * width, 4 * n * width).read_floats(&mut self.rows)?;
        Ok(&self.rows)
    }
}
