//! Processes that ran already: what is armed in them all the time beside windows, and what windows take turns with.
//!
//! Most of an interpreter's points are hit seldom. Left armed they cost little, are known wholly, and tell how much of its work a process got done in a window; those
//! that are hit often are a few links of few points, which are armed in 9 ms and not in 18, and cost their target 2 ms and not 15. It must not know what windows say.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Windows, most_points};
use crate::attach::{Armed, Kernel, Pops, Watch, disarm};
use crate::budget::governor::{CycleSeen, Points, Window};
use crate::session::SessionError;
use crate::session::meter::Events;
use crate::session::target::Traced;
use crate::session::turns::{Most, Turns};
use crate::session::windowed::Windowed;

/// Share of the budget that what is armed all the time is meant to cost.
const MEANT: f64 = 0.4;
/// Share from which it is too much.
const TOO_MUCH: f64 = 0.6;
/// How often in a row, once a second, it must be too much.
const TOO_DEAR: u32 = 3;
/// How many times its own time a window may take: what windows see of a program is what it does at their beginning, the less so the less they slow it.
const SLOWER: f64 = 0.6;
/// Processors that are taken to be used at least: who hardly runs may begin to.
const LEAST_LOAD: f64 = 0.02;
/// Seconds of which the rate of events is known.
const RECENT: f64 = 5.0;
/// Events from which their rate tells how long a window was for its process.
const FEWEST_EVENTS: f64 = 20.0;
/// Points that are armed together.
const CHUNK: usize = 12;
/// Age at which a process is taken to stay.
const SETTLED: Duration = Duration::from_secs(1);
/// What it costs to arm a point that is hardly hit.
const POINT: Duration = Duration::from_micros(30);
/// Seconds' worth of what is allowed at which it is too much at once.
const RUSH: f64 = 0.5;
/// By how much of its own time a window is taken to slow its process where nothing tells: a pop takes 40 ns of its own, a trap 1.5 us.
const SLOWEST: f64 = 40.0;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Base {
    /// By slot, some points each: when one of them turns out to be hit too often, the others of the process stay armed.
    armed: FxHashMap<u16, Vec<Chunk>>,
    /// Those of which arming has failed.
    failed: FxHashSet<u16>,
    learned: Instant,
    /// Events and the seconds in which they came; what is older than [`RECENT`] hardly counts.
    rate: (f64, f64),
    passed: Instant,
    too_dear: u32,
    /// Events and seconds since it was last judged whether they are too many.
    latest: (u64, f64),
}

/// Some pops of a process.
#[derive(Debug)]
struct Chunk {
    points: Vec<usize>,
    links: Vec<Armed>,
}

impl Default for Base {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            armed: FxHashMap::default(),
            failed: FxHashSet::default(),
            learned: now,
            rate: (0.0, 0.0),
            passed: now,
            too_dear: 0,
            latest: (0, 0.0),
        }
    }
}

impl Base {
    /// Whether anything is armed all the time.
    pub fn is_armed(&self) -> bool {
        self.armed.values().any(|chunks| !chunks.is_empty())
    }

    /// So many events have come outside of windows since this was last told.
    pub fn pass(&mut self, events: u64) {
        let seconds = std::mem::replace(&mut self.passed, Instant::now()).elapsed().as_secs_f64();
        let keep = (-seconds / RECENT).exp();
        self.rate = (self.rate.0 * keep + events as f64, self.rate.1 * keep + seconds);
        self.latest = (self.latest.0 + events, self.latest.1 + seconds);
    }

    /// Events in a second; `None`: not known yet.
    fn events_per_second(&self) -> Option<f64> {
        let (events, seconds) = self.rate;
        (events >= FEWEST_EVENTS && seconds > 0.0).then(|| events / seconds)
    }

    /// Disarms all.
    pub fn disarm(&mut self) {
        disarm(std::mem::take(&mut self.armed).into_values().flatten().flat_map(|chunk| chunk.links));
    }
}

impl Windows {
    /// Whether events are watched all the time that tell how much of its work a process got done.
    pub(super) fn has_clock(&self) -> bool {
        self.kept.is_some() || self.base.is_armed()
    }

    /// Whether windows have seen enough of those events, in every process: what comes in bursts, once in a second, is counted outside of windows alone and tells nothing of them.
    pub(super) fn is_told_by_events(&self) -> bool {
        let mut running = self.processes.values().filter(|one| !one.is_over());
        self.has_clock() && running.all(Windowed::is_told_by_events)
    }

