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

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(super) use desk::PairDesk;
pub(super) use desk::routes;
pub use offer::PairOffer;
pub use starter::pair_and_keep;

use super::ClientError;
use crate::pair::{PART_LEN, PairError, Part};
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
        let text = sealer.unwrap(whose, &unhex(sealed)?)?;
        let mut own: Introduction = serde_json::from_slice(&text).ok()?;
        let is_node = own.node.len() == 16 && own.node.bytes().all(|b| b.is_ascii_hexdigit());
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
        own.name = own.name.chars().filter(is_plain).take(NAME_CHARS_MAX).collect();
        let is_key = own.key.starts_with("jf-") && own.key.len() == 67;
        (is_node && is_key && !own.name.is_empty()).then_some(own)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.len() % 2 != 0 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

fn part(text: Option<&str>) -> Option<Part> {
    let bytes = unhex(text?)?;
    <[u8; PART_LEN]>::try_from(bytes).ok()
}
