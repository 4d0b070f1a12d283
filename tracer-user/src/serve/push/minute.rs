//! What is pushed at a time: the profile of a minute, and how much memory it takes to wait with it.
//!
//! It must not know destinations.

use std::sync::Arc;

use crate::{
    profile::{Estimated, Frame, FrameId, Process, ProcessIndex, Profile, Sample, Stack},
    serve::{history::Span, state::Kind},
};

/// A profile and what it is of; cheap to clone.
#[derive(Debug, Clone)]
pub struct Minute {
    /// Of which recording.
    pub kind: Kind,
    /// Of what time.
    pub span: Span,
    /// What happened then.
    pub profile: Arc<Profile>,
    /// Random, and the same however often it is sent.
    pub id: u128,
}

/// About how many bytes of memory a profile takes.
pub fn weight(profile: &Profile) -> u64 {
    let of_sample = |sample: &Sample| {
        let estimated = sample.estimated.as_ref().map_or(0, |_| size_of::<Estimated>());
        size_of::<Sample>() + sample.stack.bytes() + estimated
    };
    let of_frame = |frame: &Frame| {
        // With its place in the index.
        size_of::<Frame>() + 24 + frame.function.len() + frame.file.as_ref().map_or(0, String::len)
    };
    let of_process = |process: &Process| {
        let looks = size_of_val(process.memory.looks());
        size_of::<Process>() + process.command.len() + looks
    };
    let samples: usize = profile.samples.iter().map(of_sample).sum();
    let frames: usize = profile.frames.iter().map(of_frame).sum();
    let processes: usize = profile.processes.iter().map(of_process).sum();
    (size_of::<Profile>() + samples + frames + processes) as u64
}

/// The part of a profile that is of some of its processes (by their places), with no frame that is not used. How it was recorded stays what was said of the whole.
pub fn part(profile: &Profile, processes: &[usize]) -> Profile {
    let mut part = Profile {
        recording: profile.recording.clone(),
        processes: processes.iter().filter_map(|place| profile.processes.get(*place).cloned()).collect(),
        frames: indexmap::IndexSet::default(),
        samples: Vec::new(),
    };
    let mut places = vec![None; profile.processes.len()];
    for (new, old) in (0..).zip(processes) {
        if let Some(place) = places.get_mut(*old) {
            *place = Some(ProcessIndex(new));
        }
    }
    let mut renamed: Vec<Option<FrameId>> = vec![None; profile.frames.len()];
    let mut rename = |frame: FrameId| {
        let new = renamed.get_mut(frame.0 as usize)?;
        if new.is_none() {
            let frame = profile.frames.get_index(frame.0 as usize)?.clone();
            *new = u32::try_from(part.frames.insert_full(frame).0).ok().map(FrameId);
        }
        *new
    };
    for sample in &profile.samples {
        let Some(process) = places.get(sample.process.0 as usize).copied().flatten() else { continue };
        let stack: Stack = sample.stack.iter().filter_map(&mut rename).collect();
        part.samples.push(Sample { process, stack, ..sample.clone() });
    }
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{profile::Metric, serve::push::tests::profiles};

    proptest! {
        #[test]
        fn parts_are_the_whole_and_name_the_same_frames(profile in profiles::profile()) {
            let parts: Vec<Profile> = (0..profile.processes.len()).map(|place| part(&profile, &[place])).collect();
            for metric in [Metric::Live, Metric::Allocated, Metric::Peak, Metric::Temporary] {
                let of_parts: u64 = parts.iter().map(|part| part.total(metric).bytes).sum();
                prop_assert_eq!(of_parts, profile.total(metric).bytes);
            }
            for (place, part) in parts.iter().enumerate() {
                let named = |profile: &Profile, sample: &Sample| -> Vec<Frame> {
                    sample.stack.iter().map(|frame| profile.frames[frame.0 as usize].clone()).collect()
                };
                let theirs: Vec<_> = profile.samples.iter().filter(|sample| sample.process.0 as usize == place).collect();
                prop_assert_eq!(theirs.len(), part.samples.len());
                for (one, other) in theirs.iter().zip(&part.samples) {
                    prop_assert_eq!(named(&profile, one), named(part, other));
                }
                let used: std::collections::HashSet<u32> = part.samples.iter().flat_map(|sample| sample.stack.iter().map(|frame| frame.0)).collect();
                prop_assert_eq!(used.len(), part.frames.len(), "no frame is there that nobody uses");
            }
        }

        #[test]
        fn weight_grows_with_what_is_there(profile in profiles::profile()) {
            let mut less = profile.clone();
            prop_assert!(weight(&less) > 0);
            if let Some(sample) = less.samples.pop() {
                prop_assert!(weight(&less) + (sample.stack.bytes() + size_of::<Sample>()) as u64 <= weight(&profile));
            }
        }
    }
}
