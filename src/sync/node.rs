//! A node: the machine over the store, with what need not outlive the program.
//!
//! ```text
//! change, jobs -> outbox                  ask -> the peer -> hear       we call
//! how each link stands                    answer                        it calls
//! ```
//!
//! Nothing here knows a network: messages are bytes. Methods wait for the disk.
//!
//! A store knows the machine that it was made on. On another one it is a card that was moved, or
//! the copy of a card: then two machines would speak under one name. It says nothing to anybody
//! until its owner tells which it is: see [`Node::adopt`] and [`Node::renew`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::SyncError;
use super::blob::Vault;
use super::disk::Disk;
use super::ledger::Ledger;
use super::link::{self, Bounds, Change, Heard, Talk};
use super::pace::Pace;
use super::say;
use super::tell::JobTeller;
use super::together::{keep_talk_of_all, talk_of_all};
use super::wire::{Hello, Limits, Message, Refusal, SPEAKS};
use crate::base::file;
use crate::base::hash::hex;
use crate::base::host::machine_marks;
use crate::seal;
use crate::store::{Peer, Store, StoreError, SyncTx, now_ms};

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Node(Arc<Shared>);

struct Shared {
    store: Store,
    node: String,
    /// What tells this machine from others.
    marks: Vec<String>,
    /// The store was made on another one.
    is_moved: AtomicBool,
    vault: Vault,
    /// One message about blobs at a time: two calls of one peer may bring the same piece.
    hauling: Mutex<()>,
    /// Behind which act to look next.
    acts_from: AtomicI64,
    /// The models that this process told its peers of last, if it has.
    told_models: Mutex<Option<serde_json::Value>>,
    started: Instant,
    live: Mutex<BTreeMap<String, Live>>,
}

/// What is known of a peer while the program runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    talk: Talk,
    pub(super) pace: Pace,
    pub(super) trouble: Option<String>,
    /// When it was heard: by the clock, and by the one that never jumps.
    pub(super) heard: Option<(i64, u64)>,
    /// The newest entry when it was last looked for.
    last_seen: u64,
    /// It was called since its blobs were last asked for.
    has_called: bool,
}

