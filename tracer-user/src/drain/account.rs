//! Reads the counters: one row an account, one set of totals a process.

use tracer_ebpf::abi::PROCESSES;
use tracer_ebpf::tables::Sent;

use crate::attach::{AccountWords, AttachError, Globals, Kernel};
use crate::profile::{Amount, Domain, Values};

/// One account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountRow {
    /// Its number; below [`PROCESSES`] it gathers what that process could not place.
    pub account: u32,
    /// Process slot.
    pub process: u32,
    /// Thread id as the host sees it; 0 where it is not known.
    pub thread: u32,
    /// Which allocator.
    pub domain: Domain,
    /// Its values.
    pub values: Values,
}

/// Totals of one process; the names are those of `tracer_ebpf::tables::Totals`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at tracer_ebpf::tables::Totals")]
pub struct Totals {
    pub events: u64,
    pub live_bytes: u64,
    pub peak_bytes: u64,
    pub peak_at: u64,
    pub pops: u64,
    pub pushes: u64,
    pub unknown_pushes: u64,
    pub repeated_pops: u64,
    pub mallocs: u64,
    pub frees: u64,
    pub unknown_frees: u64,
    pub repeated_mallocs: u64,
    pub thinned: u64,
    pub live_table_full: u64,
    pub stack_table_full: u64,
    pub thread_table_full: u64,
    pub failed_reads: u64,
    pub ring_full: u64,
    pub abandoned_calls: u64,
    pub pools: u64,
    pub kept: u64,
}

impl Totals {
    /// Allocations and frees that were seen.
    #[must_use]
    pub fn events_seen(&self) -> u64 {
        self.pops + self.pushes + self.mallocs + self.frees
    }
}

const TOTALS: usize = size_of::<tracer_ebpf::tables::Totals>() / 8;

/// Reads one process's totals.
pub fn read_totals(kernel: &Kernel, slot: u16) -> Result<Totals, AttachError> {
    let words: [u64; TOTALS] = kernel.words("TOTALS", u32::from(slot))?;
    let [
        events,
        live_bytes,
        peak_bytes,
        peak_at,
        pops,
        pushes,
        unknown_pushes,
        repeated_pops,
        mallocs,
        frees,
        unknown_frees,
        repeated_mallocs,
        thinned,
        live_table_full,
        stack_table_full,
        thread_table_full,
        failed_reads,
        ring_full,
        abandoned_calls,
        pools,
        kept,
    ] = words;
    Ok(Totals {
        events,
        live_bytes,
        peak_bytes,
        peak_at,
        pops,
        pushes,
        unknown_pushes,
        repeated_pops,
        mallocs,
        frees,
        unknown_frees,
        repeated_mallocs,
        thinned,
        live_table_full,
        stack_table_full,
        thread_table_full,
        failed_reads,
        ring_full,
        abandoned_calls,
        pools,
        kept,
    })
}

/// Reads every account in use and hands it to `visit`. `peak_at` gives, for a process slot, the event at which its live bytes
/// were highest.
pub fn read_accounts(
    kernel: &Kernel,
    peak_at: impl Fn(u32) -> u64,
    mut visit: impl FnMut(AccountRow),
) -> Result<(), AttachError> {
    let [_, used, ..]: Globals = kernel.words("GLOBALS", 0)?;
    let used = u32::try_from(used).unwrap_or(u32::MAX).min(kernel.sizes().accounts);
    // The processes' own accounts come first.
    for account in 1..used.max(PROCESSES) {
        let words: AccountWords = kernel.words("ACCOUNTS", account)?;
        if let Some(row) = account_row(account, words, &peak_at) {
            visit(row);
        }
    }
    Ok(())
}

/// The counters' meaning; see `tracer_ebpf::account` for the rule of the peak.
///
/// `peak_at`: as in [`read_accounts`]. `None` for one that counted nothing.
pub fn account_row(account: u32, words: AccountWords, peak_at: impl Fn(u32) -> u64) -> Option<AccountRow> {
    let [
        owner,
        sent,
        allocated_count,
        allocated_bytes,
        live_count,
        live_bytes,
        peak_count,
        peak_bytes,
        changed,
        temporary_count,
        temporary_bytes,
        _link,
    ] = words;
    // One that opened a pool while no window was open has blocks that were not counted; `temporary` is what came at kept points.
    if owner == 0 || allocated_count == 0 && temporary_count == 0 && Sent(sent).pools() == 0 {
        return None;
    }
    let process = (owner >> 40) as u32 & (PROCESSES - 1);
    let live = Amount { bytes: live_bytes, count: live_count };
    let peak =
        if changed <= peak_at(process) { live } else { Amount { bytes: peak_bytes, count: peak_count } };
    Some(AccountRow {
        account,
        process,
        thread: owner as u32,
        domain: match owner >> 32 & 3 {
            0 => Domain::Pymalloc,
            1 => Domain::Malloc,
            _ => Domain::Resident,
        },
        values: Values {
            allocated: Amount { bytes: allocated_bytes, count: allocated_count },
            live,
            peak,
            temporary: Amount { bytes: temporary_bytes, count: temporary_count },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_after_the_peak_shows_what_was_kept() {
        let owner = tracer_ebpf::account::owner(7, 1, 3);
        let words = [owner, 1, 9, 900, 2, 200, 5, 500, 40, 1, 100, 0];
        let after = account_row(2000, words, |_| 30).unwrap();
        assert_eq!((after.process, after.thread, after.domain), (3, 7, Domain::Malloc));
        assert_eq!(after.values.peak, Amount { bytes: 500, count: 5 });
        let before = account_row(2000, words, |_| 40).unwrap();
        assert_eq!(before.values.peak, Amount { bytes: 200, count: 2 });
    }
}
