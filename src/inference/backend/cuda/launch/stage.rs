//! Columns that products read: `kernels/stage_f16.cu`, alone or with what makes the rows.

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::super::strips::{input_bytes, n_group};
use super::rows::{NormShape, RowShape, number};
use crate::inference::backend::{Activation, NormKind};

const STAGE_THREADS: u32 = 256;
const NORM_THREADS: u32 = 256;
const GLU_THREADS: u32 = 512;
/// Columns that a kernel reads at once, at most.
const COLUMNS_MAX: usize = 16;

/// Input columns, staged for the kernels.
#[derive(Clone)]
pub struct Inputs {
    pub(super) n_cols: usize,
    pub(super) n_max: usize,
    pub(super) columns: Buffer,
}

impl Inputs {
    /// Room for `n_max` columns of `n_cols` values.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(device: &Device, n_cols: usize, n_max: usize) -> Result<Inputs, CudaError> {
        let columns = device.allocate("staged inputs", Inputs::n_bytes(n_cols, n_max))?;
        Ok(Inputs { n_cols, n_max, columns })
    }

    /// Bytes of room for `n_max` columns of `n_cols` values.
    pub fn n_bytes(n_cols: usize, n_max: usize) -> usize {
        // Kernels read as many columns as they have, also where fewer are wanted.
        (n_max + COLUMNS_MAX - 1) * input_bytes(n_cols)
    }

    /// The same in memory that is there, which others may use as well, one after the other.
    ///
    /// # Panics
    /// If it is too small.
    pub fn within(memory: &Buffer, n_cols: usize, n_max: usize) -> Inputs {
        Inputs { n_cols, n_max, columns: memory.part(0, Inputs::n_bytes(n_cols, n_max)) }
    }

    /// Values of a column.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The bytes of the first `n` columns.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn read(&self, n: usize) -> Result<Vec<u8>, CudaError> {
        assert!(n <= self.n_max, "{n} columns");
        let mut bytes = vec![0; n * input_bytes(self.n_cols)];
        self.columns.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Asserts that rows fit.
    fn assert_take(&self, shape: RowShape) {
        assert_eq!(shape.width, self.n_cols, "whole rows are staged");
        assert!((1..=self.n_max).contains(&shape.n_rows), "{} columns are staged", shape.n_rows);
    }

    fn args(&self, args: Args, shape: RowShape) -> Args {
        let args = args.buffer(&self.columns).size(self.n_cols);
        args.size(shape.stride).size(n_group(self.n_cols))
    }
}

/// The kernels that stage rows.
pub struct StageKernels {
    stage: Kernel,
    rms_norm: Kernel,
    layer_norm: Kernel,
    glu: Kernel,
}

impl StageKernels {
    /// Compiles them.
    ///
    /// # Errors
    /// If the driver refuses them.
    pub fn load(device: &Device) -> Result<StageKernels, CudaError> {
        let module = device.load("stage_f16", ptx!("stage_f16"))?;
        Ok(StageKernels {
            stage: module.kernel("stage_f16", STAGE_THREADS)?,
            rms_norm: module.kernel("rms_norm_stage_f16", NORM_THREADS)?,
            layer_norm: module.kernel("layer_norm_stage_f16", NORM_THREADS)?,
            glu: module.kernel("glu_stage_f16", GLU_THREADS)?,
        })
    }

    /// Stages the rows of `x` as the first columns.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn stage(&self, shape: RowShape, x: &Buffer, inputs: &Inputs) -> Result<(), CudaError> {
        shape.assert_in(x);
        inputs.assert_take(shape);
        let args = inputs.args(Args::new().buffer(x), shape);
        // SAFETY: the kernel reads rows and writes as many columns, which are there.
        unsafe { self.stage.launch([shape.n_rows, 1, 1], args) }
    }

    /// `out = norm(x)` over whole rows, as [`super::RowKernels::norm`] has it, which are staged.
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
        inputs: &Inputs,
    ) -> Result<(), CudaError> {
        shape.assert_in(x);
        shape.assert_in(out);
        inputs.assert_take(shape);
        assert_eq!(norm.width, shape.width, "whole rows are normalised");
        assert!(weight.n_bytes() >= 4 * norm.width, "a weight for each value");
        assert!(bias.is_none_or(|b| b.n_bytes() >= 4 * norm.width), "a bias for each value");
        let kernel = match norm.kind {
            NormKind::Rms => &self.rms_norm,
            NormKind::Layer => &self.layer_norm,
        };
        let args = Args::new().buffer(x).buffer(out).buffer(weight).optional(bias);
        let args = inputs.args(args, shape).float(norm.eps);
        // SAFETY: a block for each row and column, and buffers as asserted.
        unsafe { kernel.launch([shape.n_rows, 1, 1], args) }
    }

    /// `gate = activation(gate) * up`, as [`super::RowKernels::glu`] has it, which is staged.
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
        inputs: &Inputs,
    ) -> Result<(), CudaError> {
        shape.assert_in(gate);
        up.iter().for_each(|up| shape.assert_in(up));
        inputs.assert_take(shape);
        let args = inputs.args(Args::new().buffer(gate).optional(up), shape);
        // SAFETY: a block for each row and column, and buffers as asserted.
        unsafe { self.glu.launch([shape.n_rows, 1, 1], args.size(number(activation))) }
    }
}
