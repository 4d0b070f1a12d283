//! What a process allocates, by stack, where an event is counted all the time that is rarer than what windows watch.
//!
//! How much of its work a process got done in a window is hard to say by time, because windows slow it (`pace.rs`). But of an event that is always
//! counted, openings of pools and calls of malloc, it is known how many came in the window and how many since the window before. So each window stands
//! for the stretch since the one before it, and what it saw counts as many times as the stretch has events for one of the window's. Windows with too few of them are taken together with the next.
//! A stack that opens pools itself tells more than that: what windows saw of it for each pool that they saw it open, times all that it opened.
//! It must not know which events they are.

use std::hash::Hash;

use rustc_hash::FxHashMap;

use super::flows::{Flow, Flows, Taken, View};
use super::interval::{Estimate, FEWEST_EFFECTIVE_WINDOWS, Interval};
use super::pace::Correction;

/// Events that windows must have seen together before they are weighed: 10 are ± 32 %, and the next stretch has others.
const ENOUGH: f64 = 10.0;
/// Events in all windows below which nothing is said: 30 are ± 18 %.
const FEWEST: f64 = 30.0;
/// Events of a stack's own in windows from which they tell better than all of them: 16 are ± 25 %, and windows of a program that does one thing after the other
/// differ by more.
const FEWEST_OWN: f64 = 16.0;
/// Windows that wait for the next; a program without the event has them all wait, and their sums would take the tracer's memory.
const MOST_WAITING: usize = 64;
/// Half width, as a share, below which no interval is shown of a stack told by its own events: with 5 to 62 windows the largest lines were off by up to 10 %
/// (decisions/0027), one by -7 % where sampling alone said ± 2.4 % (decisions/0029).
const LEAST_ERROR: f64 = 0.1;
/// The normal quantile at 0.975.
const NORMAL: f64 = 1.96;

/// What was seen of one stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row<K> {
    /// Which.
    pub stack: K,
    /// What it allocated.
    pub taken: Taken,
    /// Events of its own.
    pub events: f64,
}

/// Of one stack that has events of its own.
#[derive(Debug, Clone, Copy, Default)]
struct Own {
    /// Events outside of what was seen in full, and those of them in windows.
    all: f64,
    in_windows: f64,
    /// What windows saw, without weights: those with few events have large ones, and would say that there is more to each event.
    bytes: f64,
    count: f64,
    /// What was seen in full.
    exact: (f64, f64),
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Strata<K> {
    flows: Flows<K>,
    own: FxHashMap<K, Own>,
    /// Windows that wait to be weighed: their events, and what they saw.
    waiting: Vec<(f64, Vec<Row<K>>)>,
    /// Events since the latest window that was weighed: in windows, and in all.
    in_windows: f64,
    since: f64,
    /// Events in all windows, and the sum of their squares over windows.
    seen: f64,
    squares: f64,
    /// Windows were left out because no event came for very long.
    is_lost: bool,
}

impl<K> Default for Strata<K> {
    fn default() -> Self {
        Self {
            flows: Flows::default(),
            own: FxHashMap::default(),
            waiting: Vec::new(),
            in_windows: 0.0,
            since: 0.0,
            seen: 0.0,
            squares: 0.0,
            is_lost: false,
        }
    }
}

impl<K: Copy + Eq + Hash> Strata<K> {
    /// So many events have come outside of windows; of the rows only the events count.
    pub fn pass(&mut self, events: f64, rows: impl IntoIterator<Item = Row<K>>) {
        self.since += events;
        self.flows.pass(events);
        for row in rows.into_iter().filter(|row| row.events > 0.0) {
            self.own.entry(row.stack).or_default().all += row.events;
        }
    }

    /// A stretch that was seen in full.
    pub fn full(&mut self, events: f64, rows: impl IntoIterator<Item = Row<K>>) {
        let own = &mut self.own;
        let stacks = rows.into_iter().map(|Row { stack, taken, .. }| {
            let own = own.entry(stack).or_default();
            own.exact.0 += taken.bytes;
            own.exact.1 += taken.count;
            (stack, taken)
        });
        self.flows.full(events, stacks);
    }

