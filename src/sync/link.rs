//! The machine: two logs, one each way, of which each side keeps what the other may still need.
//!
//! ```text
//! outbox   base | acked by the peer, kept for now | waiting … last      seq grows by one
//! inbox    cursor: applied up to here, without gaps; ids of what was applied
//! ```
//!
//! 1. A change appends an entry in the transaction that makes it.
//! 2. A message carries entries behind what the peer has, and the mark before them.
//! 3. An entry is taken exactly if the mark before it is the cursor, as Raft's followers do: what
//!    comes twice, late or out of order meets another cursor and does nothing.
//! 4. The cursor goes back with the next message; that is the acknowledgement.
//! 5. A cursor that my log does not contain means that my store went back in time. Then my log is
//!    laid anew behind that cursor; what the peer had of it is known to it by id.
//! 6. A cursor that goes back means that the peer's store did; it gets again what is still kept.
//!    Only an answer to what I said since it last moved is believed so much: see [`Talk`].
//!
//! An entry that cannot take effect is set aside, and the cursor moves on. The outbox is bounded:
//! the oldest go first, those that the peer has before those that it has not, and each of the
//! latter is counted and told.
//!
//! Who has another log than ours again and again is refused for a while: a log that is laid anew
//! costs a pass over the whole outbox, and two machines under one name would ask for it for ever.
//!
//! Functions here have no clock, no randomness and no disk of their own; each is one transaction.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clock::{hear as hear_clock, is_ahead, tick};
use super::disk::{Disk, Front};
use super::rules::{Record, Verdict, Writer, check, inherit, judge, may_write, ranked};
use super::wire::{ENTRY_BYTES, Entry, Limits, Mark, Message};
use crate::base::limits::{
    SYNC_DEPTH_MAX, SYNC_ENTRY_BYTES_MAX, SYNC_FORK_EVERY_MS, SYNC_FORKS_MAX, SYNC_HEARD_EVERY_MS,
    SYNC_JUMP_MAX, SYNC_KEEP_BYTES_MAX, SYNC_KEEP_MAX, SYNC_OUTBOX_BYTES_MAX, SYNC_OUTBOX_MAX,
};

/// What is kept of a link, beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// The newest of our entries that is gone.
    pub base: Mark,
    /// Our newest.
    pub last: u64,
    /// The newest that the peer has.
    pub acked: u64,
    /// What our entries take.
    pub n_bytes: u64,
    /// Entries that went before the peer had them.
    pub n_lost: u64,
    /// The newest of the peer's that is applied here.
    pub cursor: Mark,
    /// The peer's newest, as it last said.
    pub their_last: u64,
    /// Entries that the peer let go before we had them, as it last said.
    pub their_lost: u64,
    /// Entries of the peer that were gone before they came here.
    pub n_missed: u64,
    /// Our entries that the peer missed, as it last said.
    pub their_missed: u64,
    /// Lost entries of both sides that somebody has seen.
    pub n_lost_seen: u64,
    /// What the peer can take; zeros until it has said so.
    pub limits: Limits,
    /// When it was last heard, by this machine's clock and to the hour.
    pub heard_ms: i64,
    /// How often our log was laid anew of late.
    pub n_fork: u32,
    /// Since when that is counted.
    pub forked_ms: i64,
}

impl Link {
    /// Entries that the peer does not have.
    pub fn n_waiting(&self) -> u64 {
        self.last - self.sent_from()
    }

    /// The newest entry that need not be sent.
    pub fn sent_from(&self) -> u64 {
        self.acked.max(self.base.seq)
    }

    /// Lost entries of both sides that nobody has seen yet.
    pub fn n_lost_unseen(&self) -> u64 {
        self.n_lost_ever().saturating_sub(self.n_lost_seen)
    }

    /// Lost entries of both sides. Who lets one go cannot know whether it had come; who misses one
    /// hears of it later.
    pub fn n_lost_ever(&self) -> u64 {
        self.n_lost.max(self.their_missed) + self.n_missed.max(self.their_lost)
    }

    /// Entries of the peer that are not here yet.
    pub fn n_to_come(&self) -> u64 {
        self.their_last.saturating_sub(self.cursor.seq)
    }
}

/// What an outbox may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries.
    pub n_max: u64,
    /// Bytes.
    pub bytes_max: u64,
    /// Entries that stay though the peer has them, in case that its store goes back in time. They
    /// are counted, since a clock may jump by years.
    pub n_keep: u64,
    /// What all may take while some of them stay for that alone.
    pub keep_bytes: u64,
    /// How often a log may be laid anew; one more each [`SYNC_FORK_EVERY_MS`].
    pub n_fork: u32,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            n_max: SYNC_OUTBOX_MAX,
            bytes_max: SYNC_OUTBOX_BYTES_MAX,
            n_keep: SYNC_KEEP_MAX,
            keep_bytes: SYNC_KEEP_BYTES_MAX,
            n_fork: SYNC_FORKS_MAX,
        }
    }
}

