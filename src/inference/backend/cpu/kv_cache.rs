//! The KV cache: keys and values of every layer in pages of 32 positions: f16, q8_0, q4_0 or f32.
//!
//! ```text
//! map      [layer][kv head][page] of: plane of keys, plane of values
//! keys     [head_dim][32]      transposed: a score is a sum of whole vectors
//! values   [32][head_dim]
//! q8_0     codes in these orders, then f16 scales: keys [n_block][32], values [32][n_block]
//! q4_0     as q8_0, with bytes of two codes for head_dim / 2; see `kv_rotated`
//! ```
//!
//! A block is 32 values of one position and head (the last block of a head may be shorter), so
//! what is stored of a position depends on that position alone: writing it alone or in a chunk
//! gives the same bits.
//!
//! Pages belong to whoever hands out page numbers (the engine); here is only their memory, which
//! the system commits as it is first written.

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;

use super::acts::Rows;
use super::kv_rotated::{self, ROTATION_MAX, rotate};
use super::pool::Pool;
use super::shared::SharedMut;
use crate::inference::backend::{BackendError, PAGE_LEN, PageIdx, Plan, Span};

/// Values under one scale of q8_0 and q4_0.
pub const BLOCK_LEN: usize = 32;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: half the memory of f32, the usual choice.
    #[default]
    F16,
    /// 8-bit codes with a scale for each 32 values: half the memory of f16.
    Q8_0,
    /// 4-bit codes of rotated heads, with a scale for each 32 values: for long contexts.
    Q4_0,
    /// Single precision, for exact comparison.
    F32,
}

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 4] = [KvType::F16, KvType::Q8_0, KvType::Q4_0, KvType::F32];

    /// The name that options and reports use.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
            KvType::F32 => "f32",
        }
    }

    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<KvType> {
        KvType::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// Bytes of a plane: the keys, or the values, of a page and head.
    fn plane_bytes(self, head_dim: usize) -> usize {
        let n = head_dim * PAGE_LEN;
        match self {
            KvType::F16 => 2 * n,
            KvType::Q8_0 => n + 2 * PAGE_LEN * head_dim.div_ceil(BLOCK_LEN),
            KvType::Q4_0 => n / 2 + 2 * PAGE_LEN * head_dim.div_ceil(BLOCK_LEN),
            KvType::F32 => 4 * n,
        }
    }

    /// Whether heads are stored rotated, and queries have to be.
    pub fn is_rotated(self) -> bool {
        self == KvType::Q4_0
    }
}

/// Whether a plane holds keys or values, which says where a position stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `[head_dim][32]`
    Keys,
    /// `[32][head_dim]`
    Values,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::Keys, Side::Values];

    /// First place and step of position `slot`, which has `n` numbers.
    fn places(self, slot: usize, n: usize) -> (usize, usize) {
        match self {
            Side::Keys => (slot, PAGE_LEN),
            Side::Values => (slot * n, 1),
        }
    }
}

/// What is stored of a page and head.
#[derive(Clone, Copy)]
pub enum Plane<'a> {
    /// f16 bits.
    F16(&'a [u16]),
    /// Codes and the f16 bits of their scales.
    Q8_0(&'a [i8], &'a [u16]),
    /// Bytes of two codes and the f16 bits of their scales.
    Q4_0(&'a [u8], &'a [u16]),
    /// f32.
    F32(&'a [f32]),
}

/// Memory for `n_page` pages.
pub struct KvCache {
    map: MmapMut,
    shape: Shape,
}

/// The sizes that say where a plane lies.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub ty: KvType,
    pub n_page: usize,
    pub n_layer: usize,
    pub n_kv_head: usize,
    pub head_dim: usize,
}

impl Shape {
    /// Bytes of a page and head: keys and values.
    pub fn head_bytes(&self) -> usize {
        2 * self.ty.plane_bytes(self.head_dim)
    }

    /// Where keys and values of a page and head begin.
    pub fn at(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> usize {
        let head = layer_idx * self.n_kv_head + kv_head;
        (head * self.n_page + page as usize) * self.head_bytes()
    }
}

/// The tokens of a span that lie in one page.
struct Piece<'a> {
    span: &'a Span<'a>,
    /// Row of the span's first token in the batch.
    row: usize,
    start: usize,
    end: usize,
}

