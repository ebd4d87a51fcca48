//! A request as the hub reads it: what it needs, whether it streams, and the body that each kind
//! of backend gets.
//!
//! The hub changes as little as it can. A stream without a seed gets one, so that another backend
//! can write the same text if the first one breaks off. A server outside gets the path that it
//! knows, and its first model's name where none is given.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::body::Bytes;
use axum::extract::MatchedPath;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, Uri};
use serde_json::{Map, Value, json};

use super::backend::Backend;
use super::policy::{Haste, Kind, Need, Speech};
use crate::base::limits::HUB_HOPS_MAX;
use crate::inference::{Priority, TenantId};
use crate::server::{Admitted, CLASS, Caller, TENANT, class_name};

/// Paths that may be answered elsewhere, and whose words they are.
const PATHS: [(&str, Speech); 26] = [
    ("/v1/chat/completions", Speech::Openai),
    ("/chat/completions", Speech::Openai),
    ("/v1/completions", Speech::Openai),
    ("/v1/embeddings", Speech::Openai),
    ("/completion", Speech::Llama),
    ("/completions", Speech::Llama),
    ("/infill", Speech::Llama),
    ("/tokenize", Speech::Llama),
    ("/detokenize", Speech::Llama),
    ("/apply-template", Speech::Llama),
    ("/embedding", Speech::Llama),
    ("/embeddings", Speech::Llama),
    ("/rerank", Speech::Llama),
    ("/reranking", Speech::Llama),
    ("/v1/rerank", Speech::Llama),
    ("/v1/reranking", Speech::Llama),
    ("/v1/messages", Speech::Own),
    ("/v1/messages/count_tokens", Speech::Own),
    ("/generate", Speech::Own),
    ("/refactor", Speech::Own),
    ("/explain", Speech::Own),
    ("/test", Speech::Own),
    ("/api/generate", Speech::Own),
    ("/api/chat", Speech::Own),
    ("/api/embed", Speech::Own),
    ("/api/embeddings", Speech::Own),
];

/// Those that write text which depends on nothing but the request, its seed included.
const SEEDED: [&str; 6] = [
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/completions",
    "/completion",
    "/completions",
    "/infill",
];

/// Those of tasks whose names stand for one answer.
const TASKS: [&str; 4] = ["/generate", "/refactor", "/explain", "/test"];

/// Headers of a request that a backend gets as well.
const PASSED: [HeaderName; 3] =
    [header::CONTENT_TYPE, header::ACCEPT, HeaderName::from_static("x-jetforge-cache")];

/// How many hubs have passed a request on: two that know each other would pass it on for ever.
const HOPS: HeaderName = HeaderName::from_static("x-jetforge-hops");

