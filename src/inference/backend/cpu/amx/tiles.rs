//! The tiles: whether they are there, their shapes, and their instructions.

use super::form::Form;
use super::{Ints, TILE_BYTES, TILE_COLS, TILES};
use crate::inference::backend::cpu::acts::{ActChunk, ActScale, BLOCK_LEN};
use crate::inference::backend::cpu::panel::VECTOR_BYTES;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

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
            asm!("ldtilecfg [{0}]", in(reg) &raw const shape, options(nostack, readonly));
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
        low_bits: 0,
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

/// `out[tile of columns * 2 + panel] = acts . codes` over `n_step` tiles, each as deep as they were
/// shaped.
///
/// # Safety
/// The tiles are shaped; `acts` and `codes` are there. `n_step` is 1 where tiles are half as deep,
/// since a step goes on by 64 weights.
#[inline(always)]
pub unsafe fn add_tiles(
    acts: [*const i8; TILES],
    codes: [*const u8; TILES],
    n_step: usize,
    out: &mut Ints,
) {
    // SAFETY: reads at most 64 bytes of each column and 1,024 of each panel a step, and writes four
    // tiles.
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

/// [`add_tiles`] for a single tile of columns: `out[0]` and `out[1]`.
///
/// # Safety
/// As [`add_tiles`].
#[inline(always)]
pub unsafe fn add_tile_pair(
    acts: *const i8,
    codes: [*const u8; TILES],
    n_step: usize,
    out: &mut Ints,
) {
    // SAFETY: reads at most 64 bytes of each column and 1,024 of each panel a step, and writes two
    // tiles.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{acts} + {act}]",
            "tileloadd tmm6, [{codes0} + {line}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{codes1} + {line}]",
            "tdpbssd tmm1, tmm4, tmm7",
            "add {acts}, {line}",
            "add {codes0}, {tile}",
            "add {codes1}, {tile}",
            "dec {n}",
            "jnz 2b",
            "tilestored [{out} + {line}], tmm0",
            "tilestored [{out} + {line} + {tile}], tmm1",
            acts = inout(reg) acts => _,
            codes0 = inout(reg) codes[0] => _,
            codes1 = inout(reg) codes[1] => _,
            n = inout(reg) n_step => _,
            out = in(reg) out,
            line = in(reg) VECTOR_BYTES,
            act = in(reg) size_of::<ActChunk>(),
            tile = const TILE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
