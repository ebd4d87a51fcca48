//! The CUDA backend: runs a plan's launches for a batch, one after another on one stream.
//!
//! ```text
//! new        kernels, each tried once -> KV pages, buffers, weights: all memory is taken here
//! forward    rows, positions, pages, angles: one copy -> launches -> the output rows back
//! ```
//!
//! The device is never left without work between the copy and the end of a batch, and every batch
//! waits for its end, also where a launch is refused in its middle, so what goes wrong on the
//! device is told by the batch that it went wrong in. Long batches count on the way (`progress`).
//! No launch takes long, for which launchers see, so that the watchdog of a board that draws its
//! screen with the same processor has nothing to end. Steps of a few tokens are recorded and
//! started as one (`launch::Replays`).
//!
//! Results do not depend on the batch, as on the CPU, but they are other ones: inputs of products
//! are halves here.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::CudaError;
use super::driver::{Buffer, Device};
use super::kv::KvPages;
use super::launch::{
    AttentionBatch, AttentionKernels, AttentionShape, GemvKernels, Inputs, KvFormat, LoraKernels,
    NormShape, Replays, RowKernels, RowShape, StageKernels, TensorCores, Turn,
};
use super::lora::Lora;
use super::outputs::Outputs;
use super::prepare::{Prepared, Preparer};
use super::progress;
use super::selftest;
use super::steps::{Step, Steps, host_buf};
use super::weights::Weights;
use crate::base::limits::{DEVICE_BATCH_MAX, DEVICE_GRAPH_TOKENS_MAX};
use crate::inference::backend::{
    Adapter, AdapterIdx, AttentionSpec, BackendError, Batch, BatchError, BufId, ColumnRun,
    LoadProgress, Op, PageIdx, Plan, RopeId, RopeSpec, Rows,
};
use crate::inference::gguf::Gguf;

/// What a CUDA backend is made for.
#[derive(Clone, Debug)]
pub struct CudaConfig {
    /// Tokens of the largest batch.
    pub n_batch: usize,
    /// Output rows of the largest batch.
    pub n_outputs: usize,
    /// Pages of the KV cache.
    pub n_page: usize,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// Threads that pack weights.
    pub n_threads: usize,
}

/// The backend.
pub struct CudaBackend {
    device: Device,
    plan: Plan,
    steps: Steps,
    config: CudaConfig,
    stage: StageKernels,
    gemv: GemvKernels,
    rows: RowKernels,
    attention: AttentionKernels,
    lora: Lora,
    weights: Weights,
    kv: KvPages,
    bufs: Vec<Buffer>,
    /// One memory, as columns of each length that is multiplied.
    inputs: Vec<Inputs>,
    preparer: Preparer,
    replays: Replays,
    outputs: Outputs,
    /// Counted on in long batches, for whoever watches whether work goes on.
    beat: Arc<AtomicU64>,
}

impl CudaBackend {
    /// Whether the kernels can run a plan.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`], with what they lack.
    pub fn check(plan: &Plan, config: &CudaConfig) -> Result<(), CudaError> {
        Steps::compile(plan)?;
        let unsupported = |what| Err(CudaError::Unsupported { what });
        let head_dim = plan.head_dim;
        if !config.kv.takes(head_dim) {
            let of = config.kv.name();
            return unsupported(format!("heads of {head_dim} keys or values in {of}"));
        }
        if config.n_batch > DEVICE_BATCH_MAX {
            return unsupported(format!("steps of {} tokens", config.n_batch));
        }
        // Kernels find a column by a number of 32 bits.
        if u32::try_from(input_bytes(plan, config)).is_err() {
            let n = config.n_batch;
            return unsupported(format!("steps of {n} tokens through matrices as wide as these"));
        }
        Ok(())
    }

