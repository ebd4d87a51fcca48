//! Many columns: a task expands its panels and lets the columns pass.

use super::Job;
use crate::inference::backend::cpu::expand::{self, EXPAND_COLS, HeadPlan};
use crate::inference::backend::cpu::lanes::WideLanes;
use crate::inference::backend::cpu::panel::{Format, PANEL_ROWS};
use crate::inference::backend::cpu::wide_kernel::{self, Pair};

/// What a task expanded: `n` panels, of which the first is panel `start` of the matrix.
#[derive(Clone, Copy)]
struct Expanded {
    wide: *const u8,
    wide_bytes: usize,
    start: usize,
    n: usize,
}

/// Panels `start..end`, expanded to bytes, times all columns, in tiles of `C`.
///
/// # Safety
/// As a task of [`super::matmul`]; there are [`EXPAND_COLS`] columns at least.
#[inline(always)]
pub unsafe fn expanded<L: WideLanes, F: Format, const C: usize>(
    job: &Job<'_>,
    start: usize,
    end: usize,
) {
    const { assert!(C <= EXPAND_COLS) };
    let n_block = job.w.n_cols / 32;
    let (panel_bytes, wide_bytes) =
        (F::LAYOUT.panel_bytes(n_block), expand::wide_bytes::<L, F>(n_block));
    let mut buffer = expand::take_buffer((end - start) * wide_bytes);
    let wide = buffer.as_mut_ptr().cast::<u8>();
    // SAFETY: `matmul` asserted that panels and chunks are there; the buffer has room for all.
    unsafe {
        let panels = job.w.data.as_ptr().add(start * panel_bytes);
        for i in 0..end - start {
            let (from, to) = (panels.add(i * panel_bytes), wide.add(i * wide_bytes));
            expand::expand::<L, F>(from, n_block, to, job.ahead);
        }
        let of = Expanded { wide, wide_bytes, start, n: end - start };
        for tile_idx in 0..job.x.n.div_ceil(C) {
            // The last one ends with the last column: what it shares with the one before comes out
            // the same.
            job.wide_tiles::<L, F, C>(of, (tile_idx * C).min(job.x.n - C));
        }
    }
    expand::give_back(buffer);
}

impl Job<'_> {
    /// Expanded panels times `C` columns.
    ///
    /// # Safety
    /// As [`wide_kernel::tile`]; no other thread writes these places.
    #[inline(always)]
    unsafe fn wide_tiles<L: WideLanes, F: Format, const C: usize>(&self, of: Expanded, col: usize) {
        let n_block = self.w.n_cols / 32;
        let n_vector = PANEL_ROWS / L::ROWS;
        for first in (0..of.n * n_vector).step_by(2) {
            // A last one alone stands there twice.
            let vectors = [first, (first + 1).min(of.n * n_vector - 1)];
            let (panels, places) = (vectors.map(|i| i / n_vector), vectors.map(|i| i % n_vector));
            // SAFETY: passed on.
            unsafe {
                let wide = panels.map(|i| of.wide.add(i * of.wide_bytes));
                let (head_bytes, heads_bytes) =
                    const { (HeadPlan::of::<L, F>().bytes, expand::heads_bytes::<L, F>()) };
                let place = |r: usize| wide[r].add(heads_bytes + 4 * L::ROWS * places[r]);
                let pair = Pair {
                    heads: [0, 1].map(|r: usize| wide[r].add(head_bytes * places[r])),
                    codes: [place(0), place(1)],
                };
                let acts = (self.acts.as_ptr().add(col), self.x.n);
                let sums = wide_kernel::tile::<L, F, C>(pair, n_block, acts);
                for r in 0..2 {
                    let row = (of.start + panels[r]) * PANEL_ROWS + L::ROWS * places[r];
                    for c in 0..C {
                        self.store::<L>(row, col + c, sums[r][c]);
                    }
                }
            }
        }
    }
}
