//! More live blocks than the table has room for: what is left must stand for all of them.
//!
//! Seeds are fixed, so these statistical tests give the same answer each time.

use tracer_ebpf::account::Freed;
use tracer_ebpf::bucket::ENTRIES;
use tracer_ebpf::hash::spread;

use crate::host::{Host, Sizes};

const RUNS: u64 = 400;
const BUCKETS: u32 = 64;

/// A table with room for 448 blocks.
fn small(seed: u64) -> Host {
    Host::new(Sizes { live_buckets: BUCKETS, seed: seed + 1, ..Sizes::default() })
}

/// Pseudo-random, but the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        spread(self.0) % sides
    }
}

/// Block `number` of a heap that serves sizes from 16 to 512.
fn block(number: u64) -> (u64, u64) {
    (0x5555_5555_0000 + number * 512, (spread(number) % 32 + 1) * 16)
}

/// Mean, and the standard error of the mean.
fn mean_and_error(samples: &[f64]) -> (f64, f64) {
    let runs = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / runs;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (runs - 1.0);
    (mean, (variance / runs).sqrt())
}

#[track_caller]
fn check_unbiased(what: &str, estimates: &[f64], truth: u64) {
    let (mean, error) = mean_and_error(estimates);
    let truth = truth as f64;
    println!("{what}: mean {mean:.0} +- {error:.0}, truth {truth}");
    assert!((mean - truth).abs() < 3.0 * error, "{what}: {mean} is not within 3 x {error} of {truth}");
    assert!(error < truth / 20.0, "{what}: too few runs to tell anything: +- {error} of {truth}");
}

/// Live bytes and live blocks as the account has them.
fn estimates(host: &Host) -> (f64, f64) {
    let accounts = host.accounts();
    let count: u64 = accounts.iter().map(|account| account.live_count.load()).sum();
    (host.totals(1).live_bytes.load() as f64, count as f64)
}

fn check_empty(host: &Host) {
    let totals = host.totals(1);
    assert_eq!(totals.live_bytes.load(), 0);
    for account in host.accounts() {
        assert_eq!((account.live_bytes.load(), account.live_count.load()), (0, 0));
    }
    assert_eq!((host.globals.live_used.load(), host.level()), (0, 0));
    assert_eq!((host.live.used(), host.live.overflowed()), (0, 0));
}

/// Ten times as many blocks as there are places, allocated one after the other.
#[test]
fn a_growing_heap_is_estimated_without_bias() {
    const BLOCKS: u64 = 4480;
    let (mut bytes, mut counts, mut full, mut highest) = (Vec::new(), Vec::new(), 0, 0);
    for seed in 0..RUNS {
        let host = small(seed);
        for number in 0..BLOCKS {
            let (address, size) = block(number);
            host.allocate(1, 1, address, size);
        }
        let (live, count) = estimates(&host);
        bytes.push(live);
        counts.push(count);
        highest = highest.max(host.level());
        let totals = host.totals(1);
        full += totals.live_table_full.load();
        let placed = host.live.used() as u64;
        assert_eq!(placed + totals.thinned.load() + totals.live_table_full.load(), BLOCKS);
        assert!(placed < u64::from(BUCKETS) * ENTRIES as u64 * 9 / 10, "thinning keeps room: {placed}");
        for number in 0..BLOCKS {
            host.books(1).freed(block(number).0);
        }
        check_empty(&host);
    }
    let share = full as f64 / (RUNS * BLOCKS) as f64;
    println!(
        "live_table_full: {full} of {} allocations ({share:.1e}); highest level {highest}",
        RUNS * BLOCKS
    );
    assert!(share < 5e-4, "{full} blocks found both their buckets full");
    let truth = (0..BLOCKS).map(|number| block(number).1).sum();
    check_unbiased("live bytes", &bytes, truth);
    check_unbiased("live blocks", &counts, BLOCKS);
}

