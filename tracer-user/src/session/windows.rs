//! Budget mode as it happens: asks the governor, opens windows, and books what they saw.
//!
//! When windows open and what they say of the whole is decided in `budget`; here is what it costs and takes to have one. It must not know
//! stacks, nor outputs.

mod base;
mod one;
mod stretch;

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::tables::{Window as Opening, keeps};

use super::estimates::{Estimates, Known, Sums};
use super::heat::Heats;
use super::kept::Kept;
use super::meter::{Meter, TrapClock};
use super::opening::LOOK;
use super::processes::Processes;
use super::rare_clock::RareClock;
use super::sampled::Sampled;
use super::target::Traced;
use super::turns::Turns;
use super::windowed::{Whole, Windowed};
use super::{SessionError, meter};
use crate::attach::{Armed, Disarming, Kernel, Slot, Watch, disarm};
use crate::budget::costs::CyclePrior;
use crate::budget::governor::{
    Action, Budget, CycleSeen, Governor, Points, ProcessSeen, Resting, Seen, Stopped,
};
use crate::drain::{BlockSeen, FlowReader, PoolOpening, Taken};
use crate::profile::{LiveBy, WindowSummary};
use base::Base;

/// What a window costs its target beside its traps, by what a busy one did not get done in the tenths of a second around it (38 windows, python3.11 of Debian, Linux
/// 6.18, two processors): 16 ms with 9 points in two links, 51 ms with 180 points in five.
const CYCLE: CyclePrior = CyclePrior { cycle: 8e-3, point: 250e-6 };
/// How long arming took there, in seconds; what it takes elsewhere says how much slower or faster that machine is.
const ARMING: CyclePrior = CyclePrior { cycle: 14e-3, point: 160e-6 };
/// How far that is believed.
const MACHINE: (f64, f64) = (0.5, 5.0);
/// The same of processes that ran already, whose windows have one link of few points, and most of whose points are armed all the time: 15 ms with 171 points, 2.0 ms
/// with 20 (medians of 7 on a quiet machine; the loop was traced at every one of them).
const CYCLE_OF_TURNS: CyclePrior = CyclePrior { cycle: 0.4e-3, point: 86e-6 };
/// How long arming took there.
const ARMING_OF_TURNS: CyclePrior = CyclePrior { cycle: 7.5e-3, point: 60e-6 };
/// Shortest and longest window of processes that ran already: many short ones see more of what a program does than few long ones, as arming costs little.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(40);
/// With fewer blocks than this all of a window's are followed.
const FEW_BLOCKS: usize = 64;
/// The last one in so many of a window's blocks is followed, and stands for the others. A power of two.
const LATE_PART: usize = 4;
/// How long a full window waits to be earned: twice what the governor remembers of what was earned.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was armed all the time and is no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Malloc.
    Malloc,
    /// All.
    All,
}

/// The windows of a recording.
#[derive(Debug)]
pub struct Windows {
    governor: Governor,
    random: fastrand::Rng,
    clock: TrapClock,
    reader: FlowReader,
    /// By slot.
    processes: FxHashMap<u16, Windowed>,
    /// Where everything is armed for a while: what, by slot.
    stretch: Option<FxHashMap<u16, Vec<Armed>>>,
    /// Of a command: what lives, while openings of pools and malloc are armed all the time.
    kept: Option<Kept>,
    /// Malloc's part of that is armed.
    keeps_malloc: bool,
    /// That was too much: this is to be disarmed.
    dropped: Option<Dropped>,
    /// The CPU time of processes, and what that took of it; what is older than some seconds hardly counts.
    keeping: (f64, f64),
    /// How often in a row that was too much.
    too_dear: u32,
    /// All has been armed since the beginning, and the kernel half's books are exact.
    is_whole: bool,
    /// Of the latest window or stretch.
    number: u64,
    opened: u64,
    /// Those of them that watched pymalloc's blocks.
    full: u64,
    /// What the next one watches, both kinds in turn, and since when it has been its turn.
    turn: (Watch, Instant),
    stepped: Instant,
    due: Instant,
    cycle: Option<CycleSeen>,
    stopped: Option<Stopped>,
    heats: Heats,
    /// Of processes that ran already: which of their points are armed all the time, and what takes turns.
    turns: Option<Turns>,
    base: Base,
    /// What becomes of the blocks that their windows saw.
    sampled: Option<Sampled>,
    sums: Sums,
    rare: RareClock,
    disarming: Option<Disarming>,
    share: f64,
    /// Why it is not known what lives, where that was given up.
    why_not: Option<String>,
}

