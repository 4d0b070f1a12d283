//! What stands before every path: who may ask, by which name and method, how long, and the headers of every answer.
//!
//! Who may not ask learns nothing: one answer for all paths, also those that do not exist. On loopback the name in `Host` must be one of
//! this machine, or any page in a browser here could ask under a name that its owner points to 127.0.0.1. It must not know endpoints.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{answer::Refusal, program, script, server::Deadline};
use crate::serve::access::Access;

/// How long an answer may take to be made, beside the time that a request asks to be watched.
const MAKING: Duration = Duration::from_secs(25);
/// No address of ours is longer.
const MOST_URI_BYTES: usize = 16 << 10;
/// Headers that every answer has, unless it has its own.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, script::NOTHING),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // Figures of a moment, and not for others who share a cache.
    (header::CACHE_CONTROL, "no-store"),
];

/// Lets a request through, or answers in its place.
pub async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let mut response = match check(&access, &request) {
        None => answer(request, next).await,
        Some(response) => response,
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn answer(request: Request, next: Next) -> Response {
    let watched = program::watched(request.uri());
    // Half more: see its patience.
    let watched = watched + watched / 2;
    if let Some(deadline) = request.extensions().get::<Deadline>() {
        deadline.extend(watched);
    }
    let late = || Refusal::later("the answer took too long: ask for fewer processes or less time", 10);
    match tokio::time::timeout(MAKING + watched, next.run(request)).await {
        Ok(response) => response,
        Err(_) => late().into_response(),
    }
}

/// The answer in place of the one that was asked for, if there is a reason.
fn check(access: &Access, request: &Request) -> Option<Response> {
    if !access.admits(request.headers()) {
        return Some(who_are_you());
    }
    if matches!(access, Access::Loopback) && !is_called_by_its_name(request.uri(), request.headers()) {
        let error = "the name in `Host` is none of this machine: ask by 127.0.0.1, [::1] or localhost";
        return Some(Refusal::new(StatusCode::MISDIRECTED_REQUEST, error).into_response());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let error = "nothing can be changed here: use GET or HEAD";
        let mut response = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error).into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    if request.uri().path().len() + request.uri().query().map_or(0, str::len) > MOST_URI_BYTES {
        let error = format!("the address is longer than {MOST_URI_BYTES} bytes: ask for less");
        return Some(Refusal::new(StatusCode::URI_TOO_LONG, error).into_response());
    }
    None
}

fn who_are_you() -> Response {
    let mut response = Refusal::new(StatusCode::UNAUTHORIZED, "a token is needed").into_response();
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"alloctrace\""));
    // Browsers and `go tool pprof` know no other way to give one: the token is the password, and any name will do.
    let basic = HeaderValue::from_static("Basic realm=\"alloctrace\", charset=\"UTF-8\"");
    headers.append(header::WWW_AUTHENTICATE, basic);
    response
}

/// Whether all names that the request calls us by are loopback ones.
fn is_called_by_its_name(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    host.is_some_and(|host| is_here(&host)) && uri.authority().is_none_or(is_here)
}

fn is_here(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    // A name before an `@` is a trick, and so is a port that is no number.
    let has_right_end = authority.as_str() == host || authority.port_u16().is_some();
    has_right_end
        && !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(is_loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_ours() {
        let called = |uri: &str, hosts: &[&str]| {
            let headers = hosts.iter().map(|host| (header::HOST, HeaderValue::from_str(host).unwrap()));
            is_called_by_its_name(&uri.parse().unwrap(), &headers.collect())
        };
        for host in
            ["localhost", "LocalHost:7070", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:7070", "127.3.2.1:80"]
        {
            assert!(called("/", &[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "10.0.0.1:7070",
            "[::2]",
            "localhost@evil.example",
            "evil.example@localhost",
            "[::1",
            "127.1",
            "localhost:x",
        ] {
            assert!(!called("/", &[host]), "{host}");
        }
        assert!(!called("/", &[]));
        assert!(!called("/", &["localhost", "localhost"]));
        assert!(called("http://localhost/x", &["localhost"]));
        assert!(!called("http://evil.example/x", &["localhost"]));
    }
}
