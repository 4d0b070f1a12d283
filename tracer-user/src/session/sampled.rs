//! What becomes of the blocks that windows saw: which outlive a second, which live on, and whose memory grows.
//!
//! Frees are not watched. After a window its blocks are looked at from outside, eight times in a second and then every few seconds; what has
//! never been found free, nor as another block, lives (docs/decisions/0028-survivors.md). Which looks are due and what follows from them is in
//! `budget`, how a process is looked at in `eye`. It must not know the kernel half, nor windows but by number.

mod eye;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use self::eye::{Eye, Mark, Wanted};
use super::processes::Processes;
use crate::budget::interval::Estimate;
use crate::budget::leaks::Growth;
use crate::budget::look_pace::LookPace;
use crate::budget::retained::Retained;
use crate::budget::survivors::{Check, Live, MOST_SURVIVORS, Place, Survivor, Survivors};
use crate::budget::waiting::{Candidate, MOST_WAITING, Outlived, Seen, Stage, Waiting, Words as _};
use crate::drain::BlockSeen;

/// Most survivors of malloc's: they are few beside pymalloc's, and each is a read of its own.
const MOST_OF_MALLOC: usize = 2000;
/// Stretches of memory that one read serves.
const READ_BITS: u32 = 14;

/// How many times what windows saw there was in all, and the time that they stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// Of pymalloc's blocks.
    pub pymalloc: f64,
    /// Of malloc's.
    pub malloc: f64,
    /// Seconds.
    pub seconds: f64,
}

/// What is known of one stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampledStack {
    /// Its account.
    pub account: u32,
    /// Bytes that live, of blocks that have outlived the looks: a second.
    pub live_bytes: Estimate,
    /// Their number.
    pub live_count: Estimate,
    /// Mean age of those bytes, seconds; 0 without any.
    pub age_seconds: f64,
    /// Bytes in a second that outlive the looks.
    pub retained_bytes_per_second: Estimate,
    /// How its memory grows; `None`: too little is known to say.
    pub growth: Option<Growth<u32>>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Sampled {
    began: Instant,
    waiting: Waiting<u32, Mark>,
    /// Pymalloc's and malloc's: each has its bound and its scale.
    survivors: [Survivors<u32, Mark>; 2],
    retained: Retained<u32>,
    /// Windows that were told of, and those whose looks are over.
    windows: (u64, u64),
    /// Whose each account is that has had a survivor.
    owners: FxHashMap<u32, Owner>,
    eyes: FxHashMap<u16, Eye>,
    pace: LookPace,
    checks: u64,
    /// When survivors are looked at next.
    next_check: Duration,
}

/// Whose an account is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    slot: u16,
    is_malloc: bool,
}

/// What a look has found, by place.
type FoundAt = FxHashMap<Place, Seen<Mark>>;

impl Sampled {
    /// Nothing yet; time begins now.
    pub fn new(seed: u64) -> Self {
        Self {
            began: Instant::now(),
            waiting: Waiting::new(MOST_WAITING, seed),
            survivors: [Survivors::new(MOST_SURVIVORS, seed), Survivors::new(MOST_OF_MALLOC, !seed)],
            retained: Retained::default(),
            windows: (0, 0),
            owners: FxHashMap::default(),
            eyes: FxHashMap::default(),
            pace: LookPace::default(),
            checks: 0,
            next_check: Duration::ZERO,
        }
    }

    /// A window is over; the last block at an address is whose block it is now. Those before `early` are not followed, and only end what was there. Numbers of
    /// windows grow.
    pub fn window(&mut self, number: u32, blocks: Vec<BlockSeen>, early: usize, ended: Instant) {
        let ended = ended.saturating_duration_since(self.began);
        let mut last: FxHashMap<Place, Candidate<u32>> = FxHashMap::default();
        for (number, block) in blocks.into_iter().enumerate() {
            let place = place(block.process, block.address);
            self.survivors.iter_mut().for_each(|survivors| survivors.handed_out(place, ended));
            if number < early {
                self.waiting.handed_out(place);
            } else {
                last.insert(place, candidate(&block));
            }
        }
        let mut stretches: Vec<_> = last.keys().map(|place| stretch(*place)).collect();
        stretches.sort_unstable();
        stretches.dedup();
        let thinning = self.pace.thinning(ended, stretches.len());
        self.waiting.window(number, ended, last, thinning);
        self.windows.0 += 1;
    }

