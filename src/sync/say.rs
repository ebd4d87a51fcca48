//! What is said to a peer: entries behind what it has, no more than it takes.

use serde_json::json;

use super::disk::Disk;
use super::link::{Talk, size};
use super::rules::VOID;
use super::wire::{Entry, Hello, Limits, Mark, Message};

/// What is to be said to a peer that can take `limits`. `nonce` is drawn anew, not 0, and known to
/// `talk` already.
///
/// # Errors
/// If the disk does not give it.
pub fn compose<D: Disk>(
    disk: &mut D,
    peer: &str,
    hello: &Hello,
    talk: &Talk,
    nonce: u64,
    limits: Limits,
) -> Result<Message, D::Error> {
    let link = disk.link(peer)?;
    let from = link.sent_from();
    let prev = match from == link.base.seq {
        true => link.base,
        false => Mark { seq: from, id: disk.entry_id(peer, from)?.unwrap_or_default() },
    };
    let message = message_from(disk, peer, hello, prev, &limits)?;
    Ok(Message { nonce, re: talk.last_heard(), ..message })
}

/// The same for a file, from behind `from` on: nobody has to ask for it, and it answers nothing.
///
/// # Errors
/// If the disk does not give it.
pub fn compose_from<D: Disk>(
    disk: &mut D,
    peer: &str,
    hello: &Hello,
    nonce: u64,
    from: Option<Mark>,
) -> Result<Message, D::Error> {
    let link = disk.link(peer)?;
    let limits = match link.limits.n_entry {
        0 => Limits::OURS,
        _ => link.limits,
    };
    match from {
        Some(mark) if mark.seq >= link.base.seq => {
            let message = message_from(disk, peer, hello, mark, &limits)?;
            Ok(Message { nonce, ..message })
        }
        _ => compose(disk, peer, hello, &Talk::default(), nonce, limits),
    }
}

/// A message without a name whose entries come behind `prev`.
fn message_from<D: Disk>(
    disk: &mut D,
    peer: &str,
    hello: &Hello,
    prev: Mark,
    limits: &Limits,
) -> Result<Message, D::Error> {
    let link = disk.link(peer)?;
    let n_left = link.last.saturating_sub(prev.seq) as usize;
    let entries = match limits.n_entry.min(n_left) {
        0 => Vec::new(),
        n => disk.entries(peer, prev.seq + 1, n, limits.message_bytes / 2)?,
    };
    Ok(Message {
        hello: hello.clone(),
        to: peer.to_owned(),
        nonce: 0,
        re: 0,
        clock: disk.clock()?,
        has: link.cursor,
        base: link.base,
        prev,
        last: link.last,
        n_lost: link.n_lost,
        n_missed: link.n_missed,
        entries: entries.into_iter().map(|entry| fitting(entry, limits)).collect(),
    })
}

/// An entry, or that it is more than the peer takes.
fn fitting(entry: Entry, limits: &Limits) -> Entry {
    let n = size(&entry);
    if n <= limits.entry_bytes {
        return entry;
    }
    let why = format!("it has {n} bytes, and this machine takes {}", limits.entry_bytes);
    let body = json!({ "kind": entry.kind, "why": why });
    Entry { kind: VOID.to_owned(), over: None, rank: 0, body, ..entry }
}
