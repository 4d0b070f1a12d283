//! What windows say of one stack beside its values: how far these may be off, what of it is retained, and whether it grows.
//!
//! Whole numbers in units small enough for people, so that a file holds exactly what was known. What is not known is `None`,
//! never a zero. It must not know how anything was estimated, nor how a file holds it (`labels.rs`).

use super::{Metric, Values};

/// Parts of a million: the unit of [`Growth::likelihood_ppm`].
pub const MILLION: u32 = 1_000_000;
/// Of bytes whose error nobody knows, a sum may hold less than one part in this many, or its own is not known either.
const FEW: u64 = 10;
/// What such bytes count for, in themselves: a value of too few windows is often a third of the truth, rarely less.
const UNKNOWN_ERROR: u64 = 3;

/// Of one sample of a recording in budget mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimated {
    /// Half the width of the 95 % interval of allocated bytes; `None`: too few windows to say.
    pub allocated_bytes_error: Option<u64>,
    /// The same of live bytes.
    pub live_bytes_error: Option<u64>,
    /// Bytes a second that outlive about one second; `None`: no window had a tail to see that in.
    pub retained_bytes_per_second: Option<u64>,
    /// Half the width of its 95 % interval; `None`: too few windows to say.
    pub retained_error: Option<u64>,
    /// Mean age of the bytes that live; `None`: nothing is known of what lives.
    pub age_milliseconds: Option<u64>,
    /// How what lives grows; `None`: too short a time, or too few new blocks, to say.
    pub growth: Option<Growth>,
}

/// How the live memory of a stack grows, in the later half of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Bytes a second; below zero where it shrinks.
    pub bytes_per_second: i64,
    /// In 99 of 100 recordings it is at least this; below zero where it may be none.
    pub at_least: i64,
    /// Probability that it grows at all and this is not chance, in millionths: 500,000 is no reason to think so.
    pub likelihood_ppm: u32,
}

/// Half widths added up. Windows are the same for all stacks, so their errors go together: squares would promise too much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorSum {
    error: u64,
    bytes: u64,
    unknown_bytes: u64,
}

/// One of two that become one.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Its values.
    pub values: &'a Values,
    /// What windows say of it.
    pub estimated: Option<&'a Estimated>,
}

impl Estimated {
    /// Of what was counted and not estimated, beside others that were.
    #[must_use]
    pub fn counted() -> Self {
        Self { allocated_bytes_error: Some(0), live_bytes_error: Some(0), ..Self::default() }
    }

    /// Half the width of the 95 % interval of a metric's bytes; `None`: not known.
    #[must_use]
    pub fn error(&self, metric: Metric) -> Option<u64> {
        match metric {
            Metric::Allocated => self.allocated_bytes_error,
            Metric::Live => self.live_bytes_error,
            Metric::Retained => self.retained_error,
            Metric::Peak | Metric::Temporary => None,
        }
    }

    /// Of two samples that turned out to be of one stack.
    #[must_use]
    pub fn join(one: Part<'_>, other: Part<'_>) -> Option<Box<Self>> {
        if one.estimated.is_none() && other.estimated.is_none() {
            return None;
        }
        let parts = [one, other];
        let [left, right] = parts.map(|part| part.estimated.copied().unwrap_or_default());
        let retained = sum(left.retained_bytes_per_second, right.retained_bytes_per_second);
        Some(Box::new(Self {
            allocated_bytes_error: error(parts, Metric::Allocated),
            live_bytes_error: error(parts, Metric::Live),
            retained_bytes_per_second: retained,
            retained_error: error(parts, Metric::Retained),
            age_milliseconds: mean_age(parts.map(|part| (part.estimated, part.values.live.bytes))),
            growth: Growth::sum([left.growth, right.growth].into_iter().flatten()),
        }))
    }
}

/// Ages by the bytes that have them; `None` where no part has one.
pub fn mean_age<'a>(parts: impl IntoIterator<Item = (Option<&'a Estimated>, u64)>) -> Option<u64> {
    let (mut aged, mut bytes, mut oldest) = (0_u128, 0_u128, None);
    for (estimated, live_bytes) in parts {
        let Some(age) = estimated.and_then(|estimated| estimated.age_milliseconds) else { continue };
        oldest = oldest.max(Some(age));
        // Two numbers of 64 bits: the product fits, and the sum saturates.
        aged = aged.saturating_add(u128::from(age) * u128::from(live_bytes));
        bytes = bytes.saturating_add(u128::from(live_bytes));
    }
    let mean = aged.checked_div(bytes).and_then(|mean| u64::try_from(mean).ok());
    mean.or(oldest)
}

/// Of two samples; not known where neither is.
fn error(parts: [Part<'_>; 2], metric: Metric) -> Option<u64> {
    let mut sum = ErrorSum::default();
    let mut is_known = false;
    for part in parts {
        let error = part.estimated.and_then(|estimated| estimated.error(metric));
        is_known |= error.is_some();
        sum.add(error, bytes(part.values, part.estimated, metric));
    }
    is_known.then(|| sum.half_width()).flatten()
}

/// The bytes of a metric, retained flow among them.
pub(super) fn bytes(values: &Values, estimated: Option<&Estimated>, metric: Metric) -> u64 {
    match metric.of(values) {
        Some(amount) => amount.bytes,
        None => estimated.and_then(|estimated| estimated.retained_bytes_per_second).unwrap_or(0),
    }
}

/// Half widths of what is independent, added up: the root of their squares, rounded up, for an interval must not become smaller by that.
pub(super) fn root_of_squares(errors: impl IntoIterator<Item = u64>) -> u64 {
    let mut squares = Squares::default();
    errors.into_iter().for_each(|error| squares.add(error));
    squares.root()
}

/// Squares of half widths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Squares(u128);

impl Squares {
    /// Adds one.
    pub fn add(&mut self, error: u64) {
        self.0 = self.0.saturating_add(u128::from(error) * u128::from(error));
    }

    /// See [`root_of_squares`].
    pub fn root(self) -> u64 {
        let root = self.0.isqrt();
        u64::try_from(root + u128::from(root * root < self.0)).unwrap_or(u64::MAX)
    }
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).reduce(u64::saturating_add)
}

