//! Questions that are wrong, and questions that nobody would think of.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    fixture,
    support::{self, nothing, router, service, told},
};
use alloctrace::serve::http::endpoints;

pub const TESTS: &[(&str, fn())] = &[
    ("wrong_parameters_say_what_is_right", wrong),
    ("random_questions_are_never_a_fault", random),
    ("parameters_that_are_right_are_answered", right),
];

fn wrong() {
    let router = router(&told(fixture::example()));
    for (address, expected) in [
        ("/flamegraph.svg?metric=lives", "metric: unknown metric `lives`: use one of live"),
        ("/flamegraph.svg?colour=red", "unknown parameter `colour`: use pid, kind"),
        ("/flamegraph.svg?by=line", "unknown parameter `by`"),
        ("/folded?diff=-2m/-1m", "unknown parameter `diff`"),
        ("/profile.pb.gz?metric=live", "unknown parameter `metric`"),
        ("/report.json?top=none", "top: `none` is no number of rows"),
        ("/report.json?pid=-1", "pid: `-1` is no process id"),
        ("/report.json?from=tomorrow", "from: `tomorrow` is no time"),
        ("/?pid=x", "pid: `x` is no process id"),
        ("/census.json?kind=resident", "unknown parameter `kind`: use pid"),
        ("/debug/pprof/heap?seconds=soon", "seconds: give a whole number up to 300"),
        ("/debug/pprof/heap?debug=1", "debug: only the binary form"),
        ("/report.json?by=type", "recordings do not know types"),
    ] {
        let answer = support::get(&router, address);
        assert_eq!(answer.status, 400, "{address}");
        assert!(answer.error().contains(expected), "{address}: {}", answer.error());
        assert_eq!(answer.header("content-type"), "application/json");
    }
    assert_eq!(support::get(&router, "/debug/pprof/heap?unknown=1&gc=1").status, 200, "as Go");
}

fn right() {
    let router = router(&service());
    for address in [
        "/?pid=4711",
        "/flamegraph.svg?metric=allocated&unit=count&x=1.5&y=2&s=main",
        "/flamegraph.svg?kind=resident&metric=live",
        "/folded?from=2020-11-30T18:45:00%2B02:00&to=now",
        "/report.json?by=process&metric=retained&from=0",
        "/report.json?by=thread&unit=count&metric=live&from=-1h%2030m",
        "/debug/pprof/allocs?pid=4711&debug=0",
    ] {
        let answer = support::get(&router, address);
        assert_eq!(answer.status, 200, "{address}: {}", answer.text());
    }
}

/// Names and values that are right, nearly right, and anything.
fn question() -> impl Strategy<Value = String> {
    let paths: Vec<&str> = endpoints::ALL.iter().map(|endpoint| endpoint.path).collect();
    let path = prop_oneof![8 => prop::sample::select(paths).prop_map(str::to_owned), 1 => "/[a-z./%-]{0,12}"];
    let name = prop_oneof![
        6 => prop::sample::select(vec!["pid", "kind", "metric", "unit", "by", "top", "from", "to", "diff", "incident", "x", "debug", "gc"]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9%._~-]{0,8}",
    ];
    let value = prop_oneof![
        4 => prop::sample::select(vec![
            "4711", "0", "1", "4294967295", "4294967296", "live", "peak", "allocated", "retained", "temporary",
            "bytes", "count", "line", "stack", "type", "process", "allocations", "resident", "now", "-15m", "-1h",
            "-15m/now", "-1m/-2m", "1796057100", "2026-11-30T16:45:00Z", "1e400", "-584000y", "9999999999999999",
        ]).prop_map(str::to_owned),
        2 => "[0-9a-zA-Z%:+./_~-]{0,24}",
        1 => "(%[0-9a-fA-F]{2}){0,12}",
    ];
    let pairs = prop::collection::vec((name, value), 0..5);
    (path, pairs).prop_map(|(path, pairs)| {
        let query: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    })
}

fn random() {
    let routers = [router(&service()), router(&told(fixture::hostile())), router(&nothing())];
    let mut runner = TestRunner::new(Config { cases: 600, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(question(), 0..3_usize), |(address, which)| {
        if address.parse::<axum::http::Uri>().is_err() {
            return Ok(());
        }
        let answer = support::get(&routers[which], &address);
        let status = answer.status.as_u16();
        // Nothing is known, as readiness says.
        let is_not_ready = which == 2 && address.starts_with("/readyz") && status == 503;
        prop_assert!(matches!(status, 200 | 400 | 404) || is_not_ready, "{}: {}", address, status);
        if status != 200 {
            prop_assert!(answer.error().len() > 10, "{}", address);
        }
        Ok(())
    });
    result.unwrap();
}
