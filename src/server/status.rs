//! `/v1/status`: how the service stands, in a few numbers.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Gate, power, sync};

/// The routes of this file.
pub(super) fn routes() -> Router<Gate> {
    Router::new().route("/v1/status", get(status))
}

async fn status(State(gate): State<Gate>) -> Json<Value> {
    let server = gate.server();
    let host = &server.0.host;
    let engines = host.engines();
    let model = |name: &str| {
        let engine = engines.iter().find(|(own, _)| own == name).map(|(_, engine)| engine);
        let stats = engine.map(|engine| engine.stats());
        json!({
            "name": name,
            "loaded": engine.is_some(),
            "n_ctx": engine.map(|engine| engine.info().n_ctx()),
            "backend": engine.map(|engine| engine.info().backend_name().to_owned()),
            "running": stats.as_ref().map(|stats| stats.n_running),
            "waiting": stats.as_ref().map(|stats| stats.n_waiting),
        })
    };
    let models = host.models();
    let models: Vec<Value> = models.iter().map(|hosted| model(&hosted.entry.name)).collect();
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": server.0.started.elapsed().as_secs(),
        "default_model": host.default_name(),
        "models": models,
        "completions": server.0.events.to_json(),
        "sync": sync::states(&gate).await,
        "power": gate.power().map(|watch| power::brief(&watch.standing())),
        // Answers are written on this machine; nothing is passed on to another.
        "upstream": null,
    }))
}
