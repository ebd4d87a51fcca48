//! The models: what is here, what is loaded, what is known of one, and how more come and go.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::wire::{lease, model_name, timestamp};
use crate::hosting::HostedModel;
use crate::inference::ModelInfo;
use crate::inference::gguf::{Value as GgufValue, ValueType};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::blocking;
use crate::server::shelf::{PullStep, Shelf, ShelfError, Shelved};
use crate::server::state::Server;

/// Steps of a download that wait for a slow reader; more are left out.
const STEPS_MAX: usize = 64;

/// `GET /api/tags`: every model that can be asked for.
pub(super) async fn tags(State(server): State<Server>) -> Result<Json<Value>, ApiError> {
    let shelf = server.0.shelf.clone();
    let shelved = blocking(move || Ok(shelf.map(|shelf| shelf.list()).unwrap_or_default())).await?;
    let hosted = server.0.host.models();
    let engines = server.0.host.engines();
    let info = |name: &str| {
        engines.iter().find(|(own, _)| own == name).map(|(_, engine)| Arc::clone(engine.info()))
    };
    let started = SystemTime::now() - server.0.started.elapsed();
    let mut models: Vec<Value> = Vec::new();
    for HostedModel { entry, .. } in &hosted {
        let on_shelf = shelved.iter().find(|shelved| shelved.name == entry.name);
        models.push(tag(&entry.name, on_shelf, info(&entry.name).as_deref(), started));
    }
    let is_new = |shelved: &&Shelved| hosted.iter().all(|h| h.entry.name != shelved.name);
    for shelved in shelved.iter().filter(is_new) {
        models.push(tag(&shelved.name, Some(shelved), None, started));
    }
    Ok(Json(json!({ "models": models })))
}

fn tag(
    name: &str,
    shelved: Option<&Shelved>,
    info: Option<&ModelInfo>,
    started: SystemTime,
) -> Value {
    let modified = shelved.and_then(|shelved| shelved.modified).unwrap_or(started);
    let size = shelved.map(|shelved| shelved.size_bytes).or(info.map(size_of));
    json!({
        "name": name,
        "model": name,
        "modified_at": timestamp(modified),
        "size": size.unwrap_or(0),
        "digest": shelved.and_then(|shelved| shelved.sha256.clone()).unwrap_or_default(),
        "details": details(info),
    })
}

fn size_of(info: &ModelInfo) -> u64 {
    let gguf = info.gguf();
    gguf.tensors().iter().map(|tensor| gguf.bytes(tensor).len() as u64).sum()
}

/// What the file says, where the model is loaded.
fn details(info: Option<&ModelInfo>) -> Value {
    let family = info.map(architecture).unwrap_or_default();
    let n_params: u64 =
        info.map_or(0, |info| info.gguf().tensors().iter().map(|t| t.n_elements()).sum());
    let size = match n_params {
        0 => String::new(),
        n @ 0..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        n => format!("{:.1}B", n as f64 / 1e9),
    };
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": info.map(weights).unwrap_or_default(),
    })
}

fn architecture(info: &ModelInfo) -> String {
    let name = info.gguf().metadata().str("general.architecture");
    name.ok().flatten().unwrap_or_default().to_owned()
}

/// The type of most bytes of the file.
fn weights(info: &ModelInfo) -> String {
    let mut bytes: std::collections::BTreeMap<String, usize> = Default::default();
    for tensor in info.gguf().tensors() {
        let name = tensor.ty.to_string();
        *bytes.entry(name).or_default() += info.gguf().bytes(tensor).len();
    }
    bytes.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name).unwrap_or_default()
}

/// `GET /api/ps`: what is in memory.
pub(super) async fn ps(State(server): State<Server>) -> Json<Value> {
    let engines = server.0.host.engines();
    let hosted = server.0.host.models();
    let model = |hosted: &HostedModel| {
        let (name, engine) = engines.iter().find(|(name, _)| *name == hosted.entry.name)?;
        // One that always stays is told as Ollama does: far away.
        let far = Duration::from_secs(100 * 365 * 86_400);
        let until = SystemTime::now() + hosted.entry.keep_alive.unwrap_or(far).min(far);
        let info = engine.info();
        Some(json!({
            "name": name,
            "model": name,
            "size": hosted.memory_bytes.max(size_of(info)),
            "digest": "",
            "details": details(Some(info)),
            "expires_at": timestamp(until),
            "size_vram": 0,
            "context_length": info.n_ctx(),
        }))
    };
    Json(json!({ "models": hosted.iter().filter_map(model).collect::<Vec<Value>>() }))
}

/// `POST /api/show`: what is known of a model, which is loaded for that.
pub(super) async fn show(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease(&server, &fields).await?;
    let is_verbose = fields.bool("verbose")?.unwrap_or(false);
    let info = Arc::clone(lease.info());
    let template = info.chat_template().map(|template| template.source().to_owned());
    let template = template.unwrap_or_default();
    let sampler = lease.sampler();
    let parameters = format!(
        "temperature {}\ntop_k {}\ntop_p {}\nmin_p {}\nrepeat_penalty {}\nnum_ctx {}",
        sampler.temp,
        sampler.top_k,
        sampler.top_p,
        sampler.min_p,
        sampler.penalty_repeat,
        info.n_ctx(),
    );
    let mut known = Map::new();
    for (key, value) in info.gguf().metadata().iter() {
        known.insert(key.to_owned(), json_of(value, is_verbose));
    }
    let n_params: u64 = info.gguf().tensors().iter().map(|tensor| tensor.n_elements()).sum();
    known.insert("general.parameter_count".into(), n_params.into());
    Ok(Json(json!({
        "license": info.gguf().metadata().str("general.license").ok().flatten().unwrap_or_default(),
        "modelfile": format!("FROM {}\n", lease.name()),
        "parameters": parameters,
        "template": template,
        "details": details(Some(&info)),
        "model_info": known,
        "capabilities": capabilities(&info, &template),
        "modified_at": timestamp(UNIX_EPOCH + since_start(&server)),
    })))
}

