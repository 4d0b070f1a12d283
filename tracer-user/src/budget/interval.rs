//! 95 % intervals for sums over windows, and how sure a trend is.
//!
//! Windows are few and their sums are skewed (a burst is in one or in none), so the normal distribution is wrong for them:
//! Fay and Feuer's gamma interval (Statistics in Medicine 16, 1997) is for weighted sums of few counts. It must not know what
//! is summed.

use statrs::distribution::{ChiSquared, ContinuousCDF as _, StudentsT};

/// Fewest effective windows of which anything is claimed: below, intervals held the truth in 24 to 67 of 100 cases (nominal 95).
pub const FEWEST_EFFECTIVE_WINDOWS: f64 = 3.0;
/// Degrees of freedom from which a chi-square or t quantile is the normal one to three digits.
const MANY: f64 = 1e6;
/// The normal quantile at 0.975.
const NORMAL: f64 = 1.959_963_985;

/// Where the truth lies in 95 of 100 recordings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end, never negative.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// A value without error.
    #[must_use]
    pub fn exact(value: f64) -> Self {
        Self { low: value, high: value }
    }

    /// Half its width: `bytes_error` of reports.
    #[must_use]
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Both ends multiplied by a factor that is known.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self { low: self.low * factor, high: self.high * factor }
    }

    /// Whether a value lies in it.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// An estimate, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimate {
    /// A value with its interval.
    Known {
        /// The unbiased value.
        value: f64,
        /// See [`Interval`].
        interval: Interval,
    },
    /// Too few windows saw it; the value is unbiased, but how far off it may be is not known.
    TooFewWindows {
        /// The value: to be added up with others, not to be shown for itself.
        value: f64,
        /// Effective windows, below [`FEWEST_EFFECTIVE_WINDOWS`].
        effective: f64,
    },
}

impl Estimate {
    /// The value, whatever is known of its error: for sums over many.
    #[must_use]
    pub fn value(self) -> f64 {
        match self {
            Self::Known { value, .. } | Self::TooFewWindows { value, .. } => value,
        }
    }

    /// The interval, where there is one.
    #[must_use]
    pub fn interval(self) -> Option<Interval> {
        match self {
            Self::Known { interval, .. } => Some(interval),
            Self::TooFewWindows { .. } => None,
        }
    }

    /// The same in another unit, or corrected by a factor that is known.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        match self {
            Self::Known { value, interval } => {
                Self::Known { value: value * factor, interval: interval.scaled(factor) }
            }
            Self::TooFewWindows { value, effective } => {
                Self::TooFewWindows { value: value * factor, effective }
            }
        }
    }
}

/// Fay and Feuer's interval of a sum `total` with variance `variance`, of which one more window could add `largest`.
#[must_use]
pub fn gamma(total: f64, variance: f64, largest: f64) -> Interval {
    // An empty or negative variance says that nothing was left to chance.
    if total.is_nan() || variance.is_nan() || variance <= 0.0 || total < 0.0 {
        return Interval::exact(total.max(0.0));
    }
    let low = if total > 0.0 {
        variance / (2.0 * total) * chi_square(0.025, 2.0 * total * total / variance)
    } else {
        0.0
    };
    let (total, variance) = (total + largest, variance + largest * largest);
    let high = if total > 0.0 {
        variance / (2.0 * total) * chi_square(0.975, 2.0 * total * total / variance)
    } else {
        0.0
    };
    Interval { low, high: high.max(low) }
}

/// How much wider an interval gets because its variance was itself estimated from `windows` windows: Student's t over normal.
#[must_use]
pub fn small_sample(windows: f64) -> f64 {
    let freedom = windows - 1.0;
    if freedom >= MANY {
        return 1.0;
    }
    match StudentsT::new(0.0, 1.0, freedom.max(1.0)) {
        Ok(distribution) => distribution.inverse_cdf(0.975) / NORMAL,
        // Unreachable: one degree of freedom and a scale of 1 are valid.
        Err(_) => 1.0,
    }
}

