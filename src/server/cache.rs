//! Answers that were asked for again: an opt-in cache of whole, finished answers.
//!
//! ```text
//! x-jetforge-cache: use, or "cache_result": true in the body
//! key      SHA-256 of tenant, route and body; fields in any order, white space and the field
//!          `cache_result` make no difference
//! keeps    200s of one piece, least recently used out first, each for its time
//! ```
//!
//! Streams are never kept. A tenant never gets another's answer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::base::limits::{RESULT_BYTES_MAX, RESULT_CACHE_ENTRIES, RESULT_CACHE_S};
use crate::inference::TenantId;

/// The header that asks for the cache, and that says what came of it.
pub(super) const CACHE_HEADER: &str = "x-jetforge-cache";
/// The field that asks for it as well.
const CACHE_FIELD: &str = "cache_result";

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Answers.
    pub n_entry_max: usize,
    /// Time.
    pub keep: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        let keep = Duration::from_secs(RESULT_CACHE_S);
        CacheOptions { n_entry_max: RESULT_CACHE_ENTRIES, keep }
    }
}

/// What an answer is found by.
pub(super) type CacheKey = [u8; 32];

/// A kept answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub content_type: HeaderValue,
    pub body: Bytes,
}

struct Entry {
    kept: Kept,
    made_at: Instant,
    used_at: u64,
}

#[derive(Default)]
struct State {
    entries: HashMap<CacheKey, Entry>,
    /// Counts uses: what was used longest ago has the least.
    clock: u64,
    n_hit: u64,
    n_miss: u64,
}

/// See the module.
pub(super) struct ResultCache {
    options: CacheOptions,
    state: Mutex<State>,
}

impl ResultCache {
    /// An empty cache.
    pub fn new(options: CacheOptions) -> ResultCache {
        ResultCache { options, state: Mutex::default() }
    }

    /// A kept answer that is not too old.
    pub fn get(&self, key: &CacheKey, now: Instant) -> Option<Kept> {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        let is_fresh =
            |entry: &&mut Entry| now.saturating_duration_since(entry.made_at) < self.options.keep;
        let found = state.entries.get_mut(key).filter(is_fresh).map(|entry| {
            entry.used_at = clock;
            entry.kept.clone()
        });
        match found {
            Some(_) => state.n_hit += 1,
            None => state.n_miss += 1,
        }
        found
    }

    /// Keeps an answer, if it is small enough.
    pub fn put(&self, key: CacheKey, kept: Kept, now: Instant) {
        if kept.body.len() > RESULT_BYTES_MAX || self.options.n_entry_max == 0 {
            return;
        }
        let mut state = self.lock();
        while state.entries.len() >= self.options.n_entry_max && !state.entries.contains_key(&key) {
            let oldest = state.entries.iter().min_by_key(|(_, entry)| entry.used_at);
            let Some(oldest) = oldest.map(|(key, _)| *key) else { break };
            state.entries.remove(&oldest);
        }
        state.clock += 1;
        let used_at = state.clock;
        state.entries.insert(key, Entry { kept, made_at: now, used_at });
    }

    /// Answers found, and looked for in vain.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.n_hit, state.n_miss)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a request that asks for the cache; `None` for one that does not, or cannot have it.
pub(super) fn cache_key(
    headers: &HeaderMap,
    tenant: TenantId,
    route: &str,
    body: &[u8],
) -> Option<CacheKey> {
    let by_header = headers.get(CACHE_HEADER).is_some_and(|v| v.as_bytes() == b"use");
    // Most requests do not ask, and are not parsed twice.
    let may_ask = body.windows(CACHE_FIELD.len()).any(|window| window == CACHE_FIELD.as_bytes());
    if !by_header && !may_ask {
        return None;
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else { return None };
    let by_field = fields.remove(CACHE_FIELD) == Some(Value::Bool(true));
    let streams = fields.get("stream") == Some(&Value::Bool(true));
    if !(by_header || by_field) || streams {
        return None;
    }
    let mut text = String::new();
    canonical(&Value::Object(fields), &mut text);
    let mut hash = Sha256::new();
    hash.update(tenant.0.to_le_bytes());
    hash.update(route.as_bytes());
    hash.update([0]);
    hash.update(text.as_bytes());
    Some(hash.finalize().into())
}

/// A hash of what JSON says, whatever the order of its fields and its white space.
pub(super) fn digest(value: &Value) -> CacheKey {
    let mut text = String::new();
    canonical(value, &mut text);
    Sha256::digest(text.as_bytes()).into()
}

/// JSON with the fields of objects in order and no white space.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (name, value) in fields {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: u64, route: &str, body: &str) -> Option<CacheKey> {
        cache_key(&HeaderMap::new(), TenantId(tenant), route, body.as_bytes())
    }

    fn kept(text: &str) -> Kept {
        let content_type = HeaderValue::from_static("application/json");
        Kept { content_type, body: Bytes::from(text.to_owned()) }
    }

    #[test]
    fn only_who_asks_gets_a_key_and_the_order_of_fields_is_nothing() {
        let asked = key(1, "/x", r#"{"a":{"c":1,"d":[1,2]},"b":2,"cache_result":true}"#);
        assert!(asked.is_some());
        let again = key(1, "/x", r#"{ "cache_result": true, "b":2, "a":{"d":[1,2], "c":1} }"#);
        assert_eq!(again, asked);
        let mut by_header = HeaderMap::new();
        by_header.insert(CACHE_HEADER, HeaderValue::from_static("use"));
        let body = br#"{"b":2,"a":{"c":1,"d":[1,2]}}"#;
        assert_eq!(cache_key(&by_header, TenantId(1), "/x", body), asked);
        for other in [
            key(2, "/x", r#"{"a":{"c":1,"d":[1,2]},"b":2,"cache_result":true}"#),
            key(1, "/y", r#"{"a":{"c":1,"d":[1,2]},"b":2,"cache_result":true}"#),
            key(1, "/x", r#"{"a":{"c":1,"d":[2,1]},"b":2,"cache_result":true}"#),
        ] {
            assert!(other.is_some() && other != asked);
        }
        for without in [
            r#"{"a":1}"#,
            r#"{"a":1,"cache_result":false}"#,
            r#"{"a":"cache_result"}"#,
            r#"{"cache_result":true,"stream":true}"#,
            r#"["cache_result"]"#,
            "cache_result",
        ] {
            assert_eq!(key(1, "/x", without), None, "{without}");
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_nothing_stays_too_long() {
        let start = Instant::now();
        let options = CacheOptions { n_entry_max: 2, keep: Duration::from_secs(60) };
        let cache = ResultCache::new(options);
        let keys = [[1; 32], [2; 32], [3; 32]];
        cache.put(keys[0], kept("0"), start);
        cache.put(keys[1], kept("1"), start);
        assert_eq!(cache.get(&keys[0], start), Some(kept("0")));
        cache.put(keys[2], kept("2"), start);
        assert_eq!(cache.get(&keys[1], start), None, "0 was used since");
        assert_eq!(cache.get(&keys[0], start + Duration::from_secs(59)), Some(kept("0")));
        assert_eq!(cache.get(&keys[0], start + Duration::from_secs(60)), None);
        assert_eq!(cache.counts(), (2, 2));
        cache.put(keys[0], kept(&"x".repeat(RESULT_BYTES_MAX + 1)), start);
        assert_eq!(cache.get(&keys[0], start), Some(kept("0")), "too large to keep");
    }
}