impl KvCache {
    /// Bytes that a page takes over all layers.
    pub fn page_bytes_of(plan: &Plan, ty: KvType) -> usize {
        2 * plan.n_layer * plan.n_kv_head * ty.plane_bytes(plan.head_dim)
    }

    /// An empty cache of `n_page` pages.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(plan: &Plan, n_page: usize, ty: KvType) -> Result<KvCache, BackendError> {
        let bytes = Self::page_bytes_of(plan, ty).saturating_mul(n_page);
        let map = MmapMut::map_anon(bytes.max(1))
            .map_err(|_| BackendError::Memory { what: "the KV cache", bytes })?;
        let Plan { n_layer, n_kv_head, head_dim, .. } = *plan;
        Ok(KvCache { map, shape: Shape { ty, n_page, n_layer, n_kv_head, head_dim } })
    }

    /// Pages that it holds.
    pub fn n_page(&self) -> usize {
        self.shape.n_page
    }

    /// Whether its heads are rotated.
    pub fn is_rotated(&self) -> bool {
        self.shape.ty.is_rotated()
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Keys and values of a page and head, as they are stored.
    #[inline(always)]
    pub fn head(&self, layer_idx: usize, page: PageIdx, kv_head: usize) -> &[u8] {
        let at = self.shape.at(layer_idx, page, kv_head);
        &self.map[at..][..self.shape.head_bytes()]
    }

    /// The keys or the values of a page and head.
    #[inline(always)]
    pub fn plane(&self, layer_idx: usize, page: PageIdx, kv_head: usize, side: Side) -> Plane<'_> {
        let Shape { ty, head_dim, .. } = self.shape;
        let bytes = half_of(self.head(layer_idx, page, kv_head), side);
        match ty {
            KvType::F16 => Plane::F16(cast(bytes)),
            KvType::F32 => Plane::F32(cast(bytes)),
            KvType::Q8_0 => {
                let (codes, scales) = bytes.split_at(head_dim * PAGE_LEN);
                Plane::Q8_0(cast(codes), cast(scales))
            }
            KvType::Q4_0 => {
                let (codes, scales) = bytes.split_at(head_dim * PAGE_LEN / 2);
                Plane::Q4_0(codes, cast(scales))
            }
        }
    }

    /// Stores keys and values `[n_kv_head * head_dim]` of every token of a batch.
    ///
    /// # Panics
    /// If two spans write the same page ([`Batch::check`](crate::inference::backend::Batch::check)
    /// refuses such a batch), or a span has too few pages.
    pub fn append(
        &mut self,
        pool: &mut Pool,
        layer_idx: usize,
        spans: &[Span<'_>],
        k: Rows<'_>,
        v: Rows<'_>,
    ) {
        let pieces = pieces(spans);
        let shape = self.shape;
        let shared = SharedMut::new(&mut self.map[..]);
        pool.run(pieces.len(), &|i, _| {
            let piece = &pieces[i];
            let page = piece.span.pages[(piece.span.pos + piece.start) / PAGE_LEN];
            for kv_head in 0..shape.n_kv_head {
                let at = shape.at(layer_idx, page, kv_head);
                // SAFETY: the map is borrowed, and pieces have pages of their own.
                let bytes = unsafe { shared.slice(at, shape.head_bytes()) };
                for (side, x) in Side::BOTH.into_iter().zip([k, v]) {
                    let plane = half_of_mut(bytes, side);
                    for token in piece.start..piece.end {
                        let slot = (piece.span.pos + token) % PAGE_LEN;
                        let at = (piece.row + token) * x.stride + kv_head * shape.head_dim;
                        put(shape.ty, plane, side, slot, &x.data[at..][..shape.head_dim]);
                    }
                }
            }
        });
    }
}

/// Cuts spans where pages begin.
///
/// # Panics
/// If two pieces have the same page.
fn pieces<'a>(spans: &'a [Span<'a>]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut row = 0;
    for span in spans {
        let mut start = 0;
        while start < span.n_tokens {
            let in_page = PAGE_LEN - (span.pos + start) % PAGE_LEN;
            let end = span.n_tokens.min(start + in_page);
            pieces.push(Piece { span, row, start, end });
            start = end;
        }
        row += span.n_tokens;
    }
    let page = |p: &Piece<'_>| p.span.pages[(p.span.pos + p.start) / PAGE_LEN];
    let mut pages: Vec<PageIdx> = pieces.iter().map(page).collect();
    pages.sort_unstable();
    assert!(pages.windows(2).all(|w| w[0] != w[1]), "two spans write one page");
    pieces
}

