//! What lives beside windows: pools by the stack that opened them, and malloc's blocks one by one.
//!
//! Frees of pymalloc's blocks are half of all traps, and most of a program's. But its memory is pools, of which one is opened where hundreds of blocks are
//! handed out: which stack opened each is watched all the time, and how full each is can be read from outside at any moment. So the live bytes of all stacks together are
//! those of the pools, exactly, and a pool's are those of the stack that opened it. Malloc is called seldom enough to be watched wholly.
//! The peak is the largest of the looks. It must not know windows.

use std::collections::hash_map::Entry;
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
    /// By process slot and address: the account that opened it last.
    pools: FxHashMap<(u16, u64), u32>,
    arenas: FxHashMap<u16, ArenaVariables>,
    peaks: FxHashMap<u16, Moment>,
    latest: FxHashMap<u16, Moment>,
    /// Accounts of malloc; `None`: it is not watched.
    mallocs: Option<FxHashSet<u32>>,
    /// Of processes of which every block was seen at first: what of pymalloc lived when that ended, which the kernel half goes on to count.
    frozen: FxHashMap<u16, u64>,
    /// Pools that a process had when it was first looked at and that nobody told of: its parent's.
    inherited: FxHashSet<(u16, u64)>,
    next: Option<Instant>,
    /// Looks in a row that failed, by slot.
    failures: FxHashMap<u16, u32>,
    /// Why it is not known what lives, if so.
    unknown: Option<String>,
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
        let held = self.accounts.entry(account).or_default();
        *held = held.plus(amount);
    }
}

impl Kept {
    /// Pools that were opened, in their order.
    pub fn opened(&mut self, openings: impl IntoIterator<Item = PoolOpening>) {
        self.insert(openings);
        for (slot, moment) in self.peaks.iter_mut().chain(&mut self.latest) {
            for (pool, amount) in std::mem::take(&mut moment.unowned) {
                // What was not told by now was opened before, or its record was lost.
                let account = self.pools.get(&(*slot, pool)).copied().unwrap_or(u32::from(*slot));
                let held = moment.accounts.entry(account).or_default();
                *held = held.plus(amount);
            }
        }
    }

    fn insert(&mut self, openings: impl IntoIterator<Item = PoolOpening>) {
        for PoolOpening { process, account, pool } in openings {
            if self.pools.len() >= MOST_POOLS {
                self.unknown.get_or_insert_with(|| format!("more than {MOST_POOLS} pools were open"));
                return;
            }
            self.pools.insert(((process & (PROCESSES - 1)) as u16, pool), account);
        }
    }

    /// Until now every block was seen: what the kernel half says of the peak is exact.
    pub fn begin(&mut self, kernel: &Kernel, processes: &Processes) -> Result<(), SessionError> {
        let mut bytes = FxHashMap::default();
        let mut at = FxHashMap::default();
        let mut mallocs = FxHashSet::default();
        for traced in processes.all() {
            let totals = read_totals(kernel, traced.slot.number)?;
            bytes.insert(u32::from(traced.slot.number), totals.peak_bytes);
            at.insert(u32::from(traced.slot.number), totals.peak_at);
        }
        read_accounts(
            kernel,
            |slot| at.get(&slot).copied().unwrap_or(0),
            |row| {
                self.peaks.entry(slot_of(row.process)).or_default().add(row.account, row.values.peak);
                let frozen = self.frozen.entry(slot_of(row.process)).or_default();
                if row.domain == Domain::Malloc {
                    mallocs.insert(row.account);
                } else {
                    *frozen = frozen.saturating_add(row.values.live.bytes);
                }
            },
        )?;
        self.mallocs = Some(mallocs);
        for (slot, bytes) in bytes {
            self.peaks.entry(slot_of(slot)).or_default().bytes = bytes;
        }
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
        let known = self.arenas.len();
        let mut moments: FxHashMap<u16, Moment> = FxHashMap::default();
        for traced in processes.all_running() {
            if traced.pages().is_some() {
                self.unknown = Some(format!("process {} uses mimalloc, which has no pools", traced.slot.pid));
                return Ok(());
            }
            let mut moment = Moment::default();
            match self.add_pools(traced, &mut moment) {
                Ok(()) => drop(moments.insert(traced.slot.number, moment)),
                Err(_) if traced.has_ended() => {}
                Err(why) => {
                    tracing::debug!(%why, "a look failed");
                    // Its arenas are not there yet, or no longer, or a table grows just now: it is looked for again.
                    self.arenas.remove(&traced.slot.number);
                    let failures = self.failures.entry(traced.slot.number).or_default();
                    *failures += 1;
                    if *failures > MOST_FAILURES {
                        self.unknown = Some(format!("process {}: {why}", traced.slot.pid));
                        return Ok(());
                    }
                    continue;
                }
            }
            self.failures.remove(&traced.slot.number);
        }
        if let Some(mallocs) = &mut self.mallocs {
            add_malloc(kernel, &mut moments, mallocs)?;
        }
        for (slot, moment) in moments {
            let peak = self.peaks.entry(slot).or_default();
            if moment.bytes as f64 > peak.bytes as f64 * HIGHER {
                peak.clone_from(&moment);
            }
            self.latest.insert(slot, moment);
        }
        let now = Instant::now();
        tracing::trace!(took = ?now - begun, bytes = self.latest.values().map(|moment| moment.bytes).sum::<u64>(), "a look");
        // To find where the arenas are takes longer than to look at them, and is done once.
        let has_searched = self.arenas.len() > known;
        self.next = Some(now + if has_searched { LOOK } else { LOOK.max((now - begun) * SHARE) });
        Ok(())
    }

