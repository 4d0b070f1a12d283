//! What lives beside windows: pools by the stack that opened them, and malloc's blocks one by one.
//!
//! Frees of pymalloc's blocks are half of all traps, and most of a program's. But its memory is pools, of which one is opened where hundreds of blocks are
//! handed out: which stack opened each is watched all the time, and how full each is can be read from outside at any moment. So the live bytes of all stacks
//! together are those of the pools that were opened while this was watched, and a pool's are those of the stack that opened it. Malloc is watched wholly, as long
//! as that is not too much. The peak is the largest of the looks. It must not know windows.

use std::path::Path;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::abi::{PROCESSES, domain};

use super::SessionError;
use super::processes::Processes;
use super::target::{PROC, Traced};
use crate::attach::{Globals, Kernel};
use crate::census::arenas::{ArenaVariables, find_arenas};
use crate::census::pools::{UsedPool, each_pool};
use crate::discover::memory::{ProcessMemory, mappings};
use crate::drain::{PoolOpening, read_accounts, read_totals};
use crate::profile::{Amount, Domain};

/// Shortest time between two looks: a program that takes 500 MB a second grows by 10 MB meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// A look's share of the time: a look at 210 MiB takes 16 ms (see `census/pools.rs`).
const SHARE: u32 = 8;
/// Pools that are remembered: 16 GiB of 16 KiB each, 24 MB of the tracer's.
const MOST_POOLS: usize = 1 << 20;
/// Looks in a row that may fail: some seconds of them.
const MOST_FAILURES: u32 = 50;
/// A peak that is higher by less is not taken down anew.
const HIGHER: f64 = 1.002;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Kept {
    /// By slot.
    processes: FxHashMap<u16, Of>,
    /// Pools of all of them.
    pools: usize,
    /// Accounts of malloc; `None`: it is not watched.
    mallocs: Option<FxHashSet<u32>>,
    next: Option<Instant>,
    looks: Looks,
    /// Why it is not known what lives, if so.
    unknown: Option<String>,
}

/// What is known of one process.
#[derive(Debug, Default)]
struct Of {
    /// By address: the account that opened it last.
    pools: FxHashMap<u64, u32>,
    /// Pools that it had when it was first looked at and that nobody told of: its parent's.
    inherited: FxHashSet<u64>,
    arenas: Option<ArenaVariables>,
    peak: Moment,
    /// `None`: it was not looked at.
    latest: Option<Moment>,
    /// If every block of it was seen at first: what of pymalloc lived when that ended, which the kernel half goes on to count.
    frozen_bytes: u64,
    /// Looks in a row that failed.
    failures: u32,
    has_ended: bool,
}

/// How closely what lives was followed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looks {
    /// How many there were.
    pub number: u64,
    /// The longest time between two of them.
    pub longest_gap: Duration,
    last: Option<Instant>,
}

/// What lived at one moment.
#[derive(Debug, Clone, Default)]
struct Moment {
    bytes: u64,
    accounts: FxHashMap<u32, Amount>,
    /// Pools of which nobody has said yet who opened them.
    unowned: Vec<(u64, Amount)>,
}

impl Moment {
    fn add(&mut self, account: u32, amount: Amount) {
        self.bytes = self.bytes.saturating_add(amount.bytes);
        self.book(account, amount);
    }

    fn book(&mut self, account: u32, amount: Amount) {
        let held = self.accounts.entry(account).or_default();
        *held = held.plus(amount);
    }

    /// Adds a pool whose owner is not known yet.
    fn wait_for(&mut self, pool: u64, amount: Amount) {
        self.bytes = self.bytes.saturating_add(amount.bytes);
        self.unowned.push((pool, amount));
    }

    /// Gives pools to who opened them. What was not told by now was lost, and is the process's own.
    fn settle(&mut self, slot: u16, pools: &FxHashMap<u64, u32>) {
        for (pool, amount) in std::mem::take(&mut self.unowned) {
            self.book(pools.get(&pool).copied().unwrap_or(u32::from(slot)), amount);
        }
    }

    fn leave_out(&mut self, mallocs: &FxHashSet<u32>) {
        self.accounts.retain(|account, amount| {
            let is_malloc = mallocs.contains(account);
            self.bytes -= if is_malloc { amount.bytes.min(self.bytes) } else { 0 };
            !is_malloc
        });
    }
}

