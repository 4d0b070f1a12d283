//! What windows say of the whole, once all are over.
//!
//! It must not know how windows are made.

use rustc_hash::FxHashMap;

use super::meter::TrapClock;
use super::sampled::SampledStack;
use super::windowed::Windowed;
use crate::budget::interval::{Estimate, FEWEST_EFFECTIVE_WINDOWS};
use crate::budget::leaks;
use crate::profile::{Amount, Estimated, Growth, Live, LiveBy, MILLION, Values, WindowSummary};

/// What is known of accounts.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What each has.
    pub values: FxHashMap<u32, Values>,
    /// What windows say beside that, of those of which they say anything.
    pub estimated: FxHashMap<u32, Estimated>,
    /// Slots of processes whose peak no look has seen: what the kernel half says of malloc's blocks is it, with the pools of the look that has seen most.
    pub missed: Vec<u16>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Estimates {
    /// What accounts have; `None`: everything was seen, and counted exactly.
    pub known: Option<Known>,
    /// Share of the processes' own work that was seen.
    pub seen_fraction: f64,
    /// What it cost, in percent of the CPU time that the processes used for themselves; `None`: they used none.
    pub cost_percent: Option<f64>,
    /// What reports say of windows.
    pub summary: WindowSummary,
}

impl Estimates {
    /// Everything was seen.
    pub fn whole(cost_percent: Option<f64>) -> Self {
        Self { seen_fraction: 1.0, cost_percent, ..Self::default() }
    }
}

/// Survivors that stand for so many times what all processes have requested are no living blocks (facts: window sampling, section 6).
const TOO_MANY: f64 = 1.3;

impl Estimates {
    /// Takes back what is said of live memory where survivors stand for more than the processes hold: blocks that were freed unseen and handed out again look as if they lived.
    pub fn doubt(&mut self, requested_bytes: u64) {
        let summary = &mut self.summary;
        let Some(known) = self.known.as_mut().filter(|_| summary.live() == Live::By(LiveBy::Survivors))
        else {
            return;
        };
        let lives = known.values.values().fold(0_u64, |sum, values| sum.saturating_add(values.live.bytes));
        if lives as f64 <= requested_bytes as f64 * TOO_MANY {
            return;
        }
        known.values.values_mut().for_each(|values| values.live = Amount::default());
        // All of it is of the same blocks: retained flow too is then several times too much.
        for estimated in known.estimated.values_mut() {
            *estimated =
                Estimated { allocated_bytes_error: estimated.allocated_bytes_error, ..Estimated::default() };
        }
        summary.knows_live = false;
        summary.tails = 0;
        let [lives, requested] = [lives, requested_bytes].map(|bytes| bytes >> 20);
        summary.live_unknown = Some(format!(
            "what lives is not known: blocks that outlive their window stand for {lives} MiB, and {requested} MiB are requested; what was freed unseen and is used again looks alive"
        ));
    }
}

/// Sums over processes.
#[derive(Debug, Clone)]
pub struct Sums {
    known: Known,
    squares: f64,
    is_known: bool,
    seen: f64,
    all: f64,
    slowdown: Option<f64>,
}

impl Default for Sums {
    fn default() -> Self {
        Self { known: Known::default(), squares: 0.0, is_known: true, seen: 0.0, all: 0.0, slowdown: None }
    }
}

impl Sums {
    /// Adds what is known of one process, for good. `kept`: what of it lives and lived at its peak, if that is known.
    pub fn add(
        &mut self,
        one: &mut Windowed,
        clock: &TrapClock,
        kept: impl Iterator<Item = (u32, Amount, Amount)>,
    ) {
        one.correct(clock);
        tracing::debug!(pace = ?one.pace(), slowdown = ?one.slowdown(), "what windows say of a process");
        // Nobody knows how far these are off: an interval of sampling alone would promise too much.
        let has_errors = !one.has_unknown_pace() && !one.has_unseen_work();
        for (account, flow) in one.flows() {
            let (bytes, count) = (whole(flow.bytes.value()), whole(flow.count.value()));
            self.known.values.entry(account).or_default().allocated = Amount { bytes, count };
            self.known.estimated.entry(account).or_default().allocated_bytes_error =
                error(flow.bytes).filter(|_| has_errors);
        }
        for (account, live, peak) in kept {
            let values = self.known.values.entry(account).or_default();
            (values.live, values.peak) = (values.live.plus(live), values.peak.plus(peak));
        }
        for (total, windows) in one.totals() {
            match total {
                Estimate::Known { interval, .. } => self.squares += interval.half_width().powi(2),
                // A process that does nothing: no window saw anything.
                Estimate::TooFewWindows { value, .. } => {
                    self.is_known &= value <= 0.0 && windows >= FEWEST_EFFECTIVE_WINDOWS;
                }
            }
        }
        let (own, watched) = one.progress();
        (self.all, self.seen) = (self.all + own, self.seen + watched);
        self.is_known &= !one.has_unknown_pace();
        self.slowdown = self.slowdown.into_iter().chain(one.slowdown()).reduce(f64::max);
    }

    /// Adds what windows with a tail say of a stack, for good.
    pub fn sampled(&mut self, stack: &SampledStack) {
        self.known.sampled(stack);
    }

    /// What is known of accounts, which is then forgotten.
    pub fn take_known(&mut self) -> Known {
        std::mem::take(&mut self.known)
    }

    /// No look has seen the peak of this process.
    pub fn missed(&mut self, slot: u16) {
        self.known.missed.push(slot);
    }

