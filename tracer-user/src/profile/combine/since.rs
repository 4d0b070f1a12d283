//! What happened between two moments of one recording.
//!
//! What was allocated is only counted up, so it is the difference. Two things make a stack's number fall all the same: an estimate that became better, and a stack that was
//! given up, whose bytes are then under a marker. Left alone, each would make the sum of a chain of differences larger than the whole; so what fell in a process is
//! taken off what rose in it. It must not know what snapshots are taken for.

use std::collections::{HashMap, HashSet};

use super::{FrameTable, identity, places_in, recording};
use crate::profile::{
    Amount, Domain, ENDED_STACKS, Frame, FrameId, FrameKind, ProcessIndex, Profile, Sample, Values,
    samples::Key,
};

/// The numbers of a sample that are counted up: allocated bytes and blocks, temporary bytes and blocks.
type Flow = [u64; 4];

/// Whose numbers are told from one another: stacks are given up within these.
type Group = (ProcessIndex, Domain);

impl Profile {
    /// What happened since `earlier`, an earlier state of the same recording.
    ///
    /// `allocated` and `temporary` are the differences, never below 0; `live` and `peak` are those of now. Processes that had ended before and have nothing new are left out,
    /// but for those before another of the same pid and command: with them it can be told which of these it is. Looks at memory are the new ones, counted from the beginning
    /// of the stretch.
    ///
    /// Errors of estimates stay what they are now. That is conservative: the whole is what was before and what came since, each seen by windows of its own, so the
    /// variance of the whole is at least that of the part.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut before = Before::new(earlier, self);
        let mut samples: Vec<Sample> = self.samples.iter().map(|sample| before.since(sample)).collect();
        before.take_off_what_fell(self, &mut samples);
        let (news, kept) = self.news(earlier, &samples);
        samples.retain(|sample| {
            sample.says_anything() && news.get(sample.process.0 as usize).is_some_and(|has_news| *has_news)
        });
        let mut since = Self {
            recording: recording::since(&self.recording, &earlier.recording),
            processes: self.processes.clone(),
            frames: self.frames.clone(),
            samples,
        };
        for (process, was) in since.processes.iter_mut().zip(places_in(&earlier.processes, &self.processes)) {
            let was = was.and_then(|was| earlier.processes.get(was.0 as usize));
            let known = was.map(|was| was.memory.clone()).unwrap_or_default();
            process.memory = process.memory.since(&known, since.recording.duration_nanoseconds);
        }
        since.keep_processes(&kept);
        since
    }

    /// Which processes have anything new, and which of them all are to be kept.
    fn news(&self, earlier: &Self, samples: &[Sample]) -> (Vec<bool>, Vec<bool>) {
        let (then, now) = (held(earlier), held(self));
        let was = places_in(&earlier.processes, &self.processes);
        let was_over = |index: usize| {
            let Some(was) = was.get(index).copied().flatten().map(|was| was.0 as usize) else { return false };
            let had_ended = earlier.processes.get(was).is_some_and(|was| was.ended);
            had_ended && then.get(was) == now.get(index)
        };
        let mut news: Vec<bool> = (0..self.processes.len()).map(|index| !was_over(index)).collect();
        for sample in samples.iter().filter(|sample| flow(&sample.values) != Flow::default()) {
            if let Some(news) = news.get_mut(sample.process.0 as usize) {
                *news = true;
            }
        }
        let mut kept = news.clone();
        let mut followed = HashSet::new();
        for (process, kept) in self.processes.iter().zip(&mut kept).rev() {
            *kept |= followed.contains(&identity(process));
            if *kept {
                followed.insert(identity(process));
            }
        }
        (news, kept)
    }
}

/// What each process holds, and held at its peak.
fn held(profile: &Profile) -> Vec<(Amount, Amount)> {
    let mut held = vec![<(Amount, Amount)>::default(); profile.processes.len()];
    for Sample { process, values, .. } in &profile.samples {
        if let Some((live, peak)) = held.get_mut(process.0 as usize) {
            (*live, *peak) = (live.plus(values.live), peak.plus(values.peak));
        }
    }
    held
}

/// The earlier state, by the indices of the later.
struct Before {
    flows: HashMap<Key, Flow>,
    /// By how much numbers have fallen.
    fallen: HashMap<Group, Flow>,
}

impl Before {
    fn new(earlier: &Profile, later: &Profile) -> Self {
        let processes = places_in(&later.processes, &earlier.processes);
        let place = |frame: &Frame| later.frames.get_index_of(frame).map(|place| FrameId(place as u32));
        let frames: Vec<Option<FrameId>> = earlier.frames.iter().map(place).collect();
        let mut before = Self { flows: HashMap::new(), fallen: HashMap::new() };
        for Sample { process, thread, domain, stack, values, .. } in &earlier.samples {
            // A process that is no longer told of has nothing that it could be taken off.
            let Some(process) = processes.get(process.0 as usize).copied().flatten() else { continue };
            let is_known = |frame: FrameId| frames.get(frame.0 as usize).is_some_and(Option::is_some);
            let flow = flow(values);
            if stack.iter().all(is_known) {
                let stack = super::moved(stack, &frames);
                let key = Key { process, thread: *thread, domain: *domain, stack };
                add(before.flows.entry(key).or_default(), flow);
            } else {
                add(before.fallen.entry((process, *domain)).or_default(), flow);
            }
        }
        before
    }

