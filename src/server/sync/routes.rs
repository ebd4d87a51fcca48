//! The routes of sync.

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ask, known, standings};
use crate::base::file::is_disk_full;
use crate::base::limits::{SYNC_ENTRY_BYTES_MAX, SYNC_KEY_BYTES_MAX};
use crate::server::access::presented;
use crate::server::fields::Fields;
use crate::server::keys::hash;
use crate::server::keys::peer_key_name;
use crate::server::{ApiError, Gate};
use crate::store::Peer;
use crate::sync::{
    Ask, BlobId, Change, HAUL_BYTES_MAX, Mark, Node, PeerStanding, Record, SyncError,
};
use crate::tls::Fingerprint;

/// Entries of a list of those that were set aside.
const N_HELD_SHOWN: usize = 100;
/// Records of a list.
const N_RECORDS_SHOWN: usize = 1000;

/// The route that peers call.
pub(in crate::server) fn peer_routes() -> Router<Gate> {
    Router::new().route("/v1/sync/exchange", post(exchange)).route("/v1/sync/blobs", post(blobs))
}

/// The other routes of this file.
pub(in crate::server) fn routes() -> Router<Gate> {
    Router::new()
        .route("/v1/sync", get(status))
        .route("/v1/sync/records", get(records).post(write))
        .route("/v1/sync/appliances", get(appliances))
        .route("/v1/sync/now", post(now))
        .route("/v1/sync/retry", post(retry))
        .route("/v1/sync/peer", post(call_at))
        .route("/v1/sync/forget", post(forget))
        .route("/v1/sync/export", get(export))
        .route("/v1/sync/import", post(import))
}

impl From<SyncError> for ApiError {
    fn from(error: SyncError) -> ApiError {
        let message = error.to_string();
        match error {
            SyncError::Refused(_) => ApiError::conflict(message),
            SyncError::Store(error) => ApiError::from(&error),
            SyncError::File { source } if is_disk_full(&source) => ApiError::no_room(message),
            SyncError::File { .. } | SyncError::Key(_) => ApiError::internal(message),
        }
    }
}

fn sync(gate: &Gate) -> Result<Node, ApiError> {
    let missing = "this service keeps no store, so there is nothing to sync; see its first lines";
    gate.sync().cloned().ok_or_else(|| ApiError::not_supported(missing))
}

/// The node, and who calls it.
async fn caller(gate: &Gate, headers: &HeaderMap) -> Result<(Node, Peer), ApiError> {
    let sync = sync(gate)?;
    let digest = hash(presented(headers).unwrap_or_default());
    let peer = ask(&sync, move |sync| sync.peer_of_key(&digest)).await?;
    let stranger =
        || ApiError::unauthorized("this key is no peer's; `jetforge setup` pairs two machines");
    let peer = peer.filter(|peer| !gate.is_revoked(&peer.key_digest)).ok_or_else(stranger)?;
    Ok((sync, peer))
}

/// An exchange with a peer that calls.
async fn exchange(
    State(gate): State<Gate>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (sync, peer) = caller(&gate, &headers).await?;
    let answered = ask(&sync, move |sync| sync.answer(&peer.node, &body)).await;
    let (answer, _) = answered?;
    gate.wake_sync();
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// Blobs, with a peer that calls.
async fn blobs(
    State(gate): State<Gate>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (sync, peer) = caller(&gate, &headers).await?;
    if body.len() > HAUL_BYTES_MAX {
        return Err(ApiError::invalid(format!("it has more than {HAUL_BYTES_MAX} bytes")));
    }
    let answer = ask(&sync, move |sync| sync.haul_answer(&peer.node, &body)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], answer).into_response())
}

