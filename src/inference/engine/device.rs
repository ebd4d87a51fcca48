//! Where a model runs: on the CPU, or on a GPU that is there and can.
//!
//! ```text
//! cpu        the CPU
//! cuda:N     that GPU, or an error
//! auto       the first GPU, with all layers or as many as fit; else the CPU, and why: a machine
//!            without a driver is as it should be, a GPU that cannot be used is a warning
//! ```
//!
//! Everything is decided before weights are read: the driver, the device, whether there are kernels
//! for the model, whether each passes its self-test, and the memory. A draft model runs where its
//! model does.

use std::path::Path;
use std::sync::Arc;

use super::memory::{Prepared, PreparedDraft};
use super::runner::Runner;
use super::split::SplitRunner;
use super::{InferenceError, LoadOptions, MemoryPlan};
use crate::base::host::Host;
use crate::inference::backend::cpu::{CpuBackend, KvType};
use crate::inference::backend::cuda::{
    CudaBackend, CudaConfig, CudaError, Device, KvFormat, LIBRARY,
};
use crate::inference::backend::{BackendError, LoadProgress, Plan};
use crate::inference::gguf::Gguf;

/// The device that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if it can, else the CPU.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

impl DeviceChoice {
    /// The choice called `name`: `auto`, `cpu`, `cuda` or `cuda:1`; llama.cpp's `none` and `CUDA1`
    /// are understood.
    pub fn from_name(name: &str) -> Option<DeviceChoice> {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" | "none" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            _ => {
                let number = name.strip_prefix("cuda")?;
                let number = number.strip_prefix(':').unwrap_or(number);
                let is_number = number.bytes().all(|b| b.is_ascii_digit());
                number.parse().ok().filter(|_| is_number).map(DeviceChoice::Cuda)
            }
        }
    }
}

/// Where a model runs, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// `cpu`, or `cuda:0`.
    pub name: String,
    /// Why.
    pub why: String,
    /// Whether there is a GPU that could not be used.
    pub is_fallback: bool,
    /// Whether the first layers are the CPU's beside a GPU.
    pub is_split: bool,
    /// Bytes a second that a GPU's memory can give, if its driver tells.
    pub memory_peak_bytes_s: Option<u64>,
}

impl DeviceReport {
    /// The CPU, which was asked for.
    pub(super) fn cpu() -> DeviceReport {
        DeviceReport {
            name: "cpu".to_owned(),
            why: "as configured".to_owned(),
            is_fallback: false,
            is_split: false,
            memory_peak_bytes_s: None,
        }
    }

    /// The CPU, because of what a GPU answered.
    fn instead(error: &InferenceError) -> DeviceReport {
        let has_driver = !matches!(error, InferenceError::Backend(e) if e.is_no_driver());
        let why = match has_driver {
            true => format!("the GPU cannot be used: {error}"),
            false => "there is no CUDA driver".to_owned(),
        };
        DeviceReport { why, is_fallback: has_driver, ..DeviceReport::cpu() }
    }
}

/// What a GPU has room for, and what is to run there.
#[derive(Clone, Debug)]
pub(super) struct GpuRoom {
    /// Bytes that can be had.
    pub free_bytes: u64,
    /// Whether they are the machine's own.
    pub is_shared: bool,
    /// The plan's halves, unless all of it runs there.
    pub halves: Option<Box<Halves>>,
}

/// A plan whose first layers are the CPU's.
#[derive(Clone, Debug)]
pub(super) struct Halves {
    pub head: Plan,
    pub tail: Plan,
}

/// A model in its place.
pub(super) struct Placed {
    pub runner: Box<dyn Runner>,
    /// What runs the draft model.
    pub draft: Option<Box<dyn Runner>>,
    /// The files of the adapters that the runner has.
    pub adapters: Vec<Gguf>,
    /// What computes.
    pub backend_name: String,
    pub memory: MemoryPlan,
    pub report: DeviceReport,
}

/// The name and driver of the GPU that the options would use.
///
/// # Errors
/// Why there is none, or none that can be used.
pub fn find_gpu(options: &LoadOptions) -> Result<String, BackendError> {
    Ok(open(options)?.info().to_string())
}

