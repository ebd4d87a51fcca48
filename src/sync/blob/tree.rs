//! A blob's name is its BLAKE3, and that is a tree: so each piece can be checked when it comes.
//!
//! ```text
//!            name                    the root, what the blob is known by
//!          /      \
//!       *            *               merged, left subtrees being the largest powers of two
//!     /   \        /   \
//!   piece piece  piece piece …       1 MiB each, the last one shorter: the outline lists these
//! ```
//!
//! An outline proves itself: merged, it is the name. Nobody has to be believed, neither about it
//! nor about a piece. (The crate calls this `hazmat`, since trees can be put together wrongly; here
//! every outline is compared with the root that the whole hash has.)

use std::fmt;
use std::io::{self, Read};

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use crate::base::hash::{hex, unhex};
use crate::base::limits::SYNC_BLOB_BYTES_MAX;

/// Bytes of a piece.
pub const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a hash.
const HASH_BYTES: usize = 32;

/// What a blob is known by: the BLAKE3 of its bytes, in hexadecimal where people see it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobId([u8; HASH_BYTES]);

impl BlobId {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> BlobId {
        BlobId(*blake3::hash(bytes).as_bytes())
    }

    /// Reads 64 hexadecimal digits in small letters.
    pub fn read(text: &str) -> Option<BlobId> {
        unhex(text).map(BlobId).filter(|id| id.to_string() == text)
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for BlobId {
    type Error = String;

    fn try_from(text: String) -> Result<BlobId, String> {
        BlobId::read(&text).ok_or_else(|| format!("{text:?} is no name of a blob"))
    }
}

impl From<BlobId> for String {
    fn from(id: BlobId) -> String {
        id.to_string()
    }
}

/// What each piece of a blob hashes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    n_bytes: u64,
    pieces: Vec<[u8; HASH_BYTES]>,
}

/// Pieces of a blob of so many bytes; an empty one has one.
pub fn n_piece(n_bytes: u64) -> u64 {
    n_bytes.div_ceil(PIECE_BYTES as u64).max(1)
}

impl Outline {
    /// The name and the outline of what a reader gives.
    ///
    /// # Errors
    /// If it fails, or gives more than a blob may have.
    pub fn of_reader(reader: &mut dyn Read) -> io::Result<(BlobId, Outline)> {
        let mut whole = Hasher::new();
        let mut outline = Outline { n_bytes: 0, pieces: Vec::new() };
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            piece.clear();
            let n = reader.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            if n == 0 && !outline.pieces.is_empty() {
                break;
            }
            whole.update(&piece);
            if n > 0 {
                outline.pieces.push(hash_of(&piece, outline.n_bytes));
            } else {
                outline.pieces.push([0; HASH_BYTES]);
            }
            outline.n_bytes += n as u64;
            if outline.n_bytes > SYNC_BLOB_BYTES_MAX {
                let message = format!("it has more than {SYNC_BLOB_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
            }
            if n < PIECE_BYTES {
                break;
            }
        }
        let id = BlobId(*whole.finalize().as_bytes());
        if let [only] = &mut outline.pieces[..] {
            *only = id.0;
        }
        Ok((id, outline))
    }

    /// The outline of a blob out of its bytes; `None` if it is another's.
    pub fn read(id: &BlobId, n_bytes: u64, bytes: &[u8]) -> Option<Outline> {
        let n = usize::try_from(n_piece(n_bytes)).ok()?;
        if n_bytes > SYNC_BLOB_BYTES_MAX || bytes.len() != n.checked_mul(HASH_BYTES)? {
            return None;
        }
        let pieces: Vec<[u8; HASH_BYTES]> = bytes.as_chunks::<HASH_BYTES>().0.to_vec();
        let root = match &pieces[..] {
            [only] => *only,
            [_, ..] => root_of(&pieces),
            [] => return None,
        };
        (root == id.0).then_some(Outline { n_bytes, pieces })
    }

    /// The outline of a blob of one piece: its name.
    pub fn of_one(id: &BlobId, n_bytes: u64) -> Option<Outline> {
        Outline::read(id, n_bytes, &id.0)
    }

