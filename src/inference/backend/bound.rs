//! A plan's weights, found in the file: what every backend begins with.

use super::{BackendError, Op, Plan, WeightSpec};
use crate::inference::gguf::Gguf;
use crate::inference::quant::{Form, TensorType};

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
}

impl Stored {
    /// Bytes of its tensor before row `n_row` of it, where a unit begins.
    pub fn bytes_before(&self, n_row: usize) -> usize {
        let unit_bytes = self.form.unit_bytes(self.ty, self.n_cols as u64);
        (self.row_start + n_row) / self.form.unit_rows()
            * unit_bytes.expect("the reader checked the tensor")
    }

    /// The bytes of its tensor.
    pub fn tensor_bytes<'a>(&self, gguf: &'a Gguf) -> &'a [u8] {
        gguf.bytes(&gguf.tensors()[self.tensor_idx])
    }

    /// Row `idx` of it as f32; past its end, its last row (a caller bounds positions by the
    /// context).
    pub fn read_row(&self, gguf: &Gguf, idx: usize, out: &mut [f32]) {
        let row_idx = self.row_start + idx.min(self.n_rows - 1);
        self.form.read_row(self.ty, self.tensor_bytes(gguf), row_idx, out);
    }
}

/// Finds the weights of a plan, in its order.
///
/// # Errors
/// If one is missing or has another shape.
pub fn bind_all(gguf: &Gguf, plan: &Plan) -> Result<Vec<Weight>, BackendError> {
    plan.weights.iter().map(|spec| bind(gguf, spec)).collect()
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
    let WeightSpec { row_start, n_rows, n_cols, .. } = *spec;
    let (form, ty) = (info.form, info.ty);
    Ok(Weight::Matrix(Stored { tensor_idx, form, ty, row_start, n_rows, n_cols }))
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
