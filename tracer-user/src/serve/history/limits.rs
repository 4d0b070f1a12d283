//! What has to go: files that are too old, files that are too much, and all but a few of those that are no profiles.
//!
//! It must not know what is in them.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::disk::Disk;
use super::name::Moment;
use super::{History, HistoryError, Writer};
use crate::serve::state::Kind;

/// Files of the history. A service with a clock that leaps at each minute would otherwise have one for each minute.
const MOST_FILES: usize = 20_000;
/// Files that are no profiles; the newest are kept, for whoever wants to know what happened.
const MOST_BROKEN: usize = 8;
/// Looks in a row at which a file must be too old before it goes: a clock that is wrong for some minutes must not cost the whole history.
const LOOKS_AT_OLD: u32 = 10;

/// Files that were set aside, oldest first.
#[derive(Debug, Default)]
pub struct Broken(VecDeque<(PathBuf, u64)>);

impl Broken {
    /// Takes another that has its name already; what is too much goes.
    pub fn add(&mut self, disk: &Disk, path: PathBuf, bytes: u64) -> Result<(), HistoryError> {
        self.0.push_back((path, bytes));
        while self.0.len() > MOST_BROKEN {
            self.drop_oldest(disk)?;
        }
        Ok(())
    }

    /// Their sizes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Removes one; false if there is none.
    fn drop_oldest(&mut self, disk: &Disk) -> Result<bool, HistoryError> {
        let Some((path, _)) = self.0.front() else { return Ok(false) };
        disk.remove(path)?;
        self.0.pop_front();
        Ok(true)
    }
}

impl Writer {
    /// Of files that are none of the history.
    pub(super) fn other_bytes(&self) -> u64 {
        self.broken.bytes().saturating_add(self.incident_bytes)
    }
}

impl History {
    /// Removes what is too old or too much.
    pub(super) fn keep_limits(&self, writer: &mut Writer, now: Moment) -> Result<(), HistoryError> {
        let aged = self.drop_old(writer, now);
        let sized = self.drop_too_much(writer);
        aged.and(sized)
    }

    fn drop_old(&self, writer: &mut Writer, now: Moment) -> Result<(), HistoryError> {
        let age = u64::try_from(self.limits.age.as_nanos()).unwrap_or(u64::MAX);
        let old = self.index().ended_before(Moment(now.0.saturating_sub(age)));
        writer.looks_at_old = if old.is_empty() { 0 } else { writer.looks_at_old.saturating_add(1) };
        if writer.looks_at_old < LOOKS_AT_OLD {
            return Ok(());
        }
        for (kind, entry) in old {
            self.drop_file(kind, &entry)?;
            self.index().counts.dropped_for_age += 1;
        }
        writer.looks_at_old = 0;
        Ok(())
    }

    pub(super) fn drop_too_much(&self, writer: &mut Writer) -> Result<(), HistoryError> {
        loop {
            let (files, bytes, oldest) = {
                let mut index = self.index();
                index.other_bytes = writer.other_bytes();
                (index.len(), index.all_bytes(), index.oldest())
            };
            if files <= MOST_FILES && bytes <= self.limits.bytes {
                return Ok(());
            }
            if bytes > self.limits.bytes && writer.broken.drop_oldest(&self.disk)? {
                continue;
            }
            let Some((kind, entry)) = oldest else { return Ok(()) };
            self.drop_file(kind, &entry)?;
            self.index().counts.dropped_for_size += 1;
        }
    }

    fn drop_file(&self, kind: Kind, entry: &super::Entry) -> Result<(), HistoryError> {
        self.disk.remove(&self.path(kind, entry))?;
        self.index().remove(kind, entry);
        Ok(())
    }
}
