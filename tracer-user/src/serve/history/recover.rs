//! What a folder holds when it is opened, and what a crash left half done in it.
//!
//! A merged file and its parts may both be there: the parts go, but only once the merged file has been read. What was being written goes. It must not know limits.

use std::collections::HashSet;

use super::disk::{Disk, Listed, is_left_over};
use super::incidents;
use super::index::Index;
use super::limits::Broken;
use super::name::{BROKEN, Entry, Level, Sequence};
use super::{HistoryError, Pause, Read, Writer, path, read};
use crate::serve::state::Kind;

/// Files by how their numbers lie to one another.
#[derive(Debug, Default, PartialEq, Eq)]
struct Nested {
    /// None of these is in another.
    outer: Vec<Entry>,
    /// In an outer one of a higher level, which comes second.
    inner: Vec<(Entry, Entry)>,
    /// They have numbers that an outer one has, and are not parts of it: nobody of us writes such.
    crossing: Vec<Entry>,
}

/// What was found in a folder.
#[derive(Debug, Default)]
struct Found {
    entries: Vec<Entry>,
    broken: Vec<Listed>,
    /// The largest number in any name.
    last: Option<Sequence>,
}

/// Reads the folder and tidies it up.
pub fn recover(disk: &Disk) -> Result<(Index, Writer), HistoryError> {
    let mut index = Index::default();
    let (mut broken, mut last, mut leftovers) = (Vec::new(), None, Vec::new());
    for kind in Kind::ALL {
        let mut found = find(disk, kind)?;
        last = last.max(found.last);
        broken.append(&mut found.broken);
        let nested = untangle(disk, kind, found.entries, &mut broken)?;
        for entry in nested.outer {
            index.insert(kind, entry);
        }
        leftovers.extend(nested.inner.iter().map(|(inner, _)| path(disk.folder(), kind, inner)));
    }
    // Those that cannot be removed are in the index no more, and it is tried again.
    leftovers.retain(|path| {
        disk.remove(path)
            .inspect_err(|error| tracing::warn!(%error, "failed to remove a file that is in another"))
            .is_err()
    });
    index.counts.broken = broken.len() as u64;
    let writer = Writer {
        next: Sequence(last.map_or(0, |last| last.0 + 1)),
        broken: keep_newest(disk, broken)?,
        incident_bytes: incidents::recover(disk)?,
        leftovers,
        looks_at_old: 0,
        pause: Pause::default(),
    };
    index.other_bytes = writer.other_bytes();
    Ok((index, writer))
}

fn find(disk: &Disk, kind: Kind) -> Result<Found, HistoryError> {
    let mut found = Found::default();
    for level in Level::ALL {
        for file in disk.list(&disk.folder().join(kind.name()).join(level.folder()))? {
            if is_left_over(&file.name) {
                disk.remove(&file.path)?;
                continue;
            }
            let (name, is_broken) = match file.name.strip_suffix(BROKEN) {
                Some(name) => (name, true),
                None => (file.name.as_str(), false),
            };
            // What has another name is nobody's of us, and stays.
            let Some(entry) = Entry::parse(level, name, file.bytes) else { continue };
            found.last = found.last.max(Some(entry.last));
            if is_broken {
                found.broken.push(file);
            } else {
                found.entries.push(entry);
            }
        }
    }
    Ok(found)
}

