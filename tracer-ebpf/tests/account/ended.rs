//! Processes that end while others go on: what they used is given back, and others get it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;
use tracer_ebpf::abi::{PROCESSES, domain};
use tracer_ebpf::free;

use crate::histories::{Pair, events_with_ends};
use crate::host::{Host, SLOTS, Sizes};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each process has its own values at its end, and those that run have theirs at the end of all.
    #[test]
    fn processes_come_and_go(history in events_with_ends(), seed: u64) {
        let pair = Pair::after(Sizes { seed, ..Sizes::default() }, &history);
        pair.check_tables();
        pair.check_totals();
        prop_assert_eq!(pair.accounts(), pair.said());
    }

    /// The same with so few accounts that the later ones live on what the earlier ones gave back.
    #[test]
    fn a_full_table_has_room_again(history in events_with_ends(), seed: u64, stacks in 0_u32..40) {
        let pair = Pair::after(Sizes { seed, stacks, ..Sizes::default() }, &history);
        pair.check_tables();
        pair.check_totals();
        prop_assert_eq!(pair.accounts(), pair.said());
    }

    #[test]
    fn a_full_index_has_room_again(history in events_with_ends(), seed: u64, index_buckets in 1_u32..6) {
        let pair = Pair::after(Sizes { seed, index_buckets, ..Sizes::default() }, &history);
        pair.check_totals();
        prop_assert_eq!(pair.accounts(), pair.said());
    }
}

/// A thousand processes, one after the other, in tables that hold one of them.
#[test]
fn a_thousand_processes_in_the_room_of_one() {
    const STACKS: u32 = 100;
    let mut host = Host::new(Sizes { stacks: STACKS, ..Sizes::default() });
    for _ in 0..1000 {
        for stack in 0..STACKS {
            let id = host.account_of(1, 1, domain::MALLOC, stack);
            assert!(id.0 >= PROCESSES, "no account for stack {stack}");
            host.books(1).allocated(id, None, 0x7000_0000 + u64::from(stack) * 64, 64, domain::MALLOC);
        }
        assert_eq!(host.totals(1).stack_table_full.load(), 0);
        host.end_process(1, std::iter::empty());
        assert_eq!((host.index.used(), host.live.used(), host.globals.live_used.load()), (0, 0, 0));
    }
    assert_eq!(host.free_accounts().len() as u32, STACKS);
    assert_eq!(free::taken(host.globals.free_accounts.load()), 999 * STACKS);
}

/// Processes on several CPUs take accounts while those of others are given back: no number is ever two stacks'.
#[test]
fn nobody_gets_an_account_that_another_has() {
    const STACKS: u32 = 60;
    const ROUNDS: u64 = 1500;
    // Room for less than two of four.
    let host = Host::new(Sizes { stacks: STACKS * 2 - 10, ..Sizes::default() });
    let (giving, failed) = (Mutex::new(()), AtomicBool::new(false));
    let placed = AtomicU64::new(0);
    thread::scope(|scope| {
        for slot in 1..=SLOTS {
            let (host, giving, failed, placed) = (&host, &giving, &failed, &placed);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut own = BTreeSet::new();
                    for stack in 0..STACKS {
                        let id = host.account_of(slot, slot, domain::MALLOC, stack);
                        if id.0 >= PROCESSES && !own.insert(id.0) {
                            failed.store(true, Ordering::Relaxed);
                        }
                        let address = 0x7000_0000 + (round << 8 | u64::from(stack)) * 64;
                        host.books(slot).allocated(id, None, address, 64, domain::MALLOC);
                        host.books(slot).freed(address);
                    }
                    placed.fetch_add(own.len() as u64, Ordering::Relaxed);
                    for number in own {
                        let account = &host.accounts()[number as usize];
                        let counted = (account.allocated_count.load(), account.owner.load() >> 40 & 1023);
                        let _one = giving.lock().unwrap();
                        if counted != (1, slot.into())
                            || !free::give_back(&host.index, &host.settings, &host.globals, number, account)
                        {
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert!(!failed.into_inner());
    // Some had no place, and were counted; all others had one of their own.
    let full: u64 = (1..=SLOTS).map(|slot| host.totals(slot).stack_table_full.load()).sum();
    assert_eq!(placed.into_inner() + full, u64::from(SLOTS * STACKS) * ROUNDS);
    assert_eq!((host.index.used(), host.index.overflowed()), (0, 0));
    let free: BTreeSet<u32> = host.free_accounts().into_iter().collect();
    assert_eq!(free.len() as u32, STACKS * 2 - 10, "a number is lost");
}
