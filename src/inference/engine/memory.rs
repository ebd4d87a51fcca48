//! The memory plan: what a model will take, decided before anything is loaded.
//!
//! ```text
//! weights    what the backend packs, and the rest of the file, mapped
//! kv         pages of 32 positions for the whole context
//! scratch    buffers for the largest batch
//! draft      the same three of a draft model, whose places hold as many positions as the model's
//! reserve    the program itself, the vocabulary, and room to breathe
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use super::device::GpuRoom;
use super::{DeviceChoice, InferenceError, ModelSource};
use crate::base::limits::PARALLEL_MAX;
use crate::inference::backend::cpu::{CpuBackend, CpuConfig, Isa, KvType};
use crate::inference::backend::cuda::{CudaBackend, CudaConfig};
use crate::inference::backend::{BackendError, PAGE_LEN, Plan};
use crate::inference::gguf::Gguf;
use crate::inference::model::{Hparams, plan};

/// Bytes kept free of everything that is planned.
const RESERVE_BYTES: u64 = 96 << 20;
/// Context where the options name none, if the model was trained on as much.
const N_CTX_DEFAULT: usize = 4096;
/// Tokens of a prefill step where the options name none.
const N_BATCH_DEFAULT: usize = 512;
/// The smallest context worth running.
const N_CTX_MIN: usize = 32;

/// How a model is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// Positions of a sequence's context; by default the trained ones, up to 4,096.
    pub n_ctx: Option<u32>,
    /// Sequences that run at once, each with a context of its own; by default 1.
    pub n_parallel: Option<usize>,
    /// Tokens of a prefill step.
    pub n_batch: Option<u32>,
    /// Threads that compute; by default all that the process may use.
    pub n_threads: Option<usize>,
    /// Whether each thread stays on a core of its own.
    pub pin_threads: bool,
    /// Instruction set by name; by default the fastest.
    pub isa: Option<String>,
    /// How keys and values are stored, `f16`, `q8_0`, `q4_0` or `f32`; by default f16.
    pub kv_type: Option<String>,
    /// Files of LoRA adapters that requests may use.
    pub adapters: Vec<PathBuf>,
    /// A small model of the same vocabulary that guesses for this one.
    pub draft: Option<ModelSource>,
    /// Memory that may be used; by default not limited.
    pub memory_max_bytes: Option<u64>,
    /// What computes; by default the CPU.
    pub device: DeviceChoice,
    /// Layers that a GPU has, counted from the end, the output being the last; by default all, or
    /// with [`DeviceChoice::Auto`] as many as fit.
    pub n_gpu_layers: Option<u32>,
    /// The CUDA driver's library; by default the one that the system finds.
    pub cuda_library: Option<PathBuf>,
    /// Where the GPU's compiled code is kept; by default nowhere.
    pub cuda_images: Option<PathBuf>,
}

/// What a model takes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights as they are computed with, and the rest of the file.
    pub weights_bytes: u64,
    /// What of them loading packs; the rest is used as the file has it.
    pub packed_bytes: u64,
    /// KV cache of the whole context.
    pub kv_bytes: u64,
    /// Buffers, and adapters.
    pub scratch_bytes: u64,
    /// Weights, KV cache and buffers of the draft model; 0 without one.
    pub draft_bytes: u64,
    /// Kept free.
    pub reserve_bytes: u64,
    /// What there is.
    pub available_bytes: u64,
    /// Positions of the context.
    pub n_ctx: u32,
    /// Whether all of it is memory of a GPU's own, and not the machine's.
    pub is_on_gpu: bool,
    /// What comes beside that where the first layers are on the CPU.
    pub cpu_layers: Option<CpuLayers>,
}

/// What the layers take that are on the CPU while a GPU has the others, in the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLayers {
    /// How many there are.
    pub n_layer: u32,
    /// Their weights.
    pub weights_bytes: u64,
    /// Their part of the KV cache.
    pub kv_bytes: u64,
    /// Buffers.
    pub scratch_bytes: u64,
}

impl CpuLayers {
    /// The sum.
    pub fn needed_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.scratch_bytes)
    }
}

impl MemoryPlan {
    /// The sum of what is needed there; where a GPU has memory of its own, of it.
    pub fn needed_bytes(&self) -> u64 {
        let own = [self.weights_bytes, self.kv_bytes, self.scratch_bytes, self.reserve_bytes];
        let beside = if self.is_on_gpu { 0 } else { self.beside_bytes() };
        own.into_iter().fold(self.draft_bytes.saturating_add(beside), u64::saturating_add)
    }

