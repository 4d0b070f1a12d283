//! What the kernel says of a process's resident pages, and which of them the table of live blocks has.
//!
//! Counts come from `/proc/PID/status`, pages from the `PAGEMAP_SCAN` ioctl (Linux 6.7), which passes over what is not there. It must not know accounts
//! beyond their numbers, nor what becomes of the difference.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use rustc_hash::FxHashMap;
use tracer_ebpf::growth::PAGE;
use tracer_ebpf::live::{Entry, Key};

use super::ended::visit_blocks;
use super::{AttachError, Kernel, SlotSet};

/// Ranges of one call.
const RANGES_AT_ONCE: usize = 1024;
/// Pages of one call: it holds the process's memory map, and 4 GiB in one call held up a process that mapped memory for 68 ms. These are 64 MiB, 1 ms.
const PAGES_AT_ONCE: u64 = 1 << 14;
/// Most ranges that are kept: 16 MiB. A process with more is not compared.
const MOST_RANGES: usize = 1 << 20;

// Categories of a page, include/uapi/linux/fs.h.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// `_IOWR('f', 16, struct pm_scan_arg)`: 32 bits, which musl's `ioctl` takes as a number with a sign and glibc's as a longer one without.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
}

/// Pages of a process by address: ranges in order, none touching the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet(Vec<(u64, u64)>);

impl PageSet {
    /// The anonymous pages that are resident in a process now.
    ///
    /// # Errors
    /// As the kernel says: `ENOTTY` before Linux 6.7.
    pub fn resident(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        let mut set = Self::default();
        let mut regions = [Region::default(); RANGES_AT_ONCE];
        // User addresses end here with four levels of page tables; Python asks for none above.
        const END: u64 = 1 << 47;
        let mut from = 0;
        while from < END {
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                start: from,
                end: END - PAGE,
                regions: regions.as_mut_ptr() as u64,
                region_count: RANGES_AT_ONCE as u64,
                max_pages: PAGES_AT_ONCE,
                inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                mask: PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_PFNZERO,
                returned: PAGE_IS_PRESENT,
                ..Scan::default()
            };
            // SAFETY: the argument is the structure that this request takes; the kernel writes as many regions as there is room for.
            let found = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            if found < 0 {
                return Err(io::Error::last_os_error());
            }
            for region in regions.iter().take(found.unsigned_abs() as usize) {
                set.push(region.start, region.end);
            }
            if set.0.len() > MOST_RANGES {
                return Err(io::Error::other("its resident pages are in more than a million pieces"));
            }
            if scan.walk_end <= from || scan.walk_end >= END - PAGE {
                break;
            }
            from = scan.walk_end;
        }
        Ok(set)
    }

    fn push(&mut self, start: u64, end: u64) {
        match self.0.last_mut() {
            Some((_, last)) if *last >= start => *last = (*last).max(end),
            _ => self.0.push((start, end)),
        }
    }

    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|(start, end)| (end - start) / PAGE).sum()
    }

    /// Whether the page at `address` is one of them.
    #[must_use]
    pub fn has(&self, address: u64) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        after > 0 && self.0[after - 1].1 > address
    }

    /// How many pages both have.
    #[must_use]
    pub fn common_pages(&self, other: &Self) -> u64 {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut bytes = 0;
        while let (Some((start, end)), Some((other_start, other_end))) = (ours.peek(), theirs.peek()) {
            bytes += end.min(other_end).saturating_sub(*start.max(other_start));
            if end < other_end {
                ours.next()
            } else {
                theirs.next()
            };
        }
        bytes / PAGE
    }
}

/// Resident anonymous memory in bytes, as the kernel counts it. The newer kernels add up all processors for it; older ones leave out what each has not added yet.
///
/// # Errors
/// When it cannot be read, or is not there: the process has ended.
pub fn resident_anonymous(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.map(|number| number * 1024).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// What the pages in the table come to, against those that are resident.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Resident pages that have an entry.
    pub owned: u64,
    /// Those of them that were resident at the beginning.
    pub owned_before: u64,
    /// By account: pages whose entry was taken out because they are resident no more.
    pub gone: FxHashMap<u32, u64>,
}

/// Looks up every page of a process that the table has, and takes those out that are not resident.
///
/// # Errors
/// When the table cannot be mapped.
pub fn sort_pages(
    kernel: &Kernel,
    slot: u16,
    resident: &PageSet,
    before: &PageSet,
) -> Result<Sorted, AttachError> {
    let mut sorted = Sorted::default();
    visit_blocks(kernel, &SlotSet::of(&[slot]), |key: Key, entry: Entry| {
        if !resident.has(key.address()) {
            *sorted.gone.entry(entry.account()).or_default() += entry.weight();
            return true;
        }
        sorted.owned += entry.weight();
        sorted.owned_before += if before.has(key.address()) { entry.weight() } else { 0 };
        false
    })?;
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u64, u64)]) -> PageSet {
        let mut set = PageSet::default();
        ranges.iter().for_each(|(start, end)| set.push(start * PAGE, end * PAGE));
        set
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let pages = set(&[(1, 3), (3, 5), (9, 10)]);
        assert_eq!(pages.0.len(), 2);
        assert_eq!(pages.pages(), 5);
        let has: Vec<u64> = (0..12).filter(|page| pages.has(page * PAGE + 7)).collect();
        assert_eq!(has, [1, 2, 3, 4, 9]);
    }

    #[test]
    fn what_two_sets_share() {
        let (one, other) = (set(&[(0, 4), (6, 9), (20, 21)]), set(&[(2, 7), (8, 30)]));
        assert_eq!(one.common_pages(&other), 2 + 1 + 1 + 1);
        assert_eq!(other.common_pages(&one), 5);
        assert_eq!(one.common_pages(&PageSet::default()), 0);
    }

    #[test]
    fn touching_memory_adds_pages_and_dropping_it_takes_them() {
        let Ok(before) = PageSet::resident(std::process::id()) else {
            eprintln!("no PAGEMAP_SCAN here");
            return;
        };
        let block = vec![1_u8; 64 << 20];
        let inner = (block.as_ptr() as u64 + PAGE) & !(PAGE - 1);
        let during = PageSet::resident(std::process::id()).unwrap();
        assert!((0..16_000).all(|page| during.has(inner + page * PAGE)));
        assert!(!before.has(inner));
        drop(block);
        assert!(!PageSet::resident(std::process::id()).unwrap().has(inner));
    }
}
