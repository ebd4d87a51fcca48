//! Blobs between two machines: who wants says from where on, who has gives the next piece.
//!
//! ```text
//! want  a blob, and what of it comes next: its outline, or piece n
//! give  that; checked by the blob's name, or by its outline, before it is kept
//! lack  blobs that were wanted and are not here
//! ```
//!
//! A message carries the wants of its sender and one piece for the other side, so both directions
//! move with each call, whoever calls. Nothing is remembered between two messages but what is on
//! the disk: a cut, a doubled or an old message gives a piece that is not the next one, and that
//! does nothing. Whole is what hashes to its name when all of it is read again from the disk. What
//! does not come though it is asked for is put off, so that it keeps nothing else from coming.

use serde::{Deserialize, Serialize};

use super::tree::{BlobId, Outline, PIECE_BYTES, n_piece};
use crate::base::limits::{SYNC_BLOB_HEAD_BYTES_MAX, SYNC_WANTS_MAX};
use crate::sync::Refusal;

/// Bytes of a message about blobs.
pub const HAUL_BYTES_MAX: usize = PIECE_BYTES + SYNC_BLOB_HEAD_BYTES_MAX;

/// A blob that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which.
    pub id: BlobId,
    /// Its bytes, as its writer says.
    pub n_bytes: u64,
}

/// What is asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Of which blob.
    pub id: BlobId,
    /// A piece; the outline if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub piece: Option<u64>,
}

/// What is said; the bytes of what is given follow it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    #[serde(default)]
    wants: Vec<Ask>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gives: Option<Ask>,
    #[serde(default)]
    lacks: Vec<BlobId>,
}

/// A message about blobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Haul {
    /// What its sender asks for.
    pub wants: Vec<Ask>,
    /// What it gives: the answer to an ask of the other side.
    pub gives: Option<(Ask, Vec<u8>)>,
    /// What was asked for and is not there.
    pub lacks: Vec<BlobId>,
}

impl Haul {
    /// Reads a message.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(bytes: &[u8]) -> Result<Haul, Refusal> {
        let foreign = |why: String| Refusal::Foreign { why };
        let end = bytes.iter().take(SYNC_BLOB_HEAD_BYTES_MAX).position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| foreign("it has no first line".to_owned()))?;
        let head: Head =
            serde_json::from_slice(&bytes[..end]).map_err(|error| foreign(error.to_string()))?;
        let rest = &bytes[end + 1..];
        if rest.len() > PIECE_BYTES || head.wants.len().max(head.lacks.len()) > SYNC_WANTS_MAX {
            return Err(foreign("it has more than a message may".to_owned()));
        }
        let gives = head.gives.map(|ask| (ask, rest.to_vec()));
        Ok(Haul { wants: head.wants, gives, lacks: head.lacks })
    }

    /// The message as it travels.
    pub fn write(&self) -> Vec<u8> {
        let gives = self.gives.as_ref().map(|(ask, _)| *ask);
        let head = Head { wants: self.wants.clone(), gives, lacks: self.lacks.clone() };
        let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
        bytes.push(b'\n');
        if let Some((_, piece)) = &self.gives {
            bytes.extend_from_slice(piece);
        }
        bytes
    }
}

/// Why a blob does not come that its sender let go.
pub const LACKING: &str = "the other machine does not have it any more";
/// Why a blob does not come whose pieces are not what its name says.
const WRONG: &str = "what the other machine gives is not this file; have it sent again";

/// The blobs of a machine, as they are kept.
pub trait Hold {
    /// Why it does not work.
    type Error;

    /// What is to come from a peer and has room, [`SYNC_WANTS_MAX`] at most: the oldest want first,
    /// and behind all others what was put off, the least often put off first.
    fn wants(&mut self, peer: &str) -> Result<Vec<Want>, Self::Error>;
    /// One blob that is to come from a peer and has room, wherever it stands among its wants.
    fn want_of(&mut self, peer: &str, id: &BlobId) -> Result<Option<Want>, Self::Error>;
    /// The outline of a blob that is coming.
    fn outline(&mut self, id: &BlobId) -> Result<Option<Vec<u8>>, Self::Error>;
    /// Keeps the outline of a blob that is coming.
    fn put_outline(&mut self, id: &BlobId, outline: &[u8]) -> Result<(), Self::Error>;
    /// Pieces that are here of a blob that is coming, from the first on.
    fn n_here(&mut self, id: &BlobId, outline: &Outline) -> Result<u64, Self::Error>;
    /// Keeps the next piece of a blob that is coming.
    fn append(&mut self, id: &BlobId, i: u64, piece: &[u8]) -> Result<(), Self::Error>;
    /// Reads all of a blob that has come: makes it visible if it is what it should be, and cuts it
    /// back to what is right of it if not. Whether it is.
    fn finish(&mut self, id: &BlobId, outline: &Outline) -> Result<bool, Self::Error>;
    /// What is asked for of a blob that is here whole, if it is still what it should be.
    fn give(&mut self, ask: &Ask) -> Result<Option<Vec<u8>>, Self::Error>;
    /// What was asked of a peer did not come: others are asked for before it.
    fn put_off(&mut self, peer: &str, id: &BlobId, why: &str) -> Result<(), Self::Error>;
}

