//! Node over HTTP: one route for peers, and a few for whoever owns the machine.
//!
//! ```text
//! POST /v1/sync/exchange   a message in, a message out; the key of a paired peer opens it
//! POST /v1/sync/blobs      the same for pieces of files
//! GET  /v1/sync            how each link stands
//! GET  /v1/sync/appliances what each peer told of itself
//! POST /v1/sync/forget     ends a pairing             /peer    where a peer is called
//! POST /v1/sync/now        call every peer now          /retry   what was set aside
//! GET  /v1/sync/export     what waits, as lines         /import  such lines
//! ```
//!
//! The machine is in the room `sync`; here are its bytes, keys and timers.

mod call;
mod known;
mod routes;
mod runner;

pub(super) use routes::{peer_routes, routes};
pub use runner::SyncRunner;

use serde_json::{Value, json};

use super::{ApiError, Gate};
use crate::sync::{Node, PeerStanding, SyncError};

/// How each link of a service stands; none without a store.
pub(super) async fn standings(gate: &Gate) -> Result<Vec<PeerStanding>, ApiError> {
    let Some(sync) = gate.sync() else { return Ok(Vec::new()) };
    let mut standings = ask(sync, Node::standing).await?;
    for PeerStanding { peer, standing, .. } in &mut standings {
        if gate.is_revoked(&peer.key_digest) {
            let how = format!("`jetforge sync forget {}` ends the pairing", peer.name);
            standing.trouble = Some(format!("its key was taken back; {how}"));
        }
    }
    Ok(standings)
}

/// The same in a few words each.
pub(super) async fn states(gate: &Gate) -> Value {
    match standings(gate).await {
        Ok(standings) => {
            let state = |of: &PeerStanding| {
                let state = of.standing.to_string();
                json!({ "name": of.peer.name, "state": state })
            };
            standings.iter().map(state).collect()
        }
        Err(error) => json!({ "error": error.message }),
    }
}

/// Asks the node something, on a thread that may wait for the disk.
pub(super) async fn ask<T: Send + 'static>(
    sync: &Node,
    question: impl FnOnce(&Node) -> Result<T, SyncError> + Send + 'static,
) -> Result<T, ApiError> {
    let sync = sync.clone();
    match tokio::task::spawn_blocking(move || question(&sync)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ApiError::internal("sync could not be asked")),
    }
}
