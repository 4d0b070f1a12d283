//! What all parts of the sidecar share: the newest snapshots, the history, and what is wrong at the moment.
//!
//! It must not know who asks, nor how a recording is made.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use super::history::History;
use crate::profile::Profile;
use crate::session::Control;

/// Which of the two recordings that run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// What is allocated (`--mode budget`, or `exact`).
    Allocations,
    /// Resident memory (`--mode growth`).
    Resident,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Allocations, Self::Resident];

    /// Its name in files and addresses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocations => "allocations",
            Self::Resident => "resident",
        }
    }
}

/// What a recording has seen since it began.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it was taken.
    pub taken: SystemTime,
    /// Everything since `profile.recording.start_nanoseconds`: `allocated` only grows, `live` is of this moment.
    pub profile: Arc<Profile>,
}

/// What is known at the moment.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// The newest snapshot of each recording; `None`: there is none yet, or it does not run.
    pub allocations: Option<Snapshot>,
    /// The same of resident memory.
    pub resident: Option<Snapshot>,
    /// Why something that was asked for does not work, a line each.
    pub problems: Vec<String>,
    /// Snapshots that could not be kept on disk.
    pub minutes_lost: u64,
    /// When the engine last said that it lives.
    pub alive: Option<SystemTime>,
}

impl Now {
    /// A recording does not work any more: what it said last is not what is.
    pub fn forget(&mut self, kind: Kind) {
        match kind {
            Kind::Allocations => self.allocations = None,
            Kind::Resident => self.resident = None,
        }
    }

    /// The newest snapshot of a recording.
    #[must_use]
    pub fn snapshot(&self, kind: Kind) -> Option<&Snapshot> {
        match kind {
            Kind::Allocations => self.allocations.as_ref(),
            Kind::Resident => self.resident.as_ref(),
        }
    }
}

/// Shared by all parts; cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    /// What was.
    pub history: Arc<History>,
    now: Arc<RwLock<Now>>,
    /// Recordings that can be asked for a snapshot.
    recordings: Arc<RwLock<Vec<Arc<Control>>>>,
}

impl State {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(history: History) -> Self {
        Self { history: Arc::new(history), now: Arc::default(), recordings: Arc::default() }
    }

    /// What is known at the moment.
    #[must_use]
    pub fn now(&self) -> Now {
        // Who panics while writing leaves what was there before or after, and both are true.
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A recording that can be asked for a snapshot.
    pub fn add_recording(&self, control: Arc<Control>) {
        self.recordings.write().unwrap_or_else(PoisonError::into_inner).push(control);
    }

    /// Has all recordings take a snapshot soon. Whether there are any.
    pub fn ask_for_snapshot(&self) -> bool {
        let recordings = self.recordings.read().unwrap_or_else(PoisonError::into_inner);
        recordings.iter().for_each(|control| control.ask_for_snapshot());
        !recordings.is_empty()
    }

    /// Changes what is known.
    pub fn change(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.now.write().unwrap_or_else(PoisonError::into_inner));
    }
}