    /// What the machine's memory holds.
    pub fn host_bytes(&self) -> u64 {
        match self.is_on_gpu {
            true => self.reserve_bytes.saturating_add(self.beside_bytes()),
            false => self.needed_bytes(),
        }
    }

    fn beside_bytes(&self) -> u64 {
        self.cpu_layers.as_ref().map_or(0, CpuLayers::needed_bytes)
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "weights {} MiB{} + KV cache {} MiB for {} positions + buffers {} MiB",
            mib(self.weights_bytes),
            if self.packed_bytes == 0 { " (mapped)" } else { "" },
            mib(self.kv_bytes),
            self.n_ctx,
            mib(self.scratch_bytes),
        )?;
        if self.draft_bytes > 0 {
            write!(f, " + draft model {} MiB", mib(self.draft_bytes))?;
        }
        if let Some(cpu) = self.cpu_layers.as_ref().filter(|_| !self.is_on_gpu) {
            write!(f, " + {} layers on the CPU {} MiB", cpu.n_layer, mib(cpu.needed_bytes()))?;
        }
        write!(f, " + reserve {} MiB = {} MiB", mib(self.reserve_bytes), mib(self.needed_bytes()))?;
        if self.is_on_gpu {
            f.write_str(" of the GPU")?;
        }
        match self.cpu_layers.as_ref().filter(|_| self.is_on_gpu) {
            Some(cpu) => write!(
                f,
                "; {} layers on the CPU, {} MiB of the machine",
                cpu.n_layer,
                mib(self.host_bytes())
            ),
            None => Ok(()),
        }
    }
}

/// Everything that follows from a file and the options before memory is taken.
pub(super) struct Prepared {
    pub hparams: Hparams,
    pub plan: Plan,
    pub config: CpuConfig,
    pub n_ctx: usize,
    pub n_parallel: usize,
    /// Matrices of adapters, wherever they are multiplied.
    pub adapter_bytes: u64,
    /// Those of the largest one, which pass through the host's memory on the way to a GPU.
    pub adapter_bytes_max: u64,
    pub draft: Option<Box<PreparedDraft>>,
}

/// A draft model's file and what follows from it.
pub(super) struct PreparedDraft {
    pub name: String,
    pub gguf: Arc<Gguf>,
    pub prepared: Prepared,
}

/// Pages for `n_parallel` contexts, and one for the copy of a page that is shared in part.
fn n_page(n_parallel: usize, n_ctx: usize) -> usize {
    n_parallel * n_ctx.div_ceil(PAGE_LEN) + 1
}

/// Reads the model's numbers and sizes what it needs.
pub(super) fn prepare(gguf: &Gguf, options: &LoadOptions) -> Result<Prepared, InferenceError> {
    let hparams = Hparams::from_gguf(gguf)?;
    let plan = plan(gguf, &hparams)?;
    let n_ctx = match options.n_ctx {
        Some(n) if n as usize > hparams.n_ctx_train && hparams.arch.rope.is_none() => {
            let (asked, trained) = (n as usize, hparams.n_ctx_train);
            return Err(InferenceError::ContextTrained { asked, trained });
        }
        Some(0) | None => hparams.n_ctx_train.min(N_CTX_DEFAULT),
        Some(n) => n as usize,
    };
    let n_parallel = options.n_parallel.unwrap_or(1).clamp(1, PARALLEL_MAX);
    let n_batch = options.n_batch.map_or(N_BATCH_DEFAULT, |n| n.max(1) as usize).min(n_ctx);
    // Each sequence takes a token of a step at least.
    let n_batch = n_batch.max(n_parallel);
    // An encoder sees its whole text at once.
    let n_batch = if hparams.arch.causal { n_batch } else { n_ctx };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let config = CpuConfig {
        n_threads: options.n_threads.unwrap_or(cores).clamp(1, crate::base::limits::THREADS_MAX),
        pin_threads: options.pin_threads,
        n_batch,
        n_outputs: if hparams.arch.causal {
            N_OUTPUTS.min(n_batch).max(n_parallel)
        } else {
            n_batch
        },
        n_page: n_page(n_parallel, n_ctx),
        kv_type: match options.kv_type.as_deref() {
            None => KvType::default(),
            Some(name) => KvType::from_name(name)
                .ok_or_else(|| BackendError::KvType { name: name.to_owned() })?,
        },
        isa: Isa::choose(options.isa.as_deref())?,
    };
    let (adapter_bytes, adapter_bytes_max) = adapter_bytes(&plan, &options.adapters)?;
    let mut prepared = Prepared {
        hparams,
        plan,
        config,
        n_ctx,
        n_parallel,
        adapter_bytes,
        adapter_bytes_max,
        draft: None,
    };
    if let Some(source) = &options.draft {
        let name = source.to_string();
        let draft = prepare_draft(source, &prepared, options);
        let draft = draft.map_err(|error| {
            let source = Box::new(error);
            InferenceError::Draft { name: name.clone(), source }
        });
        let (gguf, draft) = draft?;
        prepared.draft = Some(Box::new(PreparedDraft { name, gguf, prepared: draft }));
    }
    Ok(prepared)
}

