//! The device key, and seals made with keys that follow from it.
//!
//! ```text
//! device key   32 random bytes in a file of 0600, made at first use
//! purpose      HMAC-SHA-256 of a text under the device key: a key for one use
//! seal         HMAC-SHA-256 of a random salt under that: a ChaCha20-Poly1305 key for one sealing
//! ```
//!
//! Each sealing has a key of its own, so no nonce can come twice. ChaCha because it needs no
//! instructions that a processor may lack. What is sealed does not tell its text to who finds the
//! disk, and does not open when it was cut, changed, or put in another's place. Who can read the
//! key's file can read everything: against a stolen card it has to lie elsewhere than on the card.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a key and of a salt.
pub const KEY_LEN: usize = 32;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;

/// Why there is no device key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It cannot be read or made.
    #[error("device key {}: {source}", path.display())]
    File {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("device key {}: others may read it; use chmod 600", path.display())]
    Open {
        /// Its file.
        path: PathBuf,
    },
    /// The file holds no key.
    #[error(
        "device key {}: that is no key; what it sealed is lost, remove it and a new one is made",
        path.display()
    )]
    Broken {
        /// Its file.
        path: PathBuf,
    },
}

/// Reads the device key, or makes it.
///
/// # Errors
/// If it cannot be read or made, others may read it, or it is none.
pub fn device_key(path: &Path) -> Result<[u8; KEY_LEN], SealError> {
    let failed = |source| SealError::File { path: path.to_owned(), source };
    if !path.exists() {
        random().and_then(|key| write_once(path, &key)).map_err(failed)?;
    }
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(SealError::Open { path: path.to_owned() });
    }
    let mut bytes = Vec::with_capacity(KEY_LEN);
    file.take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    bytes.try_into().map_err(|_| SealError::Broken { path: path.to_owned() })
}

/// Random bytes.
///
/// # Errors
/// If the system has none.
pub fn random() -> std::io::Result<[u8; KEY_LEN]> {
    let mut bytes = [0; KEY_LEN];
    let none = |_| std::io::Error::other("the system gives no random bytes");
    SystemRandom::new().fill(&mut bytes).map_err(none)?;
    Ok(bytes)
}

/// A name for a file that is being written, which nobody else has: two containers that share a
/// directory can have one process id.
///
/// # Errors
/// If the system has no random bytes.
pub fn part_name() -> std::io::Result<String> {
    let bytes = random()?;
    let number = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    Ok(format!("{number:016x}.part"))
}

/// Seals what belongs to one purpose.
#[derive(Clone)]
pub struct Sealer(hmac::Key);

impl Sealer {
    /// The seal of a device for a purpose.
    pub fn new(device: &[u8; KEY_LEN], purpose: &str) -> Sealer {
        let device = hmac::Key::new(hmac::HMAC_SHA256, device);
        let key = hmac::sign(&device, purpose.as_bytes());
        Sealer(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }

    fn cipher(&self, salt: &[u8; KEY_LEN]) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, hmac::sign(&self.0, salt).as_ref());
        LessSafeKey::new(key.expect("the key is as long as the cipher wants it"))
    }

    /// Makes `bytes` unreadable in place; the tag opens them again under the same salt and name.
    /// A salt serves once.
    pub fn seal(&self, salt: &[u8; KEY_LEN], name: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let cipher = self.cipher(salt);
        let tag = cipher.seal_in_place_separate_tag(nonce(), Aad::from(name), bytes);
        // What is sealed here is far below the 256 GiB that one nonce can take.
        let tag = tag.expect("it is no longer than a cipher can take");
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Opens in place what [`Sealer::seal`] made, its tag behind it; whether it was whole and
    /// unchanged. The tag stays behind the text.
    pub fn open(&self, salt: &[u8; KEY_LEN], name: &[u8], sealed: &mut [u8]) -> bool {
        self.cipher(salt).open_in_place(nonce(), Aad::from(name), sealed).is_ok()
    }

    /// `salt | sealed text | tag` as one value, under a name that has to be given again.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn wrap(&self, name: &str, text: &[u8]) -> std::io::Result<Vec<u8>> {
        let salt = random()?;
        let mut value = Vec::with_capacity(KEY_LEN + text.len() + TAG_LEN);
        value.extend_from_slice(&salt);
        value.extend_from_slice(text);
        let tag = self.seal(&salt, name.as_bytes(), &mut value[KEY_LEN..]);
        value.extend_from_slice(&tag);
        Ok(value)
    }

    /// The text in a value of [`Sealer::wrap`]; `None` if it is not whole, changed, of another
    /// name or of another device.
    pub fn unwrap(&self, name: &str, value: &[u8]) -> Option<Vec<u8>> {
        let (salt, sealed) = value.split_first_chunk::<KEY_LEN>()?;
        let mut text = sealed.to_vec();
        if !self.open(salt, name.as_bytes(), &mut text) {
            return None;
        }
        text.truncate(text.len() - TAG_LEN);
        Some(text)
    }
}

/// The one nonce of a key that seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// Writes a file that its owner alone may read, unless there is one: under a name of its own first,
/// then linked into place. Of two processes one wins, and a loss of power leaves a whole file or
/// none.
///
/// # Errors
/// If it cannot be written.
pub fn write_once(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let part = dir.join(part_name()?);
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match fs::hard_link(&part, path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let written = write();
    let _ = fs::remove_file(&part);
    written?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/device.key");
        let keys = [0, 1].map(|_| device_key(&path).unwrap());
        assert_eq!(keys[0], keys[1]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let n_file = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(n_file, 1, "nothing is left over");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let open = device_key(&path).err().unwrap();
        assert!(open.to_string().contains("chmod 600"), "{open}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(device_key(&path), Err(SealError::Broken { .. })));
    }

    #[test]
    fn a_value_opens_under_its_name_its_purpose_and_its_device_alone() {
        let ours = Sealer::new(&[1; KEY_LEN], "jobs");
        let text = b"fn main() { secret() }";
        let value = ours.wrap("body of a", text).unwrap();
        assert!(!value.windows(6).any(|w| w == b"secret"), "nothing is in clear");
        assert_eq!(ours.unwrap("body of a", &value).as_deref(), Some(&text[..]));
        assert_eq!(ours.unwrap("body of b", &value), None);
        assert_eq!(Sealer::new(&[1; KEY_LEN], "else").unwrap("body of a", &value), None);
        assert_eq!(Sealer::new(&[2; KEY_LEN], "jobs").unwrap("body of a", &value), None);
        assert_ne!(ours.wrap("body of a", text).unwrap(), value, "each has its own salt");
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ours.unwrap("body of a", &damaged), None, "bit {bit}");
        }
        for n in 0..value.len() {
            assert_eq!(ours.unwrap("body of a", &value[..n]), None, "cut at {n}");
        }
    }
}