fn ordinal(options: &LoadOptions) -> u32 {
    match options.device {
        DeviceChoice::Cuda(n) => n,
        DeviceChoice::Auto | DeviceChoice::Cpu => 0,
    }
}

fn open(options: &LoadOptions) -> Result<Device, BackendError> {
    let library = options.cuda_library.as_deref().unwrap_or(Path::new(LIBRARY));
    let device = Device::shared(library, ordinal(options))?;
    device.info().check()?;
    Ok(match &options.cuda_images {
        Some(dir) => device.with_images(dir),
        None => device,
    })
}

impl GpuRoom {
    /// What is free on a device; of one that shares the machine's memory, page cache is not free to
    /// its driver but can be had, so that the machine's own count says more.
    fn of(device: &Device, available_bytes: u64) -> Result<GpuRoom, BackendError> {
        let (free, total) = device.memory()?;
        let is_shared = device.info().is_integrated;
        if !is_shared {
            return Ok(GpuRoom { free_bytes: free as u64, is_shared, halves: None });
        }
        // The driver's context, which was made meanwhile, takes of what was available before. Its
        // memory is not given back as a mapped file's is, so what was configured is no more than
        // there is.
        let now = Host::read().memory_available_bytes;
        let asked = if available_bytes == u64::MAX { u64::MAX } else { available_bytes.min(now) };
        Ok(GpuRoom { free_bytes: asked.min(total as u64), is_shared, halves: None })
    }
}

impl Prepared {
    /// Brings the model to where the options say, and counts its weights on the way.
    ///
    /// # Errors
    /// If it cannot run there; with [`DeviceChoice::Auto`], if it cannot run on the CPU either.
    pub fn place(
        &self,
        gguf: &Arc<Gguf>,
        options: &LoadOptions,
        progress: &LoadProgress,
    ) -> Result<Placed, InferenceError> {
        let report = match options.device {
            DeviceChoice::Cpu => DeviceReport::cpu(),
            _ if options.n_gpu_layers == Some(0) => DeviceReport::cpu(),
            choice => match self.on_gpu(gguf, options, progress) {
                Ok(placed) => return Ok(placed),
                Err(error) if choice == DeviceChoice::Auto => DeviceReport::instead(&error),
                Err(error) => return Err(error),
            },
        };
        let available_bytes = options.memory_max_bytes.unwrap_or(u64::MAX);
        let memory = self.fit(gguf, available_bytes, None)?;
        let draft_bytes = self.draft.as_deref().map_or(0, PreparedDraft::packed_bytes);
        progress.begin(memory.packed_bytes.saturating_add(draft_bytes));
        let (plan, config) = (self.plan.clone(), self.config.clone());
        let mut backend = CpuBackend::new(plan, Arc::clone(gguf), config, progress)?;
        let draft = self.draft.as_ref().map(|draft| draft.on_cpu(progress)).transpose()?;
        let adapters = self.add_adapters(&mut backend, options)?;
        let backend_name = backend.describe();
        Ok(Placed { runner: Box::new(backend), draft, adapters, backend_name, memory, report })
    }

    fn add_adapters(
        &self,
        runner: &mut dyn Runner,
        options: &LoadOptions,
    ) -> Result<Vec<Gguf>, InferenceError> {
        let added = options.adapters.iter().map(|path| {
            let gguf = Gguf::open(path)?;
            runner.add_adapter(&gguf, self.hparams.arch.name)?;
            Ok(gguf)
        });
        added.collect()
    }