    /// When it wants to look next; `None`: there is nothing to look at.
    pub fn next_look(&self) -> Option<Instant> {
        let check = self.has_survivors().then_some(self.next_check);
        let next = self.waiting.next_look().into_iter().chain(check).min()?;
        Some(self.began + next)
    }

    /// Looks if it is time to.
    pub fn look_if_due(&mut self, processes: &Processes) {
        let now = self.began.elapsed();
        let is_check_due = self.has_survivors() && self.next_check <= now;
        if is_check_due || self.waiting.next_look().is_some_and(|next| next <= now) {
            self.look(processes, now, is_check_due);
        }
    }

    /// Looks at those that wait if it is time to.
    pub fn look_at_waiting(&mut self, processes: &Processes) {
        let now = self.began.elapsed();
        if self.waiting.next_look().is_some_and(|next| next <= now) {
            self.look(processes, now, false);
        }
    }

    /// Looks at survivors so far.
    pub fn looks(&self) -> u64 {
        self.checks
    }

    /// Looks at all that lives, before a report.
    pub fn last_look(&mut self, processes: &Processes) {
        self.look(processes, self.began.elapsed(), true);
    }

    /// Windows of which all blocks have been looked at for a second.
    pub fn windows_looked_at(&self) -> u64 {
        self.windows.1
    }

    /// Blocks that are taken to live.
    pub fn count_survivors(&self) -> u64 {
        self.survivors.iter().map(|survivors| survivors.len() as u64).sum()
    }

    fn has_survivors(&self) -> bool {
        self.survivors.iter().any(|survivors| !survivors.is_empty())
    }

    fn look(&mut self, processes: &Processes, now: Duration, all_survivors: bool) {
        let begun = Instant::now();
        let mut wanted: FxHashMap<u16, Vec<Wanted>> = FxHashMap::default();
        let mut want = |place: Place, class: u16, bytes: u64| {
            wanted.entry(slot_of(place)).or_default().push(Wanted {
                address: place.address,
                bytes,
                is_malloc: class == 0,
            });
        };
        let due = self.waiting.due(now);
        due.for_each(|(place, candidate)| want(place, candidate.class, candidate.bytes));
        if all_survivors {
            let survivors = self.survivors.iter().flat_map(Survivors::iter);
            survivors.for_each(|(place, survivor)| want(place, survivor.class, survivor.bytes));
        }
        let (found, reads) = self.find(processes, wanted, all_survivors);
        self.settle(now, &found);
        if all_survivors {
            self.checks += 1;
            self.check(now, &found);
            self.next_check = now + self.pace.until_next(reads);
        }
        // Where both are looked at, most reads are for survivors, which have a share of their own.
        self.pace.looked(reads, if all_survivors { 0 } else { reads }, begun.elapsed());
    }

    /// Looks at the processes that run; gives the number of reads too.
    fn find(
        &mut self,
        processes: &Processes,
        mut wanted: FxHashMap<u16, Vec<Wanted>>,
        is_thorough: bool,
    ) -> (FoundAt, usize) {
        let (mut found, mut reads) = (FoundAt::default(), 0);
        for traced in processes.all_running() {
            let slot = traced.slot.number;
            let Some(wanted) = wanted.remove(&slot) else { continue };
            let eye = self.eyes.entry(slot).or_default();
            let mut here = Vec::new();
            reads += eye.look(traced, &wanted, is_thorough, |address, seen| here.push((address, seen)));
            // Of a process that has ended meanwhile, everything looks free.
            if !traced.has_ended() {
                found.extend(here.into_iter().map(|(address, seen)| (place(slot, address), seen)));
            }
        }
        (found, reads)
    }

    /// What waited, and has outlived its looks, is a survivor.
    fn settle(&mut self, now: Duration, found: &FoundAt) {
        let find = |place: Place| found.get(&place).copied().unwrap_or(Seen::Unsure);
        for Outlived { window: _, blocks } in self.waiting.looked(now, find) {
            self.windows.1 += 1;
            let stands_for = |survivor: &Survivor<u32, Mark>| survivor.weight * survivor.bytes as f64;
            self.retained.window(blocks.iter().map(|(_, survivor)| (survivor.stack, stands_for(survivor))));
            for (place, survivor) in blocks {
                let owner = Owner { slot: slot_of(place), is_malloc: survivor.class == 0 };
                self.owners.insert(survivor.stack, owner);
                self.survivors[usize::from(owner.is_malloc)].keep(place, survivor, now);
            }
        }
    }

