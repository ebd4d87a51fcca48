//! Every route of the service in one router.

use axum::Router;
use axum::http::StatusCode;

use super::{ApiError, Server, health, llama};

/// The routes, without what stands before them.
fn routes() -> Router<Server> {
    Router::new().merge(health::routes()).merge(llama::routes())
}

/// The service as one router.
pub fn router(server: Server) -> Router {
    let wrong_method = || async {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        ApiError::new(status, "invalid_request_error", "this path has no such method")
    };
    routes()
        .fallback(|| async { ApiError::not_found("File Not Found") })
        .method_not_allowed_fallback(wrong_method)
        .with_state(server)
}
