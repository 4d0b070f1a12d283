//! A profile written as pprof and read back is the same profile, whatever is in it.

use alloctrace::profile::{
    Amount, Cost, Coverage, Domain, Estimated, Figures, Followed, Frame, FrameId, FrameKind, Growth, Known,
    LiveBy, Look, Losses, MILLION, MallocBytes, Metric, PoolBytes, Process, ProcessIndex, Profile, Recording,
    Residence, ResidentBytes, Sample, Series, Stack, Values, WindowSummary,
    pprof::{decode, encode},
};
use proptest::{collection::vec, option, prelude::*};

use crate::fixture;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,12}",
        Just(String::new()),
        Just("python".to_owned()),
        Just("alloctrace-profile-v1 {}".to_owned())
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let kind = prop_oneof![Just(FrameKind::Python), Just(FrameKind::Native), Just(FrameKind::Marker)];
    (kind, text(), option::of(text()), any::<u32>(), any::<u32>())
        .prop_map(|(kind, function, file, line, first_line)| Frame { kind, function, file, line, first_line })
}

fn amount() -> impl Strategy<Value = Amount> {
    (0..1u64 << 45, 0..1u64 << 40).prop_map(|(bytes, count)| Amount { bytes, count })
}

fn values() -> impl Strategy<Value = Values> {
    (amount(), amount(), amount(), amount()).prop_map(|(allocated, live, peak, temporary)| Values {
        allocated,
        live,
        peak,
        temporary,
    })
}

fn growth() -> impl Strategy<Value = Growth> {
    let rate = || -(1_i64 << 45)..1 << 45;
    (rate(), rate(), 0..=MILLION).prop_map(|(bytes_per_second, at_least, likelihood_ppm)| Growth {
        bytes_per_second,
        at_least,
        likelihood_ppm,
    })
}

fn estimated() -> impl Strategy<Value = Estimated> {
    let number = || option::of(0..1_u64 << 50);
    (number(), number(), number(), number(), number(), option::of(growth())).prop_map(
        |(
            allocated_bytes_error,
            live_bytes_error,
            retained_bytes_per_second,
            retained_error,
            age_milliseconds,
            growth,
        )| Estimated {
            allocated_bytes_error,
            live_bytes_error,
            retained_bytes_per_second,
            retained_error,
            age_milliseconds,
            growth,
        },
    )
}

fn recording() -> impl Strategy<Value = Recording> {
    let measured = (0.0..=1.0, 0.0..=1.0, 0.0..=1.0).prop_map(|(allocations, frees, uncertainty)| {
        Coverage::Measured { allocations, frees, uncertainty, unmeasured_processes: 1 }
    });
    let coverage = prop_oneof![measured, text().prop_map(|unmeasured| Coverage::Unmeasured { unmeasured })];
    let cost = (option::of(0.0..1000.0), 0.0..1000.0)
        .prop_map(|(target_percent, tracer_cpu_percent)| Cost { target_percent, tracer_cpu_percent });
    let metric = prop::sample::select(Metric::ALL.map(Metric::name).to_vec());
    let times = (0..i64::MAX.cast_unsigned(), 0..i64::MAX.cast_unsigned());
    (text(), 0.0..=1.0, times, metric, coverage, any::<[u64; 4]>(), cost).prop_map(
        |(
            mode,
            seen_fraction,
            (start_nanoseconds, duration_nanoseconds),
            metric,
            coverage,
            numbers,
            cost,
        )| {
            let [live_table_full, missed_probes, thinned, events] = numbers;
            let losses = Losses { live_table_full, missed_probes, thinned, ..Losses::default() };
            let default_metric = metric.to_owned();
            Recording {
                mode,
                seen_fraction,
                start_nanoseconds,
                duration_nanoseconds,
                default_metric,
                coverage,
                live_bytes_error: events / 3,
                windows: (events % 2 == 1).then(|| WindowSummary {
                    opened: events,
                    full: events / 2,
                    tails: events / 4,
                    knows_live: events % 3 == 2,
                    live_by: if events % 4 == 1 { LiveBy::Pools } else { LiveBy::Survivors },
                    retained_in_place_of_live: events % 9 == 4,
                    survivors: thinned / 7,
                    looks: events % 4,
                    longest_look_gap_nanoseconds: thinned,
                    live_unknown: (events % 11 == 1).then(|| "mimalloc".to_owned()),
                    allocated_bytes_error: (events % 3 == 1).then_some(thinned),
                    slowdown: (events % 5 < 3).then_some(seen_fraction * 40.0),
                    stopped: (events % 7 == 1).then(|| "no \"budget\"".to_owned()),
                }),
                losses,
                cost,
                events,
            }
        },
    )
}

