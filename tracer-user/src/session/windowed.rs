//! One process's windows: what each saw, and what they say together.
//!
//! Two kinds of window, because a trap takes some fifty times as long as a block of pymalloc. *Rare* ones watch malloc and the openings of pools; they hardly slow
//! the process, so the time that they cover is known, and what they say of malloc's blocks can be trusted. *Full* ones watch pymalloc's blocks too. How
//! much of its work the process got done in them is told by its calls of malloc, whose rate the others know. Where the rare events are watched all the time
//! (`kept.rs`) windows are weighed by them alone. It must not know how windows are made.

use std::time::{Duration, Instant};

use super::meter::{Did, Events, Meter, TrapClock};
use super::sampled::Scales;
use crate::attach::Watch;
use crate::budget::flows::{Flow, Flows, Taken, View};
use crate::budget::governor::ProcessSeen;
use crate::budget::interval::Estimate;
use crate::budget::pace::{Correction, Pace, Seen};
use crate::budget::progress::Span;
use crate::budget::strata::{Row, Strata};
use crate::drain;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Windowed {
    pymalloc: Flows<u32>,
    malloc: Flows<u32>,
    /// Pymalloc's again, where the rare events are watched all the time.
    strata: Strata<u32>,
    is_by_kept: bool,
    /// Its own work before any were counted, in seconds.
    before_events: f64,
    /// It has ended, at this age.
    ended: Option<Duration>,
    /// They are no longer.
    has_left_strata: bool,
    /// What windows saw since this was last asked: it is in what comes next once more.
    booked: Did,
    /// When it came.
    began: Instant,
    /// When it was last asked what it had done.
    asked: Instant,
    /// Its own work, and the time that passed meanwhile, in seconds; what is older than [`RECENT`] hardly counts.
    recent: (f64, f64),
    at: Meter,
    /// Its last word has been heard.
    is_over: bool,
    untold: ProcessSeen,
    /// By calls of malloc, and by openings of pools.
    paces: [Pace; 2],
    /// Seconds that it ran while anything was armed, those that were not user time, and traps.
    armed: (f64, f64, f64),
    /// Rare windows, weighted: the seconds of work that they were taken to have seen, those that it ran without our programs, and traps.
    rare: (f64, f64, f64),
    /// The same of full ones.
    turned: (f64, f64, f64),
    /// Seconds that it ran in all other time, and those that were not user time.
    unarmed: (f64, f64),
    /// See [`Windowed::begin_anew`].
    learned: Option<Learned>,
}

/// What windows saw in which points were learned.
#[derive(Debug, Clone)]
struct Learned {
    pymalloc: Flows<u32>,
    paces: [Pace; 2],
    turned: (f64, f64, f64),
}

/// Full windows below which those count too in which points were learned: as many as turns at most.
const FEW_WINDOWS: f64 = 8.0;

/// Seconds after which a third of what a process did still counts for how busy it is.
const RECENT: f64 = 1.5;

/// Seconds armed from which user time, which is counted in ticks of 4 ms as a rule, tells what traps cost: 75 of them are ± 12 %.
const TICKS_TELL: f64 = 0.3;

/// Share of its work from which a process counts as seen: what it does while it is looked at for the last time is not.
const MOSTLY: f64 = 0.98;
/// Ticks of traps below which they say nothing: 30 are ± 18 %.
const FEWEST_TICKS: f64 = 30.0;
/// What a trap takes at the least.
const LEAST_TRAP_NANOSECONDS: f64 = 300.0;

/// Seconds of a program's own between two pops at the least: a loop of `object()` takes 36 ns, most take 40 to 100 (decisions/0025).
const OWN_OF_A_POP: f64 = 36e-9;

/// Seconds that a trap takes beside its program where ticks do not tell: 1.41 us of a pop in a loop, less 0.70 of the program and 0.04 of the loop's own. What is paid from the
/// budget is taken higher than that (`meter::TRAP_NANOSECONDS`); here too high is as wrong as too low.
const BESIDE: f64 = 650e-9;

/// Seconds of a tick, at the usual 250 in a second.
const TICK: f64 = 4e-3;

