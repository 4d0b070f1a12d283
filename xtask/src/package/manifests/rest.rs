//! The unit, the Dockerfile and the dashboard.

use super::{CAPABILITIES, flags, text};
use std::collections::BTreeSet;

/// Figures that the dashboard may ask for: those of `/metrics`.
const METRICS: [&str; 8] = [
    "alloctrace_allocated_bytes_total",
    "alloctrace_cost_ratio",
    "alloctrace_coverage_ratio",
    "alloctrace_held_bytes",
    "alloctrace_live_bytes",
    "alloctrace_losses_total",
    "alloctrace_requested_bytes",
    "alloctrace_resident_bytes",
];

/// Settings of a unit, in order.
fn settings(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn the_unit_may_do_four_things_and_keeps_what_tracing_needs() {
    let unit = text("systemd/alloctrace.service");
    let settings = settings(&unit);
    let value = |name: &str| settings.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
    let expected = CAPABILITIES.map(|name| format!("CAP_{name}")).join(" ");
    assert_eq!(value("CapabilityBoundingSet"), Some(expected.as_str()));
    assert_eq!(value("AmbientCapabilities"), Some(expected.as_str()));
    for (name, wanted) in [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("DynamicUser", "yes"),
        ("StateDirectory", "alloctrace"),
        ("CacheDirectory", "alloctrace"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictNamespaces", "yes"),
    ] {
        assert_eq!(value(name), Some(wanted), "{name}");
    }
    // Each of these would blind it.
    for name in ["ProtectProc", "ProcSubset", "PrivateUsers", "PrivateNetwork", "InaccessiblePaths"] {
        assert_eq!(value(name), None, "{name}");
    }
    let calls: Vec<&str> = settings
        .iter()
        .filter(|(name, _)| *name == "SystemCallFilter")
        .flat_map(|(_, calls)| calls.split(' '))
        .collect();
    assert_eq!(calls, ["@system-service", "bpf", "perf_event_open"]);
    let start = value("ExecStart").unwrap();
    let words =
        start.strip_prefix("/usr/bin/alloctrace ").unwrap().strip_suffix(" $ALLOCTRACE_FLAGS").unwrap();
    flags::check(&words.split(' ').collect::<Vec<_>>());
    assert!(text("systemd/alloctrace.default").contains("\nALLOCTRACE_FLAGS="));
}

#[test]
fn the_image_is_the_program_alone() {
    let docker = text("Dockerfile");
    let lines: Vec<&str> = docker.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines[0], "FROM scratch");
    assert!(lines.contains(&"COPY --chmod=0755 alloctrace-linux-${TARGETARCH} /alloctrace"));
    assert!(lines.contains(&"ENTRYPOINT [\"/alloctrace\"]"));
    let command = lines.iter().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    flags::check(&serde_json::from_str::<Vec<String>>(command).unwrap());
    assert!(!docker.contains("RUN "), "there is nothing in it to run");
}

#[test]
fn the_dashboard_asks_for_figures_that_there_are() {
    let dashboard: serde_json::Value = serde_json::from_str(&text("grafana/alloctrace.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut asked, mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "an id twice");
        for target in panel["targets"].as_array().unwrap() {
            let words = target["expr"]
                .as_str()
                .unwrap()
                .split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            asked.extend(words.filter(|word| word.starts_with("alloctrace_")).map(str::to_owned));
            assert_eq!(target["datasource"]["uid"].as_str(), Some("${datasource}"));
        }
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "panels lie on each other at {x}, {y}");
            }
        }
    }
    assert_eq!(
        asked.iter().map(String::as_str).collect::<Vec<_>>(),
        METRICS,
        "each figure is shown somewhere"
    );
}
