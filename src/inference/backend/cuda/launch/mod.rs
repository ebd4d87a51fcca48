//! Launchers: the only ones who know grids and what a kernel's arguments must be.
//!
//! Each checks the shapes that its kernel relies on, in the order of the kernel's header, and
//! panics where they are wrong: they follow from a plan, not from a file or a request.

mod attention;
mod counts;
mod gemv;
mod lora;
mod replay;
mod rows;
mod stage;

pub use attention::{AttentionBatch, AttentionKernels, AttentionShape, KvFormat, TokenSpan, Turn};
pub use counts::ProductCost;
pub use gemv::{GemvKernels, Matrix, Multiply, TensorCores};
pub use lora::{LoraKernels, LoraPair, LoraTable, LoraUses};
pub use replay::{Likeness, Replays};
pub use rows::{NormShape, RowKernels, RowShape, TOP_K_MAX};
pub use stage::{Inputs, StageKernels};

use super::driver::Buffer;

/// Asserts that a buffer holds `n_rows` rows of `stride` words, the last of them `width`.
fn assert_rows(buffer: &Buffer, n_rows: usize, width: usize, stride: usize) {
    assert!(width <= stride, "rows do not overlap");
    let n = n_rows.checked_sub(1).map_or(0, |last| last * stride + width);
    assert!(buffer.n_bytes() >= 4 * n, "{n_rows} rows of {stride} fit their buffer");
}
