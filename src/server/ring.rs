//! The keys that a running service takes: those of its start, and those of the file as it is now.
//!
//! Every look-up compares the hash of what was presented with every key, each in constant time, so
//! that no clock tells how near a guess was. The file is looked at before each comparison: a key
//! that was revoked stops working with the next request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::ServerError;
use super::forward::{CLASS, TENANT, class_of};
use super::keys::{Class, KeyFile, KeyRecord, PEER, Scope, Stamp, hash};
use super::quota::Quota;
use crate::base::hash::unhex;
use crate::inference::{Priority, TenantId};

/// A key that opens something.
pub(super) struct Key {
    pub name: String,
    pub tenant: TenantId,
    pub priority: Priority,
    pub scopes: Vec<Scope>,
    pub quota: Arc<Quota>,
    hash: [u8; 32],
}

impl Key {
    /// Whose work a request of this key is, and how urgent. Anybody may ask for less; a paired hub
    /// tells its callers apart, so that each of them has a share and a cache of its own.
    pub fn on_behalf(&self, headers: &HeaderMap) -> (TenantId, Priority) {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let class = text(CLASS).and_then(class_of).unwrap_or_default();
        let tenant = text(TENANT).filter(|_| self.name.starts_with(PEER));
        let tenant = tenant.map(|whose| tenant_of(&hash(&format!("{} {whose}", self.tenant.0))));
        (tenant.unwrap_or(self.tenant), class.max(self.priority))
    }
}

/// Every key of a service.
pub(super) struct KeyRing {
    /// Given in the clear at start, as llama.cpp's are; they open everything.
    fixed: Vec<Arc<Key>>,
    file: Option<KeyFile>,
    /// The version of the file that `kept` is.
    stamp: Mutex<Option<Stamp>>,
    kept: RwLock<Vec<Arc<Key>>>,
    /// Once there was a key, a request needs one until the service ends.
    is_required: AtomicBool,
}

impl KeyRing {
    /// The keys of a service.
    ///
    /// # Errors
    /// If the file of keys cannot be read.
    pub fn new(in_the_clear: &[String], file: Option<KeyFile>) -> Result<KeyRing, ServerError> {
        let now = Instant::now();
        let fixed = in_the_clear.iter().map(|text| {
            let hash = hash(text);
            let name = "api-key".to_owned();
            let scopes = vec![Scope::Inference, Scope::Admin];
            let (tenant, priority) = (tenant_of(&hash), Priority::default());
            let quota = Arc::new(Quota::new(None, None, now));
            Arc::new(Key { name, tenant, priority, scopes, quota, hash })
        });
        let ring = KeyRing {
            fixed: fixed.collect(),
            stamp: Mutex::new(None),
            kept: RwLock::default(),
            is_required: AtomicBool::new(false),
            file,
        };
        ring.read()?;
        Ok(ring)
    }

    /// Whether a request needs a key.
    pub fn is_required(&self) -> bool {
        self.refresh();
        self.is_required.load(Ordering::Relaxed)
    }

    /// Asks for keys from now on, also while there is none.
    pub fn require(&self) {
        self.is_required.store(true, Ordering::Relaxed);
    }

    /// The key that this text is.
    pub fn find(&self, text: &str) -> Option<Arc<Key>> {
        self.refresh();
        let presented = hash(text);
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for key in self.fixed.iter().chain(kept.iter()) {
            if bool::from(key.hash.ct_eq(&presented)) {
                found = Some(key);
            }
        }
        found.cloned()
    }

    /// Whether the key of this SHA-256 was taken back; while the file cannot be read, it may have
    /// been.
    pub fn is_revoked(&self, sha256: &[u8; 32]) -> bool {
        self.file.as_ref().is_some_and(|file| file.is_revoked(sha256).unwrap_or(true))
    }

    /// Takes a key of the file back, if there is one of this name.
    pub fn revoke(&self, name: &str) {
        let revoked = self.file.as_ref().map(|file| file.revoke(name));
        if let Some(Err(error)) =
            revoked.filter(|r| !matches!(r, Err(ServerError::KeyUnknown { .. })))
        {
            tracing::error!(%error, name, "a key could not be taken back");
        }
    }

    /// Reads the file again if it is another one than last time. A file that cannot be read opens
    /// nothing: a key that might have been revoked must not go on working.
    fn refresh(&self) {
        if let Err(error) = self.read() {
            tracing::error!(%error, "the file of keys cannot be used; its keys are refused");
        }
    }

