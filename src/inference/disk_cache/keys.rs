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

use std::path::Path;

use ring::hmac;

use super::DiskCacheError;
use crate::base::hash::{hex, unhex};
use crate::seal::{KEY_LEN, Sealer, device_key};

/// The name of an entry: what it holds follows from it, and nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) [u8; KEY_LEN]);

impl Key {
    /// 64 hexadecimal digits.
    pub(super) fn name(&self) -> String {
        hex(&self.0)
    }

    /// The key of a name. Capitals are no name of ours: each entry has one.
    pub(super) fn from_name(name: &str) -> Option<Key> {
        unhex(name).map(Key).filter(|key| key.name() == name)
    }

    /// A few bits of it, for a set that may err.
    pub fn short(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[i]))
    }
}

/// The keys that follow from the device key.
pub(super) struct Keys {
    naming: hmac::Key,
    /// Seals the entries.
    pub sealing: Sealer,
    vouching: hmac::Key,
}

impl Keys {
    /// From a device key.
    pub fn new(device: &[u8; KEY_LEN]) -> Keys {
        let sealing = Sealer::new(device, "jetforge prefix seal 1");
        let device = hmac::Key::new(hmac::HMAC_SHA256, device);
        let derive = |purpose: &str| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&device, purpose.as_bytes()).as_ref())
        };
        Keys {
            naming: derive("jetforge prefix name 1"),
            sealing,
            vouching: derive("jetforge prefix memo 1"),
        }
    }

    /// Reads the device key, or makes it.
    ///
    /// # Errors
    /// If it cannot be read or made, others may read it, or it is none.
    pub fn load_or_create(path: &Path) -> Result<Keys, DiskCacheError> {
        let device = device_key(path).map_err(|source| DiskCacheError::Key { source })?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