    /// The outline as it travels: the hashes one after the other.
    pub fn write(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    /// Bytes of the blob.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Pieces of the blob.
    pub fn n_piece(&self) -> u64 {
        self.pieces.len() as u64
    }

    /// Bytes of a piece.
    pub fn piece_bytes(&self, i: u64) -> usize {
        let from = i.saturating_mul(PIECE_BYTES as u64);
        self.n_bytes.saturating_sub(from).min(PIECE_BYTES as u64) as usize
    }

    /// Whether these bytes are a piece.
    pub fn holds(&self, i: u64, bytes: &[u8]) -> bool {
        let hash = usize::try_from(i).ok().and_then(|i| self.pieces.get(i));
        let Some(hash) = hash.filter(|_| bytes.len() == self.piece_bytes(i)) else { return false };
        match self.pieces.len() {
            1 => blake3::hash(bytes).as_bytes() == hash,
            _ => hash_of(bytes, i * PIECE_BYTES as u64) == *hash,
        }
    }
}

/// The hash of a piece that begins at `offset` and is not all there is.
fn hash_of(piece: &[u8], offset: u64) -> [u8; HASH_BYTES] {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(piece);
    hasher.finalize_non_root()
}

/// Where the left subtree of two or more pieces ends.
fn split_of(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn root_of(pieces: &[[u8; HASH_BYTES]]) -> [u8; HASH_BYTES] {
    let (left, right) = pieces.split_at(split_of(pieces.len()));
    *merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).as_bytes()
}

fn merged(pieces: &[[u8; HASH_BYTES]]) -> [u8; HASH_BYTES] {
    match pieces {
        [only] => *only,
        _ => {
            let (left, right) = pieces.split_at(split_of(pieces.len()));
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn an_outline_is_the_name_and_each_piece_is_checked_by_it() {
        let edges = [0, 1, 7, PIECE_BYTES];
        let whole = [1, 2, 3, 4, 5, 7, 8].map(|n| n * PIECE_BYTES);
        let around = whole.into_iter().flat_map(|n| [n - 1, n, n + 1]);
        for n in edges.into_iter().chain(around) {
            let bytes = bytes(n);
            let (id, outline) = Outline::of_reader(&mut &bytes[..]).unwrap();
            assert_eq!(id, BlobId::of(&bytes), "{n}");
            assert_eq!(outline.n_piece(), n_piece(n as u64), "{n}");
            let read = Outline::read(&id, n as u64, &outline.write());
            assert_eq!(read.as_ref(), Some(&outline), "{n} bytes");
            let mut pieces: Vec<&[u8]> = bytes.chunks(PIECE_BYTES).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            for (i, piece) in pieces.into_iter().enumerate() {
                assert!(outline.holds(i as u64, piece), "{n}: piece {i}");
                let mut wrong = piece.to_vec();
                match wrong.last_mut() {
                    Some(last) => *last ^= 1,
                    None => wrong.push(0),
                }
                assert!(!outline.holds(i as u64, &wrong), "{n}: piece {i}");
                assert!(!outline.holds(i as u64 + 1, piece), "{n}: piece {i}");
            }
        }
    }

    #[test]
    fn an_outline_of_something_else_is_none() {
        let bytes = bytes(3 * PIECE_BYTES + 5);
        let (id, outline) = Outline::of_reader(&mut &bytes[..]).unwrap();
        let written = outline.write();
        for at in 0..written.len() {
            let mut wrong = written.clone();
            wrong[at] ^= 1;
            assert_eq!(Outline::read(&id, outline.n_bytes(), &wrong), None);
        }
        for n in 0..written.len() {
            assert_eq!(Outline::read(&id, outline.n_bytes(), &written[..n]), None);
        }
        assert_eq!(Outline::read(&id, u64::MAX, &written), None);
    }

    #[test]
    fn a_name_is_64_digits() {
        let id = BlobId::of(b"x");
        assert_eq!(BlobId::read(&id.to_string()), Some(id));
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<BlobId>(&text).unwrap(), id);
        for wrong in ["", "../../etc/passwd", &"g".repeat(64), &"A".repeat(64), &"a".repeat(63)] {
            assert_eq!(BlobId::read(wrong), None, "{wrong}");
        }
    }
}
