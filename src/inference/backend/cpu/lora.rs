//! LoRA on the CPU: after a product, the rows whose spans ask for adapters get their share.
//!
//! ```text
//! out[rows] = W x + bias                              all rows of the batch, as without adapters
//! out[rows] += scale B (A x)                          adapter by adapter, in the span's order
//! ```
//!
//! Both small products run through `matmul` in f32, whose sums do not depend on the rows beside
//! them, so a token has the same bits in any batch. Spans that follow each other and ask for the
//! same adapters share their products.

use super::acts;
use super::matmul::{Matrix, matmul};
use super::{CpuBackend, STRIDE_LEN};
use crate::base::limits::ADAPTERS_MAX;
use crate::inference::backend::{
    Adapter, AdapterIdx, AdapterPart, BackendError, Batch, BatchError, BufId, Plan, Rows, WeightId,
};
use crate::inference::gguf::Gguf;
use crate::inference::quant::{TensorType, dequantize};

/// The adapters that are loaded, and what their products need.
#[derive(Default)]
pub struct Lora {
    adapters: Vec<Adapter>,
    /// `A x`, `[n, rank]` with padded rows.
    hidden: Vec<f32>,
    /// `B (A x)`, `[n, n_out]`.
    delta: Vec<f32>,
}

/// Rows of a buffer whose spans ask for the same adapters.
struct Group<'a> {
    start: usize,
    n: usize,
    adapters: &'a [(AdapterIdx, f32)],
}

