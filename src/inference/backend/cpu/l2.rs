//! The second cache of a core, and how much of it a task of a multiplication fills.
//!
//! Columns pass over a task's weights again and again, so these stay in L2, with room beside them
//! for the columns; and the more they are, the less often all columns come from further away.
//! Prefill of TinyLlama in N3_M on a Granite Rapids of 2 MiB, two threads, 727 tokens, three rounds:
//!
//! | a task's weights | 192 KiB | 384 KiB | 680 KiB | 1000 KiB |
//! |---|---|---|---|---|
//! | AVX-512 | 344 tok/s | 354 | 364 | 351 |
//! | tiles of AMX | 394 | 447 | 454 | not tried |
//! | AVX2 | 164 | 168 | 167 | not tried |

use std::sync::OnceLock;

/// Where the processor does not say how large its L2 cache is.
const TASK_BYTES: usize = 384 << 10;
/// However small the cache is: columns from further away would cost more.
const TASK_BYTES_MIN: usize = 192 << 10;
/// However large the cache is.
const TASK_BYTES_MAX: usize = 1 << 20;

/// Bytes of weights that a task goes over for each tile of columns.
pub fn task_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        size().map_or(TASK_BYTES, |size| (size / 3).clamp(TASK_BYTES_MIN, TASK_BYTES_MAX))
    })
}

/// Bytes of a core's L2 cache.
///
/// Source: Intel's Software Developer's Manual, CPUID leaf 4; AMD's APM volume 3, `Fn8000_001D`,
/// which has the same form.
#[cfg(target_arch = "x86_64")]
fn size() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// Caches that a processor tells of, at most.
    const N_CACHE: u32 = 8;
    /// Instructions alone.
    const OF_CODE: u32 = 2;

    let leaves = [(4, __cpuid(0).eax), (0x8000_001d, __cpuid(0x8000_0000).eax)];
    let leaves = leaves.into_iter().filter(|&(leaf, last)| leaf <= last).map(|(leaf, _)| leaf);
    leaves
        .flat_map(|leaf| (0..N_CACHE).map(move |i| __cpuid_count(leaf, i)))
        .find(|r| r.eax & 31 != 0 && r.eax & 31 != OF_CODE && r.eax >> 5 & 7 == 2)
        .map(|r| {
            let (line, part, way) = (r.ebx & 0xfff, r.ebx >> 12 & 0x3ff, r.ebx >> 22);
            [line, part, way, r.ecx].iter().map(|&less_one| less_one as usize + 1).product()
        })
}

/// Bytes of a core's L2 cache.
#[cfg(not(target_arch = "x86_64"))]
fn size() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_fits_the_cache() {
        assert!((TASK_BYTES_MIN..=TASK_BYTES_MAX).contains(&task_bytes()));
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn the_cache_is_as_large_as_the_kernel_says() {
        // A virtual machine may hide it from the kernel, and not all cores need be alike.
        let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
        let told: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
            .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/cache/index2"))
            .filter(|cache| read(format!("{cache}/level")).trim() == "2")
            .map(|cache| read(format!("{cache}/size")).trim().to_owned())
            .collect();
        let size = size().map(|size| format!("{}K", size >> 10));
        assert!(told.is_empty() || told.contains(&size.unwrap_or_default()), "{told:?}");
    }
}
