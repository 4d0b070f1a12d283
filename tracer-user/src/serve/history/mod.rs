//! What recordings said, on disk: a pprof file for each minute, merged by the hour and by the day.
//!
//! Bounded by size and by age; a file is written whole or not at all, and one that cannot be read is set aside and counted. It must not know who asks, nor how a recording is made.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::state::Kind;
use crate::profile::Profile;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of all files together.
    pub bytes: u64,
    /// What is older goes.
    pub age: Duration,
}

/// A stretch of time of which there is a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub from: SystemTime,
    /// Its end.
    pub to: SystemTime,
}

/// Why the history cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file or folder.
    #[error("failed to {what} `{}`", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// See the head of this file. All methods may be called from several threads.
#[derive(Debug)]
pub struct History {}

impl History {
    /// Opens or makes a folder; what was left half done by a crash is tidied up.
    ///
    /// # Errors
    /// If the folder cannot be made or read.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, HistoryError> {
        todo!()
    }

    /// Keeps what happened from `span.from` to `span.to`: `allocated` of that stretch alone, `live` at its end.
    ///
    /// # Errors
    /// If it cannot be written; the folder is then as it was.
    pub fn append(&self, kind: Kind, span: Span, profile: &Profile) -> Result<(), HistoryError> {
        todo!()
    }

    /// What is known from `span.from` to `span.to`, merged; `None`: nothing is. Files that reach into it count as a whole. `pids`: only these; empty: all.
    ///
    /// # Errors
    /// If files cannot be read; those that are no profiles are set aside and counted.
    pub fn query(&self, kind: Kind, span: Span, pids: &[u32]) -> Result<Option<(Span, Profile)>, HistoryError> {
        todo!()
    }

    /// What there is, oldest first.
    pub fn spans(&self, kind: Kind) -> Vec<Span> {
        todo!()
    }
}
