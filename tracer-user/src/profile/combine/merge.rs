//! Consecutive stretches of time as one profile.
//!
//! One profile is taken after the other, so that only one and the sum are in memory. It must not know where they come from.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::{FrameTable, bound::Bounds, identity, moved, recording};
use crate::profile::{
    Amount, Estimated, FrameId, Process, ProcessIndex, Profile, Sample, Series, Values, estimated::Squares,
    samples::Key,
};

/// Profiles of consecutive stretches of time, oldest first, as one; `None` of none.
///
/// `allocated` and `temporary` add up. `live` is that of the last: nothing where the process or the stack is no longer there. `peak` of a process is that of the stretch in
/// which it had most at its peak, the later of two alike. Errors of what was allocated are independent, for each stretch was seen by other windows: they add up by their squares,
/// and are not known where one of them is not and has bytes. What else was estimated (what lives, its age, its growth, flows) is as in the last.
pub fn merge(profiles: impl IntoIterator<Item = Profile>) -> Option<Profile> {
    let mut merger = Merger::default();
    profiles.into_iter().for_each(|profile| merger.add(profile));
    merger.finish()
}

/// What [`merge`] does, step by step and, if asked to, in bounded room.
#[derive(Debug, Default)]
pub struct Merger {
    bounds: Option<Bounds>,
    /// Samples from which room is made.
    most_samples: usize,
    /// How many have been added: the number of the last.
    stretch: u32,
    /// Nothing in the last of them was estimated.
    is_last_counted: bool,
    recording: recording::Sum,
    processes: Vec<Process>,
    /// By process: in which stretch it had most at its peak, and how much.
    peaks: Vec<(u32, Amount)>,
    places: HashMap<(u32, String), Vec<ProcessIndex>>,
    frames: FrameTable,
    samples: IndexMap<Key, Sum>,
}

/// One sample of all stretches. What is of a moment has the number of its stretch, so that it need not be swept when another comes.
#[derive(Debug, Default)]
struct Sum {
    allocated: Amount,
    temporary: Amount,
    error: Errors,
    live: (u32, Amount),
    peak: (u32, Amount),
    /// Of the stretch of `live`.
    estimated: Option<Box<Estimated>>,
    is_estimated: bool,
}

/// Half widths of what was allocated.
#[derive(Debug, Clone, Copy, Default)]
struct Errors {
    squares: Squares,
    is_known: bool,
    is_unknown: bool,
}

/// When everything has been added.
#[derive(Debug, Clone, Copy)]
struct End {
    /// The number of the last stretch.
    stretch: u32,
    /// Nothing in any stretch was estimated.
    is_counted: bool,
    /// What is said at the end of a sample of which nothing was.
    unsaid: Estimated,
}

impl Merger {
    /// One that gathers what is small when there is too much of it; at most twice as much is in memory.
    #[must_use]
    pub fn within(bounds: Bounds) -> Self {
        Self { most_samples: bounds.samples.saturating_mul(2), bounds: Some(bounds), ..Self::default() }
    }

    /// Adds the next stretch.
    pub fn add(&mut self, profile: Profile) {
        self.stretch = self.stretch.saturating_add(1);
        let Profile { recording, processes, frames, samples } = profile;
        let processes = self.add_processes(processes, self.recording.began_after(&recording));
        self.add_peaks(&processes, &samples);
        let frames: Vec<Option<FrameId>> = frames
            .into_iter()
            .map(|frame| u32::try_from(self.frames.insert_full(frame).0).ok().map(FrameId))
            .collect();
        let is_counted = recording.windows.is_none();
        for sample in samples {
            let Some(process) = processes.get(sample.process.0 as usize) else { continue };
            self.add_sample(
                Sample { process: *process, stack: moved(&sample.stack, &frames), ..sample },
                is_counted,
            );
        }
        self.is_last_counted = is_counted;
        self.recording.add(recording);
        self.make_room();
    }

    /// Everything as one; `None` if nothing was added.
    #[must_use]
    pub fn finish(mut self) -> Option<Profile> {
        let bounds = self.bounds.take();
        let mut profile = self.whole()?;
        if let Some(bounds) = bounds {
            profile.bound(bounds);
        }
        Some(profile)
    }

    fn whole(self) -> Option<Profile> {
        let recording = self.recording.finish()?;
        let end = End {
            stretch: self.stretch,
            is_counted: recording.windows.is_none(),
            unsaid: if self.is_last_counted { Estimated::counted() } else { Estimated::default() },
        };
        let samples = self.samples.into_iter().filter_map(|(key, sum)| {
            let of_peak = self.peaks.get(key.process.0 as usize).map_or(0, |peak| peak.0);
            let sample = sum.into_sample(key, of_peak, end);
            sample.says_anything().then_some(sample)
        });
        let samples = samples.collect();
        let mut profile = Profile { recording, processes: self.processes, frames: self.frames, samples };
        profile.drop_unused_frames();
        Some(profile)
    }

    /// What there is so far becomes the first of the stretches, bounded.
    fn make_room(&mut self) {
        let Some(bounds) = self.bounds else { return };
        if self.samples.len() <= self.most_samples && self.processes.len() <= 2 * bounds.processes {
            return;
        }
        let Some(mut profile) = std::mem::take(self).whole() else { return };
        profile.bound(bounds);
        // If little was small, the next time is not before that has doubled: the work stays in proportion.
        let most_samples = bounds.samples.max(profile.samples.len()).saturating_mul(2);
        *self = Self { most_samples, bounds: None, ..Self::default() };
        self.add(profile);
        self.bounds = Some(bounds);
    }