    /// A window that saw so many events.
    pub fn window(&mut self, events: f64, rows: impl IntoIterator<Item = Row<K>>) {
        let rows: Vec<Row<K>> = rows.into_iter().collect();
        self.pass(events, rows.iter().copied());
        self.in_windows += events;
        self.seen += events;
        self.squares += events * events;
        if self.waiting.len() >= MOST_WAITING {
            let (events, _) = self.waiting.remove(0);
            self.in_windows -= events;
            self.is_lost = true;
        }
        self.waiting.push((events, rows));
        if self.in_windows >= ENOUGH {
            self.weigh();
        }
    }

    fn weigh(&mut self) {
        let weight = (self.since / self.in_windows).max(1.0);
        for (progress, rows) in self.waiting.drain(..) {
            for row in &rows {
                let own = self.own.entry(row.stack).or_default();
                own.in_windows += row.events;
                own.bytes += row.taken.bytes;
                own.count += row.taken.count;
            }
            let stacks = rows.into_iter().map(|row| (row.stack, row.taken));
            self.flows.window(View { weight, progress, tail: false }, stacks);
        }
        (self.in_windows, self.since) = (0.0, 0.0);
    }

    /// From now on other events are counted: what was counted since the latest window says nothing of the next ones.
    pub fn begin_anew(&mut self) {
        if self.in_windows > 0.0 {
            self.weigh();
        }
        self.waiting.clear();
        self.since = 0.0;
    }

    /// Whether windows saw enough events to say anything: those of one or two say nothing of the others, if they come in bursts.
    pub fn is_known(&self) -> bool {
        self.seen >= FEWEST
            && self.seen * self.seen >= self.squares * FEWEST_EFFECTIVE_WINDOWS
            && !self.is_lost
    }

    /// How many times the events of windows there were: what blocks of windows stand for, without weights.
    pub fn scale(&self) -> f64 {
        self.flows.plain_scale()
    }

    /// From now on fewer events are counted: `left` is the share of them that goes on to be.
    pub fn leave_events(&mut self, left: f64) {
        let gone = self.since * (1.0 - left.clamp(0.0, 1.0));
        self.since -= gone;
        self.flows.pass(-gone);
    }

    /// So many times as much was allocated outside of windows as the events say.
    pub fn stretch(&mut self, factor: f64) {
        self.flows.correct(Correction { factor, error: 0.0 });
    }

    /// Windows that were weighed.
    pub fn windows(&self) -> f64 {
        self.flows.windows()
    }

    /// The estimates of every stack of which anything was seen.
    pub fn stacks(&self) -> impl Iterator<Item = (K, Flow)> + '_ {
        self.flows.stacks().filter_map(|stack| Some((stack, self.stack(stack)?)))
    }

    fn stack(&self, stack: K) -> Option<Flow> {
        let flow = self.flows.stack(stack)?;
        let Some(own) = self.own.get(&stack).filter(|own| own.in_windows >= FEWEST_OWN) else {
            return Some(flow);
        };
        let ratio = own.all / own.in_windows;
        let estimate = |exact: f64, seen: f64| {
            // Sampling is not all: see `LEAST_ERROR`.
            let half = seen * ratio * (NORMAL / own.in_windows.sqrt()).max(LEAST_ERROR);
            let value = exact + seen * ratio;
            Estimate::Known {
                value,
                interval: Interval { low: (value - half).max(exact), high: value + half },
            }
        };
        let (bytes, count) = (estimate(own.exact.0, own.bytes), estimate(own.exact.1, own.count));
        Some(Flow { bytes, count, ..flow })
    }

