//! Jobs, told to the peers in the transactions that change them.

use std::io::Cursor;

use serde_json::{Map, Value, json};

use super::blob::Vault;
use super::ledger::Ledger;
use super::link::{self, Bounds, Change};
use super::node::draw;
use super::rules::job_rank;
use super::wire::ENTRY_BYTES;
use crate::base::limits::SYNC_ENTRY_BYTES_MAX;
use crate::store::{JobTold, StoreError, SyncTx, Tells, now_ms};

/// See the module.
pub struct JobTeller {
    node: String,
    vault: Vault,
    is_shared: bool,
}

impl JobTeller {
    /// The jobs of a node, whose tables of sync may be shared with other processes.
    pub fn new(node: &str, vault: Vault, is_shared: bool) -> JobTeller {
        JobTeller { node: node.to_owned(), vault, is_shared }
    }
}

impl Tells for JobTeller {
    fn job(&self, tx: &mut SyncTx<'_>, told: &JobTold<'_>) -> Result<(), StoreError> {
        if !self.is_shared && tx.peers()?.is_empty() {
            return Ok(());
        }
        let failed = |_| StoreError::Commit { why: "the system gives no random bytes".to_owned() };
        let id = draw().map_err(failed)?;
        let change = change_of(told, &self.node, &self.vault);
        if self.is_shared {
            // No transaction holds a job and the shared tables: see `together`.
            return tx.put_told(id, &serde_json::to_vec(&change).unwrap_or_default());
        }
        let mut ledger = Ledger::new(tx, &self.node);
        link::change(&mut ledger, change, id, now_ms(), &Bounds::default()).map(|_| ())
    }
}

/// A job as an entry: what it is, and its request or its answer where they fit.
fn change_of(told: &JobTold<'_>, node: &str, vault: &Vault) -> Change {
    let row = told.row;
    let state = match row.ledger.state.as_str() {
        "queued" | "running" => "submitted",
        over => over,
    };
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            body.insert(name.to_owned(), value);
        }
    };
    put("state", state.into());
    put("owner", node.into());
    put("endpoint", row.endpoint.as_str().into());
    put("request_id", json!(row.request_id));
    put("created_ms", row.created_ms.into());
    put("finished_ms", json!(row.ledger.finished_ms));
    put("reason", json!(row.ledger.reason));
    put("status", json!(told.answer.map(|answer| answer.status)));
    // What is too long travels beside the entry, and stays where the job ran if it cannot.
    let room = SYNC_ENTRY_BYTES_MAX - 4 * ENTRY_BYTES - row.endpoint.len();
    let mut text = |name: &str, bytes: Option<&[u8]>| {
        let Some(bytes) = bytes else { return };
        // Escaped, a text can be six times as long.
        let value = serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(bytes)));
        match value.to_string().len() <= room {
            true => put(name, value),
            false => {
                put(&format!("{name}_bytes"), bytes.len().into());
                match vault.put(&mut Cursor::new(bytes), true) {
                    Ok((id, n_bytes)) => {
                        put(&format!("{name}_blob"), json!({ "id": id, "n_bytes": n_bytes }));
                    }
                    Err(error) => {
                        tracing::warn!(%error, job = row.id, "a long text of a job stays here");
                    }
                }
            }
        }
    };
    text("request", told.body);
    text("answer", told.answer.map(|answer| answer.body.as_slice()));
    let rank = job_rank(state).unwrap_or_default();
    let key = row.id.clone();
    let (kind, body) = ("job".to_owned(), Value::Object(body));
    Change { kind, key, rank, body, to: None, is_elsewhere: true }
}
