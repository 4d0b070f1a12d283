//! Figures of a process over time, in bounded room, and what has become of them.
//!
//! Full, every second look goes, and from then on only half as many are kept: the whole time stays covered, more coarsely.
//! The first and the latest are always there. It must not know how often anybody looks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::figures::Figures;

/// One look at a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Since the recording of the process began; in what is of a stretch of a recording, since that began.
    pub since_nanoseconds: u64,
    /// What was found.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Looks at a process, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Series {
    looks: Vec<Look>,
}

/// By how much the three figures have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Over this time.
    pub nanoseconds: u64,
    /// Requested by the program.
    pub requested: i128,
    /// Held free by allocators.
    pub held: i128,
    /// Resident anonymous memory.
    pub resident: i128,
}

/// What a change means, where it is clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The program asks for more and keeps it: a leak, or use.
    Use,
    /// Allocators hold more, and the program does not ask for more.
    Kept,
    /// Resident memory grows, and neither of the others does.
    Elsewhere,
}

/// A change below this is none, whatever it is a share of.
const LEAST_CHANGE: u64 = 1 << 20;
/// A change below this share of what was resident is none.
const LEAST_SHARE: u64 = 20;

impl Series {
    /// Looks that a series may have.
    pub const MOST: usize = 600;

    /// Adds one; there are never more than `most` (at least 2).
    pub fn push(&mut self, look: Look, most: usize) {
        self.thin(most.max(2) - 1);
        self.looks.push(look);
    }

    /// Leaves no more than `most`, by halves; the first and the last stay as long as two may.
    pub fn thin(&mut self, most: usize) {
        while self.looks.len() > most.max(1) {
            let last = self.looks.len() - 1;
            let mut place = 0..;
            self.looks
                .retain(|_| place.next().is_some_and(|place| place % 2 == 0 || place == last && most > 1));
        }
    }

    /// Looks that an earlier state of this series had not, counted from the beginning of the `nanoseconds` that have passed since: the
    /// last that it had was then. If it had none, the latest was at the end.
    #[must_use]
    pub fn since(&self, earlier: &Self, nanoseconds: u64) -> Self {
        let last = |series: &Self| series.looks.last().map(|look| look.since_nanoseconds);
        let (known, latest) = (last(earlier), last(self).unwrap_or(0));
        let (add, take) = known.map_or((nanoseconds, latest), |known| (0, known));
        let is_new = |look: &&Look| known.is_none_or(|known| look.since_nanoseconds > known);
        let moved = |look: &Look| Look {
            since_nanoseconds: look.since_nanoseconds.saturating_add(add).saturating_sub(take),
            figures: look.figures.clone(),
        };
        Self { looks: self.looks.iter().filter(is_new).map(moved).collect() }
    }

    /// Adds the looks of a later stretch of time that began this long after the first; there are then at most `most`.
    pub fn append(&mut self, later: Self, began_after_nanoseconds: u64, most: usize) {
        // A clock that was set back must not put them before the others.
        let floor = self.looks.last().map_or(0, |look| look.since_nanoseconds);
        self.looks.extend(later.looks.into_iter().map(|look| Look {
            since_nanoseconds: look.since_nanoseconds.saturating_add(began_after_nanoseconds).max(floor),
            ..look
        }));
        self.thin(most);
    }

    /// All of them.
    #[must_use]
    pub fn looks(&self) -> &[Look] {
        &self.looks
    }

    /// Whether nobody has looked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.looks.is_empty()
    }

    /// The latest at which everything was known, else the latest at which anything was.
    #[must_use]
    pub fn latest(&self) -> Option<&Look> {
        let known = |look: &&Look| look.figures.resident_bytes().is_some();
        self.complete().next_back().or_else(|| self.looks.iter().rfind(known)).or_else(|| self.looks.last())
    }

    fn complete(&self) -> impl DoubleEndedIterator<Item = &Look> {
        self.looks.iter().filter(|look| look.figures.is_complete())
    }

    /// What the program had requested at the latest look, or what was resident where the one is not known.
    #[must_use]
    pub fn requested_at_most(&self) -> Option<u64> {
        let figures = &self.latest()?.figures;
        figures.requested_bytes().or_else(|| figures.resident_bytes())
    }

    /// What has changed from the first look at which everything was known to the latest; `None` if that is one.
    #[must_use]
    pub fn change(&self) -> Option<Change> {
        let (first, last) = (self.complete().next()?, self.complete().next_back()?);
        let nanoseconds =
            last.since_nanoseconds.checked_sub(first.since_nanoseconds).filter(|time| *time > 0)?;
        let between = |of: fn(&Figures) -> Option<u64>| {
            Some(i128::from(of(&last.figures)?) - i128::from(of(&first.figures)?))
        };
        Some(Change {
            nanoseconds,
            requested: between(Figures::requested_bytes)?,
            held: between(Figures::held_bytes)?,
            resident: between(Figures::resident_bytes)?,
        })
    }

    /// What that means, where it is clear.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        let before = self.complete().next()?.figures.resident_bytes()?;
        self.change()?.verdict(before)
    }
}

