//! Every route of the service in one router, behind the gate.

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::forward::pass_on;
use super::gate::pass_gate;
use super::jobs::keep_promise;
use super::{
    ApiError, Gate, Server, anthropic, autocoder, health, jobs, live, llama, metrics, ollama,
    openai, openapi, page, pairing, power, settings, status, sync, tabby, timeline,
};

/// The routes of the dialects.
fn dialects() -> Router<Server> {
    health::routes()
        .merge(llama::routes())
        .merge(openai::routes())
        .merge(autocoder::routes())
        .merge(anthropic::routes())
        .merge(ollama::routes())
        .merge(tabby::routes())
}

/// The service as one router; a bare [`Server`] gets a gate with the default options.
pub fn router(gate: impl Into<Gate>) -> Router {
    let gate: Gate = gate.into();
    let own = metrics::routes().merge(timeline::routes()).merge(jobs::routes());
    let own = own.merge(autocoder::desk_routes()).merge(live::routes()).merge(pairing::routes());
    let own = own.merge(tabby::health_routes());
    let own = own.merge(sync::routes()).merge(sync::peer_routes()).merge(power::routes());
    let own = own.merge(settings::routes());
    let dialects: Router = dialects().with_state(gate.server().clone());
    // A hub adds its backends to what this says.
    let dialects = dialects.merge(status::routes().with_state(gate.clone()));
    let dialects = match gate.forward().cloned() {
        Some(forward) => {
            let layer = middleware::from_fn_with_state(forward, pass_on);
            dialects.route_layer(layer)
        }
        None => dialects,
    };
    if let Some(door) = gate.jobs() {
        // As below: the body of a job was bounded when it came.
        door.answer_with(dialects.clone().layer(DefaultBodyLimit::disable()));
    }
    let promises = middleware::from_fn_with_state(gate.clone(), keep_promise);
    let dialects = dialects.route_layer(promises);
    gate.answer_messages(dialects.clone().layer(DefaultBodyLimit::disable()));
    let routes = dialects.merge(own.with_state(gate.clone()));
    behind(gate, routes.merge(page::routes()).merge(openapi::routes()))
}

/// Routes with everything that stands before them.
fn behind(gate: Gate, routes: Router) -> Router {
    let wrong_method = || async {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        ApiError::new(status, "invalid_request_error", "this path has no such method")
    };
    let cors = cors(gate.origins());
    let router = routes
        .fallback(|| async { ApiError::not_found("File Not Found") })
        .method_not_allowed_fallback(wrong_method)
        // The gate has read the body within its own bounds.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(broken))
        .layer(middleware::from_fn_with_state(gate, pass_gate));
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// The answer to a request whose handler panicked. The panic's text may quote the request, so it
/// is told to nobody.
fn broken(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("this request met a bug; others are served").into_response()
}

/// Answers to browsers that ask whether a page may call; none unless pages are configured.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|o| HeaderValue::from_str(o).ok())),
    };
    let shown =
        ["x-request-id", "x-jetforge-cache", "x-jetforge-job", "x-jetforge-host", "location"]
            .map(HeaderName::from_static);
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(shown),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};

    use axum::body::Body;
    use axum::http::Request;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use serde_json::{Value, json};
    use tokio::task::{JoinHandle, spawn_blocking, yield_now};

    use super::*;
    use crate::hosting::{Host, ModelEntry};
    use crate::inference::{
        Engine, EngineOptions, LoadOptions, Model, ModelSource, SamplerOptions,
    };
    use crate::server::ServeOptions;

    fn entry(name: &str) -> ModelEntry {
        ModelEntry {
            name: name.to_owned(),
            aliases: Vec::new(),
            source: ModelSource::Embedded,
            load: LoadOptions { n_ctx: Some(64), n_threads: Some(1), ..LoadOptions::default() },
            engine: EngineOptions::default(),
            sampler: SamplerOptions::default(),
            keep_alive: None,
        }
    }

    fn server() -> Server {
        let entry = entry("default");
        let model = Model::load(&entry.source, &entry.load).unwrap();
        let options = entry.engine.clone();
        let engine = Engine::start(model, options, Box::new(|reason| panic!("{reason}"))).unwrap();
        Server::new(Host::single(entry, engine), ServeOptions::default())
    }

    /// Lets a model be loaded by the only thread that may, which is busy until the sender goes, and
    /// says in its place that 430 bytes of 1000 are there.
    async fn on_its_way(host: &Host, name: &'static str) -> (Sender<()>, JoinHandle<()>) {
        let (go, gone) = channel::<()>();
        spawn_blocking(move || gone.recv());
        let other = host.clone();
        let waiting = tokio::spawn(async move { drop(other.lease(Some(name)).await.unwrap()) });
        while host.loading().is_none() {
            yield_now().await;
        }
        let loading = host.loading().unwrap();
        loading.progress.begin(1000);
        loading.progress.add(430);
        (go, waiting)
    }

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = TowerToHyperService::new(router.clone()).call(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_its_text_is_told_to_nobody() {
        let breaks = || async {
            if true {
                panic!("the secret");
            }
        };
        let routes = Router::new().route("/breaks", get(breaks)).route("/x", get(|| async { "x" }));
        let router = behind(Gate::from(server()), routes);
        let (status, body) = ask(&router, "/breaks").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("\"server_error\"") && !body.contains("secret"), "{body}");
        assert_eq!(ask(&router, "/x").await, (StatusCode::OK, "x".to_owned()));
    }

    #[test]
    fn how_far_a_model_is_loaded_is_told() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let entries = vec![entry("a"), entry("b")];
            let host = Host::new(entries, u64::MAX, Box::new(|_| None), Arc::new(|_| {}));
            let options = ServeOptions { shows_metrics: true, ..ServeOptions::default() };
            let service = router(Server::new(host.clone(), options));
            let (go, waiting) = on_its_way(&host, "a").await;
            let (status, body) = ask(&service, "/health").await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            let expected = json!({"error": {
                "code": 503,
                "message": "Loading model",
                "type": "unavailable_error",
                "param": null,
                "progress": {"done_bytes": 430, "total_bytes": 1000},
            }});
            assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
            drop(go);
            waiting.await.unwrap();
            assert_eq!(ask(&service, "/health").await.0, StatusCode::OK);

            // Another one does not keep the first from answering.
            let (go, waiting) = on_its_way(&host, "b").await;
            assert_eq!(ask(&service, "/health").await.0, StatusCode::OK);
            let (_, metrics) = ask(&service, "/metrics").await;
            let sample = "\njetforge_model_load_ratio{model=\"b\"} 0.43\n";
            assert!(metrics.contains(sample), "{metrics}");
            drop(go);
            waiting.await.unwrap();
            let (_, metrics) = ask(&service, "/metrics").await;
            assert!(!metrics.contains("jetforge_model_load_ratio{"), "{metrics}");
        });
    }
}
