//! Launchers: the only ones who know grids and what a kernel's arguments must be.
//!
//! Each checks the shapes that its kernel relies on, in the order of the kernel's header, and
//! panics where they are wrong: they follow from a plan, not from a file or a request.

mod attention;
mod gemv;
mod replay;
mod rows;

pub use attention::{
    AttentionBatch, AttentionKernels, AttentionShape, HEAD_DIM_MAX, KvFormat, TokenSpan,
};
pub use gemv::{GemvKernels, Inputs, Matrix, TensorCores};
pub use replay::{Likeness, Replays};
pub use rows::{NormShape, RowKernels, RowShape, TOP_K_MAX};

use super::driver::Buffer;

/// Multiply-adds of one launch, at most, where there is a choice: less than a tenth of a second on
/// the smallest device. A board that draws its screen with the same processor ends a launch of
/// seconds.
const LAUNCH_PRODUCTS_MAX: usize = 4 << 30;

/// Asserts that a buffer holds `n_rows` rows of `stride` words, the last of them `width`.
fn assert_rows(buffer: &Buffer, n_rows: usize, width: usize, stride: usize) {
    assert!(width <= stride, "rows do not overlap");
    let n = n_rows.checked_sub(1).map_or(0, |last| last * stride + width);
    assert!(buffer.n_bytes() >= 4 * n, "{n_rows} rows of {stride} fit their buffer");
}
