//! Rules of the arithmetic, one by one, on profiles small enough to count by hand.

use super::{allocated, amount, numbers, profile, text};
use crate::profile::combine::{Bounds, Merger, OTHER_PROCESSES, TOO_SMALL, merge};
use crate::profile::{
    Amount, Cost, Coverage, ENDED_STACKS, Estimated, Growth, LiveBy, Losses, Metric, Profile, Recording,
    Values, WindowSummary,
};

const SECOND: u64 = 1_000_000_000;

fn app(start: u64, seconds: u64) -> Profile {
    profile(start * SECOND, seconds * SECOND).with_process(7, "python app", false)
}

fn values(allocated: u64, live: u64, peak: u64) -> Values {
    let [allocated, live, peak] = [allocated, live, peak].map(amount);
    Values { allocated, live, peak, temporary: Amount::default() }
}

#[test]
fn what_an_estimate_fell_by_is_taken_off_what_rose() {
    let earlier = app(0, 60).with(0, &["a"], allocated(1000)).with(0, &["b"], allocated(500));
    let later = app(0, 120).with(0, &["c"], allocated(100)).with(0, &["b"], allocated(400)).with(
        0,
        &["a"],
        allocated(1300),
    );
    let since = later.since(&earlier);
    assert_eq!(since.total(Metric::Allocated).bytes, 300);
    let bytes: Vec<u64> = since.samples.iter().map(|sample| sample.values.allocated.bytes).collect();
    assert_eq!(bytes, [75, 225], "three quarters of 100 and of 300; nothing of what fell");
    let fallen = app(0, 120).with(0, &["a"], allocated(900)).with(0, &["b"], allocated(510));
    assert_eq!(fallen.since(&earlier).total(Metric::Allocated), Amount::default(), "never below nothing");
}

#[test]
fn one_process_does_not_pay_for_another() {
    let both = |one, other| {
        app(0, 1).with_process(8, "python", false).with(0, &["a"], allocated(one)).with(
            1,
            &["a"],
            allocated(other),
        )
    };
    let since = both(900, 150).since(&both(1000, 100));
    assert_eq!(since.total(Metric::Allocated).bytes, 50);
}

#[test]
fn stacks_that_were_given_up_are_no_news() {
    let marker = format!("[{ENDED_STACKS}]");
    let base = || app(0, 60).with_process(8, "python worker", true).with(0, &["a"], allocated(10));
    let earlier = base().with(1, &["a"], values(640, 0, 320)).with(1, &["b"], values(320, 0, 320));
    let later = base().with(1, &[&marker], values(960, 0, 640));
    let since = later.since(&earlier);
    assert_eq!(since.processes.len(), 1, "the worker has nothing new: {since:?}");
    // One that ended with something new, and was given up with it.
    let running = app(0, 60).with_process(8, "python worker", false).with(1, &["a"], values(640, 64, 640));
    let ended = base().with(1, &["b"], allocated(100)).with(1, &[&marker], values(640 + 160, 0, 640));
    let since = ended.since(&running);
    let of_worker = since.samples.iter().filter(|sample| sample.process.0 == 1);
    let bytes: Vec<u64> = of_worker.map(|sample| sample.values.allocated.bytes).collect();
    assert_eq!(bytes, [100, 160], "what fell is taken off the marker and off nothing else");
}

#[test]
fn a_stack_whose_frames_are_gone_is_missed_by_nobody() {
    let since = app(0, 2).with(0, &["b"], allocated(300)).since(&app(0, 1).with(0, &["a"], allocated(100)));
    assert_eq!(since.total(Metric::Allocated).bytes, 200);
    assert_eq!(since.frames.len(), 1);
}

