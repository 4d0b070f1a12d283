//! What a process allocates, by stack, estimated from windows: bytes, blocks, and what outlives a window's tail.
//!
//! Stretches that were seen in full are added as they are. Of the rest, `total = progress * sum(w y) / sum(w p)`: `y` is what
//! a window saw of the stack, `p` what progress it saw, `w` its weight (`progress.rs`), and `progress` all that the process
//! made in that time. Scaling by counted progress keeps the sum right whatever windows do to the pace of the target. Windows
//! are the units that vary, so the variance is that of `w y - ratio * w p` over windows, whether or not they saw the stack.
//! Of each stack only sums are kept. It must not know kernels or outputs.

use std::hash::Hash;

use rustc_hash::FxHashMap;

use super::interval::{Estimate, FEWEST_EFFECTIVE_WINDOWS, Interval, gamma, small_sample};
use super::pace::Correction;

/// What was seen of one stack in one window or stretch; points that stand for others are weighted already.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Taken {
    /// Bytes allocated.
    pub bytes: f64,
    /// Blocks allocated.
    pub count: f64,
    /// Bytes of those that were alive at the end of the tail.
    pub retained_bytes: f64,
    /// Blocks of those.
    pub retained_count: f64,
}

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// See [`Taken::bytes`].
    Bytes,
    /// See [`Taken::count`].
    Count,
    /// See [`Taken::retained_bytes`].
    RetainedBytes,
    /// See [`Taken::retained_count`].
    RetainedCount,
}

/// A window as one process saw it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// See `progress::Span::weight`.
    pub weight: f64,
    /// Progress of the process in it, in any unit that all calls share.
    pub progress: f64,
    /// Whether it had its whole tail: otherwise it says nothing of what is retained.
    pub tail: bool,
}

/// Sums over windows; `y` is weighted.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    exact: f64,
    y: f64,
    y_squared: f64,
    y_progress: f64,
    largest: f64,
}

/// Sums over windows that all stacks share.
#[derive(Debug, Clone, Copy, Default)]
struct Base {
    windows: f64,
    /// Weighted progress.
    progress: f64,
    progress_squared: f64,
    /// Progress that was seen, without weights.
    seen: f64,
}

/// The estimates of one stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flow {
    /// Allocated bytes.
    pub bytes: Estimate,
    /// Allocated blocks.
    pub count: Estimate,
    /// Bytes that outlived the tail.
    pub retained_bytes: Estimate,
    /// Blocks that outlived the tail.
    pub retained_count: Estimate,
    /// Whether more than half of the bytes come from one window of six or more: they come in bursts, or did so once.
    pub burst: bool,
}

/// All stacks of one process. `K` names a stack.
#[derive(Debug, Clone)]
pub struct Flows<K> {
    stacks: FxHashMap<K, [Sums; 4]>,
    total: [Sums; 4],
    all: Base,
    tails: Base,
    /// Progress outside stretches that were seen in full.
    sampled: f64,
    exact: f64,
    lost: u64,
    /// See [`Flows::correct`].
    correction: Correction,
}

impl<K> Default for Flows<K> {
    fn default() -> Self {
        Self {
            stacks: FxHashMap::default(),
            total: Default::default(),
            all: Base::default(),
            tails: Base::default(),
            sampled: 0.0,
            exact: 0.0,
            lost: 0,
            correction: Correction::NONE,
        }
    }
}

impl<K: Copy + Eq + Hash> Flows<K> {
    /// The process made progress outside stretches seen in full; that in windows is part of it. To be called for all of it.
    pub fn pass(&mut self, progress: f64) {
        self.sampled = (self.sampled + progress).max(0.0);
    }

    /// A stretch that was seen in full.
    pub fn full(&mut self, progress: f64, stacks: impl IntoIterator<Item = (K, Taken)>) {
        self.exact += progress.max(0.0);
        for (stack, taken) in stacks {
            let sums = self.stacks.entry(stack).or_default();
            for (sums, total, value) in both(sums, &mut self.total, taken) {
                sums.exact += value;
                total.exact += value;
            }
        }
    }

