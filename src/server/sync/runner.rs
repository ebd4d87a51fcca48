//! Calls peers when they are due, and does what their entries ask of other rooms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::ask;
use super::call::{CallError, exchange};
use super::known::tell_inventory;
use crate::base::limits::SYNC_HAULS_MAX;
use crate::server::jobs::Door;
use crate::server::keys::peer_key_name;
use crate::server::{ApiError, Gate};
use crate::store::Peer;
use crate::sync::{Ask, Node};

/// Time between two looks at which models there are.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Time between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The task that calls.
pub struct SyncRunner {
    task: Option<JoinHandle<()>>,
}

impl SyncRunner {
    /// Calls the peers of a gate, if it syncs.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(gate: &Gate) -> SyncRunner {
        let task = gate.sync().cloned().map(|sync| {
            let (door, wake) = (gate.jobs().cloned(), gate.sync_bell());
            let (gate, troubles) = (gate.clone(), Troubles::default());
            let runner = Runner { sync, door, wake, gate, troubles, met: None };
            tokio::spawn(runner.run())
        });
        SyncRunner { task }
    }

    /// Calls nobody any more; what was under way comes again.
    pub fn stop(self) {
        if let Some(task) = self.task {
            task.abort();
        }
    }
}

struct Runner {
    sync: Node,
    door: Option<Door>,
    wake: Arc<Notify>,
    gate: Gate,
    troubles: Troubles,
    /// The peers of the last look.
    met: Option<Vec<Peer>>,
}

