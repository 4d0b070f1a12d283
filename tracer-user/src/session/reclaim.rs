//! Gives back what processes that have ended have used, in steps that hold nobody up: accounts, blocks, code objects, slots.
//!
//! A process goes through three waits. Its probes must be gone: the kernel waits for programs that still run. All that they sent
//! must have been read: a record that comes later would be taken for one of the slot's next owner. And somebody must need the
//! room: a recording of a few processes never does. It must not know what ended processes mean to a recording.

use std::collections::VecDeque;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tracer_ebpf::abi::PROCESSES;

use super::SessionError;
use super::recorder::Recorder;
use crate::attach::{Armed, Kernel, SlotSet, close_accounts, disarm, forget_codes, take_blocks};
use crate::drain::{Totals, account_row, read_totals, variance_of_block};

/// Room is made when this much of the table of live blocks is in use, or one and a half times as much of the accounts or slots.
const SCARCE: f64 = 0.25;
/// From here on without a pause.
const URGENT: f64 = 0.5;
/// Between two sweeps otherwise. One takes 30 ms of the tracer's time with tables of the usual sizes, in steps of a few.
const PAUSE: Duration = Duration::from_secs(1);

/// Process slots of the kernel half's tables; slot 0 is no process.
#[derive(Debug)]
struct Slots {
    fresh: u16,
    /// The one that is free for the longest time first.
    free: VecDeque<u16>,
}

/// A process that has ended.
#[derive(Debug)]
enum Leaving {
    Disarming(u16, JoinHandle<()>),
    /// Nothing of it can run any more.
    Disarmed(u16),
    /// Its last records end at this position of the ring buffer.
    Reading(u16, u64),
}

/// Where a sweep is: the number of the next account, or of the next bucket.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Accounts(usize),
    Blocks(usize),
    Codes(usize),
}

#[derive(Debug)]
struct Sweep {
    slots: Vec<u16>,
    set: SlotSet,
    totals: FxHashMap<u32, Totals>,
    phase: Phase,
}

/// Those that have ended, and what is being given back of them.
#[derive(Debug)]
pub struct Reclaim {
    slots: Slots,
    leaving: Vec<Leaving>,
    sweep: Option<Sweep>,
    last: Option<Instant>,
    /// Accounts that were given back, modulo 2^32.
    given_back: u32,
}

impl Default for Reclaim {
    fn default() -> Self {
        let slots = Slots { fresh: 1, free: VecDeque::new() };
        Self { slots, leaving: Vec::new(), sweep: None, last: None, given_back: 0 }
    }
}

impl Reclaim {
    /// A slot for a process that is about to be armed; `None` when all are taken.
    pub fn next_slot(&self) -> Option<u16> {
        let fresh = (u32::from(self.slots.fresh) < PROCESSES).then_some(self.slots.fresh);
        fresh.or_else(|| self.slots.free.front().copied())
    }

    /// That slot has its process now.
    pub fn take_slot(&mut self, slot: u16) {
        if slot == self.slots.fresh {
            self.slots.fresh += 1;
        } else {
            self.slots.free.retain(|free| *free != slot);
        }
    }

    /// A process has ended, and `armed` is what was armed in it. Disarming waits for the kernel, and others wait to be armed meanwhile.
    pub fn begin(&mut self, slot: u16, armed: Vec<Armed>) {
        self.leaving.push(Leaving::Disarming(slot, std::thread::spawn(move || disarm(armed))));
    }

    /// Returns when all of them are disarmed; nothing is given back any more.
    pub fn stop(&mut self) {
        self.sweep = None;
        for leaving in self.leaving.drain(..) {
            if let Leaving::Disarming(_, thread) = leaving {
                // Dropping links cannot panic; and if it did, they would be gone.
                let _ = thread.join();
            }
        }
    }

    /// Slots of a sweep that has not begun to give back accounts.
    pub fn leaving(&self) -> Vec<u16> {
        let begins = self.sweep.iter().filter(|sweep| matches!(sweep.phase, Phase::Accounts(0)));
        begins.flat_map(|sweep| sweep.slots.iter().copied()).collect()
    }