    fn on_gpu(
        &self,
        gguf: &Arc<Gguf>,
        options: &LoadOptions,
        progress: &LoadProgress,
    ) -> Result<Placed, InferenceError> {
        let device = open(options)?;
        let (memory, halves) = self.fit_gpu(&device, gguf, options)?;
        let of_head = |halves: &Halves| CpuBackend::weight_bytes(&halves.head, gguf).packed;
        let head_bytes = halves.as_ref().map_or(0, of_head);
        let draft_bytes = self.draft.as_deref().map_or(0, PreparedDraft::strip_bytes);
        let beside_bytes = head_bytes.saturating_add(draft_bytes);
        progress.begin(memory.packed_bytes.saturating_add(beside_bytes));
        let draft = self.draft.as_ref().map(|draft| draft.on_gpu(&device, progress)).transpose()?;
        let config = self.cuda_config();
        let new = |plan: &Plan| {
            CudaBackend::new(&device, plan.clone(), Arc::clone(gguf), config.clone(), progress)
        };
        let mut why = match options.device {
            DeviceChoice::Auto => "there is a GPU, and it can".to_owned(),
            _ => "as configured".to_owned(),
        };
        let name = format!("cuda:{}", ordinal(options));
        let is_split = halves.is_some();
        let (mut runner, backend_name): (Box<dyn Runner>, String) = match halves {
            None => {
                let backend = new(&self.plan)?;
                let name = backend.describe();
                (Box::new(backend), name)
            }
            Some(Halves { head, tail }) => {
                let n_head = head.n_layer;
                let tail = new(&tail)?;
                let config = self.config.clone();
                let head = CpuBackend::new(head, Arc::clone(gguf), config, progress)?;
                let name = format!("{} + {}", head.describe(), tail.describe());
                if options.n_gpu_layers.is_none() {
                    why = format!("the GPU has no room for the first {n_head} layers");
                }
                (Box::new(SplitRunner::new(head, n_head, tail)), name)
            }
        };
        let adapters = self.add_adapters(&mut *runner, options)?;
        let memory_peak_bytes_s = device.info().memory_peak_bytes_s;
        let report = DeviceReport { name, why, is_fallback: false, is_split, memory_peak_bytes_s };
        Ok(Placed { runner, draft, adapters, backend_name, memory, report })
    }

    /// The memory plan where the options say that the model runs.
    ///
    /// # Errors
    /// If it does not fit, or cannot run there.
    pub fn plan_memory(
        &self,
        gguf: &Gguf,
        options: &LoadOptions,
        available_bytes: u64,
    ) -> Result<MemoryPlan, InferenceError> {
        if options.device != DeviceChoice::Cpu && options.n_gpu_layers != Some(0) {
            let options =
                LoadOptions { memory_max_bytes: Some(available_bytes), ..options.clone() };
            let device = open(&options);
            let is_shared = device.as_ref().is_ok_and(|device| device.info().is_integrated);
            let found = match device {
                Ok(device) => self.fit_gpu(&device, gguf, &options),
                Err(error) => Err(error.into()),
            };
            match found {
                Ok((memory, _)) => return Ok(memory),
                Err(error) if options.device != DeviceChoice::Auto => return Err(error),
                // Strips and copies can be more than what the CPU computes with, and a driver may
                // give less than there is, so the CPU may have room in the memory that both
                // share. If not, the GPU's sum is the one to reduce.
                Err(error @ InferenceError::Memory { .. }) if is_shared => {
                    return self.fit(gguf, available_bytes, None).map_err(|_| error);
                }
                Err(_) => {}
            }
        }
        self.fit(gguf, available_bytes, None)
    }

    /// The memory plan on a GPU, and the halves where the first layers are the CPU's: as many as
    /// was asked for, or, if a GPU with memory of its own may be chosen and has too little, as few
    /// as fit.
    fn fit_gpu(
        &self,
        device: &Device,
        gguf: &Gguf,
        options: &LoadOptions,
    ) -> Result<(MemoryPlan, Option<Halves>), InferenceError> {
        self.check_gpu()?;
        if let Some(draft) = &self.draft {
            draft.prepared.check_gpu().map_err(|error| draft.broken(error.into()))?;
        }
        let available_bytes = options.memory_max_bytes.unwrap_or(u64::MAX);
        let mut room = GpuRoom::of(device, available_bytes)?;
        let n_layer = self.plan.n_layer;
        let n_cpu = n_layer.saturating_add(1).saturating_sub(match options.n_gpu_layers {
            Some(n) => n as usize,
            None => usize::MAX,
        });
        let mut fit = |n_cpu: usize| {
            room.halves = if n_cpu == 0 { None } else { Some(self.halves(n_cpu)?) };
            let memory = self.fit(gguf, available_bytes, Some(&room))?;
            Ok((memory, room.halves.take().map(|halves| *halves)))
        };
        let first = fit(n_cpu);
        let may_split = options.device == DeviceChoice::Auto && options.n_gpu_layers.is_none();
        match first {
            // Where memory is shared the CPU's layers would take as much of it.
            Err(InferenceError::Memory { .. }) if may_split && !device.info().is_integrated => {
                let found = (1..=n_layer).find_map(|n_cpu| fit(n_cpu).ok());
                found.map_or(first, Ok)
            }
            first => first,
        }
    }

