//! The weights of a plan: vectors as f32, float matrices as the file has them, quantised ones in
//! panels.
//!
//! Packing streams: a few megabytes of the file are read, packed by all threads, and their pages
//! given back, so memory peaks at the model plus one such step. A table that is only looked up row
//! by row stays in the file; one that is multiplied as well (a tied output) is in both, and of the
//! file only the rows that are looked up come to memory.
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
use crate::inference::backend::{BackendError, Op, Plan, WeightId, WeightSpec};
use crate::inference::gguf::Gguf;
use crate::inference::quant::Form;
use crate::inference::quant::TensorType;

/// Bytes of a file that are packed between two times that pages are given back.
const STEP_BYTES: usize = 8 << 20;

/// The weights of a plan.
pub struct Weights {
    gguf: Arc<Gguf>,
    items: Vec<Weight>,
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

/// A weight, checked against the file.
pub enum Weight {
    /// A vector, as f32.
    Vector(Vec<f32>),
    /// Rows of a tensor of the file.
    Matrix(Stored),
}

/// Where a matrix is: some rows of a tensor of the file.
#[derive(Clone, Copy)]
pub struct Stored {
    /// The tensor's place in the file's list.
    pub tensor_idx: usize,
    /// How it stands there.
    pub form: Form,
    /// Its type.
    pub ty: TensorType,
    /// First row used.
    pub row_start: usize,
    /// Rows used.
    pub n_rows: usize,
    /// Weights in a row.
    pub n_cols: usize,
    /// Where its panels begin among those that were packed.
    packed: Option<usize>,
}

impl Stored {
    /// Bytes of its tensor before row `n_row` of it, where a unit begins.
    pub fn bytes_before(&self, n_row: usize) -> usize {
        let unit_bytes = self.form.unit_bytes(self.ty, self.n_cols as u64);
        (self.row_start + n_row) / self.form.unit_rows()
            * unit_bytes.expect("the reader checked the tensor")
    }

    /// Bytes of its tensor that nobody needs once the first `n_row` rows are packed. Panels stay:
    /// another slice of them may be multiplied as it is.
    fn released(&self, n_row: usize) -> Range<usize> {
        match self.form {
            Form::Panels => 0..0,
            Form::Rows | Form::Strips => self.bytes_before(0)..self.bytes_before(n_row),
        }
    }

    /// Whether what is multiplied differs from what the file has.
    fn needs_packing(&self) -> bool {
        let is_whole = self.row_start.is_multiple_of(PANEL_ROWS);
        needs_acts(self.ty) && !(self.form == Form::Panels && is_whole)
    }

    fn panels_bytes(&self) -> usize {
        self.n_rows.div_ceil(PANEL_ROWS) * panel_bytes(self.ty, self.n_cols)
    }
}

impl Weights {
    /// Finds the plan's weights in the file and packs what is multiplied.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the memory cannot be had.
    pub fn new(
        plan: &Plan,
        gguf: Arc<Gguf>,
        isa: Isa,
        pool: &mut Pool,
    ) -> Result<Weights, BackendError> {
        let items = plan.weights.iter().map(|spec| bind(&gguf, spec));
        let mut items = items.collect::<Result<Vec<_>, _>>()?;
        let mut n_bytes = 0;
        for (item, is_multiplied) in items.iter_mut().zip(multiplied(plan)) {
            if let Weight::Matrix(stored) = item
                && is_multiplied
                && stored.needs_packing()
            {
                stored.packed = Some(n_bytes);
                n_bytes += stored.panels_bytes();
            }
        }
        let refused = |_| BackendError::Memory { what: "the weights", bytes: n_bytes };
        let mut panels = MmapMut::map_anon(n_bytes.max(1)).map_err(refused)?;
        // Large pages save address lookups in decode; without them everything works as well.
        #[cfg(target_os = "linux")]
        let _ = panels.advise(memmap2::Advice::HugePage);
        for item in &items {
            if let Weight::Matrix(stored @ Stored { packed: Some(start), .. }) = item {
                pack(&gguf, stored, isa, pool, &mut panels[*start..][..stored.panels_bytes()]);
            }
        }
        Ok(Weights { gguf, items, panels })
    }

    /// What the weights of a plan take.
    pub fn n_bytes(plan: &Plan, gguf: &Gguf) -> WeightBytes {
        let mut bytes = WeightBytes { total: gguf.file_bytes(), packed: 0 };
        for (spec, is_multiplied) in plan.weights.iter().zip(multiplied(plan)) {
            if let Ok(Weight::Matrix(stored)) = bind(gguf, spec)
                && is_multiplied
                && stored.needs_packing()
            {
                bytes.packed += stored.panels_bytes() as u64;
                bytes.total -= (stored.released(stored.n_rows).len() as u64).min(bytes.total);
            }
        }
        bytes.total += bytes.packed;
        bytes
    }