/// A window, as far as it is the same for all processes.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// What was armed.
    pub watch: Watch,
    /// How long all of it was.
    pub armed: Duration,
    /// The time that it stands for.
    pub represents: Duration,
    /// Whether malloc is watched all the time.
    pub keeps_malloc: bool,
    /// Whether events are counted that are watched all the time.
    pub has_events: bool,
}

/// What was seen of a stretch outside of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// No allocation.
    Nothing,
    /// How many pools were opened.
    Pools,
    /// That, and malloc's.
    Rare,
    /// All but malloc's.
    Blocks,
    /// All.
    Everything,
}

impl Windowed {
    /// Begins now.
    ///
    /// `is_by_kept`: it ran already, and how much of its work it got done is told by points that are armed all the time.
    pub fn new(at: Meter, is_by_kept: bool) -> Self {
        Self {
            is_by_kept,
            before_events: 0.0,
            ended: None,
            pymalloc: Flows::default(),
            malloc: Flows::default(),
            strata: Strata::default(),
            has_left_strata: false,
            booked: Did::default(),
            began: Instant::now(),
            asked: Instant::now(),
            recent: (0.0, 0.0),
            at,
            is_over: false,
            untold: ProcessSeen::default(),
            paces: Default::default(),
            armed: (0.0, 0.0, 0.0),
            rare: (0.0, 0.0, 0.0),
            turned: (0.0, 0.0, 0.0),
            unarmed: (0.0, 0.0),
            learned: None,
        }
    }

    /// Processors that it uses by itself, about now. The CPU time of a process that runs is as old as the last tick of its processor (kernel/sched/cputime.c,
    /// `thread_group_cputime`): it is right over a second, and in one window it says nothing.
    pub fn utilisation(&self) -> f64 {
        self.recent.0 / self.recent.1.max(1e-3)
    }

    /// Follows how busy it is by what it did in so many seconds, of which probes took `lost`.
    fn follow_load(&mut self, progress: f64, passed: f64, lost: f64) {
        let keep = (-passed / RECENT).exp();
        let threads = ((progress + lost) / passed.max(1e-6)).max(1.0);
        self.recent.0 = self.recent.0 * keep + progress;
        self.recent.1 = self.recent.1 * keep + (passed - lost / threads).max(0.0);
    }

    /// Books what was done since this was last asked. `rows`: what was allocated, as far as all of it was seen. What was done outside of windows.
    pub fn pass(&mut self, now: Meter, clock: &TrapClock, whole: Whole, rows: &[drain::Taken]) -> Did {
        let did = self.look(now);
        self.book_kept(rows);
        let progress = clock.progress(did).as_secs_f64();
        let passed = std::mem::replace(&mut self.asked, Instant::now()).elapsed().as_secs_f64();
        self.follow_load(progress, passed, did.cpu.as_secs_f64() - progress);
        let outside = did.without(std::mem::take(&mut self.booked));
        let seconds = did.cpu.as_secs_f64();
        let events = outside.events(self.by(!matches!(whole, Whole::Pools | Whole::Blocks))) as f64;
        if matches!(whole, Whole::Everything | Whole::Blocks) {
            self.note_armed(seconds, did);
            self.pymalloc.full(progress, values(rows, false));
            self.strata.full(events, strata_rows(rows));
            match whole {
                Whole::Everything => self.malloc.full(progress, values(rows, true)),
                _ => self.malloc.pass(progress),
            }
            return outside;
        }
        self.unarmed.0 += seconds;
        self.unarmed.1 += seconds - did.user.as_secs_f64();
        self.pymalloc.pass(progress);
        if whole == Whole::Nothing {
            self.before_events += progress;
            self.malloc.pass(progress);
            return outside;
        }
        match whole {
            Whole::Rare => self.malloc.full(progress, values(rows, true)),
            _ => self.malloc.pass(progress),
        }
        self.strata.pass(events, strata_rows(rows));
        let (traps, seconds) = (outside.traps, outside.cpu.as_secs_f64());
        let programs = traps as f64 * clock.run_seconds();
        let seen = |events| Seen { events, traps, seconds, programs };
        let [by_mallocs, by_pools] = &mut self.paces;
        // What is counted all the time.
        if !self.is_by_kept {
            by_pools.alone(&seen(outside.pools));
        }
        if whole == Whole::Rare {
            by_mallocs.alone(&seen(outside.mallocs));
        }
        outside
    }

