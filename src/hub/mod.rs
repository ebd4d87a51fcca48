//! Floor 5.5: the hub: one address before this machine's engine, appliances, and servers outside.
//!
//! ```text
//! client -> the service's gate -> hub: policy ranks -> this engine
//!                                  ^                -> an appliance       over HTTP, streamed
//!              probes every 5 s ---+                -> a server outside   only if configured
//! ```
//!
//! `policy`, `health`, `retry` and `replay` decide and know no network; `relay` and `stream` carry
//! out what they say; `hand` gives jobs to appliances, `withdraw` takes them back; `probe` finds
//! out who is well. The hub is a layer of the service: keys, quotas, bounds, jobs and dialects are
//! the service's own.

mod ask;
mod backend;
mod config;
mod dial;
mod front;
mod hand;
mod health;
mod policy;
mod probe;
mod relay;
mod replay;
mod retry;
mod stream;
mod target;
mod withdraw;
#[cfg(test)]
mod world_tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use backend::Backend;
pub use config::HubConfig;
use config::Waits;
use dial::Dialer;
use health::Moment;
pub use policy::{Kind, Stocked};
pub use probe::Probes;
use target::Target;
use tokio::task::JoinHandle;

use crate::base::limits::HUB_BACKENDS_MAX;
use crate::store::Peer;
use crate::tls::Fingerprint;

/// The port of an appliance whose address names none.
const NANO_PORT: u16 = 8080;
/// The name of this machine's engine.
const LOCAL: &str = "local";

/// Why there is no hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// An address is none.
    #[error("{text:?} is no address of a backend: {why}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The file of keys cannot be used.
    #[error("keys of backends in {}: {why}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There are too many backends.
    #[error("a hub has at most {HUB_BACKENDS_MAX} backends")]
    TooMany,
}

/// A backend as it is configured.
#[derive(Clone, Debug)]
pub struct BackendOptions {
    /// An appliance or a server outside.
    pub kind: Kind,
    /// `host:port` or a URL.
    pub address: String,
    /// What answers are said to come from; `host:port` where there is none.
    pub name: Option<String>,
    /// The key to show.
    pub key: Option<String>,
    /// Its certificate, where it was paired over TLS.
    pub certificate: Option<Fingerprint>,
    /// What it calls itself, where its key is that of a pairing: it goes with that.
    pub node: Option<String>,
}

impl BackendOptions {
    /// A machine that this one is paired with.
    pub fn paired(peer: Peer) -> BackendOptions {
        BackendOptions {
            kind: Kind::Appliance,
            address: peer.address,
            name: Some(peer.name),
            key: Some(peer.key),
            certificate: peer.certificate.map(Fingerprint),
            node: Some(peer.node),
        }
    }

    /// Whether it is the one at this address, however that is spelled, with TLS or without.
    ///
    /// # Errors
    /// If one of them is no address.
    pub fn is_at(&self, address: &str) -> Result<bool, HubError> {
        let default_port = (self.kind == Kind::Appliance).then_some(NANO_PORT);
        Ok(self.target()?.is_place_of(&Target::read(address, default_port)?))
    }

    fn backend(self) -> Result<Arc<Backend>, HubError> {
        let target = self.target()?;
        let name = self.name.unwrap_or_else(|| target.authority());
        Ok(Backend::new(self.kind, name, Some(target), self.key, self.certificate, self.node))
    }

    fn target(&self) -> Result<Target, HubError> {
        let default_port = (self.kind == Kind::Appliance).then_some(NANO_PORT);
        Target::read(&self.address, default_port)
    }
}

/// How this machine's engine stands.
#[derive(Clone, Debug, Default)]
pub struct LocalView {
    /// Its models.
    pub stock: Vec<Stocked>,
    /// Requests that it answers at once.
    pub n_place: usize,
    /// Requests that run and wait.
    pub n_busy: usize,
}

/// This machine's engine as a backend.
pub struct LocalOptions {
    /// Looks at it.
    pub look: Box<dyn Fn() -> LocalView + Send + Sync>,
    /// Whether it is for when nobody else is there.
    pub is_spare: bool,
}

