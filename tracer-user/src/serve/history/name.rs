//! What a file of the history is called, and what that says: a level, a stretch of time, and which appended files are in it.
//!
//! Every stretch that is appended gets the next number, and a merged file has those of all that are in it. So whether a file is contained in another, and which of
//! two is later, does not depend on clocks, which may be set back. Times are for people, and for finding what reaches into a time. It must not know folders' contents.

use std::time::{Duration, SystemTime};

use super::Span;

/// The ending of whole files.
pub const ENDING: &str = ".pb.gz";
/// What is added to the name of one that is no profile.
pub const BROKEN: &str = ".broken";

/// How long a time a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// As it was appended.
    Minute,
    /// Stretches that began in one hour.
    Hour,
    /// Hours that began on one day (UTC).
    Day,
}

/// Nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

/// Number of an appended stretch, in the order in which they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// A file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its folder.
    pub level: Level,
    /// Its beginning.
    pub from: Moment,
    /// Its end; not before its beginning.
    pub to: Moment,
    /// The first that is in it.
    pub first: Sequence,
    /// The last that is in it.
    pub last: Sequence,
    /// How large it is.
    pub bytes: u64,
}

/// Larger numbers are nobody's: the next must exist.
const MOST_SEQUENCE: u64 = 1 << 62;
/// Of a time in a name, such as `2026-11-30T16-47-00.000000000Z`.
const TIME_LENGTH: usize = 30;
/// Where RFC 3339 has colons, which some file systems and tools do not take in names.
const COLONS: [usize; 2] = [13, 16];

impl Level {
    /// All, the shortest first.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// The folder of its files.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// What its files are merged to; `None`: they stay.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::Minute => Some(Self::Hour),
            Self::Hour => Some(Self::Day),
            Self::Day => None,
        }
    }

    /// Which hour (of minutes) or day (of hours) a moment is in: files with the same are merged.
    pub const fn period(self, moment: Moment) -> u64 {
        const HOUR: u64 = 3600 * 1_000_000_000;
        match self {
            Self::Minute => moment.0 / HOUR,
            Self::Hour | Self::Day => moment.0 / (24 * HOUR),
        }
    }
}

impl Moment {
    /// What it is as a time of the system.
    pub fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.0)
    }

    fn text(self) -> String {
        humantime::format_rfc3339_nanos(self.time()).to_string().replace(':', "-")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bytes = text.as_bytes().to_vec();
        if bytes.len() != TIME_LENGTH {
            return None;
        }
        COLONS.iter().for_each(|place| bytes[*place] = b':');
        let text = String::from_utf8(bytes).ok()?;
        humantime::parse_rfc3339(&text).ok().map(Self::from)
    }
}

/// What is before 1970 or after 2554 is at the nearer of these.
impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Entry {
    /// The name of its file.
    pub fn name(&self) -> String {
        let Self { from, to, first, last, .. } = self;
        format!("{}_{}_{:08}-{:08}{ENDING}", from.text(), to.text(), first.0, last.0)
    }

    /// What a file of this name is; `None` if it is none of ours.
    pub fn parse(level: Level, name: &str, bytes: u64) -> Option<Self> {
        let mut parts = name.strip_suffix(ENDING)?.splitn(3, '_');
        let (from, to) = (Moment::parse(parts.next()?)?, Moment::parse(parts.next()?)?);
        let (first, last) = parts.next()?.split_once('-')?;
        let number = |text: &str| text.parse().ok().filter(|number| *number <= MOST_SEQUENCE).map(Sequence);
        let entry = Self { level, from, to, first: number(first)?, last: number(last)?, bytes };
        // The name leads back to the file, so there must be one way to write it.
        let is_sound = entry.from <= entry.to && entry.first <= entry.last && entry.name() == name;
        is_sound.then_some(entry)
    }

    /// When it was.
    pub fn span(&self) -> Span {
        Span { from: self.from.time(), to: self.to.time() }
    }

    /// Whether it reaches into a time; one without a length does if it is in it or at its ends.
    pub fn reaches_into(&self, from: Moment, to: Moment) -> bool {
        let (begins, ends) = (self.from.max(from), self.to.min(to));
        begins < ends || (begins == ends && (self.from == self.to || from == to))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(from: u64, to: u64, first: u64, last: u64) -> Entry {
        let (from, to, first, last) = (Moment(from), Moment(to), Sequence(first), Sequence(last));
        Entry { level: Level::Hour, from, to, first, last, bytes: 7 }
    }

    #[test]
    fn names_are_for_people() {
        // From `date -u -d @1796057220`.
        let minute = entry(1_796_057_220_000_000_000, 1_796_057_280_500_000_000, 12, 12);
        assert_eq!(
            minute.name(),
            "2026-11-30T16-47-00.000000000Z_2026-11-30T16-48-00.500000000Z_00000012-00000012.pb.gz"
        );
    }

    #[test]
    fn times_that_no_name_has_are_at_the_ends() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(9);
        assert_eq!(Moment::from(before), Moment(0));
        let after = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(Moment::from(after), Moment(u64::MAX));
        assert_eq!(
            Entry::parse(Level::Hour, &entry(0, u64::MAX, 0, 0).name(), 7),
            Some(entry(0, u64::MAX, 0, 0))
        );
    }

    #[test]
    fn a_touch_is_no_overlap_but_for_a_moment() {
        let reaches = |from, to| entry(100, 200, 1, 1).reaches_into(Moment(from), Moment(to));
        assert!(reaches(0, 101) && reaches(199, 300) && reaches(120, 130) && reaches(0, 900));
        assert!(!reaches(0, 100) && !reaches(200, 300) && !reaches(0, 50));
        assert!(reaches(100, 100) && reaches(200, 200) && reaches(150, 150) && !reaches(201, 201));
        let moment = entry(100, 100, 1, 1);
        assert!(moment.reaches_into(Moment(100), Moment(200)) && moment.reaches_into(Moment(0), Moment(100)));
        assert!(!moment.reaches_into(Moment(101), Moment(200)));
    }

    proptest! {
        #[test]
        fn a_name_says_what_its_file_is(
            from: u64, length: u64, first in 0..MOST_SEQUENCE, more in 0..1_u64 << 40, level in 0..3_usize
        ) {
            let level = Level::ALL[level];
            let last = (first + more).min(MOST_SEQUENCE);
            let entry = Entry { level, ..entry(from, from.saturating_add(length), first, last) };
            prop_assert_eq!(Entry::parse(level, &entry.name(), 7), Some(entry));
        }

        #[test]
        fn other_names_are_nobody_s(name in ".{0,90}", cut in 0..200_usize, put in "[-_TZ.:a-z\u{e9}]{0,2}") {
            prop_assert_eq!(Entry::parse(Level::Day, &name, 1), None);
            let mut name = entry(1, 2, 3, 4).name();
            let whole = name.clone();
            name.insert_str(cut % name.len(), &put);
            prop_assert_eq!(Entry::parse(Level::Day, &name, 1).is_some(), name == whole);
        }
    }
}
