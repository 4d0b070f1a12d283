//! Minutes become hours and hours become days.
//!
//! The order is what makes it safe to end at any point: the merged file is whole and on the disk, then its parts go. If they are still there at the next start, the numbers in the
//! names say that they are in it (`recover.rs`). It must not know which files are to be merged: that is the index's.

use std::error::Error;
use std::path::{Path, PathBuf};

use super::name::{Entry, Moment};
use super::{History, HistoryError, REMOVED, Read, Writer, path, read, times};
use crate::profile::combine::{Bounds, Merger};
use crate::profile::pprof;
use crate::serve::state::Kind;

/// Appended files after a merge that failed until it is tried again: on a full disk it would otherwise be tried, in vain and in full, each minute.
const PAUSE_FILES: u32 = 10;

/// After a merge that failed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pause(u32);

impl Pause {
    /// Whether it is over; counts a call.
    fn is_over(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

impl History {
    /// What an appended file may be the occasion for. It is there, whatever becomes of this.
    pub(super) fn tidy(&self, writer: &mut Writer, from: Moment, to: Moment) {
        if writer.pause.is_over()
            && let Err(error) = self.merge_all(writer, from)
        {
            tracing::warn!(
                error = &error as &dyn Error,
                "failed to merge files of the history; it is tried again later"
            );
        }
        if let Err(error) = self.keep_limits(writer, to) {
            tracing::warn!(error = &error as &dyn Error, "failed to keep the history within its limits");
        }
    }

    /// Merges all that is over.
    pub(super) fn merge_all(&self, writer: &mut Writer, now: Moment) -> Result<(), HistoryError> {
        self.remove_leftovers(writer);
        let merged = self.merge_rows(writer, now);
        self.index().counts.failed_merges += u64::from(merged.is_err());
        writer.pause = Pause(if merged.is_err() { PAUSE_FILES } else { 0 });
        merged
    }

    fn merge_rows(&self, writer: &mut Writer, now: Moment) -> Result<(), HistoryError> {
        for kind in Kind::ALL {
            loop {
                let row = self.index().to_merge(kind, now);
                match row.as_deref() {
                    None => break,
                    Some([one]) => self.raise(writer, kind, one)?,
                    Some(row) => self.merge(writer, kind, row)?,
                }
            }
        }
        Ok(())
    }

    /// One file alone is all of its hour or day.
    fn raise(&self, writer: &mut Writer, kind: Kind, entry: &Entry) -> Result<(), HistoryError> {
        let Some(level) = entry.level.next() else { return Ok(()) };
        let raised = Entry { level, ..*entry };
        let (from, to) = (self.path(kind, entry), self.path(kind, &raised));
        if !self.disk.rename(&from, &to)? {
            return self.set_aside(writer, kind, entry, REMOVED);
        }
        self.index().replace(kind, &[*entry], raised);
        // If a crash undoes one of these and not the other, both files have the same number, and one goes.
        [&to, &from]
            .into_iter()
            .filter_map(|path| path.parent())
            .try_for_each(|folder| self.disk.sync(folder))
    }

    fn merge(&self, writer: &mut Writer, kind: Kind, row: &[Entry]) -> Result<(), HistoryError> {
        let (Some(first), Some(last)) = (row.first(), row.last()) else { return Ok(()) };
        let Some(level) = first.level.next() else { return Ok(()) };
        let mut merger = Merger::within(Bounds::default());
        for entry in row {
            match read(&self.disk, &self.path(kind, entry))? {
                Read::Profile(profile) => merger.add(*profile),
                Read::Broken(why) => self.set_aside(writer, kind, entry, &why)?,
                Read::Gone => self.set_aside(writer, kind, entry, REMOVED)?,
            }
        }
        let Some(profile) = merger.finish() else { return Ok(()) };
        let bytes = pprof::encode(&profile)?;
        let (from, to) = times(&profile);
        drop(profile);
        let merged =
            Entry { level, from, to, first: first.first, last: last.last, bytes: bytes.len() as u64 };
        self.disk.write(&self.path(kind, &merged), &bytes)?;
        let parts: Vec<Entry> = self.replace(kind, row, merged);
        let parts: Vec<_> = parts.iter().map(|entry| self.path(kind, entry)).collect();
        writer.leftovers.extend(parts);
        self.remove_leftovers(writer);
        Ok(())
    }

    /// One in place of those of a row that are still there, which are returned.
    fn replace(&self, kind: Kind, row: &[Entry], merged: Entry) -> Vec<Entry> {
        let mut index = self.index();
        let known: Vec<Entry> = row.iter().filter(|entry| index.has(kind, entry)).copied().collect();
        index.replace(kind, &known, merged);
        index.counts.merged += known.len() as u64;
        known
    }

    /// Removes what is in other files; what cannot be removed now is tried again.
    fn remove_leftovers(&self, writer: &mut Writer) {
        let is_left = |path: &PathBuf| {
            let removed = self.disk.remove(path);
            if let Err(error) = &removed {
                tracing::warn!(
                    error = error as &dyn Error,
                    "failed to remove a file that was merged into another"
                );
            }
            removed.is_err()
        };
        writer.leftovers.retain(is_left);
    }

    /// Gives a file that is no profile another name, and forgets it.
    pub(super) fn set_aside(
        &self,
        writer: &mut Writer,
        kind: Kind,
        entry: &Entry,
        why: &str,
    ) -> Result<(), HistoryError> {
        // Two may have found out at the same time.
        if !self.index().has(kind, entry) {
            return Ok(());
        }
        let path: &Path = &path(self.disk.folder(), kind, entry);
        tracing::warn!(path = %path.display(), why, "set aside a file of the history that is no profile");
        let aside = self.disk.set_aside(path)?;
        let added = writer.broken.add(&self.disk, aside, entry.bytes);
        let mut index = self.index();
        index.remove(kind, entry);
        index.counts.broken += 1;
        index.other_bytes = writer.other_bytes();
        added
    }

    /// The same with several; one that cannot be renamed is asked again at the next query.
    pub(super) fn set_all_aside(&self, writer: &mut Writer, kind: Kind, broken: &[(Entry, String)]) {
        for (entry, why) in broken {
            if let Err(error) = self.set_aside(writer, kind, entry, why) {
                tracing::warn!(error = &error as &dyn Error, "failed to set aside a file of the history");
            }
        }
    }
}
