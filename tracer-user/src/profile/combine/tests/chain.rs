//! Chains of snapshots of a recording that is made up: what lies between them adds up to the whole.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};

use super::{Text, numbers, recording, text};
use crate::profile::combine::{Bounds, Merger, merge};
use crate::profile::{
    Amount, Domain, Frame, FrameId, FrameKind, Metric, Process, ProcessIndex, Profile, Sample, Values,
};

/// What happens to a process at one time.
#[derive(Debug, Clone)]
enum Event {
    /// Another begins; few pids and commands, so that they come again.
    Begin { pid: u32, command: bool },
    /// One that runs ends.
    End { which: usize },
    /// One that runs takes memory, and gives some of what that stack holds back.
    Allocate { which: usize, thread: u32, stack: u8, bytes: u64, temporary: bool, freed_percent: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (1..4_u32, any::<bool>()).prop_map(|(pid, command)| Event::Begin { pid, command }),
        1 => any::<usize>().prop_map(|which| Event::End { which }),
        6 => (any::<usize>(), 1..3_u32, 0..6_u8, 1..10_000_u64, any::<bool>(), 0..=100_u64).prop_map(
            |(which, thread, stack, bytes, temporary, freed_percent)| Event::Allocate {
                which, thread, stack, bytes, temporary, freed_percent,
            }
        ),
    ]
}

/// What has been recorded so far, in words.
#[derive(Debug, Clone, Default)]
struct Model {
    processes: Vec<Process>,
    /// By place of the process, thread, domain and stack.
    samples: BTreeMap<(usize, u32, bool, u8), Values>,
}

impl Model {
    fn running(&self, which: usize) -> Option<usize> {
        let running: Vec<usize> =
            (0..self.processes.len()).filter(|place| !self.processes[*place].ended).collect();
        running.get(which % running.len().max(1)).copied()
    }

    fn take(&mut self, event: &Event) {
        match *event {
            Event::Begin { pid, command } => {
                // A pid is free once its process has ended.
                if let Some(place) =
                    self.processes.iter().position(|process| process.pid == pid && !process.ended)
                {
                    self.end(place);
                }
                let command = if command { "python app" } else { "python worker" }.to_owned();
                self.processes.push(Process { pid, command, ..Process::default() });
            }
            Event::End { which } => {
                if let Some(place) = self.running(which) {
                    self.end(place);
                }
            }
            Event::Allocate { which, thread, stack, bytes, temporary, freed_percent } => {
                let Some(place) = self.running(which) else { return };
                let values = self.samples.entry((place, thread, bytes % 2 == 0, stack)).or_default();
                let (taken, nothing) = (Amount { bytes, count: 1 }, Amount::default());
                values.allocated = values.allocated.plus(taken);
                values.temporary = values.temporary.plus(if temporary { taken } else { nothing });
                values.live = values.live.plus(taken);
                self.keep_peak(place);
                let values = self.samples.entry((place, thread, bytes % 2 == 0, stack)).or_default();
                values.live.bytes -= values.live.bytes * freed_percent / 100;
                values.live.count -= values.live.count * freed_percent / 100;
            }
        }
    }

    fn end(&mut self, place: usize) {
        self.processes[place].ended = true;
        self.of(place).for_each(|values| values.live = Amount::default());
    }

    fn of(&mut self, place: usize) -> impl Iterator<Item = &mut Values> {
        self.samples.iter_mut().filter(move |((of, ..), _)| *of == place).map(|(_, values)| values)
    }

    fn keep_peak(&mut self, place: usize) {
        let sums = self
            .of(place)
            .fold((0, 0), |(live, peak), values| (live + values.live.bytes, peak + values.peak.bytes));
        if sums.0 > sums.1 {
            self.of(place).for_each(|values| values.peak = values.live);
        }
    }

