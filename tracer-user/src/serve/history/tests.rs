//! The history against a plain model: a list of minutes.
//!
//! Each minute allocates another power of two, so a total says exactly which minutes are in it, and how often.

mod bounds;
mod child;
mod damage;
mod faults;
mod model;

use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::{History, Kind, Limits, Span};
use crate::profile::{
    Amount, Cost, Coverage, Domain, Frame, FrameId, FrameKind, Losses, Metric, Process, ProcessIndex,
    Profile, Recording, Sample, Values,
};

pub const KIND: Kind = Kind::Allocations;
pub const UNLIMITED: Limits = Limits { bytes: u64::MAX, age: Duration::from_secs(1 << 40) };
/// More would not fit a total.
pub const MOST_MINUTES: u32 = 50;
/// 2026-11-30 16:00 UTC.
pub const BASE_SECONDS: u64 = 1_796_054_400;

/// What the process 1 allocates in a minute; process 2 allocates as many.
pub fn bit(number: u32) -> u64 {
    1 << number
}

/// What lives at the end of a minute.
pub fn live(number: u32) -> u64 {
    1000 + u64::from(number)
}

pub fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A minute, in seconds since 1970.
pub fn span(from: u64, length: u64) -> Span {
    Span { from: time(from), to: time(from + length) }
}

/// All times that tests use.
pub fn ever() -> Span {
    span(0, 1 << 34)
}

/// The profile of a minute.
pub fn minute(number: u32) -> Profile {
    let recording = Recording {
        mode: "exact".to_owned(),
        seen_fraction: 1.0,
        start_nanoseconds: 1,
        duration_nanoseconds: 2,
        default_metric: "live".to_owned(),
        coverage: Coverage::Unmeasured { unmeasured: "a test".to_owned() },
        live_bytes_error: 0,
        windows: None,
        losses: Losses::default(),
        cost: Cost::default(),
        events: 1,
    };
    let process = |pid| Process { pid, command: "python app".to_owned(), ..Process::default() };
    let frame = |function: String| Frame {
        kind: FrameKind::Python,
        function,
        file: Some("app.py".to_owned()),
        line: 1,
        first_line: 1,
    };
    // Half of the stacks are those of other minutes too.
    let frames = [frame("serve".to_owned()), frame(format!("handle {}", number % 3))].into_iter().collect();
    let sample = |process, live| Sample {
        process: ProcessIndex(process),
        thread: 1,
        domain: Domain::Malloc,
        stack: [FrameId(1), FrameId(0)].into_iter().collect(),
        values: Values {
            allocated: Amount { bytes: bit(number), count: 1 },
            live: Amount { bytes: live, count: 1 },
            ..Values::default()
        },
        estimated: None,
    };
    let samples = vec![sample(0, live(number)), sample(1, 7)];
    Profile { recording, processes: vec![process(1), process(2)], frames, samples }
}

/// Keeps stretches of a second each, all in one hour.
#[track_caller]
pub fn append(history: &History, numbers: std::ops::Range<u32>) {
    for number in numbers {
        history.append(KIND, span(BASE_SECONDS + u64::from(number), 1), &minute(number)).unwrap();
    }
}

/// Allocated and live bytes of process 1 in a time; no bytes where nothing is known.
#[track_caller]
pub fn totals(history: &History, kind: Kind, span: Span) -> (u64, u64) {
    let total = |pids: &[u32]| {
        let answer = history.query(kind, span, pids).unwrap().map(|(_, profile)| profile);
        let of = |metric| answer.as_ref().map_or(0, |profile| profile.total(metric).bytes);
        (of(Metric::Allocated), of(Metric::Live))
    };
    let (of_one, all) = (total(&[1]), total(&[]));
    assert_eq!(of_one.0 * 2, all.0, "both processes allocate as much");
    assert_eq!(total(&[3]), (0, 0));
    of_one
}

/// Names of all files of a folder and those in it, without the lock.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("lock") {
                names.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names
}

/// What a crash at this moment would leave.
pub fn copy(folder: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in files(folder) {
        let to = copy.path().join(&name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        // One that is gone by now was not there.
        let _ = std::fs::copy(folder.join(&name), to);
    }
    copy
}

pub fn open(folder: &Path) -> History {
    History::open(folder, UNLIMITED).unwrap()
}
