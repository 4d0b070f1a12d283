//! Nothing grows without end: bytes, age, incidents, files for one answer.

use std::time::Duration;

use tempfile::TempDir;

use super::{
    BASE_SECONDS, KIND, Kind, UNLIMITED, append, bit, ever, files, minute, open, span, time, totals,
};
use crate::serve::history::{History, HistoryError, Limits};

const DAY: u64 = 86_400;

fn bytes_on_disk(folder: &TempDir) -> u64 {
    files(folder.path()).iter().map(|name| folder.path().join(name).metadata().unwrap().len()).sum()
}

#[test]
fn the_oldest_go_when_there_is_too_much() {
    let folder = TempDir::new().unwrap();
    let one = {
        let history = open(folder.path());
        history.append(KIND, span(0, 1), &minute(0)).unwrap();
        history.counts().bytes
    };
    let limits = Limits { bytes: one * 5, ..UNLIMITED };
    let folder = TempDir::new().unwrap();
    let history = History::open(folder.path(), limits).unwrap();
    for number in 0..20 {
        // Of both kinds, and with a clock that runs backwards: the oldest is the one that came first.
        let kind = Kind::ALL[number as usize % 2];
        let from = BASE_SECONDS - u64::from(number) * 10;
        history.append(kind, span(from, 1), &minute(number)).unwrap();
        let counts = history.counts();
        assert_eq!(counts.bytes, bytes_on_disk(&folder));
        assert!(counts.bytes <= limits.bytes, "{counts:?}");
        let found = Kind::ALL.map(|kind| totals(&history, kind, ever()).0);
        let found = found[0] | found[1];
        assert_eq!(found.count_ones() as u64 + counts.dropped_for_size, u64::from(number) + 1);
        assert_eq!(found >> found.trailing_zeros(), bit(found.count_ones()) - 1, "the newest, in a row");
        assert_eq!(found.ilog2(), number);
    }
    let counts = history.counts();
    assert!(counts.files >= 3 && counts.dropped_for_size >= 14, "{counts:?}");
    assert_eq!(counts.files, files(folder.path()).len() as u64);
    drop(history);
    let history = History::open(folder.path(), limits).unwrap();
    assert_eq!((history.counts().files, history.counts().bytes), (counts.files, counts.bytes));
}

#[test]
fn what_is_larger_than_the_limit_is_not_kept() {
    let folder = TempDir::new().unwrap();
    let history = History::open(folder.path(), Limits { bytes: 10, ..UNLIMITED }).unwrap();
    history.append(KIND, span(BASE_SECONDS, 60), &minute(1)).unwrap();
    assert_eq!(files(folder.path()), Vec::<String>::new());
    assert_eq!(history.counts().dropped_for_size, 1);
}

#[test]
fn what_is_too_old_goes_but_not_for_a_clock_that_is_wrong_for_a_moment() {
    let folder = TempDir::new().unwrap();
    let limits = Limits { age: Duration::from_secs(7 * DAY), ..UNLIMITED };
    let history = History::open(folder.path(), limits).unwrap();
    let found = || totals(&history, KIND, ever()).0;
    let append = |number: u32, from| history.append(KIND, span(from, 60), &minute(number)).unwrap();
    append(0, BASE_SECONDS);
    append(1, BASE_SECONDS + 4 * DAY);
    // A year ahead for nine minutes.
    (2..11).for_each(|number| append(number, BASE_SECONDS + 365 * DAY + u64::from(number)));
    assert_eq!(found(), bit(11) - 1);
    append(11, BASE_SECONDS + 4 * DAY + 60);
    (12..21).for_each(|number| append(number, BASE_SECONDS + 8 * DAY + u64::from(number)));
    assert_eq!(found(), bit(21) - 1, "nine minutes are not enough");
    append(21, BASE_SECONDS + 8 * DAY + 60);
    assert_eq!(found(), (bit(22) - 1) & !bit(0), "the first is eight days old");
    assert_eq!(history.counts().dropped_for_age, 1);
    // Nothing is appended any more.
    for _ in 0..10 {
        history.compact(time(BASE_SECONDS + 1000 * DAY)).unwrap();
    }
    assert_eq!((found(), history.counts().files), (0, 0));
    assert_eq!(history.spans(KIND), vec![]);
    assert!(history.query(KIND, ever(), &[]).unwrap().is_none());
}

#[test]
fn the_newest_incidents_are_kept() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    for number in 0..70 {
        let graph = format!("<svg>{number}</svg>");
        let svg = (number % 2 == 0).then_some(graph.as_bytes());
        let incident = history.keep_incident("oom of 7/\u{e9}", &minute(number % 40), svg).unwrap();
        assert!(incident.profile.starts_with(folder.path().join("incidents")));
        assert_eq!(incident.flame_graph.is_some(), svg.is_some());
    }
    let incidents = history.incidents().unwrap();
    assert_eq!(incidents.len(), 64);
    assert_eq!(files(folder.path()).len(), 64 + 32);
    let last = incidents.last().unwrap();
    let profile = crate::profile::pprof::decode(&std::fs::read(&last.profile).unwrap()).unwrap();
    assert_eq!(profile, minute(69 % 40), "as it was given, whatever the history does with minutes");
    assert_eq!(last.flame_graph, None);
    let before = &incidents[incidents.len() - 2];
    assert_eq!(std::fs::read_to_string(before.flame_graph.as_ref().unwrap()).unwrap(), "<svg>68</svg>");
    assert_eq!(history.counts().bytes, bytes_on_disk(&folder));
    drop(history);
    let history = open(folder.path());
    assert_eq!(history.counts().bytes, bytes_on_disk(&folder));
    assert_eq!(history.incidents().unwrap(), incidents);
}

#[test]
fn incidents_leave_room_for_the_history() {
    let folder = TempDir::new().unwrap();
    let limits = Limits { bytes: 10_000, ..UNLIMITED };
    let history = History::open(folder.path(), limits).unwrap();
    append(&history, 0..5);
    for number in 0..20 {
        history.keep_incident(&format!("oom-{number}"), &minute(1), Some(&[b' '; 2000])).unwrap();
        assert!(bytes_on_disk(&folder) <= limits.bytes);
    }
    let incidents: u64 = history.incidents().unwrap().iter().map(|incident| incident.bytes).sum();
    assert!((1..=limits.bytes / 2).contains(&incidents), "{incidents}");
    assert!(history.counts().files > 0);
    history.keep_incident("large", &minute(1), Some(&[b' '; 7000])).unwrap();
    assert_eq!(history.incidents().unwrap().len(), 1, "the newest is kept, whatever it takes");
}

#[test]
fn an_answer_of_too_many_files_is_refused() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    for number in 0..513 {
        history.append(KIND, span(BASE_SECONDS + number, 1), &minute(1)).unwrap();
    }
    let error = history.query(KIND, ever(), &[]).unwrap_err();
    assert!(matches!(error, HistoryError::TooMany { files: 513, .. }), "{error}");
    assert!(error.to_string().ends_with("ask for a shorter time"));
    assert!(history.query(KIND, span(BASE_SECONDS, 512), &[]).unwrap().is_some());
    history.compact(time(BASE_SECONDS + 3600)).unwrap();
    assert_eq!(history.counts().files, 2);
    let (_, profile) = history.query(KIND, ever(), &[1]).unwrap().unwrap();
    assert_eq!(profile.total(crate::profile::Metric::Allocated).bytes, 513 * bit(1));
}
