//! Several threads on the same tables at once: what the CPUs of a host do to the maps.

use std::sync::Barrier;
use std::thread;

use tracer_ebpf::abi::{PROCESSES, domain};
use tracer_ebpf::account::Freed;
use tracer_ebpf::bucket::{self, Candidates};
use tracer_ebpf::hash::spread;
use tracer_ebpf::live::Key;
use tracer_ebpf::tables::Tables as _;

use crate::host::{Host, Sizes, Table};

/// More than there are CPUs, so that they also preempt each other.
const WORKERS: u32 = 8;
/// So few that every bucket is everybody's.
const BUCKETS: u32 = 16;

fn together(work: impl Fn(u32) + Sync) {
    let start = Barrier::new(WORKERS as usize);
    thread::scope(|scope| {
        for worker in 1..=WORKERS {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(worker);
            });
        }
    });
}

/// Every worker puts, finds and removes its own keys; 8 x 8 keys in 112 entries, so buckets fill up and overflow.
/// Among so few buckets many keys have twice the same one: such a key once left its bucket counted as overflowed for ever.
#[test]
fn a_table_loses_and_doubles_nothing() {
    let table = Table::new(BUCKETS);
    together(|worker| {
        for round in 0..20_000_u64 {
            let keys = (0..8).map(|number| spread(round * 8 + number) << 8 | u64::from(worker));
            let placed: Vec<_> = keys.filter(|key| put(&table, *key)).collect();
            placed.iter().for_each(|key| check_found(&table, *key));
            placed.iter().for_each(|key| check_removed(&table, *key));
        }
    });
    assert_eq!((table.used(), table.overflowed()), (0, 0));
}

fn at(key: u64) -> Candidates {
    Candidates::of(key, 5, BUCKETS)
}

fn put(table: &Table, key: u64) -> bool {
    bucket::insert(table, at(key), key, !key).is_some()
}

fn check_found(table: &Table, key: u64) {
    let place = bucket::find(table, at(key), key).unwrap();
    let bucket = bucket::Buckets::bucket(table, place.bucket).unwrap();
    assert_eq!(bucket.value(place.entry).unwrap().load(), !key, "another key's value");
}

fn check_removed(table: &Table, key: u64) {
    let place = bucket::find(table, at(key), key).unwrap();
    assert_eq!(bucket::remove(table, at(key), place, key), Some(!key));
    assert_eq!(bucket::find(table, at(key), key), None, "in the table twice");
}

/// Two threads free the same block (one of them wrongly): it ends once.
#[test]
fn a_block_ends_once() {
    let host = Host::new(Sizes::default());
    let ended = std::sync::atomic::AtomicU64::new(0);
    let blocks = 300_u64;
    for number in 0..blocks {
        host.allocate(1, 1, 0x7000_0000 + number * 16, 16);
    }
    together(|_| {
        let known = (0..blocks).filter(|n| host.books(1).freed(0x7000_0000 + n * 16) == Freed::Known).count();
        ended.fetch_add(known as u64, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(ended.into_inner(), blocks);
    assert_eq!((host.totals(1).live_bytes.load(), host.live.used()), (0, 0));
}

const ROUNDS: u64 = 20_000;

/// One account that all workers share, and one of each worker's own.
#[test]
fn accounts_count_exactly() {
    let host = Host::new(Sizes::default());
    let shared = host.account_of(1, 1, domain::MALLOC, 9);
    together(|worker| {
        for round in 0..ROUNDS {
            let address = (u64::from(worker) << 32) + round % 7 * 4096;
            let own = host.account_of(1, worker, domain::MALLOC, 0);
            let (id, size) = if round % 2 == 0 { (shared, 48) } else { (own, 32) };
            host.books(1).allocated(id, host.thread(worker), address, size, domain::MALLOC);
            if round % 7 == 6 {
                let first = u64::from(worker) << 32;
                assert!((0..7).all(|place| host.books(1).freed(first + place * 4096) == Freed::Known));
            }
        }
    });
    let kept = check_allocated(&host, shared.0);
    let workers = u64::from(WORKERS);
    let totals = host.totals(1);
    assert_eq!(totals.events.load(), workers * (2 * ROUNDS - ROUNDS % 7));
    assert_eq!(
        (totals.repeated_mallocs.load(), totals.live_table_full.load(), totals.thinned.load()),
        (0, 0, 0)
    );
    assert_eq!(host.live.used() as u64, workers * (ROUNDS % 7));
    assert_eq!(host.globals.live_used.load(), workers * (ROUNDS % 7));
    assert_eq!(totals.live_bytes.load(), kept);
}

/// Checks what was allocated; returns the live bytes of all accounts.
fn check_allocated(host: &Host, shared: u32) -> u64 {
    let workers = u64::from(WORKERS);
    let accounts = host.accounts();
    let account = &accounts[shared as usize];
    assert_eq!(account.allocated_count.load(), workers * ROUNDS / 2);
    assert_eq!(account.allocated_bytes.load(), workers * ROUNDS / 2 * 48);
    let own: Vec<_> =
        accounts[PROCESSES as usize..].iter().filter(|a| a.allocated_count.load() == ROUNDS / 2).collect();
    assert_eq!(own.len(), WORKERS as usize, "one account each");
    assert!(own.iter().all(|account| account.allocated_bytes.load() == ROUNDS / 2 * 32));
    accounts.iter().map(|account| account.live_bytes.load()).sum()
}

/// New stacks in all threads at once: each gets one account, until there are no more.
#[test]
fn accounts_are_handed_out_once() {
    let host = Host::new(Sizes { stacks: 100, ..Sizes::default() });
    together(|worker| {
        for stack in 0..40 {
            let id = host.account_of(1, worker, domain::PYMALLOC, stack);
            host.books(1).allocated(id, None, u64::from(worker << 16 | stack) << 8, 16, domain::PYMALLOC);
            assert!(id.0 < PROCESSES || host.account_of(1, worker, domain::PYMALLOC, stack) == id);
        }
    });
    let counts: Vec<u64> = host.accounts().iter().map(|account| account.allocated_count.load()).collect();
    assert!(counts[PROCESSES as usize..].iter().all(|count| *count == 1), "{counts:?}");
    assert_eq!(counts[1], u64::from(WORKERS) * 40 - 100);
    assert_eq!(host.index.used(), 100);
    assert!(Key::new(1, 0).is_none());
}
