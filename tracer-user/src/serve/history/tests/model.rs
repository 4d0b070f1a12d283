//! Any sequence of what may happen leaves what the model has: appending at any times, merging, ending, crashing between any two steps.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::{
    BASE_SECONDS, KIND, Kind, MOST_MINUTES, UNLIMITED, bit, copy, ever, live, minute, open, span, time,
    totals,
};
use crate::serve::history::{History, Span};

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    /// A minute that begins so long after the one before, or before it.
    Append {
        kind: Kind,
        after_seconds: i64,
    },
    /// Time passes, and what is over is merged.
    Compact {
        after_seconds: i64,
    },
    /// The next step is interrupted before so many changes of the folder; what was, was.
    Crash {
        changes: usize,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    // Minutes one after the other; gaps that turn hours and days; clocks that are set.
    let after = || {
        prop_oneof![
            6 => Just(60_i64),
            3 => 0..7200_i64,
            1 => 80_000..100_000_i64,
            1 => -5000..0_i64,
            1 => -200_000..-80_000_i64,
            1 => Just(40_000_000_i64),
            1 => Just(-40_000_000_i64),
        ]
    };
    let kind = prop_oneof![4 => Just(Kind::Allocations), 1 => Just(Kind::Resident)];
    prop_oneof![
        8 => (kind, after()).prop_map(|(kind, after_seconds)| Step::Append { kind, after_seconds }),
        1 => after().prop_map(|after_seconds| Step::Compact { after_seconds }),
        3 => (0..30_usize).prop_map(|changes| Step::Crash { changes }),
        1 => Just(Step::Reopen),
    ]
}

/// A minute that was kept.
#[derive(Debug, Clone, Copy)]
struct Kept {
    number: u32,
    kind: Kind,
    from: u64,
}

/// The history with what should be in it.
struct Case {
    folder: TempDir,
    history: Option<History>,
    kept: Vec<Kept>,
    now: u64,
    next: u32,
    /// Changes before the next crash.
    crash: Option<usize>,
}

/// The folder as it was before a change.
#[derive(Debug, Default)]
struct Crash {
    left: usize,
    found: Option<TempDir>,
}

impl Case {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let history = Some(open(folder.path()));
        Self { folder, history, kept: Vec::new(), now: BASE_SECONDS, next: 0, crash: None }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append { kind, after_seconds } if self.next < MOST_MINUTES => {
                self.now = self.now.saturating_add_signed(after_seconds);
                let (number, from) = (self.next, self.now);
                self.next += 1;
                let crashed = self.change(|history| {
                    history.append(kind, span(from, 60), &minute(number)).unwrap();
                });
                // After a crash, one that had not returned may be there or not.
                let is_there = || totals(self.history.as_ref().unwrap(), kind, ever()).0 & bit(number) != 0;
                if !crashed || is_there() {
                    self.kept.push(Kept { number, kind, from });
                }
            }
            Step::Compact { after_seconds } => {
                self.now = self.now.saturating_add_signed(after_seconds);
                let now = time(self.now);
                self.change(|history| history.compact(now).unwrap());
            }
            Step::Append { .. } => {}
            Step::Crash { changes } => self.crash = Some(changes),
            Step::Reopen => {
                drop(self.history.take());
                self.history = Some(open(self.folder.path()));
            }
        }
    }

    /// Does something, or what of it comes before a crash; whether it crashed.
    fn change(&mut self, change: impl FnOnce(&History)) -> bool {
        let Some(left) = self.crash.take() else {
            change(self.history.as_ref().unwrap());
            return false;
        };
        drop(self.history.take());
        let crash = Arc::new(Mutex::new(Crash { left, found: None }));
        let (hook_crash, path): (_, PathBuf) = (crash.clone(), self.folder.path().to_owned());
        let before = move |_: &str| {
            let mut crash = hook_crash.lock().unwrap();
            if crash.left == 0 && crash.found.is_none() {
                crash.found = Some(copy(&path));
            }
            crash.left = crash.left.saturating_sub(1);
            Ok(())
        };
        let history = History::open_with(self.folder.path(), UNLIMITED, Some(Box::new(before))).unwrap();
        change(&history);
        drop(history);
        let found = crash.lock().unwrap().found.take();
        let crashed = found.is_some();
        if let Some(found) = found {
            self.folder = found;
        }
        self.history = Some(open(self.folder.path()));
        crashed
    }

    fn check(&self) {
        let history = self.history.as_ref().unwrap();
        for kind in Kind::ALL {
            let kept: Vec<Kept> = self.kept.iter().filter(|kept| kept.kind == kind).copied().collect();
            let all = kept.iter().map(|kept| bit(kept.number)).sum();
            let last = kept.last().map_or(0, |kept| live(kept.number));
            assert_eq!(totals(history, kind, ever()), (all, last), "{kept:?}");
            for asked in
                [span(self.now, 60), span(self.now.saturating_sub(1800), 3600), span(BASE_SECONDS, 1), ever()]
            {
                check_part(history, kind, asked, &kept);
            }
        }
        assert!(super::files(self.folder.path()).iter().all(|name| name.ends_with(".pb.gz")));
        assert_eq!((history.counts().broken, history.counts().failed_merges), (0, 0));
    }
}