fn residence(number: u32) -> Option<Residence> {
    let number = u64::from(number);
    match number % 5 {
        0 => None,
        1 => Some(Residence::Uncompared { uncompared: "it had ended".to_owned() }),
        _ => Some(Residence::Compared {
            before: number,
            after: number * 3,
            gone_before: number / 2,
            stacks: number << 20,
            gone_unseen: 0,
            come_unseen: 4096,
        }),
    }
}

fn memory(number: u32) -> Series {
    let mut series = Series::default();
    for second in 0..u64::from(number % 4) {
        let bytes = u64::from(number) * second;
        let figures = match number % 3 {
            0 => Figures::unknown("the process \"had\" ended"),
            _ => Figures {
                pools: Known::Known(PoolBytes { in_use_bytes: bytes, ..PoolBytes::default() }),
                malloc: Known::Known(MallocBytes { free_bytes: u64::MAX, ..MallocBytes::default() }),
                resident: Known::Known(ResidentBytes { swapped_bytes: bytes, ..ResidentBytes::default() }),
            },
        };
        series.push(Look { since_nanoseconds: second, figures }, Series::MOST);
    }
    series
}

fn profile() -> impl Strategy<Value = Profile> {
    let process = (any::<u32>(), text(), text(), vec(text(), 0..3), vec(text(), 0..2)).prop_map(
        |(pid, command, interpreter, mallocs, unseen)| Process {
            pid,
            followed: (pid % 3 == 0).then_some(Followed {
                parent: pid / 2,
                armed_after_nanoseconds: 7,
                blocks_before: None,
                blocks_before_error: 0,
            }),
            ended: pid % 2 == 0,
            mallocs,
            allocator: command.clone(),
            residence: residence(pid),
            memory: memory(pid),
            unseen,
            command,
            interpreter,
        },
    );
    let stack = vec(any::<prop::sample::Index>(), 1..6);
    let domain = prop_oneof![Just(Domain::Pymalloc), Just(Domain::Malloc), Just(Domain::Resident)];
    let sample =
        (any::<prop::sample::Index>(), any::<u32>(), domain, stack, values(), option::of(estimated()));
    (recording(), vec(process, 1..4), vec(frame(), 1..12), vec(sample, 0..12)).prop_map(
        |(recording, processes, frames, samples)| {
            let frames: indexmap::IndexSet<Frame, _> = frames.into_iter().collect();
            let mut keys = std::collections::HashSet::new();
            let samples =
                samples.into_iter().filter_map(|(process, thread, domain, stack, values, estimated)| {
                    let process = ProcessIndex(process.index(processes.len()) as u32);
                    let frame = |index: &prop::sample::Index| FrameId(index.index(frames.len()) as u32);
                    let stack: Stack = stack.iter().map(frame).collect();
                    let is_new = keys.insert((process, thread, domain, stack.clone()));
                    let estimated = estimated.map(Box::new);
                    is_new.then_some(Sample { process, thread, domain, stack, values, estimated })
                });
            let samples = samples.collect();
            Profile { recording, processes, frames, samples }
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_lost(profile in profile()) {
        let read = decode(&encode(&profile).unwrap()).unwrap();
        // Sets are equal in any order; samples point to positions.
        prop_assert!(read.frames.iter().eq(&profile.frames));
        prop_assert_eq!(read, profile);
    }
}

#[test]
fn the_same_profile_is_the_same_file() {
    assert_eq!(encode(&fixture::example()).unwrap(), encode(&fixture::example()).unwrap());
}

#[test]
fn hostile_names_are_not_changed() {
    let profile = fixture::hostile();
    assert_eq!(decode(&encode(&profile).unwrap()).unwrap(), profile);
}

/// A share of nothing is NaN, which JSON does not have.
#[test]
fn numbers_that_are_none_do_not_make_the_file_unreadable() {
    let mut profile = fixture::example();
    profile.recording.seen_fraction = f64::NAN;
    profile.recording.cost = Cost { target_percent: Some(f64::NAN), tracer_cpu_percent: f64::INFINITY };
    profile.recording.coverage =
        Coverage::Measured { allocations: f64::NAN, frees: 1.0, uncertainty: 0.0, unmeasured_processes: 0 };
    let recording = decode(&encode(&profile).unwrap()).unwrap().recording;
    assert_eq!(recording.cost, Cost { target_percent: None, tracer_cpu_percent: 0.0 });
    assert!(matches!(recording.coverage, Coverage::Unmeasured { .. }));
}
