//! Room on the disk that nobody else takes, for a start while the disk is full: whoever opens a
//! store writes, if only that it is in use and that its jobs go on.
//!
//! It is spent where the disk has less room than that, and kept where it would leave as much again.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::base::limits::STORE_RESERVE_BYTES;

const RESERVE: &str = "state.reserve";

/// Takes the room, if there is enough and it is not taken yet.
pub fn keep(dir: &Path) {
    let path = dir.join(RESERVE);
    let is_kept = path.metadata().is_ok_and(|file| file.len() == STORE_RESERVE_BYTES);
    if is_kept || has_less_than(dir, 2 * STORE_RESERVE_BYTES) {
        return;
    }
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let taken = file.map(|file| fallocate(file, FallocateFlags::empty(), 0, STORE_RESERVE_BYTES));
    if !matches!(taken, Ok(Ok(()))) {
        // Some disks know no such thing, and a part of it is of no use.
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives the room back where it is needed.
pub fn spend(dir: &Path) {
    if has_less_than(dir, STORE_RESERVE_BYTES) {
        let _ = std::fs::remove_file(dir.join(RESERVE));
    }
}

/// Whether the disk has less room than that.
fn has_less_than(dir: &Path, n_byte: u64) -> bool {
    statvfs(dir).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < n_byte)
}
