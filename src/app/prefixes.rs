//! The section `prefix_cache`: where prefixes outlive the program, and how much that may cost.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::App;
use crate::base::dirs::Dirs;
use crate::inference::{DiskCache, DiskCacheError, DiskCacheOptions, N_DISK_MIN};

/// The section `prefix_cache`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixCacheConfig {
    /// Whether the service keeps prefixes on the disk.
    pub enabled: bool,
    /// Where; unset takes the one of the table of directories.
    pub dir: Option<PathBuf>,
    /// Bytes that they may take.
    pub bytes_max: u64,
    /// Bytes that may be written in a day.
    pub write_bytes_per_day_max: u64,
    /// Megabytes that may be read in a second; unset takes what the disk gives.
    pub read_limit_mb_s: Option<u64>,
    /// Tokens of the shortest prompt that is kept.
    pub n_tokens_min: usize,
}

impl Default for PrefixCacheConfig {
    fn default() -> PrefixCacheConfig {
        PrefixCacheConfig {
            enabled: true,
            dir: None,
            bytes_max: 4 << 30,
            write_bytes_per_day_max: 4 << 30,
            read_limit_mb_s: None,
            n_tokens_min: N_DISK_MIN,
        }
    }
}

impl PrefixCacheConfig {
    /// The first value out of range: its key and what is wrong.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let at_least = |key, n: u64| Err((key, format!("must be at least {n}")));
        if self.read_limit_mb_s == Some(0) {
            return at_least("prefix_cache.read_limit_mb_s", 1);
        }
        if self.n_tokens_min == 0 {
            return at_least("prefix_cache.n_tokens_min", 1);
        }
        Ok(())
    }

    /// Where prefixes are, and at what cost.
    pub fn options(&self, dirs: &Dirs) -> DiskCacheOptions {
        DiskCacheOptions {
            dir: self.dir.clone().unwrap_or_else(|| dirs.cache.join("prefixes")),
            key_file: dirs.state.join("prefix.key"),
            bytes_max: self.bytes_max,
            write_bytes_per_day_max: self.write_bytes_per_day_max,
            read_bytes_per_s_max: self.read_limit_mb_s.map(|mb| mb.saturating_mul(1_000_000)),
        }
    }
}

impl App {
    /// Where prefixes are kept, and at what cost.
    pub fn disk_cache_options(&self) -> DiskCacheOptions {
        self.config().prefix_cache.options(&self.dirs)
    }

    /// The disk cache, unless it is off.
    ///
    /// # Errors
    /// If its directory or its key cannot be used.
    pub fn open_disk_cache(&self) -> Result<Option<DiskCache>, DiskCacheError> {
        let is_on = self.config().prefix_cache.enabled;
        is_on.then(|| DiskCache::open(self.disk_cache_options())).transpose()
    }
}