    /// Bytes of all stacks together.
    pub fn total_bytes(&self) -> Estimate {
        let (mut sum, mut squares, mut is_known) = (0.0, 0.0, true);
        for (_, flow) in self.stacks() {
            sum += flow.bytes.value();
            match flow.bytes {
                Estimate::Known { interval, .. } => squares += interval.half_width().powi(2),
                // Seen in one window or two: off by what it is.
                Estimate::TooFewWindows { value, .. } => squares += value * value,
            }
        }
        is_known &= self.windows() >= FEWEST_EFFECTIVE_WINDOWS;
        let half = squares.sqrt();
        match is_known {
            true => Estimate::Known {
                value: sum,
                interval: Interval { low: (sum - half).max(0.0), high: sum + half },
            },
            false => Estimate::TooFewWindows { value: sum, effective: self.windows() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stack: u8, bytes: f64, events: f64) -> Row<u8> {
        Row { stack, taken: Taken { bytes, count: 1.0, ..Taken::default() }, events }
    }

    fn bytes(strata: &Strata<u8>, stack: u8) -> f64 {
        strata.stack(stack).unwrap().bytes.value()
    }

    #[test]
    fn each_window_stands_for_its_own_stretch() {
        let mut strata = Strata::default();
        // A busy stretch: 1,000 events, of which the window saw 100 and 500 bytes; then a quiet one with ten times as many bytes to an event.
        strata.pass(900.0, []);
        strata.window(100.0, [row(7, 500.0, 0.0)]);
        strata.pass(80.0, []);
        strata.window(20.0, [row(7, 1000.0, 0.0)]);
        assert!((bytes(&strata, 7) - (10.0 * 500.0 + 5.0 * 1000.0)).abs() < 1e-6);
    }

    #[test]
    fn a_stack_with_events_of_its_own_is_told_by_them() {
        let mut strata = Strata::default();
        strata.full(3.0, [row(1, 7.0, 3.0)]);
        strata.pass(1000.0, [row(1, 0.0, 200.0), row(2, 0.0, 800.0)]);
        // 100 bytes for each of its events, in a window that happened to see much of the other one.
        strata.window(120.0, [row(1, 2000.0, 20.0), row(2, 9.0, 100.0)]);
        assert!((bytes(&strata, 1) - (7.0 + 220.0 * 100.0)).abs() < 1e-6, "{}", bytes(&strata, 1));
        assert!((bytes(&strata, 2) - 900.0 * 0.09).abs() < 1e-6);
    }

    #[test]
    fn windows_without_events_wait_for_the_next() {
        let mut strata = Strata::default();
        strata.window(0.0, [row(7, 10.0, 0.0)]);
        assert!(!strata.is_known());
        strata.pass(160.0, []);
        strata.window(40.0, [row(7, 30.0, 0.0)]);
        assert!((bytes(&strata, 7) - 5.0 * 40.0).abs() < 1e-6);
    }

    #[test]
    fn what_comes_after_the_last_window_counts_at_the_mean() {
        let mut strata = Strata::default();
        strata.pass(60.0, []);
        strata.window(40.0, [row(7, 40.0, 0.0)]);
        strata.pass(100.0, []);
        strata.full(5.0, [row(7, 3.0, 0.0)]);
        assert!((bytes(&strata, 7) - 203.0).abs() < 1e-6);
    }

    /// A loop whose kept points are hit once in a round saw forty of them in the one window that met its end, and was told by those.
    #[test]
    fn a_burst_in_one_window_is_no_clock() {
        let mut strata = Strata::default();
        (0..10).for_each(|_| strata.window(0.0, [row(7, 10.0, 0.0)]));
        strata.window(40.0, [row(7, 10.0, 0.0)]);
        assert!(!strata.is_known());
        (0..3).for_each(|_| strata.window(40.0, [row(7, 10.0, 0.0)]));
        assert!(strata.is_known());
    }

    #[test]
    fn those_that_wait_are_bounded() {
        let mut strata = Strata::default();
        (0..1000).for_each(|_| strata.window(0.0, [row(7, 1.0, 0.0)]));
        assert!(strata.waiting.len() <= MOST_WAITING && !strata.is_known());
    }
}
