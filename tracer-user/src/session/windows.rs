//! Budget mode as it happens: asks the governor, opens windows, and books what they saw.
//!
//! When windows open and what they say of the whole is decided in `budget`; here is what it costs and takes to have one. It must not know
//! stacks, nor outputs.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::tables::Window as Opening;

use super::meter::{Did, Meter, TrapClock};
use super::processes::Processes;
use super::target::Traced;
use super::windowed::{Opened, Windowed};
use super::{SessionError, meter};
use crate::attach::{Armed, Kernel, Watch, disarm};
use crate::budget::costs::CyclePrior;
use crate::budget::governor::{
    Action, Budget, CycleSeen, Governor, Points, ProcessSeen, Seen, Stopped, Window,
};
use crate::budget::interval::Estimate;
use crate::drain::{FlowReader, Taken};
use crate::profile::{Amount, WindowSummary};

/// How often a window looks whether it has met its limit of traps: at two million a second it is passed by 2,000.
const LOOK: Duration = Duration::from_millis(1);
/// What a window costs its target beside its traps, by what a busy one did not get done in the tenths of a second around it (38 windows, python3.11 of Debian, Linux
/// 6.18, two processors): 16 ms with 9 points in two links, 51 ms with 180 points in five.
const CYCLE: CyclePrior = CyclePrior { cycle: 8e-3, point: 250e-6 };
/// How long arming took there, in seconds; what it takes elsewhere says how much slower or faster that machine is.
const ARMING: CyclePrior = CyclePrior { cycle: 14e-3, point: 160e-6 };
/// How long a full window waits to be earned: twice what the governor remembers of what was earned.
const PATIENCE: Duration = Duration::from_secs(20);
/// How far that is believed.
const MACHINE: (f64, f64) = (0.5, 5.0);

/// The windows of a recording.
#[derive(Debug)]
pub struct Windows {
    governor: Governor,
    random: fastrand::Rng,
    clock: TrapClock,
    reader: FlowReader,
    /// By slot; slots are not given back in this mode.
    processes: FxHashMap<u16, Windowed>,
    /// Where everything is armed for a while: what, by slot.
    stretch: Option<FxHashMap<u16, Vec<Armed>>>,
    /// Of the latest window or stretch.
    number: u64,
    opened: u64,
    /// What the next one watches, both kinds in turn, and since when it has been its turn.
    turn: (Watch, Instant),
    stepped: Instant,
    due: Instant,
    cycle: Option<CycleSeen>,
    stopped: Option<Stopped>,
}

/// What windows say of the whole.
#[derive(Debug, Default)]
pub struct Estimates {
    /// Allocated by each account.
    pub allocated: FxHashMap<u32, Amount>,
    /// Half the width of the 95 % interval of all allocated bytes; `None`: too few windows to know.
    pub bytes_error: Option<u64>,
    /// Share of the processes' own work that was seen.
    pub seen_fraction: f64,
    /// Windows that were opened.
    pub windows: u64,
    /// What it cost, in percent of the CPU time that the processes used for themselves; `None`: they used none.
    pub cost_percent: Option<f64>,
    /// How many times as long as by itself a process took where all blocks were watched, at the most; `None`: not known.
    pub slowdown: Option<f64>,
    /// Why no more windows were opened, if so.
    pub stopped: Option<String>,
}

impl Estimates {
    /// What reports say of them.
    pub fn summary(&self) -> WindowSummary {
        let (allocated_bytes_error, stopped) = (self.bytes_error, self.stopped.clone());
        WindowSummary { opened: self.windows, allocated_bytes_error, slowdown: self.slowdown, stopped }
    }
}

impl Windows {
    /// None yet.
    pub fn new(kernel: &mut Kernel, percent: f64, attached: bool) -> Result<Self, SessionError> {
        kernel.set_window(Opening::closed(0))?;
        let mut random = fastrand::Rng::new();
        let (processors, seed) = (meter::processors(), random.u64(..));
        let budget = match attached {
            true => Budget::attached(percent, processors, seed),
            false => Budget::command(percent, processors, seed),
        };
        // Frees are not watched.
        let budget = Budget { tail: Duration::ZERO, cycle: CYCLE, ..budget };
        let now = Instant::now();
        Ok(Self {
            governor: Governor::new(budget),
            random,
            clock: TrapClock::start(kernel),
            reader: FlowReader::default(),
            processes: FxHashMap::default(),
            stretch: None,
            number: 0,
            opened: 0,
            turn: (Watch::Rare, now),
            stepped: now,
            due: now,
            cycle: None,
            stopped: None,
        })
    }