impl Kept {
    /// Pools that were opened, in their order; whatever was opened before this is known now.
    pub fn opened(&mut self, openings: impl IntoIterator<Item = PoolOpening>) {
        for PoolOpening { process, account, pool } in openings {
            if self.pools >= MOST_POOLS {
                self.unknown.get_or_insert_with(|| format!("more than {MOST_POOLS} pools were open"));
                break;
            }
            let pools = &mut self.processes.entry(slot_of(process)).or_default().pools;
            self.pools += usize::from(pools.insert(pool, account).is_none());
        }
        for (slot, of) in &mut self.processes {
            of.peak.settle(*slot, &of.pools);
            of.latest.iter_mut().for_each(|moment| moment.settle(*slot, &of.pools));
            if of.has_ended {
                self.pools -= std::mem::take(&mut of.pools).len();
                of.inherited = FxHashSet::default();
            }
        }
    }

    /// Until now every block was seen: what the kernel half says of the peak is exact.
    pub fn begin(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        let mut totals = FxHashMap::default();
        for traced in processes.all() {
            totals.insert(u32::from(traced.slot.number), read_totals(kernel, traced.slot.number)?);
        }
        let peak_at = |slot| totals.get(&slot).map_or(0, |totals| totals.peak_at);
        let mut mallocs = FxHashSet::default();
        read_accounts(kernel, peak_at, |row| {
            let of = self.processes.entry(slot_of(row.process)).or_default();
            of.peak.book(row.account, row.values.peak);
            if row.domain == Domain::Malloc {
                mallocs.insert(row.account);
            } else {
                of.frozen_bytes = of.frozen_bytes.saturating_add(row.values.live.bytes);
            }
        })?;
        for (slot, totals) in totals {
            self.processes.entry(slot_of(slot)).or_default().peak.bytes = totals.peak_bytes;
        }
        self.mallocs = Some(mallocs);
        self.next = Some(Instant::now());
        Ok(())
    }

    /// When it wants to look next.
    pub fn next_look(&self) -> Option<Instant> {
        self.next.filter(|_| self.unknown.is_none())
    }

    /// Looks if it is time to.
    pub fn look_if_due(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        match self.next_look() {
            Some(next) if next <= Instant::now() => self.look(kernel, processes),
            _ => Ok(()),
        }
    }

    /// What every process that runs holds now.
    pub fn look(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        if self.next_look().is_none() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut has_searched = false;
        let mut moments: FxHashMap<u16, Moment> = FxHashMap::default();
        for traced in processes.all_running() {
            if traced.pages().is_some() {
                self.unknown = Some(format!("process {} uses mimalloc, which has no pools", traced.slot.pid));
                return Ok(());
            }
            let of = self.processes.entry(traced.slot.number).or_default();
            has_searched |= of.arenas.is_none();
            match of.look(traced) {
                Ok(moment) => drop(moments.insert(traced.slot.number, moment)),
                Err(_) if traced.has_ended() => {}
                Err(why) if of.failures > MOST_FAILURES => {
                    self.unknown = Some(format!("process {}: {why}", traced.slot.pid));
                    return Ok(());
                }
                Err(why) => tracing::debug!(%why, "a look failed"),
            }
        }
        if let Some(mallocs) = &mut self.mallocs {
            add_malloc(kernel, &mut moments, mallocs)?;
        }
        for (slot, moment) in moments {
            self.processes.entry(slot).or_default().take_down(moment);
        }
        let now = Instant::now();
        self.looks.count(now);
        // To find where the arenas are takes longer than to look at them, and is done once.
        self.next = Some(now + if has_searched { LOOK } else { LOOK.max((now - begun) * SHARE) });
        Ok(())
    }

    /// How closely what lives was followed.
    pub fn looks(&self) -> Looks {
        self.looks
    }

    /// Why it is not known what lives; `None`: it is.
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// Malloc is not watched any more, and what was known of it is forgotten.
    pub fn drop_malloc(&mut self) {
        let mallocs = self.mallocs.take().unwrap_or_default();
        for of in self.processes.values_mut() {
            of.peak.leave_out(&mallocs);
            of.latest.iter_mut().for_each(|moment| moment.leave_out(&mallocs));
        }
    }

