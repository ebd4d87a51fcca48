//! The PC's side of a pairing.

use serde_json::{Value, json};

use super::spent::Spent;
use super::{Card, FROM_ANSWERER, FROM_STARTER, Introduction, PairingError, VERSION};
use crate::base::hash::{hex, unhex};
use crate::pair::{Code, Hello, LETTERS, Part, Role, Side};
use crate::server::{Client, random_key};
use crate::store::{Peer, Store, now_ms};

/// Pairs with the appliance at `address` by the code that it shows, and keeps it in `store`, with
/// its certificate where it speaks TLS. It gets to know what stands on `card`, and calls this
/// machine if it can.
///
/// What proves the code is told within TLS or without, and so is the certificate: whoever stands in
/// between can neither read nor change it, but shows another one.
///
/// # Errors
/// As [`pair_with`], and if the store does not take it.
pub fn pair_and_keep(
    store: &Store,
    address: &str,
    code: &str,
    card: &Card,
) -> Result<Peer, PairingError> {
    let code = Code::read(code)?;
    // What cannot be kept spends no code.
    store.peers()?;
    let (node, key) = (store.node()?, random_key()?);
    let (client, shown) = Client::meet(address)?;
    let ours = Introduction {
        node,
        name: card.name.clone(),
        key,
        certificate: card.certificate.map(|own| own.to_string()),
        address: card.address_for(client.seen_at()),
    };
    let spent = Spent::new(store.dir());
    let theirs = pair_with(&client, code, &spent, &ours)?;
    let told = theirs.fingerprint()?;
    if told != shown {
        return Err(PairingError::InBetween { address: client.address().to_owned() });
    }
    let scheme = if told.is_some() { "https" } else { "http" };
    let peer = Peer {
        node: theirs.node,
        name: theirs.name,
        // Everybody who calls it means the same port.
        address: format!("{scheme}://{}", client.place()),
        key_digest: ours.key_digest(),
        paired_here: false,
        key: theirs.key,
        certificate: told.map(|own| own.0),
        paired_ms: now_ms(),
    };
    store.insert_peer(peer.clone())?;
    Ok(peer)
}

/// Pairs with the service that `client` speaks with, by the code that it shows, which is `spent`
/// then. `ours` is what it gets to know; what it tells comes back.
///
/// # Errors
/// If it is not there, shows another code or none, or somebody stands in between.
fn pair_with(
    client: &Client,
    code: Code,
    spent: &Spent,
    ours: &Introduction,
) -> Result<Introduction, PairingError> {
    let hello = Hello::new()?;
    let said = json!({"step": "hello", "version": VERSION, "public": hex(&hello.public)});
    let heard = ask(client, &said)?;
    let theirs = heard["public"].as_str().and_then(unhex);
    let theirs = theirs.ok_or(PairingError::Foreign("no public key"))?;
    let session = heard["session"].as_str().ok_or(PairingError::Foreign("no session"))?;
    // Before a letter is told, and only then: without an open code nothing is.
    if !spent.spend(&code)? {
        return Err(PairingError::Spent);
    }
    let mut side = Side::new(Role::Starter, hello, theirs, code)?;
    let tell = |step: &str, own: Part| {
        let said = json!({"step": step, "session": session, "part": hex(&own)});
        let heard = ask(client, &said)?;
        heard["part"].as_str().and_then(unhex::<Part>).ok_or(PairingError::Foreign("no part"))
    };
    for _ in 0..LETTERS {
        let theirs = tell("commit", side.commitment()?)?;
        side.bind(theirs)?;
        let theirs = tell("reveal", side.reveal()?)?;
        side.check(&theirs)?;
    }
    let sealer = side.sealer()?;
    let sealed = ours.seal(&sealer, FROM_STARTER)?;
    let heard = ask(client, &json!({"step": "finish", "session": session, "sealed": sealed}))?;
    let sealed = heard["sealed"].as_str().unwrap_or_default();
    Introduction::open(&sealer, FROM_ANSWERER, sealed)
        .ok_or(PairingError::Foreign("its introduction does not open"))
}

fn ask(client: &Client, said: &Value) -> Result<Value, PairingError> {
    Ok(client.post("POST", "/v1/pair", said.to_string().as_bytes())?)
}
