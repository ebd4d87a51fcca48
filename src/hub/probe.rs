//! Who is well, and what it has: small questions to each backend, again and again.
//!
//! ```text
//! well       every probe_ms      /v1/models: there, and its models
//! ejected    when its pause is over; well again if it answers
//! appliance  /v1/status: our key, its queue    /api/tags: models of its store    /props: places
//! outside    /props: whether it is a llama.cpp, and its places
//! ```
//!
//! A backend whose probes eject it is one that nobody waits for any longer: requests that hang on
//! it, as after a cut of its power, are given to others.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::Hub;
use super::backend::Backend;
use super::dial::{Call, DialError};
use super::health::Failure;
use super::policy::{Kind, Standing, Stocked};
use super::target::Target;
use crate::base::limits::{HUB_MODELS_MAX, HUB_PROBE_BYTES_MAX};

/// Shortest time between two probes of one backend.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Characters of a backend's own reason that are kept.
const WHY_CHARS_MAX: usize = 200;
/// Time after which a backend is asked again that loads its model.
const LOADING_MS: u64 = 500;

/// The tasks that probe; they end when this is dropped.
pub struct Probes(Arc<Hub>);

impl Probes {
    /// Probes the backends of a hub from now on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(hub: &Arc<Hub>) -> Probes {
        let backends = hub.backends();
        let tasks = backends.iter().filter_map(|backend| spawn(hub, backend)).collect();
        *hub.probes.lock().unwrap_or_else(PoisonError::into_inner) = Some(tasks);
        Probes(Arc::clone(hub))
    }
}

/// Takes a backend in that is probed as the others are; whether there is a place for it.
pub(super) fn join(hub: &Arc<Hub>, backend: Arc<Backend>) -> bool {
    if !hub.add(Arc::clone(&backend)) {
        return false;
    }
    let mut tasks = hub.probes.lock().unwrap_or_else(PoisonError::into_inner);
    // Before the first probes it comes with all others.
    if let Some(tasks) = &mut *tasks {
        tasks.retain(|task| !task.is_finished());
        tasks.extend(spawn(hub, &backend));
    }
    true
}

fn spawn(hub: &Arc<Hub>, backend: &Arc<Backend>) -> Option<JoinHandle<()>> {
    let target = backend.target.clone()?;
    Some(tokio::spawn(watch(Arc::clone(hub), Arc::clone(backend), target)))
}

impl Drop for Probes {
    fn drop(&mut self) {
        let tasks = self.0.probes.lock().unwrap_or_else(PoisonError::into_inner).take();
        tasks.iter().flatten().for_each(JoinHandle::abort);
    }
}

async fn watch(hub: Arc<Hub>, backend: Arc<Backend>, target: Target) {
    let due = || backend.state().health.probe_ms();
    loop {
        let due_ms = due();
        let left = Duration::from_millis(due_ms.saturating_sub(hub.now_ms()));
        // A request that fails meanwhile changes when it is due.
        tokio::time::sleep(left.clamp(PAUSE_MIN, Duration::from_secs(1))).await;
        if !hub.backends().iter().any(|own| Arc::ptr_eq(own, &backend)) {
            return;
        }
        if due() <= hub.now_ms() {
            probe(&hub, &backend, &target).await;
        }
    }
}

/// What a probe found.
enum Found {
    Well,
    /// It is there and loads its model.
    Loading,
    Bad(Failure, String),
}

async fn probe(hub: &Hub, backend: &Backend, target: &Target) {
    let found = match look(hub, backend, target).await {
        Ok(found) => found,
        Err(error) => Found::Bad(error.failure, error.why),
    };
    let every_ms = hub.config().probe_ms;
    let mut state = backend.state();
    let before = state.health.standing();
    // One that says it is busy or loading has not gone.
    let is_bad = matches!(found, Found::Bad(..));
    match found {
        Found::Well => state.health.probed(hub.now_ms(), every_ms),
        Found::Loading => state.health.loading(hub.now_ms(), LOADING_MS),
        Found::Bad(failure, why) => {
            state.health.probe_failed(failure, why, hub.moment(), every_ms);
        }
    }
    let (now, why) = (state.health.standing(), state.health.why().map(str::to_owned));
    drop(state);
    let is_out = |standing| matches!(standing, Standing::Ejected { .. });
    if is_out(now) && is_bad {
        backend.tell_gone();
    }
    if is_out(before) != is_out(now) || before == Standing::Unknown {
        let standing = if is_out(now) { "ejected" } else { "well" };
        tracing::info!(host = backend.name, standing, why, "a backend changed");
    }
}