    /// The profile of it, with frames and samples in an order of their own.
    fn profile(&self, seconds: u64, order: u64) -> Profile {
        let function = |number: u64| Frame {
            kind: FrameKind::Python,
            function: format!("function {number}"),
            file: Some("app.py".to_owned()),
            line: number as u32,
            first_line: 1,
        };
        let mut frames: super::super::FrameTable = Default::default();
        for number in 0..8 {
            frames.insert(function((number * 5 + order) % 8));
        }
        let place = |number: u64| FrameId(frames.get_index_of(&function(number)).unwrap() as u32);
        let mut samples: Vec<Sample> = Vec::new();
        for ((process, thread, is_malloc, stack), values) in &self.samples {
            let stack = [u64::from(*stack), u64::from(*stack) + 2, 7].map(place).into_iter().collect();
            samples.push(Sample {
                process: ProcessIndex(*process as u32),
                thread: *thread,
                domain: if *is_malloc { Domain::Malloc } else { Domain::Pymalloc },
                stack,
                values: *values,
                estimated: None,
            });
        }
        let turn = order as usize % samples.len().max(1);
        samples.rotate_left(turn);
        let recording = recording(1_000_000_000_000, seconds * 1_000_000_000);
        Profile { recording, processes: self.processes.clone(), frames, samples }
    }
}

/// A state after each of the steps.
fn chain() -> impl Strategy<Value = Vec<(Model, u64)>> {
    vec((vec(event(), 0..12), 0..8_u64), 1..8).prop_map(|steps| {
        let mut model = Model::default();
        let mut state = |(events, order): (Vec<Event>, u64)| {
            events.iter().for_each(|event| model.take(event));
            (model.clone(), order)
        };
        steps.into_iter().map(&mut state).collect()
    })
}

/// The snapshots and what lies between them; the first is as it is.
fn stretches(chain: &[(Model, u64)]) -> (Vec<Profile>, Vec<Profile>) {
    let snapshots: Vec<Profile> =
        (1..).zip(chain).map(|(number, (model, order))| model.profile(number * 60, *order)).collect();
    let mut stretches = vec![snapshots[0].clone()];
    stretches.extend(snapshots.windows(2).map(|pair| pair[1].since(&pair[0])));
    (snapshots, stretches)
}

/// What one text has more than the other, of what is counted up.
fn difference(later: &Text, earlier: &Text) -> BTreeMap<String, (Amount, Amount)> {
    let less = |one: Amount, other: Amount| Amount {
        bytes: one.bytes - other.bytes,
        count: one.count - other.count,
    };
    let none = Values::default();
    let all = later.iter().map(|(key, now)| {
        let then = earlier.get(key).unwrap_or(&none);
        (key.clone(), (less(now.allocated, then.allocated), less(now.temporary, then.temporary)))
    });
    all.filter(|(_, flow)| *flow != Default::default()).collect()
}

const NUMBERS: [fn(&Values) -> Amount; 4] =
    [|values| values.allocated, |values| values.temporary, |values| values.live, |values| values.peak];

