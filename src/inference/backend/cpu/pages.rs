//! What is done to pages outside of a forward pass: copied, read, written, and shifted.
//!
//! A prefix cache copies a page that a sequence only partly shares; a saved slot and the cache on
//! disk read and write pages as bytes; a context that is full shifts: it drops positions and slides
//! the rest left.
//!
//! ```text
//! bytes of a page    [layer][kv head] of: keys, values, as in `kv_cache`
//! ```
//!
//! Keys are cached with their rotation, and rotations add up: a key that moves by `d` positions
//! turns by the angles of `d`. Values move as they are. What a shift cannot mend is that keys and
//! values of the later layers saw the dropped tokens; that is so wherever contexts are shifted.

use super::kv_cache::{KvCache, Shape, Side, get, half_of, half_of_mut, put};
use super::pool::Pool;
use super::rowwise::{self, RowOp};
use super::shared::SharedMut;
use super::{CpuBackend, Isa};
use crate::inference::backend::{BackendError, Op, PAGE_LEN, PageIdx, RopeStyle, Shift};

impl CpuBackend {
    /// Bytes of a page over all layers.
    pub fn page_bytes(&self) -> usize {
        KvCache::page_bytes_of(&self.plan, self.config.kv_type)
    }

    /// Makes `dst` hold what `src` holds, in every layer.
    ///
    /// # Errors
    /// If one of them is not in the cache.
    pub fn copy_page(&mut self, src: PageIdx, dst: PageIdx) -> Result<(), BackendError> {
        self.check_page(src)?;
        self.check_page(dst)?;
        let shape = self.kv.shape();
        for (layer_idx, kv_head) in heads(shape) {
            let from = shape.at(layer_idx, src, kv_head);
            let to = shape.at(layer_idx, dst, kv_head);
            self.kv.bytes_mut().copy_within(from..from + shape.head_bytes(), to);
        }
        Ok(())
    }

    /// Writes the bytes of a page to `out`, which has room for [`CpuBackend::page_bytes`].
    ///
    /// # Errors
    /// If the page is not in the cache, or `out` has another length.
    pub fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        self.check_page(page)?;
        self.check_bytes(out.len())?;
        let shape = self.kv.shape();
        for ((layer_idx, kv_head), out) in
            heads(shape).zip(out.chunks_exact_mut(shape.head_bytes()))
        {
            let at = shape.at(layer_idx, page, kv_head);
            out.copy_from_slice(&self.kv.bytes()[at..][..out.len()]);
        }
        Ok(())
    }

    /// Makes a page hold what [`CpuBackend::read_page`] gave, of this cache or of another with the
    /// same model and KV type. Any bytes are numbers: whether they are the right ones is for the
    /// caller to know.
    ///
    /// # Errors
    /// If the page is not in the cache, or `bytes` is not as long as a page.
    pub fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        self.check_page(page)?;
        self.check_bytes(bytes.len())?;
        let shape = self.kv.shape();
        for ((layer_idx, kv_head), src) in heads(shape).zip(bytes.chunks_exact(shape.head_bytes()))
        {
            let at = shape.at(layer_idx, page, kv_head);
            self.kv.bytes_mut()[at..][..src.len()].copy_from_slice(src);
        }
        Ok(())
    }

    /// Moves positions of a sequence, turning their keys by the distance.
    ///
    /// A key is rounded to the KV type once more each time: f16 loses at most 2^-11 of a value,
    /// q8_0 half a code of its block, f32 next to nothing. Values lose nothing.
    ///
    /// # Errors
    /// If there are too few pages or one is not in the cache, or the model learned its positions,
    /// which are then part of every key and value.
    pub fn shift(&mut self, shift: &Shift<'_>) -> Result<(), BackendError> {
        shift.check(self.kv.n_page())?;
        if self.plan.ops.iter().any(|op| matches!(op, Op::AddPosition { .. })) {
            return Err(BackendError::LearnedPositions);
        }
        let distance = shift.to as f64 - shift.from as f64;
        let turn = |rope: crate::inference::backend::RopeId| {
            let spec = &self.plan.ropes[rope.0];
            let angle = |f: &f64| {
                let (sin, cos) = (distance * f).sin_cos();
                (cos as f32, sin as f32)
            };
            Turn { style: spec.style, angles: spec.inv_freq.iter().map(angle).collect() }
        };
        let turns: Vec<_> = self.plan.key_ropes().into_iter().map(|r| r.map(turn)).collect();
        move_positions(&mut self.pool, self.config.isa, &mut self.kv, shift, &turns);
        Ok(())
    }

    fn check_page(&self, page: PageIdx) -> Result<(), BackendError> {
        let n_page = self.kv.n_page();
        if (page as usize) < n_page { Ok(()) } else { Err(BackendError::Page { page, n_page }) }
    }

    fn check_bytes(&self, got: usize) -> Result<(), BackendError> {
        let expected = self.page_bytes();
        if got == expected { Ok(()) } else { Err(BackendError::PageBytes { expected, got }) }
    }
}

/// Every layer and kv head.
fn heads(shape: Shape) -> impl Iterator<Item = (usize, usize)> {
    (0..shape.n_layer).flat_map(move |layer| (0..shape.n_kv_head).map(move |head| (layer, head)))
}

/// By how much the keys of a layer turn.
struct Turn {
    style: RopeStyle,
    /// Cosine and sine, `[n_rot / 2]`.
    angles: Vec<(f32, f32)>,
}

fn move_positions(
    pool: &mut Pool,
    isa: Isa,
    kv: &mut KvCache,
    shift: &Shift<'_>,
    turns: &[Option<Turn>],
) {
    let shape = kv.shape();
    let map = SharedMut::new(kv.bytes_mut());
    pool.run(shape.n_layer * shape.n_kv_head, &|task_idx, _| {
        let (layer_idx, kv_head) = (task_idx / shape.n_kv_head, task_idx % shape.n_kv_head);
        let place = |pages: &[PageIdx], pos: usize| {
            (shape.at(layer_idx, pages[pos / PAGE_LEN], kv_head), pos % PAGE_LEN)
        };
        let mut x = vec![0f32; shape.head_dim];
        for i in 0..shift.n {
            // Towards the end from its end, so that nothing is overwritten before it has moved.
            let i = if shift.to > shift.from { shift.n - 1 - i } else { i };
            let (src, src_slot) = place(shift.src, shift.from + i);
            let (dst, dst_slot) = place(shift.dst, shift.to + i);
            for side in Side::BOTH {
                // SAFETY: the map is borrowed, and no other task touches this layer and head.
                let bytes = unsafe { map.slice(src, shape.head_bytes()) };
                get(shape.ty, half_of(bytes, side), side, src_slot, &mut x);
                if let (Side::Keys, Some(turn)) = (side, &turns[layer_idx]) {
                    let Turn { style, ref angles } = *turn;
                    let op = RowOp::Rope { style, angles, head_dim: shape.head_dim };
                    // SAFETY: the instruction set is of this machine.
                    unsafe { rowwise::apply(isa, &mut x, op) };
                }
                // SAFETY: as above, and the source is no longer borrowed.
                let bytes = unsafe { map.slice(dst, shape.head_bytes()) };
                put(shape.ty, half_of_mut(bytes, side), side, dst_slot, &x);
            }
        }
    });
}