/// Messages whose answers are believed at a time.
const SAID_MAX: usize = 8;

/// Names of the last messages of a conversation; it need not outlive the program.
///
/// An answer shows what the peer had after it heard the message. If that is less than we knew
/// before we said it, the peer's store went back in time; if we came to know it later, the answer
/// may have been overtaken. So what was said since the last news counts, not the last word alone:
/// two that call each other at the same moments would never see an answer to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talk {
    /// Said since what the peer has changed, the last first.
    said: [u64; SAID_MAX],
    heard: u64,
}

impl Talk {
    /// Whether a message answers one that was said here since the peer's mark last moved.
    pub fn is_fresh(&self, message: &Message) -> bool {
        message.re != 0 && self.said.contains(&message.re)
    }

    /// The name of the last message that was heard.
    pub fn last_heard(&self) -> u64 {
        self.heard
    }

    /// Remembers the name of what will be said; before it is composed, so that no news that comes
    /// between is taken for older than it.
    pub fn say(&mut self, nonce: u64) {
        self.said.rotate_right(1);
        self.said[0] = nonce;
    }

    /// Remembers the name of what was heard, and whether it moved the peer's mark.
    pub fn heard(&mut self, nonce: u64, is_moved: bool) {
        self.heard = nonce;
        if is_moved {
            self.said = [0; SAID_MAX];
        }
    }
}

/// A change of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// See [`super::rules`].
    pub kind: String,
    /// Which thing.
    pub key: String,
    /// See [`super::rules`].
    pub rank: u8,
    /// What it is now.
    pub body: serde_json::Value,
    /// The one peer that hears of it; `None` for all.
    pub to: Option<String>,
    /// Another table has what it is, so that the record here need not.
    pub is_elsewhere: bool,
}

/// What a message did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Entries that took effect.
    pub n_applied: usize,
    /// Entries that had before.
    pub n_known: usize,
    /// Entries that were set aside.
    pub n_held: usize,
    /// Our log was laid anew.
    pub is_forked: bool,
    /// It would have been, once too often: the message did nothing.
    pub is_refused: bool,
    /// What the peer has of our log is something else than before.
    pub is_moved: bool,
    /// Another exchange brings more.
    pub has_more: bool,
}

/// Writes a change and tells the peers; whether it counts: something may be known that goes before
/// it, such as the answer of a job that is to be cancelled, or the thing may be another's. `id` is
/// drawn anew.
///
/// # Errors
/// If the disk does not take it.
pub fn change<D: Disk>(
    disk: &mut D,
    change: Change,
    id: u64,
    now_ms: i64,
    bounds: &Bounds,
) -> Result<bool, D::Error> {
    let origin = disk.node().to_owned();
    let known = disk.record(&change.kind, &change.key)?;
    let over = known.as_ref().map(|record| record.entry.at);
    let clock = tick(disk.clock()?, now_ms);
    let at = over.map_or(clock, |over| clock.max(over.next()));
    let Change { kind, key, rank, body, to, is_elsewhere } = change;
    let rank = ranked(&kind, rank, known.as_ref());
    let body = match depth(&body) > SYNC_DEPTH_MAX {
        // No reader would take the message, nor any that comes after it.
        true => json!({ "left_out": "it is nested too deeply to be sent" }),
        false => body,
    };
    let entry = Entry { seq: 0, id, at, over, kind, key, rank, body };
    // Whose machine this is may set what it likes on it.
    let writer = Writer { node: &origin, is_hub: true };
    if may_write(&entry, &writer, known.as_ref()).is_err() {
        return Ok(false);
    }
    if known.as_ref().is_some_and(|known| judge(known, &origin, &entry) == Verdict::Passed) {
        return Ok(false);
    }
    disk.set_clock(clock)?;
    for peer in disk.peers()? {
        if to.as_ref().is_none_or(|to| *to == peer) {
            push(disk, &peer, entry.clone(), now_ms, bounds)?;
        }
    }
    let mut record = Record { origin, entry };
    if is_elsewhere {
        record.entry.body = serde_json::Value::Null;
    } else if let Some(known) = &known {
        inherit(known, &mut record);
    }
    disk.put_record(&record)?;
    Ok(true)
}

