//! One window, from the drawing of its points to what it says.
//!
//! It must not know when windows open, nor what they say of the whole.

use std::time::{Duration, Instant};

use tracer_ebpf::tables::Window as Opening;

use super::{Windows, cost_of_cycle};
use crate::attach::{Kernel, Watch, begin_to_disarm};
use crate::budget::governor::{CycleSeen, Window};
use crate::drain::BlockSeen;
use crate::session::SessionError;
use crate::session::meter::Did;
use crate::session::opening::{arm, read, wait, wait_for_events};
use crate::session::processes::Processes;
use crate::session::target::Traced;
use crate::session::turns::Turns;
use crate::session::windowed::Opened;

impl Windows {
    /// One window.
    pub(super) fn open(
        &mut self,
        kernel: &mut Kernel,
        processes: &Processes,
        mut running: Vec<&Traced>,
        window: Window,
        blocks: impl FnOnce() -> Vec<BlockSeen>,
    ) -> Result<(), SessionError> {
        let all = running.len();
        self.random.shuffle(&mut running);
        running.truncate(window.processes as usize);
        let watch = self.turn.0;
        self.draw(&running, window);
        let by = self.events();
        let events = self.rare.begin_window(&mut self.random).filter(|_| self.opens_by_events());
        if let Some(events) = events {
            wait_for_events(kernel, &running, events, by)?;
        }
        let begun = Instant::now();
        let pops = |traced: &Traced| match &self.turns {
            Some(turns) => turns.drawn(traced),
            None => self.heats.pops(traced),
        };
        let (chosen, armed) = arm(kernel, running, watch, |traced| pops(traced))?;
        let arming = begun.elapsed();
        // What came while arming is not the window's.
        self.settle(kernel, processes)?;
        self.number += 1;
        let before = read(kernel, &chosen)?;
        self.clock.begin(kernel)?;
        kernel.set_window(Opening::open(self.number))?;
        let start = Instant::now();
        let kept = &mut self.kept;
        // Only windows that are weighed by them end by them.
        let events = if watch == Watch::Pops { self.rare.most() } else { u64::MAX };
        wait(kernel, &chosen, &before, window, (events, by), |kernel| {
            kept.as_mut().map_or(Ok(()), |kept| kept.look_if_due(kernel, processes))
        })?;
        let length = start.elapsed();
        kernel.set_window(Opening::closed(self.number))?;
        // At once: pools are opened and malloc is called while the points are disarmed, many times as fast.
        let after = read(kernel, &chosen)?;
        let mut rows = self.rows(kernel)?;
        let did: Vec<Did> = after.iter().zip(&before).map(|(now, before)| now.since(before)).collect();
        let traps = did.iter().map(|did| did.traps).sum();
        let events = did.iter().map(|did| did.events(by)).sum();
        match watch {
            Watch::Pops | Watch::Turn => {
                self.rare.end_window(events, length >= window.length || traps >= window.traps);
            }
            _ => self.rare.end_other_window(),
        }
        self.clock.end(kernel, traps, watch.draws_pops())?;
        // Before anything else: what is freed meanwhile is handed out again, and looks as alive as before.
        self.saw(blocks(), &chosen, start + length, processes);
        // One after the other: two at once would hold up the process longer.
        self.disarming = Some(begin_to_disarm(armed));
        // Traps since it closed have counted nothing, and cost what they cost.
        let late = (start.elapsed().saturating_sub(length)).as_secs_f64();
        let uncounted = traps as f64 * late / length.as_secs_f64().max(1e-3) * self.trap_nanoseconds() * 1e-9;
        let uncounted = Duration::try_from_secs_f64(uncounted.min(late)).unwrap_or_default();
        let represents = window.represents.mul_f64(all as f64 / chosen.len().max(1) as f64);
        self.opened += 1;
        self.full += u64::from(watch.draws_pops());
        let next = match watch {
            Watch::Rare if self.turns.is_none() => Watch::Allocations,
            Watch::Pops if self.keeps_malloc => Watch::Pops,
            // What points there are must be known first.
            Watch::Turn if self.turns.as_ref().is_some_and(Turns::is_learning) => Watch::Turn,
            // Without a clock openings of pools tell how much of its work a process gets done in windows (`budget/pace.rs`).
            Watch::Turn if !self.is_told_by_events() => Watch::Rare,
            Watch::Turn => Watch::Mallocs,
            Watch::Rare | Watch::Mallocs if self.turns.is_some() => Watch::Turn,
            Watch::Pops if self.has_clock() => Watch::Mallocs,
            Watch::Mallocs if self.has_clock() => Watch::Pops,
            _ => Watch::Rare,
        };
        self.turn = (next, Instant::now());
        let opened = Opened {
            watch,
            armed: length,
            represents,
            keeps_malloc: self.keeps_malloc,
            has_events: self.has_clock(),
        };
        for (traced, did) in chosen.iter().zip(&did) {
            let rows = rows.remove(&traced.slot.number).unwrap_or_default();
            if let Some(one) = self.processes.get_mut(&traced.slot.number) {
                one.book(opened, *did, &self.clock, &rows);
            }
        }
        // Of processes that were not drawn: what is watched all the time.
        let has_clock = self.has_clock();
        for (slot, rows) in rows {
            if let Some(one) = self.processes.get_mut(&slot).filter(|_| has_clock) {
                one.book_beside(self.keeps_malloc, &rows);
            }
        }
        let points = chosen.iter().map(|traced| match watch.draws_pops() {
            true => traced.points(watch) + self.count_drawn(traced) - traced.pops(),
            false => traced.points(watch),
        });
        let points: usize = points.sum();
        if watch.draws_pops() {
            let natural = self.natural_seconds(length, traps, events);
            self.learn(kernel, natural)?;
        }
        let points = u32::try_from(points).unwrap_or(u32::MAX);
        let cost = cost_of_cycle(points, arming, self.turns.is_some()) + uncounted;
        self.cycle = Some(CycleSeen { points, cost, armed: length, traps });
        let cpu: Duration = did.iter().map(|did| did.cpu).sum();
        let rare: u64 = events;
        tracing::debug!(?watch, points, ?arming, ?length, ?cpu, traps, rare, "a window");
        Ok(())
    }
}
