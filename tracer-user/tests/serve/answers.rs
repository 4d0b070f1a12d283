//! Each endpoint, with what the library makes of the same profile beside it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alloctrace::{
    output::{self, Format, Options},
    profile::{Metric, Profile, Unit, pprof},
    serve::state::Kind,
};

use crate::{
    fixture,
    support::{Told, ask, get, nothing, redacted, service, snapshot, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("formats_are_those_of_the_command_line", formats),
    ("a_report_says_what_the_command_line_says", report),
    ("processes_can_be_chosen", processes),
    ("the_past_is_asked_for_what_was_meant", past),
    ("differences_are_of_both", difference),
    ("incidents_are_profiles_of_their_own", incidents),
    ("resident_memory_is_a_recording_of_its_own", resident),
    ("what_is_not_known_says_why", unknown),
    ("the_census_adds_up", census),
    ("health_and_readiness", health),
    ("a_report_by_stack_of_many_stays_small", many_stacks),
];

/// What `alloctrace convert` would write.
fn converted(profile: &Profile, format: Format, options: Options) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    output::write_as(profile, format, &path, options).unwrap();
    std::fs::read(path).unwrap()
}

fn formats() {
    let profile = fixture::budget();
    let told = told(profile.clone());
    let options = Options { metric: Metric::Allocated, unit: Unit::Count };
    for (path, format, content_type) in [
        ("/flamegraph.svg", Format::Svg, "image/svg+xml"),
        ("/folded", Format::Folded, "text/plain; charset=utf-8"),
        ("/report.json", Format::Json, "application/json"),
    ] {
        let answer = ask(&told, &format!("{path}?metric=allocated&unit=count"));
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-type")),
            (200, content_type),
            "{}",
            answer.text()
        );
        assert!(answer.bytes == converted(&profile, format, options), "{path}: {}", answer.text());
    }
    let answer = ask(&told, "/profile.pb.gz");
    assert_eq!(pprof::decode(&answer.bytes).unwrap(), profile);
    assert!(answer.header("content-disposition").contains("alloctrace.pb.gz"));
}

fn report() {
    let profile = fixture::example();
    let report = ask(&told(profile.clone()), "/report.json?by=function&metric=live&top=2").json();
    assert_eq!(report["total"]["bytes"], profile.total(Metric::Live).bytes);
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);
    assert_eq!(report["rows"][0]["function"], "get_lessons.<locals>.<listcomp>");
    assert!(report["rows_omitted"].as_u64().unwrap() > 0);
}

fn processes() {
    let told = told(fixture::example());
    let only = pprof::decode(&ask(&told, "/profile.pb.gz?pid=4712").bytes).unwrap();
    assert_eq!(only.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [4712]);
    assert_eq!(only.total(Metric::Allocated).bytes, 1_750_000 + 340_000);
    assert!(
        only.frames.iter().all(|frame| !frame.function.contains("get_lessons")),
        "names of others stay out"
    );
    let both = pprof::decode(&ask(&told, "/profile.pb.gz?pid=4712&pid=4711").bytes).unwrap();
    assert_eq!(both.total(Metric::Allocated), fixture::example().total(Metric::Allocated));
    let none = ask(&told, "/folded?pid=1");
    assert_eq!(
        (none.status.as_u16(), none.error()),
        (404, "no process 1 is recorded: 4711, 4712 known".to_owned())
    );
}

fn past() {
    let told = told(fixture::example());
    *told.past.lock().unwrap() = Some(fixture::budget());
    let answer = ask(&told, "/profile.pb.gz?from=-15m&to=-5m&pid=7&pid=8&kind=resident");
    assert_eq!(pprof::decode(&answer.bytes).unwrap(), fixture::budget());
    let queries = told.queries.lock().unwrap();
    let [(kind, span, pids)] = queries.as_slice() else { panic!("{queries:?}") };
    assert_eq!((*kind, pids.as_slice()), (Kind::Resident, [7, 8].as_slice()));
    assert_eq!(span.to.duration_since(span.from).unwrap(), Duration::from_secs(600));
    let since = SystemTime::now().duration_since(span.to).unwrap().as_secs();
    assert!((300..330).contains(&since), "{since}");
}