    /// Whether windows open at one of those events. What comes once in a round of a loop would have all of them see the same part of it: a loop that takes
    /// blocks for 130 ms and gives them back for 30 was never seen giving back, and came out 11 % too high.
    pub(super) fn opens_by_events(&self) -> bool {
        self.kept.is_some() || self.is_told_by_events()
    }

    /// Which those are.
    pub(super) fn events(&self) -> Events {
        match (&self.turns, self.keeps_malloc) {
            (Some(_), _) => Events::Kept,
            (None, false) => Events::Pools,
            (None, true) => Events::PoolsAndMallocs,
        }
    }

    /// Has what is armed all the time armed in those that have come since.
    pub(super) fn tend_base(&mut self, kernel: &mut Kernel, running: &[&Traced]) -> Result<(), SessionError> {
        let Some(turns) = &mut self.turns else { return Ok(()) };
        turns.meet(running);
        self.sort_if_due(kernel, running)?;
        // Where links are for all processes of a file, what is cold in ours may be hit by the million in others.
        if !kernel.filters_by_process() {
            return Ok(());
        }
        self.disarm_evicted(running);
        let Some(turns) = &self.turns else { return Ok(()) };
        // One at a time, and none that may end at once: arming costs as much as many windows.
        let is_new = |slot: u16| {
            let one = self.processes.get(&slot);
            one.is_none_or(|one| one.age() < SETTLED)
        };
        let wants = |traced: &&&Traced| {
            let slot = traced.slot.number;
            !self.base.failed.contains(&slot) && !is_new(slot) && !self.missing(turns, traced).is_empty()
        };
        let Some(traced) = running.iter().find(wants) else { return Ok(()) };
        let (missing, kept) = (self.missing(turns, traced), turns.kept(traced));
        let begun = Instant::now();
        let mut chunks = Vec::new();
        for some in missing.chunks(CHUNK) {
            match arm_some(kernel, traced, kept, some) {
                Ok(links) => chunks.push(Chunk { points: some.to_vec(), links }),
                Err(_) if traced.has_ended() => break,
                // Without it windows are weighed by time.
                Err(error) => {
                    tracing::debug!(%error, "what is armed all the time");
                    self.base.failed.insert(traced.slot.number);
                    break;
                }
            }
        }
        self.base.armed.entry(traced.slot.number).or_default().append(&mut chunks);
        self.charge(missing.len(), begun.elapsed());
        Ok(())
    }

    /// What is to be armed all the time in a process and is not.
    fn missing(&self, turns: &Turns, traced: &Traced) -> Vec<usize> {
        let kept = turns.kept(traced);
        let chunks = self.base.armed.get(&traced.slot.number).into_iter().flatten();
        let there: FxHashSet<usize> = chunks.flat_map(|chunk| chunk.points.iter().copied()).collect();
        let all = 0..kept.levels.map_or(0, <[_]>::len);
        all.filter(|point| is_armed(kept, *point) && !there.contains(point)).collect()
    }

    /// Disarms what is no longer to be armed all the time, and what was armed in processes that have gone or could not be armed wholly.
    fn disarm_evicted(&mut self, running: &[&Traced]) {
        let Some(turns) = &self.turns else { return };
        let mut leave = Vec::new();
        for (slot, chunks) in &mut self.base.armed {
            let traced = running.iter().find(|traced| traced.slot.number == *slot);
            let kept = traced.filter(|_| !self.base.failed.contains(slot)).map(|traced| turns.kept(traced));
            let stays = |chunk: &Chunk| {
                kept.is_some_and(|kept| chunk.points.iter().all(|point| is_armed(kept, *point)))
            };
            let (stay, go) = std::mem::take(chunks).into_iter().partition(stays);
            *chunks = stay;
            leave.extend::<Vec<Chunk>>(go);
        }
        self.base.armed.retain(|_, chunks| !chunks.is_empty());
        self.base.failed.retain(|slot| running.iter().any(|traced| traced.slot.number == *slot));
        // What is armed anew must not count twice: this waits until they are gone.
        disarm(leave.into_iter().flat_map(|chunk| chunk.links));
    }