/// Bytes of adapters as they are computed with, in f32, and of the largest. Each part of a matrix
/// that the plan takes apart has all of A.
fn adapter_bytes(plan: &Plan, paths: &[PathBuf]) -> Result<(u64, u64), InferenceError> {
    let (mut all, mut most) = (0u64, 0);
    for path in paths {
        let gguf = Gguf::open(path)?;
        let sizes = plan.weights.iter().filter_map(|weight| {
            let n = |end: &str| Some(gguf.tensor(&format!("{}{end}", weight.name))?.n_elements());
            let n_row = weight.shape.get(1).copied().unwrap_or(1).max(1);
            let b = n(".lora_b")?.saturating_mul(weight.n_rows as u64) / n_row;
            Some(n(".lora_a")?.saturating_add(b).saturating_mul(4))
        });
        let n_bytes = sizes.fold(0, u64::saturating_add);
        (all, most) = (all.saturating_add(n_bytes), most.max(n_bytes));
    }
    Ok((all, most))
}

/// Sizes a draft model: as many places as its model has, each with pages of its own for the context
/// as far as the draft model was trained on it.
fn prepare_draft(
    source: &ModelSource,
    model: &Prepared,
    options: &LoadOptions,
) -> Result<(Arc<Gguf>, Prepared), InferenceError> {
    let gguf = source.open()?;
    let n_ctx_train = Hparams::from_gguf(&gguf)?.n_ctx_train;
    let n_ctx = model.n_ctx.min(n_ctx_train);
    let options = LoadOptions {
        n_ctx: Some(n_ctx as u32),
        adapters: Vec::new(),
        draft: None,
        ..options.clone()
    };
    let mut draft = prepare(&gguf, &options)?;
    if !draft.hparams.arch.causal {
        return Err(InferenceError::NotGenerative);
    }
    draft.config.n_page = draft_n_page(model.n_parallel, n_ctx);
    draft.config.n_outputs = model.n_parallel;
    // A sequence brings two tokens when all of its guesses were right.
    draft.config.n_batch = draft.config.n_batch.max(2 * model.n_parallel);
    Ok((gguf, draft))
}

fn draft_n_page(n_parallel: usize, n_ctx: usize) -> usize {
    n_parallel * n_ctx.div_ceil(PAGE_LEN)
}

/// Output rows of a step: enough for logits of a stretch of text, few enough for large
/// vocabularies.
const N_OUTPUTS: usize = 32;

/// What a backend takes, in bytes.
struct Sizes {
    weights: u64,
    /// What of the weights is made when they are loaded.
    packed: u64,
    kv: u64,
    scratch: u64,
}

impl Prepared {
    fn memory(
        &self,
        gguf: &Gguf,
        available_bytes: u64,
        gpu: Option<&GpuRoom>,
        n_ctx: usize,
    ) -> MemoryPlan {
        let n_page = n_page(self.n_parallel, n_ctx);
        let n_batch = self.config.n_batch.min(n_ctx.max(self.n_parallel));
        let halves = gpu.and_then(|gpu| gpu.halves.as_ref());
        let of = halves.map_or(&self.plan, |halves| &halves.tail);
        let sizes = self.sizes(of, gguf, gpu, (n_page, n_batch));
        let cpu_layers = halves.map(|halves| {
            let head = &halves.head;
            let Sizes { weights, kv, scratch, .. } =
                self.sizes(head, gguf, None, (n_page, n_batch));
            CpuLayers {
                n_layer: head.n_layer as u32,
                // The file's other tensors are not touched.
                weights_bytes: (weights + file_bytes(head, gguf)).saturating_sub(gguf.file_bytes()),
                kv_bytes: kv,
                scratch_bytes: scratch,
            }
        });
        let draft = |draft: &PreparedDraft| draft.needed_bytes(gpu, n_ctx);
        let passes = gpu.filter(|gpu| gpu.is_shared).map_or(0, |_| self.adapter_bytes_max);
        let adapters = self.adapter_bytes.saturating_add(passes);
        MemoryPlan {
            weights_bytes: sizes.weights,
            packed_bytes: sizes.packed,
            kv_bytes: sizes.kv,
            scratch_bytes: sizes.scratch.saturating_add(adapters),
            draft_bytes: self.draft.as_deref().map_or(0, draft),
            reserve_bytes: RESERVE_BYTES,
            available_bytes: gpu.map_or(available_bytes, |gpu| gpu.free_bytes),
            n_ctx: n_ctx as u32,
            is_on_gpu: gpu.is_some_and(|gpu| !gpu.is_shared),
            cpu_layers,
        }
    }

