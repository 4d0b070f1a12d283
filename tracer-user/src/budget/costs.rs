//! What a trap and what arming costs: measured in the run itself, believed at once when it is more, slowly when it is less.
//!
//! It must not know budgets or windows' times.

use std::time::Duration;

/// A trap on an emulated instruction with a program that counts and finds its stack known; until the run has told (design measurement: 0.5 to 1.2 us).
const FIRST_TRAP_NANOSECONDS: f64 = 1000.0;
/// Bounds of what is believed: an emulated trap without a program takes 0.3 us; a walk of 128 frames tens.
const TRAP_NANOSECONDS: (f64, f64) = (300.0, 50_000.0);
/// Traps that a window must have for its cost per trap to mean something: 1,000 are about a millisecond.
const FEWEST_TRAPS: f64 = 1000.0;
/// Traps of earlier windows that are remembered, so that a phase of deep stacks is followed within seconds.
const REMEMBERED_TRAPS: f64 = 200_000.0;
/// What a cycle of arming and disarming is taken to cost before it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CyclePrior {
    /// Seconds, whatever the number of points: system calls and their grace periods.
    pub cycle: f64,
    /// Seconds for each point.
    pub point: f64,
}

impl Default for CyclePrior {
    /// One link that arms 217 points cost a busy target 18 ms, 120 cost 10 ms (Linux 6.18, two processors).
    fn default() -> Self {
        Self { cycle: 0.5e-3, point: 80e-6 }
    }
}

impl CyclePrior {
    /// Seconds for so many points.
    #[must_use]
    pub fn seconds(&self, points: f64) -> f64 {
        self.cycle + self.point * points
    }
}

/// Bounds of the factor by which a machine differs from that.
const CYCLE_FACTOR: (f64, f64) = (0.05, 100.0);
/// How much of a cheaper cycle than expected is believed.
const RECOVERY: f64 = 0.1;

/// The mean cost of a trap, from the CPU time that windows took beyond the target's progress in them.
#[derive(Debug, Clone)]
pub struct TrapCost {
    traps: f64,
    lost: f64,
}

impl Default for TrapCost {
    fn default() -> Self {
        Self { traps: FEWEST_TRAPS, lost: FEWEST_TRAPS * FIRST_TRAP_NANOSECONDS }
    }
}

impl TrapCost {
    /// Learns from one window or stretch: CPU time used in it, the part of that which was the target's own progress, and
    /// its traps.
    pub fn observe(&mut self, cpu: Duration, progress: Duration, traps: u64) {
        let (traps, lost) = (traps as f64, cpu.saturating_sub(progress).as_nanos() as f64);
        if traps < FEWEST_TRAPS {
            return;
        }
        // A dearer stretch replaces what was known, in proportion to how much it weighs.
        let keep = (1.0 - traps / REMEMBERED_TRAPS).max(0.0);
        self.traps = self.traps * keep + traps;
        self.lost = self.lost * keep + lost;
    }

    /// Nanoseconds for each trap.
    #[must_use]
    pub fn nanoseconds(&self) -> f64 {
        (self.lost / self.traps).clamp(TRAP_NANOSECONDS.0, TRAP_NANOSECONDS.1)
    }
}

/// What arming and disarming a number of points costs.
#[derive(Debug, Clone)]
pub struct CycleCost {
    prior: CyclePrior,
    factor: f64,
}

impl Default for CycleCost {
    fn default() -> Self {
        Self::new(CyclePrior::default())
    }
}

impl CycleCost {
    /// Nothing has been learned yet.
    #[must_use]
    pub fn new(prior: CyclePrior) -> Self {
        Self { prior, factor: 1.0 }
    }

    /// Learns from one cycle of arming and disarming `points` points that cost `seconds`.
    pub fn observe(&mut self, points: f64, seconds: f64) {
        let seen = (seconds / self.prior.seconds(points)).clamp(CYCLE_FACTOR.0, CYCLE_FACTOR.1);
        self.factor = if seen > self.factor { seen } else { self.factor + RECOVERY * (seen - self.factor) };
    }

    /// Seconds that a cycle of so many points is expected to cost.
    #[must_use]
    pub fn seconds(&self, points: f64) -> f64 {
        self.factor * self.prior.seconds(points)
    }

    /// Most points that a cycle of so many seconds arms.
    #[must_use]
    pub fn points(&self, seconds: f64) -> f64 {
        ((seconds / self.factor - self.prior.cycle) / self.prior.point).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_a_trap_is_learned_and_bounded() {
        let mut cost = TrapCost::default();
        assert!((cost.nanoseconds() - 1000.0).abs() < 1e-9);
        cost.observe(Duration::from_micros(5), Duration::ZERO, 3);
        assert!((cost.nanoseconds() - 1000.0).abs() < 1e-9);
        for _ in 0..50 {
            cost.observe(Duration::from_millis(30), Duration::from_millis(10), 10_000);
        }
        assert!((cost.nanoseconds() - 2000.0).abs() < 10.0, "{}", cost.nanoseconds());
        cost.observe(Duration::ZERO, Duration::from_secs(9), 1 << 60);
        assert!((cost.nanoseconds() - 300.0).abs() < 1e-9);
        cost.observe(Duration::from_secs(3600), Duration::ZERO, 1000);
        assert!(cost.nanoseconds() <= 50_000.0);
    }

    #[test]
    fn a_dearer_cycle_is_believed_at_once_and_a_cheaper_one_slowly() {
        let mut cost = CycleCost::default();
        assert!((0.015..0.02).contains(&cost.seconds(217.0)));
        cost.observe(217.0, 0.1);
        assert!((cost.seconds(217.0) - 0.1).abs() < 1e-9);
        cost.observe(217.0, 0.01);
        assert!(cost.seconds(217.0) > 0.09);
        (0..100).for_each(|_| cost.observe(217.0, 0.01));
        assert!((cost.seconds(217.0) - 0.01).abs() < 1e-4);
        assert!((cost.points(cost.seconds(50.0)) - 50.0).abs() < 1e-9);
    }
}