    /// Compiles the kernels, tries each, takes all memory, and brings the weights to the device,
    /// which are counted.
    ///
    /// # Errors
    /// If the plan cannot be run, a tensor is missing or has another shape, a kernel gives wrong
    /// results here, or the driver refuses something.
    pub fn new(
        device: &Device,
        plan: Plan,
        gguf: Arc<Gguf>,
        config: CudaConfig,
        progress: &LoadProgress,
    ) -> Result<CudaBackend, BackendError> {
        device.info().check()?;
        CudaBackend::check(&plan, &config)?;
        let types = Weights::types(&plan, &gguf);
        let stage = StageKernels::load(device)?;
        let mut gemv = GemvKernels::load(device, &types)?;
        let rows = RowKernels::load(device)?;
        let shape = largest_attention(&plan, &config);
        let attention = AttentionKernels::load(device, shape, config.n_batch)?;
        let lora = LoraKernels::load(device)?;
        selftest::run(device, (&stage, &gemv, &rows, &attention), &types, shape)?;
        selftest::adapters(device, &lora)?;
        if let Err(error) = selftest::tensor_cores(device, (&stage, &gemv), &types) {
            gemv.refuse_tensor_cores(error.to_string());
        }
        let kv = KvPages::new(device, &plan, config.kv, config.n_page)?;
        let (bufs, inputs) = scratch(device, &plan, &config)?;
        let preparer = Preparer::new(device, &plan, &config)?;
        let outputs = Outputs::new(device, &plan, &config)?;
        let weights = Weights::load(device, &plan, gguf, config.n_threads, progress)?;
        let steps = Steps::compile(&plan)?;
        let device = device.clone();
        Ok(CudaBackend {
            device,
            steps,
            stage,
            gemv,
            rows,
            attention,
            lora: Lora::new(lora),
            weights,
            kv,
            bufs,
            inputs,
            preparer,
            replays: Replays::default(),
            outputs,
            beat: Arc::default(),
            plan,
            config,
        })
    }

    /// Bytes of the device that weights take.
    pub fn weight_bytes(plan: &Plan, gguf: &Gguf) -> u64 {
        Weights::n_bytes(plan, gguf)
    }

    /// Bytes of the device that a page of the KV cache takes.
    pub fn page_bytes_of(plan: &Plan, kv: KvFormat) -> usize {
        KvPages::page_bytes_of(plan, kv)
    }

    /// Bytes of the device for batches as in `config`.
    pub fn scratch_bytes(plan: &Plan, config: &CudaConfig) -> usize {
        let partials = largest_attention(plan, config).partial_bytes_max(config.n_batch);
        buf_sizes(plan, config).sum::<usize>()
            + input_bytes(plan, config)
            + partials
            + Preparer::n_bytes_max(plan, config)
            + Outputs::n_bytes(plan, config)
    }

    /// Bytes of the host for batches as in `config`: what is sent, and what comes back.
    pub fn host_bytes(plan: &Plan, config: &CudaConfig) -> usize {
        Outputs::host_bytes(plan, config) + Preparer::host_bytes_max(plan, config)
    }

    /// Counts on `beat` from now on, as the device gets on with long batches.
    pub fn count_on(&mut self, beat: &Arc<AtomicU64>) {
        self.beat = Arc::clone(beat);
    }

    /// What computes: the device and what its driver is.
    pub fn describe(&self) -> String {
        let info = self.device.info();
        match self.gemv.tensor_cores() {
            TensorCores::Absent => format!("cuda ({info})"),
            TensorCores::Used => format!("cuda ({info}; prompts on tensor cores)"),
            TensorCores::Refused(why) => format!("cuda ({info}; no tensor cores: {why})"),
        }
    }

    /// Whether a prompt's tokens are multiplied by other kernels than the rest, so that their keys
    /// and values have other bits than the same tokens would have in an answer.
    pub fn sets_prompts_apart(&self) -> bool {
        *self.gemv.tensor_cores() == TensorCores::Used
    }

    /// What decides the bits of keys and values besides weights and program: the driver compiles
    /// for the device, so both are among it.
    pub fn numerics(&self) -> String {
        let info = self.device.info();
        let (major, minor) = info.capability;
        let tensor = if self.sets_prompts_apart() { " tensor" } else { "" };
        let (driver, kv) = (info.driver_version, self.config.kv.name());
        format!("cuda {major}.{minor}{tensor} {driver} {kv}")
    }

    /// Bytes of a page over all layers.
    pub fn page_bytes(&self) -> usize {
        self.kv.page_bytes()
    }

    /// Makes `dst` hold what `src` holds, in every layer.
    ///
    /// # Errors
    /// If one of them is not in the cache, or the driver refuses.
    pub fn copy_page(&mut self, src: PageIdx, dst: PageIdx) -> Result<(), BackendError> {
        self.kv.copy(src, dst)
    }

