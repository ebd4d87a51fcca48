//! The CPU backend: runs a plan operation by operation.
//!
//! Quantised matrices are packed into panels as they are loaded ([`weights`]), float ones stay
//! where the file has them; only vectors are kept as f32. Buffers are allocated once, for the
//! largest batch. Results do not depend on the batch, the number of threads or the instruction set.

mod acts;
mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod expand;
mod float_rows;
mod isa;
mod kv_cache;
mod kv_rotated;
mod l2;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod lanes_neon;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod lora;
mod math;
mod matmul;
mod pages;
mod panel;
mod panel_kernel;
mod pool;
pub mod probe;
mod row_chain;
mod rowwise;
mod shared;
mod simd;
#[cfg(test)]
mod tests;
mod weights;
mod wide_kernel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use isa::Isa;
pub use kv_cache::KvType;

use self::acts::{ActChunk, ActScale, quantize_rows};
use self::attention::Attention;
use self::kv_cache::KvCache;
use self::lora::Lora;
use self::matmul::{act_scale, matmul};
pub use self::panel::repack as repack_panel;
use self::pool::Pool;
pub use self::weights::WeightBytes;
use self::weights::Weights;
use super::{
    AttentionSpec, BackendError, Batch, BufId, InputSums, LoadProgress, Op, Plan, Rows, WeightId,
};
use crate::inference::gguf::Gguf;
use crate::inference::quant::TensorType;

/// Values to which the rows of a buffer are padded with zeros.
const STRIDE_LEN: usize = 32;

/// What a CPU backend is made for.
#[derive(Clone, Debug)]
pub struct CpuConfig {
    /// Threads that compute.
    pub n_threads: usize,
    /// Whether each stays on a core of its own.
    pub pin_threads: bool,
    /// Tokens of the largest batch.
    pub n_batch: usize,
    /// Output rows of the largest batch.
    pub n_outputs: usize,
    /// Pages of the KV cache.
    pub n_page: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Instruction set.
    pub isa: Isa,
}

/// A buffer of activations, `[rows, stride]`.
struct Buf {
    data: Vec<f32>,
    width: usize,
    stride: usize,
    rows: Rows,
}

/// The backend.
pub struct CpuBackend {
    plan: Plan,
    config: CpuConfig,
    weights: Weights,
    bufs: Vec<Buf>,
    kv: KvCache,
    pool: Pool,
    /// Activations rounded to 8 bits, the buffer that they are of, and how they were rounded.
    acts: Vec<ActChunk>,
    acts_of: Option<(BufId, ActScale)>,
    /// (cos, sin) for each token of the batch, for each table of the plan.
    angles: Vec<Vec<(f32, f32)>>,
    attention: Attention,
    lora: Lora,
    /// Gathered while somebody asks for them.
    input_sums: Option<InputSums>,
    /// Counted on with every operation, for whoever watches whether work goes on.
    beat: Arc<AtomicU64>,
}

/// Packs up to 16 plain rows of `n_cols` weights into one panel, which is zero before.
///
/// # Panics
/// If `rows` are not whole rows, or `panel` is not as long as a panel.
pub fn pack_panel(ty: TensorType, rows: &[u8], n_cols: usize, panel: &mut [u8]) {
    panel::pack(Isa::best(), ty, rows, n_cols / panel::BLOCK_LEN, panel);
}

impl CpuBackend {
    /// Binds `plan` to the tensors of `gguf` and allocates everything that a batch needs. What is
    /// packed of the weights is counted.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or memory, threads or the instruction set
    /// cannot be had.
    pub fn new(
        plan: Plan,
        gguf: Arc<Gguf>,
        config: CpuConfig,
        progress: &LoadProgress,
    ) -> Result<Self, BackendError> {
        // Kernels rely on it.
        Isa::choose(Some(config.isa.name()))?;
        let pool: fn(usize) -> std::io::Result<Pool> =
            if config.pin_threads { Pool::pinned } else { Pool::new };
        let mut pool = pool(config.n_threads).map_err(BackendError::Threads)?;
        let weights = Weights::new(&plan, gguf, config.isa, &mut pool, progress)?;
        let bufs = plan.bufs.iter().map(|&(width, rows)| new_buf(&config, width, rows));
        Ok(CpuBackend {
            bufs: bufs.collect(),
            kv: KvCache::new(&plan, config.n_page, config.kv_type)?,
            pool,
            acts: Vec::new(),
            acts_of: None,
            angles: vec![Vec::new(); plan.ropes.len()],
            attention: Attention::new(config.n_threads.max(1)),
            lora: Lora::default(),
            input_sums: None,
            beat: Arc::default(),
            weights,
            plan,
            config,
        })
    }

    /// Bytes that the weights take in the form that is multiplied.
    pub fn weight_bytes(plan: &Plan, gguf: &Gguf) -> WeightBytes {
        Weights::n_bytes(plan, gguf)
    }

    /// Bytes that a page of the KV cache would take.
    pub fn page_bytes_of(plan: &Plan, kv_type: KvType) -> usize {
        KvCache::page_bytes_of(plan, kv_type)
    }

