//! A node: the machine over the store, with what need not outlive the program.
//!
//! ```text
//! change, jobs -> outbox                  ask -> the peer -> hear       we call
//! how each link stands                    answer                        it calls
//! ```
//!
//! Nothing here knows a network: messages are bytes. Methods wait for the disk.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use subtle::ConstantTimeEq;

use super::SyncError;
use super::disk::Disk;
use super::ledger::{Ledger, record_of};
use super::link::{self, Bounds, Change, Heard, Talk};
use super::pace::Pace;
use super::rules::Record;
use super::standing::Standing;
use super::tell::JobTeller;
use super::wire::{Entry, Hello, Limits, Mark, Message, Refusal, SPEAKS};
use crate::base::limits::{SYNC_ACTS_MAX, SYNC_MESSAGE_BYTES_MAX};
use crate::seal;
use crate::store::{ActRow, Peer, Store, SyncTx, now_ms};

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Node(Arc<Shared>);

struct Shared {
    store: Store,
    node: String,
    started: Instant,
    live: Mutex<BTreeMap<String, Live>>,
}

/// What is known of a peer while the program runs.
#[derive(Clone, Debug, Default)]
struct Live {
    talk: Talk,
    pace: Pace,
    trouble: Option<String>,
    heard_ms: Option<i64>,
    /// The newest entry when it was last looked for.
    last_seen: u64,
}

/// How a peer stands.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStanding {
    /// The peer, without its key.
    pub peer: Peer,
    /// How it stands.
    pub standing: Standing,
    /// When it was last heard, if it was since the program began.
    pub heard_ms: Option<i64>,
    /// Calls that failed since the last one that did not.
    pub n_failed: u32,
}

/// An entry that was set aside.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Held {
    pub n: i64,
    pub peer: String,
    pub why: String,
    pub held_ms: i64,
    /// `None` if it cannot be read.
    pub entry: Option<Entry>,
}

