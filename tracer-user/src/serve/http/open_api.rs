//! `/openapi.json`: all paths as a document, for tools that make clients and tests of it.
//!
//! Written by hand; `tests/serve` compares it with the router, path by path and parameter by parameter. It must not know answers.

use axum::response::Response;

use super::answer::Made;

/// The document.
pub const TEXT: &str = include_str!("openapi.json");

/// `/openapi.json`
pub async fn document() -> Response {
    Made::new("application/json", TEXT.as_bytes().to_vec()).respond(None)
}
