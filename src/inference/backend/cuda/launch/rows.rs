//! What is done to rows: `kernels/norm_f32.cu`, `rows_f32.cu` and `top_k_f32.cu`.

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::assert_rows;
use crate::inference::backend::{Activation, NormKind};

const NORM_THREADS: u32 = 256;
const ROWS_THREADS: u32 = 256;
const TOP_K_THREADS: u32 = 256;
/// How many of a row's largest values can be had.
pub const TOP_K_MAX: usize = 128;

/// Rows of f32, `[n_rows, stride]`.
#[derive(Clone, Copy, Debug)]
pub struct RowShape {
    /// Rows.
    pub n_rows: usize,
    /// Values of a row.
    pub width: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

impl RowShape {
    pub(super) fn assert_in(self, buffer: &Buffer) {
        assert_rows(buffer, self.n_rows, self.width, self.stride);
    }

    fn grid(self, width: usize) -> [usize; 3] {
        [width.div_ceil(ROWS_THREADS as usize), self.n_rows, 1]
    }
}

/// A norm.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Formula.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// Values normalised together.
    pub width: usize,
}

/// The kernels for rows.
pub struct RowKernels {
    rms_norm: Kernel,
    layer_norm: Kernel,
    glu: Kernel,
    add: Kernel,
    select: Kernel,
    top_k: Kernel,
}

impl RowKernels {
    /// Compiles them.
    ///
    /// # Errors
    /// If the driver refuses them.
    pub fn load(device: &Device) -> Result<RowKernels, CudaError> {
        let norm = device.load("norm_f32", ptx!("norm_f32"))?;
        let rows = device.load("rows_f32", ptx!("rows_f32"))?;
        let top_k = device.load("top_k_f32", ptx!("top_k_f32"))?;
        Ok(RowKernels {
            rms_norm: norm.kernel("rms_norm_f32", NORM_THREADS)?,
            layer_norm: norm.kernel("layer_norm_f32", NORM_THREADS)?,
            glu: rows.kernel("glu_f32", ROWS_THREADS)?,
            add: rows.kernel("add_f32", ROWS_THREADS)?,
            select: rows.kernel("select_f32", ROWS_THREADS)?,
            top_k: top_k.kernel("top_k_f32", TOP_K_THREADS)?,
        })
    }

    /// `out = norm(x)`; `out` may be `x`. `weight` holds one run or as many as a row has, `bias`
    /// one.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn norm(
        &self,
        shape: RowShape,
        norm: NormShape,
        (x, out): (&Buffer, &Buffer),
        (weight, bias): (&Buffer, Option<&Buffer>),
    ) -> Result<(), CudaError> {
        shape.assert_in(x);
        shape.assert_in(out);
        assert!(shape.width.is_multiple_of(norm.width), "whole runs");
        let n_weight = weight.n_bytes() / 4;
        assert!(n_weight.is_multiple_of(norm.width) && n_weight > 0, "a weight for each value");
        assert!(bias.is_none_or(|b| b.n_bytes() >= 4 * norm.width), "a bias for each value");
        let kernel = match norm.kind {
            NormKind::Rms => &self.rms_norm,
            NormKind::Layer => &self.layer_norm,
        };
        let args = Args::new()
            .buffer(x)
            .buffer(out)
            .buffer(weight)
            .optional(bias)
            .size(norm.width)
            .size(shape.stride)
            .size(n_weight)
            .float(norm.eps);
        // SAFETY: a block for each run of each row, and buffers as asserted.
        unsafe { kernel.launch([shape.width / norm.width, shape.n_rows, 1], args) }
    }

    /// `gate = activation(gate) * up`, without a factor where there is no `up`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn glu(
        &self,
        shape: RowShape,
        activation: Activation,
        (gate, up): (&Buffer, Option<&Buffer>),
    ) -> Result<(), CudaError> {
        shape.assert_in(gate);
        up.iter().for_each(|up| shape.assert_in(up));
        let args = Args::new().buffer(gate).optional(up).size(shape.width).size(shape.stride);
        // SAFETY: a thread for each value, and buffers as asserted.
        unsafe { self.glu.launch(shape.grid(shape.width), args.size(number(activation))) }
    }

    /// `x = x * factor + y`
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn add(
        &self,
        shape: RowShape,
        x: &Buffer,
        factor: f32,
        y: Option<&Buffer>,
    ) -> Result<(), CudaError> {
        shape.assert_in(x);
        y.iter().for_each(|y| shape.assert_in(y));
        let args = Args::new().buffer(x).optional(y).size(shape.width).size(shape.stride);
        // SAFETY: a thread for each value, and buffers as asserted.
        unsafe { self.add.launch(shape.grid(shape.width), args.float(factor)) }
    }

    /// `out[r] = x[rows[r]]` for each row of `out`; `index` holds `rows`, and `x` has `n_rows_x`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn select(
        &self,
        shape: RowShape,
        (x, n_rows_x): (&Buffer, usize),
        out: &Buffer,
        (index, rows): (&Buffer, &[u32]),
    ) -> Result<(), CudaError> {
        assert_rows(x, n_rows_x, shape.width, shape.stride);
        shape.assert_in(out);
        assert!(rows.len() == shape.n_rows && index.n_bytes() >= 4 * rows.len(), "a row for each");
        assert!(rows.iter().all(|&r| (r as usize) < n_rows_x), "rows that are there");
        let args = Args::new().buffer(x).buffer(out).buffer(index);
        let args = args.size(shape.width).size(shape.stride);
        // SAFETY: a thread for each value, and buffers and rows as asserted.
        unsafe { self.select.launch(shape.grid(shape.width), args) }
    }

    /// `out[r]` = `k` times (value's bits, its index) of each row, from the largest; of equals the
    /// first index first. NaN is never among them; where a row has fewer numbers, the rest are
    /// minus infinity at `u32::MAX`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit, or `k` is not in 1 to [`TOP_K_MAX`].
    pub fn top_k(
        &self,
        shape: RowShape,
        x: &Buffer,
        k: usize,
        out: &Buffer,
    ) -> Result<(), CudaError> {
        shape.assert_in(x);
        assert!((1..=TOP_K_MAX).contains(&k), "some of the largest");
        assert!(out.n_bytes() >= 8 * shape.n_rows * k, "k pairs for each row");
        let args = Args::new().buffer(x).buffer(out).size(shape.width).size(shape.stride).size(k);
        // SAFETY: a block for each row, and buffers as asserted.
        unsafe { self.top_k.launch([shape.n_rows, 1, 1], args) }
    }
}

/// What the kernels call an activation.
pub(super) const fn number(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::Tanh => 2,
    }
}