    /// A window that was seen in full; no stack may come twice.
    pub fn window(&mut self, view: View, stacks: impl IntoIterator<Item = (K, Taken)>) {
        let View { weight, progress, tail } = view;
        let mut sum = Taken::default();
        for (stack, mut taken) in stacks {
            if !tail {
                (taken.retained_bytes, taken.retained_count) = (0.0, 0.0);
            }
            sum = sum.plus(taken);
            let sums = self.stacks.entry(stack).or_default();
            add(sums, taken, weight, progress);
        }
        add(&mut self.total, sum, weight, progress);
        self.all.add(weight, progress);
        if tail {
            self.tails.add(weight, progress);
        }
    }

    /// Puts all windows until now aside, where those that come see the same work better; what was seen in full stays.
    pub fn begin_anew(&mut self) -> Self {
        let mut aside = self.clone();
        aside.exact = 0.0;
        aside.sampled = 0.0;
        for sums in aside.stacks.values_mut().chain([&mut aside.total]).flatten() {
            sums.exact = 0.0;
        }
        for sums in self.stacks.values_mut().chain([&mut self.total]).flatten() {
            *sums = Sums { exact: sums.exact, ..Sums::default() };
        }
        self.stacks.retain(|_, sums| sums.iter().any(|sums| sums.exact > 0.0));
        (self.all, self.tails) = (Base::default(), Base::default());
        aside
    }

    /// Takes windows back that were put aside.
    pub fn take_back(&mut self, aside: &Self) {
        for (stack, theirs) in &aside.stacks {
            let ours = self.stacks.entry(*stack).or_default();
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| ours.add(theirs));
        }
        self.total.iter_mut().zip(&aside.total).for_each(|(ours, theirs)| ours.add(theirs));
        self.all.add_all(&aside.all);
        self.tails.add_all(&aside.tails);
    }

    /// A window that lost events: blocks whose frees were lost would look as if they lived, so nothing of it counts.
    pub fn lost_window(&mut self) {
        self.lost += 1;
    }

    /// Windows that were given up.
    #[must_use]
    pub fn lost_windows(&self) -> u64 {
        self.lost
    }

    /// What windows say is to be multiplied by this: they saw more or less of the work than was believed (`pace.rs`).
    pub fn correct(&mut self, correction: Correction) {
        self.correction = correction;
    }

    /// Progress that was seen, in full or in windows.
    #[must_use]
    pub fn seen(&self) -> f64 {
        self.exact + self.all.seen / self.correction.factor.max(1e-9)
    }

    /// Windows that were booked.
    #[must_use]
    pub fn windows(&self) -> f64 {
        self.all.windows
    }

    /// Share of the progress that was seen: 1.0 is everything.
    #[must_use]
    pub fn seen_fraction(&self) -> f64 {
        let all = self.exact + self.sampled;
        if all > 0.0 { ((self.exact + self.all.seen) / all).min(1.0) } else { 0.0 }
    }

    /// All that the process made, in the unit of the calls.
    #[must_use]
    pub fn progress(&self) -> f64 {
        self.exact + self.sampled
    }

    /// What survivors' weights must be multiplied by so that windows together stand for all progress; 1.0 while not known.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.all.scale(self.sampled) * self.correction.factor
    }

    /// How many times what windows saw of progress there was outside of what was seen in full: what blocks of windows stand for, without weights. 1.0 while not known.
    #[must_use]
    pub fn plain_scale(&self) -> f64 {
        let seen = self.all.seen / self.correction.factor.max(1e-9);
        if seen > 0.0 { (self.sampled / seen).max(1.0) } else { 1.0 }
    }

    /// Stacks of which anything was seen.
    pub fn stacks(&self) -> impl Iterator<Item = K> + '_ {
        self.stacks.keys().copied()
    }

    /// The estimates of one stack; `None` if no window saw it.
    #[must_use]
    pub fn stack(&self, stack: K) -> Option<Flow> {
        self.stacks.get(&stack).map(|sums| self.flow(sums))
    }

    /// The estimates of all stacks together.
    #[must_use]
    pub fn total(&self) -> Flow {
        self.flow(&self.total)
    }

    fn flow(&self, sums: &[Sums; 4]) -> Flow {
        let estimate = |measure: Measure| {
            let base = match measure {
                Measure::Bytes | Measure::Count => &self.all,
                Measure::RetainedBytes | Measure::RetainedCount => &self.tails,
            };
            base.estimate(&sums[measure as usize], self.sampled, self.correction)
        };
        let bytes = &sums[Measure::Bytes as usize];
        Flow {
            bytes: estimate(Measure::Bytes),
            count: estimate(Measure::Count),
            retained_bytes: estimate(Measure::RetainedBytes),
            retained_count: estimate(Measure::RetainedCount),
            burst: self.all.windows >= 6.0 && bytes.largest > (bytes.y + bytes.exact) / 2.0,
        }
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        let Self { exact, y, y_squared, y_progress, largest } = other;
        self.exact += exact;
        self.y += y;
        self.y_squared += y_squared;
        self.y_progress += y_progress;
        self.largest = self.largest.max(*largest);
    }
}

