//! `/metrics` before those who will read it: `promtool` finds nothing to complain about, and a real Prometheus stores what was told.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use alloctrace::{
    profile::{Metric, Process, Profile},
    serve::metrics::{Facts, Form, MOST_SHOWN, Shown, write},
    serve::state::Now,
};
use axum::{body::Body, http::Request};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    fixture,
    support::{Served, ask, look, nothing, router, send, service, snapshot, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("promtool_has_no_complaint", promtool),
    ("figures_are_those_of_the_profile", figures),
    ("unknown_figures_have_no_series", unknown),
    ("series_are_bounded_and_sums_stay", bounded),
    ("counters_never_fall_while_processes_come_and_go", counters),
];

pub const SERVER: &[(&str, fn())] = &[("a_real_prometheus_stores_what_was_told", server)];

fn check(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && complaints.trim().is_empty(), "{complaints}\n{text}");
}

fn promtool() {
    let mut hostile = fixture::hostile();
    hostile.processes[0].memory.push(look(0, [5, 1, 9]), 9);
    for told in [service(), nothing(), told(hostile), told(crowd(500))] {
        let answer = ask(&told, "/metrics");
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        check(&answer.text());
    }
    // The check can fail.
    let wrong = std::panic::catch_unwind(|| check("# TYPE a counter\na 1\n"));
    assert!(wrong.is_err());
}

/// Rows by name and labels.
fn rows(text: &str) -> BTreeMap<String, f64> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// Sum over all labels.
fn sum(rows: &BTreeMap<String, f64>, name: &str) -> f64 {
    rows.iter().filter(|(row, _)| row.split('{').next() == Some(name)).map(|(_, value)| value).sum()
}

fn figures() {
    let told = service();
    let rows = rows(&ask(&told, "/metrics").text());
    let profile = fixture::budget();
    assert_eq!(sum(&rows, "alloctrace_live_bytes"), profile.total(Metric::Live).bytes as f64);
    assert_eq!(sum(&rows, "alloctrace_allocated_bytes_total"), profile.total(Metric::Allocated).bytes as f64);
    assert_eq!(
        sum(&rows, "alloctrace_allocated_blocks_total"),
        profile.total(Metric::Allocated).count as f64
    );
    let census = ask(&told, "/census.json").json();
    let total = |name: &str| {
        let rows = census["processes"].as_array().unwrap().iter().filter(|row| row["ended"] == false);
        rows.map(|row| row[name].as_f64().unwrap()).sum::<f64>()
    };
    assert_eq!(sum(&rows, "alloctrace_requested_bytes"), total("requested_bytes"));
    assert_eq!(sum(&rows, "alloctrace_held_bytes"), total("held_bytes"));
    let resident = rows.iter().filter(|(row, _)| {
        row.starts_with("alloctrace_resident_bytes{") && row.contains("part=\"anonymous\"")
    });
    assert_eq!(resident.map(|(_, value)| value).sum::<f64>(), total("resident_bytes"));
    for (row, value) in [
        ("alloctrace_history_bytes", 3_456_789.0),
        ("alloctrace_history_files", 12.0),
        ("alloctrace_history_broken_files_total", 1.0),
        ("alloctrace_cost_ratio{recording=\"allocations\"}", 0.008),
        ("alloctrace_coverage_ratio{recording=\"resident\",event=\"allocation\"}", 0.9998),
        ("alloctrace_windows_total{recording=\"allocations\"}", 80.0),
        ("alloctrace_losses_total{recording=\"resident\",cause=\"unresolved_frames\"}", 2.0),
        ("alloctrace_build_info{version=\"0.1.0\"}", 1.0),
    ] {
        assert_eq!(rows.get(row).copied(), Some(value), "{row} in {rows:#?}");
    }
    assert!(rows["process_resident_memory_bytes"] > 1e6 && rows.contains_key("process_cpu_seconds_total"));
}

fn unknown() {
    let mut profile = fixture::budget();
    profile.recording.windows.as_mut().unwrap().knows_live = false;
    profile.recording.cost.target_percent = None;
    let text = ask(&told(profile), "/metrics").text();
    for name in [
        "alloctrace_live_bytes",
        "alloctrace_cost_ratio",
        "alloctrace_coverage_ratio",
        "alloctrace_requested_bytes",
    ] {
        assert!(!text.contains(name), "{name} in {text}");
    }
    assert!(text.contains("alloctrace_allocated_bytes_total"));
}

