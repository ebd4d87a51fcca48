//! `POST /v1/pair`: who shows a code hears who has it.
//!
//! One exchange at a time; a new one ends the one before. Each spends a try of the code, and a
//! wrong letter closes it, so nobody can learn letters by beginning again and again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{
    Card, FROM_ANSWERER, FROM_STARTER, Introduction, PairOffer, PairingError, VERSION,
    pair_and_keep,
};
use crate::base::hash::{hex, unhex};
use crate::pair::{Code, Hello, PairError, Part, Role, Side};
use crate::seal;
use crate::server::error::STORE_RETRY;
use crate::server::fields::Fields;
use crate::server::keys::{Class, Grant, KeyFile, Scope};
use crate::server::{ApiError, Gate};
use crate::store::{Peer, Store, StoreError, now_ms};
use crate::sync::host_of;

/// The routes of this file.
pub(in crate::server) fn routes() -> Router<Gate> {
    Router::new().route("/v1/pair", post(pair)).route("/v1/pair/ask", post(ask))
}

/// See the module. Clones share it.
#[derive(Clone)]
pub(in crate::server) struct PairDesk(Arc<Inner>);

struct Inner {
    offer: PairOffer,
    keys: KeyFile,
    store: Store,
    card: Card,
    listens: OnceLock<SocketAddr>,
    session: Mutex<Option<Session>>,
}

struct Session {
    id: String,
    side: Side,
    /// By which it began; it lives as long as that is shown.
    code: Code,
}

impl PairDesk {
    /// A desk that keeps those who pair in `store` and tells what stands on `card`.
    pub fn new(offer: PairOffer, keys: KeyFile, store: Store, card: Card) -> PairDesk {
        let (listens, session) = (OnceLock::new(), Mutex::default());
        PairDesk(Arc::new(Inner { offer, keys, store, card, listens, session }))
    }

    /// Tells from now on that the service is here.
    pub fn listens_at(&self, address: SocketAddr) {
        let _ = self.0.listens.set(address);
    }

    fn card(&self) -> Card {
        let own = &self.0.card;
        Card { listens: self.0.listens.get().copied().or(own.listens), ..own.clone() }
    }

    fn step(&self, fields: &Fields) -> Result<Value, ApiError> {
        let text = |name: &str| fields.0.get(name).and_then(Value::as_str);
        let step = text("step").unwrap_or_default();
        let no_part = || ApiError::field("part", "64 hex digits");
        let part = || text("part").and_then(unhex::<Part>).ok_or_else(no_part);
        // Held over every step: two that begin at once spend two tries, and nobody begins with a
        // code that another one is about to use up.
        let mut place = self.0.session.lock().unwrap_or_else(PoisonError::into_inner);
        if step == "hello" {
            return self.hello(fields, &mut place);
        }
        let session = place.as_mut().filter(|own| Some(own.id.as_str()) == text("session"));
        let session = session.ok_or_else(|| ApiError::not_found("there is no such pairing"))?;
        if !self.0.offer.shows(&session.code).map_err(internal)? {
            *place = None;
            return Err(ApiError::not_found("the code of this pairing is not good any more"));
        }
        let told = match step {
            "commit" => part().and_then(|part| {
                session.side.bind(part).and_then(|()| session.side.commitment()).map_err(refused)
            }),
            "reveal" => part().and_then(|part| {
                let own = session.side.reveal().map_err(refused)?;
                let checked = session.side.check(&part);
                if matches!(checked, Err(PairError::WrongCode)) {
                    self.0.offer.close().map_err(internal)?;
                }
                checked.map_err(refused)?;
                Ok(own)
            }),
            "finish" => {
                let told = self.finish(session, text("sealed").unwrap_or_default());
                *place = None;
                return told;
            }
            _ => Err(ApiError::field("step", "use hello, commit, reveal or finish")),
        };
        if told.is_err() {
            // One wrong word ends it.
            *place = None;
        }
        Ok(json!({ "part": hex(&told?) }))
    }

