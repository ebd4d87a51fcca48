//! The weights of a plan: vectors as f32, float matrices as the file has them, quantised ones in
//! panels.
//!
//! Packing streams, in the file's order: a few megabytes of it are packed by all threads and their
//! pages given back, while the system reads what comes next. So memory peaks at the model plus one
//! such step. A table that is only looked up row by row stays in the file; one that is multiplied
//! as well (a tied output) is in both, and of the file only the rows that are looked up come to
//! memory.
//!
//! A native file holds panels already, and every instruction set reads the same ones: then the file
//! is the memory, nothing is packed, and a row is looked up in its panel. Only a slice of a matrix
//! that begins inside a panel is packed anew, and what stands in another target's form.

use std::ops::Range;
use std::sync::Arc;

use memmap2::MmapMut;

use super::isa::Isa;
use super::matmul::{Matrix, needs_acts, panel_bytes};
use super::panel::{self, BLOCK_LEN, PANEL_ROWS};
use super::pool::Pool;
use super::shared::SharedMut;
use crate::inference::backend::bound::{Stored, Weight, bind, bind_all, multiplied};
use crate::inference::backend::{BackendError, LoadProgress, Plan, WeightId};
use crate::inference::gguf::{Gguf, ReadAhead};
use crate::inference::quant::Form;

/// Bytes of a file that are packed between two times that pages are given back.
const STEP_BYTES: usize = 8 << 20;

/// The weights of a plan.
pub struct Weights {
    gguf: Arc<Gguf>,
    items: Vec<Item>,
    panels: MmapMut,
}

/// Bytes that weights take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightBytes {
    /// What is packed, and the file but for what was packed out of it.
    pub total: u64,
    /// What is packed when a model is loaded; the rest is used as it is mapped.
    pub packed: u64,
}

/// A weight, where it is computed with.
enum Item {
    Vector(Vec<f32>),
    /// A matrix, and where its panels begin among those that were packed.
    Matrix(Stored, Option<usize>),
}

/// Bytes of a matrix's tensor that nobody needs once its first `n_row` rows are packed. Panels
/// stay: another slice of them may be multiplied as it is.
fn released(stored: &Stored, n_row: usize) -> Range<usize> {
    match stored.form {
        Form::Panels => 0..0,
        Form::Rows | Form::Strips => stored.bytes_before(0)..stored.bytes_before(n_row),
    }
}

/// Whether what is multiplied differs from what the file has.
fn needs_packing(stored: &Stored) -> bool {
    let is_whole = stored.row_start.is_multiple_of(PANEL_ROWS);
    needs_acts(stored.ty) && !(stored.form == Form::Panels && is_whole)
}

fn panels_bytes(stored: &Stored) -> usize {
    stored.n_rows.div_ceil(PANEL_ROWS) * panel_bytes(stored.ty, stored.n_cols)
}

impl Weights {
    /// Finds the plan's weights in the file and packs what is multiplied, counting what is packed.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the memory cannot be had.
    pub fn new(
        plan: &Plan,
        gguf: Arc<Gguf>,
        isa: Isa,
        pool: &mut Pool,
        progress: &LoadProgress,
    ) -> Result<Weights, BackendError> {
        let mut n_bytes = 0;
        let bound = bind_all(&gguf, plan)?.into_iter().zip(multiplied(plan));
        let items = bound.map(|(weight, is_multiplied)| match weight {
            Weight::Vector(values) => Item::Vector(values),
            Weight::Matrix(stored) => {
                let is_packed = is_multiplied && needs_packing(&stored);
                let start = is_packed.then_some(n_bytes);
                n_bytes += if is_packed { panels_bytes(&stored) } else { 0 };
                Item::Matrix(stored, start)
            }
        });
        let items: Vec<Item> = items.collect();
        let refused = |_| BackendError::Memory { what: "the weights", bytes: n_bytes };
        let mut panels = MmapMut::map_anon(n_bytes.max(1)).map_err(refused)?;
        // Large pages save address lookups in decode; without them everything works as well.
        #[cfg(target_os = "linux")]
        let _ = panels.advise(memmap2::Advice::HugePage);
        let packed = items.iter().filter_map(|item| match item {
            Item::Matrix(stored, Some(start)) => Some((stored, *start)),
            _ => None,
        });
        let mut packed: Vec<_> = packed.collect();
        packed.sort_by_key(|(stored, _)| (stored.tensor_idx, stored.row_start));
        let mut ahead = ReadAhead::default();
        for (stored, start) in packed {
            let out = &mut panels[start..][..panels_bytes(stored)];
            pack((&*gguf, &mut ahead), stored, isa, (&mut *pool, progress), out);
        }
        Ok(Weights { gguf, items, panels })
    }

