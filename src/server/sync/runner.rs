//! Calls peers when they are due, and does what their entries ask of other rooms.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::ask;
use super::call::{CallError, exchange};
use crate::server::jobs::Door;
use crate::server::{ApiError, Gate};
use crate::store::Peer;
use crate::sync::Node;

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
            let runner = Runner { sync, door: gate.jobs().cloned(), wake: gate.sync_bell() };
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
}

impl Runner {
    async fn run(self) {
        let mut calls: JoinSet<String> = JoinSet::new();
        let mut called: BTreeSet<String> = BTreeSet::new();
        loop {
            if let Err(error) = self.look(&mut calls, &mut called).await {
                tracing::error!(error = error.message, "sync cannot look at its store");
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

    /// Does what is asked, and calls who is due.
    async fn look(
        &self,
        calls: &mut JoinSet<String>,
        called: &mut BTreeSet<String>,
    ) -> Result<(), ApiError> {
        self.act().await?;
        let peers = ask(&self.sync, |sync| {
            sync.look_for_news()?;
            sync.peers()
        });
        let now = self.sync.mono_ms();
        for peer in peers.await? {
            let is_due = !peer.address.is_empty() && self.sync.due_ms(&peer.node) <= now;
            if is_due && called.insert(peer.node.clone()) {
                calls.spawn(call(self.sync.clone(), peer));
            }
        }
        Ok(())
    }

    /// Takes back jobs that a peer took back.
    async fn act(&self) -> Result<(), ApiError> {
        let Some(door) = &self.door else { return Ok(()) };
        for act in ask(&self.sync, Node::acts).await? {
            if let Err(error) = door.take_back(act.key).await {
                tracing::warn!(error = error.message, "what a peer took back is not taken back");
                // One that fails is no reason to call nobody.
                if error.status.is_server_error() {
                    continue;
                }
            }
            ask(&self.sync, move |sync| sync.acted(act.n)).await?;
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
    let answer = exchange(peer, message).await?;
    let node = peer.node.clone();
    ask(sync, move |sync| sync.hear(&node, &answer)).await.map_err(ours)
}
