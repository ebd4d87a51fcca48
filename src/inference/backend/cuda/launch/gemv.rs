//! Products of matrices: `kernels/gemv_*.cu` for few columns and many, and `gemm_mma_f16.cu` for
//! tensor cores.

use std::ops::Range;

use crate::inference::quant::TensorType;

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel, Module};
use super::super::strips::{STRIP_ROWS, input_bytes, n_group, strip_bytes};
use super::{Inputs, assert_rows};

const GEMV_THREADS: u32 = 64;
const GEMM_THREADS: u32 = 128;
/// Warps of a gemv's thread block.
const BLOCK_WARPS: usize = 2;
/// Strips of a gemm's thread block.
const GEMM_STRIPS: usize = 16;
/// Strips that a warp has, or parts that it deals a strip's groups out to.
const SPANS: usize = 4;
/// Columns and strips of a thread block on tensor cores.
const MMA_COLUMNS: usize = 64;
const MMA_STRIPS: usize = 32;
/// The first devices that have the tensor cores.
const MMA_CAPABILITY: (u32, u32) = (8, 0);
/// Strips below which a warp has one even on a small device, so that there are warps enough.
const FEW_STRIPS: usize = 128;

/// The kernels of a type by its name in the sources, and their PTX.
pub(super) const fn names(ty: TensorType) -> (&'static str, &'static str, &'static str) {
    macro_rules! module {
        ($ty:literal in $file:literal) => {
            ($ty, $file, ptx!($file))
        };
    }
    match ty {
        TensorType::N4 | TensorType::Q4_K => module!("n4" in "gemv_n4_f16"),
        TensorType::N3 => module!("n3" in "gemv_n3_f16"),
        TensorType::Q4_0 => module!("q4_0" in "gemv_q4_0_f16"),
        TensorType::Q3_K => module!("q3_k" in "gemv_q3_k_f16"),
        TensorType::Q8_0 => module!("q8_0" in "gemv_q8_0_f16"),
        TensorType::Q4_1 => module!("q4_1" in "gemv_q4_1_f16"),
        TensorType::Q5_0 => module!("q5_0" in "gemv_q5_0_f16"),
        TensorType::Q5_1 => module!("q5_1" in "gemv_q5_1_f16"),
        TensorType::Q2_K => module!("q2_k" in "gemv_q2_k_f16"),
        TensorType::Q5_K => module!("q5_k" in "gemv_q5_k_f16"),
        TensorType::Q6_K => module!("q6_k" in "gemv_q6_k_f16"),
        TensorType::IQ4_NL => module!("iq4_nl" in "gemv_iq4_nl_f16"),
        TensorType::IQ4_XS => module!("iq4_xs" in "gemv_iq4_xs_f16"),
        TensorType::IQ3_XXS => module!("iq3_xxs" in "gemv_iq3_xxs_f16"),
        TensorType::IQ3_S => module!("iq3_s" in "gemv_iq3_s_f16"),
        TensorType::F16 => module!("f16" in "gemv_float_f16"),
        TensorType::BF16 => module!("bf16" in "gemv_float_f16"),
        TensorType::F32 => module!("f32" in "gemv_float_f16"),
    }
}

/// Whether a type has kernels for 1, 2, 4, 8 and 16 columns, or for 1, 4 and 8 only.
const fn is_tuned(ty: TensorType) -> bool {
    matches!(
        ty,
        TensorType::N4
            | TensorType::N3
            | TensorType::Q4_0
            | TensorType::Q4_K
            | TensorType::Q3_K
            | TensorType::Q8_0
    )
}

/// The kernels of a type.
struct Products {
    ty: TensorType,
    /// For few columns, with how many each takes, from the fewest.
    gemv: Vec<(usize, Kernel)>,
    /// For many, and how many a thread block takes.
    gemm: (usize, Kernel),
    /// For a prompt's, where the device has tensor cores and the type a kernel for them.
    mma: Option<Kernel>,
}

impl Products {
    fn load(module: &Module, ty: TensorType) -> Result<Products, CudaError> {
        let (name, ..) = names(ty);
        let (few, many): (&[usize], usize) =
            if is_tuned(ty) { (&[1, 2, 4, 8], 16) } else { (&[1, 4], 8) };
        let gemv = |&n: &usize| {
            Ok::<_, CudaError>((n, module.kernel(&format!("gemv_{name}_f16_c{n}"), GEMV_THREADS)?))
        };
        let gemm = module.kernel(&format!("gemm_{name}_f16"), GEMM_THREADS)?;
        let gemv = few.iter().map(gemv).collect::<Result<_, _>>()?;
        Ok(Products { ty, gemv, gemm: (many, gemm), mma: None })
    }

