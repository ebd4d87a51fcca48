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
//! that begins inside a panel is packed anew.

use std::sync::Arc;

use memmap2::MmapMut;

use super::isa::Isa;
use super::matmul::{Matrix, needs_acts, panel_bytes};
use super::panel::{self, BLOCK_LEN, PANEL_ROWS};
use super::pool::Pool;
use super::shared::SharedMut;
use crate::inference::backend::{BackendError, Op, Plan, WeightId, WeightSpec};
use crate::inference::gguf::Gguf;
use crate::inference::quant::TensorType;
use crate::inference::quant::panel::Form;

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
    /// Bytes of a row that stands as its type has it.
    pub fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.n_cols).expect("the reader checked the rows")
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
                if stored.form == Form::Rows {
                    let released = (stored.n_rows * stored.row_bytes()) as u64;
                    bytes.total -= released.min(bytes.total);
                }
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

/// The rows of a matrix as the file has them, or its panels.
fn as_stored<'a>(gguf: &'a Gguf, stored: &Stored) -> &'a [u8] {
    let (start, n_bytes) = match stored.form {
        Form::Rows => {
            let row_bytes = stored.row_bytes();
            (stored.row_start * row_bytes, stored.n_rows * row_bytes)
        }
        Form::Panels => {
            let start = stored.row_start / PANEL_ROWS * panel_bytes(stored.ty, stored.n_cols);
            (start, stored.panels_bytes())
        }
    };
    &tensor_bytes(gguf, stored)[start..][..n_bytes]
}

/// Packs a matrix, giving back the file's pages on the way.
fn pack(gguf: &Gguf, stored: &Stored, isa: Isa, pool: &mut Pool, out: &mut [u8]) {
    if stored.form == Form::Panels {
        return repack(gguf, stored, pool, out);
    }
    let src = as_stored(gguf, stored);
    let src_bytes = PANEL_ROWS * stored.row_bytes();
    let out_bytes = panel_bytes(stored.ty, stored.n_cols);
    let n_panel = stored.n_rows.div_ceil(PANEL_ROWS);
    let step = (STEP_BYTES / src_bytes).max(1);
    let out = SharedMut::new(out);
    for start in (0..n_panel).step_by(step) {
        pool.run(step.min(n_panel - start), &|i, _| {
            let src = &src[(start + i) * src_bytes..];
            let src = &src[..src_bytes.min(src.len())];
            // SAFETY: each task owns its panel.
            let panel = unsafe { out.slice((start + i) * out_bytes, out_bytes) };
            panel::pack(isa, stored.ty, src, stored.n_cols / BLOCK_LEN, panel);
        });
        let end = src.len().min((start + step) * src_bytes);
        let first = stored.row_start * stored.row_bytes();
        let range = first + start * src_bytes..first + end;
        gguf.release(&gguf.tensors()[stored.tensor_idx], range);
    }
}

/// Packs rows that begin inside a panel of the file.
fn repack(gguf: &Gguf, stored: &Stored, pool: &mut Pool, out: &mut [u8]) {
    let src = tensor_bytes(gguf, stored);
    let out_bytes = panel_bytes(stored.ty, stored.n_cols);
    let n_panel = stored.n_rows.div_ceil(PANEL_ROWS);
    let out = SharedMut::new(out);
    pool.run(n_panel, &|panel_idx, _| {
        let done = panel_idx * PANEL_ROWS;
        let n_rows = (stored.n_rows - done).min(PANEL_ROWS);
        // SAFETY: each task owns its panel.
        let panel = unsafe { out.slice(panel_idx * out_bytes, out_bytes) };
        let first = stored.row_start + done;
        panel::repack(stored.ty, src, stored.n_cols / BLOCK_LEN, first, n_rows, panel);
    });
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
