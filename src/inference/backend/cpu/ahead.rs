//! How far before its turn a tile asks memory for the codes that it multiplies.
//!
//! A token reads every weight once, so it takes as long as memory does, if enough lines are on
//! their way at any time. How many a core has by itself differs: tokens a second of TinyLlama in
//! Q4_K_M, with two threads.
//!
//! | | nothing asked | 2 KiB before, to L1 | 4 KiB before, to L2 |
//! |---|---|---|---|
//! | Granite Rapids | 26.1 tok/s | 32.8 | 36.1 |
//! | Zen 4 | the most | a tenth less | not tried |
//!
//! On Granite Rapids 16 columns of TinyLlama took 62 ms in Q4_0 and 81 in Q8_0 when tiles of 16
//! asked for nothing, 51 and 71 since they ask. In Q4_K_M, two tiles of 8 of AVX-512, they took 64
//! when each tile met a whole task, 60 since the second asks for the next panel.

use std::sync::OnceLock;

use super::panel::VECTOR_BYTES;
use super::simd::{prefetch, prefetch_l2};

/// How far [`Ahead::Near`] looks.
const NEAR_BYTES: usize = 2048;
/// The widest tile that asks by [`Ahead::Near`]; wider ones were not tried.
const NEAR_COLS_MAX: usize = 8;
/// How far [`Ahead::Far`] looks before the first tile: with twice or four times as much it was
/// slower.
const FAR_BYTES: usize = 4096;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Into L1, by tiles of two columns and more: their arithmetic takes about as long as reading,
    /// and the hardware's own prefetching left one waiting for the other (eight columns became a
    /// third faster).
    Near,
    /// Into L2, by single columns as well, so many bytes before.
    Far(usize),
}

impl Ahead {
    /// What suits this machine.
    pub fn of_machine() -> Ahead {
        static AHEAD: OnceLock<Ahead> = OnceLock::new();
        *AHEAD.get_or_init(|| if is_intel() { Ahead::Far(FAR_BYTES) } else { Ahead::Near })
    }

    /// What a tile asks for that meets a panel after another tile did: with [`Ahead::Far`] the next
    /// panel, or the first tile would wait for memory and this one for arithmetic.
    #[inline(always)]
    pub fn again(self, panel_bytes: usize) -> Ahead {
        match self {
            Ahead::Near => Ahead::Near,
            Ahead::Far(_) => Ahead::Far(panel_bytes),
        }
    }

    /// Asks for `n_line` lines some way behind `p`, for a tile of `C` columns. Nothing is read:
    /// they may lie past the end of what there is.
    #[inline(always)]
    pub fn ask<const C: usize>(self, p: *const u8, n_line: usize) {
        let far_bytes = match self {
            // Where it is known to the compiler, the loop around this keeps one form.
            Ahead::Far(bytes) if cfg!(target_arch = "x86_64") => Some(bytes),
            _ => None,
        };
        if far_bytes.is_none() && !(2..=NEAR_COLS_MAX).contains(&C) {
            return;
        }
        for line in 0..n_line {
            let p = p.wrapping_add(line * VECTOR_BYTES);
            match far_bytes {
                Some(bytes) => prefetch_l2(p.wrapping_add(bytes)),
                None => prefetch(p.wrapping_add(NEAR_BYTES)),
            }
        }
    }
}

/// Whether Intel made the processor.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == *b"GenuineIntel"
}

/// Whether Intel made the processor.
#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}
