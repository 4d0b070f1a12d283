//! What budget mode estimates, as a user asks for it: errors, retained flow, leaks, and why a profile has none of them.

use std::fs;

use alloctrace::{
    output::{
        aggregate::{By, Key, aggregate},
        leaks::leaks,
        summary,
    },
    profile::{LiveBy, Metric, Profile, Unit, WindowSummary},
};

use crate::{
    fixture,
    verbs::{Folder, golden},
};

fn windows(profile: &mut Profile) -> &mut WindowSummary {
    profile.recording.windows.as_mut().unwrap()
}

fn folder() -> Folder {
    let folder = Folder::new();
    folder.save("budget.pb.gz", &fixture::budget());
    folder
}

fn error_of(profile: &Profile, by: By, metric: Metric, is_row: impl Fn(&Key<'_>) -> bool) -> Option<u64> {
    let report = aggregate(profile, by, metric, Unit::Bytes).unwrap();
    report.rows.iter().find(|row| is_row(&row.key)).unwrap().bytes_error
}

#[test]
fn errors_of_a_row_are_those_of_its_samples() {
    let mut profile = fixture::budget();
    let worker = |key: &Key<'_>| matches!(key, Key::Process(process) if process.0 == 1);
    // 1,750,000 and 340,000 bytes, each off by an eighth.
    assert_eq!(error_of(&profile, By::Process, Metric::Allocated, worker), Some(218_750 + 42_500));
    // Of too few windows: below a tenth it counts three times, above that nothing is known.
    profile.samples[7].estimated.as_mut().unwrap().allocated_bytes_error = None;
    assert_eq!(error_of(&profile, By::Process, Metric::Allocated, worker), None);
    profile.samples[7].values.allocated.bytes = 100_000;
    assert_eq!(error_of(&profile, By::Process, Metric::Allocated, worker), Some(218_750 + 300_000));
    profile.samples[7].estimated = None;
    assert_eq!(error_of(&profile, By::Process, Metric::Allocated, worker), Some(218_750 + 300_000));
    assert_eq!(error_of(&fixture::example(), By::Process, Metric::Peak, worker), Some(0));
}

#[test]
fn everything_within_the_budget_has_no_error() {
    let mut profile = fixture::example();
    profile.recording.mode = "budget".to_owned();
    assert_eq!(error_of(&profile, By::File, Metric::Live, |_| true), Some(0));
    profile.recording.losses.thinned = 1;
    assert_eq!(error_of(&profile, By::File, Metric::Live, |_| true), None);
    profile.recording.mode = "foreign".to_owned();
    assert_eq!(error_of(&profile, By::File, Metric::Allocated, |_| true), None);
}

#[test]
fn report_flamegraph_and_convert_know_retained_flow() {
    let folder = folder();
    let report = ["report", "budget.pb.gz", "--metric", "retained", "--by", "function", "--top", "6"];
    assert_eq!(folder.output(&report), golden("budget.retained.txt"));
    folder.output(&["flamegraph", "budget.pb.gz", "--metric", "retained", "-o", "out.svg"]);
    assert_eq!(fs::read_to_string(folder.path("out.svg")).unwrap(), golden("budget.retained.svg"));
    folder.output(&["convert", "budget.pb.gz", "--metric", "retained", "-o", "out.folded"]);
    assert_eq!(fs::read_to_string(folder.path("out.folded")).unwrap(), golden("budget.retained.folded"));
    let error = folder.error(&["report", "budget.pb.gz", "--metric", "retained", "--unit", "count"], 2);
    assert_eq!(error, "`retained` is known in bytes a second only: leave out `--unit count`");
}

#[test]
fn metrics_that_are_not_known_say_why() {
    let folder = folder();
    let error = folder.error(&["report", "example.pb.gz", "--metric", "retained"], 2);
    assert!(error.starts_with("recorded in exact mode, and only windows know `retained`: use "), "{error}");
    let error = folder.error(&["report", "budget.pb.gz", "--metric", "peak"], 2);
    assert!(error.starts_with("recorded in budget mode, which does not know `peak` here: use "), "{error}");
    let mut profile = fixture::budget();
    *windows(&mut profile) = WindowSummary { tails: 0, knows_live: true, ..WindowSummary::default() };
    folder.save("command.pb.gz", &profile);
    let error = folder.error(&["flamegraph", "command.pb.gz", "--metric", "retained", "-o", "x.svg"], 2);
    assert!(error.contains("without windows whose blocks were looked at for a second"), "{error}");
    let summary = WindowSummary {
        tails: 9,
        retained_in_place_of_live: true,
        live_unknown: Some("blocks used again are rarely noticed".to_owned()),
        ..WindowSummary::default()
    };
    *windows(&mut profile) = summary;
    folder.save("retained.pb.gz", &profile);
    let error = folder.error(&["report", "retained.pb.gz", "--metric", "live"], 2);
    assert_eq!(
        error,
        "recorded in budget mode, which does not know `live` here (blocks used again are rarely noticed): use `--metric retained`"
    );
    let rows = leaks(&profile, By::Line).unwrap().rows;
    assert!(rows.iter().all(|row| row.live_bytes.is_none() && row.live_bytes_error.is_none()));
    let said = summary::lines(&profile).join("\n");
    assert!(
        said.contains("stands in live's place")
            && said.contains("retained 69.4 KiB/s (± 16.9 KiB/s, estimated)"),
        "{said}"
    );
}

#[test]
fn leaks_are_printed_in_every_format() {
    let folder = folder();
    assert_eq!(folder.output(&["report", "budget.pb.gz", "--leaks", "--top", "3"]), golden("leaks.line.txt"));
    let stacks = ["report", "budget.pb.gz", "--leaks", "--by", "stack", "--top", "3"];
    assert_eq!(folder.output(&stacks), golden("leaks.stack.txt"));
    let json = folder.output(&["report", "budget.pb.gz", "--leaks", "--format", "json", "--top", "3"]);
    assert_eq!(json, golden("leaks.json"));
    let csv = folder.output(&["report", "budget.pb.gz", "--leaks", "--format", "csv"]);
    assert_eq!(csv, golden("leaks.csv"));
    let error = folder.error(&["report", "budget.pb.gz", "--leaks", "--metric", "live"], 2);
    assert!(error.contains("cannot be used with"), "{error}");
    let error = folder.error(&["report", "budget.pb.gz", "--leaks", "--by", "type"], 2);
    assert!(error.starts_with("the profile was recorded without types"), "{error}");
    let error = folder.error(&["report", "empty.pb.gz", "--leaks"], 1);
    assert_eq!(error, "nothing was recorded in `empty.pb.gz`");
}

#[test]
fn profiles_without_growth_say_which_mode_has_it() {
    let folder = Folder::new();
    let mut profile = fixture::example();
    let said = |name: &str, profile: &Profile, expected: &str| {
        folder.save(name, profile);
        let error = folder.error(&["report", name, "--leaks"], 2);
        assert!(error.contains(expected) && error.contains("record"), "{error}");
    };
    said("exact.pb.gz", &profile, "recorded in exact mode, and growth is told from windows");
    profile.recording.mode = "growth".to_owned();
    said("growth.pb.gz", &profile, "recorded in growth mode, which watches pages and no blocks");
    profile.recording.mode = "foreign".to_owned();
    said("foreign.pb.gz", &profile, "not recorded by alloctrace");
    profile.recording.mode = "budget".to_owned();
    said("whole.pb.gz", &profile, "recorded in budget mode with everything seen");
    let mut profile = fixture::budget();
    profile.samples.iter_mut().for_each(|sample| sample.estimated.as_mut().unwrap().growth = None);
    windows(&mut profile).tails = 0;
    said("command.pb.gz", &profile, "without windows whose blocks were looked at for a second");
    windows(&mut profile).tails = 5;
    said("few.pb.gz", &profile, "for 121.0 s, of which 5 windows tell growth, too few or too short");
    windows(&mut profile).tails = 41;
    profile.recording.duration_nanoseconds = 3_000_000_000;
    said("short.pb.gz", &profile, "for 3.0 s, of which 41 windows");
}

#[test]
fn nothing_that_grows_is_no_error() {
    let folder = Folder::new();
    let mut profile = fixture::budget();
    profile.samples.iter_mut().for_each(|sample| sample.estimated.as_mut().unwrap().growth = None);
    folder.save("steady.pb.gz", &profile);
    let text = folder.output(&["report", "steady.pb.gz", "--leaks"]);
    assert!(text.contains("nothing grows: no stack kept taking blocks that stay"), "{text}");
}

#[test]
fn the_summary_has_the_surest_leak() {
    let mut profile = fixture::budget();
    let lines = summary::lines(&profile);
    assert_eq!(
        lines[1],
        "live 8.21 MiB in 44,576 blocks (± 2.27 MiB, estimated); allocated 16.41 MiB in 89,156 blocks (± 1.05 MiB, estimated); retained 69.4 KiB/s (± 16.9 KiB/s, estimated)"
    );
    let told = "live: told by 5,210 blocks that outlived the tail of their window, of 41 windows; 118 looks at which of them are gone";
    assert!(lines.iter().any(|line| line == told), "{lines:?}");
    let leak = "leak: 12.3 KiB/s (at least 9.1 KiB/s) /srv/app/views.py:31 get_lessons.<locals>.<listcomp>, likelihood 99.9 %";
    assert!(lines.iter().any(|line| line == leak), "{lines:?}");
    let growth = &mut profile.samples[0].estimated.as_mut().unwrap().growth;
    growth.as_mut().unwrap().likelihood_ppm = 989_999;
    assert!(!summary::lines(&profile).iter().any(|line| line.starts_with("leak:")));
    // By pools nothing is told of growth, and live has no interval.
    windows(&mut profile).live_by = LiveBy::Pools;
    assert!(!profile.estimates(Metric::Live) && profile.knows(Metric::Peak));
}