    /// Writes the bytes of a page to `out`, which has room for [`CudaBackend::page_bytes`].
    ///
    /// # Errors
    /// If the page is not in the cache, `out` has another length, or the driver refuses.
    pub fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        self.kv.read(page, out)
    }

    /// Makes a page hold what [`CudaBackend::read_page`] gave, of this model and device.
    ///
    /// # Errors
    /// As [`CudaBackend::read_page`].
    pub fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        self.kv.write(page, bytes)
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Loads an adapter for this model, which is of architecture `arch`. It stays, so its number
    /// may stand for it in the key of a cache.
    ///
    /// # Errors
    /// If the file does not fit the model, too many adapters are loaded, or the device has no
    /// memory for it; those that are there stay.
    pub fn add_adapter(&mut self, gguf: &Gguf, arch: &str) -> Result<AdapterIdx, BackendError> {
        self.take_adapter(Adapter::read(gguf, &self.plan, arch).map_err(Box::new)?)
    }

    /// Takes an adapter that was read for its plan, as [`CudaBackend::add_adapter`] does.
    ///
    /// # Errors
    /// As [`CudaBackend::add_adapter`].
    pub fn take_adapter(&mut self, adapter: Adapter) -> Result<AdapterIdx, BackendError> {
        let n_adapter = self.lora.n_adapter() + 1;
        self.preparer.make_room(&self.plan, &self.config, n_adapter)?;
        self.lora.add(&self.device, (&self.plan, &self.config), adapter)
    }

    /// Runs the plan for a batch and returns its output rows, `[outputs, output width]`.
    ///
    /// # Errors
    /// If the batch breaks a rule of [`Batch::check`] or asks for an adapter that is not loaded, or
    /// the device fails.
    pub fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.launch(self.steps.steps.len(), batch)?;
        self.read_all(self.plan.output, batch)
    }

    /// Runs the plan up to the embeddings and returns those of the output rows,
    /// `[outputs, n_embd]`.
    ///
    /// # Errors
    /// As [`CudaBackend::forward`].
    pub fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.launch(self.steps.n_embedding, batch)?;
        self.read_all(self.plan.embedding.1, batch)
    }

    /// Takes the rows that the next batch begins with, `[n_tokens, n_embd]`: of a plan with an
    /// input.
    pub fn set_input(&mut self, rows: &[&[f32]]) {
        self.preparer.set_rows(rows);
    }

    /// How many of a row's largest logits [`CudaBackend::forward_top`] can fetch.
    pub fn n_top_max(&self) -> usize {
        Outputs::n_top_max(&self.plan)
    }

    /// Runs the plan for a batch and fetches as many of the largest logits of each output row as
    /// the most of `n_top`, `[outputs]`; nothing else crosses.
    ///
    /// # Errors
    /// As [`CudaBackend::forward`].
    pub fn forward_top(&mut self, batch: &Batch<'_>, n_top: &[usize]) -> Result<(), BackendError> {
        self.launch(self.steps.steps.len(), batch)?;
        let n_top = n_top.iter().copied().max().unwrap_or(0).min(self.n_top_max());
        let logits = (&self.bufs[self.plan.output.0], self.shape(self.plan.output, batch));
        self.outputs.fetch_top(&self.rows, logits, n_top)?;
        // What fails in a batch is told by it.
        Ok(self.device.wait()?)
    }

    /// What the last batch fetched of a row: (token, logit) from the largest, of equals the first
    /// token first.
    pub fn top(&self, row_idx: usize) -> &[(u32, f32)] {
        self.outputs.top(row_idx)
    }

    /// An output row of the last batch, as a whole.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there is no room for such a row.
    pub fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError> {
        let output = self.plan.output;
        let (from, width) = (&self.bufs[output.0], self.plan.bufs[output.0].0);
        Ok(self.outputs.read(from, width, (row_idx, 1))?)
    }

    /// Every row of a buffer.
    fn read_all(&mut self, buf: BufId, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        let (width, n) = (self.plan.bufs[buf.0].0, self.n_rows(buf, batch));
        if n == 0 {
            self.device.wait()?;
        }
        let rows = self.outputs.read(&self.bufs[buf.0], width, (0, n))?;
        Ok(rows.chunks_exact(width).collect())
    }

    fn launch(&mut self, n_steps: usize, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.outputs.forget();
        batch.check(self.config.n_batch, self.plan.n_vocab, self.kv.n_page())?;
        self.lora.check(batch)?;
        if batch.outputs.len() > self.config.n_outputs {
            return Err(BatchError::Outputs.into());
        }
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let of = (&self.weights, &self.lora);
        let prepared = self.preparer.prepare(&self.plan, &self.steps, of, batch)?;
        self.bufs[self.steps.host.1.0] = prepared.rows.clone();
        let mut replays = std::mem::take(&mut self.replays);
        let runs = self.column_runs(batch);
        let steps = &self.steps.steps[..n_steps];
        let launch = |step| self.step(step, (batch, &runs), &prepared);
        let launches = || steps.iter().copied().try_for_each(launch);
        let launched = match batch.tokens.len() <= DEVICE_GRAPH_TOKENS_MAX {
            true => {
                let likeness = prepared.likeness(n_steps, batch, &runs);
                replays.run(&self.device, likeness, launches)
            }
            false => progress::run(&self.device, &self.beat, steps, launch),
        };
        self.replays = replays;
        if launched.is_err() {
            // What was launched before ends here: its faults are this batch's, which has failed.
            let _ = self.device.wait();
        }
        Ok(launched?)
    }

    /// The tokens of a batch as runs that one kind of kernel multiplies: where there are tensor
    /// cores, those of prompts and the others.
    fn column_runs(&self, batch: &Batch<'_>) -> Vec<ColumnRun> {
        match self.sets_prompts_apart() {
            true => batch.prompt_runs(),
            false => vec![(0..batch.tokens.len(), false)],
        }
    }

    fn n_rows(&self, buf: BufId, batch: &Batch<'_>) -> usize {
        match self.plan.bufs[buf.0].1 {
            Rows::Tokens => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        }
    }

    /// The rows of a buffer, one behind the other.
    fn shape(&self, buf: BufId, batch: &Batch<'_>) -> RowShape {
        let width = self.plan.bufs[buf.0].0;
        RowShape { n_rows: self.n_rows(buf, batch), width, stride: width }
    }

    fn step(
        &self,
        step: Step,
        (batch, runs): (&Batch<'_>, &[ColumnRun]),
        sent: &Prepared,
    ) -> Result<(), CudaError> {
        let shape = self.shape(step.rows(), batch);
        if shape.n_rows == 0 {
            return Ok(());
        }
        match step {
            Step::MatMul { x, weight, bias, out, adds } => {
                let w = self.weights.matrix(weight);
                let bias = bias.map(|id| self.weights.vector(id));
                let to = (&self.bufs[out.0], shape.stride, adds);
                let (inputs, rows) = (self.inputs(w.n_cols), self.plan.bufs[out.0].1);
                let all = [(0..shape.n_rows, false)];
                let runs = if rows == Rows::Outputs { &all[..] } else { runs };
                runs.iter().try_for_each(|(columns, is_prompt)| match is_prompt {
                    true => self.gemv.multiply_prompt(w, inputs, bias, to, columns.clone()),
                    false => self.gemv.multiply(w, inputs, bias, to, columns.clone()),
                })?;
                let x = (&self.bufs[x.0], self.shape(x, batch).stride);
                self.lora.apply(weight, sent.adapters(rows), x, (to.0, to.1))
            }
            Step::Attention { q, k, v, out, spec, rope } => {
                self.attend((q, k, v, rope), out, spec, batch, sent)
            }
            Step::Stage { x } => self.stage.stage(shape, &self.bufs[x.0], self.inputs(shape.width)),
            Step::OpStage(op) => self.op(op, shape, Some(self.inputs(shape.width)), batch, sent),
            Step::Op(op) => self.op(op, shape, None, batch, sent),
        }
    }

    /// Columns of so many values.
    fn inputs(&self, n_cols: usize) -> &Inputs {
        let found = self.inputs.iter().find(|inputs| inputs.n_cols() == n_cols);
        found.expect("there is room for the input of every product of the plan")
    }

    /// An operation on rows; what it makes is staged to `inputs`, where there are some.
    fn op(
        &self,
        op: Op,
        shape: RowShape,
        inputs: Option<&Inputs>,
        batch: &Batch<'_>,
        sent: &Prepared,
    ) -> Result<(), CudaError> {
        let buf = |id: BufId| &self.bufs[id.0];
        let vector = |id| self.weights.vector(id);
        match op {
            Op::Norm { x, out, norm } => {
                let of = NormShape { kind: norm.kind, eps: norm.eps, width: norm.width };
                let (bufs, weights) =
                    ((buf(x), buf(out)), (vector(norm.weight), norm.bias.map(vector)));
                match inputs {
                    Some(inputs) => self.stage.norm(shape, of, bufs, weights, inputs),
                    None => self.rows.norm(shape, of, bufs, weights),
                }
            }
            Op::Glu { gate: x, activation, .. } | Op::Act { x, activation } => {
                let up = if let Op::Glu { up, .. } = op { Some(buf(up)) } else { None };
                match inputs {
                    Some(inputs) => self.stage.glu(shape, activation, (buf(x), up), inputs),
                    None => self.rows.glu(shape, activation, (buf(x), up)),
                }
            }
            Op::Add { x, y } => self.rows.add(shape, buf(x), 1.0, Some(buf(y))),
            Op::Scale { x, factor } => self.rows.add(shape, buf(x), factor, None),
            Op::SelectOutputs { x, out } => {
                let from = (buf(x), batch.tokens.len());
                self.rows.select(shape, from, buf(out), (&sent.outputs, batch.outputs))
            }
            _ => unreachable!("`Steps::compile` leaves no others"),
        }
    }

    fn attend(
        &self,
        (q, k, v, rope): (BufId, BufId, BufId, Option<RopeId>),
        out: BufId,
        spec: AttentionSpec,
        batch: &Batch<'_>,
        sent: &Prepared,
    ) -> Result<(), CudaError> {
        let shape = attention_shape(&spec, &self.config);
        let of: &AttentionBatch = sent.attention(&spec);
        let stride = |id: BufId| self.shape(id, batch).stride;
        let buf = |id: BufId| &self.bufs[id.0];
        let cache = self.kv.layer(spec.layer_idx);
        let turn = rope.map(|rope| {
            let RopeSpec { style, inv_freq, .. } = &self.plan.ropes[rope.0];
            let (angles, queries) = (&sent.angles[rope.0], (buf(q), stride(q)));
            Turn { style: *style, angles, n_pair: inv_freq.len(), queries }
        });
        self.attention.append(of, shape, (buf(k), buf(v), stride(k)), cache, turn)?;
        self.attention.attend(of, shape, (buf(q), buf(out), stride(q)), cache)
    }
}