/// Blocks come and go, addresses are used again, the heap grows, shrinks and grows.
#[test]
fn a_heap_that_churns_is_estimated_without_bias() {
    const PLACES: u64 = 2000;
    let (mut bytes, mut truth, mut full, mut allocations) = (Vec::new(), 0, 0, 0);
    for seed in 0..RUNS {
        let host = small(seed);
        // The same history in every run: only the choice of blocks differs.
        let mut dice = Dice(7 << 32);
        let mut live = vec![false; PLACES as usize];
        for step in 0..12_000_u64 {
            let number = dice.roll(PLACES);
            let (address, size) = block(number);
            let grows = step / 3000 % 2 == 0;
            let is_live = &mut live[number as usize];
            if !*is_live && dice.roll(4) < if grows { 3 } else { 1 } {
                host.allocate(1, 1, address, size);
                *is_live = true;
                allocations += 1;
            } else if *is_live && dice.roll(4) < if grows { 1 } else { 3 } {
                host.books(1).freed(address);
                *is_live = false;
            }
        }
        bytes.push(estimates(&host).0);
        full += host.totals(1).live_table_full.load();
        truth = (0..PLACES).filter(|number| live[*number as usize]).map(|number| block(number).1).sum();
        for number in 0..PLACES {
            host.books(1).freed(block(number).0);
        }
        check_empty(&host);
    }
    println!("live_table_full: {full} of {allocations} allocations");
    assert!(
        (full as f64) < allocations as f64 * 2e-4,
        "{full} of {allocations} blocks found their buckets full"
    );
    check_unbiased("live bytes after churn", &bytes, truth);
}

/// Blocks from before the table filled up stay exact, whatever the level does later.
#[test]
fn what_came_in_at_level_0_stays_exact() {
    let host = small(3);
    let early: u64 = (0..200).map(|number| block(number).1).sum();
    let first = (0..200).map(|number| host.allocate(1, 1, block(number).0, block(number).1)).last().unwrap();
    for number in 200..5000 {
        host.allocate(1, 2, block(number).0, block(number).1);
    }
    assert!(host.level() > 5, "level {}", host.level());
    let account = &host.accounts()[first.0 as usize];
    assert_eq!((account.live_bytes.load(), account.live_count.load()), (early, 200));
    assert!((0..200).all(|number| host.books(1).freed(block(number).0) == Freed::Known));
    assert_eq!(account.live_bytes.load(), 0);
}

/// An allocation at a live address ends the old block, also when the new one is left out.
#[test]
fn missed_frees_are_noticed_while_thinning() {
    let host = small(3);
    for number in 0..5000 {
        host.allocate(1, 1, block(number).0, block(number).1);
    }
    assert!(host.level() > 5, "level {}", host.level());
    for number in 0..200 {
        host.allocate(1, 1, block(number).0, block(number).1);
    }
    assert_eq!(host.totals(1).repeated_pops.load(), 200);
    for number in 0..5000 {
        host.books(1).freed(block(number).0);
    }
    check_empty(&host);
}

/// A few large blocks among many small ones: one that stood for a hundred would be the whole answer, and wrong.
#[test]
fn large_blocks_are_counted_one_by_one() {
    const LARGE: u64 = 8 << 20;
    let host = small(3);
    let large = |number: u64| 0x7fff_0000_0000 + number * LARGE;
    for number in 0..5000 {
        host.allocate(1, 1, block(number).0, block(number).1);
        if number % 600 == 599 {
            host.allocate(1, 2, large(number), LARGE);
        }
    }
    assert!(host.level() > 5, "level {}", host.level());
    let account = host.account_of(1, 2, tracer_ebpf::abi::domain::PYMALLOC, 0);
    let account = &host.accounts()[account.0 as usize];
    let full = host.totals(1).live_table_full.load();
    let placed = 8 - full;
    assert!(full <= 1, "{full} of 8 found no place");
    assert_eq!((account.live_bytes.load(), account.live_count.load()), (placed * LARGE, placed));
    for number in (599..5000).step_by(600) {
        host.books(1).freed(large(number));
    }
    assert_eq!(account.live_bytes.load(), 0);
}
