//! Node over HTTP: one route for peers, and a few for whoever owns the machine.
//!
//! ```text
//! POST /v1/sync/exchange   a message in, a message out; the key of a paired peer opens it
//! GET  /v1/sync            how each link stands
//! POST /v1/sync/now        call every peer now          /retry   what was set aside
//! GET  /v1/sync/export     what waits, as lines         /import  such lines
//! ```
//!
//! The machine is in the room `sync`; here are its bytes, keys and timers.

mod call;
mod routes;
mod runner;

pub(super) use routes::{peer_routes, routes};
pub use runner::SyncRunner;

use serde_json::{Value, json};

use super::{ApiError, Gate};
use crate::sync::{Node, PeerStanding, SyncError};

/// How each link of a service stands; none without a store.
pub(super) async fn standings(gate: &Gate) -> Result<Vec<PeerStanding>, ApiError> {
    match gate.sync() {
        Some(sync) => ask(sync, Node::standing).await,
        None => Ok(Vec::new()),
    }
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
