//! `GET` and `POST /props`: what the server is.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Query, State};
use serde_json::{Value, json};

use super::params::Params;
use super::settings;
use crate::hosting::Lease;
use crate::inference::{ModelInfo, ModelSource, Tokenizer};
use crate::server::generate::lease;
use crate::server::{ApiError, Server};

/// What llama.cpp's clients read as its build: a number, and whose it is.
pub const BUILD_INFO: &str = concat!("b1-jetforge-", env!("CARGO_PKG_VERSION"));

/// `GET /props`.
pub async fn get(
    State(server): State<Server>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, query.get("model").map(String::as_str)).await?;
    let serve = &server.0.options;
    let info = lease.info();
    let n_predict = serve.n_predict.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1);
    let params = Params { sampler: lease.sampler().clone(), n_predict, ..Params::default() };
    let template = match (&serve.chat_template, info.chat_template()) {
        (Some(template), _) => template.as_str(),
        (None, Some(template)) => template.source(),
        (None, None) => "",
    };
    let special = info.tokenizer().special();
    Ok(Json(json!({
        "default_generation_settings": {
            "params": settings::brief(&params, serve, info),
            "n_ctx": info.n_ctx(),
        },
        "total_slots": lease.options().n_parallel,
        "model_alias": lease.name(),
        "model_ftype": file_type(&lease),
        "model_path": model_path(&server, &lease),
        "modalities": {"vision": false, "video": false, "audio": false},
        "media_marker": "<__media__>",
        "endpoint_slots": serve.shows_slots,
        "endpoint_props": serve.allows_props,
        "endpoint_metrics": serve.shows_metrics,
        "ui": true,
        "ui_settings": {},
        "chat_template": template,
        "chat_template_caps": template_caps(template),
        "bos_token": token_text(special.bos, info.tokenizer()),
        "eos_token": token_text(special.eos, info.tokenizer()),
        "build_info": BUILD_INFO,
        "device": device(info),
        "is_sleeping": false,
        "cors_proxy_enabled": false,
    })))
}

/// `POST /props`: there is nothing to change yet, in llama.cpp neither.
pub async fn set(State(server): State<Server>) -> Result<Json<Value>, ApiError> {
    match server.0.options.allows_props {
        true => Ok(Json(json!({"success": true}))),
        false => Err(ApiError::not_supported(
            "This server does not support changing global properties. Start it with `--props`",
        )),
    }
}

/// Where the model runs; llama.cpp says nothing of it.
fn device(info: &ModelInfo) -> Value {
    let device = info.device();
    json!({
        "name": device.name,
        "backend": info.backend_name(),
        "why": device.why,
        "is_fallback": device.is_fallback,
    })
}

fn token_text(token: Option<u32>, tokenizer: &Tokenizer) -> String {
    let bytes = token.map_or(&[][..], |token| tokenizer.token_bytes(token, true));
    String::from_utf8_lossy(bytes).into_owned()
}

fn model_path(server: &Server, lease: &Lease) -> String {
    let models = server.0.host.models();
    let model = models.into_iter().find(|model| model.entry.name == lease.name());
    match model.map(|model| model.entry.source) {
        Some(ModelSource::File(path)) => path.display().to_string(),
        Some(ModelSource::Embedded) | None => "embedded/default.gguf".to_owned(),
    }
}

/// llama.cpp's name for how most of the file is stored.
fn file_type(lease: &Lease) -> &'static str {
    let number = lease.info().gguf().metadata().u32("general.file_type");
    match number.ok().flatten() {
        Some(0) => "all F32",
        Some(1) => "F16",
        Some(2) => "Q4_0",
        Some(3) => "Q4_1",
        Some(7) => "Q8_0",
        Some(8) => "Q5_0",
        Some(9) => "Q5_1",
        Some(10) => "Q2_K - Medium",
        Some(11) => "Q3_K - Small",
        Some(12) => "Q3_K - Medium",
        Some(13) => "Q3_K - Large",
        Some(14) => "Q4_K - Small",
        Some(15) => "Q4_K - Medium",
        Some(16) => "Q5_K - Small",
        Some(17) => "Q5_K - Medium",
        Some(18) => "Q6_K",
        Some(21) => "Q2_K - Small",
        Some(25) => "IQ4_NL - 4.5 bpw",
        Some(30) => "IQ4_XS - 4.25 bpw",
        Some(32) => "BF16",
        _ => "unknown, may not work",
    }
}

/// What a template looks at. llama.cpp finds out by rendering; its words tell as much.
fn template_caps(template: &str) -> Value {
    let has = |word: &str| template.contains(word);
    json!({
        "supports_object_arguments": has("tool_calls") && has("arguments|items"),
        "supports_parallel_tool_calls": has("tool_calls"),
        "supports_preserve_reasoning": has("reasoning_content"),
        "supports_reasoning_effort": has("reasoning_effort"),
        "supports_string_content": true,
        "supports_system_role": has("system"),
        "supports_tool_calls": has("tool_calls"),
        "supports_tools": has("tools"),
        "supports_typed_content": has("content[0].type") || has("item.type"),
    })
}
