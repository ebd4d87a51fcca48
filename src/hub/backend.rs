//! A backend as the hub knows it: where it is, how it stands, what it has, what it does for us.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::health::Health;
use super::policy::{Kind, Standing, Stocked, View};
use super::target::Target;
use crate::tls::{Fingerprint, Trust};

/// Requests that a server answers at once which does not tell.
const N_PLACE: usize = 4;

/// A backend. The engine of this process has no target.
pub(super) struct Backend {
    /// What answers are said to come from.
    pub name: String,
    pub kind: Kind,
    pub target: Option<Target>,
    pub key: Option<String>,
    /// Its certificate, where it was paired over TLS.
    certificate: Option<Fingerprint>,
    /// Whom TLS trusts there, where it was paired with one certificate.
    pub trust: Option<Trust>,
    /// What it calls itself, where its key is that of a pairing.
    pub node: Option<String>,
    id: u64,
    state: Mutex<State>,
    n_ours: AtomicUsize,
    pub n_answered: AtomicU64,
    pub n_failed: AtomicU64,
    /// Counts probes that found it gone: then nobody waits for it any longer.
    n_gone: watch::Sender<u64>,
}

/// What is learned of a backend.
#[derive(Default)]
pub(super) struct State {
    pub health: Health,
    pub stock: Option<Vec<Stocked>>,
    pub is_spare: bool,
    pub may_have_more: bool,
    pub speaks_llama: bool,
    /// 0 as long as it is not known.
    pub n_place: usize,
    /// Requests of others that run and wait there, by its own count.
    n_others: usize,
    pub version: Option<String>,
}

impl State {
    /// Takes in how many it answers at once, which only llama.cpp and we tell.
    pub fn seat(&mut self, n_place: Option<usize>) {
        (self.n_place, self.speaks_llama) = (n_place.unwrap_or(0), n_place.is_some());
    }
}