fn difference() {
    let told = told(fixture::example());
    *told.past.lock().unwrap() = Some(fixture::budget());
    let svg = ask(&told, "/flamegraph.svg?metric=live&diff=-30m/-15m").text();
    assert!(svg.contains("red: more than in the base"), "{svg}");
    let report = ask(&told, "/report.json?metric=allocated&diff=-30m/-15m").json();
    assert_eq!((&report["base"]["mode"], &report["now"]["mode"]), (&"budget".into(), &"exact".into()));
    assert_eq!(report["now"]["total"]["bytes"], fixture::example().total(Metric::Allocated).bytes);
}

fn incidents() {
    let told = service();
    let name = "2026-11-30T15-55-10Z%20killed%20at%20its%20limit:%20gunicorn%204690";
    let profile = pprof::decode(&ask(&told, &format!("/profile.pb.gz?incident={name}")).bytes).unwrap();
    assert_eq!(profile, fixture::example());
    assert_eq!(ask(&told, &format!("/flamegraph.svg?incident={name}")).status, 200);
    assert_eq!(ask(&told, &format!("/folded?incident={name}&pid=1")).status, 404);
    for wrong in ["", "..%2F..%2Fetc%2Fpasswd", "gunicorn", "%00"] {
        let answer = ask(&told, &format!("/folded?incident={wrong}"));
        assert_eq!(answer.status, 404);
        assert!(answer.error().contains("is kept: see /"), "{}", answer.error());
    }
    // Where names are hashes, so are those of incidents, and links on the page work all the same.
    let closed = redacted(&told);
    let page = get(&closed, "/").text();
    let hash = page.split("/flamegraph.svg?incident=").nth(1).unwrap().split('"').next().unwrap();
    assert!(hash.starts_with("incident-") && !page.contains("gunicorn"), "{hash}");
    assert_eq!(get(&closed, &format!("/folded?incident={hash}")).status, 200);
    assert_eq!(get(&closed, &format!("/folded?incident={name}")).status, 404);
}

fn resident() {
    let told = told(fixture::budget());
    let missing = ask(&told, "/folded?kind=resident");
    assert_eq!(missing.status, 404);
    assert!(missing.error().starts_with("no snapshot of resident yet"), "{}", missing.error());
    told.now.lock().unwrap().problems.push("growth mode needs Linux 6.1".to_owned());
    assert!(ask(&told, "/folded?kind=resident").error().contains("growth mode needs Linux 6.1"));
    told.now.lock().unwrap().resident = Some(snapshot(fixture::example()));
    assert_eq!(ask(&told, "/report.json?kind=resident").json()["mode"], "exact");
}

fn unknown() {
    for path in [
        "/flamegraph.svg",
        "/profile.pb.gz",
        "/folded",
        "/report.json",
        "/debug/pprof/heap",
        "/debug/pprof/allocs",
    ] {
        let answer = ask(&nothing(), path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.error().contains("no snapshot of allocations yet"), "{}", answer.error());
    }
    let budget = told(fixture::budget());
    let peak = ask(&budget, "/folded?metric=peak");
    assert_eq!(peak.status, 404);
    assert!(peak.error().contains("use a metric of live, retained, allocated"), "{}", peak.error());
    let then = ask(&budget, "/folded?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z");
    assert_eq!(then.status, 404);
    assert!(
        then.error().contains("the history holds 2023-11-14T22:13:20Z to 2023-11-14T23:13:20Z"),
        "{}",
        then.error()
    );
    let mut empty = fixture::example();
    empty.samples.clear();
    let drawn = ask(&told(empty), "/flamegraph.svg");
    assert_eq!(drawn.status, 404);
    assert!(drawn.error().contains("nothing to draw"), "{}", drawn.error());
    assert_eq!(ask(&budget, "/nowhere").status, 404);
    assert_eq!(ask(&budget, "/report.json?by=type").status, 400);
    let mut retained = fixture::budget();
    let windows = retained.recording.windows.as_mut().unwrap();
    (windows.knows_live, windows.retained_in_place_of_live) = (false, true);
    windows.live_unknown = Some("few are noticed".to_owned());
    let retained = told(retained);
    let heap = ask(&retained, "/debug/pprof/heap");
    assert_eq!(heap.status, 404);
    assert!(heap.error().contains("few are noticed"), "{}", heap.error());
    assert_eq!(ask(&retained, "/debug/pprof/allocs").status, 200);
    assert_eq!(ask(&retained, "/report.json").json()["metric"], "retained", "what stands in live's place");
}