impl Base {
    fn add_all(&mut self, other: &Self) {
        let Self { windows, progress, progress_squared, seen } = other;
        self.windows += windows;
        self.progress += progress;
        self.progress_squared += progress_squared;
        self.seen += seen;
    }

    fn add(&mut self, weight: f64, progress: f64) {
        let weighted = weight * progress;
        self.windows += 1.0;
        self.progress += weighted;
        self.progress_squared += weighted * weighted;
        self.seen += progress;
    }

    fn scale(&self, sampled: f64) -> f64 {
        if self.progress > 0.0 { sampled / self.progress } else { 1.0 }
    }

    fn estimate(&self, sums: &Sums, sampled: f64, correction: Correction) -> Estimate {
        let Sums { exact, y, y_squared, y_progress, largest } = *sums;
        if y <= 0.0 {
            return self.unseen(exact, sampled);
        }
        let effective = y * y / y_squared;
        let scale = self.scale(sampled) * correction.factor;
        let value = exact + y * scale;
        if effective < FEWEST_EFFECTIVE_WINDOWS || self.progress <= 0.0 {
            return Estimate::TooFewWindows { value, effective };
        }
        let ratio = y / self.progress;
        let squares = y_squared - 2.0 * ratio * y_progress + ratio * ratio * self.progress_squared;
        // Rounding may leave less than nothing of a stack that is in proportion to progress.
        let residual = (squares / y_squared).clamp(1e-6, 4.0);
        let unseen = (1.0 - self.seen / sampled).clamp(0.0, 1.0);
        let sample = self.windows / (self.windows - 1.0).max(1.0) * small_sample(self.windows).powi(2);
        let of_correction = (y * scale * correction.error).powi(2);
        let variance = scale * scale * y_squared * residual * unseen * sample + of_correction;
        // One more window adds as much more than its share as the windows vary.
        let jump = scale * largest * (residual.min(1.0) * unseen).sqrt();
        let interval = gamma(y * scale, variance, jump);
        Estimate::Known {
            value,
            interval: Interval { low: exact + interval.low, high: exact + interval.high },
        }
    }

    /// Nothing in any window: exact if there were none to be had, else "less than three windows' worth".
    fn unseen(&self, exact: f64, sampled: f64) -> Estimate {
        if sampled <= 0.0 {
            return Estimate::Known { value: exact, interval: Interval::exact(exact) };
        }
        Estimate::TooFewWindows { value: exact, effective: 0.0 }
    }
}

impl Taken {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            count: self.count + other.count,
            retained_bytes: self.retained_bytes + other.retained_bytes,
            retained_count: self.retained_count + other.retained_count,
        }
    }

    fn values(self) -> [f64; 4] {
        [self.bytes, self.count, self.retained_bytes, self.retained_count]
    }
}

fn add(sums: &mut [Sums; 4], taken: Taken, weight: f64, progress: f64) {
    for (sums, value) in sums.iter_mut().zip(taken.values()) {
        let weighted = weight * value;
        sums.y += weighted;
        sums.y_squared += weighted * weighted;
        sums.y_progress += weighted * weight * progress;
        sums.largest = sums.largest.max(weighted);
    }
}

fn both<'a>(
    sums: &'a mut [Sums; 4],
    total: &'a mut [Sums; 4],
    taken: Taken,
) -> impl Iterator<Item = (&'a mut Sums, &'a mut Sums, f64)> {
    sums.iter_mut().zip(total).zip(taken.values()).map(|((sums, total), value)| (sums, total, value))
}

#[cfg(test)]
mod tests;
