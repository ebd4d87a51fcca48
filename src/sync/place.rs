//! Where a peer is called: `http://HOST:PORT`, or `https` by the certificate of its pairing.

use super::{Node, Refusal, SyncError};
use crate::base::limits::PEER_ADDRESS_BYTES_MAX;
use crate::store::Peer;

/// `host:port` of `http://host:port`, and whether it is `https`.
pub fn host_of(address: &str) -> Option<(&str, bool)> {
    let (rest, is_https) = match address.strip_prefix("https://") {
        Some(rest) => (rest, true),
        None => (address.strip_prefix("http://")?, false),
    };
    let rest = rest.trim_end_matches('/');
    let is_plain = !rest.is_empty() && !rest.contains(['/', '@', '?', '#']);
    let is_short = address.len() <= PEER_ADDRESS_BYTES_MAX;
    let is_word = !rest.contains(|c: char| c.is_whitespace() || c.is_control());
    (is_plain && is_short && is_word).then_some((rest, is_https))
}

impl Node {
    /// Calls a peer, by its name or node, at `address` from now on, and waits for its calls alone
    /// where that is empty. `certificate` takes the place of the one of its pairing. Who it is, if
    /// there is one.
    ///
    /// # Errors
    /// If that is no address, nothing is known to trust it by, or the disk does not take it.
    pub fn call_at(
        &self,
        peer: &str,
        address: &str,
        certificate: Option<[u8; 32]>,
    ) -> Result<Option<Peer>, SyncError> {
        let Some(found) = self.named(peer)? else { return Ok(None) };
        let certificate = certificate.or(found.certificate);
        let why = match host_of(address) {
            None if !address.is_empty() => Some("use http://HOST:PORT or https://HOST:PORT"),
            Some((_, true)) if certificate.is_none() => {
                Some("the SHA-256 of its certificate is not known; it is shown when it starts")
            }
            _ => None,
        };
        if let Some(why) = why {
            return Err(Refusal::Address { address: address.to_owned(), why }.into());
        }
        if !self.store().move_peer(&found.node, address, certificate)? {
            return Ok(None);
        }
        self.call_now()?;
        Ok(Some(Peer { address: address.to_owned(), certificate, key: String::new(), ..found }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(host_of("http://10.0.0.7:9999/"), Some(("10.0.0.7:9999", false)));
        assert_eq!(host_of("https://pc.lan:8080"), Some(("pc.lan:8080", true)));
        for wrong in [
            "",
            "pc.lan",
            "ftp://pc",
            "https://",
            "http://",
            "http://a@b",
            "http://a b",
            "http://a\rb",
            "http://a/b",
        ] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
        assert_eq!(host_of(&format!("http://{}", "a".repeat(PEER_ADDRESS_BYTES_MAX))), None);
    }
}