    /// From now on pools alone are watched all the time.
    pub fn leave_malloc(&mut self) {
        self.strata.begin_anew();
    }

    /// From now on fewer events are counted, of which `left` is the share.
    pub fn leave_events(&mut self, left: f64) {
        self.strata.leave_events(left);
    }

    /// Its points have been sorted. Windows in which they were learned watched an eighth of the points whatever these were hit: a few are slowed thirtyfold and the others not at all,
    /// and one correction cannot be right for both (allocated by a loop that only allocates was off by +22 to -16 %). So they count only while there are few others.
    pub fn begin_anew(&mut self) {
        let paces = self.paces.each_mut().map(Pace::begin_anew);
        let turned = std::mem::take(&mut self.turned);
        self.learned = Some(Learned { pymalloc: self.pymalloc.begin_anew(), paces, turned });
    }

    /// Windows in which points were learned count as well where there are few others.
    fn take_learned(&mut self) {
        if self.pymalloc.windows() >= FEW_WINDOWS {
            return;
        }
        let Some(Learned { pymalloc, paces, turned }) = self.learned.take() else { return };
        self.pymalloc.take_back(&pymalloc);
        self.paces.iter_mut().zip(&paces).for_each(|(ours, theirs)| ours.take_back(theirs));
        self.turned.0 += turned.0;
        self.turned.1 += turned.1;
        self.turned.2 += turned.2;
    }

    /// How long it has been there.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// From now on nothing is watched all the time: windows are weighed by time, and always were beside.
    pub fn leave_strata(&mut self) {
        self.has_left_strata = true;
    }

    fn by(&self, with_malloc: bool) -> Events {
        match (self.is_by_kept, with_malloc) {
            (true, _) => Events::Kept,
            (false, false) => Events::Pools,
            (false, true) => Events::PoolsAndMallocs,
        }
    }

    /// Whether windows are weighed by what is counted all the time.
    pub fn is_told_by_events(&self) -> bool {
        self.strata.is_known() && !self.has_left_strata
    }

    /// Books what was seen beside a window that did not watch it.
    pub fn book_beside(&mut self, keeps_malloc: bool, rows: &[drain::Taken]) {
        self.book_kept(rows);
        self.strata.pass(0.0, strata_rows(rows));
        if keeps_malloc {
            self.malloc.full(0.0, values(rows, true));
        }
    }

    /// What it did since it was last looked at, of which the governor will be told.
    fn look(&mut self, now: Meter) -> Did {
        let did = now.since(&self.at);
        self.at = now;
        self.untold.cpu_time += did.cpu;
        self.untold.traps += did.traps;
        did
    }

    /// It has ended: what it did in its last moment cost something. `now`: without the CPU time, which nobody knows any more.
    pub fn end(&mut self, now: Meter, with_malloc: bool) {
        let outside = self.look(now).without(std::mem::take(&mut self.booked));
        self.strata.pass(outside.events(self.by(with_malloc)) as f64, []);
        self.is_over = true;
        self.ended = Some(self.began.elapsed());
    }

    /// Whether [`Windowed::end`] has been called.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Books what was seen in full before its end. `is_whole`: all of it was, and not the rare events alone.
    pub fn add_last(&mut self, is_whole: bool, rows: &[drain::Taken]) {
        self.book_kept(rows);
        self.pymalloc.full(0.0, values(rows, false));
        self.malloc.full(0.0, values(rows, true));
        match is_whole {
            true => self.strata.full(0.0, strata_rows(rows)),
            false => self.strata.pass(0.0, strata_rows(rows)),
        }
    }

    /// What the governor has not been told.
    pub fn take_untold(&mut self) -> ProcessSeen {
        std::mem::take(&mut self.untold)
    }