async fn status(State(gate): State<Gate>) -> Result<Json<Value>, ApiError> {
    let (held, counts) =
        ask(&sync(&gate)?, |sync| Ok((sync.held()?, sync.record_counts()?))).await?;
    let standing = standings(&gate).await?;
    let held: Vec<Value> = held
        .iter()
        .take(N_HELD_SHOWN)
        .map(|held| {
            let entry = held.entry.as_ref();
            json!({
                "peer": held.peer,
                "kind": entry.map(|entry| &entry.kind),
                "key": entry.map(|entry| &entry.key),
                "why": held.why,
                "held_ms": held.held_ms,
            })
        })
        .collect();
    let counts: serde_json::Map<String, Value> =
        counts.into_iter().map(|(kind, n)| (kind, n.into())).collect();
    Ok(Json(json!({
        "node": sync(&gate)?.node(),
        "peers": standing.iter().map(view).collect::<Vec<_>>(),
        "held": held,
        "known": counts,
    })))
}

#[derive(Deserialize)]
struct RecordsQuery {
    kind: String,
    #[serde(default)]
    limit: Option<usize>,
}

/// What is known of a kind, the last changed first.
async fn records(
    State(gate): State<Gate>,
    Query(RecordsQuery { kind, limit }): Query<RecordsQuery>,
) -> Result<Json<Value>, ApiError> {
    let n_max = limit.unwrap_or(N_RECORDS_SHOWN).min(N_RECORDS_SHOWN);
    let found = ask(&sync(&gate)?, move |sync| sync.records(&kind, n_max)).await?;
    let record = |record: &Record| {
        let entry = &record.entry;
        json!({ "key": entry.key, "origin": record.origin, "at": entry.at, "body": entry.body })
    };
    Ok(Json(json!({ "records": found.iter().map(record).collect::<Vec<_>>() })))
}

/// Kinds that a person writes.
const WRITTEN: [&str; 2] = ["setting", "snippet"];

/// Writes a setting or a snippet, and tells the peers.
async fn write(State(gate): State<Gate>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let kind = fields.str("kind")?.unwrap_or_default().to_owned();
    if !WRITTEN.contains(&kind.as_str()) {
        return Err(ApiError::field("kind", "use setting or snippet"));
    }
    let key = fields.str("key")?.unwrap_or_default().to_owned();
    let is_word = !key.is_empty() && !key.chars().any(char::is_control);
    if !is_word || key.len() > SYNC_KEY_BYTES_MAX {
        return Err(ApiError::field("key", "a name without control characters"));
    }
    let body = fields.0.get("body").filter(|body| body.is_object()).cloned();
    let body = body.ok_or_else(|| ApiError::field("body", "an object"))?;
    if body.to_string().len() > SYNC_ENTRY_BYTES_MAX / 2 {
        return Err(ApiError::field("body", "it is too large for an entry; send it as a file"));
    }
    let change = Change { kind, key, rank: 0, body, to: None, is_elsewhere: false };
    let counts = ask(&sync(&gate)?, move |sync| sync.change(change)).await?;
    gate.wake_sync();
    Ok(Json(json!({ "counts": counts })))
}

/// What each peer told of itself.
async fn appliances(State(gate): State<Gate>) -> Result<Json<Value>, ApiError> {
    let told = ask(&sync(&gate)?, known::appliances).await?;
    Ok(Json(json!({ "appliances": told })))
}

/// A link as it is shown.
pub(in crate::server) fn view(of: &PeerStanding) -> Value {
    let standing = &of.standing;
    json!({
        "node": of.peer.node,
        "name": of.peer.name,
        "address": of.peer.address,
        "state": standing.to_string(),
        "n_waiting": standing.n_waiting,
        "oldest_ms": standing.oldest_ms,
        "n_to_come": standing.n_to_come,
        "n_held": standing.n_held,
        "n_lost": standing.n_lost,
        "trouble": standing.trouble,
        "heard_ms": of.heard_ms,
        "n_failed": of.n_failed,
    })
}

async fn now(State(gate): State<Gate>) -> Result<Json<Value>, ApiError> {
    ask(&sync(&gate)?, Node::call_now).await?;
    gate.wake_sync();
    Ok(Json(json!({ "status": "called" })))
}

#[derive(Deserialize)]
struct RetryQuery {
    #[serde(default)]
    forget: bool,
}

