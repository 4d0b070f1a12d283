//! How a pprof sample holds what windows say of it: numeric labels with units, which other tools show or ignore.
//!
//! Each stands for itself, so that a label that is missing (an older file, another tool that dropped it) or has a value that
//! cannot be true leaves its figure unknown, and no more. A unit keeps `go tool pprof` from dropping a zero. It must not know
//! strings' places in a file.

use super::{Estimated, estimated::Growth, estimated::MILLION};

/// Of every sample of which windows say anything: the others may all be unknown.
const IS_ESTIMATED: &str = "estimated";
const ALLOCATED_ERROR: &str = "allocated_bytes_error";
const LIVE_ERROR: &str = "live_bytes_error";
const RETAINED: &str = "retained_bytes_per_second";
const RETAINED_ERROR: &str = "retained_error";
const AGE: &str = "live_age";
const GROWTH: &str = "growth_bytes_per_second";
const GROWTH_AT_LEAST: &str = "growth_at_least";
const GROWTH_LIKELIHOOD: &str = "growth_likelihood";

/// Largest number of either sign that is believed: sums of a million such still fit 128 bits, and of a few 64.
const MOST: u64 = 1 << 55;

/// Key, number and unit of every label of a sample.
pub(super) fn of(estimated: &Estimated) -> impl Iterator<Item = (&'static str, i64, &'static str)> + use<> {
    let Estimated {
        allocated_bytes_error,
        live_bytes_error,
        retained_bytes_per_second,
        retained_error,
        age_milliseconds,
        growth,
    } = *estimated;
    let signed = |value: Option<u64>| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    [
        (IS_ESTIMATED, Some(1), "count"),
        (ALLOCATED_ERROR, signed(allocated_bytes_error), "bytes"),
        (LIVE_ERROR, signed(live_bytes_error), "bytes"),
        (RETAINED, signed(retained_bytes_per_second), "bytes"),
        (RETAINED_ERROR, signed(retained_error), "bytes"),
        (AGE, signed(age_milliseconds), "milliseconds"),
        (GROWTH, growth.map(|growth| growth.bytes_per_second), "bytes"),
        (GROWTH_AT_LEAST, growth.map(|growth| growth.at_least), "bytes"),
        (GROWTH_LIKELIHOOD, growth.map(|growth| i64::from(growth.likelihood_ppm)), "millionths"),
    ]
    .into_iter()
    .filter_map(|(key, number, unit)| Some((key, number?, unit)))
}

/// The labels of one sample, as they are read.
#[derive(Debug, Default)]
pub(super) struct Found {
    is_estimated: bool,
    estimated: Estimated,
    growth: Option<i64>,
    at_least: Option<i64>,
    likelihood: Option<u32>,
}

impl Found {
    /// Takes a label, if it is one of these.
    pub fn take(&mut self, key: &str, number: i64) {
        let whole = || u64::try_from(number).ok().filter(|number| *number <= MOST);
        let signed = || Some(number).filter(|number| number.unsigned_abs() <= MOST);
        match key {
            IS_ESTIMATED => self.is_estimated = true,
            ALLOCATED_ERROR => self.estimated.allocated_bytes_error = whole(),
            LIVE_ERROR => self.estimated.live_bytes_error = whole(),
            RETAINED => self.estimated.retained_bytes_per_second = whole(),
            RETAINED_ERROR => self.estimated.retained_error = whole(),
            AGE => self.estimated.age_milliseconds = whole(),
            GROWTH => self.growth = signed(),
            GROWTH_AT_LEAST => self.at_least = signed(),
            GROWTH_LIKELIHOOD => {
                self.likelihood = u32::try_from(number).ok().filter(|ppm| *ppm <= MILLION);
            }
            _ => {}
        }
    }

    /// What they say together; `None` where they say nothing.
    pub fn estimated(self) -> Option<Box<Estimated>> {
        let growth = match (self.growth, self.at_least, self.likelihood) {
            (Some(bytes_per_second), Some(at_least), Some(likelihood_ppm)) => {
                Some(Growth { bytes_per_second, at_least, likelihood_ppm })
            }
            _ => None,
        };
        self.is_estimated.then(|| Box::new(Estimated { growth, ..self.estimated }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: impl IntoIterator<Item = (&'static str, i64)>) -> Option<Box<Estimated>> {
        let mut found = Found::default();
        labels.into_iter().for_each(|(key, number)| found.take(key, number));
        found.estimated()
    }

    #[test]
    fn what_cannot_be_true_is_not_known() {
        let labels = [
            (IS_ESTIMATED, 1),
            (ALLOCATED_ERROR, -1),
            (LIVE_ERROR, i64::MAX),
            (RETAINED, 5),
            (AGE, i64::MIN),
            (GROWTH, 5),
            (GROWTH_AT_LEAST, -5),
            (GROWTH_LIKELIHOOD, 1_000_001),
            ("pid", 7),
        ];
        let expected = Estimated { retained_bytes_per_second: Some(5), ..Estimated::default() };
        assert_eq!(read(labels), Some(Box::new(expected)));
        assert_eq!(read([(GROWTH, i64::MIN), (RETAINED, 5)]), None, "an older file says nothing of it");
    }

    #[test]
    fn what_is_written_is_read() {
        let growth = Growth { bytes_per_second: -3, at_least: -9, likelihood_ppm: MILLION };
        let all = Estimated {
            retained_bytes_per_second: Some(0),
            retained_error: Some(MOST),
            age_milliseconds: Some(1),
            growth: Some(growth),
            ..Estimated::counted()
        };
        for estimated in [all, Estimated::default()] {
            assert_eq!(read(of(&estimated).map(|(key, number, _)| (key, number))), Some(Box::new(estimated)));
        }
    }
}