    /// Adds what arming has cost to what the governor will be told.
    fn charge(&mut self, points: usize, arming: Duration) {
        let points = u32::try_from(points).unwrap_or(u32::MAX);
        tracing::debug!(points, ?arming, "armed for all the time");
        let cost = POINT * points;
        let cycle = self.cycle.get_or_insert_default();
        *cycle = CycleSeen { points: cycle.points + points, cost: cycle.cost + cost, ..*cycle };
    }

    /// Points of the next window, in the process that has most.
    pub(super) fn points(&self, running: &[&Traced]) -> Points {
        let watch = self.turn.0;
        let Some(turns) = self.turns.as_ref().filter(|_| watch == Watch::Turn) else {
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
            Some(turns) => turns.draw(running, most, &mut self.random),
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
        if let Some(rate) = self.base.events_per_second().filter(|_| self.is_told_by_events()) {
            return events as f64 / rate;
        }
        let ran = armed.as_secs_f64() * self.load();
        let lost = traps as f64 * self.trap_nanoseconds() * 1e-9;
        (ran - lost).max(ran / SLOWEST) / self.load()
    }

    /// Takes down what points have seen. `natural`: what the window was, in seconds of the processes' usual pace.
    pub(super) fn learn(&mut self, kernel: &Kernel, natural: f64) -> Result<(), SessionError> {
        let Some(turns) = &mut self.turns else { return self.heats.learn(kernel) };
        let seconds = std::mem::replace(&mut self.base.learned, Instant::now()).elapsed().as_secs_f64();
        turns.learn(kernel, seconds, natural)
    }

    /// Sorts points once all have been watched, and evicts some where those that are armed all the time are too much.
    fn sort_if_due(&mut self, kernel: &Kernel, running: &[&Traced]) -> Result<(), SessionError> {
        let is_too_dear = self.is_base_too_dear();
        let wants_sorting = self.turns.as_ref().is_some_and(Turns::wants_sorting);
        if !(wants_sorting || is_too_dear) {
            return Ok(());
        }
        self.learn(kernel, 0.0)?;
        let most = self.most();
        let Some(turns) = &mut self.turns else { return Ok(()) };
        if wants_sorting {
            let sorted = turns.sort(most);
            // Those of other interpreters have nothing new to be seen.
            for traced in running.iter().filter(|traced| sorted.contains(&traced.plan_number())) {
                self.processes.get_mut(&traced.slot.number).into_iter().for_each(Windowed::begin_anew);
            }
        }
        let left = if is_too_dear { turns.evict(most) } else { 1.0 };
        if left < 1.0 {
            self.base.rate = (0.0, 0.0);
            // What came at those that leave is no longer counted: what was counted until now must not weigh windows that come.
            self.processes.values_mut().for_each(|one| one.leave_events(left));
        }
        tracing::debug!(?most, left, kept = turns.count_kept(), "points are sorted");
        Ok(())
    }

    fn is_base_too_dear(&mut self) -> bool {
        let trap = self.trap_nanoseconds() * 1e-9;
        let allowed = TOO_MUCH * self.share * self.load() / trap;
        let base = &mut self.base;
        let (events, seconds) = base.latest;
        // At once, before it costs what ten seconds earn.
        let is_rush = events as f64 > RUSH * allowed;
        if !is_rush && seconds < 1.0 {
            return false;
        }
        base.latest = (0, 0.0);
        base.too_dear = if events as f64 > allowed * seconds { base.too_dear + 1 } else { 0 };
        let is_too_dear = is_rush && seconds < RUSH || base.too_dear >= TOO_DEAR;
        if is_too_dear {
            base.too_dear = 0;
        }
        is_too_dear
    }
}

/// Whether a pop is among these.
fn is_armed(pops: Pops<'_>, point: usize) -> bool {
    pops.levels.and_then(|levels| levels.get(point)).is_some_and(Option::is_some)
}

/// Arms some of these pops.
fn arm_some(
    kernel: &mut Kernel,
    traced: &Traced,
    kept: Pops<'_>,
    points: &[usize],
) -> Result<Vec<Armed>, SessionError> {
    let mut levels = vec![None; kept.levels.map_or(0, <[_]>::len)];
    for point in points {
        if let Some(level) = levels.get_mut(*point) {
            *level = Some(0);
        }
    }
    traced.open(kernel, Watch::Cold, Pops { levels: Some(&levels), ..kept })
}
