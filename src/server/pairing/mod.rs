//! Pairing over HTTP: the appliance's side at `/v1/pair`, and the PC's side that asks it.
//!
//! ```text
//! hello    public keys                         a try of the code is spent
//! commit, reveal                               once for each letter, see the room `pair`
//! finish   name, node and a key for each other, sealed with the secret
//! ```
//!
//! `offer` keeps the code that is shown, `desk` answers, `starter` asks, `spent` knows what was
//! typed. Nothing of it needs a key: it is where keys come from.

mod desk;
mod offer;
mod spent;
mod starter;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(super) use desk::PairDesk;
pub(super) use desk::routes;
pub use offer::PairOffer;
pub use starter::pair_and_keep;

use super::ClientError;
use crate::base::hash::{hex, unhex};
use crate::pair::PairError;
use crate::seal::Sealer;
use crate::store::StoreError;
use crate::tls::Fingerprint;

/// The version of these messages.
const VERSION: u64 = 1;
/// Names of what each side seals, so that neither can be taken for the other.
const FROM_STARTER: &str = "from the starter";
const FROM_ANSWERER: &str = "from the answerer";
/// Characters of a machine's name that are kept.
const NAME_CHARS_MAX: usize = 40;

/// Why two machines are not paired.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The exchange itself.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The code was typed here before.
    #[error(
        "this code was typed here before, and whoever was on the other side may know letters of \
         it; have the appliance show a new one (`jetforge pair`)"
    )]
    Spent,
    /// The other machine refuses, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its words are no words of a pairing.
    #[error("the other machine does not speak of pairing as this one does: {0}")]
    Foreign(&'static str),
    /// Whoever was spoken with is not who knows the code.
    #[error(
        "{address} shows another certificate than the machine that knows the code: somebody \
         stands in between, or ends its TLS; nothing was kept here, and `jetforge key revoke` \
         there takes back what was given"
    )]
    InBetween {
        /// Where.
        address: String,
    },
    /// The file of the code cannot be used.
    #[error("the pairing code: {0}")]
    Offer(#[from] std::io::Error),
    /// It is not kept.
    #[error("the pairing is not kept: {0}")]
    Store(#[from] StoreError),
}

/// What a machine tells another one of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// What people call it.
    pub name: String,
    /// Its certificate, where it speaks TLS.
    pub certificate: Option<Fingerprint>,
    /// Where it is called, if its owner says so.
    pub address: Option<String>,
    /// Where it listens.
    pub listens: Option<SocketAddr>,
}

impl Card {
    /// Where a machine calls this one that has a connection with it at `seen`; `None` if it cannot
    /// as far as this one knows.
    fn address_for(&self, seen: Option<IpAddr>) -> Option<String> {
        if self.address.is_some() {
            return self.address.clone();
        }
        let (listens, seen) = (self.listens?, seen?.to_canonical());
        let ip = match listens.ip() {
            all if all.is_unspecified() => seen,
            // Nobody else reaches that.
            own if own.is_loopback() && !seen.is_loopback() => return None,
            one => one,
        };
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        Some(format!("{scheme}://{}", SocketAddr::new(ip, listens.port())))
    }
}

/// What each side tells the other at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Introduction {
    /// What it calls itself: 16 hexadecimal digits.
    pub node: String,
    /// What people call it.
    pub name: String,
    /// The key that the other one sends to it.
    pub key: String,
    /// SHA-256 of its certificate, where it speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Where it can be called, such as `http://10.0.0.7:9999`, if it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl Introduction {
    /// SHA-256 of the key.
    pub fn key_digest(&self) -> [u8; 32] {
        Sha256::digest(self.key.as_bytes()).into()
    }

    /// Its certificate, if it tells one.
    ///
    /// # Errors
    /// If what it tells is none.
    pub fn fingerprint(&self) -> Result<Option<Fingerprint>, PairingError> {
        let told = self.certificate.as_ref().map(|text| text.parse::<Fingerprint>());
        told.transpose().map_err(|_| PairingError::Foreign("its certificate is told wrongly"))
    }

    fn seal(&self, sealer: &Sealer, whose: &str) -> std::io::Result<String> {
        Ok(hex(&sealer.wrap(whose, serde_json::to_string(self)?.as_bytes())?))
    }

    /// Opens what the other side sealed; a name is cut to what can be shown.
    fn open(sealer: &Sealer, whose: &str, sealed: &str) -> Option<Introduction> {
        let text = sealer.unwrap(whose, &unhex::<Vec<u8>>(sealed)?)?;
        let mut own: Introduction = serde_json::from_slice(&text).ok()?;
        let is_node = own.node.len() == 16 && own.node.bytes().all(|b| b.is_ascii_hexdigit());
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
        own.name = own.name.chars().filter(is_plain).take(NAME_CHARS_MAX).collect();
        let is_key = own.key.starts_with("jf-") && own.key.len() == 67;
        (is_node && is_key && !own.name.is_empty()).then_some(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_tells_an_address_that_the_other_one_can_reach() {
        let card = |listens: &str| Card { listens: listens.parse().ok(), ..Card::default() };
        let told = |card: &Card, seen: &str| card.address_for(seen.parse().ok());
        let all = card("0.0.0.0:9999");
        assert_eq!(told(&all, "10.0.0.7").unwrap(), "http://10.0.0.7:9999");
        assert_eq!(told(&all, "::ffff:10.0.0.7").unwrap(), "http://10.0.0.7:9999");
        assert_eq!(told(&card("[::]:99"), "fd00::7").unwrap(), "http://[fd00::7]:99");
        assert_eq!(told(&card("10.0.0.8:99"), "10.0.0.7").unwrap(), "http://10.0.0.8:99");
        let own = card("127.0.0.1:99");
        assert_eq!(told(&own, "127.0.0.1").unwrap(), "http://127.0.0.1:99");
        assert_eq!((told(&own, "10.0.0.7"), told(&card("no"), "10.0.0.7")), (None, None));
        let certificate = Some(Fingerprint([7; 32]));
        let over_tls = Card { certificate, ..card("0.0.0.0:9999") };
        assert_eq!(told(&over_tls, "10.0.0.7").unwrap(), "https://10.0.0.7:9999");
        let owners = Card { address: Some("http://pc.example:80".into()), ..over_tls };
        assert_eq!(told(&owners, "10.0.0.7").unwrap(), "http://pc.example:80");
    }

    #[test]
    fn programs_that_tell_no_address_and_those_that_do_understand_each_other() {
        let (node, name) = ("0123456789abcdef".to_owned(), "pc".to_owned());
        let key = format!("jf-{}", "0".repeat(64));
        let address = Some("http://10.0.0.7:9999".to_owned());
        let ours = Introduction { node, name, key, certificate: None, address };
        let mut told = serde_json::to_value(&ours).unwrap();
        // What an older program says: it has no such field. A newer one may have others.
        told.as_object_mut().unwrap().remove("address");
        let older: Introduction = serde_json::from_value(told.clone()).unwrap();
        assert_eq!(older, Introduction { address: None, ..ours });
        told["later"] = 1.into();
        assert_eq!(serde_json::from_value::<Introduction>(told).unwrap(), older);
    }
}
