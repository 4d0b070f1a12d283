//! What recordings said, on disk: a pprof file for each minute, merged by the hour and by the day.
//!
//! Bounded by size and by age; a file is written whole or not at all, and one that cannot be read is set aside and counted. It must not know who asks, nor how a recording is made.
//!
//! A folder for each kind has one for each level (`minute`, `hour`, `day`). What a file's name says is in `name.rs`: above all the numbers of the stretches that are in
//! it, by which it can be told after a crash that a merged file and its parts are the same. Beside them are a file that locks the folder and what is kept of incidents.

mod compact;
mod disk;
mod incidents;
mod index;
mod limits;
mod name;
mod recover;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::state::Kind;
use crate::profile::combine::{Bounds, Merger};
use crate::profile::pprof::{self, EncodeError};
use crate::profile::{Profile, Recording};

use self::compact::Pause;
use self::disk::{BeforeStep, Contents, Disk, Lock};
pub use self::incidents::Incident;
use self::index::{Index, MOST_MERGED_BYTES, MOST_MERGED_FILES};
use self::limits::Broken;
use self::name::{Entry, Level, Moment, Sequence};

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

/// What there is, and what has become of what was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files of the history.
    pub files: u64,
    /// Bytes of all files, also those of incidents and those that were set aside.
    pub bytes: u64,
    /// Files that are no profiles: those that were there already when the folder was opened, and those that were set aside since.
    pub broken: u64,
    /// Files that were merged into others since it was opened.
    pub merged: u64,
    /// Merges that failed since it was opened; they are tried again.
    pub failed_merges: u64,
    /// Files removed for the limit of bytes since it was opened.
    pub dropped_for_size: u64,
    /// Files removed for the limit of age since it was opened.
    pub dropped_for_age: u64,
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
    /// Somebody else has it open.
    #[error("`{}` is in use by another alloctrace: end that one, or choose another folder", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// One profile that could not be read again.
    #[error("a profile of {mebibytes} MiB is too large to keep: record fewer processes")]
    TooLarge {
        /// Its size as a file.
        mebibytes: u64,
    },
    /// More files than may be added up.
    #[error("{files} files of {mebibytes} MiB are too much to add up at once: ask for a shorter time")]
    TooMany {
        /// How many.
        files: usize,
        /// Their size.
        mebibytes: u64,
    },
    /// The profile has no form on disk.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// See the head of this file. All methods may be called from several threads.
///
/// What is appended is on the disk when [`History::append`] returns: after 20 ms for a thousand stacks of 40 frames, most of it the disk's, and 400 ms for 100,000. When an hour
/// or a day has turned it also merges, and reads all files of it for that: 60 of a thousand stacks in 0.4 s, of 10,000 in 2 s, of 100,000 in 25 s. Memory that this takes for a
/// while: 2, 10 and 90 MB.
#[derive(Debug)]
pub struct History {
    disk: Disk,
    limits: Limits,
    /// Held by whoever changes files, for as long as that takes.
    writer: Mutex<Writer>,
    /// Held for moments only, and never while waiting for `writer`.
    index: Mutex<Index>,
    _lock: Lock,
}

/// What only those who change files need.
#[derive(Debug)]
struct Writer {
    next: Sequence,
    broken: Broken,
    incident_bytes: u64,
    /// Files that are in others and could not be removed; it is tried again.
    leftovers: Vec<PathBuf>,
    /// How many looks in a row have found a file that is too old.
    looks_at_old: u32,
    pause: Pause,
}

/// A file that was read.
#[derive(Debug)]
enum Read {
    Profile(Box<Profile>),
    /// It is no profile; the text says why.
    Broken(String),
    /// Somebody has removed it meanwhile.
    Gone,
}

/// Files that were added up.
#[derive(Debug, Default)]
struct AddedUp {
    profile: Option<Profile>,
    broken: Vec<(Entry, String)>,
    /// A file was gone: it is in another by now.
    has_moved: bool,
}

/// Whether nobody can change files meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    Yes,
    No,
}

/// Why there is no file where nobody of us has removed it.
const REMOVED: &str = "somebody has removed it";

/// How often a query begins anew because files were merged meanwhile, before it keeps others from doing so.
const ATTEMPTS: usize = 3;