    fn add_pools(&mut self, traced: &Traced, moment: &mut Moment) -> Result<(), String> {
        let (target, slot) = (&traced.target, traced.slot.number);
        let memory = ProcessMemory::open(Path::new(PROC), target.pid).map_err(|error| error.to_string())?;
        let mapped = mappings(Path::new(PROC), target.pid).map_err(|error| error.to_string())?;
        let interpreter = &target.interpreter;
        let variables = match self.arenas.entry(slot) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                match find_arenas(&memory, &mapped, &interpreter.layout, interpreter.runtime) {
                    Ok(variables) => place.insert(variables),
                    // It has not started, or takes all from malloc.
                    Err(_) if !self.pools.keys().any(|(of, _)| *of == slot) => return Ok(()),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let is_first = !self.latest.contains_key(&slot);
        let (pools, inherited) = (&self.pools, &mut self.inherited);
        let show = |pool: UsedPool| {
            let amount = Amount { bytes: pool.bytes, count: pool.blocks };
            match pools.get(&(slot, pool.address)) {
                Some(account) => moment.add(*account, amount),
                None if is_first => drop(inherited.insert((slot, pool.address))),
                None if inherited.contains(&(slot, pool.address)) => {}
                // Windows are not interrupted to hear of new ones.
                None => {
                    moment.bytes = moment.bytes.saturating_add(amount.bytes);
                    moment.unowned.push((pool.address, amount));
                }
            }
        };
        each_pool(&memory, &mapped, &interpreter.layout, variables, show)
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Why it is not known what lives; `None`: it is.
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// Malloc is not watched any more, and what was known of it is forgotten.
    pub fn drop_malloc(&mut self) {
        let mallocs = self.mallocs.take().unwrap_or_default();
        for moment in self.peaks.values_mut().chain(self.latest.values_mut()) {
            moment.accounts.retain(|account, amount| {
                let is_malloc = mallocs.contains(account);
                moment.bytes -= if is_malloc { amount.bytes.min(moment.bytes) } else { 0 };
                !is_malloc
            });
        }
    }

    /// Whether malloc's blocks alone were once more than all that any look has seen: a process may live for less than the time between two.
    pub fn has_missed(&self, kernel: &Kernel, slot: u16) -> Result<bool, SessionError> {
        let seen = self.peaks.get(&slot).map_or(0, |moment| moment.bytes);
        let frozen = self.frozen.get(&slot).copied().unwrap_or(0);
        Ok(read_totals(kernel, slot)?.peak_bytes.saturating_sub(frozen) > seen)
    }

    /// What each account of a process held at the last look, and at its peak.
    pub fn values(&self, slot: u16) -> impl Iterator<Item = (u32, Amount, Amount)> {
        let of = |moments: &FxHashMap<u16, Moment>| -> Vec<(u32, Amount)> {
            let Some(moment) = moments.get(&slot).filter(|_| self.unknown.is_none()) else {
                return Vec::new();
            };
            let known = moment.accounts.iter().map(|(account, amount)| (*account, *amount));
            // What was not told by now was opened before, or its record was lost.
            let unowned = moment.unowned.iter().map(|(_, amount)| (u32::from(slot), *amount));
            known.chain(unowned).collect()
        };
        let none = Amount::default();
        let live = of(&self.latest).into_iter().map(move |(account, amount)| (account, amount, none));
        live.chain(of(&self.peaks).into_iter().map(move |(account, amount)| (account, none, amount)))
    }

    /// An account is no longer what it was.
    pub fn forget_account(&mut self, account: u32) {
        if let Some(mallocs) = &mut self.mallocs {
            mallocs.remove(&account);
        }
    }

    /// A process has ended: what is known of it is known, and its pools are gone.
    pub fn ended(&mut self, slot: u16) {
        self.opened([]);
        self.pools.retain(|(of, _), _| *of != slot);
        self.inherited.retain(|(of, _)| *of != slot);
    }

    /// A process is gone, and its slot another's.
    pub fn forget(&mut self, slot: u16) {
        self.pools.retain(|(of, _), _| *of != slot);
        self.arenas.remove(&slot);
        self.frozen.remove(&slot);
        self.failures.remove(&slot);
        self.inherited.retain(|(of, _)| *of != slot);
        self.peaks.remove(&slot);
        self.latest.remove(&slot);
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