fn attention_shape(spec: &AttentionSpec, config: &CudaConfig) -> AttentionShape {
    let AttentionSpec { n_head, n_kv_head, head_dim, scale, .. } = *spec;
    let CudaConfig { n_page, kv: format, .. } = *config;
    AttentionShape { n_head, n_kv_head, head_dim, n_page, scale, format }
}

/// The attention of a plan with the most heads; all have the same width.
fn largest_attention(plan: &Plan, config: &CudaConfig) -> AttentionShape {
    let specs = plan.ops.iter().filter_map(|op| match op {
        Op::Attention { spec, .. } => Some(attention_shape(spec, config)),
        _ => None,
    });
    let Plan { n_kv_head, head_dim, .. } = *plan;
    let CudaConfig { n_page, kv: format, .. } = *config;
    let none =
        AttentionShape { n_head: n_kv_head, n_kv_head, head_dim, n_page, scale: 1.0, format };
    specs.max_by_key(|shape| shape.n_head).unwrap_or(none)
}

/// Bytes of each buffer; the one that rows are sent to is a piece of what is sent.
fn buf_sizes(plan: &Plan, config: &CudaConfig) -> impl Iterator<Item = usize> + Clone {
    let sent = host_buf(plan);
    plan.bufs.iter().enumerate().map(move |(i, &(width, rows))| {
        let n_rows = match rows {
            _ if sent == Some(BufId(i)) => 0,
            Rows::Tokens => config.n_batch,
            Rows::Outputs => config.n_outputs,
        };
        (4 * width * n_rows).next_multiple_of(BUF_ALIGNMENT)
    })
}

