//! What endpoints ask, and nothing more: the newest snapshots and the past.
//!
//! A trait, so that tests answer with profiles of their own. It must not know requests.

use std::time::SystemTime;

use crate::profile::Profile;
use crate::serve::history::{HistoryError, Span};
use crate::serve::state::{Kind, Now, State};

/// Where answers come from. May be asked from several threads at once.
pub trait Source: Send + Sync + 'static {
    /// What is known at the moment.
    fn now(&self) -> Now;

    /// What happened in a stretch of time; `None`: nothing is known of it. `pids`: only these; empty: all.
    ///
    /// # Errors
    /// If the history cannot be read.
    fn query(&self, kind: Kind, span: Span, pids: &[u32]) -> Result<Option<(Span, Profile)>, HistoryError>;

    /// The stretches that are known, oldest first.
    fn spans(&self, kind: Kind) -> Vec<Span>;

    /// What the history takes on disk; `None`: not known.
    fn kept(&self) -> Option<Kept>;

    /// Last accounts of processes that came near their limit or were killed, the newest first.
    fn incidents(&self) -> Vec<Incident>;

    /// The account of one; `None`: there is none of that name.
    ///
    /// # Errors
    /// If it cannot be read.
    fn incident(&self, name: &str) -> Result<Option<Profile>, HistoryError>;

    /// Has recordings take a snapshot soon. Whether there is one that can.
    fn ask_for_snapshot(&self) -> bool {
        false
    }
}

/// What the history takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Files.
    pub files: u64,
    /// Of all of them.
    pub bytes: u64,
    /// Files that could not be read and were set aside.
    pub broken: u64,
}

/// One moment that mattered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// When it was.
    pub at: SystemTime,
    /// What it is called: what happened, and to which process.
    pub name: String,
}

impl Source for State {
    fn now(&self) -> Now {
        Self::now(self)
    }

    fn query(&self, kind: Kind, span: Span, pids: &[u32]) -> Result<Option<(Span, Profile)>, HistoryError> {
        self.history.query(kind, span, pids)
    }

    fn spans(&self, kind: Kind) -> Vec<Span> {
        self.history.spans(kind)
    }

    fn kept(&self) -> Option<Kept> {
        let counts = self.history.counts();
        Some(Kept { files: counts.files, bytes: counts.bytes, broken: counts.broken })
    }

    fn incidents(&self) -> Vec<Incident> {
        // A page without a list of them is better than no page.
        let mut kept = self.history.incidents().unwrap_or_default();
        kept.sort_by_key(|incident| std::cmp::Reverse(incident.written));
        kept.into_iter().map(|kept| Incident { at: kept.written, name: kept.name }).collect()
    }

    fn incident(&self, name: &str) -> Result<Option<Profile>, HistoryError> {
        self.history.incident(name)
    }

    fn ask_for_snapshot(&self) -> bool {
        Self::ask_for_snapshot(self)
    }
}
