//! Profiles of a long time in bounded room: what is too small to keep is gathered, so that its bytes stay and only its names go.
//!
//! In this order: processes past a number become one, small stacks lose their threads, and what is still small goes under a marker in its process. It must not know
//! why there is little room.

use std::cmp::Reverse;

use indexmap::{IndexMap, map::Entry};

use super::identity;
use crate::profile::{
    Estimated, Frame, FrameId, FrameKind, Part, Process, ProcessIndex, Profile, Sample, Stack, samples::Key,
};

/// What stands in place of the stacks that were gathered.
pub const TOO_SMALL: &str = "too small to keep";
/// The command of the process that stands for those that were gathered; its pid is 0.
pub const OTHER_PROCESSES: &str = "other processes, too many to keep";

/// A sample is small if it has less than one part in this many of the bytes in every metric.
const SMALL_PARTS: u128 = 100_000;

/// How much a profile may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Samples from which small ones are gathered; what is not small stays, at most 100,000 of each metric.
    pub samples: usize,
    /// Processes.
    pub processes: usize,
    /// Looks at the memory of all processes together, if there are two for each.
    pub looks: usize,
}

impl Default for Bounds {
    /// About 30 MB in memory.
    fn default() -> Self {
        Self { samples: 50_000, processes: 4096, looks: 40_000 }
    }
}

impl Profile {
    /// See the head of this file. What was gathered is counted in the losses (`merged_stacks`).
    pub fn bound(&mut self, bounds: Bounds) {
        self.bound_processes(bounds.processes.max(2));
        if self.samples.len() > bounds.samples {
            let small = self.small();
            self.give_keys(|sample| match small(sample) {
                true => Key { thread: 0, ..sample.key() },
                false => sample.key(),
            });
        }
        if self.samples.len() > bounds.samples {
            self.gather_small();
        }
        let each = bounds.looks / self.processes.len().max(1);
        if self.processes.iter().map(|process| process.memory.looks().len()).sum::<usize>() > bounds.looks {
            self.processes.iter_mut().for_each(|process| process.memory.thin(each.max(2)));
        }
    }

    /// What is small in this profile.
    fn small(&self) -> impl Fn(&Sample) -> bool + use<> {
        let bytes = |sample: &Sample| {
            let values = &sample.values;
            [values.allocated.bytes, values.live.bytes, values.peak.bytes].map(u128::from)
        };
        let mut totals = [0_u128; 3];
        for sample in &self.samples {
            totals.iter_mut().zip(bytes(sample)).for_each(|(total, bytes)| *total += bytes);
        }
        move |sample| {
            let mut parts = bytes(sample).into_iter().zip(totals);
            parts.all(|(bytes, total)| bytes == 0 || bytes * SMALL_PARTS < total)
        }
    }

    /// Puts what is small under a marker, one for each process and domain.
    fn gather_small(&mut self) {
        let small = self.small();
        let frame = Frame {
            kind: FrameKind::Marker,
            function: TOO_SMALL.to_owned(),
            file: None,
            line: 0,
            first_line: 0,
        };
        let marker = FrameId(self.frames.insert_full(frame).0 as u32);
        let stack: Stack = std::iter::once(marker).collect();
        let is_given_up = |sample: &Sample| small(sample) && sample.stack != stack;
        let given_up = self.samples.iter().filter(|sample| is_given_up(sample)).count();
        self.recording.losses.merged_stacks =
            self.recording.losses.merged_stacks.saturating_add(given_up as u64);
        self.give_keys(|sample| match is_given_up(sample) {
            true => Key { thread: 0, stack: stack.clone(), ..sample.key() },
            false => sample.key(),
        });
        self.drop_unused_frames();
    }

    /// Leaves no more processes than `most`: those that run come first, then those that have allocated most. The others' stacks stay, those of all of them together.
    fn bound_processes(&mut self, most: usize) {
        if self.processes.len() <= most {
            return;
        }
        let is_other = |process: &Process| identity(process) == (0, OTHER_PROCESSES);
        let mut allocated = vec![0_u64; self.processes.len()];
        for sample in &self.samples {
            if let Some(allocated) = allocated.get_mut(sample.process.0 as usize) {
                *allocated = allocated.saturating_add(sample.values.allocated.bytes);
            }
        }
        let mut ranked: Vec<usize> =
            (0..self.processes.len()).filter(|index| !is_other(&self.processes[*index])).collect();
        ranked.sort_by_key(|index| (self.processes[*index].ended, Reverse(allocated[*index])));
        let mut kept = vec![false; self.processes.len()];
        ranked.iter().take(most - 1).for_each(|index| kept[*index] = true);
        let other = self.processes.iter().position(is_other).unwrap_or_else(|| {
            kept.push(true);
            self.processes.push(Process {
                command: OTHER_PROCESSES.to_owned(),
                interpreter: "several".to_owned(),
                ended: true,
                ..Process::default()
            });
            self.processes.len() - 1
        });
        kept[other] = true;
        let other = ProcessIndex(other as u32);
        self.give_keys(|sample| match kept.get(sample.process.0 as usize) {
            Some(true) => sample.key(),
            _ => Key { process: other, thread: 0, ..sample.key() },
        });
        self.keep_processes(&kept);
    }

    /// Gives samples other keys; those with the same become one.
    fn give_keys(&mut self, key: impl Fn(&Sample) -> Key) {
        let mut samples: IndexMap<Key, Sample> = IndexMap::with_capacity(self.samples.len());
        for sample in std::mem::take(&mut self.samples) {
            match samples.entry(key(&sample)) {
                Entry::Occupied(mut entry) => join(entry.get_mut(), &sample),
                Entry::Vacant(entry) => {
                    entry.insert(sample);
                }
            }
        }
        self.samples = samples
            .into_iter()
            .map(|(Key { process, thread, domain, stack }, sample)| {
                let Sample { values, estimated, .. } = sample;
                Sample { process, thread, domain, stack, values, estimated }
            })
            .collect();
    }
}

/// Of one process, so their peaks are of one moment and add up.
fn join(sum: &mut Sample, sample: &Sample) {
    let part = |sample| {
        let Sample { values, estimated, .. }: &Sample = sample;
        Part { values, estimated: estimated.as_deref() }
    };
    sum.estimated = Estimated::join(part(sum), part(sample));
    sum.values = sum.values.plus(sample.values);
}