/// The keys or the values of a page and head.
pub(super) fn half_of(bytes: &[u8], side: Side) -> &[u8] {
    let (keys, values) = bytes.split_at(bytes.len() / 2);
    if side == Side::Keys { keys } else { values }
}

/// The same, to write.
pub(super) fn half_of_mut(bytes: &mut [u8], side: Side) -> &mut [u8] {
    let (keys, values) = bytes.split_at_mut(bytes.len() / 2);
    if side == Side::Keys { keys } else { values }
}

/// Stores `x` `[head_dim]` as position `slot` of a plane.
pub(super) fn put(ty: KvType, plane: &mut [u8], side: Side, slot: usize, x: &[f32]) {
    let (at, step) = side.places(slot, x.len());
    match ty {
        KvType::F32 => {
            let out = cast_mut::<f32>(plane)[at..].iter_mut().step_by(step);
            out.zip(x).for_each(|(out, &x)| *out = x);
        }
        KvType::F16 => {
            let mut out = cast_mut::<u16>(plane)[at..].iter_mut().step_by(step);
            for x in x.chunks(BLOCK_LEN) {
                let mut halves = [f16::ZERO; BLOCK_LEN];
                halves[..x.len()].convert_from_f32_slice(x);
                out.by_ref().zip(&halves[..x.len()]).for_each(|(out, h)| *out = h.to_bits());
            }
        }
        KvType::Q8_0 => {
            let (codes, scales) = plane.split_at_mut(x.len() * PAGE_LEN);
            let mut codes = cast_mut::<i8>(codes)[at..].iter_mut().step_by(step);
            let (at, step) = side.places(slot, x.len().div_ceil(BLOCK_LEN));
            let scales = cast_mut::<u16>(scales)[at..].iter_mut().step_by(step);
            for (scale, x) in scales.zip(x.chunks(BLOCK_LEN)) {
                let mut rounded = [0i8; BLOCK_LEN];
                *scale = quantize(x, &mut rounded).to_bits();
                codes.by_ref().zip(&rounded[..x.len()]).for_each(|(code, r)| *code = *r);
            }
        }
        KvType::Q4_0 => {
            let (codes, scales) = plane.split_at_mut(x.len() / 2 * PAGE_LEN);
            let (at, step) = side.places(slot, x.len() / 2);
            let mut codes = codes[at..].iter_mut().step_by(step);
            let (at, step) = side.places(slot, x.len().div_ceil(BLOCK_LEN));
            let mut scales = cast_mut::<u16>(scales)[at..].iter_mut().step_by(step);
            for part in x.chunks(ROTATION_MAX) {
                let mut turned = [0f32; ROTATION_MAX];
                let turned = &mut turned[..part.len()];
                turned.copy_from_slice(part);
                rotate(turned, x.len());
                for (x, scale) in turned.chunks(BLOCK_LEN).zip(scales.by_ref()) {
                    let mut bytes = [0; BLOCK_LEN / 2];
                    *scale = kv_rotated::pack(x, &mut bytes).to_bits();
                    codes.by_ref().zip(&bytes[..x.len() / 2]).for_each(|(code, b)| *code = *b);
                }
            }
        }
    }
}

/// Reads position `slot` of a plane into `out` `[head_dim]`.
pub(super) fn get(ty: KvType, plane: &[u8], side: Side, slot: usize, out: &mut [f32]) {
    let (at, step) = side.places(slot, out.len());
    match ty {
        KvType::F32 => {
            let x = cast::<f32>(plane)[at..].iter().step_by(step);
            out.iter_mut().zip(x).for_each(|(out, &x)| *out = x);
        }
        KvType::F16 => {
            let x = cast::<u16>(plane)[at..].iter().step_by(step);
            out.iter_mut().zip(x).for_each(|(out, &x)| *out = f16::from_bits(x).to_f32());
        }
        KvType::Q8_0 => {
            let (codes, scales) = plane.split_at(out.len() * PAGE_LEN);
            let mut codes = cast::<i8>(codes)[at..].iter().step_by(step);
            let (at, step) = side.places(slot, out.len().div_ceil(BLOCK_LEN));
            let scales = cast::<u16>(scales)[at..].iter().step_by(step);
            for (out, &scale) in out.chunks_mut(BLOCK_LEN).zip(scales) {
                let scale = f16::from_bits(scale).to_f32();
                let codes = codes.by_ref();
                out.iter_mut().zip(codes).for_each(|(x, &c)| *x = scale * f32::from(c));
            }
        }
        KvType::Q4_0 => {
            let (codes, scales) = plane.split_at(out.len() / 2 * PAGE_LEN);
            let (at, step) = side.places(slot, out.len() / 2);
            let mut codes = codes[at..].iter().step_by(step);
            let (at, step) = side.places(slot, out.len().div_ceil(BLOCK_LEN));
            let scales = cast::<u16>(scales)[at..].iter().step_by(step);
            for (out, &scale) in out.chunks_mut(BLOCK_LEN).zip(scales) {
                let scale = f16::from_bits(scale).to_f32();
                let (low, high) = out.split_at_mut(out.len() / 2);
                for ((low, high), &byte) in low.iter_mut().zip(high).zip(codes.by_ref()) {
                    (*low, *high) = kv_rotated::unpack(byte, scale);
                }
            }
            rotate(out, out.len());
        }
    }
}