/// See the module.
pub struct Hub {
    config: HubConfig,
    backends: RwLock<Vec<Arc<Backend>>>,
    /// Whether it was told with whom it is paired.
    has_met: AtomicBool,
    probes: Mutex<Option<Vec<JoinHandle<()>>>>,
    look: Option<Box<dyn Fn() -> LocalView + Send + Sync>>,
    dialer: Dialer,
    started: Instant,
    n_random: AtomicU64,
}

impl Hub {
    /// A hub before `backends`, and before this machine's engine where `local` says so.
    ///
    /// # Errors
    /// If an address is none, or there are too many.
    pub fn new(
        config: HubConfig,
        backends: Vec<BackendOptions>,
        local: Option<LocalOptions>,
    ) -> Result<Arc<Hub>, HubError> {
        let mut own = Vec::new();
        for options in backends {
            own.push(options.backend()?);
        }
        let look = local.map(|local| {
            let backend = Backend::new(Kind::Local, LOCAL.to_owned(), None, None, None, None);
            let mut state = backend.state();
            // A request can name a model of the store, which is loaded then.
            (state.is_spare, state.may_have_more) = (local.is_spare, !local.is_spare);
            state.health.probed(0, u64::MAX);
            drop(state);
            own.push(backend);
            local.look
        });
        if own.len() > HUB_BACKENDS_MAX {
            return Err(HubError::TooMany);
        }
        let dialer = Dialer::new(config.waits().connect);
        let seed = RandomState::new().build_hasher().finish();
        Ok(Arc::new(Hub {
            config,
            backends: RwLock::new(own),
            has_met: AtomicBool::new(false),
            probes: Mutex::new(None),
            look,
            dialer,
            started: Instant::now(),
            n_random: AtomicU64::new(seed),
        }))
    }

    fn config(&self) -> &HubConfig {
        &self.config
    }

    fn waits(&self) -> Waits {
        self.config.waits()
    }

    /// How long is waited for a backend: its owner's patience, with a server outside.
    fn waits_of(&self, backend: &Backend) -> Waits {
        let waits = self.waits();
        match self.config.external_ms.filter(|_| backend.kind == Kind::External) {
            Some(ms) => {
                let wait = Duration::from_millis(ms);
                Waits { head: wait, answer: wait, idle: wait, ..waits }
            }
            None => waits,
        }
    }