    /// Books what a window saw.
    pub fn book(&mut self, opened: Opened, did: Did, clock: &TrapClock, rows: &[drain::Taken]) {
        let Opened { watch, armed, represents, keeps_malloc, has_events } = opened;
        self.booked = self.booked.plus(did);
        self.book_kept(rows);
        let utilisation = self.utilisation();
        let seconds = armed.as_secs_f64() * utilisation;
        self.note_armed(seconds, did);
        // The stretch that is booked next has this window in it.
        self.unarmed.0 -= seconds;
        self.unarmed.1 -= seconds - did.user.as_secs_f64();
        let programs = did.traps as f64 * clock.run_seconds();
        let seen = |events| Seen { events, traps: did.traps, seconds, programs };
        let beside = self.beside_program(clock);
        self.paces.iter_mut().for_each(|pace| pace.set_trap(beside));
        let cpu = armed.mul_f64(utilisation.max(1.0));
        let lost = programs + did.traps as f64 * beside;
        let progress = cpu.saturating_sub(Duration::try_from_secs_f64(lost).unwrap_or(Duration::MAX));
        let is_full = watch.draws_pops();
        let least = match self.pace().and_then(Pace::own_of_a_trap) {
            _ if is_full && self.is_by_kept => OWN_OF_A_POP * did.traps as f64,
            Some(own) if is_full => own * did.traps as f64,
            _ => 0.0,
        };
        let span = Span { represents, armed, cpu, progress, least };
        let (Some(weight), progress) = (span.weight(), span.natural() * utilisation) else { return };
        let view = View { weight, progress, tail: false };
        let watched = self.watched(watch, keeps_malloc);
        let counted = self.paces.iter_mut().zip([did.mallocs, did.pools]).zip(watched);
        for ((pace, events), _) in counted.filter(|(_, is_watched)| *is_watched) {
            if is_full {
                pace.full(weight, progress, &seen(events));
            } else {
                pace.alone(&seen(events));
            }
        }
        let believed = if is_full { &mut self.turned } else { &mut self.rare };
        believed.0 += weight * progress;
        believed.1 += weight * (seconds - programs);
        believed.2 += weight * did.traps as f64;
        let flows = if is_full { &mut self.pymalloc } else { &mut self.malloc };
        flows.window(view, values(rows, !is_full));
        if watch == Watch::Turn && !has_events {
            // Before any event was counted: by time alone.
        } else if watch.draws_pops() && watch != Watch::Allocations {
            self.strata.window(did.events(self.by(keeps_malloc)) as f64, strata_rows(rows));
        } else {
            self.strata.pass(did.events(self.by(keeps_malloc)) as f64, strata_rows(rows));
        }
        if keeps_malloc {
            self.malloc.full(0.0, values(rows, true));
        }
    }

    /// Whether a window counts calls of malloc, and openings of pools.
    fn watched(&self, watch: Watch, keeps_malloc: bool) -> [bool; 2] {
        let of_malloc = keeps_malloc || !matches!(watch, Watch::Pops | Watch::Turn);
        // Of a command these are counted all the time.
        let of_pools = !self.is_by_kept || watch != Watch::Mallocs;
        [of_malloc, of_pools]
    }

    /// Books what came at points that are armed all the time: all of it was seen.
    fn book_kept(&mut self, rows: &[drain::Taken]) {
        let kept = || {
            rows.iter().filter(|row| row.kept_count > 0).map(|row| {
                let taken =
                    Taken { bytes: row.kept_bytes as f64, count: row.kept_count as f64, ..Taken::default() };
                (row.account, taken)
            })
        };
        self.pymalloc.full(0.0, kept());
        self.strata.full(0.0, kept().map(|(stack, taken)| Row { stack, taken, events: 0.0 }));
    }

    fn note_armed(&mut self, seconds: f64, did: Did) {
        self.armed.0 += seconds;
        self.armed.1 += seconds - did.user.as_secs_f64();
        self.armed.2 += did.traps as f64;
    }

