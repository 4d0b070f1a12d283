//! Parts of a profile: some of its processes, or what is large enough to draw, with the rest under a name of its own.
//!
//! What is left out is never lost: sums stay. It must not know requests or formats.

use rustc_hash::FxHashMap;

use crate::output::{aggregate::frame_texts, text};
use crate::profile::{
    Domain, Estimated, Frame, FrameId, FrameKind, Metric, Part, Process, ProcessIndex, Profile, Sample, Unit,
    Values,
};

/// What stands for stacks that are too small beside the others.
const REST: &str = "other stacks (too small to show here)";
/// Bytes of folded text that an answer may stand on; flame graphs take several times that while they are drawn.
pub const MOST_TEXT_BYTES: usize = 16 << 20;

/// Looks at memory that a document may hold: a dozen megabytes as JSON.
pub const MOST_LOOKS: usize = 10_000;

/// The profile with series of memory that are thinned alike; `None`: they are short enough.
#[must_use]
pub fn with_fewer_looks(profile: &Profile, most: usize) -> Option<Profile> {
    let looks: usize = profile.processes.iter().map(|process| process.memory.looks().len()).sum();
    if looks <= most {
        return None;
    }
    let mut thinned = profile.clone();
    let most_each = most / profile.processes.len();
    thinned.processes.iter_mut().for_each(|process| process.memory.thin(most_each));
    Some(thinned)
}

/// The profile with those processes alone that `keep` wants.
#[must_use]
pub fn processes(profile: &Profile, keep: impl Fn(&Process) -> bool) -> Profile {
    let mut kept = profile.clone();
    kept.retain_processes(keep);
    kept
}

/// The profile with its biggest stacks, as many as make `most_bytes` of text; `None`: all do.
#[must_use]
pub fn largest(profile: &Profile, metric: Metric, unit: Unit, most_bytes: usize) -> Option<Profile> {
    let lengths: Vec<usize> = frame_texts(profile).iter().map(|text| text.len() + 1).collect();
    let roots: Vec<usize> = profile.processes.iter().map(|process| text::process(process).len()).collect();
    let length = |sample: &Sample| {
        let frames = sample.stack.iter().filter_map(|id| lengths.get(id.0 as usize));
        roots.get(sample.process.0 as usize).copied().unwrap_or(0) + frames.sum::<usize>()
    };
    if profile.samples.iter().map(length).sum::<usize>() <= most_bytes {
        return None;
    }
    let mut order: Vec<&Sample> = profile.samples.iter().collect();
    order.sort_by_key(|sample| std::cmp::Reverse(unit.of(sample.amount(metric))));
    let mut used = 0;
    let still_fits = |sample: &&&Sample| {
        used += length(sample);
        used <= most_bytes
    };
    let fits = order.iter().take_while(still_fits).count();
    Some(with_rest(profile, &order[..fits], &order[fits..]))
}

fn with_rest(profile: &Profile, large: &[&Sample], small: &[&Sample]) -> Profile {
    let mut kept = Profile {
        recording: profile.recording.clone(),
        processes: profile.processes.clone(),
        frames: profile.frames.clone(),
        samples: large.iter().map(|sample| (*sample).clone()).collect(),
    };
    let marker =
        Frame { kind: FrameKind::Marker, function: REST.to_owned(), file: None, line: 0, first_line: 0 };
    let marker = FrameId(u32::try_from(kept.frames.insert_full(marker).0).unwrap_or(u32::MAX));
    let mut rest = FxHashMap::<(ProcessIndex, Domain), Sum>::default();
    for sample in small {
        rest.entry((sample.process, sample.domain)).or_default().add(sample);
    }
    let mut rest: Vec<_> = rest.into_iter().collect();
    rest.sort_unstable_by_key(|(key, _)| *key);
    kept.samples.extend(rest.into_iter().map(|((process, domain), sum)| Sample {
        process,
        thread: 0,
        domain,
        stack: [marker].into_iter().collect(),
        values: sum.values,
        estimated: sum.estimated,
    }));
    kept
}

#[derive(Default)]
struct Sum {
    values: Values,
    estimated: Option<Box<Estimated>>,
}

