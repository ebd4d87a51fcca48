//! The KV cache: keys and values of every layer in pages of 32 positions, f16 or f32.
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

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: half the memory, the usual choice.
    #[default]
    F16,
    /// Single precision, for exact comparison.
    F32,
}

impl KvType {
    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<KvType> {
        match name {
            "f16" => Some(KvType::F16),
            "f32" => Some(KvType::F32),
            _ => None,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
        }
    }
}

/// Stored values of one page and head.
#[derive(Clone, Copy)]
pub enum KvSlice<'a> {
    /// f16 bits.
    F16(&'a [u16]),
    /// f32.
    F32(&'a [f32]),
}

/// Memory for `n_page` pages.
pub struct KvCache {
    keys: MmapMut,
    values: MmapMut,
    ty: KvType,
    n_page: usize,
    n_kv_head: usize,
    head_dim: usize,
}

impl KvCache {
    /// Bytes that a page takes over all layers.
    pub fn page_bytes(plan: &Plan, ty: KvType) -> usize {
        2 * plan.n_layer * plan.n_kv_head * plan.head_dim * PAGE_LEN * ty.bytes()
    }

    /// An empty cache of `n_page` pages.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(plan: &Plan, n_page: usize, ty: KvType) -> Result<KvCache, BackendError> {
        let bytes = Self::page_bytes(plan, ty).saturating_mul(n_page);
        let map = || {
            MmapMut::map_anon((bytes / 2).max(1))
                .map_err(|_| BackendError::Memory { what: "the KV cache", bytes })
        };
        Ok(KvCache {
            keys: map()?,
            values: map()?,
            ty,
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
    pub fn keys(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> KvSlice<'_> {
        self.slice(&self.keys, self.at(layer_idx, page, kv_head))
    }

    /// The values of a page and head: `[32][head_dim]`.
    pub fn values(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> KvSlice<'_> {
        self.slice(&self.values, self.at(layer_idx, page, kv_head))
    }

    /// Stores keys and values `[n_kv_head][head_dim]` of token `i` of a span.
    pub fn append(&mut self, layer_idx: usize, span: &Span<'_>, i: usize, k: &[f32], v: &[f32]) {
        let pos = span.pos + i;
        let (page, slot) = (span.pages[pos / PAGE_LEN], pos % PAGE_LEN);
        let head_dim = self.head_dim;
        for kv_head in 0..self.n_kv_head {
            let at = self.at(layer_idx, page, kv_head);
            let (k, v) = (&k[kv_head * head_dim..][..head_dim], &v[kv_head * head_dim..]);
            let v = &v[..head_dim];
            match self.ty {
                KvType::F16 => {
                    let half = |x: f32| half::f16::from_f32(x).to_bits();
                    put(as_slice_mut(&mut self.keys), at + slot, PAGE_LEN, k, half);
                    put(as_slice_mut(&mut self.values), at + slot * head_dim, 1, v, half);
                }
                KvType::F32 => {
                    put(as_slice_mut(&mut self.keys), at + slot, PAGE_LEN, k, |x| x);
                    put(as_slice_mut(&mut self.values), at + slot * head_dim, 1, v, |x| x);
                }
            }
        }
    }

    /// Copies a page of every layer.
    pub fn copy_page(&mut self, from: PageIdx, to: PageIdx) {
        let n = self.n_kv_head * self.head_dim * PAGE_LEN * self.ty.bytes();
        let n_layer = self.keys.len() / (n * self.n_page.max(1)).max(1);
        for layer_idx in 0..n_layer {
            let at = |page: PageIdx| self.at(layer_idx, page, 0) * self.ty.bytes();
            let (from, to) = (at(from), at(to));
            self.keys.copy_within(from..from + n, to);
            self.values.copy_within(from..from + n, to);
        }
    }

    /// Where a page and head begin, in values.
    fn at(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> usize {
        let page = layer_idx * self.n_page + page as usize;
        (page * self.n_kv_head + kv_head) * self.head_dim * PAGE_LEN
    }

    fn slice<'a>(&self, map: &'a MmapMut, at: usize) -> KvSlice<'a> {
        let n = self.head_dim * PAGE_LEN;
        match self.ty {
            KvType::F16 => KvSlice::F16(&as_slice(map)[at..][..n]),
            KvType::F32 => KvSlice::F32(&as_slice(map)[at..][..n]),
        }
    }
}

/// Writes `src` to every `step`-th place from `at`.
fn put<T>(out: &mut [T], at: usize, step: usize, src: &[f32], convert: impl Fn(f32) -> T) {
    for (out, &x) in out[at..].iter_mut().step_by(step).zip(src) {
        *out = convert(x);
    }
}

/// A number that any bits are.
trait Plain: Copy {}
impl Plain for u16 {}
impl Plain for f32 {}

fn as_slice<T: Plain>(map: &MmapMut) -> &[T] {
    let n = map.len() / size_of::<T>();
    // SAFETY: a mapping is page-aligned, holds `n` whole values, and any bits are a value.
    unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), n) }
}

fn as_slice_mut<T: Plain>(map: &mut MmapMut) -> &mut [T] {
    let n = map.len() / size_of::<T>();
    // SAFETY: a mapping is page-aligned, holds `n` whole values, any bits are a value, and the
    // borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), n) }
}