    fn check(&mut self, now: Duration, found: &FoundAt) {
        for survivors in &mut self.survivors {
            survivors.check(now, |place, survivor| match found.get(&place) {
                Some(Seen::Free) => Check::Gone,
                Some(Seen::There(mark)) if !survivor.words.is_same(mark, Stage::Made) => Check::Gone,
                Some(Seen::There(_) | Seen::Unsure) | None => Check::Same,
            });
        }
    }

    /// A process ended: nothing of it lives.
    pub fn process_ended(&mut self, slot: u16) {
        self.waiting.process_ended(u32::from(slot));
        self.survivors.iter_mut().for_each(|survivors| survivors.process_ended(u32::from(slot)));
        self.eyes.remove(&slot);
    }

    /// An account is no longer what it was.
    pub fn forget_account(&mut self, account: u32) {
        self.waiting.forget(account);
        self.survivors.iter_mut().for_each(|survivors| survivors.forget(account));
        self.retained.forget(account);
        self.owners.remove(&account);
    }

    /// What is known of the stacks of a process.
    pub fn results(&self, slot: u16, scales: Scales) -> Vec<SampledStack> {
        if self.unknown(slot).is_some() {
            return Vec::new();
        }
        let now = self.began.elapsed();
        let scales = [scales.pymalloc, scales.malloc].map(|scale| (scale, scales.seconds));
        let known = [0, 1].map(|table| OfTable::new(&self.survivors[table], slot, scales[table], now));
        // What retained flow counts is of windows whose looks are over.
        let looked_at = self.windows.1 as f64 / self.windows.0.max(1) as f64;
        let own = self.owners.iter().filter(|(_, owner)| owner.slot == slot);
        let mut stacks: Vec<SampledStack> = own
            .map(|(account, owner)| {
                let of_table = &known[usize::from(owner.is_malloc)];
                of_table.stack(*account, self.retained.of(*account), looked_at)
            })
            .collect();
        stacks.sort_unstable_by_key(|stack| stack.account);
        stacks
    }

    /// Why nothing is known of a process; `None`: it is.
    pub fn unknown(&self, slot: u16) -> Option<&str> {
        self.eyes.get(&slot)?.unknown()
    }

    /// Why nothing is known of its malloc.
    pub fn unknown_malloc(&self, slot: u16) -> Option<&str> {
        self.eyes.get(&slot)?.unknown_malloc()
    }
}

/// What is known of the stacks of one allocator in one process.
struct OfTable {
    live: FxHashMap<u32, Live<u32>>,
    growth: FxHashMap<u32, Growth<u32>>,
    scale: f64,
    seconds: f64,
}

impl OfTable {
    fn new(survivors: &Survivors<u32, Mark>, slot: u16, (scale, seconds): (f64, f64), now: Duration) -> Self {
        let live = survivors.live(u32::from(slot), scale, now).into_iter();
        let growth = survivors.leaks().rank(now).into_iter();
        Self {
            live: live.map(|live| (live.stack, live)).collect(),
            growth: growth.map(|growth| (growth.stack, growth.scaled(scale))).collect(),
            scale,
            seconds,
        }
    }

    /// `looked_at`: share of the windows whose looks are over.
    fn stack(&self, account: u32, retained: Estimate, looked_at: f64) -> SampledStack {
        let live = self.live.get(&account);
        let none = Estimate::TooFewWindows { value: 0.0, effective: 0.0 };
        let seconds = self.seconds * looked_at;
        SampledStack {
            account,
            live_bytes: live.map_or(none, |live| live.bytes),
            live_count: live.map_or(none, |live| live.count),
            age_seconds: live.map_or(0.0, |live| live.age),
            retained_bytes_per_second: retained.scaled(if seconds > 0.0 {
                self.scale / seconds
            } else {
                0.0
            }),
            growth: self.growth.get(&account).copied(),
        }
    }
}

const fn place(slot: u16, address: u64) -> Place {
    Place { process: slot as u32, address }
}

const fn slot_of(place: Place) -> u16 {
    place.process as u16
}

const fn stretch(place: Place) -> (u32, u64) {
    (place.process, place.address >> READ_BITS)
}

fn candidate(block: &BlockSeen) -> Candidate<u32> {
    // Class `i` of pymalloc has blocks of `16 * i` bytes here; 0 is malloc's.
    let class = u16::try_from(block.bytes.div_ceil(16)).unwrap_or(u16::MAX).max(1);
    Candidate {
        stack: block.account,
        class: if block.is_malloc { 0 } else { class },
        bytes: if block.is_malloc { block.bytes } else { u64::from(class) * 16 },
        weight: 2_f64.powi(i32::from(block.level)),
    }
}