    fn read(&self) -> Result<(), ServerError> {
        let Some(file) = &self.file else {
            self.is_required.fetch_or(!self.fixed.is_empty(), Ordering::Relaxed);
            return Ok(());
        };
        let mut known = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = file.stamp();
        if *known == stamp && stamp.is_some() {
            return Ok(());
        }
        *known = stamp;
        let records = file.list();
        let is_any = !self.fixed.is_empty() || !matches!(&records, Ok(list) if list.is_empty());
        self.is_required.fetch_or(is_any, Ordering::Relaxed);
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        match records {
            Ok(records) => {
                let keys = records.iter().filter_map(|record| key_of(record, &kept));
                let keys = keys.collect();
                *kept = keys;
                Ok(())
            }
            Err(error) => {
                kept.clear();
                Err(error)
            }
        }
    }
}

/// A record as a key; what it has spent already stays spent.
fn key_of(record: &KeyRecord, before: &[Arc<Key>]) -> Option<Arc<Key>> {
    // A machine that is paired again has another key, and is the same.
    let peer = record.name.starts_with(PEER).then(|| hash(&record.name));
    let hash: [u8; 32] = unhex(&record.sha256)?;
    let (per_minute, at_once) = (record.grant.per_minute, record.grant.at_once);
    let same = before.iter().find(|key| key.hash == hash).map(|key| &key.quota);
    let quota = same.filter(|quota| quota.has_limits(per_minute, at_once)).cloned();
    let quota = quota.unwrap_or_else(|| Arc::new(Quota::new(per_minute, at_once, Instant::now())));
    Some(Arc::new(Key {
        name: record.name.clone(),
        tenant: tenant_of(&peer.unwrap_or(hash)),
        priority: priority(record.grant.class),
        scopes: record.grant.scopes.clone(),
        quota,
        hash,
    }))
}

fn priority(class: Class) -> Priority {
    class.into()
}

/// A key's number, never that of callers without a key.
fn tenant_of(hash: &[u8; 32]) -> TenantId {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    TenantId(u64::from_le_bytes(bytes) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::keys::Grant;

    fn grant() -> Grant {
        let scopes = vec![Scope::Inference];
        Grant { scopes, class: Class::Agent, per_minute: Some(1), at_once: None }
    }

    #[test]
    fn a_key_works_from_its_making_to_its_revoking() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        let ring = KeyRing::new(&[], Some(file.clone())).unwrap();
        assert!(!ring.is_required(), "without keys nobody needs one");
        let key = file.create("a", grant()).unwrap();
        assert!(ring.is_required());
        let found = ring.find(&key).expect("the file is noticed");
        assert_eq!((found.name.as_str(), found.priority), ("a", Priority::Agent));
        assert_ne!(found.tenant, TenantId::default());
        assert!(ring.find(&key[1..]).is_none() && ring.find("").is_none());
        assert!(found.quota.admit(Instant::now()).is_ok());
        file.create("b", grant()).unwrap();
        let again = ring.find(&key).unwrap();
        assert!(again.quota.admit(Instant::now()).is_err(), "what is spent stays spent");
        file.revoke("a").unwrap();
        file.revoke("b").unwrap();
        assert!(ring.find(&key).is_none());
        assert!(ring.is_required(), "the service does not open by itself");
    }

    #[test]
    fn a_paired_hub_tells_its_callers_apart_and_nobody_asks_for_more() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        let ring = KeyRing::new(&[], Some(file.clone())).unwrap();
        let node = "0011223344556677";
        let make = || [file.create("own", grant()), file.create_for_peer(node, grant())];
        let [own, peer] = make().map(|key| ring.find(&key.unwrap()).unwrap());
        let headers = |class: &'static str, whose: &'static str| {
            let value = |text| HeaderValue::from_static(text);
            HeaderMap::from_iter([(CLASS, value(class)), (TENANT, value(whose))])
        };
        let none = HeaderMap::new();
        assert_eq!(own.on_behalf(&none), (own.tenant, Priority::Agent));
        assert_eq!(own.on_behalf(&headers("background", "a")), (own.tenant, Priority::Background));
        assert_eq!(own.on_behalf(&headers("interactive", "a")), (own.tenant, Priority::Agent));
        assert_eq!(peer.on_behalf(&none), (peer.tenant, Priority::Agent));
        let [one, two, again] = ["a", "b", "a"].map(|whose| peer.on_behalf(&headers("x", whose)).0);
        assert!(one == again && one != two && one != peer.tenant);
        file.revoke("own").unwrap();
        let [own_anew, peer_anew] = make().map(|key| ring.find(&key.unwrap()).unwrap());
        assert!(own_anew.tenant != own.tenant && peer_anew.tenant == peer.tenant);
    }

    #[test]
    fn a_file_that_breaks_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        let key = file.create("a", grant()).unwrap();
        let ring = KeyRing::new(&["clear".to_owned()], Some(file.clone())).unwrap();
        assert!(ring.find(&key).is_some());
        std::fs::write(file.path(), "{").unwrap();
        assert!(ring.find(&key).is_none() && ring.is_required());
        assert!(ring.find("clear").is_some());
        std::fs::remove_file(file.path()).unwrap();
        assert!(ring.find(&key).is_none() && ring.is_required());
    }
}