impl Node {
    /// The node of a store, which tells its peers of jobs from now on.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn open(store: Store) -> Result<Node, SyncError> {
        Node::open_on(store, machine_marks())
    }

    /// The same on a machine with these marks.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub(super) fn open_on(store: Store, marks: Vec<String>) -> Result<Node, SyncError> {
        let node = store.node()?;
        let vault = Vault::open(store.dir())?;
        for folder in ["", "blobs", "told"] {
            file::sweep(&store.dir().join(folder));
        }
        store.tell_by(Box::new(JobTeller::new(&node, vault.clone(), store.is_shared())));
        let marks: Vec<String> = marks.iter().map(|mark| digest(mark)).collect();
        let is_moved = match store.machine()? {
            // Where nothing is told, nothing can be said.
            _ if marks.is_empty() => false,
            // One name for many machines is what its owner wants.
            _ if store.is_shared() => false,
            None => {
                store.set_machine(marks.join(" "))?;
                false
            }
            Some(known) => !known.split(' ').any(|known| marks.iter().any(|mark| mark == known)),
        };
        Ok(Node(Arc::new(Shared {
            store,
            node,
            marks,
            is_moved: AtomicBool::new(is_moved),
            vault,
            hauling: Mutex::default(),
            acts_from: AtomicI64::new(0),
            told_models: Mutex::default(),
            started: Instant::now(),
            live: Mutex::default(),
        })))
    }

    /// Why this machine speaks to nobody, if its store was made on another one.
    pub fn moved(&self) -> Option<Refusal> {
        let is_moved = self.0.is_moved.load(Ordering::Relaxed);
        is_moved.then(|| Refusal::Moved { node: self.0.node.clone() })
    }

    /// The store belongs to this machine from now on: its card was moved here.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn adopt(&self) -> Result<(), SyncError> {
        if !self.0.marks.is_empty() {
            self.0.store.set_machine(self.0.marks.join(" "))?;
        }
        self.0.is_moved.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Gives this machine a new name, which counts when the store is opened again: it is the copy
    /// of another one that goes on under the old name. Its peers are forgotten, for they mean that
    /// one.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn renew(&self) -> Result<String, SyncError> {
        let node = self.0.store.renew_node()?;
        self.adopt()?;
        Ok(node)
    }

    /// A peer by its name or node, if there is one.
    pub(super) fn named(&self, peer: &str) -> Result<Option<Peer>, SyncError> {
        let peers = self.peers()?;
        let by_node = peers.iter().find(|known| known.node == peer);
        let mut named = peers.iter().filter(|known| known.name == peer);
        Ok(match (by_node, named.next(), named.next()) {
            (Some(found), ..) | (None, Some(found), None) => Some(found.clone()),
            // Two of one name are told apart by their nodes.
            (None, Some(_), Some(_)) | (None, None, _) => None,
        })
    }

    /// Forgets a peer by its name or node, and what waits for it; who it was, if there is one.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn forget(&self, peer: &str) -> Result<Option<Peer>, SyncError> {
        let Some(found) = self.named(peer)? else { return Ok(None) };
        self.0.store.delete_peer(&found.node)?;
        self.live().remove(&found.node);
        self.0.vault.forget(&found.node);
        Ok(Some(Peer { key: String::new(), ..found }))
    }

    /// Lets go of what is kept for machines that are peers no more: another process that shares the
    /// store may have forgotten them. Which these are.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn part(&self) -> Result<Vec<String>, SyncError> {
        let mut known: BTreeSet<String> = self.live().keys().cloned().collect();
        known.extend(self.0.vault.wanted().into_iter().map(|(_, wanted)| wanted.peer));
        let mut gone = Vec::new();
        for node in known {
            match self.0.store.peer(&node) {
                // One that cannot be read is still one.
                Ok(Some(_)) | Err(StoreError::Sealed { .. }) => {}
                Ok(None) => {
                    self.live().remove(&node);
                    self.0.vault.forget(&node);
                    gone.push(node);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    }

    pub(super) fn store(&self) -> &Store {
        &self.0.store
    }

    /// The blobs of this machine.
    pub fn vault(&self) -> &Vault {
        &self.0.vault
    }

    pub(super) fn hauling(&self) -> &Mutex<()> {
        &self.0.hauling
    }

    pub(super) fn told_models(&self) -> &Mutex<Option<serde_json::Value>> {
        &self.0.told_models
    }

    pub(super) fn acts_from(&self) -> &AtomicI64 {
        &self.0.acts_from
    }

    /// This node.
    pub fn node(&self) -> &str {
        &self.0.node
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with<T>(&self, peer: &str, work: impl FnOnce(&mut Live) -> T) -> T {
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

    /// Looks whether something was written since it last looked: who is well is called. The peers
    /// of that moment.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn look_for_news(&self) -> Result<Vec<Peer>, SyncError> {
        let (now, node) = (self.mono_ms(), self.node());
        let (peers, lasts) = self.0.store.sync_look(|tx| {
            let peers = tx.known_peers()?;
            let last = |peer: &Peer| Ok(Ledger::new(tx, node).link(&peer.node)?.last);
            let lasts = peers.iter().map(last).collect::<Result<Vec<u64>, StoreError>>()?;
            Ok((peers, lasts))
        })?;
        for (peer, last) in peers.iter().zip(lasts) {
            self.with(&peer.node, |live| {
                if last > std::mem::replace(&mut live.last_seen, last) {
                    live.pace.has_news(now);
                }
            });
        }
        Ok(peers)
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

    pub(super) fn hello(&self) -> Hello {
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
        if let Some(moved) = self.moved() {
            return Err(moved.into());
        }
        let (nonce, hello) = (draw()?, self.hello());
        if self.0.store.is_shared() {
            return self.ask_of_all(peer, nonce, hello);
        }
        let talk = self.with(peer, |live| {
            live.talk.say(nonce);
            live.talk
        });
        let message = self.look(|ledger| {
            let limits = link::known_limits(ledger, peer)?;
            say::compose(ledger, peer, &hello, &talk, nonce, limits)
        })?;
        Ok(message.write())
    }

    pub(super) fn look<T: Send>(
        &self,
        work: impl FnOnce(&mut Ledger<'_, '_>) -> Result<T, StoreError> + Send,
    ) -> Result<T, SyncError> {
        let look = |tx: &mut SyncTx<'_>| work(&mut Ledger::new(tx, &self.0.node));
        Ok(self.0.store.sync_look(look)?)
    }

    /// Takes what a peer said. What it did is on the disk.
    ///
    /// # Errors
    /// If it is refused, or the disk does not take it.
    pub fn hear(&self, peer: &str, bytes: &[u8]) -> Result<Heard, SyncError> {
        let message = self.read(peer, bytes).inspect_err(|refusal| {
            self.with(peer, |live| live.trouble = Some(refusal.to_string()));
        })?;
        let own = (!self.0.store.is_shared()).then(|| self.with(peer, |live| live.talk));
        let (node, of) = (self.0.node.clone(), peer.to_owned());
        let done = self.0.store.sync(move |tx| {
            // It may have been forgotten while it spoke.
            if !tx.peers()?.contains(&of) {
                return Ok(None);
            }
            let talk = own.map_or_else(|| talk_of_all(tx, &of), Ok)?;
            let is_fresh = talk.is_fresh(&message);
            let mut ledger = Ledger::new(tx, &node);
            let bounds = Bounds::default();
            let heard = link::hear(&mut ledger, &of, &message, is_fresh, now_ms(), &bounds)?;
            if own.is_none() && !heard.is_refused {
                let mut talk = talk;
                talk.heard(message.nonce, heard.is_moved);
                keep_talk_of_all(tx, &of, &talk)?;
            }
            Ok(Some((message.nonce, heard)))
        })?;
        let forgotten = || Refusal::Unpaired { node: peer.to_owned() };
        let (nonce, heard) = done.ok_or_else(forgotten)?;
        if heard.is_refused {
            let twins = Refusal::Twins { peer: peer.to_owned(), node: self.0.node.clone() };
            self.with(peer, |live| live.trouble = Some(twins.to_string()));
            return Err(twins.into());
        }
        if heard.is_forked {
            tracing::warn!(peer, "this store went back in time; its log was laid anew");
        }
        let now = self.mono_ms();
        self.with(peer, |live| {
            live.talk.heard(nonce, heard.is_moved);
            live.trouble = None;
            live.heard = Some((now_ms(), now));
        });
        Ok(heard)
    }

    fn read(&self, peer: &str, bytes: &[u8]) -> Result<Message, Refusal> {
        let message = Message::read(bytes)?;
        message.check(&self.0.node, peer)?;
        match self.moved() {
            Some(moved) => Err(moved),
            None => Ok(message),
        }
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
            Ok(heard) => {
                live.pace.succeeded(now, heard.has_more);
                live.has_called |= !heard.has_more;
            }
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

    /// Whether a peer is to be asked for blobs: it is there, and the two know of each other's
    /// entries.
    pub fn may_haul(&self, peer: &str) -> bool {
        self.with(peer, |live| std::mem::take(&mut live.has_called))
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
}

/// A mark of a machine as it is kept: whoever reads the store need not learn the mark.
fn digest(mark: &str) -> String {
    hex(&Sha256::digest(mark.as_bytes())[..8])
}

/// A number that nobody has drawn before, and not 0.
pub(super) fn draw() -> Result<u64, SyncError> {
    let bytes = seal::random().map_err(|source| SyncError::File { source })?;
    let bytes = bytes.first_chunk::<8>().copied().unwrap_or_default();
    Ok(u64::from_le_bytes(bytes) | 1)
}
