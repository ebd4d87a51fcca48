//! `/v1/models`: what can be asked for.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::hosting::HostedModel;
use crate::inference::ModelInfo;
use crate::server::error::ApiError;
use crate::server::state::Server;

/// Every listed model; `models` is the form of llama.cpp and Ollama.
pub(super) async fn list(State(server): State<Server>) -> Json<Value> {
    let data = entries(&server);
    let models = data.iter().map(|model| {
        json!({
            "name": model["id"],
            "model": model["id"],
            "modified_at": "",
            "size": "",
            "digest": "",
            "type": "model",
            "description": "",
            "tags": [""],
            "capabilities": model["capabilities"],
            "parameters": "",
            "details": {"format": "gguf", "family": "", "parameter_size": ""},
        })
    });
    let models: Vec<Value> = models.collect();
    Json(json!({"object": "list", "models": models, "data": data}))
}

/// One model by its name or another name for it.
pub(super) async fn one(
    State(server): State<Server>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let is_it = |model: &Value| {
        let aliases = model["aliases"].as_array().map(Vec::as_slice).unwrap_or_default();
        model["id"] == id.as_str() || aliases.iter().any(|alias| alias == id.as_str())
    };
    let entries = entries(&server);
    let known: Vec<&str> = entries.iter().filter_map(|model| model["id"].as_str()).collect();
    let known = known.join(", ");
    let missing = || {
        ApiError::not_found(format!("model {id:?} is not known here; there are: {known}"))
            .at("model")
    };
    entries.iter().find(|model| is_it(model)).cloned().map(Json).ok_or_else(missing)
}

fn entries(server: &Server) -> Vec<Value> {
    let loaded = server.0.host.engines();
    let started = server.0.started.elapsed().as_secs();
    let created = crate::server::report::unix_now_s().saturating_sub(started);
    let entry = |hosted: HostedModel| {
        let engine = loaded.iter().find(|(name, _)| *name == hosted.entry.name);
        model_json(&hosted, engine.map(|(_, engine)| engine.info().as_ref()), created)
    };
    server.0.host.models().into_iter().map(entry).collect()
}

/// A model; what only its file tells is absent until it is loaded.
fn model_json(hosted: &HostedModel, info: Option<&ModelInfo>, created: u64) -> Value {
    let is_encoder = info.is_some_and(|info| !info.hparams().arch.causal);
    json!({
        "id": hosted.entry.name,
        "aliases": hosted.entry.aliases,
        "tags": [],
        "object": "model",
        "created": created,
        "owned_by": "jetforge",
        "capabilities": [if is_encoder { "embedding" } else { "completion" }],
        "status": {"value": if hosted.is_loaded { "loaded" } else { "unloaded" }},
        "meta": info.map(meta_json),
    })
}

/// llama.cpp's numbers of a model.
fn meta_json(info: &ModelInfo) -> Value {
    let gguf = info.gguf();
    let vocab_type = match gguf.metadata().str("tokenizer.ggml.model") {
        Ok(Some("llama")) => 1,
        Ok(Some("gpt2")) => 2,
        Ok(Some("bert")) => 3,
        _ => 0,
    };
    let n_params: u64 = gguf.tensors().iter().map(|tensor| tensor.n_elements()).sum();
    let size: u64 = gguf.tensors().iter().map(|tensor| gguf.bytes(tensor).len() as u64).sum();
    let hparams = info.hparams();
    json!({
        "vocab_type": vocab_type,
        "n_vocab": hparams.n_vocab,
        "n_ctx": info.n_ctx(),
        "n_ctx_train": hparams.n_ctx_train,
        "n_embd": hparams.n_embd,
        "n_params": n_params,
        "size": size,
    })
}