impl Sum {
    fn add(&mut self, sample: &Sample) {
        let one = Part { values: &self.values, estimated: self.estimated.as_deref() };
        let other = Part { values: &sample.values, estimated: sample.estimated.as_deref() };
        self.estimated = Estimated::join(one, other);
        self.values = self.values.plus(sample.values);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use indexmap::IndexSet;

    use super::*;
    use crate::profile::{Amount, Cost, Coverage, Figures, Look, Losses, Recording, Series};

    fn profile(samples: &[(u32, u32, u64)]) -> Profile {
        let recording = Recording {
            mode: "exact".to_owned(),
            seen_fraction: 1.0,
            start_nanoseconds: 0,
            duration_nanoseconds: 1,
            default_metric: "live".to_owned(),
            coverage: Coverage::Unmeasured { unmeasured: String::new() },
            live_bytes_error: 0,
            windows: None,
            losses: Losses::default(),
            cost: Cost::default(),
            events: 0,
        };
        let process = |pid| Process { pid, command: format!("python {pid}"), ..Process::default() };
        let mut profile = Profile {
            recording,
            processes: (1..5).map(process).collect(),
            frames: IndexSet::default(),
            samples: Vec::new(),
        };
        for (process, name, bytes) in samples {
            let function = format!("function_{name}");
            let frame = Frame {
                kind: FrameKind::Python,
                function,
                file: Some("a.py".to_owned()),
                line: 1,
                first_line: 1,
            };
            let id = FrameId(profile.frames.insert_full(frame).0 as u32);
            let amount = Amount { bytes: *bytes, count: 1 };
            let values = Values { live: amount, allocated: amount, ..Values::default() };
            let stack = [id].into_iter().collect();
            let (process, domain) = (ProcessIndex(*process), Domain::Malloc);
            profile.samples.push(Sample { process, thread: 1, domain, stack, values, estimated: None });
        }
        profile
    }

    /// Bytes by process and function.
    fn model(profile: &Profile) -> Vec<(u32, String, u64)> {
        let mut all: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| {
                let frame = sample.stack.iter().next().and_then(|id| profile.frames.get_index(id.0 as usize));
                let pid = profile.processes[sample.process.0 as usize].pid;
                (pid, frame.unwrap().function.clone(), sample.values.live.bytes)
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn series_are_thinned_alike_and_only_where_they_are_many() {
        let mut whole = profile(&[]);
        let look = |second| Look::after(Duration::from_secs(second), Figures::unknown("no"));
        whole.processes.iter_mut().for_each(|process| {
            (0..100).for_each(|second| process.memory.push(look(second), Series::MOST));
        });
        assert_eq!(with_fewer_looks(&whole, 400), None);
        let thinned = with_fewer_looks(&whole, 399).unwrap();
        for process in &thinned.processes {
            let looks = process.memory.looks();
            assert!((40..=99).contains(&looks.len()), "{}", looks.len());
            assert_eq!(looks.last().unwrap().since_nanoseconds, 99_000_000_000);
        }
    }

    proptest! {
        #[test]
        fn chosen_processes_keep_all_of_theirs(samples in prop::collection::vec((0..4_u32, 0..30_u32, 0..1000_u64), 0..60), wanted in 0..16_u32) {
            let whole = profile(&samples);
            let is_wanted = |pid: u32| wanted >> (pid - 1) & 1 == 1;
            let part = processes(&whole, |process| is_wanted(process.pid));
            let mut expected = model(&whole);
            expected.retain(|(pid, _, _)| is_wanted(*pid));
            prop_assert_eq!(model(&part), expected);
            let used: std::collections::HashSet<u32> = part.samples.iter().flat_map(|sample| sample.stack.to_vec()).map(|id| id.0).collect();
            prop_assert_eq!(used.len(), part.frames.len(), "no name of another process stays");
        }

        #[test]
        fn what_is_too_small_stays_in_the_sums(samples in prop::collection::vec((0..4_u32, 0..30_u32, 0..1000_u64), 0..60), most in 0..3000_usize) {
            let whole = profile(&samples);
            match largest(&whole, Metric::Live, Unit::Bytes, most) {
                None => {
                    let text: usize = whole.samples.iter().map(|_| "python 1 [1]".len() + "function_1 (a.py:1)".len() + 1).sum();
                    prop_assert!(text <= most, "{} bytes", text);
                }
                Some(part) => {
                    prop_assert_eq!(part.total(Metric::Live), whole.total(Metric::Live));
                    prop_assert_eq!(part.total(Metric::Allocated), whole.total(Metric::Allocated));
                    let of = |profile: &Profile, pid: u32| model(profile).iter().filter(|row| row.0 == pid).map(|row| row.2).sum::<u64>();
                    for pid in 1..5 {
                        prop_assert_eq!(of(&part, pid), of(&whole, pid));
                    }
                    let smallest = part.samples.iter().filter(|sample| sample.thread == 1).map(|sample| sample.values.live.bytes).min();
                    let kept = part.samples.iter().filter(|sample| sample.thread == 1).count();
                    let mut sizes: Vec<u64> = samples.iter().map(|sample| sample.2).collect();
                    sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
                    prop_assert_eq!(smallest, kept.checked_sub(1).map(|last| sizes[last]), "the biggest are kept");
                }
            }
        }
    }
}