proptest! {
    #[test]
    fn what_lies_between_is_the_difference(chain in chain()) {
        let (snapshots, stretches) = stretches(&chain);
        for (pair, stretch) in snapshots.windows(2).zip(&stretches[1..]) {
            let (earlier, later, between) = (text(&pair[0]), text(&pair[1]), text(stretch));
            let flows: BTreeMap<String, (Amount, Amount)> = between
                .iter()
                .map(|(key, values)| (key.clone(), (values.allocated, values.temporary)))
                .filter(|(_, flow)| *flow != Default::default())
                .collect();
            prop_assert_eq!(flows, difference(&later, &earlier));
            prop_assert_eq!(numbers(&between, |values| values.live), numbers(&later, |values| values.live));
            for (key, values) in &between {
                prop_assert_eq!(values.peak, later[key].peak);
            }
            prop_assert_eq!(stretch.recording.start_nanoseconds, 1_000_000_000_000 + pair[0].recording.duration_nanoseconds);
            prop_assert_eq!(stretch.recording.duration_nanoseconds, 60_000_000_000);
        }
    }

    #[test]
    fn who_had_ended_and_has_nothing_new_is_left_out(chain in chain()) {
        let (snapshots, stretches) = stretches(&chain);
        for (pair, stretch) in snapshots.windows(2).zip(&stretches[1..]) {
            // Processes only come to the end of the list, so their places are the same.
            let had_ended = |place: usize| pair[0].processes.get(place).is_some_and(|process| process.ended);
            let name = |process: &Process| (process.pid, process.command.clone(), process.ended);
            let mut expected = Vec::new();
            let mut followed = BTreeSet::new();
            for (place, process) in pair[1].processes.iter().enumerate().rev() {
                let identity = (process.pid, process.command.clone());
                if !had_ended(place) || followed.contains(&identity) {
                    expected.insert(0, name(process));
                    followed.insert(identity);
                }
            }
            prop_assert_eq!(stretch.processes.iter().map(name).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn all_that_lies_between_is_the_whole(chain in chain()) {
        let (snapshots, stretches) = stretches(&chain);
        let whole = text(snapshots.last().unwrap());
        let merged = merge(stretches).unwrap();
        let sum = text(&merged);
        for of in NUMBERS {
            prop_assert_eq!(numbers(&sum, of), numbers(&whole, of));
        }
        let (found, expected) = (merged.recording, &snapshots.last().unwrap().recording);
        prop_assert_eq!(found.start_nanoseconds, expected.start_nanoseconds);
        prop_assert_eq!(found.duration_nanoseconds, expected.duration_nanoseconds);
    }

    #[test]
    fn it_does_not_matter_in_which_order_hours_and_days_are_made(chain in chain(), cut: prop::sample::Index) {
        let (_, mut stretches) = stretches(&chain);
        let all = text(&merge(stretches.clone()).unwrap());
        let later = stretches.split_off(cut.index(stretches.len()));
        let halves = merge(stretches).into_iter().chain(merge(later));
        prop_assert_eq!(text(&merge(halves).unwrap()), all);
    }

    #[test]
    fn one_alone_is_what_it_is(chain in chain()) {
        let (snapshots, _) = stretches(&chain);
        let snapshot = snapshots.last().unwrap();
        let merged = merge([snapshot.clone()]).unwrap();
        prop_assert_eq!(&merged.recording, &snapshot.recording);
        prop_assert_eq!(&merged.processes, &snapshot.processes);
        prop_assert_eq!(text(&merged), text(snapshot));
        let nothing = snapshot.since(snapshot);
        prop_assert!(numbers(&text(&nothing), |values| values.allocated).is_empty());
    }

    #[test]
    fn bounded_room_keeps_every_byte(chain in chain(), samples in 1..40_usize, processes in 2..6_usize) {
        let (_, stretches) = stretches(&chain);
        let whole = merge(stretches.clone()).unwrap();
        let bounds = Bounds { samples, processes, looks: 10 };
        let mut merger = Merger::within(bounds);
        stretches.into_iter().for_each(|stretch| merger.add(stretch));
        let bounded = merger.finish().unwrap();
        prop_assert!(bounded.processes.len() <= processes);
        for metric in [Metric::Allocated, Metric::Temporary, Metric::Live] {
            prop_assert_eq!(bounded.total(metric), whole.total(metric));
        }
        // Who runs is kept apart as long as there is room.
        let names = |profile: &Profile| -> BTreeSet<u32> {
            let running = profile.processes.iter().filter(|process| !process.ended);
            running.map(|process| process.pid).collect()
        };
        prop_assert!(names(&whole).len() >= processes || names(&bounded) == names(&whole));
    }

    #[test]
    fn who_is_retained_keeps_what_it_has(chain in chain(), pid in 1..4_u32) {
        let (snapshots, _) = stretches(&chain);
        let mut profile = snapshots.last().unwrap().clone();
        let mut expected = text(&profile);
        expected.retain(|key, _| key.contains(&format!(" {pid} #")));
        profile.retain_processes(|process| process.pid == pid);
        prop_assert!(profile.processes.iter().all(|process| process.pid == pid));
        prop_assert_eq!(text(&profile), expected);
        let used: BTreeSet<FrameId> = profile.samples.iter().flat_map(|sample| sample.stack.iter()).collect();
        prop_assert_eq!(used.len(), profile.frames.len());
    }
}
