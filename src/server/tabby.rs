//! Tabby's dialect: code at the cursor for its editor agents, and what they ask around it.
//!
//! ```text
//! /v1/completions with segments   prefix, suffix and snippets -> fill in the middle
//! /v1/events                      what became of an answer: seen, taken, dismissed
//! /v1/health, /v1beta/...         what is here, and that nothing is to be told to others
//! ```
//!
//! The path of completions is OpenAI's, too; a body with `segments` and no `prompt` is Tabby's. A
//! model without tokens for filling in continues the prefix.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::Gate;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::{blocking, collect, fit_prompt, lease_for, submit};
use super::llama::fill_in;
use super::prompts::text;
use super::report::random_word;
use super::request::request;
use super::state::{Caller, Server};
use crate::base::host::Host as Machine;
use crate::inference::{EncodeOptions, ModelInfo, TokenId};

/// Tokens of an answer, as of Tabby's own server.
const TOKENS_MAX: i64 = 64;
/// Randomness where a request names none, as of Tabby's own server.
const TEMPERATURE: f64 = 0.1;
/// An answer ends before an empty line.
const STOP: &str = "\n\n";
/// Agents ask servers from 0.9 on for their settings; behind that number stands whose it is.
const VERSION: &str = concat!("v0.21.0-jetforge-", env!("CARGO_PKG_VERSION"));
/// What may become of an answer, and what is counted.
const EVENTS: [&str; 3] = ["view", "select", "dismiss"];

/// What became of answers: how many were seen, taken and dismissed.
#[derive(Debug, Default)]
pub(super) struct Events([AtomicU64; EVENTS.len()]);

impl Events {
    /// The counts by name.
    pub fn to_json(&self) -> Value {
        let counts = EVENTS.iter().zip(&self.0);
        let json = counts.map(|(name, n)| ((*name).to_owned(), n.load(Ordering::Relaxed).into()));
        Value::Object(json.collect())
    }
}

/// The dialect's routes beside the one of completions.
pub(super) fn routes() -> Router<Server> {
    let setting = || async { Json(json!({"disable_client_side_telemetry": true})) };
    Router::new()
        .route("/v1/events", post(event))
        .route("/v1beta/server_setting", get(setting))
        .route("/v1beta/models", get(models))
}

/// The route that asks who calls.
pub(super) fn health_routes() -> Router<Gate> {
    Router::new().route("/v1/health", get(health).post(health))
}

/// Whether a body of `/v1/completions` is Tabby's.
pub(super) fn is_own(fields: &Fields) -> bool {
    let is_raw = |options: &Value| options.get("raw_prompt").is_some_and(Value::is_string);
    !fields.has("prompt")
        && (fields.has("segments") || fields.get("debug_options").is_some_and(is_raw))
}

/// `/v1/health`: llama.cpp's word for everybody; for who may use the service, what Tabby's agents
/// look at.
async fn health(State(gate): State<Gate>, headers: HeaderMap) -> Json<Value> {
    if !gate.knows(&headers) {
        return Json(json!({"status": "ok"}));
    }
    let host = &gate.server().0.host;
    let model = host.default_name();
    let engines = host.engines();
    let engine = engines.iter().find(|(name, _)| name == model).or(engines.first());
    let info = engine.map(|(_, engine)| engine.info());
    // Agents know devices without their numbers. A model that is not loaded is nowhere.
    let device = info.and_then(|info| info.device().name.split(':').next()).unwrap_or("none");
    let gpu = info.filter(|_| device == "cuda").map(|info| info.backend_name());
    let machine = Machine::read();
    Json(json!({
        "status": "ok",
        "model": model,
        "chat_model": model,
        "device": device,
        "arch": machine.arch,
        "cpu_info": machine.cpu_name,
        "cpu_count": machine.n_threads,
        "cuda_devices": Vec::from_iter(gpu),
        "version": {
            // The same source gives the same program: neither day nor place are in it.
            "build_date": "unknown",
            "build_timestamp": "unknown",
            "git_sha": "unknown",
            "git_describe": VERSION,
        },
    }))
}

/// `/v1beta/models`: what writes code and what answers.
async fn models(State(server): State<Server>) -> Json<Value> {
    let models = server.0.host.models();
    let names: Vec<&str> = models.iter().map(|model| model.entry.name.as_str()).collect();
    Json(json!({"completion": names, "chat": names}))
}