async fn look(hub: &Hub, backend: &Backend, target: &Target) -> Result<Found, DialError> {
    let (status, body) = ask(hub, backend, target, "/v1/models").await?;
    let mut stock = match status {
        200 => match stock(&body) {
            Some(stock) => Some(stock),
            None => {
                let why = "its list of models cannot be read".to_owned();
                return Ok(Found::Bad(Failure::Wrong, why));
            }
        },
        // A server outside need not list its models.
        404 | 405 | 501 if backend.kind == Kind::External => None,
        status => return Ok(bad(status, &body)),
    };
    if backend.kind == Kind::Appliance {
        let (status, body) = ask(hub, backend, target, "/v1/status").await?;
        if status != 200 {
            return Ok(bad(status, &body));
        }
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        let models = value["models"].as_array().map(Vec::as_slice).unwrap_or_default();
        let count =
            |name: &str| models.iter().filter_map(|model| model[name].as_u64()).sum::<u64>();
        let n_busy = usize::try_from(count("running") + count("waiting"));
        let version = value["version"].as_str().map(str::to_owned);
        backend.count(n_busy.unwrap_or(usize::MAX));
        backend.state().version = version;
        if let (Ok((200, body)), Some(stock)) =
            (ask(hub, backend, target, "/api/tags").await, &mut stock)
        {
            add_tags(stock, &body);
        }
    }
    if backend.is_unseated()
        && let Ok((200, body)) = ask(hub, backend, target, "/props").await
    {
        let props: Value = serde_json::from_slice(&body).unwrap_or_default();
        let n_place = props["total_slots"].as_u64().and_then(|n| usize::try_from(n).ok());
        backend.state().seat(n_place);
    }
    backend.state().stock = stock;
    Ok(Found::Well)
}

async fn ask(
    hub: &Hub,
    backend: &Backend,
    target: &Target,
    path: &str,
) -> Result<(u16, Bytes), DialError> {
    let call = Call::get(path, backend);
    hub.dialer().whole(target, call, hub.waits().probe, HUB_PROBE_BYTES_MAX).await
}

/// What a refusal of a probe means.
fn bad(status: u16, body: &[u8]) -> Found {
    match status {
        // As of a port that speaks TLS since the pairing.
        400 => {
            let told: Option<Value> = serde_json::from_slice(body).ok();
            let told = told.and_then(|told| told["error"]["message"].as_str().map(str::to_owned));
            let why = told.unwrap_or_else(|| "it answers probes with 400".to_owned());
            Found::Bad(Failure::Denied, why.chars().take(WHY_CHARS_MAX).collect())
        }
        401 | 403 => Found::Bad(Failure::Denied, "it does not take our key".to_owned()),
        429 | 503 => Found::Loading,
        status => Found::Bad(Failure::Wrong, format!("it answers probes with {status}")),
    }
}

/// The models of OpenAI's list, or of ours.
fn stock(body: &[u8]) -> Option<Vec<Stocked>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let data = value["data"].as_array()?;
    let model = |model: &Value| {
        let own =
            [&model["id"]].into_iter().chain(model["aliases"].as_array().into_iter().flatten());
        let n_ctx = model["meta"]["n_ctx"].as_u64().and_then(|n| usize::try_from(n).ok());
        let names: Vec<String> = own.filter_map(Value::as_str).map(str::to_owned).collect();
        (!names.is_empty()).then_some(Stocked { names, n_ctx })
    };
    Some(data.iter().take(HUB_MODELS_MAX).filter_map(model).collect())
}

/// Adds the models of an appliance's store, which it loads when they are asked for.
fn add_tags(stock: &mut Vec<Stocked>, body: &[u8]) {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    for model in value["models"].as_array().into_iter().flatten().take(HUB_MODELS_MAX) {
        let Some(name) = model["name"].as_str() else { continue };
        let name = name.strip_suffix(":latest").unwrap_or(name);
        let is_known = stock.iter().any(|model| model.names.iter().any(|own| own == name));
        if !is_known && stock.len() < HUB_MODELS_MAX {
            stock.push(Stocked { names: vec![name.to_owned()], n_ctx: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_from_either_list() {
        let list =
            br#"{"data":[{"id":"a","aliases":["b"],"meta":{"n_ctx":64}},{"id":"c"},{"x":1}]}"#;
        let mut own = stock(list).unwrap();
        assert_eq!(own[0], Stocked { names: vec!["a".into(), "b".into()], n_ctx: Some(64) });
        assert_eq!(own.len(), 2);
        add_tags(&mut own, br#"{"models":[{"name":"b:latest"},{"name":"d:latest"}]}"#);
        assert_eq!(own.len(), 3);
        assert_eq!(own[2].names, ["d"]);
        assert_eq!(stock(b"{}"), None);
        assert_eq!(stock(b"<html>"), None);
    }
}
