//! Attention and what fills its cache: `kernels/attn.h` and `append.h` with a file for each format
//! of the cache.

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::super::upload::Upload;
use super::assert_rows;
use crate::inference::backend::{PAGE_LEN, RopeStyle};

const THREADS: u32 = 128;
/// Widest head that the kernels hold.
const HEAD_DIM_MAX: usize = 256;
/// Positions of a span, which has sums of its own.
const SPAN_LEN: usize = 8 * PAGE_LEN;
/// Tokens of a batch, at most, whose spans are shared out among thread blocks: more have enough
/// blocks by themselves.
const SPLIT_TOKENS: usize = 8;
/// Spans for which there is room with as many tokens; fewer tokens may have more.
const SPANS_MAX: usize = 32;
/// Values under one scale of q8_0 and q4_0.
const BLOCK_LEN: usize = 32;
/// What a kernel is compiled for: the widest head, and rows of a tile.
const KERNELS: [(usize, usize); 3] = [(64, 16), (128, 16), (256, 8)];

/// How keys and values are stored; the numbers are those of the CPU's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// Halves; `head_dim` is a multiple of 4.
    #[default]
    F16,
    /// 8-bit codes with a scale for each 32 values; `head_dim` is a multiple of 16.
    Q8_0,
    /// 4-bit codes of rotated heads, with a scale for each 32; `head_dim` is a multiple of 16.
    Q4_0,
}

impl KvFormat {
    /// The name in the kernels' names, and the PTX.
    const fn ptx(self) -> (&'static str, &'static str, &'static str) {
        macro_rules! module {
            ($name:literal in $file:literal) => {
                ($name, $file, ptx!($file))
            };
        }
        match self {
            KvFormat::F16 => module!("f16" in "attn_f16"),
            KvFormat::Q8_0 => module!("q8_0" in "attn_q8_0"),
            KvFormat::Q4_0 => module!("q4_0" in "attn_q4_0"),
        }
    }

    /// The name that options and reports use.
    pub const fn name(self) -> &'static str {
        self.ptx().0
    }

    /// Whether there are kernels for heads of this width.
    pub fn takes(self, head_dim: usize) -> bool {
        let unit = if self == KvFormat::F16 { 4 } else { 16 };
        head_dim > 0 && head_dim <= HEAD_DIM_MAX && head_dim.is_multiple_of(unit)
    }

    /// Bytes of the keys, or the values, of a page and head.
    pub const fn plane_bytes(self, head_dim: usize) -> usize {
        let scales = 2 * PAGE_LEN * head_dim.div_ceil(BLOCK_LEN);
        match self {
            KvFormat::F16 => 2 * PAGE_LEN * head_dim,
            KvFormat::Q8_0 => PAGE_LEN * head_dim + scales,
            KvFormat::Q4_0 => PAGE_LEN * head_dim / 2 + scales,
        }
    }

    /// Values that are rotated together, 1 where none are, and the factor on them.
    fn rotation(self, head_dim: usize) -> (usize, f32) {
        match self {
            KvFormat::Q4_0 => {
                let n = (1 << head_dim.trailing_zeros()).min(HEAD_DIM_MAX);
                (n, 1.0 / (n as f32).sqrt())
            }
            KvFormat::F16 | KvFormat::Q8_0 => (1, 1.0),
        }
    }
}

/// What attention must know of a token.
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
    /// Width of a head, one that [`KvFormat::takes`].
    pub head_dim: usize,
    /// Pages of the cache.
    pub n_page: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// How keys and values are stored.
    pub format: KvFormat,
}

impl AttentionShape {
    /// Bytes of the keys, or of the values, of a layer.
    pub fn cache_bytes(&self) -> usize {
        self.n_page * self.n_kv_head * self.format.plane_bytes(self.head_dim)
    }

    /// Bytes of the partial results of `n_tokens` whose positions have `n_span` spans.
    fn partial_bytes(&self, n_tokens: usize, n_span: usize) -> usize {
        n_tokens * self.n_head * n_span * (2 + self.head_dim) * 4
    }

    /// Bytes that the partial results of `n_tokens` can take.
    pub fn partial_bytes_max(&self, n_tokens: usize) -> usize {
        self.partial_bytes(n_tokens.clamp(1, SPLIT_TOKENS), SPANS_MAX)
    }

    /// The widest head of the kernel for this one, and rows of its tiles.
    fn kernel(&self) -> (usize, usize) {
        KERNELS.into_iter().find(|(dim, _)| self.head_dim <= *dim).expect("a width that is taken")
    }
}

