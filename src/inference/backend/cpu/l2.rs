//! The second cache of a core, and how much of it a task's expanded weights fill.
//!
//! Columns pass over them again and again, so they stay in L2, with room beside them for the
//! columns; and the more they are, the less often all columns come from further away.
//! Prefill of TinyLlama in N3_M on a Granite Rapids of 2 MiB, two threads, 727 tokens, medians of
//! three rounds:
//!
//! | a task's weights | 192 KiB | 384 KiB | 680 KiB | 1000 KiB |
//! |---|---|---|---|---|
//! | AVX-512 | 344 tok/s | 354 | 364 | 351 |
//! | tiles of AMX | 394 | 447 | 454 | not tried |
//! | AVX2 | 164 | 168 | 167 | not tried |

use std::sync::OnceLock;

/// L2 where the processor does not say how large it is.
const SIZE_UNTOLD: usize = 1 << 20;
/// However small the cache is: columns from further away would cost more.
const TASK_BYTES_MIN: usize = 192 << 10;
/// However large the cache is.
const TASK_BYTES_MAX: usize = 1 << 20;

/// Bytes of expanded weights that a task goes over for each tile of columns.
pub fn expanded_task_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| (size().unwrap_or(SIZE_UNTOLD) / 3).clamp(TASK_BYTES_MIN, TASK_BYTES_MAX))
}

/// Bytes of an L2 cache, which some small cores share.
///
/// Source: CPUID leaf `8000_0006`, the upper half of ECX in KiB: AMD's Programmer's Manual, volume
/// 3; Intel's Software Developer's Manual, volume 2.
#[cfg(target_arch = "x86_64")]
fn size() -> Option<usize> {
    use std::arch::x86_64::__cpuid;
    const LEAF: u32 = 0x8000_0006;
    let has_leaf = __cpuid(0x8000_0000).eax >= LEAF;
    let kib = if has_leaf { __cpuid(LEAF).ecx >> 16 } else { 0 };
    (kib > 0).then_some((kib as usize) << 10)
}

/// Bytes of an L2 cache.
#[cfg(not(target_arch = "x86_64"))]
fn size() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_fits_a_cache_there_could_be() {
        assert!((TASK_BYTES_MIN..=TASK_BYTES_MAX).contains(&expanded_task_bytes()));
        assert!(size().is_none_or(|size| (64 << 10..=64 << 20).contains(&size)), "{:?}", size());
    }
}
