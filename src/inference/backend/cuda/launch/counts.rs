//! What products cost by their kernels' machine code: bytes, and the instructions that were counted
//! in it (`kernels/count.py`, whose file this reads).

use crate::inference::quant::TensorType;

use super::super::strips::{GROUP_PARTS, PART_LEN, STRIP_ROWS, n_group, strip_bytes};
use super::gemv::names;

/// A line for each kernel: its name, instructions of a lane, and products of a lane.
const COUNTS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/counts.txt"));

/// What a matrix costs the device each time that it is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProductCost {
    /// Bytes that are read for the columns that go together.
    pub n_bytes: f64,
    /// Instructions of all lanes for one column alone.
    pub gemv: f64,
    /// The same for each of many columns.
    pub gemm: f64,
}

impl ProductCost {
    /// Of a matrix in strips, with the zeros that fill its last groups and strips.
    ///
    /// # Panics
    /// If a kernel was not counted, which a test of this file forbids.
    pub fn of(ty: TensorType, (n_rows, n_cols): (usize, usize)) -> ProductCost {
        let n_strip = n_rows.div_ceil(STRIP_ROWS);
        let n_weight = (n_strip * STRIP_ROWS * n_group(n_cols) * GROUP_PARTS * PART_LEN) as f64;
        let name = names(ty).0;
        let issue = |kernel: String| issue(&kernel).expect("the kernel was counted");
        ProductCost {
            n_bytes: (n_strip * strip_bytes(ty, n_cols)) as f64,
            gemv: n_weight * issue(format!("gemv_{name}_f16_c1")),
            gemm: n_weight * issue(format!("gemm_{name}_f16")),
        }
    }
}

/// Instructions of a lane for each of its products.
fn issue(kernel: &str) -> Option<f64> {
    let mut lines = COUNTS.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.find(|words| words[0] == kernel)?;
    let number = |i: usize| line.get(i)?.parse::<f64>().ok();
    Some(number(1)? / number(2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_was_counted() {
        for ty in TensorType::ALL {
            let cost = ProductCost::of(ty, (4, 256));
            assert!(cost.n_bytes > 0.0 && cost.gemm > 0.0 && cost.gemv > cost.gemm, "{ty}");
        }
    }

    #[test]
    fn what_docs_cuda_md_quotes_is_what_was_counted() {
        let quoted = |kernel| (issue(kernel).unwrap() * 100.0).round() / 100.0;
        for (kernel, issue) in [
            ("gemv_n4_f16_c1", 1.89),
            ("gemv_q4_0_f16_c1", 1.71),
            ("gemv_n3_f16_c1", 2.05),
            ("gemv_q3_k_f16_c1", 2.22),
            ("gemv_q8_0_f16_c1", 2.09),
            ("gemm_n4_f16", 0.86),
            ("gemm_q4_0_f16", 0.85),
        ] {
            assert_eq!(quoted(kernel), issue, "{kernel}");
        }
    }

    #[test]
    fn rows_and_columns_are_filled_up() {
        let whole = ProductCost::of(TensorType::N4, (4, 1024));
        assert_eq!(ProductCost::of(TensorType::N4, (1, 896)), whole);
        assert_eq!(whole.n_bytes * 8.0 / 4096.0, 4.625);
    }
}