/// Finds which files are in others. Those that should hold others and cannot be read are set aside, so that their parts count; so are those that are in nobody's order.
fn untangle(
    disk: &Disk,
    kind: Kind,
    mut entries: Vec<Entry>,
    broken: &mut Vec<Listed>,
) -> Result<Nested, HistoryError> {
    let mut read_well = HashSet::new();
    loop {
        let mut nested = nest(&mut entries);
        let mut bad = std::mem::take(&mut nested.crossing);
        for (_, outer) in &nested.inner {
            if read_well.contains(outer) || bad.contains(outer) {
                continue;
            }
            match read(disk, &path(disk.folder(), kind, outer)) {
                Ok(Read::Profile(_)) => {
                    read_well.insert(*outer);
                }
                why => {
                    tracing::warn!(?why, "a merged file of the history cannot be read; its parts are used");
                    bad.push(*outer);
                }
            }
        }
        if bad.is_empty() {
            return Ok(nested);
        }
        for entry in &bad {
            let from = path(disk.folder(), kind, entry);
            tracing::warn!(path = %from.display(), "set aside a file of the history");
            let path = disk.set_aside(&from)?;
            // The newest of all: it was set aside just now.
            let name = entry.name() + BROKEN;
            broken.push(Listed { path, name, bytes: entry.bytes, written: i128::MAX, changed: i128::MAX });
        }
        entries.retain(|entry| !bad.contains(entry));
    }
}

/// Which files are in which by their numbers. Pure.
fn nest(entries: &mut [Entry]) -> Nested {
    entries.sort_unstable_by_key(|entry| {
        let Entry { first, last, level, from, to, .. } = *entry;
        (first, std::cmp::Reverse(last), std::cmp::Reverse(level), from, to)
    });
    let mut nested = Nested::default();
    for entry in entries.iter() {
        match nested.outer.last() {
            Some(outer) if entry.first <= outer.last => {
                if entry.last <= outer.last && entry.level < outer.level {
                    nested.inner.push((*entry, *outer));
                } else {
                    nested.crossing.push(*entry);
                }
            }
            _ => nested.outer.push(*entry),
        }
    }
    nested
}

fn keep_newest(disk: &Disk, mut files: Vec<Listed>) -> Result<Broken, HistoryError> {
    files.sort_by(|one, other| (one.changed, &one.name).cmp(&(other.changed, &other.name)));
    let mut broken = Broken::default();
    for Listed { path, bytes, .. } in files {
        broken.add(disk, path, bytes)?;
    }
    Ok(broken)
}

#[cfg(test)]
mod tests {
    use super::super::name::Moment;
    use super::*;

    fn entry(level: Level, first: u64, last: u64) -> Entry {
        let (first, last) = (Sequence(first), Sequence(last));
        Entry { level, from: Moment(first.0), to: Moment(last.0 + 1), first, last, bytes: 1 }
    }

    #[test]
    fn parts_are_in_their_hour_and_hours_in_their_day() {
        use Level::{Day, Hour, Minute};
        let (day, hour) = (entry(Day, 0, 9), entry(Hour, 10, 12));
        let inner = [entry(Hour, 0, 4), entry(Minute, 2, 2), entry(Hour, 5, 9), entry(Minute, 9, 9)];
        let others = [entry(Minute, 10, 10), entry(Minute, 13, 13)];
        let mut all: Vec<Entry> = [day, hour].into_iter().chain(inner).chain(others).rev().collect();
        let nested = nest(&mut all);
        assert_eq!(nested.outer, vec![day, hour, others[1]]);
        let (in_day, in_hour) = nested.inner.split_at(4);
        assert!(in_day.iter().all(|(part, whole)| *whole == day && inner.contains(part)));
        assert_eq!(in_hour, [(others[0], hour)]);
        assert_eq!(nested.crossing, vec![]);
    }

    #[test]
    fn one_that_rose_by_halves_is_one() {
        let (minute, hour) = (entry(Level::Minute, 3, 3), entry(Level::Hour, 3, 3));
        let nested = nest(&mut [minute, hour]);
        assert_eq!(nested, Nested { outer: vec![hour], inner: vec![(minute, hour)], crossing: vec![] });
    }

    #[test]
    fn what_nobody_writes_is_not_counted_twice() {
        let (one, other) = (entry(Level::Hour, 1, 5), entry(Level::Hour, 4, 8));
        let twin = Entry { to: Moment(99), ..entry(Level::Minute, 9, 9) };
        let nested = nest(&mut [other, one, twin, entry(Level::Minute, 9, 9)]);
        assert_eq!(nested.outer, vec![one, entry(Level::Minute, 9, 9)]);
        assert_eq!(nested.crossing, vec![other, twin]);
    }
}
