//! Processes that ran already: what is armed in them all the time beside windows, and what windows take turns with.
//!
//! Most of an interpreter's points are hit seldom. Left armed they cost little, are known wholly, and tell how much of its work a process got done in a window; those
//! that are hit often are a few links of few points, which are armed in 9 ms and not in 18, and cost their target 2 ms and not 15. It must not know what windows say.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::{Windows, cost_of_cycle, most_points};
use crate::attach::{Armed, Disarming, Kernel, Pops, Watch, begin_to_disarm};
use crate::budget::governor::{CycleSeen, Points, Window};
use crate::session::SessionError;
use crate::session::target::Traced;
use crate::session::turns::Most;
use crate::session::windowed::Windowed;

/// Share of the budget that what is armed all the time is meant to cost.
const MEANT: f64 = 0.4;
/// Share from which it is too much.
const TOO_MUCH: f64 = 0.6;
/// How often in a row, once a second, it must be too much.
const TOO_DEAR: u32 = 3;
/// How many times its own time a window may take: what windows see of a program is what it does at their beginning, the less so the less they slow it.
const SLOWER: f64 = 2.0;
/// Processors that are taken to be used at least: who hardly runs may begin to.
const LEAST_LOAD: f64 = 0.02;
/// The first and the longest time after which points are sorted anew: what is hit often changes with what a program does.
const SORTED: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));
/// Seconds of which the rate of events is known.
const RECENT: f64 = 5.0;
/// Events from which their rate tells how long a window was for its process.
const FEWEST_EVENTS: f64 = 20.0;
/// By how much of its own time a window is taken to slow its process where nothing tells: a pop takes 40 ns of its own, a trap 1.5 us.
const SLOWEST: f64 = 40.0;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Base {
    /// By slot.
    armed: FxHashMap<u16, Vec<Armed>>,
    disarming: Option<Disarming>,
    has_given_up: bool,
    sorted: Instant,
    sort_after: Duration,
    learned: Instant,
    /// Events and the seconds in which they came; what is older than [`RECENT`] hardly counts.
    rate: (f64, f64),
    passed: Instant,
    judged: Instant,
    too_dear: u32,
}

impl Default for Base {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            armed: FxHashMap::default(),
            disarming: None,
            has_given_up: false,
            sorted: now,
            sort_after: SORTED.0,
            learned: now,
            rate: (0.0, 0.0),
            passed: now,
            judged: now,
            too_dear: 0,
        }
    }
}

impl Base {
    /// Whether anything is armed all the time.
    pub fn is_armed(&self) -> bool {
        self.armed.values().any(|links| !links.is_empty())
    }

    /// So many events have come outside of windows since this was last told.
    pub fn pass(&mut self, events: u64) {
        let seconds = std::mem::replace(&mut self.passed, Instant::now()).elapsed().as_secs_f64();
        let keep = (-seconds / RECENT).exp();
        self.rate = (self.rate.0 * keep + events as f64, self.rate.1 * keep + seconds);
    }

    /// Events in a second; `None`: not known yet.
    fn events_per_second(&self) -> Option<f64> {
        let (events, seconds) = self.rate;
        (events >= FEWEST_EVENTS && seconds > 0.0).then(|| events / seconds)
    }

    /// Disarms all, and does not wait for it.
    pub fn disarm(&mut self) {
        let links = std::mem::take(&mut self.armed).into_values().flatten().collect();
        self.disarming = Some(begin_to_disarm(links));
    }
}

impl Windows {
    /// Whether events are watched all the time that tell how much of its work a process got done.
    pub(super) fn has_clock(&self) -> bool {
        self.kept.is_some() || self.base.is_armed()
    }

    /// Has what is armed all the time armed in those that have come since.
    pub(super) fn tend_base(&mut self, kernel: &mut Kernel, running: &[&Traced]) -> Result<(), SessionError> {
        let Some(turns) = &mut self.turns else { return Ok(()) };
        turns.meet(running);
        let gone = |slot: &u16| !running.iter().any(|traced| traced.slot.number == *slot);
        let gone: Vec<u16> = self.base.armed.keys().copied().filter(gone).collect();
        let links: Vec<Armed> =
            gone.iter().filter_map(|slot| self.base.armed.remove(slot)).flatten().collect();
        if !links.is_empty() {
            self.base.disarming = Some(begin_to_disarm(links));
        }
        if self.base.has_given_up {
            return Ok(());
        }
        let begun = Instant::now();
        let mut points = 0;
        for traced in running {
            if self.base.armed.contains_key(&traced.slot.number) {
                continue;
            }
            let pops = turns.kept(traced);
            let links = match traced.open(kernel, Watch::Cold, pops) {
                Ok(links) => links,
                Err(_) if traced.has_ended() => continue,
                // Without it windows are weighed by time.
                Err(error) => {
                    tracing::debug!(%error, "what is armed all the time");
                    Vec::new()
                }
            };
            points += count(pops) + traced.points(Watch::Pools);
            self.base.armed.insert(traced.slot.number, links);
        }
        if points > 0 {
            self.charge(points, begun.elapsed());
        }
        Ok(())
    }

