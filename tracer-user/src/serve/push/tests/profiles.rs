//! Profiles for tests: random ones, and one that is easy to follow.

use proptest::{collection::vec, option, prelude::*};

use crate::profile::{
    Amount, Cost, Coverage, Domain, Frame, FrameId, FrameKind, Losses, Process, ProcessIndex, Profile,
    Recording, Sample, Stack, Values, WindowSummary,
};

fn amount() -> impl Strategy<Value = Amount> {
    // Zeros are common: most of what was allocated does not live.
    let number = || prop_oneof![Just(0), 0..1_u64 << 44];
    (number(), number()).prop_map(|(bytes, count)| Amount { bytes, count })
}

fn values() -> impl Strategy<Value = Values> {
    (amount(), amount(), amount(), amount()).prop_map(|(allocated, live, peak, temporary)| Values {
        allocated,
        live,
        peak,
        temporary,
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let kind = prop_oneof![Just(FrameKind::Python), Just(FrameKind::Native), Just(FrameKind::Marker)];
    (kind, "[a-c]?[<é\\x00]?", option::of("[a-b/]{0,2}"), 0..4_u32, 0..3_u32)
        .prop_map(|(kind, function, file, line, first_line)| Frame { kind, function, file, line, first_line })
}

/// A recording of a mode that knows what lives, or not.
pub fn recording(knows_live: bool) -> Recording {
    let windows = WindowSummary { knows_live, opened: 7, ..WindowSummary::default() };
    Recording {
        mode: "budget".to_owned(),
        seen_fraction: 0.01,
        start_nanoseconds: 1_700_000_000_000_000_000,
        duration_nanoseconds: 60_000_000_000,
        default_metric: "live".to_owned(),
        coverage: Coverage::Unmeasured { unmeasured: "windows".to_owned() },
        live_bytes_error: 0,
        windows: Some(windows),
        losses: Losses::default(),
        cost: Cost::default(),
        events: 1,
    }
}

fn process(pid: u32) -> Process {
    Process {
        pid,
        command: format!("python3 main{}.py", pid % 3),
        interpreter: "3.12.1".to_owned(),
        ..Process::default()
    }
}

/// Any profile: its samples point to frames and processes that are there, and no two have the same key.
pub fn profile() -> impl Strategy<Value = Profile> {
    let processes = vec(1..100_000_u32, 1..5);
    let domain = prop_oneof![Just(Domain::Pymalloc), Just(Domain::Malloc), Just(Domain::Resident)];
    let stack = vec(any::<u32>(), 1..8);
    let samples = vec((any::<u32>(), 0..3_u32, domain, stack, values()), 0..40);
    (processes, vec(frame(), 1..20), samples, any::<bool>()).prop_map(
        |(pids, frames, samples, knows_live)| {
            let mut profile = Profile {
                recording: recording(knows_live),
                processes: pids.into_iter().map(process).collect(),
                frames: frames.into_iter().collect(),
                samples: Vec::new(),
            };
            let mut taken = std::collections::HashSet::new();
            for (process, thread, domain, stack, values) in samples {
                let process = ProcessIndex(process % profile.processes.len() as u32);
                let stack: Stack =
                    stack.iter().map(|frame| FrameId(frame % profile.frames.len() as u32)).collect();
                if taken.insert((process, thread, domain, stack.clone())) {
                    profile.samples.push(Sample { process, thread, domain, stack, values, estimated: None });
                }
            }
            profile
        },
    )
}

/// One process, one stack of two frames: so many bytes were allocated, and half of them live.
pub fn plain(pid: u32, bytes: u64) -> Profile {
    let frame = |function: &str, line| Frame {
        kind: FrameKind::Python,
        function: function.to_owned(),
        file: Some("/srv/main.py".to_owned()),
        line,
        first_line: 1,
    };
    let allocated = Amount { bytes, count: 2 };
    let live = Amount { bytes: bytes / 2, count: 1 };
    Profile {
        recording: recording(true),
        processes: vec![process(pid)],
        frames: [frame("leaf", 7), frame("main", 3)].into_iter().collect(),
        samples: vec![Sample {
            process: ProcessIndex(0),
            thread: pid,
            domain: Domain::Pymalloc,
            stack: [FrameId(0), FrameId(1)].into_iter().collect(),
            values: Values { allocated, live, ..Values::default() },
            estimated: None,
        }],
    }
}