    /// When [`Windows::step`] wants to be called; `None`: no more.
    pub fn next_step(&self) -> Option<Instant> {
        self.stopped.is_none().then_some(self.due)
    }

    /// Does what is due; a window is opened, waited for and closed in one step of at most a tenth of a second. `note`: for what users should know.
    pub fn step(
        &mut self,
        kernel: &mut Kernel,
        processes: &Processes,
        note: impl FnOnce(&str),
    ) -> Result<(), SessionError> {
        let now = Instant::now();
        if self.stopped.is_some() {
            return self.settle(kernel, processes);
        }
        if now < self.due {
            return Ok(());
        }
        self.settle(kernel, processes)?;
        let running: Vec<&Traced> = processes.all_running().collect();
        let seen = self.untold();
        // A full window may be more than the processes ever earn.
        if self.turn.0 == Watch::Allocations && self.turn.1.elapsed() > PATIENCE {
            self.turn = (Watch::Rare, now);
        }
        let points = running.iter().map(|traced| traced.points(self.turn.0)).max().unwrap_or(0);
        let action = self.governor.step(&Seen {
            elapsed: now.saturating_duration_since(self.stepped),
            processes: &seen,
            points: Points { always: u32::try_from(points).unwrap_or(u32::MAX), optional: 0 },
            trap_nanoseconds: self.trap_nanoseconds(),
            cycle: self.cycle.take(),
            late: now.saturating_duration_since(self.due),
        });
        tracing::trace!(?action, trap_nanoseconds = self.clock.nanoseconds(), "budget");
        self.stepped = now;
        match action {
            Action::Rest { look_again, .. } => {
                self.due = now + look_again;
                self.end_stretch(kernel, processes)
            }
            Action::StayArmed { look_again, traps } => {
                // No more traps than that can come until then, however busy all processors get.
                let fastest = traps as f64 * self.trap_nanoseconds() * 1e-9 / f64::from(meter::processors());
                let soon = Duration::try_from_secs_f64(fastest).unwrap_or(look_again).max(LOOK);
                self.due = now + look_again.min(soon);
                self.stretch_to(kernel, &running)
            }
            Action::Open(window) => {
                self.end_stretch(kernel, processes)?;
                self.open(kernel, running, window)?;
                self.due = Instant::now();
                Ok(())
            }
            Action::Stop(stopped) => {
                note(&format!("no more windows: {stopped}"));
                self.stopped = Some(stopped);
                self.end_stretch(kernel, processes)
            }
        }
    }

    /// What a trap costs: by ticks where they tell, of the process in which it is dearest.
    fn trap_nanoseconds(&self) -> f64 {
        let by_ticks = self.processes.values().filter_map(Windowed::trap_by_ticks);
        by_ticks.reduce(f64::max).unwrap_or_else(|| self.clock.nanoseconds())
    }

    /// What the governor has not been told: of those that run, and the last of those that have ended.
    fn untold(&mut self) -> Vec<ProcessSeen> {
        let all = self.processes.values_mut().map(|one| (one.is_over(), one.take_untold()));
        all.filter(|(is_over, untold)| !is_over || untold.traps > 0).map(|(_, untold)| untold).collect()
    }

    /// Books what every process has done since this was last asked.
    fn settle(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        let mut rows = match self.stretch {
            Some(_) => {
                self.clock.end(kernel, u64::MAX, true)?;
                self.clock.begin(kernel)?;
                self.rows(kernel)?
            }
            None => FxHashMap::default(),
        };
        for traced in processes.all_running() {
            let slot = traced.slot.number;
            let now = Meter::read(kernel, traced.slot)?;
            let is_whole = self.stretch.as_ref().is_some_and(|stretch| stretch.contains_key(&slot));
            let rows = is_whole.then(|| rows.remove(&slot).unwrap_or_default());
            let one = self.processes.entry(slot).or_insert_with(|| Windowed::new(now));
            one.pass(now, &self.clock, rows);
        }
        let running: FxHashSet<u16> = processes.all_running().map(|traced| traced.slot.number).collect();
        for (slot, one) in &mut self.processes {
            if !running.contains(slot) && !one.is_over() {
                one.end(Meter::read_ended(kernel, *slot)?);
            }
        }
        // Of those that have ended since: all of it was seen, and how much work it was nobody knows any more.
        for (slot, rows) in rows {
            if let Some(one) = self.processes.get_mut(&slot) {
                one.add_last(&rows);
            }
        }
        Ok(())
    }