/// Rounds at most 32 values to `scale * code`: the scale is the largest magnitude over 127, as an
/// f16, and each code the nearest to its value under that very scale.
fn quantize(x: &[f32], codes: &mut [i8; BLOCK_LEN]) -> f16 {
    let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = f16::from_f32((max / 127.0).min(f16::MAX.to_f32()));
    let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

/// A number that any bits are.
trait Plain: Copy {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for f32 {}

/// The numbers that whole, aligned bytes are.
#[inline(always)]
fn cast<T: Plain>(bytes: &[u8]) -> &[T] {
    assert!(bytes.as_ptr().addr().is_multiple_of(align_of::<T>()));
    let n = bytes.len() / size_of::<T>();
    // SAFETY: the bytes are aligned (asserted), hold `n` whole values, and any bits are a value.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), n) }
}

/// The same, to write.
#[inline(always)]
fn cast_mut<T: Plain>(bytes: &mut [u8]) -> &mut [T] {
    assert!(bytes.as_ptr().addr().is_multiple_of(align_of::<T>()));
    let n = bytes.len() / size_of::<T>();
    // SAFETY: as above, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), n) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 37 + seed * 101) % 211) as f32 - 105.0) / 64.0).collect()
    }

    #[test]
    fn what_is_put_is_got_back_within_the_types_step_and_touches_nothing_else() {
        for head_dim in [8, 64, 80, 96, 128, 256] {
            for ty in KvType::ALL {
                for side in Side::BOTH {
                    // Aligned as a map is.
                    let mut words = vec![0f32; ty.plane_bytes(head_dim) / 4];
                    let n_bytes = 4 * words.len();
                    // SAFETY: the words are that many bytes, and any bits are a byte.
                    let plane = unsafe {
                        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), n_bytes)
                    };
                    for slot in (0..PAGE_LEN).rev() {
                        put(ty, plane, side, slot, &wave(head_dim, slot));
                    }
                    for slot in 0..PAGE_LEN {
                        let (x, mut got) = (wave(head_dim, slot), vec![0f32; head_dim]);
                        get(ty, plane, side, slot, &mut got);
                        for (block, got) in x.chunks(BLOCK_LEN).zip(got.chunks(BLOCK_LEN)) {
                            let max = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                            let step = match ty {
                                KvType::F32 => 0.0,
                                KvType::F16 => max / 2048.0,
                                // Half a code, and the scale's own rounding.
                                KvType::Q8_0 => max / 127.0 * 0.5 + max / 2048.0,
                                // Half a step of the largest that a rotation can make.
                                KvType::Q4_0 => (head_dim as f32).sqrt() * max / 8.0,
                            };
                            for (x, got) in block.iter().zip(got) {
                                assert!((x - got).abs() <= step, "{} {side:?}", ty.name());
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_of_zeros_or_of_huge_values_stays_finite() {
        let mut codes = [1i8; BLOCK_LEN];
        assert_eq!(quantize(&[0.0; 32], &mut codes), f16::ZERO);
        assert_eq!(codes, [0; BLOCK_LEN]);
        let scale = quantize(&[1e30, -1e30], &mut codes);
        assert!(scale.is_finite() && codes[..2] == [127, -127]);
        // So small that the scale is no f16: nothing is lost that f16 would have kept exactly.
        assert_eq!(quantize(&[1e-9; 4], &mut codes), f16::ZERO);
    }
}
