//! Attention and what fills its cache: `kernels/attn_f16.cu`.

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::super::upload::Upload;
use super::assert_rows;
use crate::inference::backend::PAGE_LEN;

const APPEND_THREADS: u32 = 256;
const ATTN_THREADS: u32 = 128;
/// Widest head that the kernels hold.
pub const HEAD_DIM_MAX: usize = 256;
/// Positions that one thread block walks, before a token's are split among more.
const SPLIT_LEN: usize = 256;
/// Thread blocks that share a token's positions, at most.
const SPLITS_MAX: usize = 16;

/// Thread blocks that share the positions `start..end`: it follows from them alone, so that a
/// token's bits do not depend on its batch.
pub fn n_split(start: usize, end: usize) -> usize {
    (end - start).div_ceil(SPLIT_LEN).clamp(1, SPLITS_MAX)
}

/// What attention must know of a token; the kernels' `Token`.
#[derive(Clone, Copy, Debug)]
pub struct TokenSpan {
    /// Where the pages of its sequence begin among those of the batch.
    pub pages_start: usize,
    /// First position that it sees.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Where its own key and value go: page times [`PAGE_LEN`] plus the place in it.
    pub slot: usize,
}

/// Heads and cache.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads.
    pub n_kv_head: usize,
    /// Width of a head: even, at most 256.
    pub head_dim: usize,
    /// Pages of the cache.
    pub n_page: usize,
    /// Factor on the scores.
    pub scale: f32,
}

impl AttentionShape {
    /// Bytes of the keys, or of the values, of a layer.
    pub fn cache_bytes(&self) -> usize {
        self.n_page * self.n_kv_head * PAGE_LEN * self.head_dim * 2
    }

    /// Bytes of the partial results of `n_tokens` whose positions are split among `n_split`.
    fn partial_bytes(&self, n_tokens: usize, n_split: usize) -> usize {
        n_tokens * self.n_head * n_split * (2 + self.head_dim) * 4
    }

    /// Bytes that the partial results of `n_tokens` can take.
    pub fn partial_bytes_max(&self, n_tokens: usize) -> usize {
        self.partial_bytes(n_tokens, SPLITS_MAX)
    }
}

/// What the kernels are told of a batch, for all layers that see the same positions.
pub struct AttentionBatch {
    tokens: Vec<TokenSpan>,
    /// One past the largest page.
    page_end: usize,
    on_device: Buffer,
    pages: Buffer,
}

impl AttentionBatch {
    /// Bytes of a token.
    pub const TOKEN_BYTES: usize = 20;

    /// Puts the tokens to what is sent for the batch; `pages`, with its words, was put before.
    ///
    /// # Panics
    /// If a token sees nothing or a position without a page.
    pub fn new(
        tokens: Vec<TokenSpan>,
        (pages, on_device): (&[u32], &Buffer),
        upload: &mut Upload,
    ) -> AttentionBatch {
        let words = |token: &TokenSpan| {
            assert!(token.start < token.end, "a token sees itself at least");
            assert!(token.pages_start + token.end.div_ceil(PAGE_LEN) <= pages.len(), "pages");
            let split = n_split(token.start, token.end);
            let words = [token.pages_start, token.start, token.end, token.slot, split];
            words.map(|n| u32::try_from(n).expect("positions have 32 bits"))
        };
        let page_end = pages.iter().map(|&page| page as usize + 1).max().unwrap_or(0);
        let words: Vec<u32> = tokens.iter().flat_map(words).collect();
        AttentionBatch { tokens, page_end, on_device: upload.put(words), pages: on_device.clone() }
    }

    /// Thread blocks that share the positions of the token that has the most.
    pub fn n_split(&self) -> usize {
        self.tokens.iter().map(|t| n_split(t.start, t.end)).max().unwrap_or(1)
    }
}

/// The kernels for attention.
pub struct AttentionKernels {
    append: Kernel,
    attn: Kernel,
    join: Kernel,
    partials: Buffer,
}