    /// What accounts have allocated since this was last asked, by process.
    fn rows(&mut self, kernel: &Kernel) -> Result<FxHashMap<u16, Vec<Taken>>, SessionError> {
        let mut rows: FxHashMap<u16, Vec<Taken>> = FxHashMap::default();
        for taken in self.reader.take(kernel)? {
            rows.entry(taken.process).or_default().push(taken);
        }
        Ok(rows)
    }

    /// One window.
    fn open(
        &mut self,
        kernel: &mut Kernel,
        mut running: Vec<&Traced>,
        window: Window,
    ) -> Result<(), SessionError> {
        let all = running.len();
        self.random.shuffle(&mut running);
        running.truncate(window.processes as usize);
        let watch = self.turn.0;
        let begun = Instant::now();
        let (chosen, armed) = arm(kernel, running, watch)?;
        let arming = begun.elapsed();
        self.number += 1;
        let before = read(kernel, &chosen)?;
        self.clock.begin(kernel)?;
        kernel.set_window(Opening::open(self.number))?;
        let start = Instant::now();
        wait(kernel, &chosen, &before, window)?;
        let length = start.elapsed();
        kernel.set_window(Opening::closed(self.number))?;
        let after = read(kernel, &chosen)?;
        let did: Vec<Did> = after.iter().zip(&before).map(|(now, before)| now.since(before)).collect();
        let traps = did.iter().map(|did| did.traps).sum();
        self.clock.end(kernel, traps, watch == Watch::Allocations)?;
        let begun = Instant::now();
        disarm(armed);
        let disarming = begun.elapsed();
        let represents = window.represents.mul_f64(all as f64 / chosen.len().max(1) as f64);
        self.opened += 1;
        self.turn = (if watch == Watch::Rare { Watch::Allocations } else { Watch::Rare }, Instant::now());
        let opened = Opened { watch, armed: length, represents };
        let mut rows = self.rows(kernel)?;
        for (traced, did) in chosen.iter().zip(&did) {
            let rows = rows.remove(&traced.slot.number).unwrap_or_default();
            if let Some(one) = self.processes.get_mut(&traced.slot.number) {
                one.book(opened, *did, &self.clock, &rows);
            }
        }
        let points: usize = chosen.iter().map(|traced| traced.points(watch)).sum();
        let points = u32::try_from(points).unwrap_or(u32::MAX);
        let cost = cost_of_cycle(points, arming);
        self.cycle = Some(CycleSeen { points, cost, armed: length, traps });
        let cpu: Duration = did.iter().map(|did| did.cpu).sum();
        tracing::debug!(?watch, points, ?arming, ?length, ?cpu, traps, ?disarming, "a window");
        Ok(())
    }

    /// Has everything armed, what has come since as well.
    fn stretch_to(&mut self, kernel: &mut Kernel, running: &[&Traced]) -> Result<(), SessionError> {
        let mut stretch = self.stretch.take().unwrap_or_default();
        let is_gone = |slot: &u16| !running.iter().any(|traced| traced.slot.number == *slot);
        let gone: Vec<u16> = stretch.keys().copied().filter(is_gone).collect();
        disarm(gone.iter().filter_map(|slot| stretch.remove(slot)).flatten());
        if running.is_empty() {
            return Ok(());
        }
        let is_new = stretch.is_empty();
        let missing = running.iter().filter(|traced| !stretch.contains_key(&traced.slot.number)).copied();
        let missing: Vec<&Traced> = missing.collect();
        let begun = Instant::now();
        let mut points = 0;
        for traced in missing {
            let (chosen, armed) = arm(kernel, vec![traced], Watch::Allocations)?;
            points += chosen.iter().map(|traced| traced.points(Watch::Allocations)).sum::<usize>();
            stretch.extend(chosen.iter().map(|traced| traced.slot.number).zip([armed]));
        }
        if points > 0 {
            let points = u32::try_from(points).unwrap_or(u32::MAX);
            let cost = cost_of_cycle(points, begun.elapsed());
            self.cycle = Some(CycleSeen { points, cost, ..CycleSeen::default() });
        }
        if is_new {
            // What was used while arming was not seen.
            for traced in running {
                let now = Meter::read(kernel, traced.slot)?;
                let Some(one) = self.processes.get_mut(&traced.slot.number) else { continue };
                one.pass(now, &self.clock, None);
            }
            self.number += 1;
            self.clock.begin(kernel)?;
            kernel.set_window(Opening::open(self.number))?;
        }
        self.stretch = Some(stretch);
        Ok(())
    }

