//! Accounts that are given back: when a process has ended, and nothing can reach its accounts any more, others get their numbers.
//!
//! The numbers form a list: its head is one cell, each free account has the number of the next one. Programs on all CPUs take
//! from it at once, by one compare-and-swap; only userspace gives back. The head counts what was taken, so that a head that
//! has been seen before is never mistaken for one that has not changed. It must not know processes, nor when they end.

use crate::bucket::{self, Buckets, Candidates};
use crate::tables::{Account, Globals, Settings, Tables};

/// The part of the head that is a number; 0: none, for account 0 is nobody's.
const NUMBER: u64 = u32::MAX as u64;
/// The rest counts what was taken.
const TAKEN: u64 = 1 << 32;
/// Others may take at the same moment. Two tries are as many as the verifier need follow: who fails takes a number that was never
/// used, or has to do without.
const TRIES: u32 = 2;
/// Each try that fails means that a program has taken one meanwhile.
const PATIENCE: u32 = 10_000;

/// Whether there may be one.
#[inline(always)]
pub fn is_any(globals: &Globals) -> bool {
    globals.free_accounts.load() & NUMBER != 0
}

/// How many were taken so far, modulo 2^32.
#[must_use]
pub const fn taken(free_accounts: u64) -> u32 {
    (free_accounts >> 32) as u32
}

/// Takes the number of an account that was given back; all its cells are 0.
#[inline(always)]
pub fn take<T: Tables>(tables: &T, globals: &Globals) -> Option<u32> {
    for _ in 0..TRIES {
        let head = globals.free_accounts.load();
        let number = (head & NUMBER) as u32;
        if number == 0 {
            return None;
        }
        // Another may take and use it right now: what is read is nonsense then, and the head has changed.
        let next = tables.account(number)?.link.load();
        if globals.free_accounts.replace(head, (head & !NUMBER).wrapping_add(TAKEN) | next & NUMBER) {
            return Some(number);
        }
    }
    None
}

/// Gives back account `number`, whose values have been read: its stack has no account then, all its cells are 0, and it has its place
/// in the list. `false` if so many programs took others at that moment that it got none; it is lost until the recording ends.
///
/// Nothing may be able to reach it: the process whose it was has ended, and its probes are gone. One caller at a time.
#[must_use]
pub fn give_back<I: Buckets>(
    index: &I,
    settings: &Settings,
    globals: &Globals,
    number: u32,
    account: &Account,
) -> bool {
    let key = account.link.load();
    let at = Candidates::of(key, settings.seed.load(), settings.index_buckets.load() as u32);
    if let Some(place) = bucket::find(index, at, key) {
        bucket::remove(index, at, place, key);
    }
    clear(account);
    for _ in 0..PATIENCE {
        let head = globals.free_accounts.load();
        account.link.store(head & NUMBER);
        // Who takes it sees it empty: their compare-and-swap orders what they read (Documentation/memory-barriers.txt), this
        // orders what we have written.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        if globals.free_accounts.replace(head, head & !NUMBER | u64::from(number)) {
            return true;
        }
    }
    false
}

/// Makes an account as good as new.
pub fn clear(account: &Account) {
    for cell in account.cells() {
        cell.store(0);
    }
}