impl Node {
    /// The node of a store, which tells its peers of jobs from now on.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn open(store: Store) -> Result<Node, SyncError> {
        let node = store.node()?;
        store.tell_by(Box::new(JobTeller::new(&node)));
        let live = Mutex::default();
        Ok(Node(Arc::new(Shared { store, node, started: Instant::now(), live })))
    }

    /// This node.
    pub fn node(&self) -> &str {
        &self.0.node
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, peer: &str, work: impl FnOnce(&mut Live) -> T) -> T {
        work(self.live().entry(peer.to_owned()).or_default())
    }

    /// Milliseconds of a clock that never jumps.
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The peers.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn peers(&self) -> Result<Vec<Peer>, SyncError> {
        Ok(self.0.store.peers()?)
    }

    /// The peer whose key has this SHA-256.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn peer_of_key(&self, digest: &[u8; 32]) -> Result<Option<Peer>, SyncError> {
        // Each is compared whole, so that no clock tells how near a guess was.
        let mut found = None;
        for peer in self.peers()? {
            if bool::from(peer.key_digest.ct_eq(digest)) {
                found = Some(peer);
            }
        }
        Ok(found)
    }

    /// Tells the peers of something new that has no name yet, such as feedback.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn note(&self, kind: &str, body: serde_json::Value) -> Result<bool, SyncError> {
        let key = format!("{kind}-{:016x}", draw()?);
        self.change(Change {
            kind: kind.to_owned(),
            key,
            rank: 0,
            body,
            to: None,
            is_elsewhere: false,
        })
    }

    /// Looks whether something was written since it last looked: who is well is called.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn look_for_news(&self) -> Result<(), SyncError> {
        let now = self.mono_ms();
        for peer in self.peers()? {
            let link = self.look(|ledger| ledger.link(&peer.node))?;
            self.with(&peer.node, |live| {
                if link.last > std::mem::replace(&mut live.last_seen, link.last) {
                    live.pace.has_news(now);
                }
            });
        }
        Ok(())
    }

    /// Writes a change and tells the peers; whether it counts. Nothing is written without a peer.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn change(&self, change: Change) -> Result<bool, SyncError> {
        let (node, id) = (self.0.node.clone(), draw()?);
        let counts = self.0.store.sync(move |tx| {
            if tx.peers()?.is_empty() {
                return Ok(false);
            }
            let mut ledger = Ledger::new(tx, &node);
            link::change(&mut ledger, change, id, now_ms(), &Bounds::default())
        })?;
        self.has_news();
        Ok(counts)
    }

    /// Something was written: who is well is called.
    pub fn has_news(&self) {
        let now = self.mono_ms();
        self.live().values_mut().for_each(|live| live.pace.has_news(now));
    }

    fn hello(&self) -> Hello {
        Hello {
            node: self.0.node.clone(),
            program: concat!("jetforge ", env!("CARGO_PKG_VERSION")).to_owned(),
            speaks: SPEAKS,
            limits: Limits::OURS,
        }
    }

    /// What is to be said to a peer now.
    ///
    /// # Errors
    /// If the disk does not give it.
    pub fn ask(&self, peer: &str) -> Result<Vec<u8>, SyncError> {
        let nonce = draw()?;
        let talk = self.with(peer, |live| {
            live.talk.say(nonce);
            live.talk
        });
        let message = self.look(|ledger| {
            let limits = link::known_limits(ledger, peer)?;
            link::compose(ledger, peer, &self.hello(), &talk, nonce, limits)
        })?;
        Ok(message.write())
    }

    fn look<T>(
        &self,
        work: impl FnOnce(&mut Ledger<'_, '_>) -> Result<T, crate::store::StoreError>,
    ) -> Result<T, SyncError> {
        Ok(self
            .0
            .store
            .sync_look(|tx: &mut SyncTx<'_>| work(&mut Ledger::new(tx, &self.0.node)))?)
    }

    /// Takes what a peer said. What it did is on the disk.
    ///
    /// # Errors
    /// If it is refused, or the disk does not take it.
    pub fn hear(&self, peer: &str, bytes: &[u8]) -> Result<Heard, SyncError> {
        let message = self.read(peer, bytes).inspect_err(|refusal| {
            self.with(peer, |live| live.trouble = Some(refusal.to_string()));
        })?;
        let is_fresh = self.with(peer, |live| live.talk.is_fresh(&message));
        let (node, of) = (self.0.node.clone(), peer.to_owned());
        let (nonce, heard) = self.0.store.sync(move |tx| {
            let mut ledger = Ledger::new(tx, &node);
            let bounds = Bounds::default();
            let heard = link::hear(&mut ledger, &of, &message, is_fresh, now_ms(), &bounds)?;
            Ok((message.nonce, heard))
        })?;
        if heard.is_forked {
            tracing::warn!(peer, "this store went back in time; its log was laid anew");
        }
        self.with(peer, |live| {
            live.talk.heard(nonce, heard.is_moved);
            live.trouble = None;
            live.heard_ms = Some(now_ms());
        });
        Ok(heard)
    }

    fn read(&self, peer: &str, bytes: &[u8]) -> Result<Message, Refusal> {
        let message = Message::read(bytes)?;
        message.check(&self.0.node, peer)?;
        Ok(message)
    }

    /// Takes what a peer said, and what is said to it: the other side of [`Node::ask`].
    ///
    /// # Errors
    /// As [`Node::hear`].
    pub fn answer(&self, peer: &str, bytes: &[u8]) -> Result<(Vec<u8>, Heard), SyncError> {
        let heard = self.hear(peer, bytes)?;
        let now = self.mono_ms();
        self.with(peer, |live| live.pace.is_there(now));
        Ok((self.ask(peer)?, heard))
    }

    /// Says how a call went; `trouble` is for somebody to do something about.
    pub fn called(&self, peer: &str, went: Result<Heard, Option<String>>) {
        let now = self.mono_ms();
        let random = draw().unwrap_or(now);
        self.with(peer, |live| match went {
            Ok(heard) => live.pace.succeeded(now, heard.has_more),
            Err(trouble) => {
                live.pace.failed(now, random);
                if trouble.is_some() {
                    live.trouble = trouble;
                }
            }
        });
    }

    /// When a peer is to be called, by [`Node::mono_ms`].
    pub fn due_ms(&self, peer: &str) -> u64 {
        self.with(peer, |live| live.pace.due_ms())
    }

    /// Every peer is to be called now.
    ///
    /// # Errors
    /// If the peers cannot be read.
    pub fn call_now(&self) -> Result<(), SyncError> {
        let now = self.mono_ms();
        for peer in self.peers()? {
            self.with(&peer.node, |live| live.pace.now(now));
        }
        Ok(())
    }

    /// How every link stands.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn standing(&self) -> Result<Vec<PeerStanding>, SyncError> {
        let stands = |peer: Peer| {
            let live = self.with(&peer.node, |live| live.clone());
            let standing = self.0.store.sync_look(|tx| {
                let n_held = tx.n_held(&peer.node)?;
                let link = Ledger::new(tx, &self.0.node).link(&peer.node)?;
                let front = tx.out_front(&peer.node, link.sent_from() + 1)?;
                let oldest_ms = front.map(|row| now_ms() - row.written_ms);
                // A clock that was set meanwhile tells nothing.
                let oldest_ms = oldest_ms.filter(|ms| (0..AGE_MS_MAX).contains(ms));
                Ok(Standing {
                    n_waiting: link.n_waiting(),
                    oldest_ms,
                    n_to_come: link.n_to_come(),
                    n_held,
                    n_lost: link.n_lost_unseen(),
                    trouble: live.trouble.clone(),
                })
            })?;
            let peer = Peer { key: String::new(), ..peer };
            let (heard_ms, n_failed) = (live.heard_ms, live.pace.n_failed());
            Ok(PeerStanding { peer, standing, heard_ms, n_failed })
        };
        self.peers()?.into_iter().map(stands).collect()
    }

    /// What was set aside, the oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn held(&self) -> Result<Vec<Held>, SyncError> {
        let rows = self.0.store.sync_look(|tx| tx.held())?;
        let held = |row: crate::store::HeldRow| Held {
            entry: serde_json::from_slice(&row.text).ok(),
            n: row.n,
            peer: row.peer,
            why: row.why,
            held_ms: row.held_ms,
        };
        Ok(rows.into_iter().map(held).collect())
    }

    /// Tries again what was set aside, or forgets it; how many are done with.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn retry(&self, forget: bool) -> Result<usize, SyncError> {
        let held = self.held()?;
        let node = self.0.node.clone();
        Ok(self.0.store.sync(move |tx| {
            let mut n_done = 0;
            for held in held {
                let is_done = match &held.entry {
                    _ if forget => true,
                    None => false,
                    Some(entry) => {
                        let mut ledger = Ledger::new(tx, &node);
                        link::retry(&mut ledger, &held.peer, entry)?.is_ok()
                    }
                };
                if is_done {
                    tx.drop_held(held.n)?;
                    n_done += 1;
                }
            }
            if forget {
                for peer in tx.peers()? {
                    link::forget_lost(&mut Ledger::new(tx, &node), &peer)?;
                }
            }
            Ok(n_done)
        })?)
    }

    /// Things that are known of a kind, the last changed first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn records(&self, kind: &str, n_max: usize) -> Result<Vec<Record>, SyncError> {
        let rows = self.0.store.sync_look(|tx| tx.records(kind, n_max))?;
        Ok(rows.into_iter().map(record_of).collect::<Result<_, _>>()?)
    }

    /// Copies of a thing that did not count, the oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn copies(&self, kind: &str, key: &str) -> Result<Vec<Record>, SyncError> {
        let rows = self.0.store.sync_look(|tx| tx.copies(kind, key))?;
        Ok(rows.into_iter().map(record_of).collect::<Result<_, _>>()?)
    }

    /// How many things are known of each kind.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn record_counts(&self) -> Result<Vec<(String, i64)>, SyncError> {
        Ok(self.0.store.sync_look(|tx| tx.record_counts())?)
    }

    /// What records ask of other rooms, such as that a job be taken back.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn acts(&self) -> Result<Vec<ActRow>, SyncError> {
        Ok(self.0.store.sync_look(|tx| tx.acts(SYNC_ACTS_MAX))?)
    }

    /// It is done.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn acted(&self, n: i64) -> Result<(), SyncError> {
        Ok(self.0.store.sync(move |tx| tx.drop_act(n))?)
    }

    /// What waits for a peer, as a message for a file, behind a mark; and the mark behind which
    /// there is more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn export_page(
        &self,
        peer: &str,
        from: Option<Mark>,
    ) -> Result<(Message, Option<Mark>), SyncError> {
        let (hello, nonce) = (self.hello(), draw()?);
        let message = self.look(|ledger| link::compose_from(ledger, peer, &hello, nonce, from))?;
        let next = message.entries.last().map(Entry::mark).filter(|mark| mark.seq < message.last);
        Ok((message, next))
    }

    /// Writes all that waits for every peer as messages, one a line; how many entries.
    ///
    /// # Errors
    /// If the store cannot be read or the writer fails.
    pub fn export(&self, out: &mut dyn Write) -> Result<usize, SyncError> {
        let failed = |source| SyncError::File { source };
        let mut n_entry = 0;
        for peer in self.peers()? {
            let mut from = None;
            loop {
                let (message, next) = self.export_page(&peer.node, from)?;
                n_entry += message.entries.len();
                out.write_all(&message.write()).map_err(failed)?;
                out.write_all(b"\n").map_err(failed)?;
                from = next;
                if from.is_none() {
                    break;
                }
            }
        }
        Ok(n_entry)
    }

    /// Takes messages for this node from a file; how many entries took effect. Messages for
    /// others are passed over.
    ///
    /// # Errors
    /// At the first line that is no message; what came before it has taken effect.
    pub fn import(&self, lines: &mut dyn BufRead) -> Result<usize, SyncError> {
        let mut n_applied = 0;
        loop {
            let mut line = Vec::new();
            let mut bounded = lines.take(SYNC_MESSAGE_BYTES_MAX as u64 + 1);
            let n =
                bounded.read_until(b'\n', &mut line).map_err(|source| SyncError::File { source });
            if n? == 0 {
                return Ok(n_applied);
            }
            let message = Message::read(line.trim_ascii_end())?;
            let from = message.hello.node.clone();
            if message.to != self.0.node || self.0.store.peer(&from)?.is_none() {
                continue;
            }
            n_applied += self.hear(&from, line.trim_ascii_end())?.n_applied;
        }
    }
}

/// An age beyond this is a clock that was set.
const AGE_MS_MAX: i64 = 10 * 365 * 24 * 3600 * 1000;

/// A number that nobody has drawn before, and not 0.
pub(super) fn draw() -> Result<u64, SyncError> {
    let bytes = seal::random().map_err(|source| SyncError::File { source })?;
    let bytes = bytes.first_chunk::<8>().copied().unwrap_or_default();
    Ok(u64::from_le_bytes(bytes) | 1)
}