fn census() {
    let census = ask(&service(), "/census.json").json();
    let rows = census["processes"].as_array().unwrap();
    assert_eq!(rows.len(), 7, "those of the other recording are the same");
    let leaking = &rows[0];
    assert_eq!((&leaking["pid"], &leaking["change"]["verdict"]), (&4711.into(), &"use".into()));
    assert_eq!(rows[1]["change"]["verdict"], "kept");
    assert_eq!(rows.iter().filter(|row| row["ended"] == true).count(), 1);
    for row in rows {
        let number = |name: &str| row[name].as_i64().unwrap_or_else(|| panic!("{name} in {row}"));
        assert_eq!(
            number("resident_bytes") - number("requested_bytes") - number("held_bytes"),
            number("rest_bytes")
        );
    }
    assert_eq!(ask(&service(), "/census.json?pid=4801").json()["processes"].as_array().unwrap().len(), 1);
    assert_eq!(ask(&service(), "/census.json?pid=1").status, 404);
}

fn health() {
    let told = nothing();
    assert_eq!(ask(&told, "/healthz").json()["status"], "alive");
    let ready = ask(&told, "/readyz");
    assert_eq!((ready.status.as_u16(), ready.header("retry-after")), (503, "5"));
    told.now.lock().unwrap().allocations = Some(snapshot(fixture::example()));
    assert_eq!(ask(&told, "/readyz").json()["recordings"], serde_json::json!(["allocations"]));
    told.now.lock().unwrap().alive = Some(SystemTime::now() - Duration::from_secs(40));
    told.now.lock().unwrap().problems.push("the ring buffer is gone".to_owned());
    let dead = ask(&told, "/healthz");
    assert_eq!(dead.status, 503);
    assert!(dead.error().contains("said nothing for 40 s; the ring buffer is gone"), "{}", dead.error());
    let never: Arc<Told> = Arc::default();
    assert_eq!(ask(&never, "/healthz").status, 503);
}

/// 40,000 deep stacks of long names: hundreds of megabytes as text.
fn many_stacks() {
    let mut build = fixture::Builder::new();
    let process = build.process(7, "python many.py");
    let frames: Vec<_> = (0..300)
        .map(|number| build.python(&format!("function_{number}_{}", "x".repeat(100)), "many.py", number))
        .collect();
    for number in 0..40_000_usize {
        let stack: Vec<_> =
            (0..50).map(|depth| frames[(number / 250_usize.pow(depth % 3) + depth as usize) % 300]).collect();
        build.sample(process, 7, &stack, 1000 + number as u64, 2);
    }
    let profile = build.build();
    let told = told(profile.clone());
    let folded = ask(&told, "/folded?metric=allocated").text();
    assert!((8 << 20..17 << 20).contains(&folded.len()), "{} bytes", folded.len());
    let sum: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, profile.total(Metric::Allocated).bytes, "nothing is lost");
    assert!(folded.contains("other stacks (too small to show here)"));
    for path in ["/flamegraph.svg?metric=allocated", "/report.json?metric=allocated&by=stack&top=100000"] {
        let answer = ask(&told, path);
        assert_eq!(answer.status, 200);
        assert!(answer.bytes.len() < 40 << 20, "{} bytes", answer.bytes.len());
    }
}