    /// How many of `n` columns the next launch takes, and whether it is the gemm's.
    fn next(&self, n: usize) -> (usize, bool) {
        let (many, few) = (self.gemm.0, self.gemv[self.gemv.len() - 1].0);
        match n % many {
            // The last few are cheaper by themselves than as a whole block of columns.
            rest if rest <= few && rest < n => (n - rest, true),
            _ if n > few => (n, true),
            _ => (n, false),
        }
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

/// Whether prompts are multiplied on tensor cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorCores {
    /// There are none, or no kernel for the types at hand.
    Absent,
    /// They are.
    Used,
    /// The other kernels do it, because of this.
    Refused(String),
}

/// How products are made: [`GemvKernels::multiply`], or its like for prompts.
pub type Multiply = fn(
    &GemvKernels,
    &Matrix,
    &Inputs,
    Option<&Buffer>,
    (&Buffer, usize, bool),
    Range<usize>,
) -> Result<(), CudaError>;

/// The kernels of some types.
pub struct GemvKernels {
    device: Device,
    types: Vec<Products>,
    tensor_cores: TensorCores,
    /// Whether the device has many multiprocessors, which want more warps.
    is_large: bool,
}

impl GemvKernels {
    /// Compiles the kernels of these types.
    ///
    /// # Errors
    /// If the driver refuses them.
    pub fn load(device: &Device, types: &[TensorType]) -> Result<GemvKernels, CudaError> {
        let mut modules = Vec::new();
        let mut loaded = Vec::new();
        for &ty in types {
            let (_, file, ptx) = names(ty);
            let module = match modules.iter().find(|(name, _)| *name == file) {
                Some((_, module)) => module,
                None => {
                    modules.push((file, device.load(file, ptx)?));
                    &modules[modules.len() - 1].1
                }
            };
            loaded.push(Products::load(module, ty)?);
        }
        let tensor_cores = match load_mma(device, &mut loaded) {
            Ok(true) => TensorCores::Used,
            Ok(false) => TensorCores::Absent,
            Err(error) => TensorCores::Refused(error.to_string()),
        };
        // Those before had one or two.
        let is_large = device.info().capability >= (6, 0);
        Ok(GemvKernels { device: device.clone(), types: loaded, tensor_cores, is_large })
    }

    /// Whether [`GemvKernels::multiply_prompt`] goes by tensor cores.
    pub fn tensor_cores(&self) -> &TensorCores {
        &self.tensor_cores
    }

    /// Whether it does for this type.
    pub fn has_tensor_kernel(&self, ty: TensorType) -> bool {
        self.tensor_cores == TensorCores::Used
            && self.types.iter().any(|p| p.ty == ty && p.mma.is_some())
    }

    /// Leaves prompts to the other kernels from now on.
    pub fn refuse_tensor_cores(&mut self, reason: String) {
        self.types.iter_mut().for_each(|products| products.mma = None);
        self.tensor_cores = TensorCores::Refused(reason);
    }

    /// `y[c] (+)= w . inputs[c] + bias` for each column of a range; `y` is `[n, stride]` f32 from
    /// column 0 on, `bias` `[n_rows]`.
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
        columns: Range<usize>,
    ) -> Result<(), CudaError> {
        let n = columns.end;
        let n_strip = assert_product(w, inputs, bias, n);
        assert_rows(y, n, w.n_rows, stride);
        let products = self.types.iter().find(|p| p.ty == w.ty).expect("the type was loaded");
        let split = self.split(n_strip);
        let mut first = columns.start;
        while first < n {
            let (taken, is_gemm) = products.next(n - first);
            let (columns, kernel) = if is_gemm {
                &products.gemm
            } else {
                products.gemv.iter().find(|(c, _)| *c >= taken).expect("no more than the most")
            };
            let most = self.device.launch_products_max() / (w.n_rows * w.n_cols);
            let most = most.next_multiple_of(*columns);
            let taken = if is_gemm { taken.min(most.max(*columns)) } else { taken };
            let column_bytes = input_bytes(w.n_cols);
            let n_read = taken.next_multiple_of(*columns) * column_bytes;
            let at = first * stride * 4;
            let args = Args::new()
                .buffer(&w.strips)
                .buffer(&inputs.columns.part(first * column_bytes, n_read))
                .optional(bias)
                .buffer(&y.part(at, y.n_bytes() - at))
                .size(n_group(w.n_cols))
                .size(w.n_rows)
                .size(taken)
                .size(stride)
                .size(usize::from(add))
                .size(split);
            let grid = if is_gemm {
                [taken.div_ceil(*columns), n_strip.div_ceil(GEMM_STRIPS), 1]
            } else {
                [n_strip.div_ceil(SPANS / split).div_ceil(BLOCK_WARPS), 1, 1]
            };
            // SAFETY: threads for each strip and column, and buffers as asserted.
            unsafe { kernel.launch(grid, args) }?;
            first += taken;
        }
        Ok(())
    }