impl CpuBackend {
    /// Loads an adapter for this model, which is of architecture `arch`. It stays, so its number
    /// may stand for it in the key of a cache.
    ///
    /// # Errors
    /// If the file does not fit the model, or too many adapters are loaded.
    pub fn add_adapter(&mut self, gguf: &Gguf, arch: &str) -> Result<AdapterIdx, BackendError> {
        self.take_adapter(Adapter::read(gguf, &self.plan, arch).map_err(Box::new)?)
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes an adapter that was read for its plan, as [`CpuBackend::add_adapter`] does.
    ///
    /// # Errors
    /// If too many adapters are loaded.
    pub fn take_adapter(&mut self, adapter: Adapter) -> Result<AdapterIdx, BackendError> {
        if self.lora.adapters.len() >= ADAPTERS_MAX {
            return Err(BackendError::TooManyAdapters);
        }
        self.lora.adapters.push(adapter);
        Ok(self.lora.adapters.len() as AdapterIdx - 1)
    }

    /// An adapter that is loaded.
    pub fn adapter(&self, idx: AdapterIdx) -> Option<&Adapter> {
        self.lora.adapters.get(idx as usize)
    }

    /// Refuses adapters that are not loaded.
    pub(super) fn check_adapters(&self, batch: &Batch<'_>) -> Result<(), BatchError> {
        let mut asked = batch.spans.iter().flat_map(|span| span.adapters);
        let missing = asked.find(|(idx, _)| self.adapter(*idx).is_none());
        missing.map_or(Ok(()), |&(adapter, _)| Err(BatchError::Adapter { adapter }))
    }

    /// Adds to the product `out = weight . x` what the spans' adapters change in it.
    pub(super) fn adapt_product(
        &mut self,
        (x, weight): (BufId, WeightId),
        out: &mut [f32],
        out_stride: usize,
        batch: &Batch<'_>,
    ) {
        let input = &self.bufs[x.0];
        for group in groups(batch, input.rows) {
            let data = &input.data[group.start * input.stride..];
            let x = acts::Rows { data, stride: input.stride, n: group.n };
            let out = &mut out[group.start * out_stride..];
            for &(idx, scale) in group.adapters {
                let Lora { adapters, hidden, delta } = &mut self.lora;
                let Some(part) = part(adapters, idx, weight) else {
                    continue;
                };
                let isa = self.config.isa;
                let mut product = |w: Matrix<'_>, x: acts::Rows<'_>, out: &mut Vec<f32>| {
                    let stride = w.n_rows.next_multiple_of(STRIDE_LEN);
                    // What lies past a row's width must be zero for the next product.
                    out.clear();
                    out.resize(x.n * stride, 0.0);
                    matmul(&mut self.pool, isa, w, x, &[], None, out, stride);
                    stride
                };
                let stride = product(floats(&part.a, part.rank), x, hidden);
                let x = acts::Rows { data: hidden, stride, n: group.n };
                let stride = product(floats(&part.b, part.n_out), x, delta);
                add_rows(out, out_stride, delta, stride, part.n_out, scale * part.scale);
            }
        }
    }

    /// Adds to the look-ups `out[t] = table[tokens[t]]` what the spans' adapters change in them.
    pub(super) fn adapt_table(
        &mut self,
        table: WeightId,
        out: &mut [f32],
        out_stride: usize,
        batch: &Batch<'_>,
    ) {
        for group in groups(batch, Rows::Tokens) {
            let tokens = &batch.tokens[group.start..][..group.n];
            let out = &mut out[group.start * out_stride..];
            for &(idx, scale) in group.adapters {
                let Lora { adapters, hidden, delta } = &mut self.lora;
                let Some(part) = part(adapters, idx, table) else {
                    continue;
                };
                let stride = part.rank.next_multiple_of(STRIDE_LEN);
                hidden.clear();
                hidden.resize(group.n * stride, 0.0);
                for (row, &token) in hidden.chunks_exact_mut(stride).zip(tokens) {
                    let bytes = &part.a[4 * token as usize * part.rank..][..4 * part.rank];
                    dequantize(TensorType::F32, bytes, &mut row[..part.rank]);
                }
                let x = acts::Rows { data: hidden, stride, n: group.n };
                let stride = part.n_out.next_multiple_of(STRIDE_LEN);
                delta.clear();
                delta.resize(group.n * stride, 0.0);
                let (w, isa) = (floats(&part.b, part.n_out), self.config.isa);
                matmul(&mut self.pool, isa, w, x, &[], None, delta, stride);
                add_rows(out, out_stride, delta, stride, part.n_out, scale * part.scale);
            }
        }
    }
}

/// What an adapter adds to a weight; a scale of 0 is not special, as in llama.cpp.
fn part(adapters: &[Adapter], idx: AdapterIdx, weight: WeightId) -> Option<&AdapterPart> {
    adapters.get(idx as usize)?.part(weight)
}

/// `[n_rows, ...]` in f32.
fn floats(data: &[u8], n_rows: usize) -> Matrix<'_> {
    Matrix { ty: TensorType::F32, data, n_rows, n_cols: data.len() / size_of::<f32>() / n_rows }
}

/// `out[row][..width] += scale * delta[row]` for the rows that `delta` has.
fn add_rows(
    out: &mut [f32],
    out_stride: usize,
    delta: &[f32],
    stride: usize,
    width: usize,
    scale: f32,
) {
    let rows = out.chunks_mut(out_stride).zip(delta.chunks_exact(stride));
    for (out, delta) in rows {
        out[..width].iter_mut().zip(delta).for_each(|(o, d)| *o += scale * d);
    }
}

/// The rows of a buffer that adapters change, in order.
fn groups<'a>(batch: &Batch<'a>, rows: Rows) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let (mut row, mut token) = (0, 0);
    for span in batch.spans {
        token += span.n_tokens;
        let end = match rows {
            Rows::Tokens => token,
            Rows::Outputs => batch.outputs.partition_point(|&o| (o as usize) < token),
        };
        let n = end - row;
        match groups.last_mut() {
            _ if span.adapters.is_empty() || n == 0 => {}
            Some(last) if last.start + last.n == row && last.adapters == span.adapters => {
                last.n += n;
            }
            _ => groups.push(Group { start: row, n, adapters: span.adapters }),
        }
        row = end;
    }
    groups
}
