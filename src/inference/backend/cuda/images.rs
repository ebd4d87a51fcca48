//! What the driver compiled of the kernels, kept so that a later start compiles nothing.
//!
//! ```text
//! DIR/NAME.cubin    SHA-256 of the code | the code
//! NAME              SHA-256 of the device, the driver's version and the PTX
//! ```
//!
//! A file that is torn or was changed is not the code that its digest says, and is compiled again.
//! The directory is the owner's, as the program is. A cache that cannot be written is none.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::driver::DeviceInfo;
use crate::base::hash::hex;
use crate::base::limits::{DEVICE_IMAGE_BYTES_MAX, DEVICE_IMAGES_MAX};

const DIGEST_BYTES: usize = 32;
const EXTENSION: &str = "cubin";

/// A directory of compiled code.
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// The cache in `dir`, which is made when something is kept.
    pub fn new(dir: &Path) -> Images {
        Images { dir: dir.to_owned() }
    }

    /// What was compiled of `ptx` for this device by this driver.
    pub fn find(&self, info: &DeviceInfo, ptx: &str) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.path(info, ptx)).ok()?;
        let mut bytes = Vec::new();
        file.take(DEVICE_IMAGE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let (digest, image) = bytes.split_at_checked(DIGEST_BYTES)?;
        (*digest == Sha256::digest(image)[..]).then(|| image.to_vec())
    }

    /// Keeps what was compiled, and lets go of what is oldest beyond [`DEVICE_IMAGES_MAX`].
    pub fn keep(&self, info: &DeviceInfo, ptx: &str, image: &[u8]) {
        let path = self.path(info, ptx);
        let partial = path.with_extension(format!("{}.part", std::process::id()));
        let bytes = [&Sha256::digest(image)[..], image].concat();
        let written = std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(&partial, bytes))
            .and_then(|()| std::fs::rename(&partial, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        self.prune();
    }

    /// Lets go of what the driver would not load.
    pub fn forget(&self, info: &DeviceInfo, ptx: &str) {
        let _ = std::fs::remove_file(self.path(info, ptx));
    }

    fn path(&self, info: &DeviceInfo, ptx: &str) -> PathBuf {
        let mut digest = Sha256::new();
        digest.update(info.to_string());
        digest.update([0]);
        digest.update(ptx);
        self.dir.join(hex(&digest.finalize()[..16])).with_extension(EXTENSION)
    }

    fn prune(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let paths = entries.flatten().map(|entry| entry.path());
        let images = paths.filter(|path| path.extension().is_some_and(|e| e == EXTENSION));
        let age = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
        let mut images: Vec<(Option<SystemTime>, PathBuf)> =
            images.map(|path| (age(&path), path)).collect();
        images.sort();
        for (_, path) in images.iter().take(images.len().saturating_sub(DEVICE_IMAGES_MAX)) {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(driver_version: u32) -> DeviceInfo {
        DeviceInfo {
            name: "a device".to_owned(),
            capability: (5, 3),
            driver_version,
            total_bytes: 0,
            registers_per_block: 0,
            is_integrated: true,
            memory_peak_bytes_s: None,
        }
    }

    #[test]
    fn code_is_found_again_unless_it_or_what_it_is_for_changed() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(&folder.path().join("cuda"));
        assert_eq!(images.find(&info(10_020), "ptx"), None);
        images.keep(&info(10_020), "ptx", b"code");
        assert_eq!(images.find(&info(10_020), "ptx").as_deref(), Some(&b"code"[..]));
        assert_eq!(images.find(&info(12_020), "ptx"), None);
        assert_eq!(images.find(&info(10_020), "PTX"), None);
        let path = images.path(&info(10_020), "ptx");
        let whole = std::fs::read(&path).unwrap();
        for n in [0, 10, whole.len() - 1] {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert_eq!(images.find(&info(10_020), "ptx"), None, "{n} bytes");
        }
        images.forget(&info(10_020), "ptx");
        assert!(!path.exists());
    }

    #[test]
    fn the_oldest_give_way() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path());
        for i in 0..DEVICE_IMAGES_MAX + 3 {
            images.keep(&info(10_020), &format!("{i}"), b"code");
        }
        let n = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(n, DEVICE_IMAGES_MAX);
    }
}
