//! Matrix-vector products: `kernels/gemv_*.cu` and `stage_f16.cu`.

use crate::inference::quant::TensorType;

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::super::strips::{STRIP_ROWS, input_bytes, n_group, strip_bytes};
use super::assert_rows;

/// Columns that the kernels of any type take at once, at most.
const COLUMNS_MAX: usize = 8;
const GEMV_THREADS: u32 = 128;
const STAGE_THREADS: u32 = 256;
/// Strips of a thread block.
const BLOCK_STRIPS: usize = 4;

/// The kernel that multiplies a type, and the module that it is in.
const fn names(ty: TensorType) -> (&'static str, &'static str, &'static str) {
    macro_rules! module {
        ($kernel:literal in $file:literal) => {
            (
                $kernel,
                $file,
                include_str!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/kernels/ptx/sm_53/",
                    $file,
                    ".ptx"
                )),
            )
        };
        ($file:literal) => {
            module!($file in $file)
        };
    }
    match ty {
        TensorType::N4 | TensorType::Q4_K => module!("gemv_n4_f16"),
        TensorType::N3 => module!("gemv_n3_f16"),
        TensorType::Q4_0 => module!("gemv_q4_0_f16"),
        TensorType::Q3_K => module!("gemv_q3_k_f16"),
        TensorType::Q8_0 => module!("gemv_q8_0_f16"),
        TensorType::Q4_1 => module!("gemv_q4_1_f16" in "gemv_codes_f16"),
        TensorType::Q5_0 => module!("gemv_q5_0_f16" in "gemv_codes_f16"),
        TensorType::Q5_1 => module!("gemv_q5_1_f16" in "gemv_codes_f16"),
        TensorType::Q2_K => module!("gemv_q2_k_f16" in "gemv_codes_f16"),
        TensorType::Q5_K => module!("gemv_q5_k_f16" in "gemv_codes_f16"),
        TensorType::Q6_K => module!("gemv_q6_k_f16" in "gemv_codes_f16"),
        TensorType::IQ4_NL => module!("gemv_iq4_nl_f16" in "gemv_codes_f16"),
        TensorType::IQ4_XS => module!("gemv_iq4_xs_f16" in "gemv_codes_f16"),
        TensorType::IQ3_XXS => module!("gemv_iq3_xxs_f16" in "gemv_codes_f16"),
        TensorType::IQ3_S => module!("gemv_iq3_s_f16" in "gemv_codes_f16"),
        TensorType::F16 => module!("gemv_f16_f16" in "gemv_float_f16"),
        TensorType::BF16 => module!("gemv_bf16_f16" in "gemv_float_f16"),
        TensorType::F32 => module!("gemv_f32_f16" in "gemv_float_f16"),
    }
}

/// Columns that the kernels of a type take at once; a batch runs the smallest that holds it.
const fn columns(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::N4 | TensorType::N3 | TensorType::Q4_0 => &[1, 2, 4, COLUMNS_MAX],
        TensorType::Q4_K | TensorType::Q3_K | TensorType::Q8_0 => &[1, 2, 4, COLUMNS_MAX],
        _ => &[1, 4],
    }
}

/// A matrix in strips.
#[derive(Clone)]
pub struct Matrix {
    /// Its type.
    pub ty: TensorType,
    /// Rows.
    pub n_rows: usize,
    /// Weights in a row.
    pub n_cols: usize,
    /// The strips, one after another.
    pub strips: Buffer,
}

/// Input columns, staged for the kernels.
#[derive(Clone)]
pub struct Inputs {
    n_cols: usize,
    n_max: usize,
    columns: Buffer,
}

impl Inputs {
    /// Room for `n_max` columns of `n_cols` values.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(device: &Device, n_cols: usize, n_max: usize) -> Result<Inputs, CudaError> {
        // Kernels read as many columns as they have, also where fewer are wanted.
        let n_max = n_max.next_multiple_of(COLUMNS_MAX);
        let columns = device.allocate("staged inputs", Inputs::n_bytes(n_cols, n_max))?;
        Ok(Inputs { n_cols, n_max, columns })
    }

    /// Bytes of room for `n_max` columns of `n_cols` values.
    pub fn n_bytes(n_cols: usize, n_max: usize) -> usize {
        n_max.next_multiple_of(COLUMNS_MAX) * input_bytes(n_cols)
    }

    /// The same in memory that is there, which others may use as well, one after the other.
    ///
    /// # Panics
    /// If it is too small.
    pub fn within(memory: &Buffer, n_cols: usize, n_max: usize) -> Inputs {
        let n_max = n_max.next_multiple_of(COLUMNS_MAX);
        Inputs { n_cols, n_max, columns: memory.part(0, Inputs::n_bytes(n_cols, n_max)) }
    }

    /// Values of a column.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }
}

