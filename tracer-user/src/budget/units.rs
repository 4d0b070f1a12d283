//! Sums over what varies as a whole: windows, or blocks that came in alone.
//!
//! It must not know what is summed.

use super::interval::{Estimate, FEWEST_EFFECTIVE_WINDOWS, Interval, gamma};

/// Sums over units.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Units {
    /// What is sure.
    fixed: f64,
    /// What is left to chance.
    total: f64,
    squares: f64,
    largest: f64,
}

impl Units {
    /// A unit of which `varies` is left to chance: 0.0 for one that is sure to be in the sample.
    pub(super) fn add(&mut self, value: f64, varies: f64) {
        if varies > 0.0 {
            self.total += value;
        } else {
            self.fixed += value;
        }
        self.squares += value * value * varies;
        self.largest = self.largest.max(value * varies.sqrt());
    }

    /// What is left to chance.
    pub(super) fn total(&self) -> f64 {
        self.total
    }

    /// Units that it comes from, effectively.
    pub(super) fn effective(&self) -> f64 {
        if self.squares > 0.0 { self.total * self.total / self.squares } else { 0.0 }
    }

    /// The sum with its interval.
    pub(super) fn estimate(&self) -> Estimate {
        let (value, effective) = (self.fixed + self.total, self.effective());
        if self.squares <= 0.0 {
            return Estimate::Known { value, interval: Interval::exact(value) };
        }
        if effective < FEWEST_EFFECTIVE_WINDOWS {
            return Estimate::TooFewWindows { value, effective };
        }
        let Interval { low, high } = gamma(self.total, self.squares, self.largest);
        Estimate::Known { value, interval: Interval { low: self.fixed + low, high: self.fixed + high } }
    }
}
