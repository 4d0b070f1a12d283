//! Which processes have series of their own, and which are counted among the others.
//!
//! Whoever is among the others stays there, and so does whoever has ended: else the others' counters would fall, and a fall looks to
//! Prometheus like a restart. It must not know figures.

use rustc_hash::FxHashMap;

use crate::profile::Profile;

/// Most processes with series of their own.
pub const MOST_SHOWN: usize = 200;

/// Where each process of a recording is counted.
#[derive(Debug, Default)]
pub struct Shown {
    /// The recording: when it began.
    start_nanoseconds: u64,
    /// By process id and place in the profile: whether it has series of its own.
    places: FxHashMap<(u32, usize), bool>,
}

impl Shown {
    /// Decides for the processes of a profile. The places of those that have series of their own are true.
    pub fn update(&mut self, profile: &Profile) -> Vec<bool> {
        if self.start_nanoseconds != profile.recording.start_nanoseconds {
            *self =
                Self { start_nanoseconds: profile.recording.start_nanoseconds, places: FxHashMap::default() };
        }
        let keys: Vec<(u32, usize)> =
            profile.processes.iter().enumerate().map(|(place, process)| (process.pid, place)).collect();
        let known: std::collections::HashSet<_> = keys.iter().collect();
        self.places.retain(|key, _| known.contains(key));
        for (key, process) in keys.iter().zip(&profile.processes) {
            if process.ended {
                self.places.insert(*key, false);
            }
        }
        let mut number = self.places.values().filter(|shown| **shown).count();
        let mut shown = Vec::with_capacity(keys.len());
        for key in keys {
            let has_room = number < MOST_SHOWN;
            let place = self.places.entry(key).or_insert_with(|| {
                number += usize::from(has_room);
                has_room
            });
            shown.push(*place);
        }
        shown
    }
}
