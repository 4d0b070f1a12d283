//! Growth mode's reckoning: what the stacks of a process hold against what the kernel says that it has.
//!
//! Two accounts that know nothing of each other: pages that faults have brought, by stack; and the kernel's own count, with the page table to tell which pages.
//! What they differ in is corrected from the page table and said. It must not know how pages are counted, nor outputs.

use rustc_hash::FxHashMap;
use tracer_ebpf::growth::PAGE;

use super::SessionError;
use crate::attach::{Kernel, PageSet, resident_anonymous, sort_pages};
use crate::drain::read_totals;
use crate::profile::{Amount, Residence};

/// What stands in place of a stack for pages that came without a page fault of their own process: by `MAP_POPULATE`, khugepaged, another process.
pub const NO_FAULT: &str = "resident without a page fault that was seen";

/// What stands in place of a stack for pages that a process had when its recording began, where nobody can look any more which of them it still has.
pub const BEFORE: &str = "resident before the recording began (not looked at again)";

/// What there was when the recording of a process began, or why that is not known.
#[derive(Debug)]
pub struct Beginning(Result<(u64, PageSet), String>);

impl Beginning {
    /// Now.
    pub fn of(pid: u32) -> Self {
        let read = || Ok((resident_anonymous(pid)?, PageSet::resident(pid)?));
        Self(read().map_err(|error: std::io::Error| reason(&error)))
    }
}

impl Beginning {
    /// Resident anonymous bytes; 0: not known.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |(bytes, _)| *bytes)
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOTTY) => "the kernel does not tell which pages are resident (Linux 6.7 does)".to_owned(),
        Some(libc::ESRCH | libc::ENOENT) => "the process had ended".to_owned(),
        _ if error.kind() == std::io::ErrorKind::NotFound => "the process had ended".to_owned(),
        _ => format!("its pages could not be read: {error}"),
    }
}

/// What was found at the end.
#[derive(Debug, Clone, Default)]
pub struct Reckoning {
    /// For the report.
    pub residence: Option<Residence>,
    /// By account: what it held no more.
    pub gone: FxHashMap<u32, Amount>,
    /// Resident, in nobody's account.
    pub unseen: Amount,
}

impl Reckoning {
    /// Of a process that nobody could look at any more.
    pub fn of_ended() -> Self {
        let uncompared = "the process had ended".to_owned();
        Self { residence: Some(Residence::Uncompared { uncompared }), ..Self::default() }
    }
}

/// Compares. Nothing may be counted for the process any more.
pub fn reckon(
    kernel: &Kernel,
    slot: u16,
    pid: u32,
    beginning: &Beginning,
) -> Result<Reckoning, SessionError> {
    let uncompared = |why: String| Reckoning {
        residence: Some(Residence::Uncompared { uncompared: why }),
        ..Reckoning::default()
    };
    let (before, pages_before) = match &beginning.0 {
        Ok((bytes, pages)) => (*bytes, pages),
        Err(why) => return Ok(uncompared(why.clone())),
    };
    let now = (|| Ok((resident_anonymous(pid)?, PageSet::resident(pid)?)))();
    let (after, pages) = match now {
        Ok(now) => now,
        Err(error) => return Ok(uncompared(reason(&error))),
    };
    let totals = read_totals(kernel, slot)?;
    let (stacks, is_estimate) = (totals.live_bytes, totals.thinned + totals.live_table_full > 0);
    let sorted = sort_pages(kernel, slot, &pages, pages_before)?;
    let kept = pages.common_pages(pages_before).saturating_sub(sorted.owned_before);
    // Pages without an entry are unseen only where each that was seen has one: what an estimate is off by is nobody's memory.
    let unseen = match is_estimate {
        true => 0,
        false => pages.pages().saturating_sub(kept).saturating_sub(sorted.owned),
    };
    let amount = |count: u64| Amount { bytes: count * PAGE, count };
    let gone: FxHashMap<u32, Amount> =
        sorted.gone.iter().map(|(account, pages)| (*account, amount(*pages))).collect();
    let gone_bytes = gone.values().fold(0, |sum, gone| sum + gone.bytes);
    let residence = Residence::Compared {
        before,
        after,
        gone_before: (pages_before.pages().saturating_sub(kept)) * PAGE,
        stacks,
        gone_unseen: gone_bytes,
        come_unseen: unseen * PAGE,
    };
    Ok(Reckoning { residence: Some(residence), gone, unseen: amount(unseen) })
}
