//! Presets: how a model is run on the board that it was made for, kept beside its file.
//!
//! ```text
//! context   the board's usual one, or the largest half, quarter, .. of it that fits
//! kv type   f16 where that fits with the context; else q8_0, half the bytes
//! batch     512 tokens, or 128 to save memory: buffers grow with it
//! ```
//!
//! A preset gives values where nobody set any: options, environment and files come first. What fits
//! is decided by the memory plan that loading enforces, with the board's memory.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LibraryError;
use super::board::Board;
use super::record::{self, beside};
use crate::inference::{Gguf, InferenceError, LoadOptions, MemoryPlan, plan_memory};

/// Context that a board with much memory gets, and one with little.
const N_CTX_PC: u32 = 8192;
const N_CTX_BOARD: u32 = 4096;
/// Sequences at once, likewise.
const N_PARALLEL_PC: usize = 4;
const N_PARALLEL_BOARD: usize = 2;
/// A shorter context holds no file worth speaking of.
const N_CTX_MIN: u32 = 1024;
/// Tokens of a step, and of a step that saves memory.
const N_BATCH: u32 = 512;
const N_BATCH_LOW: u32 = 128;

/// How a model is run where nobody says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preset {
    /// The board that it is for.
    pub board: String,
    /// Positions of a sequence's context.
    pub n_ctx: u32,
    /// Sequences that the service runs at once.
    pub n_parallel: usize,
    /// Tokens of a step.
    pub n_batch: u32,
    /// Threads; `None` for all cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_threads: Option<usize>,
    /// How keys and values are stored.
    pub kv_type: String,
    /// Why each value was chosen, a line each.
    pub why: Vec<String>,
}

impl Preset {
    /// The preset beside a model file; `None` where there is none that can be read.
    pub fn of(model: &Path) -> Option<Preset> {
        record::read(&beside(model).preset)
    }

    /// Keeps the preset beside a model file.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn keep(&self, model: &Path) -> Result<(), LibraryError> {
        record::write(&beside(model).preset, self)
    }

    /// The preset as options of loading.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            n_ctx: Some(self.n_ctx),
            n_parallel: Some(self.n_parallel),
            n_batch: Some(self.n_batch),
            n_threads: self.n_threads,
            kv_type: Some(self.kv_type.clone()),
            ..LoadOptions::default()
        }
    }
}