/// What did not work at the last look, so that the log hears of it once and not with every look.
#[derive(Default)]
struct Troubles(BTreeMap<&'static str, String>);

impl Troubles {
    /// What is tried at each look.
    const STORE: &str = "sync cannot look at its store";
    const SPOOL: &str = "what other processes have to tell waits";
    const WANTS: &str = "files of peers are not asked for yet";
    const JOBS: &str = "jobs that peers took back go on";

    /// Whether this is news: that something does not work, or does not for another reason.
    fn is_news(&mut self, of: &'static str, why: &str) -> bool {
        self.0.insert(of, why.to_owned()).is_none_or(|before| before != why)
    }

    /// Tells the log how something went.
    fn tell(&mut self, of: &'static str, why: Option<String>) {
        let Some(why) = why else {
            self.0.remove(of);
            return;
        };
        match self.is_news(of, &why) {
            true => tracing::warn!(error = why, "{of}"),
            false => tracing::debug!(error = why, "{of}"),
        }
    }
}

impl Runner {
    async fn run(mut self) {
        let mut calls: JoinSet<String> = JoinSet::new();
        let mut called: BTreeSet<String> = BTreeSet::new();
        let mut hauls: JoinSet<String> = JoinSet::new();
        let mut hauled: BTreeSet<String> = BTreeSet::new();
        let mut counted: Option<Instant> = None;
        loop {
            if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
                let told = tell_inventory(&self.sync, self.gate.server().clone()).await;
                if let Err(error) = told {
                    tracing::warn!(error = error.message, "the peers are not told of the models");
                }
                counted = Some(Instant::now());
            }
            let looked = self.look(&mut calls, &mut called).await;
            let why = looked.as_ref().err().map(|error| error.message.clone());
            self.troubles.tell(Troubles::STORE, why);
            // A file may take an hour; what is said of it goes on beside it.
            while let Some(done) = hauls.try_join_next() {
                match done {
                    Ok(node) => drop(hauled.remove(&node)),
                    Err(_) => hauled.clear(),
                }
            }
            for peer in looked.unwrap_or_default() {
                let is_due = !peer.address.is_empty() && !hauled.contains(&peer.node);
                if is_due && self.sync.may_haul(&peer.node) {
                    hauled.insert(peer.node.clone());
                    hauls.spawn(haul(self.sync.clone(), peer));
                }
            }
            tokio::select! {
                Some(done) = calls.join_next(), if !calls.is_empty() => {
                    match done {
                        Ok(node) => drop(called.remove(&node)),
                        // A call that met a bug must not keep its peer from being called.
                        Err(_) => called.clear(),
                    }
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Does what is asked, and calls who is due; the peers.
    async fn look(
        &mut self,
        calls: &mut JoinSet<String>,
        called: &mut BTreeSet<String>,
    ) -> Result<Vec<Peer>, ApiError> {
        ask(&self.sync, Node::hand_on).await?;
        self.act().await?;
        let peers = ask(&self.sync, Node::look_for_news).await?;
        self.meet(&peers).await?;
        let now = self.sync.mono_ms();
        for peer in &peers {
            let is_due = !peer.address.is_empty() && self.sync.due_ms(&peer.node) <= now;
            // Whose key was taken back is not called either.
            let is_due = is_due && !self.gate.is_revoked(&peer.key_digest);
            if is_due && called.insert(peer.node.clone()) {
                calls.spawn(call(self.sync.clone(), peer.clone()));
            }
        }
        Ok(peers)
    }

    /// Takes up who was paired and who was forgotten since the last look, here or by another
    /// process that shares the store.
    async fn meet(&mut self, peers: &[Peer]) -> Result<(), ApiError> {
        if self.met.as_deref() == Some(peers) {
            return Ok(());
        }
        for node in ask(&self.sync, Node::part).await? {
            let (gate, name) = (self.gate.clone(), peer_key_name(&node));
            let revoked = tokio::task::spawn_blocking(move || gate.revoke_key(&name)).await;
            revoked.map_err(|_| ApiError::internal("a key could not be taken back"))?;
        }
        if let Some(forward) = self.gate.forward() {
            Arc::clone(forward).meet(peers.to_vec());
        }
        self.met = Some(peers.to_vec());
        Ok(())
    }

    /// Takes back jobs that a peer took back.
    async fn act(&mut self) -> Result<(), ApiError> {
        let told = ask(&self.sync, |sync| Ok((sync.take_in_spool(), sync.note_wants())));
        let (spooled, wanted) = told.await?;
        // A disk that is full is no reason to call nobody.
        self.troubles.tell(Troubles::SPOOL, spooled.as_ref().err().map(ToString::to_string));
        self.troubles.tell(Troubles::WANTS, wanted.as_ref().err().map(ToString::to_string));
        let Some(door) = &self.door else { return Ok(()) };
        for act in wanted.unwrap_or_default() {
            let taken = door.take_back(act.key().to_owned()).await;
            match taken {
                // One that fails is no reason to call nobody, nor to forget it.
                Err(error) if error.status.is_server_error() => {
                    self.troubles.tell(Troubles::JOBS, Some(error.message));
                }
                Ok(false) => ask(&self.sync, move |sync| sync.pass_on(act)).await?,
                Ok(true) | Err(_) => {
                    self.troubles.tell(Troubles::JOBS, None);
                    ask(&self.sync, move |sync| sync.acted(vec![act])).await?;
                }
            }
        }
        Ok(())
    }
}

/// One exchange; which peer it was with.
async fn call(sync: Node, peer: Peer) -> String {
    let node = peer.node.clone();
    let went = talk(&sync, &peer).await;
    if let Err(CallError::Passing(why) | CallError::Trouble(why)) = &went {
        tracing::debug!(peer = peer.name, why, "a call did not work");
    }
    sync.called(
        &node,
        went.map_err(|error| match error {
            CallError::Passing(_) => None,
            CallError::Trouble(why) => Some(why),
        }),
    );
    node
}

async fn talk(sync: &Node, peer: &Peer) -> Result<crate::sync::Heard, CallError> {
    let ours = |error: ApiError| CallError::Passing(error.message);
    let node = peer.node.clone();
    let message = ask(sync, move |sync| sync.ask(&node)).await.map_err(ours)?;
    let answer = exchange(peer, "/v1/sync/exchange", message).await?;
    let node = peer.node.clone();
    ask(sync, move |sync| sync.hear(&node, &answer)).await.map_err(ours)
}

/// Blobs, both ways, until none moves; which peer it was with.
async fn haul(sync: Node, peer: Peer) -> String {
    let node = peer.node.clone();
    if let Err(CallError::Passing(why) | CallError::Trouble(why)) = carry(&sync, &peer).await {
        tracing::debug!(peer = peer.name, why, "files go on with the next call");
    }
    node
}

async fn carry(sync: &Node, peer: &Peer) -> Result<(), CallError> {
    let ours = |error: ApiError| CallError::Passing(error.message);
    if ask(sync, |sync| Ok(sync.vault().is_empty())).await.map_err(ours)? {
        return Ok(());
    }
    let mut asked: Vec<Ask> = Vec::new();
    // A peer that asks for one thing after the other for ever is called again later.
    for _ in 0..SYNC_HAULS_MAX {
        let (node, of) = (peer.node.clone(), asked.clone());
        let said = ask(sync, move |sync| sync.haul_ask(&node, &of)).await.map_err(ours)?;
        let answer = exchange(peer, "/v1/sync/blobs", said).await?;
        let node = peer.node.clone();
        let heard = ask(sync, move |sync| sync.haul_hear(&node, &answer)).await;
        let (hauled, wants) = heard.map_err(ours)?;
        // Nothing came, and what was given changed nothing.
        if !hauled.is_kept && wants == asked {
            return Ok(());
        }
        asked = wants;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_work_is_news_once_for_each_reason() {
        let mut troubles = Troubles::default();
        let full = || Some("the disk is full".to_owned());
        assert!(troubles.is_news(Troubles::SPOOL, "the disk is full"));
        assert!(!troubles.is_news(Troubles::SPOOL, "the disk is full"));
        assert!(troubles.is_news(Troubles::WANTS, "the disk is full"), "something else");
        assert!(troubles.is_news(Troubles::SPOOL, "no such folder"), "another reason");
        troubles.tell(Troubles::SPOOL, None);
        troubles.tell(Troubles::SPOOL, full());
        assert!(!troubles.is_news(Troubles::SPOOL, "the disk is full"), "it was told again");
        // However many jobs there are.
        assert!(troubles.is_news(Troubles::JOBS, "the disk is full"));
        assert!((0..1000).all(|_| !troubles.is_news(Troubles::JOBS, "the disk is full")));
    }
}