    /// Where the processes of the next stretch are among all.
    fn add_processes(&mut self, processes: Vec<Process>, began_after_nanoseconds: u64) -> Vec<ProcessIndex> {
        let mut ends: HashMap<(u32, String), Vec<bool>> = HashMap::new();
        for process in &processes {
            let (pid, command) = identity(process);
            ends.entry((pid, command.to_owned())).or_default().push(process.ended);
        }
        let mut next_places: HashMap<(u32, String), usize> = ends
            .into_iter()
            .map(|(identity, ends)| {
                let known = self.places.get(&identity).map(Vec::as_slice).unwrap_or_default();
                let last = known.last().and_then(|last| self.processes.get(last.0 as usize));
                let skipped = skipped(known.len(), last.is_some_and(|last| !last.ended), &ends);
                (identity, skipped)
            })
            .collect();
        let mut places = Vec::with_capacity(processes.len());
        for process in processes {
            let identity = (process.pid, process.command.clone());
            let place = next_places.get_mut(&identity).map_or(0, |next| std::mem::replace(next, *next + 1));
            places.push(self.add_process(identity, place, process, began_after_nanoseconds));
        }
        places
    }

    /// `place`: which of those with the same identity it is.
    fn add_process(
        &mut self,
        identity: (u32, String),
        place: usize,
        mut process: Process,
        began_after_nanoseconds: u64,
    ) -> ProcessIndex {
        let known = self.places.entry(identity).or_default();
        let found = known.get(place).copied();
        let index = found.unwrap_or(ProcessIndex(self.processes.len() as u32));
        let looks = std::mem::take(&mut process.memory);
        match self.processes.get_mut(index.0 as usize) {
            Some(known) => {
                process.memory = std::mem::take(&mut known.memory);
                *known = process;
            }
            None => {
                known.push(index);
                self.processes.push(process);
                self.peaks.push(Default::default());
            }
        }
        if let Some(process) = self.processes.get_mut(index.0 as usize) {
            process.memory.append(looks, began_after_nanoseconds, Series::MOST);
        }
        index
    }

    /// Which processes have had most at their peak in the next stretch.
    fn add_peaks(&mut self, processes: &[ProcessIndex], samples: &[Sample]) {
        let mut totals: HashMap<ProcessIndex, Amount> = HashMap::new();
        for process in processes {
            totals.entry(*process).or_default();
        }
        for Sample { process, values, .. } in samples {
            if let Some(total) = processes.get(process.0 as usize).and_then(|process| totals.get_mut(process))
            {
                *total = total.plus(values.peak);
            }
        }
        for (process, total) in totals {
            if let Some(peak) = self.peaks.get_mut(process.0 as usize)
                && total.bytes >= peak.1.bytes
            {
                *peak = (self.stretch, total);
            }
        }
    }

    /// `is_counted`: nothing in its stretch was estimated.
    fn add_sample(&mut self, sample: Sample, is_counted: bool) {
        let of_peak = self.peaks.get(sample.process.0 as usize).map_or(0, |peak| peak.0);
        let key = sample.key();
        let Sample { values: Values { allocated, live, peak, temporary }, estimated, .. } = sample;
        let sum = self.samples.entry(key).or_default();
        sum.allocated = sum.allocated.plus(allocated);
        sum.temporary = sum.temporary.plus(temporary);
        let error = match &estimated {
            Some(estimated) => estimated.allocated_bytes_error,
            None => is_counted.then_some(0),
        };
        sum.error.add(error, allocated.bytes);
        sum.is_estimated |= estimated.is_some();
        sum.live = (self.stretch, live);
        sum.estimated = estimated;
        if of_peak == self.stretch {
            sum.peak = (self.stretch, peak);
        }
    }
}

/// How many of the processes of one pid and command are not among those of the next stretch.
///
/// A difference of two moments names all of them from the first, or none. Only the last of them can be running; if it did, it is the next stretch's, and one that
/// runs there is none that had ended.
fn skipped(known: usize, last_runs: bool, next_ends: &[bool]) -> usize {
    match next_ends.last() {
        _ if last_runs => known.saturating_sub(next_ends.len()),
        Some(false) => (known + 1).saturating_sub(next_ends.len()),
        _ => 0,
    }
}

impl Errors {
    fn add(&mut self, error: Option<u64>, bytes: u64) {
        match error {
            Some(error) => {
                self.is_known = true;
                self.squares.add(error);
            }
            None => self.is_unknown |= bytes > 0,
        }
    }

    /// Half the width of the interval of all.
    fn half_width(self) -> Option<u64> {
        (self.is_known && !self.is_unknown).then(|| self.squares.root())
    }
}

impl Sum {
    /// `of_peak`: the number of the stretch in which its process had most at its peak.
    fn into_sample(self, key: Key, of_peak: u32, end: End) -> Sample {
        let Key { process, thread, domain, stack } = key;
        let of = |number: u32, (stretch, amount): (u32, Amount)| {
            if stretch == number { amount } else { Amount::default() }
        };
        let values = Values {
            allocated: self.allocated,
            live: of(end.stretch, self.live),
            peak: of(of_peak, self.peak),
            temporary: self.temporary,
        };
        let allocated_bytes_error = self.error.half_width();
        // Beside estimates, what was counted says that it was.
        let is_estimated = self.is_estimated || (!end.is_counted && allocated_bytes_error.is_some());
        let estimated = is_estimated.then(|| {
            let is_of_end = self.live.0 == end.stretch;
            let now = self.estimated.as_deref().filter(|_| is_of_end).copied().unwrap_or(end.unsaid);
            Box::new(Estimated { allocated_bytes_error, ..now })
        });
        Sample { process, thread, domain, stack, values, estimated }
    }
}