    /// A vector.
    pub fn vector(&self, id: WeightId) -> &[f32] {
        match &self.items[id.0] {
            Weight::Vector(values) => values,
            Weight::Matrix(_) => unreachable!("the plan's shapes say which weights are vectors"),
        }
    }

    /// A matrix that is multiplied.
    pub fn matrix(&self, id: WeightId) -> Matrix<'_> {
        match &self.items[id.0] {
            Weight::Matrix(stored) => {
                let Stored { ty, n_rows, n_cols, .. } = *stored;
                let data = match stored.packed {
                    Some(start) => &self.panels[start..][..stored.panels_bytes()],
                    None => as_stored(&self.gguf, stored),
                };
                Matrix { ty, data, n_rows, n_cols }
            }
            Weight::Vector(_) => unreachable!("the plan's shapes say which weights are matrices"),
        }
    }

    /// Row `idx` of a table; past its end, its last row (a caller bounds positions by the context).
    pub fn table_row(&self, id: WeightId, idx: usize, out: &mut [f32]) {
        match &self.items[id.0] {
            Weight::Vector(values) => out.copy_from_slice(values),
            Weight::Matrix(stored) => {
                let row_idx = stored.row_start + idx.min(stored.n_rows - 1);
                stored.form.read_row(stored.ty, tensor_bytes(&self.gguf, stored), row_idx, out);
            }
        }
    }
}

/// Which weights of a plan are multiplied, rather than added or looked up.
pub fn multiplied(plan: &Plan) -> Vec<bool> {
    let mut multiplied = vec![false; plan.weights.len()];
    for op in &plan.ops {
        if let Op::MatMul { weight, .. } = op {
            multiplied[weight.0] = true;
        }
    }
    multiplied
}

/// The bytes of the tensor that a matrix is of.
fn tensor_bytes<'a>(gguf: &'a Gguf, stored: &Stored) -> &'a [u8] {
    gguf.bytes(&gguf.tensors()[stored.tensor_idx])
}

/// The matrix as the file has it: its rows, or its panels.
fn as_stored<'a>(gguf: &'a Gguf, stored: &Stored) -> &'a [u8] {
    let n_bytes = stored.form.n_bytes(stored.ty, stored.n_cols as u64, stored.n_rows as u64);
    let n_bytes = n_bytes.expect("the reader checked the tensor") as usize;
    &tensor_bytes(gguf, stored)[stored.bytes_before(0)..][..n_bytes]
}

/// Packs a matrix, giving back the file's pages on the way.
fn pack(gguf: &Gguf, stored: &Stored, isa: Isa, pool: &mut Pool, out: &mut [u8]) {
    let Stored { ty, form, n_rows, n_cols, row_start, .. } = *stored;
    let bytes = tensor_bytes(gguf, stored);
    let out_bytes = panel_bytes(ty, n_cols);
    let n_panel = n_rows.div_ceil(PANEL_ROWS);
    let step = (STEP_BYTES / out_bytes).max(1);
    let out = SharedMut::new(out);
    for start in (0..n_panel).step_by(step) {
        pool.run(step.min(n_panel - start), &|i, _| {
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
        let done = ((start + step) * PANEL_ROWS).min(n_rows);
        let begun = stored.released(start * PANEL_ROWS).end;
        gguf.release(&gguf.tensors()[stored.tensor_idx], begun..stored.released(done).end);
    }
}

/// Finds a weight in the file and checks its shape.
///
/// # Errors
/// If it is missing or has another shape.
pub fn bind(gguf: &Gguf, spec: &WeightSpec) -> Result<Weight, BackendError> {
    let found = gguf.tensors().iter().position(|t| t.name == spec.name);
    let tensor_idx =
        found.ok_or_else(|| BackendError::TensorMissing { name: spec.name.clone() })?;
    let info = &gguf.tensors()[tensor_idx];
    let mut got = info.shape.clone();
    while got.len() > spec.shape.len() && got.last() == Some(&1) {
        got.pop();
    }
    // A matrix of one row may stand in the file as a vector.
    got.resize(got.len().max(spec.shape.len()), 1);
    if got != spec.shape {
        let (name, expected) = (spec.name.clone(), spec.shape.clone());
        return Err(BackendError::TensorShape { name, expected, got });
    }
    if spec.is_vector {
        let mut values = vec![0f32; spec.shape.iter().product::<u64>() as usize];
        gguf.read(info, &mut values);
        return Ok(Weight::Vector(values[spec.row_start..][..spec.n_cols].to_vec()));
    }
    Ok(Weight::Matrix(Stored {
        tensor_idx,
        form: info.form,
        ty: info.ty,
        row_start: spec.row_start,
        n_rows: spec.n_rows,
        n_cols: spec.n_cols,
        packed: None,
    }))
}