/// What a message did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hauled {
    /// Of which blob something was given.
    pub of: Option<BlobId>,
    /// A piece or an outline was kept.
    pub is_kept: bool,
    /// What was given is not what it should be.
    pub is_wrong: bool,
}

/// What is said to a peer that asked for `asked` last.
///
/// # Errors
/// If the disk does not give it.
pub fn speak<H: Hold>(hold: &mut H, peer: &str, asked: &[Ask]) -> Result<Haul, H::Error> {
    let mut haul = Haul::default();
    for want in hold.wants(peer)? {
        haul.wants.extend(next_ask(hold, &want)?);
    }
    for ask in asked.iter().take(SYNC_WANTS_MAX) {
        match hold.give(ask)? {
            Some(bytes) => {
                haul.gives = Some((*ask, bytes));
                break;
            }
            None => haul.lacks.push(ask.id),
        }
    }
    Ok(haul)
}

/// What is to come next of a blob.
fn next_ask<H: Hold>(hold: &mut H, want: &Want) -> Result<Option<Ask>, H::Error> {
    let Some(outline) = known(hold, want)? else {
        return Ok(Some(Ask { id: want.id, piece: None }));
    };
    let n_here = hold.n_here(&want.id, &outline)?;
    if n_here < outline.n_piece() {
        return Ok(Some(Ask { id: want.id, piece: Some(n_here) }));
    }
    // The power went between the last piece and the look at all of them.
    match hold.finish(&want.id, &outline)? {
        true => Ok(None),
        false => {
            let n_here = hold.n_here(&want.id, &outline)?;
            Ok(Some(Ask { id: want.id, piece: Some(n_here) }))
        }
    }
}

fn known<H: Hold>(hold: &mut H, want: &Want) -> Result<Option<Outline>, H::Error> {
    // One piece is its own outline.
    if n_piece(want.n_bytes) == 1 {
        return Ok(Outline::of_one(&want.id, want.n_bytes));
    }
    let bytes = hold.outline(&want.id)?;
    Ok(bytes.and_then(|bytes| Outline::read(&want.id, want.n_bytes, &bytes)))
}

/// Takes what a peer gave.
///
/// # Errors
/// If the disk does not take it; then it comes again.
pub fn hear<H: Hold>(hold: &mut H, peer: &str, haul: &Haul) -> Result<Hauled, H::Error> {
    for id in &haul.lacks {
        hold.put_off(peer, id, LACKING)?;
    }
    let mut hauled = Hauled::default();
    let Some((ask, bytes)) = &haul.gives else { return Ok(hauled) };
    hauled.of = Some(ask.id);
    // Nobody puts anything here that was not wanted.
    let Some(want) = hold.want_of(peer, &ask.id)? else { return Ok(hauled) };
    let outline = known(hold, &want)?;
    match (ask.piece, outline) {
        (None, None) => match Outline::read(&want.id, want.n_bytes, bytes) {
            Some(outline) => {
                hold.put_outline(&want.id, &outline.write())?;
                hauled.is_kept = true;
            }
            None => {
                hauled.is_wrong = true;
                hold.put_off(peer, &want.id, WRONG)?;
            }
        },
        (Some(i), Some(outline)) if i == hold.n_here(&want.id, &outline)? => {
            if !outline.holds(i, bytes) {
                hauled.is_wrong = true;
                hold.put_off(peer, &want.id, WRONG)?;
                return Ok(hauled);
            }
            hold.append(&want.id, i, bytes)?;
            hauled.is_kept = true;
            if i + 1 == outline.n_piece() {
                hold.finish(&want.id, &outline)?;
            }
        }
        // It came twice or late.
        _ => {}
    }
    Ok(hauled)
}
