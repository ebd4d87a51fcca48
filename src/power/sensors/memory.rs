//! Memory: `proc/meminfo` in KiB (the kernel's `filesystems/proc`).
//!
//! NVIDIA's kernel adds `NvMapMemUsed`, what the GPU's driver holds; no process is charged for it.

use serde::Serialize;

use super::Gather;
use crate::power::sysfs::Reason;

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryReading {
    /// Of the machine.
    pub total_bytes: Option<u64>,
    /// What can be used without swapping.
    pub available_bytes: Option<u64>,
    /// What the GPU's driver holds of it; a card has memory of its own.
    pub gpu_bytes: Option<u64>,
    /// Swap of the machine.
    pub swap_total_bytes: Option<u64>,
    /// Swap that is free.
    pub swap_free_bytes: Option<u64>,
}

/// Where cards tell of their own memory, nobody misses a GPU's share of this.
pub fn read(gather: &mut Gather<'_>, has_cards: bool) -> MemoryReading {
    let text = gather.sysfs.text("proc/meminfo");
    let Some(text) = gather.optional("memory", text) else { return MemoryReading::default() };
    let gpu = kib(&text, "NvMapMemUsed:");
    let gpu_bytes = match has_cards {
        true => gpu.ok(),
        false => gather.optional("memory of the gpu", gpu),
    };
    let mut line = |key: &str, name: &str| gather.optional(name, kib(&text, key));
    MemoryReading {
        total_bytes: line("MemTotal:", "memory total"),
        available_bytes: line("MemAvailable:", "memory available"),
        gpu_bytes,
        swap_total_bytes: line("SwapTotal:", "swap"),
        swap_free_bytes: line("SwapFree:", "swap free"),
    }
}

fn kib(text: &str, key: &str) -> Result<u64, Reason> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let word = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = word.ok_or("not told")?.parse().map_err(|_| "no number".to_owned())?;
    kib.checked_mul(1024).ok_or_else(|| "too large".to_owned())
}