/// What the kernels are told of a batch, for all layers that see the same positions.
pub struct AttentionBatch {
    tokens: Vec<TokenSpan>,
    /// One past the largest page.
    page_end: usize,
    /// Spans that the tokens of a sequence see, at most.
    n_span: usize,
    on_device: Buffer,
    pages: Buffer,
}

impl AttentionBatch {
    /// Bytes of a token.
    pub const TOKEN_BYTES: usize = 32;

    /// Puts the tokens to what is sent for the batch; `pages`, with its words, was put before.
    /// Tokens of a sequence stand together, and no other sequence has the same `pages_start`.
    ///
    /// # Panics
    /// If a token sees nothing or a position without a page.
    pub fn new(
        tokens: Vec<TokenSpan>,
        (pages, on_device): (&[u32], &Buffer),
        upload: &mut Upload,
    ) -> AttentionBatch {
        let mut words = Vec::with_capacity(tokens.len() * AttentionBatch::TOKEN_BYTES / 4);
        let (mut first, mut n_span_max) = (0, 1);
        for run in tokens.chunk_by(|a, b| a.pages_start == b.pages_start) {
            let starts = run.iter().map(|t| t.start / SPAN_LEN);
            let ends = run.iter().map(|t| t.end.div_ceil(SPAN_LEN));
            let (first_span, span_end) = (starts.min().unwrap_or(0), ends.max().unwrap_or(1));
            for token in run {
                assert!(token.start < token.end, "a token sees itself at least");
                assert!(token.pages_start + token.end.div_ceil(PAGE_LEN) <= pages.len(), "pages");
                let own = [token.pages_start, token.start, token.end, token.slot];
                let shared = [first, first + run.len(), first_span, span_end];
                words.extend(own.into_iter().chain(shared));
            }
            n_span_max = n_span_max.max(span_end - first_span);
            first += run.len();
        }
        let word = |n| u32::try_from(n).expect("positions have 32 bits");
        let page_end = pages.iter().map(|&page| page as usize + 1).max().unwrap_or(0);
        let pages = on_device.clone();
        let on_device = upload.put(words.into_iter().map(word));
        AttentionBatch { tokens, page_end, n_span: n_span_max, on_device, pages }
    }

    /// Thread blocks that share the positions of the token that has the most, where they do.
    pub fn n_split(&self) -> usize {
        self.n_span
    }

    /// How many tokens from `first` on go in one launch of `n_max` multiply-adds. A tile that
    /// begins in one and ends in the next is computed by the first.
    fn tokens_of_launch(&self, first: usize, width: usize, n_max: usize) -> usize {
        let mut work = 0;
        let tokens = self.tokens[first..].iter().take_while(|token| {
            work += 2 * width * (token.end - token.start);
            work <= n_max
        });
        tokens.count().max(1)
    }
}

/// Queries and keys that are turned before anything reads them.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// Which values of a head turn together.
    pub style: RopeStyle,
    /// `[n_tokens, n_pair]` (cos, sin).
    pub angles: &'a Buffer,
    /// Pairs of a head that turn; the values past them stay.
    pub n_pair: usize,
    /// The queries, `[n_tokens, stride]` f32, which are turned where they are, and their stride.
    pub queries: (&'a Buffer, usize),
}

/// The kernels for attention.
pub struct AttentionKernels {
    device: Device,
    append: Kernel,
    attn: Kernel,
    join: Kernel,
    partials: Buffer,
    /// What they were loaded for.
    heads: (KvFormat, usize),
}

impl AttentionKernels {
    /// Compiles them for heads as in `shape`, with room for its partial results.
    ///
    /// # Errors
    /// If the driver refuses them or the memory.
    ///
    /// # Panics
    /// If there are no kernels for the width of heads.
    pub fn load(
        device: &Device,
        shape: AttentionShape,
        n_tokens: usize,
    ) -> Result<AttentionKernels, CudaError> {
        assert!(shape.format.takes(shape.head_dim), "a width that is taken");
        let (name, file, ptx) = shape.format.ptx();
        let module = device.load(file, ptx)?;
        let join = device.load("attn_join_f32", ptx!("attn_join_f32"))?;
        let widest = shape.kernel().0;
        Ok(AttentionKernels {
            device: device.clone(),
            append: module.kernel(&format!("rope_append_{name}"), THREADS)?,
            attn: module.kernel(&format!("attn_{name}_d{widest}"), THREADS)?,
            join: join.kernel("attn_join_f32", THREADS)?,
            partials: device.allocate("attention", shape.partial_bytes_max(n_tokens))?,
            heads: (shape.format, shape.head_dim),
        })
    }

