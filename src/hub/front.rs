//! What the hub does with a request of the service: passes it on, or answers it here and adds what
//! it knows.

use std::sync::Arc;

use axum::extract::MatchedPath;
use axum::http::header::{self, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use super::ask::Asked;
use super::relay::{HOST, relay};
use super::{Hub, LOCAL, probe};
use crate::base::limits::HUB_ANSWER_BYTES_MAX;
use crate::server::{Admitted, Answering, Caller, Forward, Here, Unwanted, Withdrawing};
use crate::store::Peer;

impl Forward for Hub {
    fn join(self: Arc<Self>, peer: Peer) -> bool {
        // An address that was spoken with a moment ago is one. What was typed of it counts.
        match self.missing(peer) {
            Ok(missing) => missing.is_none_or(|backend| probe::join(&self, backend)),
            Err(_) => false,
        }
    }

    fn reaches(&self, host: &str) -> bool {
        Hub::reaches(self, host)
    }

    fn withdraw(self: Arc<Self>, unwanted: Unwanted) -> Withdrawing {
        Box::pin(async move { Hub::withdraw(&self, &unwanted).await })
    }

    fn meet(self: Arc<Self>, peers: Vec<Peer>) {
        Hub::meet(&self, peers);
    }

    fn leave(&self, node: &str) {
        self.remove(node);
    }

    fn answer(self: Arc<Self>, request: Admitted, here: Here) -> Answering {
        Box::pin(async move {
            let route = request.parts.extensions.get::<MatchedPath>().cloned();
            let route = route.as_ref().map(MatchedPath::as_str).unwrap_or_default();
            let is_get = request.parts.method == Method::GET;
            match route {
                "/v1/status" if is_get => self.status(here.answer(request).await).await,
                "/v1/models" | "/models" if is_get => self.models(request, here).await,
                "/v1/models/{*id}" if is_get => self.model(request, here).await,
                _ => {
                    let seed = (self.random() >> 33) as u32;
                    match Asked::read(request.clone(), seed) {
                        Some(asked) => relay(self, asked, here).await,
                        None => of_here(here.answer(request).await),
                    }
                }
            }
        })
    }
}

impl Hub {
    /// Every backend with how it stands; an answer's `upstream` in `/v1/status`.
    fn upstream(&self) -> Value {
        self.look_at_local();
        let now_ms = self.now_ms();
        let backends = self.backends();
        let backends = backends.iter().map(|backend| backend.to_json(now_ms));
        json!({ "backends": backends.collect::<Vec<_>>(), "tries": self.config().n_try })
    }

    async fn status(&self, response: Response) -> Response {
        amend(response, |value| value["upstream"] = self.upstream()).await
    }

    async fn models(&self, request: Admitted, here: Here) -> Response {
        let is_known = is_known(&request);
        amend(here.answer(request).await, |value| {
            for entry in self.entries(is_known) {
                let known = value["data"].as_array().map(Vec::as_slice).unwrap_or_default();
                if known.iter().any(|own| own["id"] == entry["id"]) {
                    continue;
                }
                let named = json!({"name": entry["id"], "model": entry["id"], "type": "model",
                    "capabilities": ["completion"], "details": {"format": "gguf"}});
                if let Some(models) = value["models"].as_array_mut() {
                    models.push(named);
                }
                if let Some(data) = value["data"].as_array_mut() {
                    data.push(entry);
                }
            }
        })
        .await
    }

    /// One model, of this machine or of a backend.
    async fn model(&self, request: Admitted, here: Here) -> Response {
        let path = request.parts.uri.path();
        let id = path.strip_prefix("/v1/models/").unwrap_or_default().to_owned();
        let is_known = is_known(&request);
        let response = here.answer(request).await;
        let is_it = |entry: &Value| {
            let aliases = entry["aliases"].as_array().map(Vec::as_slice).unwrap_or_default();
            entry["id"] == *id || aliases.iter().any(|alias| *alias == *id)
        };
        match response.status() {
            StatusCode::NOT_FOUND => match self.entries(is_known).into_iter().find(is_it) {
                Some(entry) => axum::Json(entry).into_response(),
                None => response,
            },
            _ => response,
        }
    }

    /// The models of backends as `/v1/models` lists them; where they are is not told to strangers.
    fn entries(&self, is_known: bool) -> Vec<Value> {
        let mut entries: Vec<Value> = Vec::new();
        for backend in self.backends().iter().filter(|backend| backend.target.is_some()) {
            let state = backend.state();
            for model in state.stock.iter().flatten() {
                let Some(name) = model.names.first() else { continue };
                let known = entries.iter_mut().find(|entry| entry["id"] == *name);
                if let Some(hosts) = known.and_then(|entry| entry["hosts"].as_array_mut()) {
                    hosts.push(backend.name.clone().into());
                    continue;
                }
                entries.push(json!({
                    "id": name,
                    "aliases": model.names[1..],
                    "tags": [],
                    "object": "model",
                    "created": 0,
                    "owned_by": backend.kind.name(),
                    "capabilities": ["completion"],
                    "hosts": [backend.name],
                    "meta": {"n_ctx": model.n_ctx},
                }));
            }
        }
        if !is_known {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                entry.remove("hosts");
            }
        }
        entries
    }
}

/// Whether whoever asks showed a key, or needs none.
fn is_known(request: &Admitted) -> bool {
    request.parts.extensions.get::<Caller>().is_some_and(|caller| caller.is_known)
}

/// An answer of this process, named as such.
fn of_here(mut response: Response) -> Response {
    response.headers_mut().insert(HOST, HeaderValue::from_static(LOCAL));
    response
}

/// A JSON answer of this process with something added.
async fn amend(response: Response, change: impl FnOnce(&mut Value)) -> Response {
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = Limited::new(body, HUB_ANSWER_BYTES_MAX).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    let body = match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut value) => {
            change(&mut value);
            value.to_string().into()
        }
        Err(_) => bytes,
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, axum::body::Body::from(body))
}