    /// Bytes of buffers for batches as in `config`.
    pub fn scratch_bytes(plan: &Plan, config: &CpuConfig) -> usize {
        let rows = |rows| n_rows_max(config, rows);
        let bufs =
            plan.bufs.iter().map(|&(width, r)| stride_of(width) * rows(r) * 4).sum::<usize>();
        let cols = plan.weights.iter().filter(|w| !w.is_vector).map(|w| w.n_cols);
        let widest = cols.max().unwrap_or(0);
        let acts = widest.div_ceil(acts::CHUNK_LEN) * config.n_batch * size_of::<ActChunk>();
        let partials = Attention::partial_bytes(plan, config.n_page, config.n_batch);
        let expanded = matmul::expanded_bytes_max(config.isa, widest);
        bufs + acts + partials + config.n_threads * expanded.max(1 << 20)
    }

    /// Lets `n` threads compute from now on, of those of the configuration; `None` for all.
    pub fn set_n_threads(&mut self, n: Option<usize>) {
        self.pool.set_active(n.unwrap_or(usize::MAX));
    }

    /// Counts on `beat` with every operation from now on.
    pub fn count_on(&mut self, beat: &Arc<AtomicU64>) {
        self.beat = Arc::clone(beat);
    }

    /// Starts or ends gathering what weights are multiplied by; returns what was gathered.
    pub fn gather_inputs(&mut self, on: bool) -> InputSums {
        std::mem::replace(&mut self.input_sums, on.then(InputSums::default)).unwrap_or_default()
    }

    /// What computes: instruction set and threads.
    pub fn describe(&self) -> String {
        format!("cpu ({}, {} threads)", self.config.isa.name(), self.pool.n_threads())
    }

    /// What decides the bits of keys and values besides weights and program: neither the number of
    /// threads nor the batch is among it.
    pub fn numerics(&self) -> String {
        format!("cpu {} {}", self.config.isa.name(), self.config.kv_type.name())
    }