/// Quantile of Student's t, one side, 99 %: what a mean must lie above zero, in standard errors, to be surely above it.
#[must_use]
pub fn surely_t(freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom.clamp(1.0, MANY)).map_or(f64::INFINITY, |t| t.inverse_cdf(0.99))
}

/// Probability that a mean `t` standard errors above zero is not there by chance: 0.5 for none, towards 1.0 for sure.
#[must_use]
pub fn likelihood(t: f64, freedom: f64) -> f64 {
    if t.is_nan() {
        return 0.5;
    }
    StudentsT::new(0.0, 1.0, freedom.clamp(1.0, MANY)).map_or(0.5, |distribution| distribution.cdf(t))
}

/// Quantile of chi-square. Above [`MANY`] degrees of freedom by Wilson and Hilferty, which is exact there to seven digits.
fn chi_square(probability: f64, freedom: f64) -> f64 {
    if freedom >= MANY {
        let spread = 2.0 / (9.0 * freedom);
        let normal = if probability < 0.5 { -NORMAL } else { NORMAL };
        return freedom * (1.0 - spread + normal * spread.sqrt()).powi(3);
    }
    // Below a thousandth the lower quantile is 0 to any precision that matters, and the search for it slow.
    ChiSquared::new(freedom.max(1e-3))
        .map_or(f64::INFINITY, |distribution| distribution.inverse_cdf(probability))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-3 * expected.abs().max(1e-3), "{found} is not {expected}");
    }

    #[test]
    fn chi_square_is_as_published() {
        // NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4.
        for (probability, freedom, expected) in [
            (0.975, 1.0, 5.024),
            (0.975, 2.0, 7.378),
            (0.975, 10.0, 20.483),
            (0.975, 100.0, 129.561),
            (0.025, 2.0, 0.0506),
            (0.025, 5.0, 0.831),
            (0.025, 10.0, 3.247),
            (0.025, 100.0, 74.222),
        ] {
            close(chi_square(probability, freedom), expected);
        }
        close(chi_square(0.975, 1.1e6), chi_square(0.975, 0.9e6) * 11.0 / 9.0);
    }

    #[test]
    fn counts_have_the_exact_poisson_interval() {
        // Garwood's interval of a count (Biometrika 28, 1936), which Fay and Feuer's is for weights of 1.
        for (count, low, high) in
            [(0.0, 0.0, 3.689), (1.0, 0.0253, 5.572), (5.0, 1.623, 11.668), (20.0, 12.217, 30.888)]
        {
            let found = gamma(count, count.max(f64::MIN_POSITIVE), 1.0);
            close(found.low, low);
            close(found.high, high);
        }
    }

    #[test]
    fn t_is_as_published() {
        close(small_sample(6.0) * NORMAL, 2.571);
        close(small_sample(31.0) * NORMAL, 2.042);
        close(surely_t(7.0), 2.998);
        close(likelihood(1.895, 7.0), 0.95);
        close(likelihood(0.0, 3.0), 0.5);
        close(likelihood(f64::NAN, 3.0), 0.5);
    }

    #[test]
    fn a_known_factor_scales_value_and_interval_alike() {
        let known = Estimate::Known { value: 10.0, interval: Interval { low: 8.0, high: 14.0 } }.scaled(0.5);
        assert_eq!(known, Estimate::Known { value: 5.0, interval: Interval { low: 4.0, high: 7.0 } });
        assert!((known.interval().unwrap().half_width() - 1.5).abs() < 1e-12);
        let few = Estimate::TooFewWindows { value: 10.0, effective: 2.0 }.scaled(2.0);
        assert_eq!((few.value(), few.interval()), (20.0, None));
    }

    proptest! {
        #[test]
        fn every_interval_holds_its_value(
            total in 0.0..1e15_f64, spread in 0.0..3.0_f64, largest in 0.0..1.0_f64,
        ) {
            let found = gamma(total, (spread * total).powi(2), largest * total);
            prop_assert!(found.low >= 0.0 && found.low <= total * (1.0 + 1e-6), "{found:?}");
            prop_assert!(found.high.is_finite() && found.high >= found.low, "{found:?}");
        }
    }
}