    /// The plan with its first layers on the CPU.
    fn halves(&self, n_cpu: usize) -> Result<Box<Halves>, BackendError> {
        let split = self.plan.split(n_cpu);
        let (head, tail) = split.ok_or_else(|| unsupported("a part of this model"))?;
        Ok(Box::new(Halves { head, tail }))
    }

    /// Refuses what no kernel is for.
    fn check_gpu(&self) -> Result<(), BackendError> {
        if kv_format(self.config.kv_type).is_none() {
            let what = format!("keys and values of type {}", self.config.kv_type.name());
            return Err(unsupported(&what));
        }
        Ok(CudaBackend::check(&self.plan, &self.cuda_config())?)
    }

    /// The configuration, as the GPU's backend has it.
    pub fn cuda_config(&self) -> CudaConfig {
        CudaConfig {
            n_batch: self.config.n_batch,
            n_outputs: self.config.n_outputs,
            n_page: self.config.n_page,
            kv: kv_format(self.config.kv_type).unwrap_or_default(),
            n_threads: self.config.n_threads,
        }
    }
}

impl PreparedDraft {
    /// What loading packs where the CPU computes.
    fn packed_bytes(&self) -> u64 {
        CpuBackend::weight_bytes(&self.prepared.plan, &self.gguf).packed
    }

    /// What loading brings to a GPU.
    fn strip_bytes(&self) -> u64 {
        CudaBackend::weight_bytes(&self.prepared.plan, &self.gguf)
    }

    fn on_cpu(&self, progress: &LoadProgress) -> Result<Box<dyn Runner>, InferenceError> {
        let (plan, config) = (self.prepared.plan.clone(), self.prepared.config.clone());
        let backend = CpuBackend::new(plan, Arc::clone(&self.gguf), config, progress);
        Ok(Box::new(backend.map_err(|error| self.broken(error.into()))?))
    }

    fn on_gpu(
        &self,
        device: &Device,
        progress: &LoadProgress,
    ) -> Result<Box<dyn Runner>, InferenceError> {
        let (plan, config) = (self.prepared.plan.clone(), self.prepared.cuda_config());
        let backend = CudaBackend::new(device, plan, Arc::clone(&self.gguf), config, progress);
        Ok(Box::new(backend.map_err(|error| self.broken(error.into()))?))
    }

    /// An error that is about the draft model.
    pub fn broken(&self, source: InferenceError) -> InferenceError {
        InferenceError::Draft { name: self.name.clone(), source: Box::new(source) }
    }
}

/// How the GPU stores keys and values of a type, if it can.
fn kv_format(ty: KvType) -> Option<KvFormat> {
    match ty {
        KvType::F16 => Some(KvFormat::F16),
        KvType::Q8_0 => Some(KvFormat::Q8_0),
        KvType::Q4_0 => Some(KvFormat::Q4_0),
        KvType::F32 => None,
    }
}

fn unsupported(what: &str) -> BackendError {
    CudaError::Unsupported { what: what.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        for (name, choice) in [
            ("auto", Some(Auto)),
            ("cpu", Some(Cpu)),
            ("none", Some(Cpu)),
            ("cuda", Some(Cuda(0))),
            ("cuda:3", Some(Cuda(3))),
            ("CUDA1", Some(Cuda(1))),
            ("cuda:", None),
            ("cuda:+1", None),
            ("cuda:-1", None),
            ("cuda:99999999999", None),
            ("vulkan", None),
            ("", None),
        ] {
            assert_eq!(DeviceChoice::from_name(name), choice, "{name}");
        }
    }
}