fn push<D: Disk>(
    disk: &mut D,
    peer: &str,
    entry: Entry,
    written_ms: i64,
    bounds: &Bounds,
) -> Result<(), D::Error> {
    let mut link = disk.link(peer)?;
    link.last += 1;
    let n_bytes = size(&entry) as u64;
    link.n_bytes += n_bytes;
    let front = Front { seq: link.last, id: entry.id, n_bytes, written_ms };
    disk.put_entry(peer, &Entry { seq: link.last, ..entry }, front)?;
    trim(disk, peer, &mut link, bounds)?;
    disk.set_link(peer, &link)
}

/// How deeply a value is nested.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// What an entry takes, on the disk and in a message.
pub fn size(entry: &Entry) -> usize {
    entry.body.to_string().len() + entry.key.len() + ENTRY_BYTES
}

/// Removes from the outbox what need not or cannot be kept.
fn trim<D: Disk>(
    disk: &mut D,
    peer: &str,
    link: &mut Link,
    bounds: &Bounds,
) -> Result<(), D::Error> {
    while let Some(front) = disk.front(peer)? {
        let n = link.last - link.base.seq;
        let is_over = n > bounds.n_max || link.n_bytes > bounds.bytes_max;
        let n_spare = link.acked.saturating_sub(link.base.seq);
        let has_it = n_spare > 0;
        let is_spare = n_spare > bounds.n_keep || link.n_bytes > bounds.keep_bytes;
        let goes = is_over || (has_it && is_spare);
        if !goes {
            break;
        }
        disk.drop_entry(peer, front.seq)?;
        link.base = Mark { seq: front.seq, id: front.id };
        link.n_bytes = link.n_bytes.saturating_sub(front.n_bytes);
        link.n_lost += u64::from(!has_it);
    }
    Ok(())
}

/// Takes a message of a peer. `is_fresh` says that it answers one of ours: see [`Talk`].
///
/// # Errors
/// If the disk does not take it; then nothing of it has happened.
pub fn hear<D: Disk>(
    disk: &mut D,
    peer: &str,
    message: &Message,
    is_fresh: bool,
    now_ms: i64,
    bounds: &Bounds,
) -> Result<Heard, D::Error> {
    let before = disk.link(peer)?;
    let mut link = before;
    // No log grows so much between two messages; who says so would push ours out of its range.
    let jumps = |to: u64, from: u64| to > from.saturating_add(SYNC_JUMP_MAX);
    if jumps(message.has.seq, link.last) || jumps(message.base.seq, link.cursor.seq) {
        return Ok(Heard::default());
    }
    let mut heard = Heard::default();
    match hear_mark(disk, peer, &mut link, message.has, is_fresh, now_ms, bounds)? {
        Marked::Ours => {}
        Marked::Forked => heard.is_forked = true,
        Marked::TooOften => return Ok(Heard { is_refused: true, ..heard }),
    }
    // What the peer no longer keeps will not come.
    if message.base.seq > link.cursor.seq {
        link.n_missed += message.base.seq - link.cursor.seq;
        link.cursor = message.base;
    }
    let mut at = message.prev;
    for entry in &message.entries {
        if entry.seq != at.seq + 1 {
            break;
        }
        if at == link.cursor {
            take(disk, peer, entry, now_ms, &mut heard)?;
            link.cursor = entry.mark();
        }
        at = entry.mark();
    }
    if link.cursor != before.cursor {
        let clock = disk.clock()?;
        disk.set_clock(hear_clock(clock, message.clock, now_ms))?;
    }
    link.their_last = message.last;
    link.their_lost = message.n_lost;
    link.their_missed = message.n_missed;
    link.limits = message.hello.limits.within(Limits::OURS);
    trim(disk, peer, &mut link, bounds)?;
    let is_news = link != before;
    // A disk of flash is not written to each time that nothing is said.
    if is_news || !(0..SYNC_HEARD_EVERY_MS).contains(&(now_ms - before.heard_ms)) {
        disk.set_link(peer, &Link { heard_ms: now_ms, ..link })?;
    }
    heard.is_moved = heard.is_forked || link.acked != before.acked;
    let is_done = link.n_waiting() == 0 && link.n_to_come() == 0;
    let is_told = link.cursor == before.cursor;
    heard.has_more = is_news && !heard.is_forked && !(is_done && is_told);
    Ok(heard)
}

/// What the peer has of our log.
enum Marked {
    /// A place in it.
    Ours,
    /// Of another one; ours was laid anew behind that.
    Forked,
    /// Of another one, and that once too often.
    TooOften,
}