    /// Whether there is more to do at once.
    pub fn is_busy(&self) -> bool {
        self.sweep.is_some()
    }

    /// Begins a sweep if there is anything to be had, and somebody needs it. Several times a second.
    pub fn look(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        if self.sweep.is_some() || self.leaving.is_empty() {
            return Ok(());
        }
        // In this order: whatever is disarmed before the positions are read has written its last record before them.
        for leaving in &mut self.leaving {
            if let Leaving::Disarming(slot, thread) = leaving
                && thread.is_finished()
            {
                *leaving = Leaving::Disarmed(*slot);
            }
        }
        let positions = kernel.ring_positions()?;
        for leaving in &mut self.leaving {
            if let Leaving::Disarmed(slot) = leaving {
                *leaving = Leaving::Reading(*slot, positions.written);
            }
        }
        let need = self.need(kernel)?;
        let rested = self.last.is_none_or(|last| last.elapsed() > PAUSE);
        if need < SCARCE || need < URGENT && !rested {
            return Ok(());
        }
        let mut slots = Vec::new();
        self.leaving.retain(|leaving| match leaving {
            Leaving::Reading(slot, written) if positions.read >= *written => {
                slots.push(*slot);
                false
            }
            _ => true,
        });
        if slots.is_empty() {
            return Ok(());
        }
        let mut totals = FxHashMap::default();
        for slot in &slots {
            totals.insert(u32::from(*slot), read_totals(kernel, *slot)?);
        }
        self.sweep = Some(Sweep { set: SlotSet::of(&slots), slots, totals, phase: Phase::Accounts(0) });
        Ok(())
    }

    /// How much of what is scarcest is in use.
    fn need(&self, kernel: &Kernel) -> Result<f64, SessionError> {
        let slots = f64::from(self.slots.fresh) - 1.0 - self.slots.free.len() as f64;
        let slots = slots / f64::from(PROCESSES - 1);
        // Live blocks are thinned out from half of their table on; the others may be used up.
        let used_up = kernel.account_fill(self.given_back)?.max(slots);
        Ok(kernel.live_fill()?.max(used_up * 2.0 / 3.0))
    }

    /// The next step of a sweep, some milliseconds at the most. Gives back the slots, with their totals, of which nothing is left in
    /// the tables: they are to be told to [`Reclaim::done`].
    pub fn step(
        &mut self,
        kernel: &Kernel,
        recorder: &mut Recorder,
    ) -> Result<Vec<(u16, Totals)>, SessionError> {
        let Some(mut sweep) = self.sweep.take() else { return Ok(Vec::new()) };
        let next = match sweep.phase {
            Phase::Accounts(from) => {
                let peak_at = |slot| sweep.totals.get(&slot).map_or(0, |totals| totals.peak_at);
                let (given_back, next) = close_accounts(kernel, &sweep.set, from, |number, words| {
                    recorder.close_account(number, account_row(number, words, peak_at));
                })?;
                self.given_back = self.given_back.wrapping_add(given_back);
                Some(next.map_or(Phase::Blocks(0), Phase::Accounts))
            }
            Phase::Blocks(from) => {
                let mut variance = 0.0;
                let next =
                    take_blocks(kernel, &sweep.set, from, |block| variance += variance_of_block(block))?;
                recorder.add_variance(variance);
                Some(next.map_or(Phase::Codes(0), Phase::Blocks))
            }
            Phase::Codes(from) => forget_codes(kernel, from)?.map(Phase::Codes),
        };
        if let Some(phase) = next {
            sweep.phase = phase;
            self.sweep = Some(sweep);
            return Ok(Vec::new());
        }
        let Sweep { slots, mut totals, .. } = sweep;
        self.last = Some(Instant::now());
        tracing::debug!(processes = slots.len(), "what ended has been given back");
        let with_totals = |slot| (slot, totals.remove(&u32::from(slot)).unwrap_or_default());
        Ok(slots.into_iter().map(with_totals).collect())
    }

    /// A slot may have another process.
    pub fn done(&mut self, kernel: &mut Kernel, slot: u16) -> Result<(), SessionError> {
        kernel.free_slot(slot)?;
        self.slots.free.push_back(slot);
        Ok(())
    }
}