    /// The same for columns that are tokens of prompts: on tensor cores, where the device has them
    /// and the type a kernel for them. Those add in an order of their own, so the bits are not
    /// those of [`GemvKernels::multiply`]; they do not depend on how many columns there are either,
    /// so a token that always goes this way is the same in any company.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit, or the type was not loaded.
    pub fn multiply_prompt(
        &self,
        w: &Matrix,
        inputs: &Inputs,
        bias: Option<&Buffer>,
        (y, stride, add): (&Buffer, usize, bool),
        columns: Range<usize>,
    ) -> Result<(), CudaError> {
        let Some(kernel) = self.types.iter().find(|p| p.ty == w.ty).and_then(|p| p.mma.as_ref())
        else {
            return self.multiply(w, inputs, bias, (y, stride, add), columns);
        };
        let n_strip = assert_product(w, inputs, bias, columns.end);
        assert_rows(y, columns.end, w.n_rows, stride);
        let n = columns.len();
        if n == 0 {
            return Ok(());
        }
        let (column_bytes, at) = (input_bytes(w.n_cols), columns.start * stride * 4);
        let args = Args::new()
            .buffer(&w.strips)
            .buffer(&inputs.columns.part(columns.start * column_bytes, n * column_bytes))
            .optional(bias)
            .buffer(&y.part(at, y.n_bytes() - at))
            .size(n_group(w.n_cols))
            .size(w.n_rows)
            .size(n)
            .size(stride)
            .size(usize::from(add));
        let grid = [n.div_ceil(MMA_COLUMNS), n_strip.div_ceil(MMA_STRIPS), 1];
        // SAFETY: a block for each tile, and buffers as asserted.
        unsafe { kernel.launch(grid, args) }
    }

    /// Into how many the groups of a row are split. It follows from the device and the matrix, so
    /// that a column's bits do not depend on its batch.
    fn split(&self, n_strip: usize) -> usize {
        if self.is_large || n_strip < FEW_STRIPS { SPANS } else { 1 }
    }
}

/// Asserts that a matrix, its inputs and a bias fit each other; the strips.
fn assert_product(w: &Matrix, inputs: &Inputs, bias: Option<&Buffer>, n: usize) -> usize {
    let n_strip = w.n_rows.div_ceil(STRIP_ROWS);
    assert!(w.strips.n_bytes() >= n_strip * strip_bytes(w.ty, w.n_cols), "whole strips");
    assert_eq!(w.n_cols, inputs.n_cols, "a matrix and its input");
    assert!(n <= inputs.n_max, "{n} columns were staged");
    assert!(bias.is_none_or(|b| b.n_bytes() >= 4 * w.n_rows), "a bias for each row");
    n_strip
}

/// The kernels for tensor cores, if the device has them and a type one of them; whether it is so.
fn load_mma(device: &Device, types: &mut [Products]) -> Result<bool, CudaError> {
    let of = |ty: TensorType| match ty {
        TensorType::N4 | TensorType::Q4_K => Some("gemm_n4_mma"),
        TensorType::Q4_0 => Some("gemm_q4_0_mma"),
        _ => None,
    };
    if device.info().capability < MMA_CAPABILITY || types.iter().all(|p| of(p.ty).is_none()) {
        return Ok(false);
    }
    let module = device.load("gemm_mma_f16", ptx!("gemm_mma_f16" for "sm_80"))?;
    let kernel = |products: &Products| {
        let name = of(products.ty);
        name.map(|name| module.kernel(name, GEMM_THREADS)).transpose()
    };
    let kernels = types.iter().map(kernel).collect::<Result<Vec<_>, _>>()?;
    types.iter_mut().zip(kernels).for_each(|(products, kernel)| products.mma = kernel);
    Ok(true)
}