    /// Whether malloc's blocks alone were once more than all that any look has seen: a process may live for less than the time between two.
    pub fn has_missed(&self, kernel: &Kernel, slot: u16) -> Result<bool, SessionError> {
        let (seen, frozen) = self.processes.get(&slot).map_or((0, 0), |of| (of.peak.bytes, of.frozen_bytes));
        Ok(read_totals(kernel, slot)?.peak_bytes.saturating_sub(frozen) > seen)
    }

    /// What each account of a process held at the last look, and at its peak.
    pub fn values(&self, slot: u16) -> impl Iterator<Item = (u32, Amount, Amount)> {
        let of = self.processes.get(&slot).filter(|_| self.unknown.is_none());
        let settled = |moment: &Moment| {
            let mut moment = moment.clone();
            if let Some(of) = of {
                moment.settle(slot, &of.pools);
            }
            moment.accounts
        };
        let live = of.and_then(|of| of.latest.as_ref()).map(settled).unwrap_or_default();
        let peak = of.map(|of| settled(&of.peak)).unwrap_or_default();
        let none = Amount::default();
        let live = live.into_iter().map(move |(account, amount)| (account, amount, none));
        live.chain(peak.into_iter().map(move |(account, amount)| (account, none, amount)))
    }

    /// An account is no longer what it was.
    pub fn forget_account(&mut self, account: u32) {
        if let Some(mallocs) = &mut self.mallocs {
            mallocs.remove(&account);
        }
    }

    /// A process has ended: its pools are gone, as soon as what looks saw of them has been told.
    pub fn ended(&mut self, slot: u16) {
        if let Some(of) = self.processes.get_mut(&slot) {
            of.has_ended = true;
        }
    }

    /// A process is gone, and its slot another's.
    pub fn forget(&mut self, slot: u16) {
        self.pools -= self.processes.remove(&slot).map_or(0, |of| of.pools.len());
    }
}

impl Of {
    /// What it holds in its pools now.
    fn look(&mut self, traced: &Traced) -> Result<Moment, String> {
        let seen = self.look_at_pools(traced);
        match &seen {
            Ok(_) => self.failures = 0,
            // Its arenas are not there yet, or no longer, or a table grows just now: they are looked for again.
            Err(_) => {
                self.arenas = None;
                self.failures += 1;
            }
        }
        seen
    }

    fn look_at_pools(&mut self, traced: &Traced) -> Result<Moment, String> {
        let target = &traced.target;
        let memory = ProcessMemory::open(Path::new(PROC), target.pid).map_err(|error| error.to_string())?;
        let mapped = mappings(Path::new(PROC), target.pid).map_err(|error| error.to_string())?;
        let interpreter = &target.interpreter;
        let mut moment = Moment::default();
        let variables = match self.arenas.take() {
            Some(variables) => variables,
            None => match find_arenas(&memory, &mapped, &interpreter.layout, interpreter.runtime) {
                Ok(variables) => variables,
                // It has not started, or takes all from malloc.
                Err(_) if self.pools.is_empty() => return Ok(moment),
                Err(error) => return Err(error.to_string()),
            },
        };
        let is_first = self.latest.is_none();
        let show = |pool: UsedPool| {
            let amount = Amount { bytes: pool.bytes, count: pool.blocks };
            match self.pools.get(&pool.address) {
                Some(account) => moment.add(*account, amount),
                None if is_first => drop(self.inherited.insert(pool.address)),
                None if self.inherited.contains(&pool.address) => {}
                // Windows are not interrupted to hear of new ones.
                None => moment.wait_for(pool.address, amount),
            }
        };
        each_pool(&memory, &mapped, &interpreter.layout, &variables, show)
            .map_err(|error| error.to_string())?;
        self.arenas = Some(variables);
        Ok(moment)
    }

    fn take_down(&mut self, moment: Moment) {
        if moment.bytes as f64 > self.peak.bytes as f64 * HIGHER {
            self.peak.clone_from(&moment);
        }
        self.latest = Some(moment);
    }
}

impl Looks {
    fn count(&mut self, now: Instant) {
        let gap = self.last.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.longest_gap = self.longest_gap.max(gap);
        self.number += 1;
    }
}