    /// Runs the plan for a batch and returns its output rows, `[outputs, output width]`.
    ///
    /// # Errors
    /// If the batch breaks a rule of [`Batch::check`].
    pub fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.run_to(self.plan.ops.len(), self.plan.output, batch)
    }

    /// An output row of the last [`CpuBackend::forward`].
    ///
    /// # Panics
    /// If it had no such row.
    pub fn row(&self, row_idx: usize) -> &[f32] {
        let out = &self.bufs[self.plan.output.0];
        &out.data[row_idx * out.stride..][..out.width]
    }

    /// Runs the plan up to the embeddings and returns those of the output rows,
    /// `[outputs, n_embd]`.
    ///
    /// # Errors
    /// As [`CpuBackend::forward`].
    pub fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        let (n_ops, buf) = self.plan.embedding;
        self.run_to(n_ops, buf, batch)
    }

    fn run_to(
        &mut self,
        n_ops: usize,
        output: BufId,
        batch: &Batch<'_>,
    ) -> Result<Vec<&[f32]>, BackendError> {
        batch.check(self.config.n_batch, self.plan.n_vocab, self.kv.n_page())?;
        self.check_adapters(batch)?;
        if batch.outputs.len() > self.config.n_outputs {
            return Err(super::BatchError::Outputs.into());
        }
        self.acts_of = None;
        self.turn_angles(batch);
        let mut at = 0;
        while at < n_ops {
            self.beat.fetch_add(1, Ordering::Relaxed);
            let n_chained = self.run_chain(at, n_ops, batch);
            if n_chained == 0 {
                self.run(self.plan.ops[at], batch);
            }
            at += n_chained.max(1);
        }
        let out = &self.bufs[output.0];
        let n = self.n_rows(output, batch);
        Ok((0..n).map(|i| &out.data[i * out.stride..][..out.width]).collect())
    }

    fn run(&mut self, op: Op, batch: &Batch<'_>) {
        match op {
            Op::Embed { table, out } => {
                self.add_table_rows(table, out, batch, true, |_, token| token as usize);
                let mut data = self.take(out);
                self.adapt_table(table, &mut data, self.bufs[out.0].stride, batch);
                self.bufs[out.0].data = data;
            }
            Op::AddPosition { x, table } => {
                self.add_table_rows(table, x, batch, false, |pos, _| pos);
            }
            Op::AddRow { x, row } => self.add_table_rows(row, x, batch, false, |_, _| 0),
            Op::MatMul { x, weight, bias, out } => self.matmul(x, weight, bias, out, batch),
            Op::Attention { q, k, v, out, spec } => {
                self.attention((q, k, v), out, spec, batch);
            }
            Op::SelectOutputs { x, out } => self.select_outputs(x, out, batch),
            Op::Norm { .. }
            | Op::Rope { .. }
            | Op::Glu { .. }
            | Op::Act { .. }
            | Op::Add { .. }
            | Op::Scale { .. } => unreachable!("`run_chain` runs them"),
        }
    }

    fn n_rows(&self, buf: BufId, batch: &Batch<'_>) -> usize {
        match self.bufs[buf.0].rows {
            Rows::Tokens => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        }
    }

    /// Takes a buffer out, so that it can be written while others are read.
    fn take(&mut self, buf: BufId) -> Vec<f32> {
        if self.acts_of.is_some_and(|(of, _)| of == buf) {
            self.acts_of = None;
        }
        std::mem::take(&mut self.bufs[buf.0].data)
    }

    /// `out[t] (+)= table[index of t]`
    fn add_table_rows(
        &mut self,
        table: WeightId,
        out: BufId,
        batch: &Batch<'_>,
        replace: bool,
        index: impl Fn(usize, u32) -> usize,
    ) {
        let mut data = self.take(out);
        let (width, stride) = (self.bufs[out.0].width, self.bufs[out.0].stride);
        let mut row_buf = vec![0f32; width];
        let positions = batch.spans.iter().flat_map(|s| s.pos..s.pos + s.n_tokens);
        for (t, (pos, &token)) in positions.zip(batch.tokens).enumerate() {
            self.weights.table_row(table, index(pos, token), &mut row_buf);
            let row = &mut data[t * stride..][..width];
            if replace {
                row.copy_from_slice(&row_buf);
            } else {
                row.iter_mut().zip(&row_buf).for_each(|(x, y)| *x += y);
            }
        }
        self.bufs[out.0].data = data;
    }

    fn matmul(
        &mut self,
        x: BufId,
        weight: WeightId,
        bias: Option<WeightId>,
        out: BufId,
        batch: &Batch<'_>,
    ) {
        let mut data = self.take(out);
        let w = self.weights.matrix(weight);
        let buf = &self.bufs[x.0];
        let n = self.n_rows(x, batch);
        let rows = acts::Rows { data: &buf.data, stride: buf.stride, n };
        let (isa, spec) = (self.config.isa, &self.plan.weights[weight.0]);
        // Of a tensor in several parts, the first speaks for all.
        if let Some(sums) = self.input_sums.as_mut().filter(|_| spec.row_start == 0) {
            sums.add(&spec.name, (0..n).map(|i| &buf.data[i * buf.stride..][..buf.width]));
        }
        if let Some(per) = act_scale(w.ty)
            && self.acts_of != Some((x, per))
        {
            quantize_rows(&mut self.pool, isa, rows, buf.width, per, &mut self.acts);
            self.acts_of = Some((x, per));
        }
        let bias = bias.map(|b| self.weights.vector(b));
        let stride = self.bufs[out.0].stride;
        matmul(&mut self.pool, isa, w, rows, &self.acts, bias, &mut data, stride);
        self.adapt_product((x, weight), &mut data, stride, batch);
        self.bufs[out.0].data = data;
    }

    /// The angles of every token of the batch.
    fn turn_angles(&mut self, batch: &Batch<'_>) {
        for (spec, angles) in self.plan.ropes.iter().zip(&mut self.angles) {
            angles.clear();
            for pos in batch.spans.iter().flat_map(|s| s.pos..s.pos + s.n_tokens) {
                angles.extend(spec.inv_freq.iter().map(|f| {
                    let (sin, cos) = (pos as f64 * f).sin_cos();
                    (cos as f32 * spec.magnitude, sin as f32 * spec.magnitude)
                }));
            }
        }
    }

    fn attention(
        &mut self,
        (q, k, v): (BufId, BufId, BufId),
        out: BufId,
        spec: AttentionSpec,
        batch: &Batch<'_>,
    ) {
        let mut data = self.take(out);
        let n = batch.tokens.len();
        let rows = |buf: BufId| {
            let Buf { data, stride, .. } = &self.bufs[buf.0];
            acts::Rows { data, stride: *stride, n }
        };
        self.kv.append(&mut self.pool, spec.layer_idx, batch.spans, rows(k), rows(v));
        let (pool, isa) = (&mut self.pool, self.config.isa);
        self.attention.run(pool, isa, spec, &self.kv, batch.spans, rows(q), &mut data);
        self.bufs[out.0].data = data;
    }

    fn select_outputs(&mut self, x: BufId, out: BufId, batch: &Batch<'_>) {
        let mut data = self.take(out);
        let x = &self.bufs[x.0];
        for (i, &row) in batch.outputs.iter().enumerate() {
            let src = &x.data[row as usize * x.stride..][..x.stride];
            data[i * x.stride..][..x.stride].copy_from_slice(src);
        }
        self.bufs[out.0].data = data;
    }
}

fn n_rows_max(config: &CpuConfig, rows: Rows) -> usize {
    match rows {
        Rows::Tokens => config.n_batch,
        Rows::Outputs => config.n_outputs,
    }
}

/// Values from one row of a buffer to the next. Rows that begin at the same place of a page share
/// the few cache lines that such places map to, and a tile of columns would push itself out.
fn stride_of(width: usize) -> usize {
    let stride = width.next_multiple_of(STRIDE_LEN);
    if stride.is_multiple_of(1024) { stride + STRIDE_LEN } else { stride }
}

fn new_buf(config: &CpuConfig, width: usize, rows: Rows) -> Buf {
    let stride = stride_of(width);
    Buf { data: vec![0.0; stride * n_rows_max(config, rows)], width, stride, rows }
}
