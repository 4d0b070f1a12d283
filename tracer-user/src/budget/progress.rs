//! How much of a target's work a window saw, and what weight that gives to what it saw.
//!
//! Inside a window the target runs slower, the more the more it allocates; a window also ends early when it meets its limit
//! of traps. So windows of one length cover different stretches of the target's own, untraced time. The weight of a window is
//! the time that it stands for over the stretch that it covered ([`Span::natural`]): that puts busy and quiet phases in
//! proportion. What that time is not known well enough for, the scale of the whole, is then set by counted progress
//! (`flows.rs`). It must not know stacks.

use std::time::Duration;

/// A window slows its target thirtyfold at worst (JSON parsing with a naive program); what covers less is not believed.
const MOST_SLOWDOWN: f64 = 100.0;

/// One window of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Span {
    /// Time of the target that it stands for (`governor::Window::represents`), times processes over those that were armed.
    pub represents: Duration,
    /// How long its points were armed, from when all were to when the first was not.
    pub armed: Duration,
    /// CPU time of the process in that time, with what probes took.
    pub cpu: Duration,
    /// The process's own work in that time: user time, or user-mode instructions at the pace that they have without probes.
    pub progress: Duration,
    /// Seconds of its own time that it covered at the least, known from elsewhere; 0: nothing is.
    pub least: f64,
}

impl Span {
    /// The stretch of the target's own time that the window covered, in seconds: what would have passed without probes.
    ///
    /// Time in which it waited passes as ever; of the time in which it ran, only its own progress counts, by as many threads
    /// as ran at once.
    #[must_use]
    pub fn natural(&self) -> f64 {
        let armed = self.armed.as_secs_f64();
        let lost = self.cpu.saturating_sub(self.progress).as_secs_f64();
        let threads = (self.cpu.as_secs_f64() / armed.max(1e-9)).max(1.0);
        let least = if self.least > 0.0 { self.least.min(armed) } else { armed / MOST_SLOWDOWN };
        (armed - lost / threads).max(least)
    }

    /// How many such windows the time that it stands for would hold; `None` for a window that was not armed at all.
    #[must_use]
    pub fn weight(&self) -> Option<f64> {
        (!self.armed.is_zero()).then(|| (self.represents.as_secs_f64() / self.natural()).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(armed: u64, cpu: u64, progress: u64, natural: f64) {
        let [armed, cpu, progress] = [armed, cpu, progress].map(Duration::from_millis);
        let span = Span { represents: Duration::from_secs(1), armed, cpu, progress, least: 0.0 };
        assert!((span.natural() - natural).abs() < 1e-9, "{span:?}: {}", span.natural());
    }

    #[test]
    fn natural_time_is_what_would_have_passed_without_probes() {
        check(20, 20, 1, 0.001); // busy, slowed twentyfold
        check(20, 20, 20, 0.020); // busy, not slowed
        check(20, 0, 0, 0.020); // asleep
        check(20, 10, 5, 0.015); // half the time busy, then slowed twofold
        check(20, 80, 40, 0.010); // four threads
        check(20, 20, 0, 0.0002); // nothing got on: not believed
        check(20, 10, 30, 0.020); // clocks that disagree
    }

    #[test]
    fn weights_are_finite_and_at_least_one() {
        assert_eq!(Span::default().weight(), None);
        let second = Duration::from_secs(1);
        let all = Span { represents: second, armed: second, cpu: second, progress: second, least: 0.0 };
        assert_eq!(all.weight(), Some(1.0));
        let slow = Span { progress: Duration::ZERO, ..all };
        assert!(slow.weight().unwrap() > 99.0 && Span { least: 0.5, ..slow }.weight() == Some(2.0));
        assert_eq!(Span { armed: 2 * second, ..all }.weight(), Some(1.0));
        assert!(Span { represents: Duration::MAX, ..all }.weight().unwrap().is_finite());
    }
}