/// The kernels of some types.
pub struct GemvKernels {
    stage: Kernel,
    types: Vec<(TensorType, Vec<Kernel>)>,
}

impl GemvKernels {
    /// Compiles the kernels of these types.
    ///
    /// # Errors
    /// If the driver refuses them.
    pub fn load(device: &Device, types: &[TensorType]) -> Result<GemvKernels, CudaError> {
        let ptx =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ptx/sm_53/stage_f16.ptx"));
        let stage = device.load("stage_f16", ptx)?.kernel("stage_f16", STAGE_THREADS)?;
        let mut modules = Vec::new();
        let mut loaded = Vec::new();
        for &ty in types {
            let (kernel, file, ptx) = names(ty);
            let module = match modules.iter().find(|(name, _)| *name == file) {
                Some((_, module)) => module,
                None => {
                    modules.push((file, device.load(file, ptx)?));
                    &modules[modules.len() - 1].1
                }
            };
            let of = |n: usize| module.kernel(&format!("{kernel}_c{n}"), GEMV_THREADS);
            loaded.push((ty, columns(ty).iter().map(|&n| of(n)).collect::<Result<_, _>>()?));
        }
        Ok(GemvKernels { stage, types: loaded })
    }

    /// Stages `n` columns, the rows of `x`, `[n, stride]` f32.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If the buffers are too small.
    pub fn stage(
        &self,
        x: &Buffer,
        stride: usize,
        n: usize,
        inputs: &Inputs,
    ) -> Result<(), CudaError> {
        assert_rows(x, n, inputs.n_cols, stride);
        assert!((1..=inputs.n_max).contains(&n), "{n} columns are staged");
        let args = Args::new()
            .buffer(x)
            .buffer(&inputs.columns)
            .size(inputs.n_cols)
            .size(stride)
            .size(n_group(inputs.n_cols));
        // SAFETY: the kernel reads `n` rows and writes `n` columns, which are there.
        unsafe { self.stage.launch([n, 1, 1], args) }
    }

    /// `y[c] (+)= w . inputs[c] + bias` for the first `n` columns; `y` is `[n, stride]` f32, `bias`
    /// `[n_rows]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit, or the type was not loaded.
    pub fn multiply(
        &self,
        w: &Matrix,
        inputs: &Inputs,
        bias: Option<&Buffer>,
        (y, stride, add): (&Buffer, usize, bool),
        n: usize,
    ) -> Result<(), CudaError> {
        let n_strip = w.n_rows.div_ceil(STRIP_ROWS);
        assert!(w.strips.n_bytes() >= n_strip * strip_bytes(w.ty, w.n_cols), "whole strips");
        assert_eq!(w.n_cols, inputs.n_cols, "a matrix and its input");
        assert!(n <= inputs.n_max, "{n} columns were staged");
        assert!(bias.is_none_or(|b| b.n_bytes() >= 4 * w.n_rows), "a bias for each row");
        assert_rows(y, n, w.n_rows, stride);
        let kernels = self.types.iter().find(|(ty, _)| *ty == w.ty).expect("the type was loaded");
        let (column_bytes, sizes) = (input_bytes(w.n_cols), columns(w.ty));
        let most = sizes[sizes.len() - 1];
        for first in (0..n).step_by(most) {
            let n = (n - first).min(most);
            let which = sizes.iter().position(|&c| c >= n).expect("no more than the most");
            let columns = sizes[which];
            let at = first * stride * 4;
            let args = Args::new()
                .buffer(&w.strips)
                .buffer(&inputs.columns.part(first * column_bytes, columns * column_bytes))
                .optional(bias)
                .buffer(&y.part(at, y.n_bytes() - at))
                .size(n_group(w.n_cols))
                .size(w.n_rows)
                .size(n)
                .size(stride)
                .size(usize::from(add));
            // SAFETY: a warp for each strip, and buffers as asserted.
            unsafe { kernels.1[which].launch([n_strip.div_ceil(BLOCK_STRIPS), 1, 1], args) }?;
        }
        Ok(())
    }
}
