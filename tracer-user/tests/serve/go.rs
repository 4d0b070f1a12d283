//! Go's own pprof asks the endpoints that are made for it, and finds the same totals.

use std::{
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use alloctrace::{
    profile::{Amount, Metric, Profile, Unit},
    serve::{
        access::{Access, AccessFiles},
        http::{self, Source},
    },
};

use crate::{
    fixture,
    support::{Served, snapshot, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("totals_are_those_of_the_profile", totals),
    ("types_are_in_go_s_order", types),
    ("seconds_are_what_changed_in_them", seconds),
    ("what_was_given_back_is_below_zero", given_back),
    ("a_recording_that_began_anew_has_no_base", anew),
    ("no_newer_snapshot_is_said", no_newer),
    ("hostile_names_are_read", hostile),
    ("estimates_say_so", estimates),
    ("a_token_goes_in_the_address", token),
];

const TYPES: [(&str, Metric, Unit); 4] = [
    ("alloc_objects", Metric::Allocated, Unit::Count),
    ("alloc_space", Metric::Allocated, Unit::Bytes),
    ("inuse_objects", Metric::Live, Unit::Count),
    ("inuse_space", Metric::Live, Unit::Bytes),
];

fn output(arguments: &[&str], url: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("go");
    command.args(["tool", "pprof"]).args(arguments).arg(url).env("PPROF_TMPDIR", folder.path());
    command.output().unwrap()
}

fn pprof(arguments: &[&str], url: &str) -> String {
    let output = output(arguments, url);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn totals() {
    let profile = fixture::example();
    let served = Served::of(&told(profile.clone()));
    for path in ["/debug/pprof/heap", "/debug/pprof/allocs"] {
        for (name, metric, unit) in TYPES {
            let total = unit.of(profile.total(metric));
            let (index, in_bytes) = (format!("-sample_index={name}"), unit == Unit::Bytes);
            let text = pprof(
                &["-top", if in_bytes { "-unit=B" } else { "-unit=minimum" }, &index],
                &served.url(path),
            );
            let expected = if in_bytes { format!("of {total}B total") } else { format!("of {total} total") };
            assert!(
                text.contains(&expected) && text.contains("<module>"),
                "{path} {name}: no `{expected}` in {text}"
            );
        }
    }
    let one = pprof(&["-top", "-unit=B"], &served.url("/debug/pprof/allocs?pid=4712"));
    assert!(one.contains("of 2090000B total"), "{one}");
}

fn types() {
    let served = Served::of(&told(fixture::example()));
    for (path, first) in [("/debug/pprof/heap", "inuse_space"), ("/debug/pprof/allocs", "alloc_space")] {
        let text = pprof(&["-raw"], &served.url(path));
        let header = text.lines().find(|line| line.starts_with("alloc_objects")).unwrap();
        let names: Vec<String> = header.split_whitespace().map(str::to_owned).collect();
        let expected = TYPES.map(|(name, _, unit)| {
            format!("{name}/{}{}", unit.name(), if name == first { "[dflt]" } else { "" })
        });
        assert_eq!(names, expected, "{text}");
        assert!(text.contains("PeriodType: space bytes") && !text.contains("Duration"), "{text}");
        assert!(text.contains("pid:[4711]") && text.contains("get_lessons /srv/app/views.py:31"), "{text}");
    }
}

/// The example a moment later: everything allocated grew by a tenth, and half of what lived is gone.
fn later(mut profile: Profile) -> Profile {
    for sample in &mut profile.samples {
        let allocated = &mut sample.values.allocated;
        *allocated = Amount { bytes: allocated.bytes * 11 / 10, count: allocated.count * 11 / 10 };
        let live = &mut sample.values.live;
        *live = Amount { bytes: live.bytes / 2, count: live.count / 2 };
    }
    profile
}

/// What pprof prints for one second of a change from one profile to the next; they have different tables of frames.
fn watched(path: &str, arguments: &[&str], before: Profile, after: Profile) -> String {
    let told = told(before);
    let served = Served::of(&told);
    let change = {
        let told = Arc::clone(&told);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1300));
            told.now.lock().unwrap().allocations = Some(snapshot(after));
        })
    };
    let text = pprof(arguments, &served.url(&format!("{path}?seconds=1")));
    change.join().unwrap();
    text
}

fn reversed(profile: &Profile) -> Profile {
    let mut reversed = profile.clone();
    reversed.frames = profile.frames.iter().rev().cloned().collect();
    let last = profile.frames.len() as u32 - 1;
    for sample in &mut reversed.samples {
        sample.stack = sample.stack.iter().map(|id| alloctrace::profile::FrameId(last - id.0)).collect();
    }
    reversed
}

fn seconds() {
    let before = fixture::example();
    let after = later(before.clone());
    let total = |profile: &Profile| profile.total(Metric::Allocated).bytes;
    let expected = format!("of {}B total", total(&after) - total(&before));
    let text = watched("/debug/pprof/allocs", &["-top", "-unit=B"], before, reversed(&after));
    assert!(text.contains(&expected), "no `{expected}` in {text}");
    let duration = text.lines().find(|line| line.contains("Duration: 1.")).map(str::to_owned);
    assert!(duration.is_some(), "{text}");
}

fn given_back() {
    let before = fixture::example();
    let after = later(before.clone());
    let total = |profile: &Profile| profile.total(Metric::Live).bytes.cast_signed();
    let text = watched("/debug/pprof/heap", &["-raw"], before.clone(), after.clone());
    let samples = text.split_once("Samples:\n").unwrap().1.split_once("Locations").unwrap().0.to_owned();
    let live: i64 = samples
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(values, _)| values.split_whitespace().nth(3)?.parse::<i64>().ok())
        .sum();
    assert_eq!(live, total(&after) - total(&before), "{text}");
}

fn anew() {
    let mut after = later(fixture::example());
    after.recording.start_nanoseconds += 1;
    let expected = format!("of {}B total", after.total(Metric::Allocated).bytes);
    let text = watched("/debug/pprof/allocs", &["-top", "-unit=B"], fixture::example(), after);
    assert!(text.contains(&expected), "no `{expected}` in {text}");
}

fn no_newer() {
    let served = Served::of(&told(fixture::example()));
    let failed = output(&["-top"], &served.url("/debug/pprof/allocs?seconds=1"));
    let complaint = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && complaint.contains("404"), "{complaint}");
}

fn hostile() {
    let profile = fixture::hostile();
    let served = Served::of(&told(profile.clone()));
    let text = pprof(&["-top", "-unit=B"], &served.url("/debug/pprof/allocs"));
    let expected = format!("of {}B total", profile.total(Metric::Allocated).bytes);
    assert!(text.contains(&expected), "no `{expected}` in {text}");
}

fn estimates() {
    let served = Served::of(&told(fixture::budget()));
    let text = pprof(&["-comments"], &served.url("/debug/pprof/heap"));
    assert!(text.contains("alloctrace: budget (1.23 % seen)"), "{text}");
}

fn token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "0123456789abcdef").unwrap();
    let files = AccessFiles { token: Some(path), ..AccessFiles::default() };
    let access = Access::choose("0.0.0.0:7070".parse().unwrap(), &files).unwrap();
    let router = http::router(told(fixture::example()) as Arc<dyn Source>, access.clone(), None);
    let served = Served::start(router, access);
    let with = format!("http://any:0123456789abcdef@{}/debug/pprof/heap", served.address);
    assert!(pprof(&["-top"], &with).contains("inuse_space"));
    assert!(!output(&["-top"], &served.url("/debug/pprof/heap")).status.success());
}