    /// Adds what arming has cost to what the governor will be told.
    fn charge(&mut self, points: usize, arming: Duration) {
        let points = u32::try_from(points).unwrap_or(u32::MAX);
        let cost = cost_of_cycle(points, arming, true);
        let cycle = self.cycle.get_or_insert_default();
        *cycle = CycleSeen { points: cycle.points + points, cost: cycle.cost + cost, ..*cycle };
    }

    /// Points of the next window, in the process that has most.
    pub(super) fn points(&self, running: &[&Traced]) -> Points {
        let watch = self.turn.0;
        let Some(turns) = self.turns.as_ref().filter(|_| watch == Watch::Pops) else {
            return most_points(running, watch);
        };
        let all =
            running.iter().map(|traced| traced.points(watch) - traced.pops() + turns.count_next(traced));
        Points { always: u32::try_from(all.max().unwrap_or(0)).unwrap_or(u32::MAX), optional: 0 }
    }

    /// Draws the pops of a window.
    pub(super) fn draw(&mut self, running: &[&Traced], window: Window) {
        if !self.turn.0.draws_pops() {
            return;
        }
        let most = self.most();
        match &mut self.turns {
            Some(turns) => turns.draw(most, &mut self.random),
            None => self.heats.draw(running, Some(window.optional as usize), &mut self.random),
        }
    }

    /// How many that is of a process's.
    pub(super) fn count_drawn(&self, traced: &Traced) -> usize {
        match &self.turns {
            Some(turns) => turns.count_drawn(traced),
            None => self.heats.drawn(traced),
        }
    }

    /// How often points may be hit.
    fn most(&self) -> Most {
        let trap = self.trap_nanoseconds() * 1e-9;
        let load = self.load();
        Most { kept: MEANT * self.share * load / trap, turn: SLOWER * load / trap }
    }

    /// Processors that all of them use by themselves.
    fn load(&self) -> f64 {
        let running = self.processes.values().filter(|one| !one.is_over());
        running.map(Windowed::utilisation).sum::<f64>().max(LEAST_LOAD)
    }

    /// How long a window was by the work that processes got done in it, in seconds of their usual pace.
    pub(super) fn natural_seconds(&self, armed: Duration, traps: u64, events: u64) -> f64 {
        if let Some(rate) = self.base.events_per_second().filter(|_| self.base.is_armed()) {
            return events as f64 / rate;
        }
        let ran = armed.as_secs_f64() * self.load();
        let lost = traps as f64 * self.trap_nanoseconds() * 1e-9;
        (ran - lost).max(ran / SLOWEST) / self.load()
    }

    /// Takes down what points have seen, and sorts them anew if it is time to. `natural`: what the window was, in seconds of the processes' usual pace.
    pub(super) fn learn(&mut self, kernel: &Kernel, natural: f64) -> Result<(), SessionError> {
        if self.turns.is_none() {
            return self.heats.learn(kernel);
        }
        let most = self.most();
        let is_too_dear = self.is_base_too_dear();
        let Some(turns) = &mut self.turns else { return Ok(()) };
        let seconds = std::mem::replace(&mut self.base.learned, Instant::now()).elapsed().as_secs_f64();
        turns.learn(kernel, seconds, natural)?;
        let base = &mut self.base;
        let is_due = base.sorted.elapsed() >= base.sort_after;
        if !(turns.wants_sorting() || is_due || is_too_dear) {
            return Ok(());
        }
        (base.sorted, base.sort_after) = (Instant::now(), (base.sort_after * 2).min(SORTED.1));
        let has_changed = turns.sort(most);
        tracing::debug!(?most, has_changed, kept = turns.count_kept(), "points are sorted");
        if has_changed {
            base.disarm();
            base.rate = (0.0, 0.0);
        } else if is_too_dear {
            // Openings of pools alone are too many.
            base.disarm();
            base.has_given_up = true;
        }
        Ok(())
    }

    fn is_base_too_dear(&mut self) -> bool {
        if self.base.judged.elapsed() < Duration::from_secs(1) {
            return false;
        }
        self.base.judged = Instant::now();
        let cost = self.base.events_per_second().unwrap_or(0.0) * self.trap_nanoseconds() * 1e-9;
        let is_too_much = cost > TOO_MUCH * self.share * self.load();
        self.base.too_dear = if is_too_much { self.base.too_dear + 1 } else { 0 };
        let is_too_dear = self.base.too_dear >= TOO_DEAR;
        if is_too_dear {
            self.base.too_dear = 0;
        }
        is_too_dear
    }
}

/// How many of them are armed.
fn count(pops: Pops<'_>) -> usize {
    pops.levels.map_or(0, |levels| levels.iter().flatten().count())
}
