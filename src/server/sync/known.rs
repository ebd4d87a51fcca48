//! What is told and known beside jobs: this machine's models, and what each peer told of itself.

use serde_json::{Map, Value, json};

use crate::server::{ApiError, Server};
use crate::sync::{Node, Record, SyncError};

use super::ask;

/// Records of a kind that are looked through.
const N_RECORD: usize = 1000;
/// Benchmarks that are shown of each machine.
const N_BENCH_SHOWN: usize = 8;

/// The models of this machine, as the entry of its inventory says it. What changes with each
/// request, such as which of them are loaded, is not in it.
fn inventory(server: &Server) -> Value {
    let shelf = server.0.shelf.as_ref().map(|shelf| shelf.list()).unwrap_or_default();
    let mut models: Vec<Value> = shelf
        .iter()
        .map(|own| json!({"name": own.name, "bytes": own.size_bytes, "sha256": own.sha256}))
        .collect();
    let is_there = |name: &str| shelf.iter().any(|own| own.name == name);
    for hosted in server.0.host.models() {
        if !is_there(&hosted.entry.name) {
            models.push(json!({ "name": hosted.entry.name }));
        }
    }
    models.sort_by_key(|model| model["name"].as_str().unwrap_or_default().to_owned());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "default": server.0.host.default_name(),
        "models": models,
    })
}

/// Tells the peers of this machine's models, if they are others than they know.
pub(super) async fn tell_inventory(sync: &Node, server: Server) -> Result<(), ApiError> {
    ask(sync, move |sync| sync.tell_inventory(inventory(&server)).map(|_| ())).await
}

/// What each peer told of itself.
///
/// # Errors
/// If the store cannot be read.
pub(super) fn appliances(sync: &Node) -> Result<Vec<Value>, SyncError> {
    let of_kind = |kind: &str| sync.records(kind, N_RECORD);
    let (jobs, reports) = (of_kind("job")?, of_kind("report")?);
    let (inventories, settings) = (of_kind("inventory")?, of_kind("setting")?);
    let (feedback, snippets) = (of_kind("feedback")?, of_kind("snippet")?);
    let files = sync.files()?;
    let view = |node: &str| {
        let is_its = |record: &&Record| record.origin == node;
        let own = |record: &&Record| record.entry.key.split('/').next() == Some(node);
        let mut states = Map::new();
        let owner =
            |record: &Record| record.entry.body["owner"].as_str().unwrap_or(&record.origin) == node;
        for record in jobs.iter().filter(|record| owner(record)) {
            let state = record.entry.body["state"].as_str().unwrap_or("unknown");
            let n = states.entry(state).or_insert_with(|| 0.into());
            *n = (n.as_u64().unwrap_or(0) + 1).into();
        }
        let inventory = inventories.iter().find(|record| record.entry.key == node);
        let settings: Map<String, Value> = settings
            .iter()
            .filter(own)
            .filter_map(|record| {
                let name = record.entry.key.split_once('/')?.1;
                Some((name.to_owned(), record.entry.body.clone()))
            })
            .collect();
        let bench =
            reports.iter().filter(own).filter(|record| record.entry.body["what"] == "bench");
        json!({
            "jobs": states,
            "inventory": inventory.map(|record| &record.entry.body),
            "settings": settings,
            "bench": bench.take(N_BENCH_SHOWN).map(|r| &r.entry.body).collect::<Vec<_>>(),
            "n_feedback": feedback.iter().filter(is_its).count(),
            "n_snippet": snippets.iter().filter(is_its).count(),
            "n_file": files.iter().filter(|file| file.node == node).count(),
        })
    };
    let standings = sync.standing()?;
    let shown = standings.iter().map(|of| {
        let mut shown = super::routes::view(of);
        if let (Some(shown), Value::Object(told)) = (shown.as_object_mut(), view(&of.peer.node)) {
            shown.extend(told);
        }
        shown
    });
    Ok(shown.collect())
}