/// Adds what malloc has handed out and not got back.
fn add_malloc(
    kernel: &Kernel,
    moments: &mut FxHashMap<u16, Moment>,
    mallocs: &mut FxHashSet<u32>,
) -> Result<(), SessionError> {
    let [_, used, ..]: Globals = kernel.words("GLOBALS", 0)?;
    let used = u32::try_from(used).unwrap_or(u32::MAX).min(kernel.sizes().accounts).max(PROCESSES);
    kernel.read_allocated(0..used, |account, now| {
        let slot = slot_of((now.owner >> 40) as u32);
        let is_malloc = now.owner != 0 && now.owner >> 32 & 3 == u64::from(domain::MALLOC);
        if is_malloc
            && now.live_bytes > 0
            && let Some(moment) = moments.get_mut(&slot)
        {
            mallocs.insert(account);
            moment.add(account, Amount { bytes: now.live_bytes, count: now.live_count });
        }
    })?;
    Ok(())
}

const fn slot_of(process: u32) -> u16 {
    (process & (PROCESSES - 1)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(bytes: u64) -> Amount {
        Amount { bytes, count: bytes / 16 }
    }

    fn opening(account: u32, pool: u64) -> PoolOpening {
        PoolOpening { process: 3, account, pool }
    }

    fn looked(kept: &mut Kept, pools: &[(u64, u64)]) {
        let of = kept.processes.entry(3).or_default();
        let mut moment = Moment::default();
        for (pool, bytes) in pools {
            match of.pools.get(pool) {
                Some(account) => moment.add(*account, amount(*bytes)),
                None => moment.wait_for(*pool, amount(*bytes)),
            }
        }
        of.take_down(moment);
    }

    fn at_peak(kept: &Kept, account: u32) -> u64 {
        kept.values(3).filter(|(of, ..)| *of == account).map(|(_, _, peak)| peak.bytes).sum()
    }

    #[test]
    fn a_pool_that_is_told_of_after_the_look_is_still_its_openers() {
        let mut kept = Kept::default();
        kept.opened([opening(2000, 0x1000)]);
        looked(&mut kept, &[(0x1000, 160), (0x2000, 320), (0x3000, 48)]);
        // Nobody has asked the ring since: it is found all the same, and what was lost is the process's own.
        kept.opened([opening(2001, 0x2000)]);
        assert_eq!((at_peak(&kept, 2000), at_peak(&kept, 2001), at_peak(&kept, 3)), (160, 320, 48));
    }

    #[test]
    fn the_pools_of_one_that_has_ended_are_given_up_once_its_looks_are_settled() {
        let mut kept = Kept::default();
        kept.opened([opening(2000, 0x1000)]);
        looked(&mut kept, &[(0x1000, 160), (0x2000, 320)]);
        kept.ended(3);
        assert_eq!(kept.pools, 1);
        kept.opened([opening(2001, 0x2000)]);
        assert_eq!((kept.pools, at_peak(&kept, 2001)), (0, 320));
        kept.forget(3);
        assert_eq!((kept.pools, at_peak(&kept, 2001)), (0, 0));
    }

    #[test]
    fn the_peak_is_the_highest_look_and_malloc_can_be_left_out_of_it() {
        let mut kept = Kept { mallocs: Some([2001].into_iter().collect()), ..Kept::default() };
        kept.opened([opening(2000, 0x1000), opening(2001, 0x2000)]);
        looked(&mut kept, &[(0x1000, 160), (0x2000, 640)]);
        looked(&mut kept, &[(0x1000, 320)]);
        assert_eq!((at_peak(&kept, 2000), at_peak(&kept, 2001)), (160, 640));
        kept.drop_malloc();
        looked(&mut kept, &[(0x1000, 176)]);
        assert_eq!((at_peak(&kept, 2000), at_peak(&kept, 2001)), (176, 0));
    }

    #[test]
    fn looks_say_how_far_apart_they_were() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        for milliseconds in [0, 20, 320, 340] {
            looks.count(start + Duration::from_millis(milliseconds));
        }
        assert_eq!((looks.number, looks.longest_gap), (4, Duration::from_millis(300)));
    }
}
