//! What waits, as a file for a stick: sealed with what the pair knows and nobody else.
//!
//! ```text
//! {"from": "5d3c…", "to": "a07e…", "what": "message", "n_bytes": 4711}     a line for each frame
//! 4711 sealed bytes, and a line's end
//! ```
//!
//! Behind the messages stand, where somebody asks for them, this machine's files as frames of what
//! is said about blobs.
//!
//! Both machines know the SHA-256 of each other's keys, which never cross the wire as such; they
//! make the key of the seal. Whoever finds the stick reads who wrote to whom and how much. Frames
//! that were cut, changed, or written by somebody else do not open; one that is read twice does
//! nothing the second time, as any message does.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::SyncError;
use super::blob::{Ask, BlobId, Haul, Progress, n_piece};
use super::node::{Node, draw};
use super::say;
use super::wire::{Entry, Mark, Refusal};
use crate::base::limits::{STICK_HEAD_BYTES_MAX, SYNC_MESSAGE_BYTES_MAX};
use crate::seal::{KEY_LEN, Sealer, TAG_LEN};
use crate::store::Peer;

/// What a seal adds to a text.
const SEAL_BYTES: usize = KEY_LEN + TAG_LEN;

/// The line before the bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickHead {
    /// Who wrote it.
    pub from: String,
    /// For whom.
    pub to: String,
    /// What it is: `message` or `blob`.
    pub what: String,
    /// Bytes behind the line.
    pub n_bytes: usize,
    /// Entries of a message.
    #[serde(default)]
    pub n_entry: usize,
    /// Behind which entry there is more to export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Mark>,
}

impl StickHead {
    /// The head of a frame.
    ///
    /// # Errors
    /// If there is none.
    pub fn read(line: &[u8]) -> Result<StickHead, Refusal> {
        let head: StickHead = serde_json::from_slice(line)
            .map_err(|error| foreign(format!("this is no file of `sync export`: {error}")))?;
        if head.n_bytes > SYNC_MESSAGE_BYTES_MAX + SEAL_BYTES {
            return Err(foreign(format!("a frame of {} bytes is too long", head.n_bytes)));
        }
        Ok(head)
    }
}

/// What a file for a stick brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Entries that took effect.
    pub n_applied: usize,
    /// Blobs of which pieces stood in it, and whether they are here whole now.
    pub blobs: BTreeMap<BlobId, bool>,
}

impl Imported {
    /// Blobs of it that are not here whole.
    pub fn n_missing(&self) -> usize {
        self.blobs.values().filter(|is_whole| !**is_whole).count()
    }
}

/// The next frame of a file, with its head and the line's end; `None` at the end.
///
/// # Errors
/// If the file cannot be read, or is none.
pub fn read_frame(file: &mut dyn BufRead) -> Result<Option<(StickHead, Vec<u8>)>, SyncError> {
    let failed = |source| SyncError::File { source };
    let mut frame = Vec::new();
    let mut line = (&mut *file).take(STICK_HEAD_BYTES_MAX);
    if line.read_until(b'\n', &mut frame).map_err(failed)? == 0 {
        return Ok(None);
    }
    let head = StickHead::read(&frame)?;
    let n = head.n_bytes as u64 + 1;
    if (&mut *file).take(n).read_to_end(&mut frame).map_err(failed)? as u64 != n {
        return Err(foreign("the file is cut off".to_owned()).into());
    }
    Ok(Some((head, frame)))
}

/// What there is to ask for of a blob: its outline, and each piece.
pub fn asks_of(id: BlobId, n_bytes: u64) -> impl Iterator<Item = Ask> {
    let outline = (n_piece(n_bytes) > 1).then_some(Ask { id, piece: None });
    let piece = move |piece| Ask { id, piece: Some(piece) };
    outline.into_iter().chain((0..n_piece(n_bytes)).map(piece))
}

fn foreign(why: String) -> Refusal {
    Refusal::Foreign { why }
}

fn sealer(peer: &Peer) -> Sealer {
    let mut digests = [Sha256::digest(peer.key.as_bytes()).into(), peer.key_digest];
    digests.sort_unstable();
    Sealer::new(&Sha256::digest(digests.concat()).into(), "jetforge sync stick")
}

fn seal_name(what: &str, from: &str, to: &str) -> String {
    format!("{what} from {from} to {to}")
}

impl Node {
    /// What waits for a peer behind a mark, as a frame.
    ///
    /// # Errors
    /// If there is no such peer, or the store cannot be read.
    pub fn export_page(&self, peer: &str, from: Option<Mark>) -> Result<Vec<u8>, SyncError> {
        if let Some(moved) = self.moved() {
            return Err(moved.into());
        }
        let unpaired = || Refusal::Unpaired { node: peer.to_owned() };
        let known = self.store().peer(peer)?.ok_or_else(unpaired)?;
        let (hello, nonce) = (self.hello(), draw()?);
        let message = self.look(|ledger| say::compose_from(ledger, peer, &hello, nonce, from))?;
        let next = message.entries.last().map(Entry::mark).filter(|mark| mark.seq < message.last);
        self.frame(&known, "message", &message.write(), message.entries.len(), next)
    }