    /// All together. `summary`: what is known of the windows themselves.
    pub fn finish(self, summary: WindowSummary) -> Estimates {
        let is_known = self.is_known && summary.full > 0;
        Estimates {
            known: Some(self.known),
            seen_fraction: if self.all > 0.0 { (self.seen / self.all).min(1.0) } else { 0.0 },
            cost_percent: None,
            summary: WindowSummary {
                allocated_bytes_error: is_known.then(|| whole(self.squares.sqrt())),
                slowdown: self.slowdown,
                ..summary
            },
        }
    }
}

impl Known {
    /// Takes what windows with a tail say of a stack in place of what was known of its live memory.
    pub fn sampled(&mut self, stack: &SampledStack) {
        let live = Amount { bytes: whole(stack.live_bytes.value()), count: whole(stack.live_count.value()) };
        self.values.entry(stack.account).or_default().live = live;
        self.estimated.entry(stack.account).or_default().add_sampled(stack);
    }
}

impl Estimated {
    /// Adds what windows with a tail say of its stack.
    pub fn add_sampled(&mut self, stack: &SampledStack) {
        *self = Self {
            allocated_bytes_error: self.allocated_bytes_error,
            live_bytes_error: error(stack.live_bytes),
            retained_bytes_per_second: Some(whole(stack.retained_bytes_per_second.value())),
            retained_error: error(stack.retained_bytes_per_second),
            age_milliseconds: Some(whole(stack.age_seconds * 1e3)),
            growth: stack.growth.and_then(growth),
        };
    }
}

/// Half the width of its interval; `None`: too few windows to say.
fn error(estimate: Estimate) -> Option<u64> {
    estimate.interval().map(|interval| half_width(interval.half_width()))
}

/// Rounded up: an interval must not become smaller by that.
fn half_width(value: f64) -> u64 {
    whole(value.ceil())
}

/// In whole bytes and millionths, what is sure rounded down. `None`: too little was seen for a number.
fn growth(growth: leaks::Growth<u32>) -> Option<Growth> {
    let leaks::Growth { bytes_per_second, at_least, likelihood, .. } = growth;
    let is_known = bytes_per_second.is_finite() && at_least.is_finite() && likelihood.is_finite();
    let millionths = (likelihood.clamp(0.0, 1.0) * f64::from(MILLION)).floor();
    is_known.then(|| Growth {
        bytes_per_second: bytes_per_second.round() as i64,
        at_least: at_least.floor() as i64,
        likelihood_ppm: u32::try_from(whole(millionths)).unwrap_or(MILLION),
    })
}

/// The nearest whole number.
#[expect(clippy::cast_sign_loss, reason = "not negative, and the cast saturates")]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::interval::Interval;

    fn known(value: f64, low: f64, high: f64) -> Estimate {
        Estimate::Known { value, interval: Interval { low, high } }
    }

    fn stack(growth: Option<leaks::Growth<u32>>) -> SampledStack {
        SampledStack {
            account: 7,
            live_bytes: known(1000.4, 800.0, 1301.0),
            live_count: known(10.0, 8.0, 13.0),
            age_seconds: 12.3456,
            retained_bytes_per_second: Estimate::TooFewWindows { value: 55.0, effective: 2.0 },
            growth,
        }
    }

    fn grows(at_least: f64, likelihood: f64) -> leaks::Growth<u32> {
        leaks::Growth { stack: 7, bytes_per_second: 20.5, at_least, likelihood }
    }

    #[test]
    fn what_windows_with_a_tail_say_is_beside_what_was_known() {
        let mut sums = Sums::default();
        let before = Estimated { allocated_bytes_error: Some(3), ..Estimated::default() };
        sums.known.estimated.insert(7, before);
        sums.known.values.entry(7).or_default().allocated = Amount { bytes: 5000, count: 50 };
        sums.sampled(&stack(Some(grows(-3.2, 0.999_999_9))));
        let known = sums.take_known();
        let values = known.values[&7];
        assert_eq!((values.live, values.allocated.bytes), (Amount { bytes: 1000, count: 10 }, 5000));
        let expected = Estimated {
            allocated_bytes_error: Some(3),
            live_bytes_error: Some(251),
            retained_bytes_per_second: Some(55),
            retained_error: None,
            age_milliseconds: Some(12_346),
            growth: Some(Growth { bytes_per_second: 21, at_least: -4, likelihood_ppm: 999_999 }),
        };
        assert_eq!(known.estimated[&7], expected);
    }

    #[test]
    fn survivors_that_stand_for_more_than_is_requested_are_taken_back() {
        let estimates = || {
            let mut known = Known::default();
            known.sampled(&stack(Some(grows(10.0, 0.999))));
            let summary = WindowSummary {
                knows_live: true,
                live_by: LiveBy::Survivors,
                tails: 9,
                ..WindowSummary::default()
            };
            Estimates { known: Some(known), summary, ..Estimates::default() }
        };
        let mut right = estimates();
        right.doubt(900);
        assert!(right.summary.knows_live && right.known.unwrap().estimated[&7].growth.is_some());
        let mut wrong = estimates();
        wrong.doubt(700);
        assert!(!wrong.summary.knows_live && wrong.summary.tails == 0);
        let known = wrong.known.unwrap();
        assert_eq!(known.estimated[&7], Estimated::default());
        assert_eq!(known.values[&7].live, Amount::default());
        assert!(wrong.summary.live_unknown.unwrap().contains("looks alive"));
    }

    #[test]
    fn growth_that_is_no_number_is_not_known() {
        let mut known = Known::default();
        known.sampled(&stack(Some(grows(f64::NEG_INFINITY, 0.5))));
        assert_eq!(known.estimated[&7].growth, None);
    }
}