fn n_hop(headers: &HeaderMap) -> u32 {
    headers.get(&HOPS).and_then(|n| n.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Bytes at the start of a conversation that tell it from others.
const AFFINITY_BYTES: usize = 1024;

/// A request that may be answered elsewhere.
#[derive(Clone)]
pub(super) struct Asked {
    pub admitted: Admitted,
    pub route: String,
    pub need: Need,
    /// It is written once more where the first backend breaks off.
    pub is_repeatable: bool,
    /// A backend that has taken it goes on with it, whoever leaves.
    pub is_kept: bool,
    /// Whether the answer comes in pieces.
    pub streams: bool,
    /// Answers side by side in it.
    pub n_choice: usize,
    fields: Map<String, Value>,
}

impl Asked {
    /// Reads a request; `None` for one that is answered here whatever it says. `seed` is given to
    /// a stream that has none.
    pub fn read(mut admitted: Admitted, seed: u32) -> Option<Asked> {
        let route = admitted.parts.extensions.get::<MatchedPath>()?.as_str().to_owned();
        let speech = PATHS.iter().find(|(path, _)| *path == route).map(|(_, speech)| *speech)?;
        let is_far = n_hop(&admitted.parts.headers) >= HUB_HOPS_MAX;
        if admitted.parts.method != Method::POST || is_far {
            return None;
        }
        // What is no object gets its error here.
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(&admitted.body) else {
            return None;
        };
        let is_set = |name: &str| fields.get(name).and_then(Value::as_bool);
        let is_ollama = route == "/api/generate" || route == "/api/chat";
        let streams = is_set("stream").unwrap_or(is_ollama);
        // Tabby's agents ask for completions in words of their own.
        let speech = if fields.contains_key("segments") { Speech::Own } else { speech };
        let is_repeatable = SEEDED.contains(&route.as_str()) && speech != Speech::Own;
        let has_seed = fields.get("seed").and_then(Value::as_i64).is_some_and(|seed| seed >= 0);
        if streams && is_repeatable && !has_seed {
            fields.insert("seed".to_owned(), json!(seed));
            admitted.body = Value::Object(fields.clone()).to_string().into();
        }
        let need = need(&admitted, &route, speech, &fields);
        let n_choice = n_choice(&fields);
        let detaches = fields.get("on_disconnect").is_some_and(|how| how == "detach");
        let is_named = TASKS.contains(&route.as_str()) && fields.contains_key("request_id");
        let is_kept = detaches || is_named;
        Some(Asked { admitted, route, need, is_repeatable, is_kept, streams, n_choice, fields })
    }

    /// Path and query as a backend knows them.
    pub fn path_for(&self, backend: &Backend) -> String {
        if backend.kind == Kind::External && self.route == "/chat/completions" {
            return "/v1/chat/completions".to_owned();
        }
        let path = self.admitted.parts.uri.path_and_query();
        path.map_or_else(|| Uri::default().path().to_owned(), |path| path.as_str().to_owned())
    }

    /// The body for a backend.
    pub fn body_for(&self, backend: &Backend) -> Bytes {
        let is_named = self.fields.contains_key("model");
        let model = (backend.kind == Kind::External && !is_named).then(|| backend.first_model());
        match model.flatten() {
            Some(name) => {
                let mut fields = self.fields.clone();
                fields.insert("model".to_owned(), name.into());
                Value::Object(fields).to_string().into()
            }
            None => self.admitted.body.clone(),
        }
    }

    /// The headers for a backend: the caller's key stays here. Another JetForge hears how urgent
    /// it is, and for whom, under a name that says nothing elsewhere.
    pub fn headers(&self, backend: &Backend) -> HeaderMap {
        let own = &self.admitted.parts.headers;
        let passed = PASSED.into_iter().filter_map(|name| {
            let value = own.get(&name)?.clone();
            Some((name, value))
        });
        let mut headers: HeaderMap = passed.collect();
        headers.insert(HOPS, n_hop(own).saturating_add(1).into());
        let caller = self.admitted.parts.extensions.get::<Caller>();
        if let Some(id) = caller.and_then(|caller| caller.request_id.parse().ok()) {
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        if let Some(caller) = caller.filter(|_| backend.kind == Kind::Appliance) {
            headers.insert(CLASS, HeaderValue::from_static(class_name(caller.priority)));
            headers.extend(whose(caller.tenant, backend).map(|whose| (TENANT, whose)));
        }
        headers
    }
}

/// For whom a request is, under a name that says nothing elsewhere.
pub(super) fn whose(tenant: TenantId, backend: &Backend) -> Option<HeaderValue> {
    if tenant == TenantId::default() {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    // A machine that is paired again knows them still.
    (tenant.0, backend.node.as_deref().or(backend.key.as_deref())).hash(&mut hasher);
    HeaderValue::from_str(&format!("{:016x}", hasher.finish())).ok()
}

/// Answers that a request asks for: each of its prompts, as often as it says.
fn n_choice(fields: &Map<String, Value>) -> usize {
    let count = |name: &str| fields.get(name).and_then(Value::as_u64);
    let n = count("n").or_else(|| count("n_cmpl")).and_then(|n| usize::try_from(n).ok());
    let n_prompt = match fields.get("prompt").and_then(Value::as_array) {
        // One prompt of tokens.
        Some(parts) if parts.iter().any(Value::is_number) => 1,
        Some(parts) => parts.len(),
        None => 1,
    };
    n.unwrap_or(1).max(1).saturating_mul(n_prompt.max(1))
}

fn need(admitted: &Admitted, route: &str, speech: Speech, fields: &Map<String, Value>) -> Need {
    // AutoCoder's nested form, and Ollama's.
    let inner = ["parameters", "options"].iter().find_map(|name| fields.get(*name)?.as_object());
    let find = |name: &str| inner.and_then(|inner| inner.get(name)).or(fields.get(name));
    let model = find("model").and_then(Value::as_str).filter(|name| !name.is_empty());
    let model = match route.starts_with("/api/") {
        true => model.map(|name| name.strip_suffix(":latest").unwrap_or(name)),
        false => model,
    };
    let names =
        ["max_tokens", "max_completion_tokens", "n_predict", "max_new_tokens", "num_predict"];
    let n_predict = names.iter().find_map(|name| find(name).and_then(Value::as_u64));
    let n_predict = n_predict.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let caller = admitted.parts.extensions.get::<Caller>();
    let class = caller.map(|caller| caller.priority).unwrap_or_default();
    let is_later = class == Priority::Background
        || find("priority").is_some_and(|class| class == "background");
    let begins = ["messages", "prompt", "input_prefix", "input"];
    let begins = begins.iter().find_map(|name| fields.get(*name)).map(Value::to_string);
    let begins = begins.unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    model.hash(&mut hasher);
    begins.as_bytes()[..begins.len().min(AFFINITY_BYTES)].hash(&mut hasher);
    Need {
        speech,
        model: model.map(str::to_owned),
        // Code has three to four bytes in a token.
        n_position: (admitted.body.len() / 4).saturating_add(n_predict),
        haste: if is_later { Haste::Later } else { Haste::Now },
        affinity: hasher.finish(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn read(route: &str, body: Value) -> Need {
        let (parts, ()) = Request::post(route).body(()).unwrap().into_parts();
        let admitted = Admitted { parts, body: body.to_string().into() };
        need(&admitted, route, Speech::Own, body.as_object().unwrap())
    }

    #[test]
    fn models_are_found_where_each_dialect_names_them() {
        for (route, body) in [
            ("/generate", json!({"prompt": "p", "parameters": {"model": "coder"}})),
            ("/generate", json!({"prompt": "p", "model": "coder"})),
            ("/api/chat", json!({"model": "coder:latest"})),
            ("/api/generate", json!({"model": "coder", "options": {"num_predict": 7}})),
        ] {
            assert_eq!(read(route, body.clone()).model.as_deref(), Some("coder"), "{body}");
        }
        let tagged = json!({"model": "coder:latest", "parameters": {"max_tokens": 1000}});
        let tagged = read("/v1/completions", tagged);
        assert_eq!(tagged.model.as_deref(), Some("coder:latest"), "a name like any other");
        assert!(tagged.n_position >= 1000);
        let later = json!({"parameters": {"priority": "background"}});
        assert_eq!(read("/generate", later).haste, Haste::Later);
    }

    #[test]
    fn answers_side_by_side_are_counted() {
        let n = |body: Value| n_choice(body.as_object().unwrap());
        assert_eq!(n(json!({"prompt": "a"})), 1);
        assert_eq!(n(json!({"prompt": "a", "n": 3})), 3);
        assert_eq!(n(json!({"prompt": ["a", "b"], "n_cmpl": 2})), 4);
        assert_eq!(n(json!({"prompt": [1, 2, 3]})), 1);
        assert_eq!(n(json!({"prompt": [[1, 2], [3]], "n": 0})), 2);
    }
}
