//! Many columns on AMX: one instruction multiplies 16 columns, 16 rows and 64 weights.
//!
//! ```text
//! expanded   groups of 8 blocks, all equally long
//! group      Head: factors as f32, minima in pairs
//!            planes: codes of its blocks, 512 bytes each, as `expand` has them, but signed
//! tiles      tmm0 .. tmm3  sums [column][row] of two column tiles times two panels
//!            tmm4, tmm5    activations [column][64 codes], where they lie
//!            tmm6, tmm7    weights [16 vectors][row][4 codes], where they lie
//! ```
//!
//! The tiles are left for what they cannot do, multiply by scales, as seldom as the types allow.
//! Where scales are integers under a float they are multiplied into the codes: 256 weights then
//! need nothing between them. Products of up to 14 bits are two planes, `128 * high + low`, which
//! costs half of the tiles' rate and is still several times what vectors do. Where scales are
//! floats the tiles are left for each 32 weights, which then are half as deep.
//!
//! Integers are exact and floats are added in the order of `panel_kernel`, so the sums have the same
//! bits as those of every other instruction set.

use super::acts::{ActChunk, ActScale, BLOCK_LEN};
use super::expand::{Fold, WIDE_BYTES};
use super::lanes::{Lanes, unroll};
use super::lanes_x86::Avx512Lanes;
use super::panel::{Format, GROUP_BLOCKS, Layout, PANEL_ROWS, VECTOR_BYTES};
use super::panel_kernel::{load_d, n_rest, rests, scale, unpack_chunk};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Columns of a tile.
pub const TILE_COLS: usize = 16;
/// Columns and panels of [`multiply`], in tiles.
pub const TILES: usize = 2;
/// Bytes of a plane of a group.
const PLANE_BYTES: usize = GROUP_BLOCKS * WIDE_BYTES;
/// Bytes of what a tile of sums stores.
const TILE_BYTES: usize = TILE_COLS * VECTOR_BYTES;
/// Blocks whose sums are stored before they are scaled, where scales are floats.
const N_STORED: usize = 4;
/// Bits of the low plane.
const LOW_BITS: u32 = 7;

/// Factors of a group of a panel, a lane for each row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Head {
    /// Of each block where scales are floats; else the first is that of the group.
    d: [[f32; PANEL_ROWS]; GROUP_BLOCKS],
    /// The same for minima.
    dmin: [[f32; PANEL_ROWS]; GROUP_BLOCKS],
    /// Integer minima, two i16 in a lane.
    rests: [[i32; PANEL_ROWS]; GROUP_BLOCKS],
}

/// What the tiles multiply of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    scales: ActScale,
    has_min: bool,
    has_halves: bool,
    n_plane: usize,
    /// Pairs of integer minima.
    n_rest: usize,
    /// What was taken from each product, so that it fits a byte.
    bias: i32,
}

impl Form {
    /// That of a type.
    pub const fn of<F: Format>() -> Form {
        let layout = F::LAYOUT;
        let has_min = layout.dot.zero_log2.is_none();
        let scales = ActScale::of(layout);
        let (n_plane, bias) = match (scales, Fold::of(F::TYPE)) {
            (ActScale::Block, _) => (1, 0),
            (_, Some(fold)) if has_min => (1, -(fold.product_zero as i32)),
            (_, Some(fold)) => (1, 128 - fold.product_zero as i32),
            (_, None) => (2, 0),
        };
        let n_rest = match scales {
            ActScale::Chunk if has_min => n_rest::<Avx512Lanes>(layout),
            _ => 0,
        };
        Form { scales, has_min, has_halves: layout.has_halves(), n_plane, n_rest, bias }
    }

    const fn group_bytes(self) -> usize {
        size_of::<Head>() + self.n_plane * PLANE_BYTES
    }

    /// Bytes of an expanded panel of `n_block` blocks.
    pub const fn panel_bytes(self, n_block: usize) -> usize {
        n_block.div_ceil(GROUP_BLOCKS) * self.group_bytes()
    }
}

