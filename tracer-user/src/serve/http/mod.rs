//! The sidecar's answers over HTTP: a page for people, profiles for tools, figures for Prometheus.
//!
//! One file a family of endpoints. All paths are in `endpoints.rs`, who is let in is decided in `guard.rs`, and what takes much memory is
//! made in the `workshop`. It must not know how anything is recorded or kept.

mod answer;
mod asked;
mod census;
mod choose;
pub mod endpoints;
mod go_heap;
mod guard;
mod health;
mod known;
mod moment;
mod open_api;
mod page;
mod profiles;
mod program;
mod scrape;
mod script;
mod server;
mod source;
mod view;
mod workshop;

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use axum::{
    Router,
    http::Uri,
    middleware,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get},
};

use tokio::sync::Semaphore;

use self::{
    answer::{Made, Refusal},
    asked::Asked,
    endpoints::Endpoint,
    workshop::Workshop,
};
pub use self::{
    server::serve,
    source::{Incident, Kept, Source},
};
use super::{access::Access, metrics::Shown, redact::Redactor};

/// Requests that may watch at once.
const WATCHERS: usize = 4;

/// What all handlers share.
struct Site {
    source: Arc<dyn Source>,
    redactor: Option<Redactor>,
    workshop: Workshop,
    /// Requests that watch for a while: each holds a profile of its own.
    watchers: Semaphore,
    /// Which processes have series of their own in `/metrics`.
    shown: Mutex<Shown>,
}

/// All endpoints, behind the guard.
///
/// `redactor`: with one, no answer holds a name of a file, a function or a command.
pub fn router(source: Arc<dyn Source>, access: Access, redactor: Option<Redactor>) -> Router {
    let watchers = Semaphore::new(WATCHERS);
    let site = Site { source, redactor, workshop: Workshop::default(), watchers, shown: Mutex::default() };
    let mut router = Router::new();
    for (endpoint, handler) in routes() {
        router = router.route(endpoint.path, handler);
    }
    router
        .fallback(nowhere)
        .with_state(Arc::new(site))
        .layer(middleware::from_fn_with_state(Arc::new(access), guard::guard))
}

fn routes() -> [(Endpoint, MethodRouter<Arc<Site>>); endpoints::ALL.len()] {
    [
        (endpoints::PAGE, get(page::page)),
        (endpoints::FLAME_GRAPH, get(profiles::flame_graph)),
        (endpoints::PROFILE, get(profiles::pprof_file)),
        (endpoints::FOLDED, get(profiles::folded_stacks)),
        (endpoints::REPORT, get(profiles::report)),
        (endpoints::CENSUS, get(census::census)),
        (endpoints::HEAP, get(program::heap)),
        (endpoints::ALLOCS, get(program::allocs)),
        (endpoints::METRICS, get(scrape::metrics)),
        (endpoints::HEALTH, get(health::alive)),
        (endpoints::READY, get(health::ready)),
        (endpoints::OPEN_API, get(open_api::document)),
    ]
}

async fn nowhere() -> Response {
    Refusal::unknown("there is nothing here: see `/` for a page, or `/openapi.json` for all paths")
        .into_response()
}

impl Site {
    fn source(&self) -> &dyn Source {
        &*self.source
    }

    fn redactor(&self) -> Option<&Redactor> {
        self.redactor.as_ref()
    }

    fn asked(&self, uri: &Uri, endpoint: &Endpoint) -> Result<Asked, Refusal> {
        Asked::parse(uri, endpoint.parameters, SystemTime::now())
    }

    /// Makes an answer of the size of memory.
    async fn make(
        self: Arc<Self>,
        make: impl FnOnce(&Self) -> Result<Made, Refusal> + Send + 'static,
    ) -> Result<Response, Refusal> {
        let site = Arc::clone(&self);
        self.workshop.make(move || make(&site)).await
    }

    /// A sentence, fit for who asks.
    fn say(&self, text: &str) -> String {
        self.redactor().map_or_else(|| text.to_owned(), |redactor| redactor.text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `endpoints.rs` is what tests of the document read: it must be what the router is made of.
    #[test]
    fn the_router_and_the_table_are_one() {
        assert_eq!(routes().map(|(endpoint, _)| endpoint), endpoints::ALL);
    }
}