    fn hello(&self, fields: &Fields, place: &mut Option<Session>) -> Result<Value, ApiError> {
        if fields.0.get("version").and_then(Value::as_u64) != Some(VERSION) {
            let message = format!("this machine pairs by version {VERSION}; update the older one");
            return Err(ApiError::field("version", message));
        }
        let theirs = fields.0.get("public").and_then(Value::as_str).and_then(unhex);
        let theirs = theirs.ok_or_else(|| ApiError::field("public", "64 hex digits"))?;
        // What cannot be kept spends no try.
        self.0.store.peers().map_err(unkept)?;
        let code = self.0.offer.spend().map_err(internal)?;
        let closed = "no code is open; `jetforge pair` on this machine shows one";
        let code = code.ok_or_else(|| ApiError::not_found(closed))?;
        let hello = Hello::new().map_err(internal)?;
        let public = hello.public;
        let side = Side::new(Role::Answerer, hello, theirs, code.clone()).map_err(refused)?;
        let id = hex(&seal::random().map_err(internal)?[..8]);
        *place = Some(Session { id: id.clone(), side, code });
        Ok(json!({ "version": VERSION, "public": hex(&public), "session": id }))
    }

    /// Both know each other: keys change hands.
    fn finish(&self, session: &Session, sealed: &str) -> Result<Value, ApiError> {
        let sealer = session.side.sealer().map_err(refused)?;
        let theirs = Introduction::open(&sealer, FROM_STARTER, sealed)
            .ok_or_else(|| ApiError::field("sealed", "it does not open"))?;
        let node = self.0.store.node().map_err(internal)?;
        let known = self.0.store.peer(&theirs.node).ok().flatten();
        // What that one asked is its own, and is not for whoever says to be it.
        if let Some(other) = known.as_ref().filter(|known| known.name != theirs.name) {
            self.0.offer.close().map_err(internal)?;
            return Err(ApiError::conflict(other_name(&theirs, other)));
        }
        let grant = Grant {
            scopes: vec![Scope::Inference],
            class: Class::Interactive,
            per_minute: None,
            at_once: None,
        };
        let key = self.0.keys.create_for_peer(&theirs.node, grant).map_err(internal)?;
        let Card { name, certificate, .. } = self.card();
        let certificate = certificate.map(|own| own.to_string());
        // It knows where this one is: it called.
        let ours = Introduction { node, name, key, certificate, address: None };
        let told = theirs.address.as_ref().filter(|address| host_of(address).is_some());
        let peer = Peer {
            node: theirs.node.clone(),
            name: theirs.name.clone(),
            // Who pairs again and says nothing is where it was.
            address: told.cloned().or(known.map(|known| known.address)).unwrap_or_default(),
            paired_here: true,
            key: theirs.key.clone(),
            key_digest: ours.key_digest(),
            certificate: theirs.fingerprint().ok().flatten().map(|own| own.0),
            paired_ms: now_ms(),
        };
        self.0.store.insert_peer(peer).map_err(unkept)?;
        self.0.offer.close().map_err(internal)?;
        tracing::info!(peer = theirs.name, node = theirs.node, "paired");
        Ok(json!({ "sealed": ours.seal(&sealer, FROM_ANSWERER).map_err(internal)? }))
    }
}

/// Why a machine is not paired that is known by another name.
fn other_name(theirs: &Introduction, known: &Peer) -> String {
    let (node, name, before) = (&theirs.node, &theirs.name, &known.name);
    format!(
        "the machine {node} is paired here as {before:?}, and now calls itself {name:?}: pair as \
         {before:?} (`jetforge setup --name`), or end that pairing first, by `jetforge sync \
         forget {node}` here"
    )
}

/// Has this machine pair with an appliance, for an owner whose service holds the store.
async fn ask(State(gate): State<Gate>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let missing = || ApiError::not_supported("this service keeps no state and cannot be paired");
    let desk = gate.pair_desk().cloned().ok_or_else(missing)?;
    let text = |name: &str| fields.0.get(name).and_then(Value::as_str).unwrap_or_default();
    let (address, code) = (text("address").to_owned(), text("code").to_owned());
    let mut card = desk.card();
    if !text("name").is_empty() {
        card.name = text("name").to_owned();
    }
    let asked = move || pair_and_keep(&desk.0.store, &address, &code, &card);
    let peer = tokio::task::spawn_blocking(asked).await.map_err(internal)?;
    let peer = peer.map_err(not_paired)?;
    let mut told = json!({ "node": peer.node, "name": peer.name });
    if let Some(forward) = gate.forward() {
        told["is_asked"] = Arc::clone(forward).join(peer).into();
    }
    Ok(Json(told))
}