#[test]
fn recordings_are_differences_and_add_up_again() {
    let recording = |seconds: u64, seen: f64, percent: f64, count: u64| Recording {
        seen_fraction: seen,
        cost: Cost { target_percent: Some(percent), tracer_cpu_percent: percent / 2.0 },
        losses: Losses { failed_reads: count, ..Losses::default() },
        events: count * 10,
        ..super::recording(1000, seconds * SECOND)
    };
    let with = |recording| Profile { recording, ..app(0, 0) };
    let (first, both) = (with(recording(60, 0.5, 1.0, 4)), with(recording(180, 0.3, 2.0, 9)));
    let since = both.since(&first);
    let Recording { seen_fraction, losses, events, start_nanoseconds, .. } = &since.recording;
    // 0.3 of 180 s is 54 s, of which 30 s were before: 24 of 120 s.
    assert!((seen_fraction - 0.2).abs() < 1e-12, "{seen_fraction}");
    assert!((since.recording.cost.target_percent.unwrap() - 2.5).abs() < 1e-12);
    assert_eq!((losses.failed_reads, *events, *start_nanoseconds), (5, 50, 1000 + 60 * SECOND));
    let sum = merge([first, since]).unwrap().recording;
    assert!((sum.seen_fraction - 0.3).abs() < 1e-12 && (sum.cost.tracer_cpu_percent - 1.0).abs() < 1e-12);
    assert_eq!((&sum.losses, sum.events), (&both.recording.losses, both.recording.events));
    let nonsense = with(recording(60, f64::NAN, f64::INFINITY, 0));
    let since = with(recording(60, 0.4, 1.0, 0)).since(&nonsense).recording;
    assert!((since.seen_fraction - 0.4).abs() < 1e-12, "{since:?}");
}

#[test]
fn coverage_is_the_least_and_not_measured_where_one_is_not() {
    let measured = |allocations, frees, uncertainty| Coverage::Measured {
        allocations,
        frees,
        uncertainty,
        unmeasured_processes: 0,
    };
    let with = |coverage: &Coverage| {
        let mut profile = app(0, 60);
        profile.recording.coverage = coverage.clone();
        profile
    };
    let (one, other) = (measured(0.9, 1.0, 0.001), measured(1.0, 0.8, 0.0));
    let none = Coverage::Unmeasured { unmeasured: "mimalloc".to_owned() };
    let sum = |all: [&Coverage; 2]| merge(all.map(with)).unwrap().recording.coverage;
    assert_eq!(sum([&one, &other]), measured(0.9, 0.8, 0.001));
    assert_eq!(sum([&one, &none]), none);
    assert_eq!(sum([&none, &one]), none);
}

#[test]
fn a_gap_between_stretches_is_in_the_time_of_the_sum() {
    let sum = merge([app(60, 60), app(300, 60)]).unwrap().recording;
    assert_eq!((sum.start_nanoseconds, sum.duration_nanoseconds), (60 * SECOND, 300 * SECOND));
    let back = merge([app(300, 60), app(60, 60)]).unwrap().recording;
    assert_eq!((back.start_nanoseconds, back.duration_nanoseconds), (60 * SECOND, 300 * SECOND));
}

#[test]
fn what_lives_is_that_of_the_last_and_the_peak_that_of_the_highest() {
    let stretches = [
        app(0, 60).with(0, &["a"], values(10, 10, 60)).with(0, &["b"], values(10, 10, 40)),
        app(60, 60).with(0, &["a"], values(10, 20, 90)).with(0, &["c"], values(10, 5, 5)),
        app(120, 60).with(0, &["b"], values(10, 7, 100)),
        app(180, 60).with(0, &["a"], values(10, 9, 99)),
    ];
    let merged = text(&merge(stretches.clone()).unwrap());
    let bytes = |of: fn(&Values) -> Amount| -> Vec<u64> {
        numbers(&merged, of).values().map(|amount| amount.bytes).collect()
    };
    assert_eq!(bytes(|values| values.live), [9]);
    assert_eq!(bytes(|values| values.peak), [100], "the later of two alike");
    assert_eq!(bytes(|values| values.allocated), [30, 20, 10]);
    let first = text(&merge(stretches.into_iter().take(2)).unwrap());
    let peak: Vec<u64> = numbers(&first, |values| values.peak).values().map(|amount| amount.bytes).collect();
    assert_eq!(peak, [60, 40]);
}

