//! Which files there are, which of them are to be one, and which have to go. Pure.
//!
//! In the order in which they were appended, which is not that of their times when a clock is set. It must not know disks or profiles.

use std::collections::BTreeMap;

use super::Counts;
use super::name::{Entry, Level, Moment, Sequence};
use crate::serve::state::Kind;

/// Files that are merged at once, and files that one answer may be made of.
pub const MOST_MERGED_FILES: usize = 512;
/// Their bytes.
pub const MOST_MERGED_BYTES: u64 = 256 << 20;

/// The files of both kinds.
#[derive(Debug, Default)]
pub struct Index {
    files: BTreeMap<(Kind, Sequence), Entry>,
    bytes: u64,
    /// Of files that are none of the history but count.
    pub other_bytes: u64,
    /// What has become of what was there; what there is, is counted when somebody asks.
    pub counts: Counts,
}

impl Index {
    /// Adds a file.
    pub fn insert(&mut self, kind: Kind, entry: Entry) {
        self.bytes = self.bytes.saturating_add(entry.bytes);
        if let Some(replaced) = self.files.insert((kind, entry.first), entry) {
            self.bytes = self.bytes.saturating_sub(replaced.bytes);
        }
    }

    /// Forgets a file; false if it was not known (any more).
    pub fn remove(&mut self, kind: Kind, entry: &Entry) -> bool {
        if !self.has(kind, entry) {
            return false;
        }
        self.files.remove(&(kind, entry.first));
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        true
    }

    /// Whether a file is known.
    pub fn has(&self, kind: Kind, entry: &Entry) -> bool {
        self.files.get(&(kind, entry.first)) == Some(entry)
    }

    /// One in place of several.
    pub fn replace(&mut self, kind: Kind, several: &[Entry], one: Entry) {
        for entry in several {
            self.remove(kind, entry);
        }
        self.insert(kind, one);
    }

    /// Those of a kind, in the order in which they were appended.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.files.range((kind, Sequence(0))..=(kind, Sequence(u64::MAX))).map(|(_, entry)| entry)
    }

    /// Those of a kind that reach into a time.
    pub fn reaching_into(&self, kind: Kind, from: Moment, to: Moment) -> Vec<Entry> {
        self.of(kind).filter(|entry| entry.reaches_into(from, to)).copied().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// The same with all that counts.
    pub fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.other_bytes)
    }

    /// The first that was appended of those that are there.
    pub fn oldest(&self) -> Option<(Kind, Entry)> {
        let oldest = self.files.iter().min_by_key(|(_, entry)| entry.first);
        oldest.map(|((kind, _), entry)| (*kind, *entry))
    }

    /// Those that ended before a moment.
    pub fn ended_before(&self, moment: Moment) -> Vec<(Kind, Entry)> {
        let ended = self.files.iter().filter(|(_, entry)| entry.to < moment);
        ended.map(|((kind, _), entry)| (*kind, *entry)).collect()
    }

    /// Files of a kind that are to become one of the next level, as many as may at once: those of an hour or a day to which no more can come. One alone only rises to
    /// the next level. With each, fewer are left to do.
    pub fn to_merge(&self, kind: Kind, now: Moment) -> Option<Vec<Entry>> {
        let files: Vec<Entry> = self.of(kind).copied().collect();
        Level::ALL
            .into_iter()
            .filter(|level| level.next().is_some())
            .find_map(|level| over(&files, level, now))
    }
}

/// The first files of a level, in a row and of one period, of which the period is over.
fn over(files: &[Entry], level: Level, now: Moment) -> Option<Vec<Entry>> {
    let period = |entry: &Entry| level.period(entry.from);
    let are_together = |one: &Entry, other: &Entry| {
        (one.level, other.level) == (level, level) && period(one) == period(other)
    };
    let mut end = 0;
    for row in files.chunk_by(are_together) {
        end += row.len();
        let Some(first) = row.first().filter(|first| first.level == level) else { continue };
        let can_grow = match files.get(end) {
            None => level.period(now) == period(first),
            // What is below may yet rise to this level.
            Some(next) => next.level < level && period(next) == period(first),
        };
        if !can_grow {
            return Some(as_many_as_may(row));
        }
    }
    None
}