impl Growth {
    /// Together they grow by the sum, surely by the sum of what is sure; the likelihood is that of the surest, since whether
    /// others go with it is not known. `None` of none.
    #[must_use]
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut surest: Option<Self> = None;
        let (mut bytes_per_second, mut at_least) = (0_i64, 0_i64);
        for growth in all {
            bytes_per_second = bytes_per_second.saturating_add(growth.bytes_per_second);
            at_least = at_least.saturating_add(growth.at_least);
            let rank = |growth: Self| (growth.at_least, growth.likelihood_ppm);
            surest = surest.filter(|surest| rank(*surest) >= rank(growth)).or(Some(growth));
        }
        let likelihood_ppm = surest?.likelihood_ppm;
        Some(Self { bytes_per_second, at_least, likelihood_ppm })
    }

    /// The likelihood as a share: 0.0 to 1.0.
    #[must_use]
    pub fn likelihood(self) -> f64 {
        f64::from(self.likelihood_ppm) / f64::from(MILLION)
    }
}

impl ErrorSum {
    /// Adds `bytes` that may be off by `error`; `None`: nobody knows by how much.
    pub fn add(&mut self, error: Option<u64>, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        match error {
            Some(error) => self.error = self.error.saturating_add(error),
            None => self.unknown_bytes = self.unknown_bytes.saturating_add(bytes),
        }
    }

    /// Half the width of the interval of all; `None` where too much of it is not known.
    #[must_use]
    pub fn half_width(self) -> Option<u64> {
        let is_little = self.unknown_bytes == 0 || self.unknown_bytes.saturating_mul(FEW) < self.bytes;
        is_little.then(|| self.error.saturating_add(self.unknown_bytes.saturating_mul(UNKNOWN_ERROR)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Amount;

    fn values(bytes: u64) -> Values {
        let amount = Amount { bytes, count: 1 };
        Values { allocated: amount, live: amount, ..Values::default() }
    }

    fn growth(bytes_per_second: i64, at_least: i64, likelihood_ppm: u32) -> Growth {
        Growth { bytes_per_second, at_least, likelihood_ppm }
    }

    #[test]
    fn errors_add_up_and_a_little_that_is_not_known_counts_three_times() {
        let mut sum = ErrorSum::default();
        assert_eq!(sum.half_width(), Some(0));
        sum.add(Some(10), 500);
        sum.add(Some(20), 450);
        assert_eq!(sum.half_width(), Some(30));
        sum.add(None, 50);
        assert_eq!(sum.half_width(), Some(180));
        sum.add(None, 60);
        assert_eq!(sum.half_width(), None, "110 of 1,060");
        sum.add(None, u64::MAX);
        sum.add(Some(u64::MAX), u64::MAX);
        assert_eq!(sum.half_width(), None);
    }

    #[test]
    fn independent_errors_add_up_by_their_squares() {
        assert_eq!(root_of_squares([3, 4]), 5);
        assert_eq!((root_of_squares([]), root_of_squares([7])), (0, 7));
        assert_eq!(root_of_squares([1, 1]), 2, "rounded up");
        assert_eq!(root_of_squares([u64::MAX, u64::MAX]), u64::MAX);
    }

    #[test]
    fn two_that_are_one_keep_what_is_known() {
        let estimated = Estimated {
            allocated_bytes_error: Some(10),
            retained_bytes_per_second: Some(7),
            age_milliseconds: Some(1000),
            growth: Some(growth(100, -5, 900_000)),
            ..Estimated::default()
        };
        let older = Estimated { age_milliseconds: Some(4000), growth: None, ..estimated };
        let (one, other) = (values(200), values(100));
        let part = |values, estimated| Part { values, estimated };
        let both = Estimated::join(part(&one, Some(&estimated)), part(&other, Some(&older))).unwrap();
        let expected = Estimated {
            allocated_bytes_error: Some(20),
            retained_bytes_per_second: Some(14),
            age_milliseconds: Some(2000),
            ..estimated
        };
        assert_eq!(*both, expected);
        let half = Estimated::join(part(&one, Some(&estimated)), part(&other, None)).unwrap();
        assert_eq!((half.allocated_bytes_error, half.age_milliseconds), (None, Some(1000)));
        assert_eq!(Estimated::join(part(&one, None), part(&other, None)), None);
    }

    #[test]
    fn growth_is_as_likely_as_that_of_the_surest() {
        let sum = Growth::sum([growth(100, 60, 999_000), growth(10, -30, 700_000), growth(9, 2, 991_000)]);
        assert_eq!(sum, Some(growth(119, 32, 999_000)));
        assert_eq!(Growth::sum([]), None);
        let extreme = [growth(i64::MIN, i64::MIN, 0), growth(i64::MIN, i64::MIN, 1)];
        assert_eq!(Growth::sum(extreme), Some(growth(i64::MIN, i64::MIN, 1)));
    }
}
