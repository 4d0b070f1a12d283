//! What is armed for longer than a window: everything, while that fits, and what is watched all the time beside windows, until that is too much.
//!
//! It must not know when either is, nor what is seen.

use std::time::Instant;

use tracer_ebpf::tables::{Window as Opening, keeps};

use super::{Dropped, Windows, cost_of_cycle};
use crate::attach::{Kernel, Pops, Watch, disarm};
use crate::budget::governor::CycleSeen;
use crate::session::SessionError;
use crate::session::meter::Meter;
use crate::session::opening::arm;
use crate::session::processes::Processes;
use crate::session::rare_clock::RareClock;
use crate::session::target::Traced;
use crate::session::windowed::{Whole, Windowed};

/// Share of the budget that what is armed all the time may take; the rest is for windows.
const KEPT_SHARE: f64 = 0.6;
/// Seconds of the processes' CPU time from which that is judged.
const KEPT_SECONDS: f64 = 0.3;
/// How often in a row it must be too much.
const TOO_DEAR: u32 = 3;

impl Windows {
    /// What is seen of processes in which everything is armed.
    pub(super) fn whole_of_stretch(&self) -> Whole {
        let has_malloc = self.is_whole || self.keeps_malloc || self.kept.is_none();
        if has_malloc { Whole::Everything } else { Whole::Blocks }
    }

    /// Has everything armed, what has come since as well.
    pub(super) fn stretch_to(
        &mut self,
        kernel: &mut Kernel,
        running: &[&Traced],
    ) -> Result<(), SessionError> {
        let mut stretch = self.stretch.take().unwrap_or_default();
        let is_gone = |slot: &u16| !running.iter().any(|traced| traced.slot.number == *slot);
        let gone: Vec<u16> = stretch.keys().copied().filter(is_gone).collect();
        disarm(gone.iter().filter_map(|slot| stretch.remove(slot)).flatten());
        if running.is_empty() {
            // What comes next is armed at once, and all has still been seen.
            self.stretch = self.is_whole.then_some(stretch);
            return Ok(());
        }
        let is_new = stretch.is_empty();
        if self.turns.is_none() {
            self.heats.draw(running, None, &mut self.random);
        }
        let missing = running.iter().filter(|traced| !stretch.contains_key(&traced.slot.number)).copied();
        let missing: Vec<&Traced> = missing.collect();
        let begun = Instant::now();
        let watch = match &self.kept {
            Some(_) if self.is_whole => Watch::Blocks,
            Some(_) => Watch::Pops,
            None => Watch::Allocations,
        };
        let mut points = 0;
        for traced in missing {
            let (chosen, mut armed) = match &self.turns {
                Some(turns) => arm(kernel, vec![traced], Watch::Turn, |traced| turns.hot(traced))?,
                None => arm(kernel, vec![traced], watch, |traced| self.heats.pops(traced))?,
            };
            if self.turns.is_some() {
                armed.append(&mut arm(kernel, vec![traced], Watch::Mallocs, |_| Pops::default())?.1);
            }
            points += chosen.iter().map(|traced| traced.points(watch)).sum::<usize>();
            stretch.extend(chosen.iter().map(|traced| traced.slot.number).zip([armed]));
        }
        if points > 0 {
            let points = u32::try_from(points).unwrap_or(u32::MAX);
            let cost = cost_of_cycle(points, begun.elapsed(), self.turns.is_some());
            self.cycle = Some(CycleSeen { points, cost, ..CycleSeen::default() });
        }
        if is_new {
            // What was used while arming was not seen.
            for traced in running {
                let now = Meter::read(kernel, traced.slot)?;
                let Some(one) = self.processes.get_mut(&traced.slot.number) else { continue };
                let kind = match (&self.kept, self.keeps_malloc) {
                    (Some(_), true) => Whole::Rare,
                    (Some(_), false) => Whole::Pools,
                    (None, _) if self.base.is_armed() => Whole::Pools,
                    (None, _) => Whole::Nothing,
                };
                one.pass(now, &self.clock, kind, &[]);
            }
            self.number += 1;
            self.clock.begin(kernel)?;
            kernel.set_window(if self.is_whole { Opening::NONE } else { Opening::open(self.number) })?;
        }
        self.stretch = Some(stretch);
        Ok(())
    }

    /// Disarms what is armed for longer.
    pub(super) fn end_stretch(
        &mut self,
        kernel: &mut Kernel,
        processes: &Processes,
    ) -> Result<(), SessionError> {
        if self.stretch.is_none() && !self.is_whole {
            return Ok(());
        }
        kernel.set_window(Opening::closed(self.number))?;
        self.settle(kernel, processes)?;
        if let Some(stretch) = self.stretch.take() {
            disarm(stretch.into_values().flatten());
        }
        if self.turns.is_none() {
            self.heats.learn(kernel)?;
        }
        self.is_no_longer_whole(kernel, processes)
    }

    /// From now on not everything is seen.
    fn is_no_longer_whole(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        if std::mem::take(&mut self.is_whole)
            && let Some(kept) = &mut self.kept
        {
            kept.begin(kernel, processes)?;
        }
        Ok(())
    }

    /// What is armed all the time must leave something for windows.
    pub(super) fn drop_if_too_dear(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        let (used, taken) = self.keeping;
        if used < KEPT_SECONDS || self.kept.is_none() {
            return Ok(());
        }
        self.keeping = (0.0, 0.0);
        let share = taken / (used - taken).max(used / 100.0);
        // Start-up is dear, for its stacks are new, and passes.
        self.too_dear = if share > KEPT_SHARE * self.share { self.too_dear + 1 } else { 0 };
        if self.too_dear < TOO_DEAR {
            return Ok(());
        }
        self.too_dear = 0;
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let percent = share * 100.0;
        if std::mem::take(&mut self.keeps_malloc) {
            kept.drop_malloc();
            self.processes.values_mut().for_each(Windowed::leave_malloc);
            self.rare = RareClock::default();
            self.why_not = Some(format!(
                "malloc's blocks are not among what lives: to watch all of them and the openings of pools would cost {percent:.0} % (raise --budget)"
            ));
            self.dropped = Some(Dropped::Malloc);
            kernel.keep_outside_of_windows(keeps::POOLS)?;
        } else {
            self.why_not = Some(format!(
                "what lives is not known: to watch openings of pools all the time would cost {percent:.0} % (raise --budget)"
            ));
            self.kept = None;
            self.processes.values_mut().for_each(Windowed::leave_strata);
            self.dropped = Some(Dropped::All);
            self.turn.0 = Watch::Rare;
            kernel.keep_outside_of_windows(0)?;
        }
        Ok(())
    }
}