impl Change {
    /// `resident_before`: what was resident at its beginning; small shares of that are noise.
    #[must_use]
    pub fn verdict(self, resident_before: u64) -> Option<Verdict> {
        let noise = i128::from(LEAST_CHANGE.max(resident_before / LEAST_SHARE));
        let Self { requested, held, resident, .. } = self;
        if requested >= noise && requested >= 2 * held {
            Some(Verdict::Use)
        } else if held >= noise && requested < noise {
            Some(Verdict::Kept)
        } else if resident >= noise && requested < noise / 2 && held < noise / 2 {
            Some(Verdict::Elsewhere)
        } else {
            None
        }
    }
}

impl Look {
    /// A look after this time.
    #[must_use]
    pub fn after(since: Duration, figures: Figures) -> Self {
        Self { since_nanoseconds: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), figures }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::figures::{Known, MallocBytes, PoolBytes, ResidentBytes};

    const MIB: u64 = 1 << 20;

    fn look(second: u64, requested: u64, held: u64, resident: u64) -> Look {
        let pools = PoolBytes { in_use_bytes: requested, ..PoolBytes::default() };
        let malloc = MallocBytes { free_bytes: held, ..MallocBytes::default() };
        let resident = ResidentBytes { anonymous_bytes: resident, ..ResidentBytes::default() };
        let figures = Figures {
            pools: Known::Known(pools),
            malloc: Known::Known(malloc),
            resident: Known::Known(resident),
        };
        Look::after(Duration::from_secs(second), figures)
    }

    fn verdict(from: [u64; 3], to: [u64; 3]) -> Option<Verdict> {
        let mut series = Series::default();
        for (second, [requested, held, resident]) in [(0, from), (9, to)] {
            series.push(look(second, requested * MIB, held * MIB, resident * MIB), Series::MOST);
        }
        series.verdict()
    }

    #[test]
    fn verdicts_are_for_clear_cases() {
        assert_eq!(verdict([10, 1, 20], [60, 2, 71]), Some(Verdict::Use));
        assert_eq!(verdict([60, 2, 70], [15, 40, 68]), Some(Verdict::Kept));
        assert_eq!(verdict([10, 1, 20], [10, 1, 90]), Some(Verdict::Elsewhere));
        assert_eq!(verdict([10, 1, 20], [40, 31, 81]), None, "both");
        assert_eq!(verdict([100, 1, 120], [103, 2, 124]), None, "noise");
        assert_eq!(verdict([100, 30, 150], [20, 4, 40]), None, "it shrinks");
    }

    #[test]
    fn what_is_not_known_is_not_compared() {
        let mut series = Series::default();
        series.push(look(0, 1, 1, 1), 10);
        series.push(Look::after(Duration::from_secs(5), Figures::unknown("it had ended")), 10);
        assert_eq!((series.change(), series.verdict()), (None, None));
        assert_eq!(series.latest().map(|look| look.since_nanoseconds), Some(0));
    }

    #[test]
    fn what_is_taken_apart_is_put_together() {
        let until = |last: u64| {
            let mut series = Series::default();
            (0..=last).for_each(|second| series.push(look(second, second, 0, 0), Series::MOST));
            series
        };
        let (minute, second) = (60_000_000_000, 1_000_000_000);
        let (first, both) = (until(59), until(118));
        let later = both.since(&first, minute);
        let times: Vec<u64> = later.looks().iter().map(|look| look.since_nanoseconds / second).collect();
        assert_eq!(times, (1..=59).collect::<Vec<_>>(), "the last look of the first minute began the second");
        let mut joined = first.clone();
        joined.append(later, 59 * second, Series::MOST);
        assert_eq!(joined, both);
        let whole = until(30).since(&Series::default(), minute);
        let ends = (whole.looks().first().unwrap(), whole.looks().last().unwrap());
        assert_eq!((ends.0.since_nanoseconds, ends.1.since_nanoseconds), (minute - 30 * second, minute));
    }

    #[test]
    fn a_clock_that_was_set_back_leaves_the_order() {
        let mut series = Series::default();
        series.push(look(90, 1, 0, 0), 9);
        let mut later = Series::default();
        later.push(look(1, 2, 0, 0), 9);
        series.append(later, 0, 9);
        assert!(series.looks().is_sorted_by_key(|look| look.since_nanoseconds));
        assert_eq!(series.looks().len(), 2);
    }

    proptest! {
        #[test]
        fn the_room_is_kept_and_so_are_the_ends(count in 1_u64..3000, most in 2_usize..700) {
            let mut series = Series::default();
            for second in 0..count {
                series.push(look(second, second, 0, 0), most);
                prop_assert!(series.looks().len() <= most);
            }
            let times: Vec<u64> = series.looks().iter().map(|look| look.since_nanoseconds).collect();
            prop_assert!(times.is_sorted());
            prop_assert_eq!(times.first(), Some(&0));
            prop_assert_eq!(times.last(), Some(&((count - 1) * 1_000_000_000)));
            prop_assert!(times.len() >= (count as usize).min(most / 2));
        }
    }
}
