//! Writing K-quants and native types: the integers of a run, put where `k_quants` and `native` read
//! them.
//!
//! The K-quants get the search that their makers gave them, so that a recipe gives the quality that
//! it is known for. The native types get more of it: a wider grid, and the integers chosen again.

use super::TensorType;
use super::native::{NativePart, PART_LEN, write_super};
use super::search::Grid;
use super::super_block::{AffineRun, AffineSpec, CenteredSpec, RUN_LEN, affine_run, centered_run};

/// 37 scales, from 0.9 steps fewer to 0.9 more.
const GRID: Grid = Grid { first: -0.9, step: 0.05, n: 36, n_again: 1 };
/// From 1.2 steps fewer to 2 more, and each rounded again by what it led to.
const WIDE_GRID: Grid = Grid { first: -1.2, step: 0.1, n: 32, n_again: 2 };
const Q2_K: AffineSpec = AffineSpec {
    group_len: 16,
    code_max: 3,
    scale_max: 15,
    large_counts_more: true,
    n_refine: 0,
    grid: GRID,
};
const Q4_K: AffineSpec = AffineSpec { group_len: 32, code_max: 15, scale_max: 63, ..Q2_K };
const Q5_K: AffineSpec = AffineSpec { code_max: 31, ..Q4_K };
const N4: AffineSpec =
    AffineSpec { large_counts_more: false, n_refine: 4, grid: WIDE_GRID, ..Q4_K };
const N3: AffineSpec = AffineSpec { code_max: 7, ..N4 };
const Q3_K: CenteredSpec = CenteredSpec { zero: 4, scale_zero: 32 };
const Q6_K: CenteredSpec = CenteredSpec { zero: 32, scale_zero: 128 };

/// Puts bits `from ..` under `mask` of a part's codes into run `run_idx` at `shift`.
fn put(runs: &mut [u8], (run_idx, shift): (usize, usize), codes: &[u8], (from, mask): (usize, u8)) {
    for (byte, code) in runs[32 * run_idx..][..32].iter_mut().zip(codes) {
        *byte |= (code >> from & mask) << shift;
    }
}

/// The 16 bytes that open a block of Q4_K and of Q5_K.
fn scale_min_head(run: &AffineRun) -> [u8; 16] {
    let mut head = [0; 16];
    head[..2].copy_from_slice(&run.d.to_le_bytes());
    head[2..4].copy_from_slice(&run.dmin.to_le_bytes());
    for i in 0..4 {
        head[4 + i] = run.scale[i] | run.scale[i + 4] >> 4 << 6;
        head[8 + i] = run.min[i] | run.min[i + 4] >> 4 << 6;
        head[12 + i] = run.scale[i + 4] & 15 | run.min[i + 4] << 4;
    }
    head
}

/// Q2_K.
pub(super) fn q2_k(x: &[f32], importance: Option<&[f32]>) -> [u8; 84] {
    let run = affine_run(Q2_K, x, importance);
    let mut block = [0; 84];
    for i in 0..16 {
        block[i] = run.scale[i] | run.min[i] << 4;
    }
    for (part_idx, codes) in run.codes.chunks_exact(32).enumerate() {
        put(&mut block[16..80], (part_idx / 4, 2 * (part_idx % 4)), codes, (0, 3));
    }
    block[80..82].copy_from_slice(&run.d.to_le_bytes());
    block[82..].copy_from_slice(&run.dmin.to_le_bytes());
    block
}

/// Q3_K.
pub(super) fn q3_k(x: &[f32], importance: Option<&[f32]>) -> [u8; 110] {
    let run = centered_run(Q3_K, x, importance);
    let mut block = [0; 110];
    for (part_idx, codes) in run.codes.chunks_exact(32).enumerate() {
        put(&mut block[..32], (0, part_idx), codes, (2, 1));
        put(&mut block[32..96], (part_idx / 4, 2 * (part_idx % 4)), codes, (0, 3));
    }
    for (group, scale) in run.scale.iter().enumerate() {
        let stored = (scale + 32).cast_unsigned();
        block[96 + group % 8] |= (stored & 15) << (4 * (group / 8));
        block[104 + group % 4] |= (stored >> 4) << (2 * (group / 4));
    }
    block[108..].copy_from_slice(&run.d.to_le_bytes());
    block
}

/// Q4_K.
pub(super) fn q4_k(x: &[f32], importance: Option<&[f32]>) -> [u8; 144] {
    let run = affine_run(Q4_K, x, importance);
    let mut block = [0; 144];
    block[..16].copy_from_slice(&scale_min_head(&run));
    for (part_idx, codes) in run.codes.chunks_exact(32).enumerate() {
        put(&mut block[16..], (part_idx / 2, 4 * (part_idx % 2)), codes, (0, 15));
    }
    block
}

/// Q5_K.
pub(super) fn q5_k(x: &[f32], importance: Option<&[f32]>) -> [u8; 176] {
    let run = affine_run(Q5_K, x, importance);
    let mut block = [0; 176];
    block[..16].copy_from_slice(&scale_min_head(&run));
    for (part_idx, codes) in run.codes.chunks_exact(32).enumerate() {
        put(&mut block[16..48], (0, part_idx), codes, (4, 1));
        put(&mut block[48..], (part_idx / 2, 4 * (part_idx % 2)), codes, (0, 15));
    }
    block
}

/// Q6_K.
pub(super) fn q6_k(x: &[f32], importance: Option<&[f32]>) -> [u8; 210] {
    let run = centered_run(Q6_K, x, importance);
    let mut block = [0; 210];
    for (part_idx, codes) in run.codes.chunks_exact(32).enumerate() {
        let (half, quarter) = (part_idx / 4, part_idx % 4);
        put(&mut block[..128], (2 * half + quarter % 2, 4 * (quarter / 2)), codes, (0, 15));
        put(&mut block[128..192], (half, 2 * quarter), codes, (4, 3));
    }
    for (byte, scale) in block[192..208].iter_mut().zip(run.scale) {
        *byte = scale.cast_unsigned();
    }
    block[208..].copy_from_slice(&run.d.to_le_bytes());
    block
}

/// A row of N4 or N3, whose last run may be shorter than the others.
pub(super) fn native(ty: TensorType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let spec = if ty == TensorType::N3 { N3 } else { N4 };
    let mut out = Vec::with_capacity(ty.row_bytes(row.len()).unwrap_or(0));
    for (run_idx, x) in row.chunks(RUN_LEN).enumerate() {
        let importance = importance.map(|row| &row[RUN_LEN * run_idx..][..x.len()]);
        let run = affine_run(spec, x, importance);
        let codes = run.codes.as_chunks::<PART_LEN>().0.iter();
        let parts = codes.zip(run.scale.iter().zip(run.min));
        let parts = parts.map(|(&codes, (&scale, min))| NativePart { codes, scale, min });
        let parts: Vec<NativePart> = parts.take(x.len() / PART_LEN).collect();
        write_super(ty, &parts, run.d, run.dmin, &mut out);
    }
    out
}
