//! Single cases at the edges of the account, and regressions.

use tracer_ebpf::abi::{PROCESSES, domain};
use tracer_ebpf::account::Freed;
use tracer_ebpf::bucket::ENTRIES;
use tracer_ebpf::live::{Key, Live};

use crate::host::{Host, Sizes};

/// An entry cannot say more than 256 GiB; what an allocation added has to go with its free all the same.
#[test]
fn a_huge_block_leaves_nothing_behind() {
    let host = Host::new(Sizes::default());
    let id = host.allocate(1, 1, 0x7000_0000_0000, 1 << 40);
    host.books(1).freed(0x7000_0000_0000);
    let account = &host.accounts()[id.0 as usize];
    assert_eq!((account.live_bytes.load(), account.live_count.load()), (0, 0));
    assert_eq!(host.totals(1).live_bytes.load(), 0);
    assert_eq!(account.allocated_bytes.load(), 1 << 40);
}

/// A stack that the index has no place for must not use up an account with each of its events.
#[test]
fn a_full_index_uses_up_no_accounts() {
    let host = Host::new(Sizes { index_buckets: 1, ..Sizes::default() });
    let placed = (0..1000).filter(|stack| host.account_of(1, 1, domain::PYMALLOC, *stack).0 >= PROCESSES);
    assert_eq!(placed.count(), ENTRIES);
    assert_eq!(host.globals.accounts_used.load(), u64::from(PROCESSES) + ENTRIES as u64);
    assert_eq!(host.totals(1).stack_table_full.load(), 1000 - ENTRIES as u64);
}

/// The end of code that has been sent up is noticed, whether or not its allocation was seen.
#[test]
fn the_end_of_watched_code_begins_a_generation() {
    let host = Host::new(Sizes::default());
    let live = Live { buckets: &host.live, settings: &host.settings, globals: &host.globals };
    let (seen, unseen) = (0x5555_0000_1000, 0x5555_0000_2000);
    host.allocate(1, 1, seen, 400);
    for address in [seen, unseen] {
        live.watch_code(Key::new(1, address).unwrap());
        assert_eq!(host.generations.of(address), 0);
    }
    assert_eq!((host.books(1).freed(seen), host.books(1).freed(unseen)), (Freed::Known, Freed::Unknown));
    assert_eq!((host.generations.of(seen), host.generations.of(unseen)), (1, 1));
    host.allocate(1, 1, seen, 400);
    host.books(1).freed(seen);
    assert_eq!(host.generations.of(seen), 1, "what came later is no code");
}