fn as_many_as_may(row: &[Entry]) -> Vec<Entry> {
    let mut bytes = 0_u64;
    let fits = |(place, entry): &(usize, &Entry)| {
        bytes = bytes.saturating_add(entry.bytes);
        *place == 0 || (*place < MOST_MERGED_FILES && bytes <= MOST_MERGED_BYTES)
    };
    row.iter().enumerate().take_while(fits).map(|(_, entry)| *entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind::Allocations;
    const MINUTE: u64 = 60_000_000_000;

    fn minute(number: u64, begins: u64) -> Entry {
        let (from, to) = (Moment(begins * MINUTE), Moment((begins + 1) * MINUTE));
        Entry { level: Level::Minute, from, to, first: Sequence(number), last: Sequence(number), bytes: 10 }
    }

    /// Merges until nothing is left to do; levels, numbers and minutes of what there is then.
    fn settle(minutes: &[u64], now: u64) -> Vec<(Level, u64, u64)> {
        let mut index = Index::default();
        for (number, begins) in (0..).zip(minutes) {
            index.insert(KIND, minute(number, *begins));
        }
        settle_index(&mut index, now)
    }

    fn settle_index(index: &mut Index, now: u64) -> Vec<(Level, u64, u64)> {
        let now = Moment(now * MINUTE);
        for _ in 0..1000 {
            let Some(row) = index.to_merge(KIND, now) else { break };
            let (first, last) = (row.first().unwrap(), row.last().unwrap());
            let level = first.level.next().unwrap();
            let merged = Entry { level, to: last.to, last: last.last, bytes: 15, ..*first };
            index.replace(KIND, &row, merged);
        }
        assert_eq!(index.to_merge(KIND, now), None);
        assert_eq!(index.all_bytes(), index.of(KIND).map(|entry| entry.bytes).sum::<u64>());
        index.of(KIND).map(|entry| (entry.level, entry.first.0, entry.last.0)).collect()
    }

    #[test]
    fn an_hour_is_over_when_a_minute_of_another_has_come_or_its_time_has() {
        use Level::{Day, Hour, Minute};
        assert_eq!(settle(&[0, 1, 59], 59), vec![(Minute, 0, 0), (Minute, 1, 1), (Minute, 2, 2)]);
        assert_eq!(settle(&[0, 1, 59], 60), vec![(Hour, 0, 2)]);
        assert_eq!(settle(&[0, 1, 59, 60], 60), vec![(Hour, 0, 2), (Minute, 3, 3)]);
        assert_eq!(settle(&[0, 60, 120, 1440], 1440), vec![(Day, 0, 2), (Minute, 3, 3)]);
        assert_eq!(settle(&[0, 60, 120, 1440], 2880), vec![(Day, 0, 2), (Day, 3, 3)]);
        assert_eq!(settle(&[0], 0), vec![(Minute, 0, 0)]);
        assert_eq!(settle(&[], 0), vec![]);
    }

    #[test]
    fn a_clock_that_is_set_back_puts_nothing_into_an_hour_that_was() {
        use Level::{Hour, Minute};
        // Two minutes, one an hour later by mistake, and the same two minutes again.
        let files = settle(&[0, 1, 60, 0, 1], 1);
        assert_eq!(files, vec![(Hour, 0, 1), (Hour, 2, 2), (Minute, 3, 3), (Minute, 4, 4)]);
    }

    #[test]
    fn what_is_before_a_merged_file_of_its_hour_is_over() {
        use Level::Hour;
        let mut index = Index::default();
        // As after a merge that failed.
        index.insert(KIND, minute(0, 0));
        index.insert(KIND, Entry { level: Hour, last: Sequence(2), ..minute(1, 1) });
        assert_eq!(settle_index(&mut index, 2), vec![(Hour, 0, 0), (Hour, 1, 2)]);
    }

    #[test]
    fn no_more_are_merged_at_once_than_may() {
        let mut index = Index::default();
        for number in 0..1000 {
            index.insert(KIND, Entry { from: Moment(number), to: Moment(number), ..minute(number, 0) });
        }
        assert_eq!(index.to_merge(KIND, Moment(0)), None);
        let row = index.to_merge(KIND, Moment(60 * MINUTE)).unwrap();
        assert_eq!(row.len(), MOST_MERGED_FILES);
        assert_eq!(settle_index(&mut index, 60).len(), 2);
        let mut index = Index::default();
        for number in 0..5 {
            index.insert(KIND, Entry { bytes: 100 << 20, ..minute(number, number) });
        }
        index.insert(KIND, Entry { bytes: 1 << 40, ..minute(5, 5) });
        let rows = |index: &Index| index.to_merge(KIND, Moment(60 * MINUTE)).map(|row| row.len());
        assert_eq!(rows(&index), Some(2));
        assert_eq!(settle_index(&mut index, 60).len(), 4, "2, 2, 1, and the large one rises alone");
    }

    #[test]
    fn kinds_are_apart_but_for_their_age() {
        let mut index = Index::default();
        index.insert(Kind::Resident, minute(1, 0));
        index.insert(KIND, minute(2, 60));
        assert_eq!(index.to_merge(KIND, Moment(60 * MINUTE)), None);
        assert_eq!(index.oldest(), Some((Kind::Resident, minute(1, 0))));
        assert_eq!(index.ended_before(Moment(61 * MINUTE)), vec![(Kind::Resident, minute(1, 0))]);
        assert!(!index.remove(KIND, &minute(1, 0)) && index.remove(Kind::Resident, &minute(1, 0)));
        assert_eq!((index.len(), index.all_bytes()), (1, 10));
    }
}
