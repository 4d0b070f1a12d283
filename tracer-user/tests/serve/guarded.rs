//! What stands before every path: tokens, names of hosts, methods, headers.

use std::sync::Arc;

use alloctrace::serve::{
    access::{Access, AccessFiles},
    http::{self, Source, endpoints},
};
use axum::{
    Router,
    body::Body,
    http::{Method, Request, header},
};

use crate::support::{self, Answer, Told, get, router, service};

pub const TESTS: &[(&str, fn())] = &[
    ("strangers_get_401_on_every_path", strangers),
    ("the_token_opens_every_path", token),
    ("foreign_hosts_are_misdirected", hosts),
    ("only_get_and_head_are_known", methods),
    ("every_answer_has_its_headers", headers),
    ("long_addresses_are_refused", long),
];

const TOKEN: &str = "a-token-of-at-least-16-bytes";

fn with_token(told: &Arc<Told>) -> Router {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, TOKEN).unwrap();
    let files = AccessFiles { token: Some(path), ..AccessFiles::default() };
    let access = Access::choose("0.0.0.0:7070".parse().unwrap(), &files).unwrap();
    http::router(Arc::clone(told) as Arc<dyn Source>, access, None)
}

fn send(router: &Router, method: &Method, address: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(address);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    support::send(router, request.body(Body::empty()).unwrap())
}

fn paths() -> impl Iterator<Item = &'static str> {
    let others = ["/nowhere", "/debug/pprof/", "/..", "//", "/flamegraph.svg?metric=wrong", "/?pid=x"];
    endpoints::ALL.iter().map(|endpoint| endpoint.path).chain(others)
}

fn strangers() {
    let router = with_token(&service());
    let mut bodies = std::collections::HashSet::new();
    for path in paths() {
        for method in
            [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS, Method::TRACE]
        {
            for authorization in ["", "Bearer wrong-wrong-wrong-wrong", "Basic Og==", "Bearer"] {
                let answer = send(
                    &router,
                    &method,
                    path,
                    &[("authorization", authorization), ("host", "evil.example")],
                );
                assert_eq!(answer.status, 401, "{method} {path}");
                let challenges = answer.headers.get_all(header::WWW_AUTHENTICATE).iter();
                let schemes: Vec<_> = challenges
                    .map(|value| value.to_str().unwrap().split(' ').next().unwrap().to_owned())
                    .collect();
                assert_eq!(schemes, ["Bearer", "Basic"]);
                assert!(!answer.text().contains(TOKEN));
                if method != Method::HEAD {
                    bodies.insert(answer.bytes);
                }
            }
        }
    }
    assert_eq!(bodies.len(), 1, "one answer for all: nothing tells what exists");
}

fn token() {
    let router = with_token(&service());
    let basic = format!("Basic {}", base64(&format!("anyone:{TOKEN}")));
    for authorization in [format!("Bearer {TOKEN}"), basic] {
        for path in endpoints::ALL.map(|endpoint| endpoint.path) {
            let answer = send(
                &router,
                &Method::GET,
                path,
                &[("authorization", &authorization), ("host", "any.example")],
            );
            assert_eq!(answer.status, 200, "{path}");
        }
    }
}

/// By Python's library: the oracle for ours.
fn base64(text: &str) -> String {
    let script = "import base64, sys; print(base64.b64encode(sys.argv[1].encode()).decode())";
    let output = std::process::Command::new("python3").args(["-c", script, text]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn hosts() {
    let router = router(&service());
    for host in ["localhost", "127.0.0.1:7070", "[::1]:7070"] {
        assert_eq!(send(&router, &Method::GET, "/healthz", &[("host", host)]).status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:7070", "localhost.evil.example", "192.168.1.1:7070"] {
        for path in paths() {
            let answer = send(&router, &Method::GET, path, &[("host", host)]);
            assert_eq!(answer.status, 421, "{host} {path}");
            assert!(answer.error().contains("127.0.0.1"));
        }
    }
    assert_eq!(send(&router, &Method::GET, "/healthz", &[]).status, 421);
    assert_eq!(
        send(&router, &Method::GET, "http://evil.example/healthz", &[("host", "localhost")]).status,
        421
    );
}

fn methods() {
    let router = router(&service());
    for method in [
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::CONNECT,
        Method::TRACE,
    ] {
        let answer = send(&router, &method, "/healthz", &[("host", "localhost")]);
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    for path in endpoints::ALL.map(|endpoint| endpoint.path) {
        let [get, head] =
            [Method::GET, Method::HEAD].map(|method| send(&router, &method, path, &[("host", "localhost")]));
        assert_eq!(
            (get.status, head.status),
            (axum::http::StatusCode::OK, axum::http::StatusCode::OK),
            "{path}"
        );
        assert!(!get.bytes.is_empty() && head.bytes.is_empty(), "{path}");
        assert_eq!(get.header("content-type"), head.header("content-type"));
    }
}

fn headers() {
    let router = router(&service());
    for path in paths() {
        let answer = get(&router, path);
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        let is_drawing = path == "/flamegraph.svg";
        assert_eq!(policy.contains("script-src"), is_drawing, "{path}: {policy}");
        assert!(
            !policy.contains("http")
                && !policy.replace("style-src 'unsafe-inline'", "").contains("'unsafe-inline'")
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
        assert!(!answer.header("content-type").is_empty(), "{path}");
    }
}

fn long() {
    let answer = get(&router(&service()), &format!("/folded?pid={}", "1".repeat(17_000)));
    assert_eq!(answer.status, 414);
}
