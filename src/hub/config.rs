//! The section `hub` of the configuration.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::target::Target;
use crate::base::limits::{HUB_BACKENDS_MAX, HUB_TRIES_MAX};
use crate::store::SharedOptions;

/// The section `hub`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Appliances, as `host:port` or URLs.
    pub nano: Vec<String>,
    /// Servers that speak OpenAI's words, as URLs. Prompts leave for them; none unless configured.
    pub external_llama: Vec<String>,
    /// Whether this machine's service tells hubs on the LAN where it is.
    pub announce: bool,
    /// Where machines tell and ask, by multicast DNS.
    pub discovery: SocketAddrV4,
    /// Where appliances call this hub, as `http://HOST:PORT`, where that is not where they see it.
    pub address: Option<String>,
    /// A file with the keys of backends: on each line an address as above, a space, its key.
    pub key_file: Option<PathBuf>,
    /// Whether this machine's own engine answers as well.
    pub local: bool,
    /// Backends that one request tries.
    pub n_try: usize,
    /// Time after which a second backend is asked beside a first one that has said nothing; 0 asks
    /// one at a time.
    pub hedge_ms: u64,
    /// Time for a connection.
    pub connect_ms: u64,
    /// Time for the head of a stream.
    pub head_ms: u64,
    /// Time for an answer that comes whole.
    pub answer_ms: u64,
    /// Time for each of these with servers outside, and longest silence within their streams; unset
    /// for the same as with appliances.
    pub external_ms: Option<u64>,
    /// Longest silence within a stream.
    pub idle_ms: u64,
    /// Time between two probes.
    pub probe_ms: u64,
    /// Where what syncs is kept, as `postgres://USER@HOST/NAME`, if several processes share it;
    /// unset keeps it beside the jobs.
    pub store: Option<String>,
    /// A file with the password of its user.
    pub store_password_file: Option<PathBuf>,
    /// A copy of the device key that it was made with; this machine's own by default.
    pub store_key_file: Option<PathBuf>,
    /// Whether it may be on another machine, though nothing is encrypted on the way there.
    pub store_plain: bool,
    /// Time for a probe.
    pub probe_wait_ms: u64,
}

impl Default for HubConfig {
    fn default() -> HubConfig {
        HubConfig {
            port: 9999,
            nano: Vec::new(),
            external_llama: Vec::new(),
            announce: false,
            discovery: crate::discovery::GROUP,
            address: None,
            key_file: None,
            local: true,
            n_try: HUB_TRIES_MAX,
            hedge_ms: 0,
            connect_ms: 3000,
            head_ms: 120_000,
            answer_ms: 600_000,
            external_ms: None,
            idle_ms: 60_000,
            probe_ms: 5000,
            store: None,
            store_password_file: None,
            store_key_file: None,
            store_plain: false,
            probe_wait_ms: 2000,
        }
    }
}

/// How long the hub waits for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    pub connect: Duration,
    pub head: Duration,
    pub answer: Duration,
    pub idle: Duration,
    pub probe: Duration,
}

impl HubConfig {
    /// The first value out of range: its key and what is wrong.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=HUB_BACKENDS_MAX).contains(&self.n_try) {
            return Err(("hub.n_try", format!("must be 1 to {HUB_BACKENDS_MAX}")));
        }
        self.shared().map_err(|why| ("hub.store", why))?;
        let is_place = |address: &String| {
            let target = Target::read(address, None);
            address.contains("://") && target.is_ok_and(|target| target.prefix.is_empty())
        };
        if !self.address.as_ref().is_none_or(is_place) {
            return Err(("hub.address", "use http://HOST:PORT or https://HOST:PORT".to_owned()));
        }
        let times = [
            ("hub.connect_ms", self.connect_ms),
            ("hub.head_ms", self.head_ms),
            ("hub.answer_ms", self.answer_ms),
            ("hub.external_ms", self.external_ms.unwrap_or(1)),
            ("hub.idle_ms", self.idle_ms),
            ("hub.probe_ms", self.probe_ms),
            ("hub.probe_wait_ms", self.probe_wait_ms),
        ];
        match times.into_iter().find(|(_, ms)| *ms == 0) {
            Some((key, _)) => Err((key, "must be at least 1".to_owned())),
            None => Ok(()),
        }
    }

    /// The name by which appliances call this hub, if its owner says one.
    pub fn called(&self) -> Option<String> {
        let target = Target::read(self.address.as_ref()?, None).ok()?;
        Some(target.host.to_ascii_lowercase())
    }

    /// The store that several processes share, if there is one.
    ///
    /// # Errors
    /// What is wrong with its address, or that this program cannot speak with it.
    pub fn shared(&self) -> Result<Option<SharedOptions>, String> {
        let Some(url) = &self.store else { return Ok(None) };
        let options = SharedOptions::new(url, self.store_plain)?;
        let (password_file, key_file) =
            (self.store_password_file.clone(), self.store_key_file.clone());
        Ok(Some(SharedOptions { password_file, key_file, ..options }))
    }

    pub(super) fn waits(&self) -> Waits {
        Waits {
            connect: Duration::from_millis(self.connect_ms),
            head: Duration::from_millis(self.head_ms),
            answer: Duration::from_millis(self.answer_ms),
            idle: Duration::from_millis(self.idle_ms),
            probe: Duration::from_millis(self.probe_wait_ms),
        }
    }
}
