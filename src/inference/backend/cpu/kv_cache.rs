//! The KV cache: keys and values of every layer in pages of 32 positions, f16.
//!
//! ```text
//! keys     [layer][page][kv head][head_dim][32]     transposed: a score is a sum of whole vectors
//! values   [layer][page][kv head][32][head_dim]
//! ```
//!
//! Pages belong to whoever hands out page numbers (the engine); here is only their memory, which
//! the system commits as it is first written.

use memmap2::MmapMut;

use crate::inference::backend::{BackendError, PAGE_LEN, PageIdx, Plan, Span};

/// Memory for `n_page` pages.
pub struct KvCache {
    keys: MmapMut,
    values: MmapMut,
    n_page: usize,
    n_kv_head: usize,
    head_dim: usize,
}

impl KvCache {
    /// Bytes that a page takes over all layers.
    pub fn page_bytes(plan: &Plan) -> usize {
        2 * plan.n_layer * plan.n_kv_head * plan.head_dim * PAGE_LEN * size_of::<u16>()
    }

    /// An empty cache of `n_page` pages.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(plan: &Plan, n_page: usize) -> Result<KvCache, BackendError> {
        let bytes = Self::page_bytes(plan).saturating_mul(n_page);
        let map = || {
            MmapMut::map_anon((bytes / 2).max(1)).map_err(|_| BackendError::Memory {
                what: "the KV cache",
                bytes,
            })
        };
        Ok(KvCache {
            keys: map()?,
            values: map()?,
            n_page,
            n_kv_head: plan.n_kv_head,
            head_dim: plan.head_dim,
        })
    }

    /// Pages that it holds.
    pub fn n_page(&self) -> usize {
        self.n_page
    }

    /// The keys of a page and head: `[head_dim][32]`.
    pub fn keys(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> &[u16] {
        &halves(&self.keys)[self.at(layer_idx, page, kv_head)..][..self.head_dim * PAGE_LEN]
    }

    /// The values of a page and head: `[32][head_dim]`.
    pub fn values(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> &[u16] {
        &halves(&self.values)[self.at(layer_idx, page, kv_head)..][..self.head_dim * PAGE_LEN]
    }

    /// Stores keys and values `[n_kv_head][head_dim]` of token `i` of a span.
    pub fn append(&mut self, layer_idx: usize, span: &Span<'_>, i: usize, k: &[f32], v: &[f32]) {
        let pos = span.pos + i;
        let (page, slot) = (span.pages[pos / PAGE_LEN], pos % PAGE_LEN);
        let head_dim = self.head_dim;
        for kv_head in 0..self.n_kv_head {
            let at = self.at(layer_idx, page, kv_head);
            let (k, v) = (&k[kv_head * head_dim..][..head_dim], &v[kv_head * head_dim..]);
            let keys = &mut halves_mut(&mut self.keys)[at..][..head_dim * PAGE_LEN];
            for (d, &x) in k.iter().enumerate() {
                keys[d * PAGE_LEN + slot] = half::f16::from_f32(x).to_bits();
            }
            let values = &mut halves_mut(&mut self.values)[at + slot * head_dim..][..head_dim];
            for (out, &x) in values.iter_mut().zip(v) {
                *out = half::f16::from_f32(x).to_bits();
            }
        }
    }

    fn at(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> usize {
        let page = layer_idx * self.n_page + page as usize;
        (page * self.n_kv_head + kv_head) * self.head_dim * PAGE_LEN
    }
}

fn halves(map: &MmapMut) -> &[u16] {
    let n = map.len() / 2;
    // SAFETY: a mapping is page-aligned, holds `n` whole u16, and any bits are a u16.
    unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), n) }
}

fn halves_mut(map: &mut MmapMut) -> &mut [u16] {
    let n = map.len() / 2;
    // SAFETY: a mapping is page-aligned, holds `n` whole u16, any bits are a u16, and the borrow
    // is exclusive.
    unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), n) }
}
