//! The clock of the rare events: when a window begins and ends by it.
//!
//! Windows slow their program, and not evenly: twenty times where it allocates, not at all where it frees. By the clock on the wall they would see much of what comes
//! first and little of what comes later. By the events that are watched all the time every stretch of work is as long as it is without windows.
//! It must not know what the events are, nor windows.

use std::time::Instant;

/// Within so many seconds' worth of events a window begins at random.
const SPREAD_SECONDS: f64 = 0.1;
/// Share of the events of the windows that met another limit which the next ones end at: most meet this one then.
const SHORTER: f64 = 0.7;
/// Fewest events at which a window ends.
const FEWEST: f64 = 8.0;

/// See the head of this file.
#[derive(Debug)]
pub struct RareClock {
    since: Instant,
    events: u64,
    /// Events in a second, when it was last known.
    rate: f64,
    /// Events at which windows end; `None`: nothing is known yet.
    most: Option<f64>,
}

impl Default for RareClock {
    fn default() -> Self {
        Self { since: Instant::now(), events: 0, rate: 0.0, most: None }
    }
}

impl RareClock {
    /// So many have come outside of windows.
    pub fn pass(&mut self, events: u64) {
        self.events += events;
    }

    /// How many are to come before the next window; `None`: there are too few to count by.
    pub fn begin_window(&mut self, random: &mut fastrand::Rng) -> Option<u64> {
        let seconds = self.since.elapsed().as_secs_f64();
        if seconds > 0.01 {
            self.rate = self.events as f64 / seconds;
        }
        let spread = self.rate * SPREAD_SECONDS;
        (spread >= FEWEST).then(|| whole(spread * random.f64()))
    }

    /// At how many events a window ends.
    pub fn most(&self) -> u64 {
        self.most.map_or(u64::MAX, whole)
    }

    /// A window that was not to end by events is over.
    pub fn end_other_window(&mut self) {
        (self.since, self.events) = (Instant::now(), 0);
    }

    /// A window has seen so many. `is_cut`: it ended because of another limit.
    pub fn end_window(&mut self, events: u64, is_cut: bool) {
        let events = events as f64;
        self.most = Some(match self.most {
            // Slowly longer again while it is this limit that ends them.
            Some(most) if !is_cut => most * 1.05,
            Some(most) if most > FEWEST => (0.5 * (most + events * SHORTER)).max(FEWEST),
            _ => (events * SHORTER).max(FEWEST),
        });
        (self.since, self.events) = (Instant::now(), 0);
    }
}

#[expect(clippy::cast_sign_loss, reason = "not negative, and the cast saturates")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_by_events_once_it_is_known_how_many_they_see() {
        let mut clock = RareClock::default();
        assert_eq!(clock.most(), u64::MAX);
        clock.end_window(100, true);
        assert_eq!(clock.most(), 70);
        clock.end_window(70, false);
        assert!((71..80).contains(&clock.most()));
        (0..20).for_each(|_| clock.end_window(0, true));
        assert_eq!(clock.most(), 8);
    }

    #[test]
    fn a_window_begins_at_random_among_events() {
        let mut clock =
            RareClock { since: Instant::now() - std::time::Duration::from_secs(1), ..RareClock::default() };
        let mut random = fastrand::Rng::with_seed(1);
        assert_eq!(clock.begin_window(&mut random), None);
        clock.pass(10_000);
        let drawn: Vec<u64> = (0..100).filter_map(|_| clock.begin_window(&mut random)).collect();
        assert!(drawn.len() == 100 && drawn.iter().all(|events| *events <= 1001), "{drawn:?}");
        assert!(drawn.iter().any(|events| *events > 700) && drawn.iter().any(|events| *events < 300));
    }
}
