//! An entry: a page's bytes under seal.
//!
//! ```text
//! "JFPAGE1\n" | salt [32] | ciphertext, as long as the page | tag [16]
//! ```
//!
//! ChaCha20-Poly1305 under a key that belongs to the salt; the entry's name and the first line are
//! authenticated with it. So an entry that was cut, changed, written by another device or put
//! under another name does not open, and no checksum is needed beside the tag. ChaCha because it
//! needs no instructions that a processor may lack.

use super::Miss;
use super::keys::{Key, Keys};
use crate::seal::{KEY_LEN, TAG_LEN};

const MAGIC: &[u8; 8] = b"JFPAGE1\n";
/// Bytes of an entry beyond the page's.
pub const OVERHEAD: usize = MAGIC.len() + KEY_LEN + TAG_LEN;

fn associated(key: &Key) -> [u8; MAGIC.len() + KEY_LEN] {
    let mut bytes = [0; MAGIC.len() + KEY_LEN];
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(&key.0);
    bytes
}

/// An entry of `page`, under this name.
pub fn seal(keys: &Keys, key: &Key, salt: &[u8; KEY_LEN], page: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(page.len() + OVERHEAD);
    entry.extend_from_slice(MAGIC);
    entry.extend_from_slice(salt);
    let start = entry.len();
    entry.extend_from_slice(page);
    let tag = keys.sealing.seal(salt, &associated(key), &mut entry[start..]);
    entry.extend_from_slice(&tag);
    entry
}

/// The page in an entry, if it is the entry of this name, whole and unchanged.
///
/// # Errors
/// What is wrong with it.
pub fn open(keys: &Keys, key: &Key, mut entry: Vec<u8>, n_bytes: usize) -> Result<Vec<u8>, Miss> {
    if entry.len() != n_bytes + OVERHEAD {
        return Err(Miss::Torn);
    }
    let Some((magic, rest)) = entry.split_first_chunk_mut::<{ MAGIC.len() }>() else {
        return Err(Miss::Torn);
    };
    let Some((salt, sealed)) = rest.split_first_chunk_mut::<KEY_LEN>() else {
        return Err(Miss::Torn);
    };
    if magic != MAGIC {
        return Err(Miss::Damaged);
    }
    if !keys.sealing.open(salt, &associated(key), sealed) {
        return Err(Miss::Damaged);
    }
    entry.truncate(entry.len() - TAG_LEN);
    entry.drain(..MAGIC.len() + KEY_LEN);
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: [u8; KEY_LEN] = [3; KEY_LEN];

    fn keys() -> Keys {
        Keys::new(&[1; KEY_LEN])
    }

    #[test]
    fn a_sealed_page_opens_under_its_name_alone() {
        let (ours, other) = (Key([1; KEY_LEN]), Key([2; KEY_LEN]));
        let page: Vec<u8> = (0..=255).collect();
        let entry = seal(&keys(), &ours, &SALT, &page);
        assert!(!entry.windows(8).any(|w| page.windows(8).any(|p| p == w)), "nothing is in clear");
        assert_eq!(open(&keys(), &ours, entry.clone(), page.len()), Ok(page.clone()));
        assert_eq!(open(&keys(), &other, entry.clone(), page.len()), Err(Miss::Damaged));
        let foreign = Keys::new(&[2; KEY_LEN]);
        assert_eq!(open(&foreign, &ours, entry.clone(), page.len()), Err(Miss::Damaged));
        assert_eq!(open(&keys(), &ours, entry, page.len() + 1), Err(Miss::Torn));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (key, page) = (Key([1; KEY_LEN]), vec![5; 40]);
        let entry = seal(&keys(), &key, &SALT, &page);
        for bit in 0..entry.len() * 8 {
            let mut damaged = entry.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&keys(), &key, damaged, page.len()), Err(Miss::Damaged), "bit {bit}");
        }
        for n in 0..entry.len() {
            assert_eq!(open(&keys(), &key, entry[..n].to_vec(), page.len()), Err(Miss::Torn));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_others_open(entry in proptest::collection::vec(any::<u8>(), 0..200)) {
            let n_bytes = entry.len().saturating_sub(OVERHEAD);
            prop_assert!(open(&keys(), &Key([1; KEY_LEN]), entry, n_bytes).is_err());
        }
    }
}
