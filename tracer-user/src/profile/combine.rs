//! Arithmetic of whole profiles: what happened between two moments of a recording, and consecutive stretches of time as one.
//!
//! A process is known by its pid and command and by how many such came before it, a stack by what its frames say: no index means the same in two profiles. Pure; it
//! must not know files, clocks, or who asks.

mod bound;
mod merge;
mod recording;
mod since;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use rustc_hash::FxBuildHasher;

pub use self::bound::{Bounds, OTHER_PROCESSES, TOO_SMALL};
pub use self::merge::{Merger, merge};
use super::{Frame, FrameId, Process, ProcessIndex, Profile, Sample, Stack, Values, samples::Key};

impl Profile {
    /// Drops the processes that are not to be kept, their samples, and frames that nothing else needs.
    pub fn retain_processes(&mut self, keep: impl Fn(&Process) -> bool) {
        let kept: Vec<bool> = self.processes.iter().map(keep).collect();
        self.keep_processes(&kept);
    }

    /// The same by places in the list; a sample of none of them goes as well.
    fn keep_processes(&mut self, kept: &[bool]) {
        let mut next = 0..;
        let places: Vec<Option<u32>> =
            kept.iter().map(|kept| if *kept { next.next() } else { None }).collect();
        let mut place = kept.iter();
        self.processes.retain(|_| place.next().is_some_and(|kept| *kept));
        self.samples.retain_mut(|sample| {
            let place = places.get(sample.process.0 as usize).copied().flatten();
            sample.process = ProcessIndex(place.unwrap_or_default());
            place.is_some()
        });
        self.drop_unused_frames();
    }

    /// Leaves the frames that samples have, in their order.
    fn drop_unused_frames(&mut self) {
        let mut used = vec![false; self.frames.len()];
        for frame in self.samples.iter().flat_map(|sample| &sample.stack) {
            if let Some(used) = used.get_mut(frame.0 as usize) {
                *used = true;
            }
        }
        if used.iter().all(|used| *used) {
            return;
        }
        let mut next = 0..;
        let places: Vec<Option<FrameId>> =
            used.iter().map(|used| if *used { next.next().map(FrameId) } else { None }).collect();
        let mut place = used.iter();
        self.frames.retain(|_| place.next().is_some_and(|used| *used));
        for sample in &mut self.samples {
            sample.stack = moved(&sample.stack, &places);
        }
    }
}

impl Sample {
    fn key(&self) -> Key {
        let Self { process, thread, domain, ref stack, .. } = *self;
        Key { process, thread, domain, stack: stack.clone() }
    }

    /// Whether it says anything: bytes or blocks of any metric, or a flow.
    fn says_anything(&self) -> bool {
        let flow = self.estimated.as_deref().and_then(|estimated| estimated.retained_bytes_per_second);
        self.values != Values::default() || flow.is_some_and(|flow| flow > 0)
    }
}

/// A stack in another table of frames; those that have no place there are left out.
fn moved(stack: &Stack, places: &[Option<FrameId>]) -> Stack {
    stack.iter().filter_map(|frame| places.get(frame.0 as usize).copied().flatten()).collect()
}

/// For each process of one list its place in another of the same recording: the same pid and command, and as many such before it.
fn places_in(others: &[Process], processes: &[Process]) -> Vec<Option<ProcessIndex>> {
    let mut places: HashMap<(u32, &str), VecDeque<ProcessIndex>> = HashMap::new();
    for (index, process) in (0..).zip(others) {
        places.entry(identity(process)).or_default().push_back(ProcessIndex(index));
    }
    processes.iter().map(|process| places.get_mut(&identity(process))?.pop_front()).collect()
}

fn identity(process: &Process) -> (u32, &str) {
    (process.pid, &process.command)
}

/// A table of frames.
type FrameTable = indexmap::IndexSet<Frame, FxBuildHasher>;
