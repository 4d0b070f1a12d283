//! How a stretch of time was recorded: as the difference of two moments, or as the sum of consecutive stretches.
//!
//! It must not know samples.

use crate::profile::{Cost, Coverage, Recording, WindowSummary};

/// Of what came after `earlier`.
///
/// Shares are differences by time, so that those of all stretches together are those of the whole. Coverage and errors are what they are now.
pub(super) fn since(later: &Recording, earlier: &Recording) -> Recording {
    let Recording {
        mode,
        seen_fraction,
        start_nanoseconds: _,
        duration_nanoseconds,
        default_metric,
        coverage,
        live_bytes_error,
        windows,
        losses,
        cost: Cost { target_percent, tracer_cpu_percent },
        events,
    } = later;
    let (all, before) = (*duration_nanoseconds, earlier.duration_nanoseconds);
    let part = |now: f64, then: f64| part_since((now, all), (then, before));
    let known = WindowSummary::default();
    Recording {
        mode: mode.clone(),
        seen_fraction: part(*seen_fraction, earlier.seen_fraction).min(1.0),
        start_nanoseconds: earlier.start_nanoseconds.saturating_add(before),
        duration_nanoseconds: all.saturating_sub(before),
        default_metric: default_metric.clone(),
        coverage: coverage.clone(),
        live_bytes_error: *live_bytes_error,
        windows: windows.as_ref().map(|now| now.since(earlier.windows.as_ref().unwrap_or(&known))),
        losses: losses.with(&earlier.losses, u64::saturating_sub),
        cost: Cost {
            // Not known before: as good as what it is now.
            target_percent: target_percent
                .map(|percent| part(percent, earlier.cost.target_percent.unwrap_or(percent))),
            tracer_cpu_percent: part(*tracer_cpu_percent, earlier.cost.tracer_cpu_percent),
        },
        events: events.saturating_sub(earlier.events),
    }
}

/// A mean over time, less the part of it that an earlier mean covers; never below 0.
fn part_since((now, all): (f64, u64), (then, before): (f64, u64)) -> f64 {
    let time = all.saturating_sub(before) as f64;
    let part = (now * all as f64 - then * before as f64) / time;
    if part.is_finite() { part.max(0.0) } else { now }
}

/// A mean by time. The first value is it, to the last bit.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    value: Option<f64>,
    nanoseconds: f64,
}

impl Mean {
    fn add(&mut self, value: f64, nanoseconds: u64) {
        if !value.is_finite() {
            return;
        }
        self.nanoseconds += nanoseconds as f64;
        let share = if self.nanoseconds > 0.0 { nanoseconds as f64 / self.nanoseconds } else { 1.0 };
        self.value = Some(self.value.map_or(value, |mean| mean + (value - mean) * share));
    }
}

/// Consecutive stretches, oldest first.
#[derive(Debug, Default)]
pub(super) struct Sum {
    all: Option<Recording>,
    seen: Mean,
    target: Mean,
    tracer: Mean,
}

impl Sum {
    /// How long after the first a stretch begins, in nanoseconds.
    pub fn began_after(&self, next: &Recording) -> u64 {
        self.all.as_ref().map_or(0, |all| next.start_nanoseconds.saturating_sub(all.start_nanoseconds))
    }

    /// Adds the next.
    pub fn add(&mut self, next: Recording) {
        let time = next.duration_nanoseconds;
        self.seen.add(next.seen_fraction, time);
        self.tracer.add(next.cost.tracer_cpu_percent, time);
        if let Some(percent) = next.cost.target_percent {
            self.target.add(percent, time);
        }
        self.all = Some(match self.all.take() {
            Some(all) => joined(all, next),
            None => next,
        });
    }

    /// All of them; `None` if there were none.
    pub fn finish(self) -> Option<Recording> {
        let all = self.all?;
        let cost = Cost {
            target_percent: self.target.value,
            tracer_cpu_percent: self.tracer.value.unwrap_or(all.cost.tracer_cpu_percent),
        };
        Some(Recording { seen_fraction: self.seen.value.unwrap_or(all.seen_fraction), cost, ..all })
    }
}

/// Both, but for the means. What is of a moment is that of the end.
fn joined(all: Recording, next: Recording) -> Recording {
    let end = |of: &Recording| of.start_nanoseconds.saturating_add(of.duration_nanoseconds);
    let start_nanoseconds = all.start_nanoseconds.min(next.start_nanoseconds);
    // Times of which nothing is known lie between them: it is one stretch all the same.
    let duration_nanoseconds = end(&all).max(end(&next)) - start_nanoseconds;
    Recording {
        start_nanoseconds,
        duration_nanoseconds,
        coverage: least(all.coverage, next.coverage),
        windows: windows(all.windows, next.windows),
        losses: all.losses.with(&next.losses, u64::saturating_add),
        events: all.events.saturating_add(next.events),
        ..next
    }
}

fn windows(all: Option<WindowSummary>, next: Option<WindowSummary>) -> Option<WindowSummary> {
    if all.is_none() && next.is_none() {
        return None;
    }
    let [all, next] = [all, next].map(|one| one.unwrap_or_else(WindowSummary::counted));
    Some(all.then(&next))
}

/// The least share of both with the greatest uncertainty; not measured where one is not.
fn least(one: Coverage, other: Coverage) -> Coverage {
    match (one, other) {
        (
            Coverage::Measured { allocations, frees, uncertainty, unmeasured_processes },
            Coverage::Measured {
                allocations: other_allocations,
                frees: other_frees,
                uncertainty: other_uncertainty,
                unmeasured_processes: other_unmeasured,
            },
        ) => Coverage::Measured {
            allocations: allocations.min(other_allocations),
            frees: frees.min(other_frees),
            uncertainty: uncertainty.max(other_uncertainty),
            unmeasured_processes: unmeasured_processes.max(other_unmeasured),
        },
        (_, unmeasured @ Coverage::Unmeasured { .. }) | (unmeasured, Coverage::Measured { .. }) => unmeasured,
    }
}