impl History {
    /// Opens or makes a folder; what was left half done by a crash is tidied up.
    ///
    /// # Errors
    /// If the folder cannot be made or read, or is in use.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, HistoryError> {
        Self::open_with(folder, limits, None)
    }

    /// `before_step` is asked before each change of a file.
    fn open_with(
        folder: &Path,
        limits: Limits,
        before_step: Option<BeforeStep>,
    ) -> Result<Self, HistoryError> {
        let disk = Disk::new(folder, before_step);
        disk.make_folder(folder)?;
        let lock = disk.lock()?;
        for kind in Kind::ALL {
            for level in Level::ALL {
                disk.make_folder(&folder.join(kind.name()).join(level.folder()))?;
            }
        }
        disk.make_folder(&folder.join(incidents::FOLDER))?;
        let (index, writer) = recover::recover(&disk)?;
        Ok(Self { disk, limits, writer: Mutex::new(writer), index: Mutex::new(index), _lock: lock })
    }

    /// Keeps what happened from `span.from` to `span.to`: `allocated` of that stretch alone, `live` at its end. A span that ends before it begins counts as a moment.
    ///
    /// Whether files could be merged or removed after that does not matter for the result; it is tried again later.
    ///
    /// # Errors
    /// If it cannot be written; the folder is then as it was.
    pub fn append(&self, kind: Kind, span: Span, profile: &Profile) -> Result<(), HistoryError> {
        let (from, to) = (Moment::from(span.from), Moment::from(span.to).max(Moment::from(span.from)));
        let recording = Recording {
            start_nanoseconds: from.0,
            duration_nanoseconds: to.0 - from.0,
            ..profile.recording.clone()
        };
        let bytes = pprof::encode_as(profile, &recording)?;
        let length = bytes.len() as u64;
        if length > MOST_MERGED_BYTES {
            return Err(HistoryError::TooLarge { mebibytes: length >> 20 });
        }
        let mut writer = self.writer();
        let number = writer.next;
        // Also if it cannot be written: nobody knows what that leaves behind.
        writer.next = Sequence(number.0 + 1);
        let entry = Entry { level: Level::Minute, from, to, first: number, last: number, bytes: length };
        self.disk.write(&self.path(kind, &entry), &bytes)?;
        self.index().insert(kind, entry);
        self.tidy(&mut writer, from, to);
        Ok(())
    }

    /// What is known from `span.from` to `span.to`, merged; `None`: nothing is. Files that reach into it count as a whole. `pids`: only these; empty: all.
    ///
    /// The span of the answer is that of the files. Stacks too small for so many are under a marker ([`crate::profile::combine::TOO_SMALL`]).
    ///
    /// # Errors
    /// If files cannot be read, or are too many; those that are no profiles are set aside and counted.
    pub fn query(
        &self,
        kind: Kind,
        span: Span,
        pids: &[u32],
    ) -> Result<Option<(Span, Profile)>, HistoryError> {
        for _ in 0..ATTEMPTS {
            let added = self.add_up(kind, span, pids, Alone::No)?;
            if !added.has_moved {
                if !added.broken.is_empty() {
                    self.set_all_aside(&mut self.writer(), kind, &added.broken);
                }
                return Ok(answer(added.profile, pids));
            }
        }
        let mut writer = self.writer();
        let added = self.add_up(kind, span, pids, Alone::Yes)?;
        self.set_all_aside(&mut writer, kind, &added.broken);
        Ok(answer(added.profile, pids))
    }

    /// What there is, oldest first.
    pub fn spans(&self, kind: Kind) -> Vec<Span> {
        let mut spans: Vec<Span> = self.index().of(kind).map(Entry::span).collect();
        spans.sort_by_key(|span| (span.from, span.to));
        spans
    }

    /// Merges what is over, and removes what is too old or too much: what [`History::append`] does as well, for when nothing is appended.
    ///
    /// # Errors
    /// If a file cannot be written, read or removed; what could be done is done, and nothing is lost.
    pub fn compact(&self, now: SystemTime) -> Result<(), HistoryError> {
        let (mut writer, now) = (self.writer(), Moment::from(now));
        let merged = self.merge_all(&mut writer, now);
        let removed = self.keep_limits(&mut writer, now);
        merged.and(removed)
    }

    /// What there is, and what has become of what was there.
    pub fn counts(&self) -> Counts {
        let index = self.index();
        Counts { files: index.len() as u64, bytes: index.all_bytes(), ..index.counts }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // Who panics while changing files leaves what a crash would, and each step of that is sound.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, kind: Kind, entry: &Entry) -> PathBuf {
        path(self.disk.folder(), kind, entry)
    }

    /// Reads what reaches into a time, one file after the other.
    fn add_up(&self, kind: Kind, span: Span, pids: &[u32], alone: Alone) -> Result<AddedUp, HistoryError> {
        let entries = self.index().reaching_into(kind, Moment::from(span.from), Moment::from(span.to));
        let bytes = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        if entries.len() > MOST_MERGED_FILES || bytes > MOST_MERGED_BYTES {
            return Err(HistoryError::TooMany { files: entries.len(), mebibytes: bytes >> 20 });
        }
        let (mut merger, mut added) = (Merger::within(Bounds::default()), AddedUp::default());
        for entry in entries {
            match read(&self.disk, &self.path(kind, &entry))? {
                Read::Profile(mut profile) => {
                    if !pids.is_empty() {
                        profile.retain_processes(|process| pids.contains(&process.pid));
                    }
                    merger.add(*profile);
                }
                Read::Broken(why) => added.broken.push((entry, why)),
                Read::Gone if alone == Alone::No => {
                    return Ok(AddedUp { has_moved: true, ..AddedUp::default() });
                }
                Read::Gone => added.broken.push((entry, REMOVED.to_owned())),
            }
        }
        added.profile = merger.finish();
        Ok(added)
    }
}

/// The answer to a query.
fn answer(profile: Option<Profile>, pids: &[u32]) -> Option<(Span, Profile)> {
    let profile = profile.filter(|profile| pids.is_empty() || !profile.processes.is_empty())?;
    let (from, to) = times(&profile);
    Some((Span { from: from.time(), to: to.time() }, profile))
}

fn path(folder: &Path, kind: Kind, entry: &Entry) -> PathBuf {
    folder.join(kind.name()).join(entry.level.folder()).join(entry.name())
}

/// Beginning and end of what a profile is of.
fn times(profile: &Profile) -> (Moment, Moment) {
    let Recording { start_nanoseconds, duration_nanoseconds, .. } = profile.recording;
    (Moment(start_nanoseconds), Moment(start_nanoseconds.saturating_add(duration_nanoseconds)))
}

fn read(disk: &Disk, path: &Path) -> Result<Read, HistoryError> {
    Ok(match disk.read(path, MOST_MERGED_BYTES)? {
        Contents::Bytes(bytes) => match pprof::decode(&bytes) {
            Ok(profile) => Read::Profile(Box::new(profile)),
            Err(error) => Read::Broken(error.to_string()),
        },
        Contents::TooLarge => Read::Broken("it is larger than any file of a history".to_owned()),
        Contents::Gone => Read::Gone,
    })
}
