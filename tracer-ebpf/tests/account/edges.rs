//! Single cases at the edges of the account, and regressions.

use tracer_ebpf::abi::{PROCESSES, domain};
use tracer_ebpf::bucket::ENTRIES;

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
