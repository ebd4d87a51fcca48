//! The service that a verb speaks with: where it is, the key to show, and whom to trust.
//!
//! ```text
//! --certificate               that certificate
//! a paired machine's address  the certificate of its pairing
//! this machine, and TLS       the certificate of its state directory
//! any other https             the system's authorities
//! ```

use std::net::IpAddr;

use clap::Args;

use crate::app::App;
use crate::server::Client;
use crate::store::pinned;
use crate::tls::{Fingerprint, Trust};

/// Options of every verb that speaks with a running service.
#[derive(Clone, Debug, Default, Args)]
pub struct Remote {
    /// Where the service is; the configured address by default
    #[arg(long, global = true, value_name = "URL")]
    pub url: Option<String>,
    /// The key to show
    #[arg(long, global = true, value_name = "KEY")]
    pub key: Option<String>,
    /// SHA-256 of its certificate; those of this machine and of paired ones are known
    #[arg(long = "certificate", id = "certificate", global = true, value_name = "SHA256")]
    pub pin: Option<Fingerprint>,
}

impl Remote {
    /// The service that is named, else the one of this machine.
    pub fn service(&self, app: &App) -> anyhow::Result<Client> {
        self.at(app, app.config().server.port)
    }

    /// The hub or service that is named, else the hub of this machine.
    pub fn hub(&self, app: &App) -> anyhow::Result<Client> {
        self.at(app, app.config().hub.port)
    }

    fn at(&self, app: &App, port: u16) -> anyhow::Result<Client> {
        let server = &app.config().server;
        let (url, pin) = match &self.url {
            Some(url) => (url.clone(), self.pin_of(app, url)?),
            None => {
                let own = || app.own_fingerprint().filter(|_| server.speaks_tls());
                (with_port(&server.host, port), self.pin.or_else(own))
            }
        };
        Ok(Client::new(&url, self.key.clone(), pin.map(Trust::pinned))?)
    }

    /// The certificate that an address is known by.
    fn pin_of(&self, app: &App, url: &str) -> anyhow::Result<Option<Fingerprint>> {
        if self.pin.is_some() || url.starts_with("http://") {
            return Ok(self.pin);
        }
        let place = place_of(url);
        let mut paired = pinned(&app.dirs.state, app.shared_store().as_ref())?.into_iter();
        if let Some((_, pin)) = paired.find(|(address, _)| place_of(address) == place) {
            return Ok(Some(Fingerprint(pin)));
        }
        let is_own = url.starts_with("https://") && is_this_machine(place);
        Ok(is_own.then(|| app.own_fingerprint()).flatten())
    }
}

/// `host:port`, brackets around an address that has colons.
pub fn with_port(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn place_of(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, place)| place).trim_end_matches('/')
}

fn is_this_machine(place: &str) -> bool {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_as_they_are_written() {
        assert_eq!(place_of("https://nano:8080/"), place_of("nano:8080"));
        assert_eq!(with_port("::1", 9), "[::1]:9");
        assert_eq!(with_port("nano", 9), "nano:9");
        assert!(is_this_machine("[::1]:9") && is_this_machine("localhost:9"));
        assert!(is_this_machine("127.0.0.1") && !is_this_machine("10.0.0.7:9"));
    }
}
