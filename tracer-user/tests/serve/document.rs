//! `openapi.json` against the router: every path, every parameter, every status that answers have.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alloctrace::serve::http::endpoints;
use serde_json::Value;

use crate::{
    fixture,
    support::{Served, ask, nothing, service, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("paths_and_parameters_are_those_of_the_router", paths),
    ("enumerated_values_are_those_that_are_understood", values),
    ("references_lead_somewhere", references),
    ("answers_are_as_described", described),
];

/// Questions by a program that reads the document; it complains of faults, of what is not described, and of what is answered wrongly.
pub const FUZZED: &[(&str, fn())] = &[("schemathesis_finds_no_fault", fuzzed)];

/// Where setup puts it, or wherever it is.
pub fn schemathesis() -> Option<PathBuf> {
    let scratch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask");
    let environments = std::fs::read_dir(scratch).into_iter().flatten().flatten();
    let of_setup = environments
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("askers-"))
        .map(|entry| entry.path().join("bin/schemathesis"));
    of_setup
        .chain([PathBuf::from("schemathesis")])
        .find(|program| std::process::Command::new(program).arg("--version").output().is_ok())
}

fn fuzzed() {
    let told = service();
    let served = Served::of(&told);
    // It takes minutes, and an engine that says nothing for so long is dead.
    told.now.lock().unwrap().alive = Some(SystemTime::now() + Duration::from_secs(3600));
    let mut command = std::process::Command::new(schemathesis().unwrap());
    command.args(["run", &served.url("/openapi.json"), "--max-examples=40", "--no-color"]);
    // Some watch for as long as they are told to; and not every beginning is before every end.
    command.args(["--exclude-path-regex=^/debug/", "--exclude-checks=positive_data_acceptance"]);
    // Traces of what is asked, which it would keep in the working folder.
    let folder = tempfile::tempdir().unwrap();
    let output = command.current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn document() -> Value {
    ask(&nothing(), "/openapi.json").json()
}

/// What a `$ref` stands for, or the value itself.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

fn parameters<'a>(document: &'a Value, path: &str) -> Vec<&'a Value> {
    let all = document["paths"][path]["get"]["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().map(|parameter| resolve(document, parameter)).collect()
}

fn paths() {
    let document = document();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let described: BTreeMap<&str, BTreeSet<&str>> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(|path| {
            let names =
                parameters(&document, path).into_iter().map(|parameter| parameter["name"].as_str().unwrap());
            (path.as_str(), names.collect())
        })
        .collect();
    let routed: BTreeMap<&str, BTreeSet<&str>> = endpoints::ALL
        .iter()
        .map(|endpoint| (endpoint.path, endpoint.parameters.iter().copied().collect()))
        .collect();
    assert_eq!(described, routed);
}

fn values() {
    let document = document();
    for path in endpoints::ALL.map(|endpoint| endpoint.path) {
        for parameter in parameters(&document, path) {
            let name = parameter["name"].as_str().unwrap();
            for value in parameter["schema"]["enum"].as_array().into_iter().flatten() {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let answer = ask(&service(), &format!("{path}?{name}={value}"));
                let is_known = answer.status == 200 || answer.status == 404 || value == "type";
                assert!(is_known, "{path}?{name}={value}: {}", answer.text());
                let wrong = ask(&service(), &format!("{path}?{name}={value}x"));
                assert_eq!(wrong.status, 400, "{path}?{name}={value}x");
            }
        }
    }
}

fn references() {
    fn walk(document: &Value, value: &Value, found: &mut usize) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref") {
                    let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{pointer}");
                    *found += 1;
                }
                fields.values().for_each(|value| walk(document, value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| walk(document, value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = 0;
    walk(&document, &document, &mut found);
    assert!(found > 50, "{found}");
}

/// Statuses and content types of real answers are in the document.
fn described() {
    let document = document();
    let sources = [service(), nothing(), told(fixture::example())];
    let queries = ["", "?pid=4711", "?pid=1", "?pid=x", "?metric=peak", "?from=-1h", "?seconds=x"];
    for path in endpoints::ALL.map(|endpoint| endpoint.path) {
        let responses = &document["paths"][path]["get"]["responses"];
        for query in queries {
            for source in &sources {
                let answer = ask(source, &format!("{path}{query}"));
                let response = resolve(&document, &responses[answer.status.as_str()]);
                assert!(response.is_object(), "{path}{query}: {} is not described", answer.status);
                let content_type = answer.header("content-type").split(';').next().unwrap();
                assert!(response["content"][content_type].is_object(), "{path}{query}: {content_type}");
            }
        }
    }
}