impl Backend {
    pub fn new(
        kind: Kind,
        name: String,
        target: Option<Target>,
        key: Option<String>,
        certificate: Option<Fingerprint>,
        node: Option<String>,
    ) -> Arc<Backend> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Arc::new(Backend {
            id: hasher.finish(),
            name,
            kind,
            target,
            key,
            certificate,
            trust: certificate.map(Trust::pinned),
            node,
            state: Mutex::default(),
            n_ours: AtomicUsize::new(0),
            n_answered: AtomicU64::new(0),
            n_failed: AtomicU64::new(0),
            n_gone: watch::Sender::new(0),
        })
    }

    /// Whether a request would go the same way to both, and show the same key.
    pub fn is_same(&self, other: &Backend) -> bool {
        let way = |own: &Backend| {
            (own.kind, own.target.clone(), own.key.clone(), own.certificate, own.node.clone())
        };
        way(self) == way(other)
    }

    /// What jobs are given to: its node where it is paired, else its place. A word without blanks.
    pub fn identity(&self) -> String {
        let place = || self.target.as_ref().map_or_else(|| self.name.clone(), Target::place);
        self.node.clone().unwrap_or_else(place)
    }

    /// Whether it is who jobs were given to by this word: one that was typed and is paired since
    /// is the same machine, at the same place.
    pub fn is_known_as(&self, word: &str) -> bool {
        let place = self.target.as_ref().map(Target::place);
        self.node.as_deref() == Some(word)
            || place.is_some_and(|place| place.eq_ignore_ascii_case(word))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in how many requests it says to have. Ours among them are known at every moment, those
    /// of others as they were then.
    pub fn count(&self, n_busy: usize) {
        let n_ours = self.n_ours.load(Ordering::Relaxed);
        self.state().n_others = n_busy.saturating_sub(n_ours);
    }

    /// Whether it has not told how many it answers at once.
    pub fn is_unseated(&self) -> bool {
        self.state().n_place == 0
    }

    /// Counts a request of ours until what comes back is dropped.
    pub fn begin(self: &Arc<Backend>) -> Busy {
        self.n_ours.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Says that a probe found it gone.
    pub fn tell_gone(&self) {
        self.n_gone.send_modify(|n| *n += 1);
    }

    /// Returns when a probe finds that it is gone. What was found before does not count: whoever
    /// asks it all the same has a reason to.
    pub async fn gone(&self) {
        if self.n_gone.subscribe().changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// What the policy looks at.
    pub fn view(&self, now_ms: u64) -> View {
        let state = self.state();
        let n_ours = self.n_ours.load(Ordering::Relaxed);
        let n_place = if state.n_place == 0 { N_PLACE } else { state.n_place };
        let n_busy = state.n_others.saturating_add(n_ours);
        View {
            id: self.id,
            kind: self.kind,
            standing: state.health.standing(),
            is_spare: state.is_spare,
            speaks_llama: state.speaks_llama,
            stock: state.stock.clone(),
            may_have_more: state.may_have_more,
            n_place,
            n_busy: if state.health.is_busy(now_ms) { n_busy.max(n_place) } else { n_busy },
            first_word_ms: state.health.first_word_ms(now_ms),
        }
    }

    /// Its first model, for a server that wants one named.
    pub fn first_model(&self) -> Option<String> {
        self.state().stock.as_ref()?.first()?.names.first().cloned()
    }

    /// How what is sent there is secured.
    fn tls(&self) -> Option<&'static str> {
        let is_https = self.target.as_ref().is_some_and(|target| target.is_https);
        is_https.then_some(if self.trust.is_some() { "pinned" } else { "authorities" })
    }

    /// What `/v1/status` tells of it.
    pub fn to_json(&self, now_ms: u64) -> Value {
        let view = self.view(now_ms);
        let state = self.state();
        let standing = match view.standing {
            Standing::Unknown => "unknown",
            Standing::Well => "well",
            Standing::Ejected { .. } => "ejected",
        };
        let back_in_ms = match view.standing {
            Standing::Ejected { until_ms } => Some(until_ms.saturating_sub(now_ms)),
            Standing::Unknown | Standing::Well => None,
        };
        let models = view.stock.iter().flatten();
        let models = models.map(|model| json!({"names": model.names, "n_ctx": model.n_ctx}));
        json!({
            "name": self.name,
            "kind": self.kind.name(),
            "address": self.target.as_ref().map(Target::url),
            "leaves_this_machine": self.target.as_ref().is_some_and(leaves_this_machine),
            "has_key": self.key.is_some(),
            "tls": self.tls(),
            "standing": standing,
            "why": state.health.why(),
            "back_in_ms": back_in_ms,
            "version": state.version,
            "models": models.collect::<Vec<_>>(),
            "is_spare": view.is_spare,
            "n_place": view.n_place,
            "n_busy": view.n_busy,
            "first_word_ms": view.first_word_ms,
            "answered": self.n_answered.load(Ordering::Relaxed),
            "failed": self.n_failed.load(Ordering::Relaxed),
        })
    }
}

/// Whether what is sent there leaves this machine.
fn leaves_this_machine(target: &Target) -> bool {
    match target.host.parse::<IpAddr>() {
        Ok(address) => !address.is_loopback(),
        Err(_) => target.host != "localhost" && !target.host.ends_with(".localhost"),
    }
}

/// A request of ours that a backend answers.
pub(super) struct Busy(Arc<Backend>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.n_ours.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_what_leaves_this_machine() {
        let leaves = |address: &str| {
            let target = Target::read(address, Some(8080)).unwrap();
            let (name, kind) = (address.to_owned(), Kind::External);
            let backend = Backend::new(kind, name, Some(target), None, None, None);
            backend.to_json(0)["leaves_this_machine"].as_bool().unwrap()
        };
        for address in ["https://api.example/v1", "10.0.0.7:1", "[fd00::1]:1", "localhost.example"]
        {
            assert!(leaves(address), "{address}");
        }
        for address in ["127.0.0.1:1", "[::1]:1", "localhost:1", "x.localhost:1"] {
            assert!(!leaves(address), "{address}");
        }
        let own = Backend::new(Kind::Local, "local".to_owned(), None, None, None, None);
        assert_eq!(own.to_json(0)["leaves_this_machine"], false);
    }
}
