//! How much of its work a process got done in windows, told by an event that is rarer than what windows slow it by.
//!
//! A program that does arithmetic takes a block every 40 ns, and a trap takes twenty times as long: what it got done in a window is the small
//! difference of two large numbers, and no trap's cost is known so well. But the program also does something rarer, which a window of its own
//! can watch without slowing it: calls of malloc, openings of pools. Their rate in such windows is that of the whole, and their number in a full
//! window says how much of the work that window saw. It must not know which events they are.

/// Fewest of these events on both sides for which they are believed: 30 are ± 18 %.
const FEWEST: f64 = 30.0;
/// How far the correction may go; a window slows its target fiftyfold at worst.
const FACTOR: (f64, f64) = (0.01, 100.0);

/// One window, of either kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// How often the event came.
    pub events: u64,
    /// Traps, of this event or another.
    pub traps: u64,
    /// Seconds that threads ran, traps included.
    pub seconds: f64,
    /// Seconds of that in which our programs ran.
    pub programs: f64,
}

/// Sums of windows of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    events: f64,
    traps: f64,
    /// Without our programs.
    seconds: f64,
    programs: f64,
}

impl Sums {
    fn add(&mut self, seen: &Seen) {
        self.events += seen.events as f64;
        self.traps += seen.traps as f64;
        self.seconds += (seen.seconds - seen.programs).max(0.0);
        self.programs += seen.programs;
    }

    /// The process's own work, if a trap takes so much beside its program.
    fn own(&self, trap: f64) -> f64 {
        (self.seconds - self.traps * trap).max(self.seconds / FACTOR.1)
    }
}

/// The sums of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Where nothing else was watched.
    alone: Sums,
    full: Sums,
    /// Events in full windows, weighted, and the sum of their squares.
    weighted: (f64, f64),
    /// Weighted seconds of work in full windows, as they were taken to be.
    believed: f64,
    /// See [`Pace::set_trap`].
    trap: f64,
}

/// What must be done to what windows say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// To be multiplied with.
    pub factor: f64,
    /// Standard error of it, as a share of it.
    pub error: f64,
}

impl Correction {
    /// Nothing is known to be off.
    pub const NONE: Self = Self { factor: 1.0, error: 0.0 };
}

impl Pace {
    /// A window in which the event alone was watched.
    pub fn alone(&mut self, seen: &Seen) {
        self.alone.add(seen);
    }

    /// A full window: its weight, and how many seconds of work it was taken to have seen.
    pub fn full(&mut self, weight: f64, believed: f64, seen: &Seen) {
        let events = seen.events as f64;
        self.full.add(seen);
        self.weighted.0 += weight * events;
        self.weighted.1 += weight * weight * events;
        self.believed += weight * believed;
    }

    /// Puts full windows aside, where those that come see the same work better.
    pub fn begin_anew(&mut self) -> Self {
        let aside = Self { alone: Sums::default(), ..*self };
        (self.full, self.weighted, self.believed) = (Sums::default(), (0.0, 0.0), 0.0);
        aside
    }

    /// Takes them back.
    pub fn take_back(&mut self, aside: &Self) {
        self.full.events += aside.full.events;
        self.full.traps += aside.full.traps;
        self.full.seconds += aside.full.seconds;
        self.full.programs += aside.full.programs;
        self.weighted.0 += aside.weighted.0;
        self.weighted.1 += aside.weighted.1;
        self.believed += aside.believed;
    }

    /// A trap takes so many seconds beside its program.
    pub fn set_trap(&mut self, seconds: f64) {
        self.trap = seconds.max(0.0);
    }

    /// Events in a second of the process's own work; `None`: too few were seen.
    fn rate(&self) -> Option<f64> {
        let is_known = self.alone.events >= FEWEST && self.full.events >= FEWEST && self.alone.seconds > 0.0;
        is_known.then(|| self.alone.events / self.alone.own(self.trap))
    }

    /// What windows saw was so much of the work, by these events; `None`: they are too few.
    #[must_use]
    pub fn correction(&self) -> Option<Correction> {
        let factor = self.believed * self.rate()? / self.weighted.0;
        let error = (1.0 / self.alone.events + self.weighted.1 / (self.weighted.0 * self.weighted.0)).sqrt();
        factor.is_finite().then(|| Correction { factor: factor.clamp(FACTOR.0, FACTOR.1), error })
    }

    /// Seconds of the process's own work for each trap of a full window: where traps take nearly all of the time, this says better what a window
    /// covered than what they left of it does.
    #[must_use]
    pub fn own_of_a_trap(&self) -> Option<f64> {
        (self.full.traps > 0.0).then_some(self.full.events / self.rate()? / self.full.traps)
    }

    /// How many times as long as by itself the process took in full windows; `None`: not known.
    #[must_use]
    pub fn slowdown(&self) -> Option<f64> {
        let own = self.full.events / self.rate()?;
        Some(((self.full.seconds + self.full.programs) / own.max(1e-9)).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that takes a block each 40 ns of its own time and calls malloc each 12 us; a trap takes `trap` seconds beside its program, which takes
    /// a microsecond, or 0.2 where it only counts.
    fn pace(trap: f64) -> Pace {
        let mut pace = Pace::default();
        pace.set_trap(trap);
        for _ in 0..30 {
            let (own, events) = (12e-3, 1000);
            let programs = 1000.0 * 0.2e-6;
            let seconds = own + programs + 1000.0 * trap;
            pace.alone(&Seen { events, traps: events, seconds, programs });
            let (own, traps) = (5100.0 * 40e-9, 5100);
            let programs = 5100.0 * 1e-6;
            let seconds = own + programs + 5100.0 * trap;
            pace.full(2.0, 3e-3, &Seen { events: 17, traps, seconds, programs });
        }
        pace
    }

    #[test]
    fn what_was_believed_does_not_matter() {
        for trap in [0.3e-6, 0.5e-6, 1.5e-6, 3e-6] {
            let pace = pace(trap);
            let Correction { factor, error } = pace.correction().unwrap();
            let true_factor = 3e-3 / (5100.0 * 40e-9);
            assert!((factor / true_factor - 1.0).abs() < 0.01, "{trap}: {factor} for {true_factor}");
            assert!((0.03..0.06).contains(&error), "{error}");
            let slowdown = pace.slowdown().unwrap();
            assert!((slowdown / ((1040e-9 + trap) / 40e-9) - 1.0).abs() < 0.03, "{trap}: {slowdown}");
            let own = pace.own_of_a_trap().unwrap();
            assert!((own / 40e-9 - 1.0).abs() < 0.02, "{trap}: {own}");
        }
    }

    #[test]
    fn few_events_say_nothing() {
        let mut pace = Pace::default();
        let seen = Seen { events: 1000, traps: 1000, seconds: 1.0, programs: 0.1 };
        pace.alone(&seen);
        pace.full(1.0, 1.0, &Seen { events: 29, ..seen });
        assert_eq!(pace.correction(), None);
        assert_eq!(Pace::default().correction(), None);
    }
}