impl AttentionKernels {
    /// Compiles them, with room to attend for `n_tokens` in one launch; more go in several.
    ///
    /// # Errors
    /// If the driver refuses them or the memory.
    pub fn load(
        device: &Device,
        shape: AttentionShape,
        n_tokens: usize,
    ) -> Result<AttentionKernels, CudaError> {
        let ptx =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ptx/sm_53/attn_f16.ptx"));
        let module = device.load("attn_f16", ptx)?;
        let n_bytes = shape.partial_bytes_max(n_tokens.max(1));
        Ok(AttentionKernels {
            append: module.kernel("kv_append_f16", APPEND_THREADS)?,
            attn: module.kernel("attn_f16", ATTN_THREADS)?,
            join: module.kernel("attn_join_f32", ATTN_THREADS)?,
            partials: device.allocate("attention", n_bytes)?,
        })
    }

    /// Writes the batch's keys and values, `[n_tokens, stride]` f32, into a layer's cache.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn append(
        &self,
        batch: &AttentionBatch,
        shape: AttentionShape,
        (k, v, stride): (&Buffer, &Buffer, usize),
        (keys, values): (&Buffer, &Buffer),
    ) -> Result<(), CudaError> {
        let (width, n_tokens) = (shape.n_kv_head * shape.head_dim, batch.tokens.len());
        assert_rows(k, n_tokens, width, stride);
        assert_rows(v, n_tokens, width, stride);
        assert_cache(batch, shape, keys, values);
        let is_in = |t: &TokenSpan| t.slot < shape.n_page * PAGE_LEN;
        assert!(batch.tokens.iter().all(is_in), "slots of the cache");
        let args = Args::new().buffer(k).buffer(v).buffer(keys).buffer(values);
        let args = args.buffer(&batch.on_device);
        let args = args.size(shape.n_kv_head).size(shape.head_dim).size(stride);
        let grid = [width.div_ceil(APPEND_THREADS as usize), n_tokens, 1];
        // SAFETY: a thread for each value, and buffers and slots as asserted.
        unsafe { self.append.launch(grid, args) }
    }

    /// `out = softmax(q . K^T) . V`, `q` and `out` `[n_tokens, stride]` f32.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn attend(
        &self,
        batch: &AttentionBatch,
        shape: AttentionShape,
        (q, out, stride): (&Buffer, &Buffer, usize),
        (keys, values): (&Buffer, &Buffer),
    ) -> Result<(), CudaError> {
        let AttentionShape { n_head, n_kv_head, head_dim, scale, .. } = shape;
        let n_tokens = batch.tokens.len();
        assert_rows(q, n_tokens, n_head * head_dim, stride);
        assert_rows(out, n_tokens, n_head * head_dim, stride);
        assert_cache(batch, shape, keys, values);
        assert!(n_head.is_multiple_of(n_kv_head), "whole groups of heads");
        let n_split = batch.n_split();
        let n_each = self.partials.n_bytes() / shape.partial_bytes(1, n_split);
        assert!(n_each > 0, "room for the shares of a token");
        for first in (0..n_tokens).step_by(n_each) {
            let n = n_each.min(n_tokens - first);
            let rows = |buffer: &Buffer| {
                let at = 4 * first * stride;
                buffer.part(at, buffer.n_bytes() - at)
            };
            let of_token = AttentionBatch::TOKEN_BYTES;
            let tokens = batch.on_device.part(first * of_token, n * of_token);
            let args = Args::new()
                .buffer(&rows(q))
                .buffer(keys)
                .buffer(values)
                .buffer(&tokens)
                .buffer(&batch.pages)
                .buffer(&self.partials)
                .size(n_head)
                .size(n_kv_head)
                .size(head_dim)
                .size(stride)
                .float(scale);
            // SAFETY: a block for each head, token and split, and buffers and pages as asserted.
            unsafe { self.attn.launch([n_head, n, n_split], args) }?;
            let args = Args::new().buffer(&self.partials).buffer(&tokens).buffer(&rows(out));
            let args = args.size(head_dim).size(stride).size(n_split);
            // SAFETY: a block for each head and token, and buffers as asserted.
            unsafe { self.join.launch([n_head, n, 1], args) }?;
        }
        Ok(())
    }
}

fn assert_cache(batch: &AttentionBatch, shape: AttentionShape, keys: &Buffer, values: &Buffer) {
    assert!(batch.page_end <= shape.n_page, "pages of the cache");
    assert!(shape.head_dim.is_multiple_of(2) && shape.head_dim <= HEAD_DIM_MAX, "head_dim");
    let n_bytes = shape.cache_bytes();
    assert!(keys.n_bytes() >= n_bytes && values.n_bytes() >= n_bytes, "a whole cache");
}