/// An answer has every minute that reaches into the time, and no other but those in a file with one that does.
fn check_part(history: &History, kind: Kind, asked: Span, kept: &[Kept]) {
    let (found, _) = totals(history, kind, asked);
    let reaches = |kept: &Kept| time(kept.from) < asked.to && asked.from < time(kept.from + 60);
    // A merged file counts as a whole.
    let is_with = |one: &Kept| {
        let is_in = |span: &Span| span.from <= time(one.from) && time(one.from + 60) <= span.to;
        history.spans(kind).iter().any(|span| is_in(span) && span.from < asked.to && asked.from < span.to)
    };
    for one in kept {
        let is_found = found & bit(one.number) != 0;
        assert!(is_found || !reaches(one), "{one:?} is missing in {asked:?}");
        assert!(!is_found || is_with(one), "{one:?} in {asked:?}");
    }
    let known: u64 = kept.iter().map(|kept| bit(kept.number)).sum();
    assert_eq!(found & !known, 0);
    if let Some((answer, profile)) = history.query(kind, asked, &[]).unwrap() {
        let Span { from, to } = answer;
        let recording = profile.recording;
        assert!(from < asked.to && asked.from < to, "{answer:?} does not reach into {asked:?}");
        let start = from.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        assert_eq!(start, u128::from(recording.start_nanoseconds));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_a_list_of_minutes(steps in vec(step(), 1..60)) {
        let mut case = Case::new();
        for step in &steps {
            case.take(step);
            if matches!(step, Step::Crash { .. } | Step::Reopen | Step::Compact { .. }) {
                case.check();
            }
        }
        case.check();
    }
}

#[test]
fn minutes_become_an_hour_and_hours_a_day() {
    let mut case = Case::new();
    let count = |case: &Case, level: &str| {
        let of_level = |name: &String| name.starts_with(&format!("{}/{level}/", KIND.name()));
        super::files(case.folder.path()).iter().filter(|name| of_level(name)).count()
    };
    let counts = |case: &Case| ["minute", "hour", "day"].map(|level| count(case, level));
    let append = Step::Append { kind: KIND, after_seconds: 1800 };
    // 16:30, 17:00, 17:30, 18:00: two hours are over.
    (0..4).for_each(|_| case.take(&append));
    assert_eq!(counts(&case), [1, 2, 0]);
    // Until 0:00 of the next day.
    (0..12).for_each(|_| case.take(&append));
    assert_eq!(counts(&case), [1, 0, 1]);
    assert_eq!(case.history.as_ref().unwrap().counts().merged, 14 + 8, "14 minutes in pairs, and 8 hours");
    case.take(&Step::Compact { after_seconds: 86_400 });
    assert_eq!(counts(&case), [0, 0, 2]);
    case.check();
}

/// Every step of a merge, not only random ones.
#[test]
fn a_crash_at_any_step_loses_nothing_and_counts_nothing_twice() {
    for changes in 0..60 {
        let mut case = Case::new();
        for after_seconds in [60, 60, 60, 3600, 60, 60] {
            case.take(&Step::Append { kind: KIND, after_seconds });
        }
        // Turns an hour and a day: two merges.
        case.take(&Step::Crash { changes });
        case.take(&Step::Append { kind: KIND, after_seconds: 90_000 });
        case.check();
        case.take(&Step::Compact { after_seconds: 100_000 });
        case.check();
    }
}

#[test]
fn clocks_may_be_anywhere() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    let back = Span { from: time(1000), to: time(500) };
    let before_1970 = Span {
        from: time(0) - std::time::Duration::from_secs(1 << 40),
        to: time(0) - std::time::Duration::from_secs(1),
    };
    let far = Span { from: time(1 << 37), to: time(1 << 38) };
    let spans = [span(1000, 60), span(1000, 60), back, before_1970, span(90_000, 0), far, span(1000, 60)];
    for (number, span) in (0..).zip(spans) {
        history.append(KIND, span, &minute(number)).unwrap();
    }
    let expected = (bit(7) - 1, live(6));
    let all = Span { from: before_1970.from, to: far.to };
    assert_eq!(totals(&history, KIND, all), expected);
    assert!(history.spans(KIND).is_sorted_by_key(|span| (span.from, span.to)));
    assert!(history.spans(KIND).iter().all(|span| span.from <= span.to));
    history.compact(time(1 << 33)).unwrap();
    assert_eq!(totals(&history, KIND, all), expected);
    drop(history);
    assert_eq!(totals(&open(folder.path()), KIND, all), expected);
}

#[test]
fn answers_while_files_are_merged_are_whole() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 0..MOST_MINUTES {
                let from = BASE_SECONDS + u64::from(number) * 900;
                history.append(KIND, span(from, 60), &minute(number)).unwrap();
            }
        });
        let mut before = 0;
        while !writer.is_finished() {
            let (found, _) = totals_once(&history);
            assert!((found + 1).is_power_of_two() && found >= before, "{found:#b} after {before:#b}");
            before = found;
        }
    });
    assert_eq!(totals(&history, KIND, ever()).0, bit(MOST_MINUTES) - 1);
}

/// Of one answer: two that are asked for one after the other may differ.
fn totals_once(history: &History) -> (u64, u64) {
    let answer = history.query(KIND, ever(), &[1]).unwrap();
    let total = |metric| answer.as_ref().map_or(0, |(_, profile)| profile.total(metric).bytes);
    (total(super::Metric::Allocated), total(super::Metric::Live))
}
