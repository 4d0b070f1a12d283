//! With redaction no answer holds a name of a file, a function or a command, and all sums are as without.

use alloctrace::profile::{Known, Look, Metric, Profile, Unit, pprof};

use crate::{
    fixture,
    support::{get, redacted, router, service, snapshot},
};

pub const TESTS: &[(&str, fn())] = &[
    ("no_answer_holds_a_name", no_name),
    ("sums_are_as_without", sums),
    ("names_stay_comparable", comparable),
];

/// Words of the example's names; `main` and such are words of ours too.
const SECRETS: [&str; 14] = [
    "gunicorn",
    "shop.wsgi",
    "celery",
    "views.py",
    "get_lessons",
    "QuerySet",
    "decoder.py",
    "raw_decode",
    "scan_once",
    "site-packages",
    "/srv/app",
    "_json.so",
    "libjemalloc",
    "secret-hook",
];

fn no_name() {
    let told = service();
    let mut allocations: Profile = (*told.now.lock().unwrap().allocations.as_ref().unwrap().profile).clone();
    let process = &mut allocations.processes[0];
    process.mallocs = vec!["/opt/lib/libjemalloc.so.2".to_owned()];
    process.unseen = vec!["memory of `/srv/app/x` by `secret-hook`".to_owned()];
    process.allocator = "secret-hook over pymalloc".to_owned();
    let last = process.memory.looks().last().unwrap().clone();
    let mut figures = last.figures;
    figures.malloc = Known::Unknown { unknown: "malloc is that of /opt/lib/libjemalloc.so.2".to_owned() };
    process.memory.push(Look { since_nanoseconds: last.since_nanoseconds + 1, figures }, 600);
    told.now.lock().unwrap().allocations = Some(snapshot(allocations));
    told.now.lock().unwrap().problems.push("cannot follow `celery -A shop`".to_owned());
    let (open, closed) = (router(&told), redacted(&told));
    for address in [
        "/",
        "/?pid=4711",
        "/flamegraph.svg",
        "/flamegraph.svg?metric=allocated&diff=-2h/-1h",
        "/folded",
        "/report.json",
        "/report.json?by=module",
        "/report.json?by=stack&from=-1h",
        "/report.json?by=process",
        "/census.json",
        "/metrics",
        "/healthz",
        "/readyz",
        "/folded?metric=peak",
        "/folded?pid=1",
    ] {
        let text = get(&closed, address).text();
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} in {address}: {text}");
        }
    }
    let everything = format!(
        "{}{}{}",
        get(&open, "/").text(),
        get(&open, "/folded").text(),
        get(&open, "/report.json").text()
    );
    for secret in SECRETS {
        assert!(everything.contains(secret), "{secret} is no secret of the example");
    }
    for address in ["/profile.pb.gz", "/debug/pprof/heap", "/debug/pprof/allocs"] {
        let plain = decompressed(&get(&closed, address).bytes);
        for secret in SECRETS {
            let found = plain.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} in {address}");
        }
    }
}

fn decompressed(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

fn sums() {
    let told = service();
    let decode = |address| {
        let router = redacted(&told);
        pprof::decode(&get(&router, address).bytes).unwrap()
    };
    let (clean, whole) = (decode("/profile.pb.gz"), fixture::budget());
    for metric in Metric::ALL {
        assert_eq!(clean.total(metric), whole.total(metric));
    }
    assert_eq!((clean.samples.len(), clean.frames.len()), (whole.samples.len(), whole.frames.len()));
    let lines =
        |profile: &Profile| profile.frames.iter().map(|frame| (frame.kind, frame.line)).collect::<Vec<_>>();
    assert_eq!(lines(&clean), lines(&whole));
    let by_line = |profile: &Profile| {
        let report =
            alloctrace::output::aggregate::aggregate(profile, Default::default(), Metric::Live, Unit::Bytes);
        report.unwrap().rows.iter().map(|row| row.amount).collect::<Vec<_>>()
    };
    assert_eq!(by_line(&clean), by_line(&whole));
}

fn comparable() {
    let told = service();
    let [one, other] = [0, 1].map(|_| get(&redacted(&told), "/folded").text());
    assert_eq!(one, other);
    assert!(
        one.contains("function-")
            && one.contains("file-")
            && one.contains("command-")
            && one.contains("<module>")
    );
}