    /// The sample without what it had before.
    fn since(&mut self, sample: &Sample) -> Sample {
        let (was, now) = (self.flows.remove(&sample.key()).unwrap_or_default(), flow(&sample.values));
        let fallen = difference(was, now);
        if fallen != Flow::default() {
            add(self.fallen.entry((sample.process, sample.domain)).or_default(), fallen);
        }
        let [bytes, count, temporary_bytes, temporary_count] = difference(now, was);
        let allocated = Amount { bytes, count };
        let temporary = Amount { bytes: temporary_bytes, count: temporary_count };
        Sample { values: Values { allocated, temporary, ..sample.values }, ..sample.clone() }
    }

    /// Takes what fell off what rose in the same process and domain: off the marker that stands for stacks that were given up, then off all in proportion.
    fn take_off_what_fell(mut self, later: &Profile, samples: &mut [Sample]) {
        for (Key { process, domain, .. }, flow) in self.flows {
            add(self.fallen.entry((process, domain)).or_default(), flow);
        }
        self.fallen.retain(|_, fallen| *fallen != Flow::default());
        let mut groups: HashMap<Group, Vec<&mut Sample>> = HashMap::new();
        for sample in samples {
            let group = (sample.process, sample.domain);
            if self.fallen.contains_key(&group) {
                groups.entry(group).or_default().push(sample);
            }
        }
        for (group, mut samples) in groups {
            let Some(fallen) = self.fallen.get(&group) else { continue };
            samples.sort_by_key(|sample| !is_of_given_up(sample, &later.frames));
            let gathering = samples.partition_point(|sample| is_of_given_up(sample, &later.frames));
            for (number, fallen) in NUMBERS.iter().zip(fallen) {
                let mut rises: Vec<&mut u64> =
                    samples.iter_mut().map(|sample| number(&mut sample.values)).collect();
                let (gathering, others) = rises.split_at_mut(gathering);
                let left = take_off(gathering, *fallen);
                take_off(others, left);
            }
        }
    }
}

/// Where the numbers of a [`Flow`] are.
const NUMBERS: [fn(&mut Values) -> &mut u64; 4] = [
    |values| &mut values.allocated.bytes,
    |values| &mut values.allocated.count,
    |values| &mut values.temporary.bytes,
    |values| &mut values.temporary.count,
];

fn flow(values: &Values) -> Flow {
    let Values { allocated, temporary, .. } = values;
    [allocated.bytes, allocated.count, temporary.bytes, temporary.count]
}

fn difference(one: Flow, other: Flow) -> Flow {
    std::array::from_fn(|number| one[number].saturating_sub(other[number]))
}

fn add(sum: &mut Flow, flow: Flow) {
    sum.iter_mut().zip(flow).for_each(|(sum, number)| *sum = sum.saturating_add(number));
}

/// Takes `fallen` off numbers in proportion to them, so that their sum is less by exactly that; what is more than all of them is left over.
fn take_off(rises: &mut [&mut u64], fallen: u64) -> u64 {
    let sum = rises.iter().fold(0_u64, |sum, rise| sum.saturating_add(**rise));
    let taken = fallen.min(sum);
    let (mut through, mut given) = (0_u64, 0_u64);
    for rise in rises {
        through = through.saturating_add(**rise);
        // What all up to this one have left; two numbers of 64 bits, of which the quotient is below one.
        let left = u128::from(through) * u128::from(sum - taken) / u128::from(sum.max(1));
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        (**rise, given) = (left.saturating_sub(given), left);
    }
    fallen - taken
}

/// Whether its stack is what stands for those that were given up.
fn is_of_given_up(sample: &Sample, frames: &FrameTable) -> bool {
    let frame = sample.stack.iter().next().and_then(|frame| frames.get_index(frame.0 as usize));
    frame.is_some_and(|frame| frame.kind == FrameKind::Marker && frame.function == ENDED_STACKS)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::take_off;

    proptest! {
        #[test]
        fn exactly_what_fell_is_taken_off(mut rises in vec(0..1_u64 << 55, 0..20), fallen in 0..1_u64 << 58) {
            let before = rises.clone();
            let sum: u64 = rises.iter().sum();
            let mut places: Vec<&mut u64> = rises.iter_mut().collect();
            let left = take_off(&mut places, fallen);
            prop_assert_eq!(rises.iter().sum::<u64>() + fallen.min(sum), sum);
            prop_assert_eq!(left, fallen.saturating_sub(sum));
            // In proportion, to the rounding of one.
            for (was, is) in before.iter().zip(&rises) {
                let exact = *was as f64 * (sum - fallen.min(sum)) as f64 / (sum as f64).max(1.0);
                prop_assert!((exact - *is as f64).abs() <= 1.0 + exact * 1e-12, "{was} {is} {exact}");
            }
        }

        #[test]
        fn the_largest_numbers_are_safe(mut rises in vec(any::<u64>(), 0..20), fallen: u64) {
            let before = rises.clone();
            take_off(&mut rises.iter_mut().collect::<Vec<_>>(), fallen);
            prop_assert!(before.iter().zip(&rises).all(|(was, is)| is <= was));
        }
    }
}