    /// Writes the batch's keys and values, `[n_tokens, stride]` f32, into a layer's cache; keys
    /// turned as they go, and `k` left as it is.
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
        turn: Option<Turn<'_>>,
    ) -> Result<(), CudaError> {
        let AttentionShape { n_head, n_kv_head, head_dim, .. } = shape;
        let n_tokens = batch.tokens.len();
        assert_rows(k, n_tokens, n_kv_head * head_dim, stride);
        assert_rows(v, n_tokens, n_kv_head * head_dim, stride);
        self.assert_cache(batch, shape, keys, values);
        let is_in = |t: &TokenSpan| t.slot < shape.n_page * PAGE_LEN;
        assert!(batch.tokens.iter().all(is_in), "slots of the cache");
        let (mut q_stride, mut n_pair, mut is_halves) = (0, 0, false);
        if let Some(turn) = turn {
            (q_stride, n_pair, is_halves) =
                (turn.queries.1, turn.n_pair, turn.style == RopeStyle::Halves);
            assert_rows(turn.queries.0, n_tokens, n_head * head_dim, q_stride);
            assert!(2 * n_pair <= head_dim, "pairs of a head");
            assert!(turn.angles.n_bytes() >= 8 * n_tokens * n_pair, "angles for each token");
        }
        let (n_rotated, rotation) = shape.format.rotation(head_dim);
        let args = Args::new()
            .optional(turn.map(|turn| turn.queries.0))
            .buffer(k)
            .buffer(v)
            .buffer(keys)
            .buffer(values)
            .buffer(&batch.on_device)
            .optional(turn.map(|turn| turn.angles))
            .size(n_kv_head)
            .size(head_dim)
            .size(stride)
            .size(n_head / n_kv_head)
            .size(q_stride)
            .size(n_pair)
            .size(usize::from(is_halves))
            .size(n_rotated)
            .float(rotation);
        let n_part = if turn.is_some() { 3 } else { 2 };
        // SAFETY: a block for each key head, its values and its queries, and buffers and slots as
        // asserted.
        unsafe { self.append.launch([n_kv_head, n_tokens, n_part], args) }
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
        self.assert_cache(batch, shape, keys, values);
        // Where rows are few, a block has a span; otherwise it walks them all. Both add alike.
        let n_bytes = shape.partial_bytes(n_tokens, batch.n_span);
        let is_split =
            batch.n_span > 1 && n_tokens <= SPLIT_TOKENS && n_bytes <= self.partials.n_bytes();
        let n_span = if is_split { batch.n_span } else { 1 };
        let (n_rotated, rotation) = shape.format.rotation(head_dim);
        let args = Args::new()
            .buffer(q)
            .buffer(keys)
            .buffer(values)
            .buffer(&batch.on_device)
            .buffer(&batch.pages)
            .buffer(&self.partials)
            .buffer(out)
            .size(n_head)
            .size(n_kv_head)
            .size(head_dim)
            .size(stride)
            .float(scale)
            .size(n_rotated)
            .float(rotation);
        let n_chunk = (n_head / n_kv_head).div_ceil(shape.kernel().1);
        let mut first = 0;
        while first < n_tokens {
            let n_max = self.device.launch_products_max();
            let n = batch.tokens_of_launch(first, n_head * head_dim, n_max);
            let args = args.clone().size(first);
            // SAFETY: a block for each tile, key head and span, and buffers and pages as asserted.
            unsafe { self.attn.launch([n * n_chunk, n_kv_head, n_span], args) }?;
            first += n;
        }
        if !is_split {
            return Ok(());
        }
        let args = Args::new().buffer(&self.partials).buffer(&batch.on_device).buffer(out);
        let args = args.size(head_dim).size(stride).size(n_span).size(n_rotated).float(rotation);
        // SAFETY: a block for each head and token, and buffers as asserted.
        unsafe { self.join.launch([n_head, n_tokens, 1], args) }
    }

    fn assert_cache(
        &self,
        batch: &AttentionBatch,
        shape: AttentionShape,
        keys: &Buffer,
        values: &Buffer,
    ) {
        assert_eq!((shape.format, shape.head_dim), self.heads, "heads as they were loaded for");
        assert!(shape.n_head.is_multiple_of(shape.n_kv_head), "whole groups of heads");
        assert!(batch.page_end <= shape.n_page, "pages of the cache");
        let n_bytes = shape.cache_bytes();
        assert!(keys.n_bytes() >= n_bytes && values.n_bytes() >= n_bytes, "a whole cache");
    }
}