fn crowd(number: u32) -> Profile {
    let mut build = fixture::Builder::new();
    for pid in 1..=number {
        let process = build.process(pid, &format!("python worker.py {pid}"));
        let frame = build.python("work", "worker.py", 1);
        build.sample(process, pid, &[frame], 1000 + u64::from(pid), 2);
    }
    build.build()
}

fn bounded() {
    let profile = crowd(500);
    let rows = rows(&ask(&told(profile.clone()), "/metrics").text());
    let allocated = rows.keys().filter(|row| row.starts_with("alloctrace_allocated_bytes_total"));
    assert_eq!(allocated.count(), MOST_SHOWN + 1);
    assert_eq!(sum(&rows, "alloctrace_allocated_bytes_total"), profile.total(Metric::Allocated).bytes as f64);
    let other = rows["alloctrace_allocated_bytes_total{pid=\"other\",command=\"other\"}"];
    assert_eq!(other, (201..=500).map(|pid| 1000.0 + f64::from(pid)).sum::<f64>());
}

/// Processes come, allocate and end: no series of a counter ever falls, and the sum is always right.
fn counters() {
    let mut runner = TestRunner::new(Config { cases: 30, failure_persistence: None, ..Config::default() });
    let steps = prop::collection::vec((0..120_usize, 0..60_usize, any::<u64>()), 1..12);
    let result = runner.run(&steps, |steps| {
        let (mut shown, mut before) = (Shown::default(), BTreeMap::<String, f64>::new());
        let mut profile = crowd(150);
        for (come, end, seed) in steps {
            for number in 0..come {
                let place = profile.processes.len();
                profile.processes.push(Process {
                    pid: place as u32 + 1,
                    command: format!("late {number}"),
                    ..Process::default()
                });
                let mut sample = profile.samples[0].clone();
                sample.process = alloctrace::profile::ProcessIndex(place as u32);
                profile.samples.push(sample);
            }
            for number in 0..end {
                let place = (seed as usize).wrapping_add(number * 7919) % profile.processes.len();
                profile.processes[place].ended = true;
            }
            profile.samples.iter_mut().for_each(|sample| sample.values.allocated.bytes += 17);
            let now = Now { allocations: Some(snapshot(profile.clone())), ..Now::default() };
            let facts = Facts { now: &now, kept: None, own: None, redactor: None };
            let after = rows(&write(&facts, &mut shown, Form::Classic).unwrap());
            for (row, value) in after.iter().filter(|(row, _)| row.contains("_total")) {
                prop_assert!(before.get(row).is_none_or(|before| before <= value), "{} fell", row);
            }
            prop_assert_eq!(
                sum(&after, "alloctrace_allocated_bytes_total"),
                profile.total(Metric::Allocated).bytes as f64
            );
            prop_assert!(
                after.keys().filter(|row| row.starts_with("alloctrace_allocated_bytes_total")).count()
                    <= MOST_SHOWN + 1
            );
            before = after;
        }
        Ok(())
    });
    result.unwrap();
}

/// A process that is killed with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server() {
    let told = service();
    let open = send(
        &router(&told),
        Request::get("/metrics")
            .header("host", "localhost")
            .header(
                "accept",
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4",
            )
            .body(Body::empty())
            .unwrap(),
    );
    assert!(
        open.header("content-type").starts_with("application/openmetrics-text")
            && open.text().ends_with("# EOF\n")
    );
    let served = Served::of(&told);
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("prometheus.yml");
    let job = format!(
        "{{job_name: sidecar, scrape_interval: 1s, scrape_timeout: 1s, static_configs: [{{targets: ['{}']}}]}}",
        served.address
    );
    std::fs::write(&configuration, format!("scrape_configs: [{job}]\n")).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _running = Running(child);
    let expected = fixture::budget().total(Metric::Allocated).bytes as f64;
    assert_eq!(answered(&address.to_string(), "sum(alloctrace_allocated_bytes_total)"), expected);
    assert_eq!(answered(&address.to_string(), "count(up == 1)"), 1.0);
}

/// What Prometheus answers a query, once it knows anything.
fn answered(address: &str, query: &str) -> f64 {
    let begun = Instant::now();
    loop {
        let output = Command::new("promtool")
            .args(["query", "instant", "--format=json", &format!("http://{address}"), query])
            .output()
            .unwrap();
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(value) = rows[0]["value"][1].as_str() {
            return value.parse().unwrap();
        }
        assert!(
            begun.elapsed() < Duration::from_secs(40),
            "{query}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}