impl Windows {
    /// None yet.
    pub fn new(kernel: &mut Kernel, percent: f64, attached: bool) -> Result<Self, SessionError> {
        kernel.set_window(Opening::closed(0))?;
        let keeps = if attached { keeps::BLOCKS } else { keeps::POOLS | keeps::MALLOC };
        kernel.keep_outside_of_windows(keeps)?;
        let mut random = fastrand::Rng::new();
        let (processors, seed) = (meter::processors(), random.u64(..));
        let budget = match attached {
            true => Budget::attached(percent, processors, seed),
            false => Budget::command(percent, processors, seed),
        };
        // Frees are not watched.
        let cycle = if attached { CYCLE_OF_TURNS } else { CYCLE };
        let shortest = if attached { SHORTEST } else { budget.shortest };
        let longest = if attached { LONGEST } else { budget.longest };
        let budget = Budget {
            tail: Duration::ZERO,
            cycle,
            shortest,
            longest,
            ran_before: attached,
            stays_armed: !attached,
            ..budget
        };
        let now = Instant::now();
        Ok(Self {
            governor: Governor::new(budget),
            random,
            clock: TrapClock::start(),
            reader: FlowReader::default(),
            processes: FxHashMap::default(),
            stretch: None,
            kept: (!attached).then(Kept::default),
            keeps_malloc: !attached,
            dropped: None,
            keeping: (0.0, 0.0),
            too_dear: 0,
            is_whole: !attached,
            number: 0,
            opened: 0,
            full: 0,
            turn: (if attached { Watch::Turn } else { Watch::Pops }, now),
            stepped: now,
            due: now,
            cycle: None,
            stopped: None,
            heats: Heats::default(),
            turns: attached.then(Turns::default),
            base: Base::default(),
            sampled: attached.then(|| Sampled::new(seed)),
            sums: Sums::default(),
            rare: RareClock::default(),
            disarming: None,
            share: percent / 100.0,
            why_not: None,
        })
    }

    /// What is armed in processes all the time.
    pub fn base(&self) -> Option<Watch> {
        self.kept.as_ref().map(|_| if self.keeps_malloc { Watch::Kept } else { Watch::Pools })
    }

    /// Whether everything has been seen so far.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether what was armed all the time is to be disarmed; once.
    pub fn take_dropped(&mut self) -> Option<Dropped> {
        self.dropped.take()
    }

    /// A process has come, and may be gone before anything else is due. It is armed at once where all are.
    pub fn came(&mut self, kernel: &Kernel, slot: Slot) -> Result<(), SessionError> {
        self.processes.insert(slot.number, Windowed::new(Meter::read(kernel, slot)?, self.turns.is_some()));
        self.kept.iter_mut().for_each(|kept| kept.forget(slot.number));
        if self.is_whole {
            self.due = Instant::now();
        }
        Ok(())
    }

    /// Pools that were opened; all that came before is known now.
    pub fn opened(&mut self, openings: Vec<PoolOpening>) {
        if let Some(kept) = &mut self.kept {
            kept.opened(openings);
        }
    }

    /// Blocks that the latest window saw in the processes that it was drawn for; what is of earlier ones, or came at points that are armed all the time beside it,
    /// is left out.
    fn saw(&mut self, mut blocks: Vec<BlockSeen>, chosen: &[&Traced], ended: Instant, processes: &Processes) {
        let Some(sampled) = &mut self.sampled else { return };
        let is_of_malloc = self.turn.0 == Watch::Mallocs;
        blocks.retain(|block| {
            let is_drawn = chosen.iter().any(|traced| traced.slot.number == block.process);
            is_drawn && block.window == self.number as u16 && block.is_malloc == is_of_malloc
        });
        // Of what came earlier much has been freed by now and handed out again at points that had no turn.
        let early = if blocks.len() >= FEW_BLOCKS { blocks.len() - blocks.len() / LATE_PART } else { 0 };
        if early > 0 {
            let late = blocks.iter_mut().skip(early);
            late.for_each(|block| block.level += LATE_PART.trailing_zeros() as u8);
        }
        sampled.window(self.number as u32, blocks, early, ended);
        sampled.look_at_waiting(processes);
    }