/// The largest context that fits the board, and what it takes. `saves_memory` asks for less of
/// everything: half the context, one sequence, short steps, q8_0.
///
/// # Errors
/// [`LibraryError::DoesNotFit`] with the arithmetic of the smallest that was tried;
/// [`LibraryError::Inference`] if the file is no model that runs.
pub fn choose_preset(
    model: &Gguf,
    board: Board,
    saves_memory: bool,
) -> Result<(Preset, MemoryPlan), LibraryError> {
    let is_pc = board.n_core.is_none();
    let (usual, n_parallel) = match (is_pc, saves_memory) {
        (true, false) => (N_CTX_PC, N_PARALLEL_PC),
        (false, false) => (N_CTX_BOARD, N_PARALLEL_BOARD),
        (true, true) => (N_CTX_PC / 2, 1),
        (false, true) => (N_CTX_BOARD / 2, 1),
    };
    let trained = n_ctx_train(model).unwrap_or(u32::MAX).max(1);
    let wanted = usual.min(trained);
    let kv_types: &[&str] = if saves_memory { &["q8_0"] } else { &["f16", "q8_0"] };
    let mut preset = Preset {
        board: board.name.to_owned(),
        n_ctx: wanted,
        n_parallel,
        n_batch: if saves_memory { N_BATCH_LOW } else { N_BATCH },
        n_threads: board.n_core,
        kv_type: String::new(),
        why: Vec::new(),
    };
    // Few long conversations before many short ones: sequences go first, then the context.
    loop {
        for kv_type in kv_types {
            preset.kv_type = (*kv_type).to_owned();
            match plan_memory(model, &preset.load_options(), board.available_bytes()) {
                Ok(plan) => {
                    preset.why = reasons(&preset, &plan, board, (usual, trained), saves_memory);
                    return Ok((preset, plan));
                }
                Err(InferenceError::Memory { plan, missing_bytes, .. }) => {
                    let is_last = preset.n_parallel == 1
                        && preset.n_ctx <= N_CTX_MIN
                        && Some(kv_type) == kv_types.last();
                    if is_last {
                        let board = Box::new(board);
                        return Err(LibraryError::DoesNotFit { board, plan, missing_bytes });
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if preset.n_parallel > 1 {
            preset.n_parallel /= 2;
        } else {
            preset.n_ctx = (preset.n_ctx / 2).max(N_CTX_MIN.min(wanted));
        }
    }
}

fn n_ctx_train(model: &Gguf) -> Option<u32> {
    let metadata = model.metadata();
    let arch = metadata.str("general.architecture").ok().flatten()?;
    metadata.u32(&format!("{arch}.context_length")).ok().flatten()
}

fn reasons(
    preset: &Preset,
    plan: &MemoryPlan,
    board: Board,
    (usual, trained): (u32, u32),
    saves_memory: bool,
) -> Vec<String> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let Preset { n_ctx, n_parallel, n_batch, .. } = preset;
    let context = match *n_ctx {
        n if n == trained => "as many positions as the model was trained on",
        n if n == usual && saves_memory => "half of the usual, to save memory",
        n if n == usual => "what the board usually gets",
        _ => "the largest that fits beside the weights",
    };
    let kv = match preset.kv_type.as_str() {
        "f16" => "it fits as it is computed",
        _ if saves_memory => "half of f16, to save memory",
        _ => "with f16 no context of this length fits",
    };
    let sequences = match *n_parallel {
        1 if saves_memory => "to save memory",
        1 => "more would halve the context",
        _ => "as many as fit, up to the usual number",
    };
    let threads = match preset.n_threads {
        Some(n) => format!("threads {n}: the board's cores"),
        None => "threads: as many as the machine has cores".to_owned(),
    };
    let per_position = plan.kv_bytes / (u64::from(*n_ctx) * *n_parallel as u64).max(1);
    vec![
        format!("context {n_ctx}: {context}"),
        format!("keys and values {}: {kv}; {per_position} bytes a position", preset.kv_type),
        format!("sequences {n_parallel}: {sequences}"),
        format!("batch {n_batch}: buffers of {} MiB", mib(plan.scratch_bytes)),
        threads,
        format!(
            "memory {plan}, of {} MiB ({} MiB less {} MiB for the system)",
            board.available_bytes() >> 20,
            board.memory_bytes >> 20,
            board.system_bytes >> 20
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &[u8] = crate::inference::EMBEDDED_MODEL;

    fn board(available_mib: u64, n_core: Option<usize>) -> Board {
        let memory_bytes = (available_mib + 100) << 20;
        Board { name: "b", title: "B", memory_bytes, system_bytes: 100 << 20, n_core }
    }

    #[test]
    fn less_memory_gives_fewer_sequences_then_q8_0_and_at_last_a_refusal() {
        let model = Gguf::from_static(DEFAULT).unwrap();
        let (roomy, plan) = choose_preset(&model, board(4000, Some(4)), false).unwrap();
        assert_eq!((roomy.n_parallel, roomy.kv_type.as_str()), (2, "f16"));
        assert_eq!(roomy.n_threads, Some(4));
        let needed = |preset: &Preset| {
            plan_memory(&model, &preset.load_options(), u64::MAX).unwrap().needed_bytes()
        };
        assert_eq!(plan.needed_bytes(), needed(&roomy));
        let mut last = needed(&roomy);
        for mib in (1..=(last >> 20)).rev() {
            match choose_preset(&model, board(mib, Some(4)), false) {
                Ok((preset, _)) => {
                    assert!(needed(&preset) <= mib << 20 && needed(&preset) <= last);
                    last = needed(&preset);
                }
                Err(LibraryError::DoesNotFit { plan, missing_bytes, .. }) => {
                    assert_eq!(plan.needed_bytes(), (mib << 20) + missing_bytes);
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("a megabyte is too little for anything");
    }

    #[test]
    fn saving_memory_takes_less_of_everything() {
        let model = Gguf::from_static(DEFAULT).unwrap();
        let (usual, a) = choose_preset(&model, board(8000, None), false).unwrap();
        let (low, b) = choose_preset(&model, board(8000, None), true).unwrap();
        assert!(b.needed_bytes() < a.needed_bytes() && low.n_ctx <= usual.n_ctx);
        assert_eq!((low.n_parallel, low.kv_type.as_str(), low.n_batch), (1, "q8_0", 128));
        assert_eq!(low.why.len(), 6, "each value has its reason: {:?}", low.why);
    }
}