/// Whether the processor has tiles of bytes and the system lets this process use them.
pub fn is_there() -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    *IS_THERE.get_or_init(|| {
        // Bits 24 and 25: tiles, and products of bytes (Intel, Architecture Instruction Set
        // Extensions, CPUID leaf 7).
        let features = __cpuid_count(7, 0).edx;
        features >> 24 & 3 == 3 && is_permitted()
    })
}

/// Asks Linux for the tiles' registers, which it saves for nobody who did not ask
/// (Documentation/arch/x86/xstate.rst). An older system does not know the question.
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    if cfg!(not(target_os = "linux")) {
        return false;
    }
    let answer: i64;
    // SAFETY: the call reads two numbers and touches no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

/// The tiles of this thread, shaped; they are given back when it goes.
pub struct Tiles(());

impl Tiles {
    /// Shapes the tiles for `n` columns in each of the two column tiles, at most 16; none is one
    /// that nobody looks at.
    ///
    /// # Safety
    /// [`is_there`]; nobody else shapes the tiles of this thread meanwhile.
    pub unsafe fn shape(form: Form, n: [usize; TILES]) -> Tiles {
        /// As `ldtilecfg` reads it: palette, first row, bytes of a row and rows of each tile.
        #[repr(C, align(64))]
        struct Shape {
            palette: u8,
            start: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            n_row: [u8; 16],
        }
        let depth = match form.scales {
            ActScale::Block => BLOCK_LEN,
            ActScale::Chunk => 2 * BLOCK_LEN,
        };
        let mut shape =
            Shape { palette: 1, start: 0, reserved: [0; 14], row_bytes: [0; 16], n_row: [0; 16] };
        let [one, two] = n.map(|n| n.clamp(1, TILE_COLS) as u8);
        let whole = VECTOR_BYTES as u16;
        let (codes, vectors) = (depth as u16, (depth / 4) as u8);
        let tiles = [
            (one, whole),
            (one, whole),
            (two, whole),
            (two, whole),
            (one, codes),
            (two, codes),
            (vectors, whole),
            (vectors, whole),
        ];
        for (tile, (n_row, row_bytes)) in tiles.into_iter().enumerate() {
            (shape.n_row[tile], shape.row_bytes[tile]) = (n_row, row_bytes);
        }
        // SAFETY: the instruction is there, and reads the 64 bytes of `shape`.
        unsafe {
            asm!("ldtilecfg [{shape}]", shape = in(reg) &raw const shape, options(nostack, readonly));
        }
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or there would be no `Tiles`; nobody reads them any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `n_step` times four tiles, 16,384 products each: what the processor could do.
///
/// # Safety
/// [`is_there`].
pub unsafe fn peak(n_step: usize) {
    let form = Form {
        scales: ActScale::Chunk,
        has_min: false,
        has_halves: false,
        n_plane: 1,
        n_rest: 0,
        bias: 0,
    };
    // SAFETY: there are tiles, which are shaped and read nothing.
    unsafe {
        let _tiles = Tiles::shape(form, [TILE_COLS; TILES]);
        asm!(
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) n_step => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// Writes a panel of `n_block` blocks to `out`, [`Form::panel_bytes`] of them.
///
/// # Safety
/// AVX-512 is enabled; panel and `out` have their bytes, and `out` is aligned to a cache line.
#[inline(always)]
pub unsafe fn expand<F: Format>(panel: *const u8, n_block: usize, out: *mut u8) {
    let (layout, form) = (F::LAYOUT, const { Form::of::<F>() });
    let mut group = panel;
    for group_idx in 0..n_block.div_ceil(GROUP_BLOCKS) {
        let n_block = (n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
        // SAFETY: every address lies in the panel or in `out`, as the caller vouches.
        unsafe {
            let out = out.add(group_idx * form.group_bytes());
            put_head(layout, form, group, n_block, &mut *out.cast::<Head>());
            let out = out.add(size_of::<Head>());
            let codes = group.add(layout.scales_bytes(n_block));
            for b in 0..n_block {
                let (from, to) = (codes.add(b * layout.code_bytes()), out.add(b * WIDE_BYTES));
                match form.scales {
                    ActScale::Block => put_codes(layout, from, to),
                    ActScale::Chunk => put_products(layout, form, group, b, from, to),
                }
            }
            // Tiles take blocks in pairs.
            if form.scales == ActScale::Chunk && n_block % 2 == 1 {
                for plane in 0..form.n_plane {
                    out.add(plane * PLANE_BYTES + n_block * WIDE_BYTES).write_bytes(0, WIDE_BYTES);
                }
            }
            group = codes.add(n_block * layout.code_bytes());
        }
    }
}

#[inline(always)]
unsafe fn put_head(layout: Layout, form: Form, group: *const u8, n_block: usize, head: &mut Head) {
    type L = Avx512Lanes;
    let n_factor = match form.scales {
        ActScale::Block => n_block,
        ActScale::Chunk => 1,
    };
    // SAFETY: the caller vouches for the group's scales.
    unsafe {
        for b in 0..n_factor {
            let at = group.add(b * layout.super_bytes());
            L::store(head.d[b].as_mut_ptr(), load_d::<L>(layout, at));
            if form.has_min {
                L::store(head.dmin[b].as_mut_ptr(), L::load_f16(at.add(2 * PANEL_ROWS)));
            }
        }
        if form.n_rest > 0 {
            let pairs = rests::<L>(layout, group);
            for (rest, pair) in head.rests.iter_mut().zip(pairs) {
                _mm512_store_si512(rest.as_mut_ptr().cast(), pair);
            }
        }
    }
}

/// The codes of a block, less their zero.
#[inline(always)]
unsafe fn put_codes(layout: Layout, codes: *const u8, out: *mut u8) {
    let zero = layout.dot.zero_log2.map_or(0, |log2| 1u8 << log2);
    // SAFETY: the caller vouches for the block and its place.
    unsafe {
        let zero = _mm512_set1_epi8(zero.cast_signed());
        for j in 0..8 {
            let codes = _mm512_sub_epi8(unpack_chunk::<Avx512Lanes>(layout, codes, j), zero);
            _mm512_store_si512(out.add(j * VECTOR_BYTES).cast(), codes);
        }
    }
}

/// The codes of block `b`, less their zero, times their scales, in planes.
#[inline(always)]
unsafe fn put_products(
    layout: Layout,
    form: Form,
    group: *const u8,
    b: usize,
    codes: *const u8,
    out: *mut u8,
) {
    type L = Avx512Lanes;
    let zero = layout.dot.zero_log2.map_or(0, |log2| 1i16 << log2);
    // SAFETY: the caller vouches for the group, the block and its place.
    unsafe {
        let zero = _mm512_set1_epi16(zero);
        let bias = _mm512_set1_epi16(form.bias as i16);
        let low = _mm512_set1_epi16((1 << LOW_BITS) - 1);
        for half in 0..2 {
            let i = if form.has_halves { half } else { 0 };
            let scales = by_code(scale::<L>(layout, group, b, i));
            for j in 4 * half..4 * half + 4 {
                let codes = unpack_chunk::<L>(layout, codes, j);
                let codes = [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
                for (i, codes) in codes.into_iter().enumerate() {
                    let codes = _mm512_sub_epi16(_mm512_cvtepu8_epi16(codes), zero);
                    let product = _mm512_mullo_epi16(codes, scales[i]);
                    let out = out.add(j * VECTOR_BYTES + 32 * i).cast::<__m256i>();
                    if form.n_plane == 1 {
                        let product = _mm512_sub_epi16(product, bias);
                        _mm256_store_si256(out, _mm512_cvtepi16_epi8(product));
                        continue;
                    }
                    let high = _mm512_srai_epi16::<LOW_BITS>(product);
                    _mm256_store_si256(out, _mm512_cvtepi16_epi8(high));
                    let low = _mm512_and_si512(product, low);
                    _mm256_store_si256(out.byte_add(PLANE_BYTES), _mm512_cvtepi16_epi8(low));
                }
            }
        }
    }
}

/// A scale of each row, for each of the row's four codes in a vector.
#[inline(always)]
unsafe fn by_code(scales: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller enabled AVX-512.
    unsafe {
        let scales = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(scales));
        let rows = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
        // The same number in each of four places of 16 bits.
        let four = _mm512_mullo_epi64(rows, _mm512_set1_epi64(0x0001_0001_0001_0001));
        let next = _mm512_add_epi16(four, _mm512_set1_epi16(8));
        [_mm512_permutexvar_epi16(four, scales), _mm512_permutexvar_epi16(next, scales)]
    }
}

/// Sums of two column tiles with two panels: `[tile of columns * 2 + panel][column][row]`.
pub type Sums = [[[f32; PANEL_ROWS]; TILE_COLS]; TILES * TILES];
/// The same as the tiles store them.
type Ints = [[[i32; PANEL_ROWS]; TILE_COLS]; TILES * TILES];

/// Where integers are stored, and sums of floats.
#[repr(C, align(64))]
pub struct Scratch {
    ints: [Ints; N_STORED],
    /// The result of [`multiply`].
    pub sums: Sums,
}

impl Scratch {
    /// Zeros.
    pub const ZERO: Scratch = Scratch {
        ints: [[[[0; PANEL_ROWS]; TILE_COLS]; TILES * TILES]; N_STORED],
        sums: [[[0.0; PANEL_ROWS]; TILE_COLS]; TILES * TILES],
    };
}

/// Two tiles of columns and two panels; one may stand twice.
#[derive(Clone, Copy)]
pub struct Block {
    /// Expanded panels.
    pub panels: [*const u8; TILES],
    /// Blocks of a row.
    pub n_block: usize,
    /// The first chunks of the columns, which lie side by side.
    pub acts: [*const ActChunk; TILES],
    /// Chunks from one 256 weights to the next.
    pub stride: usize,
    /// Columns of each tile.
    pub n: [usize; TILES],
}

/// Multiplies into `scratch.sums`.
///
/// # Safety
/// AVX-512 is enabled and the tiles have the shape of `form` and `block.n`; panels and chunks are
/// there.
#[inline(always)]
pub unsafe fn multiply(form: Form, block: &Block, scratch: &mut Scratch) {
    scratch.sums = Scratch::ZERO.sums;
    // SAFETY: passed on.
    unsafe {
        match (form.scales, form.n_plane, form.n_rest) {
            (ActScale::Block, ..) => by_blocks(form, block, scratch),
            (_, 1, 0) => by_chunks::<1, 0>(form, block, scratch),
            (_, 1, _) => by_chunks::<1, GROUP_BLOCKS>(form, block, scratch),
            (_, _, 0) => by_chunks::<2, 0>(form, block, scratch),
            _ => by_chunks::<2, { GROUP_BLOCKS / 2 }>(form, block, scratch),
        }
    }
}

/// A group of a block of tiles.
struct Group<'a> {
    heads: [&'a Head; TILES],
    codes: [*const u8; TILES],
    acts: [*const ActChunk; TILES],
    n_block: usize,
}

impl Block {
    /// Group `group_idx`.
    #[inline(always)]
    unsafe fn group(&self, form: Form, group_idx: usize) -> Group<'_> {
        let n_block = (self.n_block - group_idx * GROUP_BLOCKS).min(GROUP_BLOCKS);
        // SAFETY: the caller vouches for panels and chunks.
        unsafe {
            let [one, two] = self.panels.map(|panel| panel.add(group_idx * form.group_bytes()));
            let heads = [&*one.cast::<Head>(), &*two.cast::<Head>()];
            let codes = [one.add(size_of::<Head>()), two.add(size_of::<Head>())];
            let acts = self.acts.map(|acts| acts.add(group_idx * self.stride));
            Group { heads, codes, acts, n_block }
        }
    }
}

/// Where scales are integers: `PLANES` planes, `RESTS` pairs of minima.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn by_chunks<const PLANES: usize, const RESTS: usize>(
    form: Form,
    block: &Block,
    scratch: &mut Scratch,
) {
    for group_idx in 0..block.n_block.div_ceil(GROUP_BLOCKS) {
        // SAFETY: passed on; planes lie behind each other.
        unsafe {
            let group = block.group(form, group_idx);
            for plane in 0..PLANES {
                let codes = group.codes.map(|codes| codes.add(plane * PLANE_BYTES));
                let acts = group.acts.map(|acts| acts.cast::<i8>());
                add_tiles(acts, codes, group.n_block.div_ceil(2), &mut scratch.ints[plane]);
            }
            for tile in 0..TILES * TILES {
                let (acts, head) = (group.acts[tile / TILES], group.heads[tile % TILES]);
                let ints = [&scratch.ints[0][tile], &scratch.ints[PLANES - 1][tile]];
                let sums = &mut scratch.sums[tile][..block.n[tile / TILES]];
                scale_chunk::<PLANES, RESTS>(form, head, acts, ints, sums);
            }
        }
    }
}

/// `sums[column] += scaled ints[column]`, as `panel_kernel::add_chunk` ends.
#[inline(always)]
unsafe fn scale_chunk<const PLANES: usize, const RESTS: usize>(
    form: Form,
    head: &Head,
    acts: *const ActChunk,
    ints: [&[[i32; PANEL_ROWS]; TILE_COLS]; 2],
    sums: &mut [[f32; PANEL_ROWS]],
) {
    type L = Avx512Lanes;
    // SAFETY: the caller vouches for the columns and enabled AVX-512.
    unsafe {
        let (d, dmin) = (L::load(head.d[0].as_ptr()), L::load(head.dmin[0].as_ptr()));
        let mut rests = [L::int(0); GROUP_BLOCKS];
        unroll!(GROUP_BLOCKS, |i| {
            rests[i] = _mm512_load_si512(head.rests[i].as_ptr().cast());
        });
        for (c, sum) in sums.iter_mut().enumerate() {
            let act = acts.add(c);
            let mut int = _mm512_load_si512(ints[0][c].as_ptr().cast());
            if PLANES == 2 {
                let low = _mm512_load_si512(ints[1][c].as_ptr().cast());
                int = _mm512_add_epi32(_mm512_slli_epi32::<LOW_BITS>(int), low);
            } else {
                let whole = (&raw const (*act).whole_sum).read();
                int = _mm512_add_epi32(int, L::int(form.bias * whole));
            }
            let mut product = L::mul(L::to_f32(int), d);
            if RESTS > 0 {
                let code_sum = match form.has_halves {
                    false => (&raw const (*act).code_sum).cast::<i16>(),
                    true => (&raw const (*act).code_sum16).cast::<i16>(),
                };
                let mut rest = L::int(0);
                unroll!(GROUP_BLOCKS, |i| {
                    if i < RESTS {
                        rest = L::add_pairs(rest, rests[i], code_sum.add(2 * i));
                    }
                });
                product = L::fnma(L::to_f32(rest), dmin, product);
            }
            let scale = L::splat((&raw const (*act).scale).cast::<f32>().read());
            L::store(sum.as_mut_ptr(), L::fma(product, scale, L::load(sum.as_ptr())));
        }
    }
}

/// Where scales are floats.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
unsafe fn by_blocks(form: Form, block: &Block, scratch: &mut Scratch) {
    for group_idx in 0..block.n_block.div_ceil(GROUP_BLOCKS) {
        // SAFETY: passed on; `b` is below `GROUP_BLOCKS`.
        unsafe {
            let group = block.group(form, group_idx);
            for first in (0..group.n_block).step_by(N_STORED) {
                let n_block = (group.n_block - first).min(N_STORED);
                for b in 0..n_block {
                    let codes = group.codes.map(|codes| codes.add((first + b) * WIDE_BYTES));
                    let acts =
                        group.acts.map(|acts| acts.cast::<i8>().add((first + b) * BLOCK_LEN));
                    add_tiles(acts, codes, 1, &mut scratch.ints[b]);
                }
                for tile in 0..TILES * TILES {
                    let (acts, head) = (group.acts[tile / TILES], group.heads[tile % TILES]);
                    let (ints, n) = (&scratch.ints[..n_block], block.n[tile / TILES]);
                    let sums = &mut scratch.sums[tile][..n];
                    if form.has_min {
                        scale_blocks::<true>(head, acts, first, ints, tile, sums);
                    } else {
                        scale_blocks::<false>(head, acts, first, ints, tile, sums);
                    }
                }
            }
        }
    }
}

/// `sums[column] += scaled ints[block][tile][column]`, as `panel_kernel::add_blocks` does.
#[inline(always)]
unsafe fn scale_blocks<const MIN: bool>(
    head: &Head,
    acts: *const ActChunk,
    first: usize,
    ints: &[Ints],
    tile: usize,
    sums: &mut [[f32; PANEL_ROWS]],
) {
    type L = Avx512Lanes;
    // SAFETY: the caller vouches for the columns and enabled AVX-512.
    unsafe {
        for (c, out) in sums.iter_mut().enumerate() {
            let act = acts.add(c);
            let mut sum = L::load(out.as_ptr());
            for (b, ints) in ints.iter().enumerate() {
                let dot = L::to_f32(_mm512_load_si512(ints[tile][c].as_ptr().cast()));
                let scale = (&raw const (*act).scale).cast::<f32>().add(first + b).read();
                let d = L::load(head.d[first + b].as_ptr());
                sum = L::fma(dot, L::mul(d, L::splat(scale)), sum);
                if MIN {
                    let of_acts = (&raw const (*act).sum).cast::<f32>().add(first + b).read();
                    let dmin = L::load(head.dmin[first + b].as_ptr());
                    sum = L::fnma(dmin, L::splat(of_acts), sum);
                }
            }
            L::store(out.as_mut_ptr(), sum);
        }
    }
}

/// `out[tile of columns * 2 + panel] = acts . codes` over `n_step` tiles, each as deep as they were
/// shaped.
///
/// # Safety
/// The tiles are shaped; `acts` and `codes` are there.
#[inline(always)]
unsafe fn add_tiles(
    acts: [*const i8; TILES],
    codes: [*const u8; TILES],
    n_step: usize,
    out: &mut Ints,
) {
    // SAFETY: reads 64 bytes of each column and 1,024 of each panel a step, and writes four tiles.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{codes0} + {line}]",
            "tileloadd tmm4, [{acts0} + {act}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{codes1} + {line}]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{acts1} + {act}]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {acts0}, {line}",
            "add {acts1}, {line}",
            "add {codes0}, {tile}",
            "add {codes1}, {tile}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{out} + {line}], tmm0",
            "tilestored [{out} + {line} + {tile}], tmm1",
            "tilestored [{out} + {line} + 2*{tile}], tmm2",
            "tilestored [{out} + {line} + 3*{tile}], tmm3",
            acts0 = inout(reg) acts[0] => _,
            acts1 = inout(reg) acts[1] => _,
            codes0 = inout(reg) codes[0] => _,
            codes1 = inout(reg) codes[1] => _,
            n = inout(reg) n_step => _,
            out = in(reg) out,
            line = in(reg) VECTOR_BYTES,
            act = in(reg) size_of::<ActChunk>(),
            tile = const TILE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