    /// When [`Windows::step`] wants to be called; `None`: no more.
    pub fn next_step(&self) -> Option<Instant> {
        let look = self.kept.as_ref().and_then(Kept::next_look);
        let sampled = self.sampled.as_ref().and_then(Sampled::next_look);
        self.stopped.is_none().then_some(self.due).into_iter().chain(look).chain(sampled).min()
    }

    /// Does what is due; a window is opened, waited for and closed in one step, which takes a tenth of a second longer than the window. `blocks`: what the kernel half has told of until now; `note`: for what users should know.
    pub fn step(
        &mut self,
        kernel: &mut Kernel,
        processes: &Processes,
        blocks: impl FnOnce() -> Vec<BlockSeen>,
        note: impl FnOnce(&str),
    ) -> Result<(), SessionError> {
        let now = Instant::now();
        if let Some(kept) = &mut self.kept {
            kept.look_if_due(kernel, processes)?;
        }
        if let Some(sampled) = &mut self.sampled {
            sampled.look_if_due(processes);
        }
        if self.stopped.is_some() {
            self.settle(kernel, processes)?;
            return self.drop_if_too_dear(kernel);
        }
        if now < self.due {
            return Ok(());
        }
        self.settle(kernel, processes)?;
        self.drop_if_too_dear(kernel)?;
        let running: Vec<&Traced> = processes.all_running().collect();
        let seen = self.untold();
        // A full window may be more than the processes ever earn.
        if self.turn.0 == Watch::Allocations && self.turn.1.elapsed() > PATIENCE {
            self.turn = (Watch::Rare, now);
        }
        self.tend_base(kernel, &running)?;
        let points = self.points(&running);
        let action = self.governor.step(&Seen {
            elapsed: now.saturating_duration_since(self.stepped),
            processes: &seen,
            points,
            trap_nanoseconds: self.trap_nanoseconds(),
            cycle: self.cycle.take(),
            late: now.saturating_duration_since(self.due),
        });
        tracing::trace!(?action, trap_nanoseconds = self.clock.nanoseconds(), "budget");
        self.stepped = now;
        match action {
            Action::Rest { look_again, why } => {
                if why == Resting::TooDear {
                    // What costs less may fit.
                    let cheaper = match self.turn.0 {
                        Watch::Allocations => Watch::Rare,
                        Watch::Turn => Watch::Mallocs,
                        same => same,
                    };
                    self.turn = (cheaper, now);
                }
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
                self.open(kernel, processes, running, window, blocks)?;
                self.due = Instant::now();
                Ok(())
            }
            Action::Stop(stopped) => {
                note(&format!("no more windows: {stopped}"));
                self.stopped = Some(stopped);
                self.base.disarm();
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
        if self.stretch.is_some() {
            self.clock.end(kernel, u64::MAX, true)?;
            self.clock.begin(kernel)?;
        }
        let is_read = self.stretch.is_some() || self.has_clock();
        let by = self.events();
        let mut rows = if is_read { self.rows(kernel)? } else { FxHashMap::default() };
        for traced in processes.all_running() {
            let slot = traced.slot.number;
            let now = Meter::read(kernel, traced.slot)?;
            let whole = match &self.stretch {
                Some(stretch) if stretch.contains_key(&slot) => self.whole_of_stretch(),
                _ if self.has_clock() && self.keeps_malloc => Whole::Rare,
                _ if self.has_clock() => Whole::Pools,
                _ => Whole::Nothing,
            };
            let rows = if whole == Whole::Nothing { None } else { rows.remove(&slot) };
            let one = self.processes.entry(slot).or_insert_with(|| Windowed::new(now, self.turns.is_some()));
            let outside = one.pass(now, &self.clock, whole, &rows.unwrap_or_default());
            if matches!(whole, Whole::Rare | Whole::Pools) {
                self.rare.pass(outside.events(by));
                self.base.pass(outside.events(by));
                self.keeping.0 += outside.cpu.as_secs_f64();
                self.keeping.1 += outside.traps as f64 * self.clock.nanoseconds() * 1e-9;
            }
        }
        let running: FxHashSet<u16> = processes.all_running().map(|traced| traced.slot.number).collect();
        for (slot, one) in &mut self.processes {
            if !running.contains(slot) && !one.is_over() {
                one.end(Meter::read_ended(kernel, *slot)?, self.keeps_malloc);
                if let Some(kept) = &mut self.kept {
                    kept.ended(*slot);
                }
                self.sampled.iter_mut().for_each(|sampled| sampled.process_ended(*slot));
            }
        }
        // Of those that have ended since: all of it was seen, and how much work it was nobody knows any more.
        for (slot, rows) in rows {
            if let Some(one) = self.processes.get_mut(&slot) {
                one.add_last(self.stretch.is_some(), &rows);
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

    /// Books what is known now: a process is about to end.
    pub fn look(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        if let Some(kept) = &mut self.kept {
            kept.look(kernel, processes)?;
        }
        self.settle(kernel, processes)
    }

    /// The last but one step: if not everything was seen, windows are over, and what lives is looked at for the last time.
    pub fn last_look(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), SessionError> {
        if self.is_whole && self.stretch.is_some() {
            return Ok(());
        }
        self.end_stretch(kernel, processes)?;
        self.sampled.iter_mut().for_each(|sampled| sampled.last_look(processes));
        self.base.disarm();
        self.look(kernel, processes)
    }

    /// The last step: nothing is armed any more, and this is what was found.
    pub fn finish(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<Estimates, SessionError> {
        if self.is_whole && self.stretch.is_some() {
            self.settle(kernel, processes)?;
            if let Some(stretch) = self.stretch.take() {
                disarm(stretch.into_values().flatten());
            }
            return Ok(Estimates::whole(self.cost_percent()));
        }
        self.settle(kernel, processes)?;
        let summary = self.summary();
        let slots: Vec<u16> = self.processes.keys().copied().collect();
        slots.into_iter().try_for_each(|slot| self.add_up(kernel, slot))?;
        let estimates = std::mem::take(&mut self.sums).finish(summary);
        Ok(Estimates { cost_percent: self.cost_percent(), ..estimates })
    }

    /// What is known of the windows themselves.
    fn summary(&self) -> WindowSummary {
        let looks = self.kept.as_ref().map(Kept::looks).unwrap_or_default();
        let why_not = self.kept.as_ref().and_then(Kept::unknown);
        let why_not = why_not.map(|why| format!("what lives is not known: {why}"));
        let sampled = self.sampled.as_ref();
        WindowSummary {
            opened: self.opened,
            full: self.full,
            knows_live: self.knows_sampled()
                || self.kept.as_ref().is_some_and(|kept| kept.unknown().is_none()),
            live_by: if sampled.is_some() { LiveBy::Survivors } else { LiveBy::Pools },
            tails: sampled.map_or(0, Sampled::windows_looked_at),
            looks: sampled.map_or(looks.number, Sampled::looks),
            survivors: sampled.map_or(0, Sampled::count_survivors),
            live_unknown: self.why_not.clone().or(why_not).or_else(|| self.unknown_of_sampled()),
            longest_look_gap_nanoseconds: u64::try_from(looks.longest_gap.as_nanos()).unwrap_or(u64::MAX),
            stopped: self.stopped.map(|stopped| stopped.to_string()),
            ..WindowSummary::default()
        }
    }

    /// What windows say of the whole until now; they go on.
    pub fn estimates_now(
        &mut self,
        kernel: &Kernel,
        processes: &Processes,
    ) -> Result<Estimates, SessionError> {
        self.settle(kernel, processes)?;
        if self.is_whole {
            return Ok(Estimates::whole(self.cost_percent()));
        }
        let mut sums = self.sums.clone();
        for (slot, one) in &self.processes {
            let kept = self.kept.iter().flat_map(|kept| kept.values(*slot));
            let mut one = one.clone();
            sums.add(&mut one, &self.clock, kept);
            let sampled = self.sampled.as_ref().map(|sampled| sampled.results(*slot, one.scales()));
            sampled.iter().flatten().for_each(|stack| sums.sampled(stack));
        }
        Ok(Estimates { cost_percent: self.cost_percent(), ..sums.finish(self.summary()) })
    }

    /// What tracing has cost, of the processes' own CPU time; `None`: not known.
    fn cost_percent(&self) -> Option<f64> {
        self.governor.cost_share().map(|share| share * 100.0)
    }

    /// Whether anything is known of what lives by looking at blocks.
    fn knows_sampled(&self) -> bool {
        let is_known = |sampled: &Sampled| self.processes.keys().any(|slot| sampled.unknown(*slot).is_none());
        self.sampled.as_ref().is_some_and(|sampled| sampled.windows_looked_at() > 0 && is_known(sampled))
    }

    /// What of what lives is not known where blocks are looked at.
    fn unknown_of_sampled(&self) -> Option<String> {
        let sampled = self.sampled.as_ref()?;
        let mut slots = self.processes.keys();
        let unknown =
            slots.clone().find_map(|slot| Some((sampled.unknown(*slot)?, "what lives is not known")));
        let unknown = unknown.or_else(|| {
            slots.find_map(|slot| {
                Some((sampled.unknown_malloc(*slot)?, "malloc's blocks are not among what lives"))
            })
        });
        unknown.map(|(why, what)| format!("{what}: {why}"))
    }

    /// Adds up what is known of a process, for good.
    fn add_up(&mut self, kernel: &Kernel, slot: u16) -> Result<(), SessionError> {
        let Some(mut one) = self.processes.remove(&slot) else { return Ok(()) };
        if let Some(kept) = self.kept.as_ref().filter(|_| self.keeps_malloc)
            && kept.has_missed(kernel, slot)?
        {
            self.sums.missed(slot);
        }
        let kept = self.kept.iter().flat_map(|kept| kept.values(slot));
        self.sums.add(&mut one, &self.clock, kept);
        let sampled = self.sampled.as_ref().map(|sampled| sampled.results(slot, one.scales()));
        sampled.iter().flatten().for_each(|stack| self.sums.sampled(stack));
        if let Some(kept) = &mut self.kept {
            kept.forget(slot);
        }
        Ok(())
    }

    /// These have ended, and their accounts and slots are about to be given back. What is known of their accounts; `None`: their books are exact.
    pub fn close(
        &mut self,
        kernel: &Kernel,
        processes: &Processes,
        slots: &[u16],
    ) -> Result<Option<Known>, SessionError> {
        self.settle(kernel, processes)?;
        for slot in slots {
            if self.is_whole {
                self.processes.remove(slot);
                self.kept.iter_mut().for_each(|kept| kept.forget(*slot));
            } else {
                self.add_up(kernel, *slot)?;
            }
        }
        Ok((!self.is_whole).then(|| self.sums.take_known()))
    }

    /// An account was given back.
    pub fn forget(&mut self, account: u32) {
        self.reader.forget(account);
        self.kept.iter_mut().for_each(|kept| kept.forget_account(account));
        self.sampled.iter_mut().for_each(|sampled| sampled.forget_account(account));
    }
}

/// Points of the one of them that has most, and how many of those may be left out.
fn most_points(running: &[&Traced], watch: Watch) -> Points {
    let all = running.iter().map(|traced| traced.points(watch)).max().unwrap_or(0);
    let pops = running.iter().map(|traced| traced.pops()).max().unwrap_or(0);
    let optional = if watch.draws_pops() { pops.min(all) } else { 0 };
    let [always, optional] =
        [all - optional, optional].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    Points { always, optional }
}

/// What arming and disarming so many points has cost, by how long arming took: most of that time the target does not wait.
fn cost_of_cycle(points: u32, arming: Duration, has_turns: bool) -> Duration {
    let (usual, cost) = if has_turns { (ARMING_OF_TURNS, CYCLE_OF_TURNS) } else { (ARMING, CYCLE) };
    let machine = arming.as_secs_f64() / usual.seconds(f64::from(points));
    Duration::from_secs_f64(cost.seconds(f64::from(points)) * machine.clamp(MACHINE.0, MACHINE.1))
}
