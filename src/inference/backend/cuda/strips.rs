//! How matrices and inputs lie in the device's memory: strips, and columns that were staged.

pub use crate::inference::quant::strip::{
    GROUP_PARTS, PART_LEN, STRIP_ROWS, n_group, pack_parts, pack_strip, strip_bytes,
};

const INPUT_HEADER_BYTES: usize = 16;
/// Halves of 8 parts, and the sums of each 16.
const INPUT_GROUP_BYTES: usize = GROUP_PARTS * (PART_LEN * 2 + 8);

/// Bytes of a staged input column of `n_cols` values.
pub const fn input_bytes(n_cols: usize) -> usize {
    INPUT_HEADER_BYTES + n_group(n_cols) * INPUT_GROUP_BYTES
}
