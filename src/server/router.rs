//! Every route of the service in one router, behind the gate.

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::gate::pass_gate;
use super::{ApiError, Gate, Server, health, llama, metrics, openai, openapi, page, timeline};

/// The routes of the dialects.
fn dialects() -> Router<Server> {
    health::routes().merge(llama::routes()).merge(openai::routes())
}

/// The service as one router; a bare [`Server`] gets a gate with the default options.
pub fn router(gate: impl Into<Gate>) -> Router {
    let gate: Gate = gate.into();
    let server = gate.server().clone();
    let own = metrics::routes().merge(timeline::routes()).with_state(gate.clone());
    let wrong_method = || async {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        ApiError::new(status, "invalid_request_error", "this path has no such method")
    };
    let cors = cors(gate.origins());
    let router = dialects()
        .with_state(server)
        .merge(own)
        .merge(page::routes())
        .merge(openapi::routes())
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
    let shown = ["x-request-id", "x-jetforge-cache"].map(HeaderName::from_static);
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(shown),
    )
}