    /// Disarms what is armed for longer.
    fn end_stretch(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), SessionError> {
        if self.stretch.is_none() {
            return Ok(());
        }
        kernel.set_window(Opening::closed(self.number))?;
        self.settle(kernel, processes)?;
        if let Some(stretch) = self.stretch.take() {
            disarm(stretch.into_values().flatten());
        }
        Ok(())
    }

    /// Books what is known now: a process is about to end.
    pub fn look(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        self.settle(kernel, processes)
    }

    /// The last step: nothing is armed any more, and this is what was found.
    pub fn finish(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<Estimates, SessionError> {
        self.end_stretch(kernel, processes)?;
        self.settle(kernel, processes)?;
        let mut estimates = Estimates {
            windows: self.opened,
            cost_percent: self.governor.cost_share().map(|share| share * 100.0),
            stopped: self.stopped.map(|stopped| stopped.to_string()),
            ..Estimates::default()
        };
        let (mut squares, mut is_known, mut seen, mut all) = (0.0, true, 0.0, 0.0);
        for one in self.processes.values_mut() {
            one.correct(&self.clock);
            tracing::debug!(pace = ?one.pace(), slowdown = ?one.slowdown(), "what windows say of a process");
            for (account, flow) in one.flows() {
                let amount = Amount { bytes: whole(flow.bytes.value()), count: whole(flow.count.value()) };
                estimates.allocated.insert(account, amount);
            }
            for total in one.totals() {
                match total.bytes {
                    Estimate::Known { interval, .. } => squares += interval.half_width().powi(2),
                    Estimate::TooFewWindows { value, .. } => is_known &= value <= 0.0,
                }
            }
            let (own, watched) = one.progress();
            (all, seen) = (all + own, seen + watched);
            is_known &= !one.has_unknown_pace();
            estimates.slowdown = estimates.slowdown.into_iter().chain(one.slowdown()).reduce(f64::max);
        }
        estimates.bytes_error = is_known.then(|| whole(squares.sqrt()));
        estimates.seen_fraction = if all > 0.0 { (seen / all).min(1.0) } else { 0.0 };
        Ok(estimates)
    }
}

/// What arming and disarming so many points has cost, by how long arming took: most of that time the target does not wait.
fn cost_of_cycle(points: u32, arming: Duration) -> Duration {
    let machine = arming.as_secs_f64() / ARMING.seconds(f64::from(points));
    Duration::from_secs_f64(CYCLE.seconds(f64::from(points)) * machine.clamp(MACHINE.0, MACHINE.1))
}

/// Arms those that can be: who has ended meanwhile is left out.
fn arm<'a>(
    kernel: &mut Kernel,
    running: Vec<&'a Traced>,
    watch: Watch,
) -> Result<(Vec<&'a Traced>, Vec<Armed>), SessionError> {
    let (mut chosen, mut armed) = (Vec::new(), Vec::new());
    for traced in running {
        match traced.open(kernel, watch) {
            Ok(links) => {
                chosen.push(traced);
                armed.extend(links);
            }
            Err(_) if traced.has_ended() => {}
            // It may be about to end, or to be another program. The others go on.
            Err(error) => tracing::warn!("process {} is left out of a window: {error}", traced.slot.pid),
        }
    }
    Ok((chosen, armed))
}

fn read(kernel: &Kernel, chosen: &[&Traced]) -> Result<Vec<Meter>, SessionError> {
    chosen.iter().map(|traced| Meter::read(kernel, traced.slot)).collect()
}

/// Waits until a window is over, or has seen what it may.
fn wait(kernel: &Kernel, chosen: &[&Traced], before: &[Meter], window: Window) -> Result<(), SessionError> {
    let end = Instant::now() + window.length;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
        let now = read(kernel, chosen)?;
        let traps: u64 = now.iter().zip(before).map(|(now, before)| now.since(before).traps).sum();
        if traps >= window.traps {
            return Ok(());
        }
    }
}

/// The nearest whole number.
#[expect(clippy::cast_sign_loss, reason = "not negative, and the cast saturates")]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}
