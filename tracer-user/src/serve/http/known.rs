//! The processes that are known at the moment, whichever recording knows them, with the newest look at their memory.
//!
//! The same process may be in both recordings: it is one here, with the newer look. It must not know how it is shown.

use std::{collections::HashMap, time::SystemTime};

use super::moment;
use crate::profile::{Look, Process, Profile};
use crate::serve::state::{Kind, Now};

/// A process.
#[derive(Debug, Clone, Copy)]
pub struct KnownProcess<'a> {
    /// By which recording.
    pub kind: Kind,
    /// It.
    pub process: &'a Process,
    /// The newest look at its memory at which something was known.
    pub look: Option<Seen<'a>>,
}

/// A look, and when it was.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// When.
    pub at: SystemTime,
    /// What was found.
    pub look: &'a Look,
}

/// All of them: those of the first recording in its order, then what the other knows beside them.
#[must_use]
pub fn processes(now: &Now) -> Vec<KnownProcess<'_>> {
    let mut all: Vec<KnownProcess<'_>> = Vec::new();
    let mut places = HashMap::<(u32, &str), usize>::new();
    for kind in Kind::ALL {
        let Some(snapshot) = now.snapshot(kind) else { continue };
        let before = all.len();
        for process in &snapshot.profile.processes {
            let found = KnownProcess { kind, process, look: seen(&snapshot.profile, process) };
            // Within one recording two of a pid are two: it was used again, or the process replaced itself.
            match places.get(&(process.pid, &*process.command)).filter(|place| **place < before) {
                Some(place) => {
                    let known = &mut all[*place];
                    if at(&found) > at(known) && !found.process.ended {
                        known.look = found.look;
                    }
                }
                None => all.push(found),
            }
        }
        let keys = all.iter().enumerate().skip(before);
        places.extend(keys.map(|(place, known)| ((known.process.pid, &*known.process.command), place)));
    }
    all
}

fn at(known: &KnownProcess<'_>) -> Option<SystemTime> {
    known.look.map(|seen| seen.at)
}

fn seen<'a>(profile: &Profile, process: &'a Process) -> Option<Seen<'a>> {
    let look = process.memory.latest()?;
    let at = profile.recording.start_nanoseconds.saturating_add(look.since_nanoseconds);
    Some(Seen { at: moment::of_nanoseconds(at), look })
}
