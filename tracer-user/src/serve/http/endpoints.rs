//! Every path and the parameters that it knows. The router, the checks of parameters and the tests of `openapi.json` read this table.
//!
//! It must not know what is answered.

/// A path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub path: &'static str,
    /// Names of its parameters.
    pub parameters: &'static [&'static str],
}

/// The page.
pub const PAGE: Endpoint = Endpoint { path: "/", parameters: &["pid"] };
/// A flame graph. `x`, `y` and `s` are the viewer's own: what is zoomed and searched.
pub const FLAME_GRAPH: Endpoint = Endpoint {
    path: "/flamegraph.svg",
    parameters: &["pid", "kind", "metric", "unit", "from", "to", "incident", "diff", "x", "y", "s"],
};
/// A pprof file with all that is known.
pub const PROFILE: Endpoint =
    Endpoint { path: "/profile.pb.gz", parameters: &["pid", "kind", "from", "to", "incident"] };
/// Folded stacks.
pub const FOLDED: Endpoint =
    Endpoint { path: "/folded", parameters: &["pid", "kind", "metric", "unit", "from", "to", "incident"] };
/// Rows.
pub const REPORT: Endpoint = Endpoint {
    path: "/report.json",
    parameters: &["pid", "kind", "metric", "unit", "by", "top", "from", "to", "incident", "diff"],
};
/// What memory is made of.
pub const CENSUS: Endpoint = Endpoint { path: "/census.json", parameters: &["pid"] };
/// As a Go program's heap. Others than these are ignored, as Go does.
pub const HEAP: Endpoint =
    Endpoint { path: "/debug/pprof/heap", parameters: &["seconds", "debug", "gc", "pid"] };
/// As a Go program's allocations.
pub const ALLOCS: Endpoint = Endpoint { path: "/debug/pprof/allocs", parameters: HEAP.parameters };
/// For Prometheus.
pub const METRICS: Endpoint = Endpoint { path: "/metrics", parameters: &[] };
/// Whether the engine lives.
pub const HEALTH: Endpoint = Endpoint { path: "/healthz", parameters: &[] };
/// Whether there is something to answer with.
pub const READY: Endpoint = Endpoint { path: "/readyz", parameters: &[] };
/// All of this as a document.
pub const OPEN_API: Endpoint = Endpoint { path: "/openapi.json", parameters: &[] };

/// All of them.
pub const ALL: [Endpoint; 12] =
    [PAGE, FLAME_GRAPH, PROFILE, FOLDED, REPORT, CENSUS, HEAP, ALLOCS, METRICS, HEALTH, READY, OPEN_API];
