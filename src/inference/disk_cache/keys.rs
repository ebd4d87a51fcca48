//! The device key, and what follows from it: names of entries, and the seal on each.
//!
//! ```text
//! device key   32 random bytes in a file of 0600, made at first use
//!   naming     HMAC-SHA-256: root = (fingerprint, scope); name of a page = (name before, tokens)
//!   sealing    HMAC-SHA-256 of an entry's salt -> its ChaCha20-Poly1305 key
//!   vouching   HMAC-SHA-256 over what is remembered about files
//! ```
//!
//! A name is keyed, so the list of files tells nobody which texts were asked. Each entry has a key
//! of its own, so no nonce can come twice.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::DiskCacheError;

/// Bytes of the device key, of a name and of a salt.
pub const KEY_LEN: usize = 32;

/// The name of an entry: what it holds follows from it, and nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) [u8; KEY_LEN]);

impl Key {
    /// 64 hexadecimal digits.
    pub(super) fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key of a name.
    pub(super) fn from_name(name: &str) -> Option<Key> {
        let digits = name.as_bytes();
        if digits.len() != 2 * KEY_LEN {
            return None;
        }
        let mut key = [0; KEY_LEN];
        for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
            // Capitals are no name of ours: each entry has one.
            let value = |c: u8| match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            };
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Key(key))
    }

    /// A few bits of it, for a set that may err.
    pub fn short(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[i]))
    }
}

/// The keys that follow from the device key.
pub(super) struct Keys {
    naming: hmac::Key,
    sealing: hmac::Key,
    vouching: hmac::Key,
}

impl Keys {
    /// From a device key.
    pub fn new(device: &[u8; KEY_LEN]) -> Keys {
        let device = hmac::Key::new(hmac::HMAC_SHA256, device);
        let derive = |purpose: &str| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&device, purpose.as_bytes()).as_ref())
        };
        Keys {
            naming: derive("jetforge prefix name 1"),
            sealing: derive("jetforge prefix seal 1"),
            vouching: derive("jetforge prefix memo 1"),
        }
    }

    /// Reads the device key, or makes it.
    ///
    /// # Errors
    /// If it cannot be read or made, others may read it, or it is none.
    pub fn load_or_create(path: &Path) -> Result<Keys, DiskCacheError> {
        let failed = |source| DiskCacheError::Key { path: path.to_owned(), source };
        if !path.exists() {
            create(path).map_err(failed)?;
        }
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(DiskCacheError::KeyOpen { path: path.to_owned() });
        }
        let mut bytes = Vec::with_capacity(KEY_LEN);
        file.take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let device: [u8; KEY_LEN] =
            bytes.try_into().map_err(|_| DiskCacheError::KeyBroken { path: path.to_owned() })?;
        Ok(Keys::new(&device))
    }

    /// The name at which chains of one fingerprint and scope begin.
    pub fn root(&self, fingerprint: &[u8], scope: &[u8]) -> Key {
        let mut context = hmac::Context::with_key(&self.naming);
        for part in [b"root".as_slice(), fingerprint, scope] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        name(context)
    }

    /// The name of the page that holds `tokens` after what `before` names.
    pub fn next(&self, before: &Key, tokens: &[u32]) -> Key {
        let mut context = hmac::Context::with_key(&self.naming);
        context.update(b"page");
        context.update(&before.0);
        tokens.iter().for_each(|token| context.update(&token.to_le_bytes()));
        name(context)
    }

    /// The key that seals the entry with this salt.
    pub fn seal(&self, salt: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
        bytes(hmac::sign(&self.sealing, salt))
    }

    /// Vouches for bytes that are kept beside the entries.
    pub fn vouch(&self, bytes: &[u8]) -> [u8; KEY_LEN] {
        self::bytes(hmac::sign(&self.vouching, bytes))
    }

    /// Whether this cache vouched for these bytes.
    pub fn is_vouched(&self, bytes: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.vouching, bytes, tag).is_ok()
    }
}

fn name(context: hmac::Context) -> Key {
    Key(bytes(context.sign()))
}

fn bytes(tag: hmac::Tag) -> [u8; KEY_LEN] {
    let mut out = [0; KEY_LEN];
    out.copy_from_slice(tag.as_ref());
    out
}

/// Random bytes.
///
/// # Errors
/// If the system has none.
pub(super) fn random() -> std::io::Result<[u8; KEY_LEN]> {
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
pub(super) fn part_name() -> std::io::Result<String> {
    let number = Key(random()?).short();
    Ok(format!("{number:016x}.part"))
}

/// Writes a new key under a name of its own and links it into place: of two processes one wins,
/// and a loss of power leaves a whole key or none.
fn create(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let part = dir.join(part_name()?);
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(&random()?)?;
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

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/prefix.key");
        let names = [0, 1].map(|_| Keys::load_or_create(&path).unwrap().root(b"f", b"s"));
        assert_eq!(names[0], names[1]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left over"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let open = Keys::load_or_create(&path).err().unwrap();
        assert!(open.to_string().contains("chmod 600"), "{open}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(Keys::load_or_create(&path), Err(DiskCacheError::KeyBroken { .. })));
    }

    fn chain(keys: &Keys, tokens: &[u32]) -> Vec<Key> {
        let mut at = keys.root(b"model", b"");
        let next = |tokens: &[u32]| {
            at = keys.next(&at, tokens);
            at
        };
        tokens.chunks(4).map(next).collect()
    }

    proptest! {
        /// Two texts have the same name for a page exactly if they agree up to its end.
        #[test]
        fn a_name_stands_for_everything_up_to_the_end_of_its_page(
            a in proptest::collection::vec(0u32..3, 1..24),
            b in proptest::collection::vec(0u32..3, 1..24),
        ) {
            let keys = Keys::new(&[7; KEY_LEN]);
            let (names_a, names_b) = (chain(&keys, &a), chain(&keys, &b));
            for (i, (name_a, name_b)) in names_a.iter().zip(&names_b).enumerate() {
                let end = |t: &[u32]| t[..t.len().min(4 * (i + 1))].to_vec();
                prop_assert_eq!(name_a == name_b, end(&a) == end(&b));
            }
            prop_assert!(chain(&Keys::new(&[8; KEY_LEN]), &a)[0] != names_a[0]);
        }

        #[test]
        fn a_name_and_its_key_are_one(bytes: [u8; KEY_LEN], text in "\\PC{0,70}") {
            prop_assert_eq!(Key::from_name(&Key(bytes).name()), Some(Key(bytes)));
            if let Some(key) = Key::from_name(&text) {
                prop_assert_eq!(key.name(), text);
            }
        }
    }

    #[test]
    fn fingerprint_and_scope_do_not_run_into_each_other() {
        let keys = Keys::new(&[7; KEY_LEN]);
        assert_ne!(keys.root(b"ab", b"c"), keys.root(b"a", b"bc"));
    }
}