#[test]
fn a_process_that_replaced_itself_is_another() {
    let stretch = |ends: &[bool], bytes| {
        let mut profile = profile(0, SECOND);
        for ended in ends {
            profile = profile.with_process(7, "python app", *ended);
        }
        profile.with(ends.len() as u32 - 1, &["a"], allocated(bytes))
    };
    let places = |stretches: &[(&[bool], u64)]| -> Vec<u64> {
        let merged = merge(stretches.iter().map(|(ends, bytes)| stretch(ends, *bytes))).unwrap();
        let mut sums = vec![0; merged.processes.len()];
        merged
            .samples
            .iter()
            .for_each(|sample| sums[sample.process.0 as usize] += sample.values.allocated.bytes);
        sums
    };
    assert_eq!(places(&[(&[false], 1), (&[false], 2)]), [3]);
    assert_eq!(places(&[(&[false], 1), (&[true], 2), (&[false], 4)]), [3, 4]);
    assert_eq!(places(&[(&[false], 1), (&[true, false], 2), (&[true, true], 4)]), [1, 6]);
    // A recording that begins anew knows only the one that runs.
    assert_eq!(places(&[(&[true, false], 1), (&[false], 2), (&[true], 4), (&[false], 8)]), [0, 7, 8]);
}

fn estimated(bytes: u64, error: Option<u64>, live: u64) -> Profile {
    let mut profile = app(0, 60).with(0, &["a"], values(bytes, live, 0));
    profile.recording.windows = Some(WindowSummary {
        opened: 2,
        knows_live: true,
        live_by: LiveBy::Survivors,
        allocated_bytes_error: error,
        ..WindowSummary::default()
    });
    profile.samples[0].estimated = Some(Box::new(Estimated {
        allocated_bytes_error: error,
        live_bytes_error: Some(live / 2),
        age_milliseconds: Some(live),
        growth: Some(Growth { bytes_per_second: live.cast_signed(), at_least: 1, likelihood_ppm: 2 }),
        ..Estimated::default()
    }));
    profile
}

#[test]
fn errors_add_up_by_their_squares_and_the_rest_is_that_of_the_last() {
    let stretches = [estimated(100, Some(30), 50), estimated(100, Some(40), 70)];
    let merged = merge(stretches.clone()).unwrap();
    let last = stretches[1].samples[0].estimated.as_deref().unwrap();
    let expected = Estimated { allocated_bytes_error: Some(50), ..*last };
    assert_eq!(merged.samples[0].estimated.as_deref(), Some(&expected));
    let windows = merged.recording.windows.unwrap();
    assert_eq!((windows.allocated_bytes_error, windows.opened), (Some(50), 4));
    let error = |profiles: Vec<Profile>| merge(profiles).unwrap().error(Metric::Allocated);
    assert_eq!(error(vec![estimated(100, Some(30), 50), estimated(100, None, 50)]), None);
    assert_eq!(error(vec![estimated(100, Some(30), 50), estimated(0, None, 50)]), Some(30));
    assert_eq!(merge([estimated(100, None, 50)]).unwrap().samples, estimated(100, None, 50).samples);
}

#[test]
fn counted_stretches_have_no_error_beside_estimates() {
    let counted = || app(60, 60).with(0, &["a"], values(100, 20, 20)).with(0, &["b"], values(5, 5, 5));
    let merged = merge([estimated(100, Some(30), 50), counted()]).unwrap();
    assert_eq!(merged.error(Metric::Allocated), Some(30));
    assert_eq!(
        (merged.total(Metric::Live), merged.error(Metric::Live)),
        (counted().total(Metric::Live), Some(0))
    );
    assert!(merged.knows(Metric::Live) && !merged.estimates(Metric::Live));
    let merged = merge([counted(), estimated(100, Some(30), 50)]).unwrap();
    assert_eq!(merged.error(Metric::Allocated), Some(30));
    assert!(merged.estimates(Metric::Live));
    // What windows say nothing of in one of their own stretches is not known.
    let mut unsaid = estimated(100, Some(30), 50);
    unsaid.samples[0].estimated = None;
    assert_eq!(merge([unsaid, counted()]).unwrap().error(Metric::Allocated), None);
}

