//! Every format of the example profile, against files that a person has looked at.
//!
//! `ALLOCTRACE_BLESS=1` rewrites them; a missing one is a failure.

use std::{fs, io::Write, path::PathBuf};

use alloctrace::{
    output::{
        OutputError,
        aggregate::{By, aggregate},
        csv, flamegraph, folded, json,
        leaks::leaks,
        speedscope,
        table::{self, Layout},
    },
    profile::{Metric, Unit},
};

use crate::fixture;

/// What `produce` writes must be the golden file's text.
#[track_caller]
fn check(name: &str, produce: impl FnOnce(&mut dyn Write) -> Result<(), OutputError>) {
    let mut bytes = Vec::new();
    produce(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/output").join(name);
    if std::env::var_os("ALLOCTRACE_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; bless with ALLOCTRACE_BLESS=1", path.display()));
    assert_eq!(text, golden, "{name} differs; if that is right, bless with ALLOCTRACE_BLESS=1");
}

#[test]
fn folded_stacks() {
    let profile = fixture::example();
    check("example.folded", |writer| folded::write(&profile, Metric::Peak, Unit::Bytes, writer));
    check("example.count.folded", |writer| folded::write(&profile, Metric::Live, Unit::Count, writer));
}

#[test]
fn flame_graphs() {
    let profile = fixture::example();
    let options = flamegraph::Options { metric: Metric::Peak, unit: Unit::Bytes, inverted: false };
    check("example.svg", |writer| flamegraph::write(&profile, options, writer));
    let options = flamegraph::Options { metric: Metric::Allocated, unit: Unit::Count, inverted: true };
    check("example.inverted.svg", |writer| flamegraph::write(&profile, options, writer));
}

#[test]
fn differential_flame_graph() {
    let base = fixture::example();
    let mut profile = fixture::example();
    profile.processes[0].pid = 815;
    for (factor, sample) in (1..).zip(&mut profile.samples) {
        sample.values.peak.bytes = sample.values.peak.bytes * factor / 3;
    }
    let options = flamegraph::Options { metric: Metric::Peak, unit: Unit::Bytes, inverted: false };
    check("example.diff.svg", |writer| flamegraph::write_difference(&profile, &base, options, writer));
}

#[test]
fn json_by_everything() {
    let profile = fixture::example();
    for by in By::ALL.into_iter().filter(|by| *by != By::Type) {
        let report = aggregate(&profile, by, Metric::Live, Unit::Bytes).unwrap();
        check(&format!("example.{by}.json"), |writer| json::write(&report, None, writer));
    }
}

#[test]
fn tables_by_everything() {
    let profile = fixture::example();
    for by in By::ALL.into_iter().filter(|by| *by != By::Type) {
        let report = aggregate(&profile, by, Metric::Peak, Unit::Bytes).unwrap();
        let layout = Layout { top: 4, width: None };
        check(&format!("example.{by}.txt"), |writer| table::write(&report, layout, writer));
    }
}

#[test]
fn csv_by_everything() {
    let profile = fixture::example();
    for by in By::ALL.into_iter().filter(|by| *by != By::Type) {
        let report = aggregate(&profile, by, Metric::Peak, Unit::Count).unwrap();
        check(&format!("example.{by}.csv"), |writer| csv::write(&report, None, writer));
    }
}

#[test]
fn speedscope() {
    let profile = fixture::example();
    check("example.speedscope.json", |writer| speedscope::write(&profile, Metric::Peak, Unit::Bytes, writer));
}

#[test]
fn hostile_names_as_tables_and_csv() {
    let profile = fixture::hostile();
    let report = aggregate(&profile, By::Line, Metric::Peak, Unit::Bytes).unwrap();
    let layout = Layout { top: 100, width: None };
    check("hostile.txt", |writer| table::write(&report, layout, writer));
    check("hostile.csv", |writer| csv::write(&report, None, writer));
    check("hostile.folded", |writer| folded::write(&profile, Metric::Peak, Unit::Bytes, writer));
}

/// Errors beside bytes, and a flow, which has no blocks.
#[test]
fn estimates_in_every_format() {
    let profile = fixture::budget();
    let layout = Layout { top: 6, width: None };
    for (metric, by) in
        [(Metric::Live, By::Line), (Metric::Allocated, By::Stack), (Metric::Retained, By::Function)]
    {
        let report = aggregate(&profile, by, metric, Unit::Bytes).unwrap();
        check(&format!("budget.{metric}.txt"), |writer| table::write(&report, layout, writer));
        check(&format!("budget.{metric}.json"), |writer| json::write(&report, None, writer));
        check(&format!("budget.{metric}.csv"), |writer| csv::write(&report, None, writer));
    }
    check("budget.retained.folded", |writer| folded::write(&profile, Metric::Retained, Unit::Bytes, writer));
    let options = flamegraph::Options { metric: Metric::Retained, unit: Unit::Bytes, inverted: false };
    check("budget.retained.svg", |writer| flamegraph::write(&profile, options, writer));
}

#[test]
fn leaks_in_every_format() {
    let profile = fixture::budget();
    for by in [By::Line, By::Function, By::Stack, By::Process] {
        let leaks = leaks(&profile, by).unwrap();
        let layout = Layout { top: 3, width: None };
        check(&format!("leaks.{by}.txt"), |writer| table::write_leaks(&leaks, layout, writer));
    }
    let leaks = leaks(&profile, By::Line).unwrap();
    check("leaks.json", |writer| json::write_leaks(&leaks, Some(3), writer));
    check("leaks.csv", |writer| csv::write_leaks(&leaks, None, writer));
}
