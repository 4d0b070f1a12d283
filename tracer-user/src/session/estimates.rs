//! What windows say of the whole, once all are over.
//!
//! It must not know how windows are made.

use rustc_hash::FxHashMap;

use super::meter::TrapClock;
use super::windowed::Windowed;
use crate::budget::interval::{Estimate, FEWEST_EFFECTIVE_WINDOWS};
use crate::profile::{Amount, Values, WindowSummary};

/// What is known of accounts.
#[derive(Debug, Default)]
pub struct Known {
    /// What each has.
    pub values: FxHashMap<u32, Values>,
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

/// Sums over processes.
#[derive(Debug)]
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
        for (account, flow) in one.flows() {
            let (bytes, count) = (whole(flow.bytes.value()), whole(flow.count.value()));
            self.known.values.entry(account).or_default().allocated = Amount { bytes, count };
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

/// The nearest whole number.
#[expect(clippy::cast_sign_loss, reason = "not negative, and the cast saturates")]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}