/// One large stack and many small ones, of two processes.
fn many(stacks: u64, large: u64) -> Profile {
    let mut profile =
        app(0, 60).with_process(8, "python worker", false).with(0, &["large"], values(large, large, large));
    for number in 0..stacks {
        let function = format!("small {number}");
        profile = profile.with((number % 2) as u32, &[&function], values(1, 0, 0));
    }
    profile
}

#[test]
fn what_is_small_is_gathered_when_there_is_much() {
    let bounds = Bounds { samples: 100, ..Bounds::default() };
    let mut profile = many(200, 50_000_000);
    profile =
        profile.with(1, &["lives"], values(0, 40_000_000, 0)).with(1, &["peak"], values(0, 0, 40_000_000));
    let before = profile.clone();
    profile.bound(bounds);
    for metric in Metric::ALL {
        assert_eq!(profile.total(metric), before.total(metric));
    }
    let names: Vec<String> = profile.frames.iter().map(|frame| frame.function.clone()).collect();
    assert_eq!(names, ["large", "lives", "peak", TOO_SMALL]);
    assert_eq!(profile.samples.len(), 5, "a marker in each process");
    assert_eq!(profile.recording.losses.merged_stacks, 200);
    let again = profile.clone();
    profile.bound(Bounds { samples: 1, ..bounds });
    assert_eq!(profile, again, "markers are not gathered again");
    let mut few = many(98, 50_000_000);
    few.bound(bounds);
    assert_eq!(few, many(98, 50_000_000), "no more than may be");
    let mut large = many(200, 1000);
    large.bound(bounds);
    assert_eq!(large.samples.len(), 201, "none is small");
}

#[test]
fn threads_go_before_stacks() {
    let mut profile = app(0, 60).with(0, &["large"], values(50_000_000, 0, 0));
    for thread in 0..300 {
        profile = profile.with(0, &["request"], values(1, 0, 0));
        profile.samples.last_mut().unwrap().thread = 1000 + thread;
    }
    profile.bound(Bounds { samples: 100, ..Bounds::default() });
    let bytes: Vec<(u32, u64)> =
        profile.samples.iter().map(|sample| (sample.thread, sample.values.allocated.bytes)).collect();
    assert_eq!(bytes, [(1, 50_000_000), (0, 300)]);
    assert_eq!(profile.recording.losses.merged_stacks, 0, "no stack was given up");
}

#[test]
fn processes_that_have_ended_become_one_when_there_are_many() {
    let day = |first: u32| {
        let mut profile = app(0, 60);
        for number in 1..=50 {
            profile = profile.with_process(first + number, "python worker", true);
            profile = profile.with(number, &["work"], allocated(u64::from(number)));
        }
        profile.with(0, &["serve"], allocated(1))
    };
    let bounds = Bounds { processes: 5, ..Bounds::default() };
    let mut merger = Merger::within(bounds);
    (0..10).for_each(|number| merger.add(day(number * 1000)));
    let merged = merger.finish().unwrap();
    assert_eq!(merged.total(Metric::Allocated).bytes, 10 * (50 * 51 / 2 + 1));
    let commands: Vec<&str> = merged.processes.iter().map(|process| process.command.as_str()).collect();
    assert_eq!(commands.len(), 5);
    assert_eq!(commands.iter().filter(|command| **command == OTHER_PROCESSES).count(), 1);
    assert!(commands.contains(&"python app"), "who runs is kept");
    assert!(merged.frames.iter().any(|frame| frame.function == "work"), "stacks stay");
}