/// Where buffers begin: whole lines of the device's cache.
const BUF_ALIGNMENT: usize = 128;

/// Lengths of the inputs that are multiplied.
fn input_lens(plan: &Plan) -> Vec<usize> {
    let mut lens: Vec<usize> = plan
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::MatMul { weight, .. } => Some(plan.weights[weight.0].n_cols),
            _ => None,
        })
        .collect();
    lens.sort_unstable();
    lens.dedup();
    lens
}

fn input_bytes(plan: &Plan, config: &CudaConfig) -> usize {
    let n_max = config.n_batch.max(config.n_outputs);
    input_lens(plan).into_iter().map(|n| Inputs::n_bytes(n, n_max)).max().unwrap_or(0)
}

/// The plan's buffers, and room for staged inputs.
fn scratch(
    device: &Device,
    plan: &Plan,
    config: &CudaConfig,
) -> Result<(Vec<Buffer>, Vec<Inputs>), CudaError> {
    let sizes = buf_sizes(plan, config);
    let memory = device.allocate("buffers", sizes.clone().sum())?;
    let mut at = 0;
    let bufs = sizes.map(|n| {
        at += n;
        memory.part(at - n, n)
    });
    let staged = device.allocate("staged inputs", input_bytes(plan, config))?;
    let n_max = config.n_batch.max(config.n_outputs);
    let inputs = input_lens(plan).into_iter().map(|n| Inputs::within(&staged, n, n_max));
    Ok((bufs.collect(), inputs.collect()))
}