async fn retry(
    State(gate): State<Gate>,
    Query(query): Query<RetryQuery>,
) -> Result<Json<Value>, ApiError> {
    let n = ask(&sync(&gate)?, move |sync| sync.retry(query.forget)).await?;
    let left = ask(&sync(&gate)?, |sync| Ok(sync.held()?.len())).await?;
    Ok(Json(json!({ "n_done": n, "n_left": left })))
}

#[derive(Deserialize)]
struct PlaceQuery {
    peer: String,
    address: String,
    /// SHA-256 of its certificate, where that is not the one of the pairing.
    #[serde(default)]
    certificate: Option<String>,
}

/// Says where a peer is called, or by an empty address that it is not.
async fn call_at(
    State(gate): State<Gate>,
    Query(PlaceQuery { peer, address, certificate }): Query<PlaceQuery>,
) -> Result<Json<Value>, ApiError> {
    let pin = certificate.map(|text| text.parse::<Fingerprint>()).transpose();
    let pin = pin.map_err(|error| ApiError::field("certificate", error.to_string()))?;
    let pin = pin.map(|pin| pin.0);
    let named = peer.clone();
    let found = ask(&sync(&gate)?, move |sync| sync.call_at(&named, &address, pin)).await?;
    let found = found.ok_or_else(|| unknown(&peer))?;
    gate.wake_sync();
    Ok(Json(json!({ "node": found.node, "name": found.name, "address": found.address })))
}

fn unknown(peer: &str) -> ApiError {
    ApiError::not_found(format!("there is no one peer {peer:?}"))
}

#[derive(Deserialize)]
struct ForgetQuery {
    peer: String,
}

/// Ends a pairing: what waits for the peer goes, and its keys open nothing any more.
async fn forget(
    State(gate): State<Gate>,
    Query(ForgetQuery { peer }): Query<ForgetQuery>,
) -> Result<Json<Value>, ApiError> {
    let named = peer.clone();
    let forgotten = ask(&sync(&gate)?, move |sync| sync.forget(&named)).await?;
    let forgotten = forgotten.ok_or_else(|| unknown(&peer))?;
    let key_name = peer_key_name(&forgotten.node);
    let keys = gate.clone();
    let revoked = tokio::task::spawn_blocking(move || keys.revoke_key(&key_name)).await;
    revoked.map_err(|_| ApiError::internal("the key could not be taken back"))?;
    if let Some(forward) = gate.forward() {
        forward.leave(&forgotten.node);
    }
    Ok(Json(json!({ "node": forgotten.node, "name": forgotten.name })))
}

#[derive(Deserialize)]
struct ExportQuery {
    peer: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    id: u64,
    /// A blob, and a piece of it; its outline if there is none.
    #[serde(default)]
    blob: Option<String>,
    #[serde(default)]
    piece: Option<u64>,
}

/// One frame for a stick; its head says behind which mark to ask next.
async fn export(
    State(gate): State<Gate>,
    Query(ExportQuery { peer, seq, id, blob, piece }): Query<ExportQuery>,
) -> Result<Response, ApiError> {
    let blob = blob.map(|blob| {
        BlobId::read(&blob).ok_or_else(|| ApiError::field("blob", "64 hexadecimal digits"))
    });
    let blob = blob.transpose()?;
    let page = move |sync: &Node| match blob {
        Some(id) => sync.export_piece(&peer, Ask { id, piece }),
        None => sync.export_page(&peer, (seq > 0).then_some(Mark { seq, id })).map(Some),
    };
    let frame = ask(&sync(&gate)?, page).await?;
    let frame = frame.ok_or_else(|| ApiError::not_found("this blob is not here"))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], frame).into_response())
}

async fn import(State(gate): State<Gate>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let told = ask(&sync(&gate)?, move |sync| sync.import(&mut &body[..])).await?;
    gate.wake_sync();
    let blobs: serde_json::Map<String, Value> =
        told.blobs.iter().map(|(id, is_whole)| (id.to_string(), (*is_whole).into())).collect();
    Ok(Json(json!({ "n_applied": told.n_applied, "blobs": blobs })))
}
