//! Survivors against the census: what the pools of a size class really hold is the alarm and the correction.
//!
//! The census knows exactly how many blocks of a class live, the survivors estimate it. Far more survivors than blocks means
//! that freed blocks are taken for live ones; far fewer, that a burst fell between windows. Then nothing of that class can be
//! relied on. Close to one the ratio is chance, and takes noise away. 0.7 and 1.3 are proposed by the simulation that this
//! follows; where few windows decide, chance alone goes further, and that is no alarm. It must not know stacks.

use super::interval::FEWEST_EFFECTIVE_WINDOWS;

/// Standard deviations that chance is given.
const CHANCE: f64 = 1.96;
/// Survivors over census within which the ratio corrects.
const RELIABLE: std::ops::RangeInclusive<f64> = 0.7..=1.3;

/// The survivors of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ClassSurvivors {
    /// Blocks that they stand for.
    pub blocks: f64,
    /// Windows that they come from, effectively.
    pub effective: f64,
}

/// What the census says of a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// To be multiplied by this. The interval's relative width stays as it was: it is what was measured.
    Correct(f64),
    /// No census, or too few windows to tell chance from fault: to be shown as it is.
    Unknown,
    /// Survivors stand for this many times the blocks that live: dead blocks are taken for live ones.
    TooMany(f64),
    /// Survivors stand for this part of the blocks that live: what lives came when nobody looked.
    TooFew(f64),
}

impl Verdict {
    /// What to multiply estimates of the class by.
    #[must_use]
    pub fn factor(self) -> f64 {
        match self {
            Self::Correct(factor) => factor,
            Self::Unknown | Self::TooMany(_) | Self::TooFew(_) => 1.0,
        }
    }

    /// Whether the report must say that figures of the class cannot be relied on.
    #[must_use]
    pub fn is_alarm(self) -> bool {
        matches!(self, Self::TooMany(_) | Self::TooFew(_))
    }
}

/// Compares the survivors of a class, scaled as they are shown, with its live blocks in the census (`None`: not read).
#[must_use]
pub fn judge(survivors: ClassSurvivors, census: Option<u64>) -> Verdict {
    let Some(census) = census.map(|blocks| blocks as f64).filter(|blocks| *blocks > 0.0) else {
        return Verdict::Unknown;
    };
    let ratio = survivors.blocks / census;
    // A class with few survivors may be anything.
    if ratio.is_nan() || survivors.effective < FEWEST_EFFECTIVE_WINDOWS {
        return Verdict::Unknown;
    }
    if RELIABLE.contains(&ratio) {
        return Verdict::Correct(1.0 / ratio);
    }
    // Windows are what varies; against the ratio if it is above one, so that many survivors of one window are no alarm.
    let deviation = ratio.max(1.0) / survivors.effective.sqrt();
    if (ratio - 1.0).abs() <= CHANCE * deviation {
        return Verdict::Unknown;
    }
    if ratio > 1.0 { Verdict::TooMany(ratio) } else { Verdict::TooFew(ratio) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_census_corrects_warns_or_says_nothing() {
        let survivors = |blocks| ClassSurvivors { blocks, effective: 100.0 };
        assert_eq!(judge(survivors(800.0), Some(1000)), Verdict::Correct(1.25));
        assert_eq!(judge(survivors(1500.0), Some(1000)), Verdict::TooMany(1.5));
        assert_eq!(judge(survivors(500.0), Some(1000)), Verdict::TooFew(0.5));
        assert_eq!(judge(ClassSurvivors { blocks: 1500.0, effective: 20.0 }, Some(1000)), Verdict::Unknown);
        assert_eq!(judge(ClassSurvivors { blocks: 500.0, effective: 10.0 }, Some(1000)), Verdict::Unknown);
        assert_eq!(judge(survivors(500.0), None), Verdict::Unknown);
        assert_eq!(judge(survivors(500.0), Some(0)), Verdict::Unknown);
        assert_eq!(judge(ClassSurvivors { blocks: 500.0, effective: 2.0 }, Some(1000)), Verdict::Unknown);
        assert_eq!(judge(survivors(f64::NAN), Some(1000)), Verdict::Unknown);
        assert!(Verdict::TooFew(0.5).is_alarm() && !Verdict::Unknown.is_alarm());
        assert!((Verdict::TooMany(2.0).factor() - 1.0).abs() < 1e-12);
    }
}