    /// Seconds that a trap takes beside its program: by ticks, as soon as they tell.
    fn beside_program(&self, clock: &TrapClock) -> f64 {
        let by_ticks = self.trap_by_ticks().map(|whole| whole * 1e-9 - clock.program_seconds());
        by_ticks.unwrap_or(BESIDE).max(0.0)
    }

    /// What a trap takes by ticks, in nanoseconds: what the kernel did for the process while it was armed, less what it does for it else. `None`: not known.
    pub fn trap_by_ticks(&self) -> Option<f64> {
        let (seconds, kernel, traps) = self.armed;
        let usual = if self.unarmed.0 > TICKS_TELL { self.unarmed.1 / self.unarmed.0 } else { 0.0 };
        let by_traps = (kernel - seconds * usual.clamp(0.0, 1.0)).max(0.0);
        // A trap without a program takes 300 ns (design: F1).
        let each = (by_traps / traps * 1e9).clamp(LEAST_TRAP_NANOSECONDS, 50_000.0);
        (seconds >= TICKS_TELL && by_traps >= FEWEST_TICKS * TICK && traps >= 1000.0).then_some(each)
    }

    /// Ticks of the kernel that traps took; `None`: not known.
    fn ticks_of_traps(&self) -> Option<f64> {
        Some(self.trap_by_ticks()? * 1e-9 * self.armed.2 / TICK)
    }

    /// The event that tells best how far windows are off.
    pub fn pace(&self) -> Option<&Pace> {
        let known = self.paces.iter().filter_map(|pace| Some((pace, pace.correction()?.error)));
        known.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(pace, _)| pace)
    }

    /// By how much full windows slowed it; `None`: not known.
    pub fn slowdown(&self) -> Option<f64> {
        if self.is_by_kept {
            let (believed, ran, _) = self.turned;
            return (believed > 0.0).then(|| (ran / believed).max(1.0));
        }
        self.pace()?.slowdown()
    }

    /// Has the estimates corrected by what is known of its pace.
    pub fn correct(&mut self, clock: &TrapClock) {
        self.take_learned();
        // What a trap takes is known better now than it was in the first windows.
        let beside = self.beside_program(clock);
        self.paces.iter_mut().for_each(|pace| pace.set_trap(beside));
        if let Some(correction) = self.by_time(self.rare, beside) {
            self.malloc.correct(correction);
        }
        let (all, before) = (self.pymalloc.progress(), self.before_events);
        if self.is_by_kept && before > 0.0 && all > before {
            self.strata.stretch(all / (all - before));
        }
        let by_time = self.by_time(self.turned, beside).filter(|_| self.is_by_kept);
        let by_events = self.pace().and_then(Pace::correction);
        let known = by_events.into_iter().chain(by_time);
        let best = known.min_by(|one, other| one.error.total_cmp(&other.error));
        self.pymalloc.correct(best.unwrap_or(Correction::NONE));
    }

    /// What windows are to be corrected by, now that it is known that a trap takes `beside` seconds beside its program. `None`: there were none.
    fn by_time(&self, (believed, ran, traps): (f64, f64, f64), beside: f64) -> Option<Correction> {
        let least = if self.is_by_kept { traps * OWN_OF_A_POP } else { ran / 20.0 };
        let own = (ran - traps * beside).max(least);
        if own <= 0.0 || believed <= 0.0 {
            return None;
        }
        // What a trap takes is known as well as ticks tell it, or else to a half.
        let doubt = self.ticks_of_traps().map_or(0.5, |ticks| 1.0 / ticks.max(4.0).sqrt());
        Some(Correction { factor: believed / own, error: doubt * traps * beside / own })
    }

    /// What each account has allocated.
    pub fn flows(&self) -> impl Iterator<Item = (u32, Flow)> {
        let of = |flows: &Flows<u32>| -> Vec<(u32, Flow)> {
            flows.stacks().filter_map(|account| Some((account, flows.stack(account)?))).collect()
        };
        let of_pymalloc = match self.is_told_by_events() {
            true => self.strata.stacks().collect(),
            false => of(&self.pymalloc),
        };
        of_pymalloc.into_iter().chain(of(&self.malloc))
    }

    /// Bytes that both allocators have handed out, each with the number of windows that say so.
    pub fn totals(&self) -> [(Estimate, f64); 2] {
        let of_pymalloc = match self.is_told_by_events() {
            true => (self.strata.total_bytes(), self.strata.windows()),
            false => (self.pymalloc.total().bytes, self.pymalloc.windows()),
        };
        [of_pymalloc, (self.malloc.total().bytes, self.malloc.windows())]
    }

    /// How many times what windows saw there was, since it came.
    pub fn scales(&self) -> Scales {
        let pymalloc =
            if self.is_told_by_events() { self.strata.scale() } else { self.pymalloc.plain_scale() };
        Scales {
            pymalloc,
            malloc: self.malloc.plain_scale(),
            seconds: self.ended.unwrap_or_else(|| self.began.elapsed()).as_secs_f64(),
        }
    }

    /// Seconds of its own work, and those of them in which pymalloc's blocks were seen.
    pub fn progress(&self) -> (f64, f64) {
        (self.pymalloc.progress(), self.pymalloc.seen())
    }

    /// Whether it did work of which neither a full look nor any window saw pymalloc's blocks: they are missing, and what was seen is not all.
    pub fn has_unseen_work(&self) -> bool {
        let (own, seen) = self.progress();
        let has_windows = self.pymalloc.windows() > 0.0 || self.strata.windows() > 0.0;
        !has_windows && seen < own * MOSTLY
    }

    /// Whether full windows say something, and nothing says how much of its work they saw.
    pub fn has_unknown_pace(&self) -> bool {
        !self.is_told_by_events()
            && !self.is_by_kept
            && self.pymalloc.windows() > 0.0
            && self.pace().is_none()
    }
}

