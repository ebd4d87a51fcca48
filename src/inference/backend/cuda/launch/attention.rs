//! Attention and what fills its cache: `kernels/attn_f16.cu`.

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::assert_rows;
use crate::inference::backend::PAGE_LEN;

const APPEND_THREADS: u32 = 256;
const ATTN_THREADS: u32 = 128;
const HEAD_DIM_MAX: usize = 256;
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

    /// Bytes of the partial results of `n_tokens`.
    pub fn partial_bytes(&self, n_tokens: usize) -> usize {
        n_tokens * self.n_head * SPLITS_MAX * (2 + self.head_dim) * 4
    }
}

/// The kernels for attention, and what a batch tells them.
pub struct AttentionKernels {
    append: Kernel,
    attn: Kernel,
    join: Kernel,
    tokens: Buffer,
    pages: Buffer,
    partials: Buffer,
    batch: Vec<TokenSpan>,
    /// One past the largest page of the batch.
    page_end: usize,
    n_split_max: usize,
}

impl AttentionKernels {
    /// Compiles them, with room for batches of `n_tokens` whose sequences have `n_page` pages
    /// together.
    ///
    /// # Errors
    /// If the driver refuses them or the memory.
    pub fn load(
        device: &Device,
        shape: AttentionShape,
        n_tokens: usize,
        n_page: usize,
    ) -> Result<AttentionKernels, CudaError> {
        let ptx =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ptx/sm_53/attn_f16.ptx"));
        let module = device.load("attn_f16", ptx)?;
        Ok(AttentionKernels {
            append: module.kernel("kv_append_f16", APPEND_THREADS)?,
            attn: module.kernel("attn_f16", ATTN_THREADS)?,
            join: module.kernel("attn_join_f32", ATTN_THREADS)?,
            tokens: device.allocate("the batch's tokens", n_tokens * 20)?,
            pages: device.allocate("the batch's pages", n_page * 4)?,
            partials: device.allocate("attention", shape.partial_bytes(n_tokens))?,
            batch: Vec::new(),
            page_end: 0,
            n_split_max: 1,
        })
    }

    /// Says what the batch is, once for all layers that see the same positions.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a token sees nothing or a position without a page, or there are more than was said.
    pub fn begin(&mut self, tokens: &[TokenSpan], pages: &[u32]) -> Result<(), CudaError> {
        let mut words = Vec::with_capacity(tokens.len() * 5);
        for token in tokens {
            assert!(token.start < token.end, "a token sees itself at least");
            assert!(token.pages_start + token.end.div_ceil(PAGE_LEN) <= pages.len(), "pages");
            let split = n_split(token.start, token.end);
            for n in [token.pages_start, token.start, token.end, token.slot, split] {
                words.push(u32::try_from(n).expect("positions have 32 bits"));
            }
        }
        let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        self.tokens.write(&bytes(&words))?;
        self.pages.write(&bytes(pages))?;
        self.n_split_max = tokens.iter().map(|t| n_split(t.start, t.end)).max().unwrap_or(1);
        self.page_end = pages.iter().map(|&page| page as usize + 1).max().unwrap_or(0);
        self.batch = tokens.to_vec();
        Ok(())
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
        shape: AttentionShape,
        (k, v, stride): (&Buffer, &Buffer, usize),
        (keys, values): (&Buffer, &Buffer),
    ) -> Result<(), CudaError> {
        let width = shape.n_kv_head * shape.head_dim;
        assert_rows(k, self.batch.len(), width, stride);
        assert_rows(v, self.batch.len(), width, stride);
        self.assert_cache(shape, keys, values);
        let is_in = |t: &TokenSpan| t.slot < shape.n_page * PAGE_LEN;
        assert!(self.batch.iter().all(is_in), "slots of the cache");
        let args = Args::new().buffer(k).buffer(v).buffer(keys).buffer(values).buffer(&self.tokens);
        let args = args.size(shape.n_kv_head).size(shape.head_dim).size(stride);
        let grid = [width.div_ceil(APPEND_THREADS as usize), self.batch.len(), 1];
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
        shape: AttentionShape,
        (q, out, stride): (&Buffer, &Buffer, usize),
        (keys, values): (&Buffer, &Buffer),
    ) -> Result<(), CudaError> {
        let AttentionShape { n_head, n_kv_head, head_dim, scale, .. } = shape;
        let n_tokens = self.batch.len();
        assert_rows(q, n_tokens, n_head * head_dim, stride);
        assert_rows(out, n_tokens, n_head * head_dim, stride);
        self.assert_cache(shape, keys, values);
        assert!(n_head.is_multiple_of(n_kv_head), "whole groups of heads");
        assert!(self.partials.n_bytes() >= shape.partial_bytes(n_tokens), "room for shares");
        let args = Args::new()
            .buffer(q)
            .buffer(keys)
            .buffer(values)
            .buffer(&self.tokens)
            .buffer(&self.pages)
            .buffer(&self.partials)
            .size(n_head)
            .size(n_kv_head)
            .size(head_dim)
            .size(stride)
            .float(scale);
        // SAFETY: a block for each head, token and split, and buffers and pages as asserted.
        unsafe { self.attn.launch([n_head, n_tokens, self.n_split_max], args) }?;
        let args = Args::new().buffer(&self.partials).buffer(&self.tokens).buffer(out);
        let args = args.size(head_dim).size(stride).size(self.n_split_max);
        // SAFETY: a block for each head and token, and buffers as asserted.
        unsafe { self.join.launch([n_head, n_tokens, 1], args) }
    }

    fn assert_cache(&self, shape: AttentionShape, keys: &Buffer, values: &Buffer) {
        assert!(self.page_end <= shape.n_page, "pages of the cache");
        assert!(shape.head_dim.is_multiple_of(2) && shape.head_dim <= HEAD_DIM_MAX, "head_dim");
        let n_bytes = shape.cache_bytes();
        assert!(keys.n_bytes() >= n_bytes && values.n_bytes() >= n_bytes, "a whole cache");
    }
}
