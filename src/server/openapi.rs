//! `/openapi.json`: every route of the service, for people and for generators of clients.

use axum::Router;
use axum::http::header;
use axum::routing::get;

/// The document; a test holds it to the routes.
const DOCUMENT: &str = include_str!("openapi.json");

/// The routes of this file.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let document = || async { ([(header::CONTENT_TYPE, "application/json")], DOCUMENT) };
    Router::new().route("/openapi.json", get(document))
}
