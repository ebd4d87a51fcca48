//! Few columns: panels are expanded a group at a time, and meet all columns at once.
//!
//! What a tile loads or stores is not passed on before it is in the cache. So three groups are in
//! work at a time: one is expanded, tiles multiply the one before, and vectors scale the sums of
//! the one before that.

use super::form::{Head, put_head, put_planes};
use super::tiles::{add_tile_pair, add_tiles};
use super::{Form, Ints, PLANE_BYTES, TILE_COLS, TILES, scale_columns};
use crate::inference::backend::cpu::acts::{ActChunk, ActScale};
use crate::inference::backend::cpu::ahead::Ahead;
use crate::inference::backend::cpu::panel::{
    Format, GROUP_BLOCKS, Layout, PANEL_ROWS, VECTOR_BYTES,
};

/// Whether sums of 256 weights are integers.
pub const fn suits(layout: Layout) -> bool {
    matches!(ActScale::of(layout), ActScale::Chunk)
}

/// Columns at most.
pub const FEW_COLS_MAX: usize = TILES * TILE_COLS;
/// Columns that are scaled between two times that memory is asked.
const COLS_AT_ONCE: usize = 4;

/// Panels that are worth filling the pipeline for, at most.
pub const N_PANEL: usize = 16;

/// Sums of a panel: `[column][row]`.
pub type PanelSums = [[f32; PANEL_ROWS]; FEW_COLS_MAX];
/// No sums yet.
pub const ZERO: PanelSums = [[0.0; PANEL_ROWS]; FEW_COLS_MAX];

/// The planes of a group.
#[repr(C, align(64))]
struct Planes([[u8; PLANE_BYTES]; 2]);

/// Where groups are expanded, and sums stored.
#[repr(C, align(64))]
struct Scratch {
    heads: [Head; 3],
    planes: [Planes; 2],
    ints: [Ints; 2],
}

/// Lines that memory is asked for from some place on, by and by.
#[derive(Clone, Copy)]
struct Asked {
    from: *const u8,
    n_left: usize,
}

impl Asked {
    const NOTHING: Asked = Asked { from: std::ptr::null(), n_left: 0 };
}

/// Panels as they are stored, one after another, and up to two tiles of columns.
pub struct Block {
    /// The first panel.
    pub panels: *const u8,
    /// Blocks of a row.
    pub n_block: usize,
    /// The first chunks of the columns, which lie side by side.
    pub acts: *const ActChunk,
    /// Columns, and chunks from one 256 weights to the next.
    pub n: usize,
    /// What is asked for.
    pub ahead: Ahead,
}

impl Block {
    /// Columns of each tile.
    pub fn tile_cols(&self) -> [usize; TILES] {
        [self.n.min(TILE_COLS), self.n.saturating_sub(TILE_COLS)]
    }

    /// The columns of each tile at a group. Where there is no second tile, the first stands there
    /// again.
    unsafe fn acts(&self, group_idx: usize) -> [*const ActChunk; TILES] {
        let second = if self.n > TILE_COLS { TILE_COLS } else { 0 };
        // SAFETY: the caller vouches for the chunks.
        unsafe {
            let acts = self.acts.add(group_idx * self.n);
            [acts, acts.add(second)]
        }
    }

    /// Adds the scaled sums of a group to those of its panel, asking memory in between.
    #[inline(always)]
    unsafe fn scale(
        &self,
        form: Form,
        head: &Head,
        group_idx: usize,
        ints: &Ints,
        sums: &mut [[f32; PANEL_ROWS]],
        asked: Asked,
    ) {
        let n_ask = asked.n_left.div_ceil(self.n.div_ceil(COLS_AT_ONCE));
        for (i, sums) in sums.chunks_mut(COLS_AT_ONCE).enumerate() {
            let from = asked.from.wrapping_add(i * n_ask * VECTOR_BYTES);
            self.ahead.ask::<TILE_COLS>(from, n_ask);
            let (tile, col) = (i * COLS_AT_ONCE / TILE_COLS, i * COLS_AT_ONCE % TILE_COLS);
            let ints = [&ints[TILES * tile][col..], &ints[TILES * tile + 1][col..]];
            // SAFETY: passed on; columns lie in one tile.
            unsafe {
                let acts = self.acts.add(group_idx * self.n + i * COLS_AT_ONCE);
                scale_columns(form, head, acts, ints, sums);
            }
        }
    }
}

/// Multiplies as many panels as there are `sums`, which are zero before.
///
/// # Safety
/// AVX-512 is enabled, the tiles are shaped for `block`; panels of a format that [`suits`] and
/// chunks are there.
#[inline(always)]
pub unsafe fn multiply<F: Format>(block: &Block, sums: &mut [PanelSums]) {
    let (layout, form) = (F::LAYOUT, const { Form::of::<F>() });
    debug_assert!(suits(layout));
    let n_group = block.n_block.div_ceil(GROUP_BLOCKS);
    let n_step = sums.len() * n_group;
    let n_block = |group_idx: usize| (block.n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
    // SAFETY: zeros are values of all that is in it.
    let mut scratch = unsafe { Box::<Scratch>::new_zeroed().assume_init() };
    let scratch = &mut *scratch;
    for step in 0..n_step + 2 {
        // SAFETY: passed on; steps go through the groups of one panel after another, and groups
        // before the last of a panel are whole.
        unsafe {
            let mut asked = Asked::NOTHING;
            if step < n_step {
                let (panel_idx, group_idx) = (step / n_group, step % n_group);
                let panel = block.panels.add(panel_idx * layout.panel_bytes(block.n_block));
                let group = panel.add(group_idx * layout.group_bytes(GROUP_BLOCKS));
                let n_block = n_block(group_idx);
                put_head(layout, form, group, n_block, &mut scratch.heads[step % 3]);
                // Memory is asked for as much as the group is, half of it here.
                let n_line = layout.group_bytes(n_block) / VECTOR_BYTES;
                let n_ask = n_line.div_ceil(2 * n_block);
                let planes = scratch.planes[step % 2].0.as_mut_ptr();
                put_planes::<F>(group, n_block, planes.cast(), block.ahead, n_ask);
                asked = Asked {
                    n_left: n_line.saturating_sub(n_block * n_ask),
                    from: group.wrapping_add(n_block * n_ask * VECTOR_BYTES),
                };
            }
            if step >= 2 {
                let step = step - 2;
                let (head, ints) = (&scratch.heads[step % 3], &scratch.ints[step % 2]);
                let sums = &mut sums[step / n_group][..block.n];
                block.scale(form, head, step % n_group, ints, sums, asked);
            }
            if (1..=n_step).contains(&step) {
                let step = step - 1;
                let acts = block.acts(step % n_group).map(|acts| acts.cast::<i8>());
                let [high, low] = &scratch.planes[step % 2].0;
                // A single plane stands there twice: tiles are not what takes the time.
                let codes = [high.as_ptr(), if form.n_plane == 2 { low } else { high }.as_ptr()];
                let n_tile = n_block(step % n_group).div_ceil(2);
                let ints = &mut scratch.ints[step % 2];
                match block.n > TILE_COLS {
                    true => add_tiles(acts, codes, n_tile, ints),
                    false => add_tile_pair(acts[0], codes, n_tile, ints),
                }
            }
        }
    }
}