    /// What the weights of a plan take.
    pub fn n_bytes(plan: &Plan, gguf: &Gguf) -> WeightBytes {
        let mut bytes = WeightBytes { total: gguf.file_bytes(), packed: 0 };
        for (spec, is_multiplied) in plan.weights.iter().zip(multiplied(plan)) {
            if let Ok(Weight::Matrix(stored)) = bind(gguf, spec)
                && is_multiplied
                && needs_packing(&stored)
            {
                bytes.packed += panels_bytes(&stored) as u64;
                let n_released = released(&stored, stored.n_rows).len() as u64;
                bytes.total -= n_released.min(bytes.total);
            }
        }
        bytes.total += bytes.packed;
        bytes
    }

    /// A vector.
    pub fn vector(&self, id: WeightId) -> &[f32] {
        match &self.items[id.0] {
            Item::Vector(values) => values,
            Item::Matrix(..) => unreachable!("the plan's shapes say which weights are vectors"),
        }
    }

    /// A matrix that is multiplied.
    pub fn matrix(&self, id: WeightId) -> Matrix<'_> {
        match &self.items[id.0] {
            Item::Matrix(stored, packed) => {
                let Stored { ty, n_rows, n_cols, .. } = *stored;
                let data = match *packed {
                    Some(start) => &self.panels[start..][..panels_bytes(stored)],
                    None => as_stored(&self.gguf, stored),
                };
                Matrix { ty, data, n_rows, n_cols }
            }
            Item::Vector(_) => unreachable!("the plan's shapes say which weights are matrices"),
        }
    }

    /// Row `idx` of a table.
    pub fn table_row(&self, id: WeightId, idx: usize, out: &mut [f32]) {
        match &self.items[id.0] {
            Item::Vector(values) => out.copy_from_slice(values),
            Item::Matrix(stored, _) => stored.read_row(&self.gguf, idx, out),
        }
    }
}

/// The matrix as the file has it: its rows, or its panels.
fn as_stored<'a>(gguf: &'a Gguf, stored: &Stored) -> &'a [u8] {
    let n_bytes = stored.form.n_bytes(stored.ty, stored.n_cols as u64, stored.n_rows as u64);
    let n_bytes = n_bytes.expect("the reader checked the tensor") as usize;
    &stored.tensor_bytes(gguf)[stored.bytes_before(0)..][..n_bytes]
}

/// Packs a matrix, giving back the file's pages on the way.
fn pack(
    (gguf, ahead): (&Gguf, &mut ReadAhead),
    stored: &Stored,
    isa: Isa,
    (pool, progress): (&mut Pool, &LoadProgress),
    out: &mut [u8],
) {
    let Stored { ty, form, n_rows, n_cols, row_start, .. } = *stored;
    let bytes = stored.tensor_bytes(gguf);
    let out_bytes = panel_bytes(ty, n_cols);
    let n_panel = n_rows.div_ceil(PANEL_ROWS);
    let step = (STEP_BYTES / out_bytes).max(1);
    let out = SharedMut::new(out);
    for start in (0..n_panel).step_by(step) {
        let n = step.min(n_panel - start);
        let done = ((start + step) * PANEL_ROWS).min(n_rows);
        let info = &gguf.tensors()[stored.tensor_idx];
        let range = stored.bytes_before(start * PANEL_ROWS)..stored.bytes_before(done);
        gguf.read_ahead(info, range, ahead);
        pool.run(n, &|i, _| {
            let first = (start + i) * PANEL_ROWS;
            let n = (n_rows - first).min(PANEL_ROWS);
            // SAFETY: each task owns its panel.
            let panel = unsafe { out.slice((start + i) * out_bytes, out_bytes) };
            match form {
                Form::Rows => {
                    let rows = &bytes[stored.bytes_before(first)..stored.bytes_before(first + n)];
                    panel::pack(isa, ty, rows, n_cols / BLOCK_LEN, panel);
                }
                Form::Panels | Form::Strips => {
                    panel::repack((ty, form), bytes, n_cols, row_start + first, n, panel);
                }
            }
        });
        let begun = released(stored, start * PANEL_ROWS).end;
        gguf.release(info, begun..released(stored, done).end);
        progress.add(n * out_bytes);
    }
}