/// Why this machine did not pair: what it did not keep itself is no matter of the other one.
fn not_paired(error: PairingError) -> ApiError {
    let message = error.to_string();
    match error {
        PairingError::Pair(PairError::NoCode) | PairingError::Spent => {
            ApiError::field("code", message)
        }
        PairingError::Store(error) => ApiError { message, ..ApiError::from(&error) },
        PairingError::Offer(error) => ApiError::unkept("the pairing code is not kept", &error),
        _ => ApiError::new(StatusCode::BAD_GATEWAY, "upstream_error", message),
    }
}

async fn pair(State(gate): State<Gate>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let missing = || ApiError::not_supported("this service keeps no state and cannot be paired");
    let desk = gate.pair_desk().cloned().ok_or_else(missing)?;
    // It writes to the disk.
    let told = tokio::task::spawn_blocking(move || desk.step(&fields)).await;
    Ok(Json(told.map_err(internal)??))
}

fn unkept(error: StoreError) -> ApiError {
    match error.is_disk_full() {
        true => ApiError::from(&error),
        false => ApiError::unavailable(format!("the pairing cannot be kept: {error}"), STORE_RETRY),
    }
}

fn refused(error: PairError) -> ApiError {
    match error {
        PairError::WrongCode => {
            ApiError::new(StatusCode::FORBIDDEN, "permission_error", error.to_string())
        }
        PairError::Random(_) => internal(error),
        error => ApiError::conflict(error.to_string()),
    }
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::PAIR_TRIES_MAX;
    use crate::server::pairing::PairOffer;

    #[test]
    fn what_is_not_kept_here_is_no_fault_of_the_other_machine() {
        let status = |error: PairingError| not_paired(error).status.as_u16();
        assert_eq!(status(StoreError::Busy.into()), 503);
        let away = StoreError::Away { place: "hub".into(), why: "it was killed".into() };
        assert_eq!(status(away.into()), 503);
        assert_eq!(status(StoreError::PeersFull { n: 64 }.into()), 409);
        assert_eq!(status(std::io::Error::other("the disk is full").into()), 500);
        assert_eq!(status(PairingError::Spent), 400);
        assert_eq!(status(PairingError::Foreign("no part")), 502);
    }

    #[test]
    fn an_exchange_ends_with_its_code() {
        let dir = tempfile::tempdir().unwrap();
        let offer = PairOffer::new(dir.path());
        let store = Store::open(dir.path()).unwrap().store;
        let keys = KeyFile::new(dir.path());
        let desk = PairDesk::new(offer.clone(), keys, store, Card::default());
        let public = hex(&Hello::new().unwrap().public);
        let say = |said: Value| desk.step(&Fields(said.as_object().unwrap().clone()));
        let begin = || {
            offer.make().unwrap();
            say(json!({"step": "hello", "version": VERSION, "public": public})).unwrap()
        };
        let commit = |begun: &Value| {
            let part = hex(&[7; 32]);
            let said = say(json!({"step": "commit", "session": begun["session"], "part": part}));
            said.map(|_| ()).map_err(|error| error.status.as_u16())
        };
        assert_eq!(commit(&begin()), Ok(()));
        let begun = begin();
        offer.close().unwrap();
        assert_eq!(commit(&begun), Err(404), "the code was taken back");
        let begun = begin();
        offer.make().unwrap();
        assert_eq!(commit(&begun), Err(404), "another one is shown");
        assert!(offer.spend().unwrap().is_some(), "which is still good");
    }

    #[test]
    fn who_begins_many_exchanges_at_once_has_no_more_tries_than_others() {
        let dir = tempfile::tempdir().unwrap();
        let offer = PairOffer::new(dir.path());
        offer.make().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let keys = KeyFile::new(dir.path());
        let desk = PairDesk::new(offer, keys, store, Card::default());
        let public = hex(&Hello::new().unwrap().public);
        let said = json!({"step": "hello", "version": VERSION, "public": public});
        let fields = Fields(said.as_object().unwrap().clone());
        let begin = || desk.step(&fields).is_ok();
        let n_begun = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..40).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|ok| *ok).count()
        });
        assert_eq!(n_begun, PAIR_TRIES_MAX as usize);
    }
}