    /// The backends of this moment.
    fn backends(&self) -> Vec<Arc<Backend>> {
        self.backends.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks, of the machines that this one is paired with, exactly these from now on; those that
    /// paired by a code of this one call, and are not asked. What was typed stays; its machine is
    /// spoken to as it was paired.
    pub fn meet(self: &Arc<Hub>, peers: Vec<Peer>) {
        let is_asked = |peer: &Peer| !peer.address.is_empty() && !peer.paired_here;
        let peers: Vec<Peer> = peers.into_iter().filter(is_asked).collect();
        let is_gone = |node: &String| !peers.iter().any(|peer| peer.node == *node);
        for node in self.backends().iter().filter_map(|own| own.node.clone()).filter(is_gone) {
            self.remove(&node);
        }
        for peer in peers {
            let name = peer.name.clone();
            match self.missing(peer) {
                Ok(None) => {}
                Ok(Some(backend)) => {
                    if !probe::join(self, backend) {
                        tracing::warn!(name, "there is no place for a machine that was paired");
                    }
                }
                Err(error) => tracing::warn!(%error, name, "a machine that was paired is left out"),
            }
        }
        self.has_met.store(true, Ordering::Relaxed);
    }

    /// Whether it was told with whom it is paired: its store may not be there yet.
    fn has_met(&self) -> bool {
        self.has_met.load(Ordering::Relaxed)
    }

    /// The backend of a peer, unless there is one already.
    fn missing(&self, peer: Peer) -> Result<Option<Arc<Backend>>, HubError> {
        let mut options = BackendOptions::paired(peer);
        let target = options.target()?;
        let is_there = |own: &&Arc<Backend>| {
            let is_place = own.target.as_ref().is_some_and(|own| own.is_place_of(&target));
            own.kind == Kind::Appliance && is_place
        };
        let backends = self.backends();
        let old = backends.iter().find(is_there);
        if let Some(typed) = old.filter(|old| old.node.is_none()) {
            options.name = Some(typed.name.clone());
            // A key that was typed is what its owner wants to be shown.
            if let Some(key) = &typed.key {
                (options.key, options.node) = (Some(key.clone()), None);
            }
        }
        let backend = options.backend()?;
        Ok((!old.is_some_and(|old| old.is_same(&backend))).then_some(backend))
    }

    /// Takes a backend in, in the place of one at the same address or of the same machine; whether
    /// there is a place.
    fn add(&self, backend: Arc<Backend>) -> bool {
        let mut own = self.backends.write().unwrap_or_else(PoisonError::into_inner);
        let is_it = |old: &Arc<Backend>| {
            let is_machine = old.node.is_some() && old.node == backend.node;
            let places = old.target.as_ref().zip(backend.target.as_ref());
            is_machine || places.is_some_and(|(old, new)| old.is_place_of(new))
        };
        own.retain(|old| !is_it(old));
        let has_place = own.len() < HUB_BACKENDS_MAX;
        if has_place {
            own.insert(0, backend);
        }
        has_place
    }

    /// Lets the backend go that was paired as `node`. What it is at work on goes on; probes end.
    fn remove(&self, node: &str) {
        let mut own = self.backends.write().unwrap_or_else(PoisonError::into_inner);
        own.retain(|backend| backend.node.as_deref() != Some(node));
    }

    fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// The hub's clock, from 1: 0 is before everything.
    fn now_ms(&self) -> u64 {
        1 + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn random(&self) -> u64 {
        policy::mix(self.n_random.fetch_add(1, Ordering::Relaxed))
    }

    fn moment(&self) -> Moment {
        Moment { now_ms: self.now_ms(), random: self.random() }
    }

    /// Learns how this machine's engine stands.
    fn look_at_local(&self) {
        let local = self.backends().into_iter().find(|backend| backend.target.is_none());
        if let (Some(look), Some(backend)) = (&self.look, local) {
            let view = look();
            backend.count(view.n_busy);
            let mut state = backend.state();
            state.stock = Some(view.stock);
            state.n_place = view.n_place;
        }
    }

    /// Every model that a backend lists.
    fn model_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for backend in self.backends() {
            let state = backend.state();
            let stock = state.stock.iter().flatten();
            names.extend(stock.filter_map(|model| model.names.first().cloned()));
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str, address: &str) -> Peer {
        let (node, address) = (node.to_owned(), address.to_owned());
        Peer {
            name: format!("name of {node}"),
            key: format!("key of {node}"),
            node,
            address,
            ..Peer::default()
        }
    }

    fn typed(address: &str, key: Option<&str>) -> BackendOptions {
        let (kind, address, key) = (Kind::Appliance, address.to_owned(), key.map(str::to_owned));
        BackendOptions { kind, address, name: None, key, certificate: None, node: None }
    }

    /// Where it asks, and with which key.
    fn asked(hub: &Hub) -> Vec<(String, String)> {
        let of = |own: &Arc<Backend>| {
            let target = own.target.as_ref()?;
            let scheme = if target.is_https { "https" } else { "http" };
            let address = format!("{scheme}://{}", target.authority());
            Some((address, own.key.clone().unwrap_or_default()))
        };
        let mut asked: Vec<_> = hub.backends().iter().filter_map(of).collect();
        asked.sort();
        asked
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(address, key)| (address.to_string(), key.to_string())).collect()
    }

    #[test]
    fn a_hub_asks_those_that_are_paired_now_and_keeps_what_it_knows_of_them() {
        let hub = Hub::new(HubConfig::default(), vec![typed("typed", None)], None).unwrap();
        let caller = Peer { paired_here: true, ..peer("caller", "http://caller:9999") };
        hub.meet(vec![peer("a", "http://a:8080"), caller, peer("silent", "")]);
        let both = pairs(&[("http://a:8080", "key of a"), ("http://typed:8080", "")]);
        assert_eq!(asked(&hub), both, "who only calls is not asked");
        let known = hub.backends().into_iter().find(|own| own.node.is_some()).unwrap();
        hub.meet(vec![peer("a", "http://a:8080"), peer("b", "http://b:8080")]);
        let is_known = |own: &Arc<Backend>| Arc::ptr_eq(own, &known);
        assert!(hub.backends().iter().any(is_known), "how it stands is not forgotten");
        // Paired again at another address, and with another key; the other one was forgotten.
        hub.meet(vec![Peer { key: "new".into(), ..peer("a", "http://moved:8080") }]);
        let moved = pairs(&[("http://moved:8080", "new"), ("http://typed:8080", "")]);
        assert_eq!(asked(&hub), moved);
        let paired = BackendOptions::paired(peer("a", "http://a:8080"));
        assert!(hub.add(paired.backend().unwrap()));
        assert_eq!(asked(&hub), both, "one machine is one backend");
        hub.meet(Vec::new());
        assert_eq!(asked(&hub), pairs(&[("http://typed:8080", "")]));
    }

    #[test]
    fn a_machine_that_was_typed_and_paired_is_spoken_to_as_it_was_paired() {
        let given = vec![typed("NANO", None), typed("other:8080", Some("typed"))];
        let hub = Hub::new(HubConfig::default(), given, None).unwrap();
        let over_tls = |peer: Peer| Peer { certificate: Some([7; 32]), ..peer };
        let peers = vec![
            over_tls(peer("a", "https://nano:8080")),
            over_tls(peer("b", "https://other:8080")),
        ];
        hub.meet(peers.clone());
        let expected = [("https://nano:8080", "key of a"), ("https://other:8080", "typed")];
        assert_eq!(asked(&hub), pairs(&expected), "with the key that was typed, if one was");
        assert!(hub.backends().iter().all(|own| own.trust.is_some()));
        let names = || hub.backends().iter().map(|own| own.name.clone()).collect::<Vec<_>>();
        let before = names();
        assert!(before.contains(&"other:8080".to_owned()), "{before:?}");
        hub.meet(peers);
        assert_eq!(names(), before);
    }

    #[test]
    fn a_machine_that_was_typed_and_is_paired_later_has_the_jobs_that_it_had() {
        let given = vec![typed("NANO", None), typed("other:8080", Some("typed"))];
        let hub = Hub::new(HubConfig::default(), given, None).unwrap();
        let names = |hub: &Hub| -> Vec<String> {
            hub.backends().iter().map(|own| own.identity()).collect()
        };
        let had = names(&hub);
        assert!(had.contains(&"NANO:8080".to_owned()), "{had:?}");
        for peer in [peer("a", "http://nano:8080"), peer("b", "http://other:8080")] {
            assert!(crate::server::Forward::join(Arc::clone(&hub), peer));
        }
        let expected = [("http://nano:8080", "key of a"), ("http://other:8080", "typed")];
        assert_eq!(asked(&hub), pairs(&expected), "a key that was typed is shown as before");
        let n_known = |hub: &Hub, name: &str| {
            hub.backends().iter().filter(|own| own.is_known_as(name)).count()
        };
        for name in &had {
            assert_eq!(n_known(&hub, name), 1, "{name}");
        }
        assert_eq!(n_known(&hub, "a"), 1, "and those that it is given from now on");
        // What was typed need not be typed again.
        let hub = Hub::new(HubConfig::default(), Vec::new(), None).unwrap();
        hub.meet(vec![peer("a", "http://nano:8080"), peer("c", "http://nano:8081")]);
        assert_eq!(n_known(&hub, "NANO:8080"), 1);
    }
}