fn since_start(server: &Server) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(server.0.started.elapsed())
}

fn capabilities(info: &ModelInfo, template: &str) -> Vec<&'static str> {
    if !info.hparams().arch.causal {
        return vec!["embedding"];
    }
    let special = info.tokenizer().special();
    let mut all = vec!["completion"];
    if template.contains("tools") {
        all.push("tools");
    }
    if special.fim_prefix.is_some() && special.fim_suffix.is_some() && special.fim_middle.is_some()
    {
        all.push("insert");
    }
    if template.contains("</think>") {
        all.push("thinking");
    }
    all
}

/// A value of the file; long lists are null unless asked for, as Ollama has it.
fn json_of(value: &GgufValue, is_verbose: bool) -> Value {
    match value {
        GgufValue::U8(n) => (*n).into(),
        GgufValue::I8(n) => (*n).into(),
        GgufValue::U16(n) => (*n).into(),
        GgufValue::I16(n) => (*n).into(),
        GgufValue::U32(n) => (*n).into(),
        GgufValue::I32(n) => (*n).into(),
        GgufValue::U64(n) => (*n).into(),
        GgufValue::I64(n) => (*n).into(),
        GgufValue::F32(x) => json!(x),
        GgufValue::F64(x) => json!(x),
        GgufValue::Bool(is) => (*is).into(),
        GgufValue::Str(text) => text.to_string().into(),
        GgufValue::Array(_) if !is_verbose => Value::Null,
        GgufValue::Array(array) if array.item_type() == ValueType::Str => {
            array.strs().collect::<Vec<&str>>().into()
        }
        GgufValue::Array(array) => array.values().map(|item| json_of(&item, true)).collect(),
    }
}

fn shelf(server: &Server) -> Result<Arc<dyn Shelf>, ApiError> {
    let missing = || ApiError::not_supported("this service keeps no models of its own");
    server.0.shelf.clone().ok_or_else(missing)
}

fn failed(error: ShelfError) -> ApiError {
    match error {
        ShelfError::Unknown(message) => ApiError::not_found(message),
        ShelfError::InUse(message) => ApiError::conflict(message).at("model"),
        ShelfError::NoRoom(message) => ApiError::no_room(message),
        ShelfError::Failed(message) => ApiError::internal(message),
    }
}

fn named(fields: &Fields) -> Result<String, ApiError> {
    let missing = || ApiError::field("model", "model is missing");
    model_name(fields)?.filter(|name| !name.is_empty()).ok_or_else(missing)
}

/// `POST /api/pull`: gets a model of the catalog.
pub(super) async fn pull(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Response, ApiError> {
    let (shelf, name) = (shelf(&server)?, named(&fields)?);
    if !fields.bool("stream")?.unwrap_or(true) {
        let work = move || shelf.pull(&name, &mut |_| {}).map_err(failed);
        blocking(work).await?;
        return Ok(Json(json!({"status": "success"})).into_response());
    }
    let (sender, receiver) = mpsc::channel::<Value>(STEPS_MAX);
    tokio::task::spawn_blocking(move || {
        let _ = sender.blocking_send(json!({"status": "pulling manifest"}));
        // A reader who is slow or gone misses steps, but not the last before the end; the download
        // goes on, and can be resumed.
        let mut missed = None;
        let result = shelf.pull(&name, &mut |step| {
            missed = match sender.try_send(step_json(&step)) {
                Err(TrySendError::Full(line)) => Some(line),
                _ => None,
            };
        });
        let last = match result {
            Ok(()) => json!({"status": "success"}),
            Err(error) => super::error_json(&failed(error)),
        };
        missed.into_iter().chain([last]).for_each(|line| drop(sender.blocking_send(line)));
    });
    let body = Body::new(Steps(receiver));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn step_json(step: &PullStep) -> Value {
    let mut line = json!({ "status": step.status });
    if let Some(sha256) = &step.sha256 {
        line["digest"] = format!("sha256:{sha256}").into();
    }
    if let Some((done, total)) = step.bytes {
        line["completed"] = done.into();
        line["total"] = total.unwrap_or(done).into();
    }
    line
}

/// Steps as the lines of a body.
struct Steps(mpsc::Receiver<Value>);

impl hyper::body::Body for Steps {
    type Data = axum::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        self.0.poll_recv(cx).map(|step| {
            let line = step?.to_string() + "\n";
            Some(Ok(hyper::body::Frame::data(line.into())))
        })
    }
}

/// `DELETE /api/delete`: takes a model away.
pub(super) async fn delete(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Response, ApiError> {
    let (shelf, name) = (shelf(&server)?, named(&fields)?);
    let loaded: Vec<String> = server.0.host.engines().into_iter().map(|(own, _)| own).collect();
    let removed = blocking(move || shelf.remove(&name, &loaded).map_err(failed)).await?;
    server.0.host.forget(&removed);
    Ok(().into_response())
}
