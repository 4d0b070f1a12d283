//! Resident pages: what system calls take away, how a long range is swept in bounded steps, and the books of a page.
//!
//! A resident anonymous page is a block of 4,096 bytes of the domain `resident`, so the account, the live table and the peak are those of
//! allocators. The kernel tells how many pages a process has at each change, but not which: an address comes from the page fault before
//! (`kernel/growth.rs`), a range from the system call that runs. It must not know helpers, registers or stacks.

use crate::abi::domain;
use crate::account::{AccountId, Books, Freed, add};
use crate::cell::Cell;
use crate::hash::spread;
use crate::tables::{Tables, Thread};

/// Bytes of a page, which is what one entry of the live table stands for.
pub const PAGE: u64 = 4096;
/// Bytes of what one table of page table entries maps, and of a huge page: the kernel takes pages away, and says so, in steps of this.
pub const REGION: u64 = 2 << 20;
/// Pages of a huge page.
pub const HUGE_PAGES: u64 = REGION / PAGE;
/// Regions whose pages are looked up one by one for one event, at the most: each takes some 20 us.
const DENSE_REGIONS: u32 = 8;
/// Steps for one event, at the most: so many pages, and as many regions without any as 16 GiB have.
pub const STEPS: u32 = DENSE_REGIONS * HUGE_PAGES as u32 + (1 << 13);
/// Pages that one `mremap` moves, at the most: 1 GiB. The rest is left to the comparison at the end, and said there.
pub const MOST_MOVED: u64 = 1 << 18;
/// `brk` does not say where the heap ended before: so far above its new end is looked. Regions without pages cost next to nothing.
const HEAP_REACH: u64 = 4 << 30;

/// Places of [`Regions`].
const REGION_CELLS: usize = 1 << 14;

/// How many pages with an entry a region has, by a hash of process and region: a range of gigabytes that was hardly touched is then
/// passed over region by region. Two regions may share a cell, which costs time only: it says "none" of no region that has one.
#[repr(C)]
#[derive(Debug)]
pub struct Regions([Cell; REGION_CELLS]);

impl Default for Regions {
    fn default() -> Self {
        Self([const { Cell::new(0) }; REGION_CELLS])
    }
}

impl Regions {
    #[inline(always)]
    fn cell(&self, process: u32, address: u64) -> &Cell {
        let hash = spread((address / REGION) << 10 | u64::from(process & 1023));
        &self.0[hash as usize & (REGION_CELLS - 1)]
    }
}

/// System call numbers that matter here.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    mmap: i64,
    munmap: i64,
    brk: i64,
    mremap: i64,
    madvise: i64,
}

/// arch/x86/entry/syscalls/syscall_64.tbl.
pub const X86_64: Calls = Calls { mmap: 9, munmap: 11, brk: 12, mremap: 25, madvise: 28 };
/// include/uapi/asm-generic/unistd.h.
pub const AARCH64: Calls = Calls { mmap: 222, munmap: 215, brk: 214, mremap: 216, madvise: 233 };

/// A system call of the running thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number; negative: none, the thread was in its own code.
    pub number: i64,
    /// Its first four arguments.
    pub arguments: [u64; 4],
}

/// Addresses from `from` up to `to`, whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: u64,
    /// After the last; `from` where there are none.
    pub to: u64,
}

impl Span {
    #[inline(always)]
    fn new(from: u64, bytes: u64) -> Self {
        let from = from & !(PAGE - 1);
        let end = from.wrapping_add(bytes).wrapping_add(PAGE - 1) & !(PAGE - 1);
        Self { from, to: if end < from { from } else { end } }
    }
}

const MAP_FIXED: u64 = 0x10;
/// `MAP_LOCKED` and `MAP_POPULATE`, the same on both architectures.
const MAP_AT_ONCE: u64 = 0x2000 | 0x8000;
const MREMAP_FIXED: u64 = 2;

/// Whether a hint of `madvise` takes pages away at once: DONTNEED, REMOVE, PAGEOUT, DONTNEED_LOCKED (include/uapi/asm-generic/mman-common.h).
/// FREE does not: such pages count as resident until the kernel needs them.
#[inline(always)]
const fn takes_away(advice: u64) -> bool {
    advice == 4 || advice == 9 || advice == 21 || advice == 24
}

impl Call {
    /// The pages that this call takes away, if it takes any.
    #[inline(always)]
    #[must_use]
    pub fn released(&self, calls: Calls) -> Span {
        let [first, second, third, fourth] = self.arguments;
        let nothing = Span { from: 0, to: 0 };
        let number = self.number;
        if number < 0 {
            nothing
        } else if number == calls.munmap
            || number == calls.mmap && fourth & MAP_FIXED != 0
            || number == calls.madvise && takes_away(third)
        {
            Span::new(first, second)
        } else if number == calls.mremap && third < second {
            let kept = Span::new(first, third);
            Span::new(kept.to, second.wrapping_sub(kept.to.wrapping_sub(kept.from)))
        } else if number == calls.brk {
            Span::new(first.wrapping_add(PAGE - 1), HEAP_REACH)
        } else {
            nothing
        }
    }

    /// Whether it is an `mmap` that makes its pages resident itself: one after the other, without page faults.
    #[inline(always)]
    #[must_use]
    pub fn populates(&self, calls: Calls) -> bool {
        self.number == calls.mmap && self.arguments[3] & MAP_AT_ONCE != 0
    }