/// What rows of pymalloc's say, with the pools that were opened.
fn strata_rows(rows: &[drain::Taken]) -> impl Iterator<Item = Row<u32>> {
    let of_pymalloc = rows.iter().filter(|row| !row.is_malloc);
    of_pymalloc.map(|row| {
        let taken = Taken { bytes: row.bytes as f64, count: row.count as f64, ..Taken::default() };
        Row { stack: row.account, taken, events: row.pools as f64 }
    })
}

/// What rows of one allocator say, by account.
fn values(rows: &[drain::Taken], of_malloc: bool) -> impl Iterator<Item = (u32, Taken)> {
    rows.iter().filter(move |row| row.is_malloc == of_malloc).map(|row| {
        (row.account, Taken { bytes: row.bytes as f64, count: row.count as f64, ..Taken::default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_counts_while_there_is_little_else() {
        let taken = |bytes| Taken { bytes, count: 1.0, ..Taken::default() };
        let view = View { weight: 1.0, progress: 0.1, tail: false };
        let mut one = Windowed::new(Meter::default(), true);
        one.pymalloc.pass(10.0);
        (0..8).for_each(|_| one.pymalloc.window(view, [(7, taken(5.0))]));
        one.begin_anew();
        assert_eq!(one.pymalloc.windows(), 0.0);
        let mut now = one.clone();
        now.take_learned();
        assert!((now.pymalloc.stack(7).unwrap().bytes.value() - 500.0).abs() < 1e-6);
        (0..8).for_each(|_| one.pymalloc.window(view, [(7, taken(6.0))]));
        one.take_learned();
        assert!((one.pymalloc.stack(7).unwrap().bytes.value() - 600.0).abs() < 1e-6);
    }

    /// A command of a second whose beginning was seen in full said ± 0.0 % of a thirtieth of what it had allocated.
    #[test]
    fn work_that_nothing_saw_is_told_from_work_that_was_seen() {
        let mut one = Windowed::new(Meter::default(), false);
        assert!(!one.has_unseen_work());
        one.pymalloc.full(1.0, []);
        assert!(!one.has_unseen_work());
        one.pymalloc.pass(0.5);
        assert!(one.has_unseen_work());
        one.pymalloc.window(View { weight: 1.0, progress: 0.1, tail: false }, []);
        assert!(!one.has_unseen_work());
    }
}