/// `/v1/events`: counts what became of an answer.
async fn event(State(server): State<Server>, fields: Fields) -> Result<(), ApiError> {
    let kind = fields.choice("type", &EVENTS)?;
    let kind = kind.ok_or_else(|| ApiError::field("type", "type is missing"))?;
    fields.str("completion_id")?;
    server.0.events.0[kind].fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// What a request makes of its segments.
struct Asked {
    prompt: Vec<TokenId>,
    snippets: Vec<Value>,
}

/// Answers a completion.
pub(super) async fn complete(
    server: Server,
    caller: Caller,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease_for(&server, &fields, &caller).await?;
    let debug = Fields(fields.object("debug_options")?.cloned().unwrap_or_default());
    let work = move || {
        let mut own = fields.clone();
        for (name, value) in [
            ("max_tokens", json!(TOKENS_MAX)),
            ("temperature", json!(TEMPERATURE)),
            ("stop", json!([STOP])),
        ] {
            own.0.entry(name).or_insert(value);
        }
        let mut request = request(&own, &["max_tokens"], &lease, &caller, &server.0.options)?;
        let info = Arc::clone(lease.info());
        let asked = asked(&fields, &info, request.n_predict)?;
        let prompt = text(&asked.prompt, info.tokenizer());
        request.prompt = asked.prompt;
        Ok((submit(lease, vec![request])?, prompt, asked.snippets))
    };
    let (mut generation, prompt, snippets) = blocking(work).await?;
    let answer = collect(&mut generation, 1).await?.pop().unwrap_or_default();
    let mut said = json!({
        "id": format!("cmpl-{}", random_word(24)),
        "choices": [{"index": 0, "text": answer.text}],
    });
    let mut told = Map::new();
    if debug.bool("return_prompt")? == Some(true) {
        told.insert("prompt".into(), prompt.into());
    }
    if debug.bool("return_snippets")? == Some(true) {
        told.insert("snippets".into(), snippets.into());
    }
    if !told.is_empty() {
        said["debug_data"] = told.into();
    }
    Ok(Json(said))
}

fn asked(fields: &Fields, info: &ModelInfo, n_predict: Option<usize>) -> Result<Asked, ApiError> {
    let debug = Fields(fields.object("debug_options")?.cloned().unwrap_or_default());
    if let Some(raw) = debug.str("raw_prompt")? {
        let prompt = plain(raw, info, n_predict, "debug_options.raw_prompt")?;
        return Ok(Asked { prompt, snippets: Vec::new() });
    }
    let segments = Fields(fields.object("segments")?.cloned().unwrap_or_default());
    let at = |error: ApiError| {
        let param = format!("segments.{}", error.param.as_deref().unwrap_or_default());
        error.at(param)
    };
    let prefix = segments.str("prefix").map_err(at)?;
    let prefix = prefix.ok_or_else(|| at(ApiError::field("prefix", "prefix is missing")))?;
    let suffix = segments.str("suffix").map_err(at)?.unwrap_or_default();
    let snippets = snippets(&segments).map_err(at)?;
    let special = info.tokenizer().special();
    let is_able = [special.fim_prefix, special.fim_suffix, special.fim_middle];
    let prompt = match is_able.iter().all(Option::is_some) {
        false => plain(prefix, info, n_predict, "segments.prefix")?,
        true => {
            let extra = snippets
                .iter()
                .map(|snippet| json!({"filename": snippet["filepath"], "text": snippet["body"]}));
            let parts = json!({
                "input_prefix": prefix,
                "input_suffix": suffix,
                "input_extra": extra.collect::<Vec<Value>>(),
            });
            let parts = Fields(parts.as_object().cloned().unwrap_or_default());
            fill_in(&parts, info, n_predict).map_err(at)?
        }
    };
    Ok(Asked { prompt, snippets })
}

/// The end of a text that fits.
fn plain(
    text: &str,
    info: &ModelInfo,
    n_predict: Option<usize>,
    param: &str,
) -> Result<Vec<TokenId>, ApiError> {
    let encode = EncodeOptions { add_special: true, parse_special: false };
    let tokens = info.tokenizer().encode(text, encode);
    let mut tokens = tokens.map_err(|error| ApiError::field(param, error.to_string()))?;
    let trim = Some(super::generate::Trim::Start);
    fit_prompt(&mut tokens, trim, info.n_ctx(), n_predict)?;
    Ok(tokens)
}

/// Pieces of other files that the editor found: declarations first, then what changed lately.
fn snippets(segments: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut all = Vec::new();
    for name in ["declarations", "relevant_snippets_from_changed_files"] {
        let entries = segments.array(name)?.map(Vec::as_slice).unwrap_or_default();
        for (idx, entry) in entries.iter().enumerate() {
            let path = entry.get("filepath").and_then(Value::as_str);
            let body = entry.get("body").and_then(Value::as_str);
            let (Some(path), Some(body)) = (path, body) else {
                let at = format!("{name}[{idx}]");
                return Err(ApiError::field(&at, format!("{at} must have filepath and body")));
            };
            let score = entry.get("score").and_then(Value::as_f64).unwrap_or(1.0);
            all.push(json!({"filepath": path, "body": body, "score": score}));
        }
    }
    Ok(all)
}