    /// If it moves pages to where the kernel has found room: those, at their old place.
    #[inline(always)]
    #[must_use]
    pub fn moved(&self, calls: Calls) -> Option<Span> {
        let [old, old_bytes, new_bytes, flags] = self.arguments;
        let is_moved = self.number == calls.mremap && flags & MREMAP_FIXED == 0;
        is_moved.then(|| Span::new(old, if old_bytes < new_bytes { old_bytes } else { new_bytes }))
    }

    /// Where the room is that the kernel has found for an `mmap` or an `mremap`; `None` where there was none.
    ///
    /// `found`: what the search for room has given, and `searched` how many bytes it was for. For a size that is a multiple of 2 MiB the kernel
    /// searches for 2 MiB more and takes the first multiple of 2 MiB above the start (mm/huge_memory.c, `__thp_get_unmapped_area`, top down).
    #[inline(always)]
    #[must_use]
    pub fn room(&self, calls: Calls, found: u64, searched: u64) -> Option<u64> {
        let [_, second, third, _] = self.arguments;
        let bytes = if self.number == calls.mremap { third } else { second };
        let is_padded = searched >= bytes.wrapping_add(REGION);
        let place = if is_padded { (found & !(REGION - 1)).wrapping_add(REGION) } else { found };
        // An error is a number of no page.
        (found & (PAGE - 1) == 0).then_some(place)
    }
}

/// Where a page fault was, and whether the kernel met it in a system call: it is as much of a word as a page's address leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault(pub u64);

impl Fault {
    const IN_KERNEL: u64 = 1;
    const IS_ONE: u64 = 2;

    /// At this address.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: u64, in_kernel: bool) -> Self {
        Self(address & !(PAGE - 1) | Self::IS_ONE | if in_kernel { Self::IN_KERNEL } else { 0 })
    }

    /// The page, if it is the fault that this thread is in: one of its own code, or one of the system call that runs.
    #[inline(always)]
    #[must_use]
    pub const fn page(self, call: Call) -> Option<u64> {
        let is_in_kernel = self.0 & Self::IN_KERNEL != 0;
        if self.0 & Self::IS_ONE != 0 && is_in_kernel == (call.number >= 0) {
            Some(self.0 & !(PAGE - 1))
        } else {
            None
        }
    }
}

/// One process's pages.
#[derive(Debug)]
pub struct Pages<'a, T> {
    /// Its books.
    pub books: Books<'a, T>,
    /// Where there are any.
    pub regions: &'a Regions,
}

impl<T: Tables> Pages<'_, T> {
    /// The page at `address` has become resident.
    #[inline(always)]
    pub fn touched(&self, account: AccountId, address: u64) {
        let page = address & !(PAGE - 1);
        add(&self.books.totals.mallocs, 1);
        add(self.regions.cell(self.books.slot, page), 1);
        self.books.allocated(account, None, page, PAGE, domain::RESIDENT);
    }

    /// The page at `address` is resident no more; whether it had an entry.
    #[inline(always)]
    pub fn released(&self, page: u64) -> bool {
        let is_known = self.books.freed(page) == Freed::Known;
        if is_known {
            add(&self.books.totals.frees, 1);
            add(self.regions.cell(self.books.slot, page), u64::MAX);
        }
        is_known
    }

    /// The page at `from` is at `to` now.
    #[inline(always)]
    pub fn moved(&self, from: u64, to: u64) {
        let Some((_, entry)) = self.books.take(from) else { return };
        add(self.regions.cell(self.books.slot, from), u64::MAX);
        let Some(key) = crate::live::Key::new(self.books.slot, to) else { return };
        // Nothing can be there but what was missed.
        self.released(to);
        add(self.regions.cell(self.books.slot, to), 1);
        self.books.put_back(key, entry);
    }

    /// Prepares to take the pages of a span away, as far as one event tells. The kernel says "some pages have gone" once for each region that
    /// had any, in their order, and not which: so each event takes the next region with entries, from where the last one ended and around
    /// again. Nothing says where one call ends and an equal one begins, and nothing need.
    #[inline(always)]
    pub fn begin_release(thread: &Thread, span: Span) {
        let cursor = thread.span_cursor.load();
        let is_same = thread.span_from.load() == span.from && thread.span_to.load() == span.to;
        if !is_same || cursor < span.from || cursor >= span.to {
            thread.span_cursor.store(span.from);
        }
        thread.span_from.store(span.from);
        thread.span_to.store(span.to);
        thread.span_left.store(span.to.wrapping_sub(span.from));
        thread.span_found.store(0);
    }

    /// One of [`STEPS`]; whether there are more.
    #[inline(always)]
    pub fn release_step(&self, thread: &Thread) -> bool {
        let at = thread.span_cursor.load();
        let next_region = (at & !(REGION - 1)).wrapping_add(REGION);
        let is_empty = self.regions.cell(self.books.slot, at).load() == 0;
        if !is_empty && self.released(at) {
            thread.span_found.store(1);
        }
        let to = thread.span_to.load();
        let next = if is_empty { next_region } else { at.wrapping_add(PAGE) };
        let next = if next > to { to } else { next };
        let left = thread.span_left.load().saturating_sub(next.wrapping_sub(at));
        thread.span_left.store(left);
        thread.span_cursor.store(if next >= to { thread.span_from.load() } else { next });
        let is_end_of_region = next == to || next & (REGION - 1) == 0;
        left != 0 && !(is_end_of_region && thread.span_found.load() != 0)
    }
}