    /// A piece of a blob of this machine, or its outline, as a frame; `None` if it is not here.
    ///
    /// # Errors
    /// As [`Node::export_page`].
    pub fn export_piece(&self, peer: &str, ask: Ask) -> Result<Option<Vec<u8>>, SyncError> {
        if let Some(moved) = self.moved() {
            return Err(moved.into());
        }
        let unpaired = || Refusal::Unpaired { node: peer.to_owned() };
        let known = self.store().peer(peer)?.ok_or_else(unpaired)?;
        let found = self.vault().give(&ask).map_err(|source| SyncError::File { source })?;
        let Some(bytes) = found else { return Ok(None) };
        let haul = Haul { gives: Some((ask, bytes)), ..Haul::default() };
        self.frame(&known, "blob", &haul.write(), 0, None).map(Some)
    }

    fn frame(
        &self,
        peer: &Peer,
        what: &str,
        text: &[u8],
        n_entry: usize,
        next: Option<Mark>,
    ) -> Result<Vec<u8>, SyncError> {
        let name = seal_name(what, self.node(), &peer.node);
        let sealed = sealer(peer).wrap(&name, text);
        let sealed = sealed.map_err(|source| SyncError::File { source })?;
        let head = StickHead {
            from: self.node().to_owned(),
            to: peer.node.clone(),
            what: what.to_owned(),
            n_bytes: sealed.len(),
            n_entry,
            next,
        };
        let mut frame = serde_json::to_vec(&head).unwrap_or_default();
        frame.push(b'\n');
        frame.extend_from_slice(&sealed);
        frame.push(b'\n');
        Ok(frame)
    }

    /// Writes this machine's files for every peer as frames; how many files.
    ///
    /// # Errors
    /// As [`Node::export`].
    pub fn export_files(&self, out: &mut dyn Write) -> Result<usize, SyncError> {
        let files = self.files()?;
        let own = files.iter().filter(|file| file.node == self.node() && !file.name.is_empty());
        let mut n_file = 0;
        for file in own.filter(|file| file.progress == Progress::Whole) {
            n_file += 1;
            for peer in self.peers()? {
                for ask in asks_of(file.id, file.n_bytes) {
                    let frame = self.export_piece(&peer.node, ask)?.unwrap_or_default();
                    out.write_all(&frame).map_err(|source| SyncError::File { source })?;
                }
            }
        }
        Ok(n_file)
    }

    /// Writes all that waits for every peer as frames; how many entries.
    ///
    /// # Errors
    /// If the store cannot be read or the writer fails.
    pub fn export(&self, out: &mut dyn Write) -> Result<usize, SyncError> {
        let mut n_entry = 0;
        for peer in self.peers()? {
            let mut from = None;
            loop {
                let frame = self.export_page(&peer.node, from)?;
                let line = frame.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let head = StickHead::read(line)?;
                n_entry += head.n_entry;
                out.write_all(&frame).map_err(|source| SyncError::File { source })?;
                from = head.next;
                if from.is_none() {
                    break;
                }
            }
        }
        Ok(n_entry)
    }

    /// Takes the frames for this node out of a file. Those for others are passed over.
    ///
    /// # Errors
    /// At the first frame that does not open; what came before it has taken effect.
    pub fn import(&self, file: &mut dyn BufRead) -> Result<Imported, SyncError> {
        let mut imported = Imported::default();
        while let Some((head, frame)) = read_frame(file)? {
            if head.to != self.node() {
                continue;
            }
            let Some(peer) = self.store().peer(&head.from)? else { continue };
            let at = frame.len() - 1 - head.n_bytes;
            let sealed = &frame[at..frame.len() - 1];
            let name = seal_name(&head.what, &head.from, &head.to);
            let text = sealer(&peer).unwrap(&name, sealed);
            let text = text.ok_or_else(|| Refusal::Unsealed { name: peer.name.clone() })?;
            if head.what == "blob" {
                let (hauled, _) = self.haul_hear(&head.from, &text)?;
                imported.blobs.extend(hauled.of.map(|id| (id, self.vault().is_whole(&id))));
                continue;
            }
            imported.n_applied += self.hear(&head.from, &text)?.n_applied;
            // What is behind it in the file may be what it speaks of.
            self.note_all_wants()?;
        }
        Ok(imported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_none_says_so() {
        for text in ["no file\n", "{}\n", "\n"] {
            assert!(read_frame(&mut text.as_bytes()).is_err(), "{text:?}");
        }
        let head = |n_bytes| StickHead {
            from: "a".into(),
            to: "b".into(),
            what: "message".into(),
            n_bytes,
            n_entry: 0,
            next: None,
        };
        let huge = serde_json::to_vec(&head(usize::MAX)).unwrap();
        assert!(StickHead::read(&huge).is_err());
        let mut cut = serde_json::to_vec(&head(9)).unwrap();
        cut.extend_from_slice(b"\n12345678");
        assert!(read_frame(&mut &cut[..]).is_err(), "cut off");
        assert_eq!(read_frame(&mut &b""[..]).unwrap(), None);
    }
}