    /// What the backend takes for a plan with so many pages and tokens of a step.
    fn sizes(
        &self,
        plan: &Plan,
        gguf: &Gguf,
        gpu: Option<&GpuRoom>,
        (n_page, n_batch): (usize, usize),
    ) -> Sizes {
        if let Some(gpu) = gpu {
            let config = CudaConfig { n_page, n_batch, ..self.cuda_config() };
            let weights = CudaBackend::weight_bytes(plan, gguf);
            let kv = (CudaBackend::page_bytes_of(plan, config.kv) * n_page) as u64;
            let mut scratch = CudaBackend::scratch_bytes(plan, &config) as u64;
            if gpu.is_shared {
                scratch += CudaBackend::host_bytes(plan, &config) as u64;
            }
            return Sizes { weights, packed: weights, kv, scratch };
        }
        let config = CpuConfig { n_page, n_batch, ..self.config.clone() };
        let weights = CpuBackend::weight_bytes(plan, gguf);
        Sizes {
            weights: weights.total,
            packed: weights.packed,
            kv: (CpuBackend::page_bytes_of(plan, config.kv_type) * n_page) as u64,
            scratch: CpuBackend::scratch_bytes(plan, &config) as u64,
        }
    }

    /// The memory plan, or a refusal that names what is missing and what would fit.
    pub fn fit(
        &self,
        gguf: &Gguf,
        available_bytes: u64,
        gpu: Option<&GpuRoom>,
    ) -> Result<MemoryPlan, InferenceError> {
        let plan = |n_ctx| self.memory(gguf, available_bytes, gpu, n_ctx);
        let memory = plan(self.n_ctx);
        let lacks = |plan: &MemoryPlan| {
            let here = plan.needed_bytes().saturating_sub(plan.available_bytes);
            let is_split = plan.is_on_gpu && plan.cpu_layers.is_some();
            let host = if is_split { plan.host_bytes() } else { 0 };
            here.max(host.saturating_sub(available_bytes))
        };
        let fits = |n_ctx| lacks(&plan(n_ctx)) == 0;
        if fits(self.n_ctx) {
            return Ok(memory);
        }
        let (mut low, mut high) = (0, self.n_ctx);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        let largest = low / PAGE_LEN * PAGE_LEN;
        Err(InferenceError::Memory {
            missing_bytes: lacks(&memory),
            n_ctx_fits: (largest >= N_CTX_MIN).then_some(largest as u32),
            plan: Box::new(memory),
        })
    }
}

impl PreparedDraft {
    /// Weights, KV cache and buffers beside a model with this context.
    fn needed_bytes(&self, gpu: Option<&GpuRoom>, n_ctx: usize) -> u64 {
        let Prepared { config, n_parallel, .. } = &self.prepared;
        let n_page = draft_n_page(*n_parallel, n_ctx.min(self.prepared.n_ctx));
        let Prepared { plan, .. } = &self.prepared;
        let sizes = self.prepared.sizes(plan, &self.gguf, gpu, (n_page, config.n_batch));
        sizes.weights + sizes.kv + sizes.scratch
    }
}

/// Bytes of the tensors that a plan names.
fn file_bytes(plan: &Plan, gguf: &Gguf) -> u64 {
    let mut names: Vec<&str> = plan.weights.iter().map(|spec| spec.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let tensors = names.into_iter().filter_map(|name| gguf.tensor(name));
    tensors.map(|info| gguf.bytes(info).len() as u64).sum()
}

/// What a file would take under `options` with this much memory of the machine.
///
/// # Errors
/// If it does not fit: the missing bytes and the largest context that does. If the file is not a
/// model that runs.
pub fn plan_memory(
    gguf: &Gguf,
    options: &LoadOptions,
    available_bytes: u64,
) -> Result<MemoryPlan, InferenceError> {
    prepare(gguf, options)?.plan_memory(gguf, options, available_bytes)
}