/// Hears what the peer has of our log.
fn hear_mark<D: Disk>(
    disk: &mut D,
    peer: &str,
    link: &mut Link,
    has: Mark,
    is_fresh: bool,
    now_ms: i64,
    bounds: &Bounds,
) -> Result<Marked, D::Error> {
    let ours = match has.seq {
        seq if seq == link.base.seq => Some(link.base.id),
        seq if seq > link.base.seq && seq <= link.last => disk.entry_id(peer, seq)?,
        _ => None,
    };
    if has.seq > link.last || ours.is_some_and(|id| id != has.id) {
        if !may_fork(link, now_ms, bounds) {
            return Ok(Marked::TooOften);
        }
        // Both cases are at or behind the base, so entries only move up.
        let n = has.seq - link.base.seq;
        if n > 0 {
            disk.shift_entries(peer, n)?;
        }
        *link = Link { base: has, last: link.last + n, acked: has.seq, ..*link };
        return Ok(Marked::Forked);
    }
    // Less than before is believed of an answer to what was said since: see `Talk`.
    if is_fresh || has.seq > link.acked {
        link.acked = has.seq;
    }
    Ok(Marked::Ours)
}

/// Counts one more log that is laid anew, if it may be.
fn may_fork(link: &mut Link, now_ms: i64, bounds: &Bounds) -> bool {
    // A clock that was set back gives nothing and takes nothing.
    let n_back = (now_ms - link.forked_ms).max(0) / SYNC_FORK_EVERY_MS;
    if n_back > 0 || link.forked_ms > now_ms {
        link.n_fork = link.n_fork.saturating_sub(u32::try_from(n_back).unwrap_or(u32::MAX));
        link.forked_ms = now_ms;
    }
    let may = link.n_fork < bounds.n_fork;
    link.n_fork += u32::from(may);
    may
}

/// Lets an entry take effect once, or sets it aside.
fn take<D: Disk>(
    disk: &mut D,
    peer: &str,
    entry: &Entry,
    now_ms: i64,
    heard: &mut Heard,
) -> Result<(), D::Error> {
    if !disk.is_new(peer, entry.id)? {
        heard.n_known += 1;
        return Ok(());
    }
    if size(entry) > SYNC_ENTRY_BYTES_MAX + 4 * ENTRY_BYTES {
        heard.n_held += 1;
        let bare = Entry { body: Value::Null, ..entry.clone() };
        return disk.hold(peer, &bare, "it was larger than an entry may be, and is not kept");
    }
    match retry(disk, peer, entry, now_ms)? {
        Ok(()) => {
            heard.n_applied += 1;
            Ok(())
        }
        Err(why) => {
            heard.n_held += 1;
            disk.hold(peer, entry, &why)
        }
    }
}

/// What a peer said that it can take.
///
/// # Errors
/// If the disk does not give it.
pub fn known_limits<D: Disk>(disk: &mut D, peer: &str) -> Result<Limits, D::Error> {
    Ok(disk.link(peer)?.limits)
}

/// Somebody has seen what was lost.
///
/// # Errors
/// If the disk does not take it.
pub fn forget_lost<D: Disk>(disk: &mut D, peer: &str) -> Result<(), D::Error> {
    let link = disk.link(peer)?;
    let seen = Link { n_lost_seen: link.n_lost_ever(), ..link };
    if seen != link {
        disk.set_link(peer, &seen)?;
    }
    Ok(())
}

/// Lets an entry take effect, also one that was set aside; why it cannot.
///
/// # Errors
/// If the disk does not take it.
pub fn retry<D: Disk>(
    disk: &mut D,
    peer: &str,
    entry: &Entry,
    now_ms: i64,
) -> Result<Result<(), String>, D::Error> {
    if let Err(why) = check(entry) {
        return Ok(Err(why));
    }
    let known = disk.record(&entry.kind, &entry.key)?;
    let writer = Writer { node: peer, is_hub: disk.is_hub(peer)? };
    let is_next = known.as_ref().is_some_and(|known| entry.at <= known.entry.at.next());
    if !is_next && is_ahead(entry.at, now_ms) {
        let why = "its time is years ahead of this machine's; set the clocks, then try it again";
        return Ok(Err(why.to_owned()));
    }
    match may_write(entry, &writer, known.as_ref()) {
        Ok(()) => settle(disk, peer, entry, known).map(Ok),
        Err(why) => Ok(Err(why)),
    }
}

fn settle<D: Disk>(
    disk: &mut D,
    peer: &str,
    entry: &Entry,
    known: Option<Record>,
) -> Result<(), D::Error> {
    let mut new = Record { origin: peer.to_owned(), entry: entry.clone() };
    match known {
        None => disk.put_record(&new)?,
        Some(known) => match judge(&known, peer, entry) {
            Verdict::Succeeds => {
                inherit(&known, &mut new);
                disk.put_record(&new)?;
            }
            Verdict::Wins => {
                inherit(&known, &mut new);
                disk.put_copy(&known)?;
                disk.put_record(&new)?;
            }
            Verdict::Loses => disk.put_copy(&new)?,
            Verdict::Passed => {}
        },
    }
    disk.act(peer, entry)
}
