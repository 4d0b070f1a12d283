//! Counts the blocks in use in mimalloc's pages, what free-threaded interpreters use in place of pymalloc, and others under `PYTHONMALLOC=mimalloc`.
//!
//! Memory comes in segments of 32 MiB, at multiples of that. A segment begins with a header, and behind it is an array of slices; the first slice of each page is
//! its `mi_page_t`, and `used` counts its blocks (Include/internal/mimalloc/mimalloc/types.h, Objects/mimalloc/segment.c). A block that another thread has
//! freed counts there until the owner collects it, so those lists are walked and taken off. No table leads to the segments: all memory in which one could be is
//! looked at, and all must carry the same mark, the process's cookie. If the target runs meanwhile, the counts are of no single moment.

use std::collections::BTreeSet;

use super::arenas::{Reason, read};
use crate::discover::memory::{Mapping, ReadMemory};
use crate::plan::{Field, MimallocLayout, MimallocVersion};
use crate::profile::PoolBytes;

/// `MI_SEGMENT_SIZE`, 64-bit.
const SEGMENT: u64 = 32 << 20;
/// Segments that are looked at: 1 TiB of memory.
const MAX_SEGMENTS: usize = 1 << 15;
/// `MI_SLICES_PER_SEGMENT`, and one more for huge blocks.
const SLICES: u64 = SEGMENT / SLICE;
/// `MI_SEGMENT_SLICE_SIZE`.
const SLICE: u64 = 64 << 10;
/// `mi_thread_free_t` keeps two flags in its lowest bits.
const FLAGS: u64 = 3;
/// Blocks that may wait on one list: a page has at most 65,535.
const LONGEST_LIST: usize = 1 << 16;

/// Where a process's mimalloc keeps what is read of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLayout {
    of: &'static MimallocLayout,
    /// `sizeof(mi_page_t)`.
    page: usize,
}

impl PageLayout {
    /// That of a version, in a build with a lock or without.
    pub fn new(version: MimallocVersion, is_free_threaded: bool) -> Self {
        let of = version.layout();
        let extra = if is_free_threaded { MimallocLayout::FREE_THREADED_EXTRA } else { 0 };
        Self { of, page: usize::from(of.page) + usize::from(extra) }
    }
}

/// What mimalloc's pages hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageCensus {
    /// Segments found.
    pub segments: u64,
    /// Pages with a block in use.
    pub pages: u64,
    /// Blocks in use, those that wait to be collected left out.
    pub blocks: u64,
    /// Blocks that other threads have freed and the owner has not collected.
    pub waiting: u64,
    /// Bytes of the blocks in use, by the sizes that mimalloc gives them; of those that wait, some may be among them.
    pub block_bytes: u64,
    /// Bytes of the pages with a block in use.
    pub page_bytes: u64,
}

impl PageCensus {
    /// As parts of the figures. What segments hold besides these pages is reserved and may never have been touched, so it is in none.
    pub fn pool_bytes(&self) -> PoolBytes {
        PoolBytes {
            in_use_bytes: self.block_bytes,
            free_in_pools_bytes: self.page_bytes.saturating_sub(self.block_bytes),
            free_pools_bytes: 0,
            arenas_bytes: self.page_bytes,
            uncertain_bytes: 0,
        }
    }
}

/// Counts the blocks in use in all pages of a process.
pub fn blocks_in_pages(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: PageLayout,
) -> Result<PageCensus, Reason> {
    let mut census = PageCensus::default();
    let mut heaps = BTreeSet::new();
    let mut used = 0;
    for segment in segments(memory, mappings, layout.of)? {
        census.segments += 1;
        let mut slices = vec![0; layout.page * segment.slices];
        read(memory, segment.address + u64::from(layout.of.slices), &mut slices)?;
        let mut at = 0;
        while at < segment.slices {
            let page = &slices[at * layout.page..(at + 1) * layout.page];
            // What is not a page has no slices of its own; go on with the next one rather than never.
            let slices = half(page, 0).max(1);
            at += slices as usize;
            let (blocks, size) = (field(page, layout.of.used), field(page, layout.of.block_size));
            if size == 0 || blocks == 0 {
                continue;
            }
            census.pages += 1;
            used += blocks;
            let waiting = length_of_list(memory, word(page, layout.of.thread_free.into()) & !FLAGS);
            census.waiting += waiting;
            let area = u64::from(slices) * SLICE;
            census.page_bytes = census.page_bytes.saturating_add(area);
            // A huge block's page says the largest number that fits (`MI_HUGE_BLOCK_SIZE`); no block is larger than its page.
            let in_use = blocks.saturating_sub(waiting).saturating_mul(size.min(area)).min(area);
            census.block_bytes = census.block_bytes.saturating_add(in_use);
            heaps.insert(word(page, layout.of.heap.into()));
        }
    }
    for heap in heaps.into_iter().filter(|heap| *heap != 0) {
        let first = memory.read_u64(heap.wrapping_add(layout.of.delayed_free.into())).unwrap_or(0);
        census.waiting += length_of_list(memory, first);
    }
    census.blocks = used.saturating_sub(census.waiting);
    Ok(census)
}

/// Blocks that are linked by their first words. A list that changes while it is read may end anywhere.
fn length_of_list(memory: &impl ReadMemory, mut block: u64) -> u64 {
    let mut length = 0;
    while block != 0 && length < LONGEST_LIST as u64 {
        length += 1;
        block = memory.read_u64(block).unwrap_or(0);
    }
    length
}

struct Segment {
    address: u64,
    slices: usize,
}

/// All memory that is marked as a segment. `cookie` is the address with the process's own random number on it (`_mi_ptr_cookie`): one number for all.
fn segments(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: &MimallocLayout,
) -> Result<Vec<Segment>, Reason> {
    let mut found: Vec<(u64, Segment)> = Vec::new();
    let mut looked_at = 0;
    let usable =
        mappings.iter().filter(|mapping| mapping.is_anonymous() && mapping.writable && mapping.readable);
    for mapping in usable {
        let Some(first) = mapping.start.checked_next_multiple_of(SEGMENT) else { continue };
        for address in (first..mapping.end).step_by(SEGMENT as usize) {
            looked_at += 1;
            if looked_at > MAX_SEGMENTS {
                return Err(Reason::TooLarge { pools: MAX_SEGMENTS as u64 });
            }
            let mut header = vec![0; layout.slices.into()];
            // A mapping may be gone again, or too short for a header.
            if memory.read(address, &mut header).is_ok()
                && let Some(slices) = slices_of(&header, layout)
            {
                let number = word(&header, layout.cookie.into()) ^ address;
                found.push((number, Segment { address, slices }));
            }
        }
    }
    // Memory that looks like a header by chance has a number of its own.
    let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    let count = |number: &u64| numbers.iter().filter(|other| *other == number).count();
    let Some(own) = numbers.iter().max_by_key(|number| count(number)).copied() else { return Ok(Vec::new()) };
    Ok(found.into_iter().filter(|(number, _)| *number == own).map(|(_, segment)| segment).collect())
}

/// The slices of a segment, if this can be the header of one.
fn slices_of(header: &[u8], layout: &MimallocLayout) -> Option<usize> {
    let information = word(header, layout.info_slices.into());
    let entries = word(header, layout.slice_entries.into());
    let is_one = word(header, layout.cookie.into()) != 0
        && half(header, layout.kind.into()) <= 1
        && (1..=16).contains(&information)
        && (information..=SLICES + 1).contains(&entries);
    is_one.then_some(usize::try_from(entries).ok()?)
}

fn field(bytes: &[u8], field: Field) -> u64 {
    word(bytes, field.offset.into()) & (u64::MAX >> (64 - 8 * u32::from(field.bytes).clamp(1, 8)))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const BASE: u64 = 3 * SEGMENT;
    const LAYOUTS: [(MimallocVersion, bool); 4] = [
        (MimallocVersion::V2_1, false),
        (MimallocVersion::V2_1, true),
        (MimallocVersion::V2_5, false),
        (MimallocVersion::V2_5, true),
    ];

    fn layouts() -> impl Iterator<Item = PageLayout> {
        LAYOUTS.into_iter().map(|(version, is_free_threaded)| PageLayout::new(version, is_free_threaded))
    }

    struct Fake(Vec<u8>);

    impl ReadMemory for Fake {
        fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(address.wrapping_sub(BASE)).map_err(io::Error::other)?;
            let bytes = at.checked_add(buffer.len()).and_then(|end| self.0.get(at..end));
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    impl Fake {
        fn set(&mut self, at: u64, value: u64, bytes: u8) {
            let at = at as usize;
            self.0[at..at + usize::from(bytes)].copy_from_slice(&value.to_le_bytes()[..bytes.into()]);
        }

        fn page(&mut self, layout: PageLayout, slice: u64, slices: u64, used: u64, thread_free: u64) {
            let at = u64::from(layout.of.slices) + slice * layout.page as u64;
            self.set(at, slices, 4);
            // What lies behind each number must not be taken for a part of it.
            let (counter, size) = (layout.of.used, layout.of.block_size);
            self.set(at + u64::from(counter.offset), u64::MAX, 8);
            self.set(at + u64::from(counter.offset), used, counter.bytes);
            self.set(at + u64::from(size.offset), 48, size.bytes);
            self.set(at + u64::from(layout.of.thread_free), thread_free, 8);
        }
    }

    fn mappings() -> Vec<Mapping> {
        crate::discover::memory::parse_mappings(&format!("{BASE:x}-{:x} rw-p 0 00:00 0", BASE + SEGMENT))
    }

    fn segment(layout: PageLayout) -> Fake {
        let mut memory = Fake(vec![0; 1 << 20]);
        memory.set(layout.of.cookie.into(), BASE ^ 0x1234, 8);
        memory.set(layout.of.info_slices.into(), 1, 8);
        memory.set(layout.of.slice_entries.into(), SLICES, 8);
        memory.page(layout, 0, 1, 0, 0);
        memory
    }

    #[test]
    fn blocks_that_wait_are_taken_off() {
        for layout in layouts() {
            let mut memory = segment(layout);
            memory.page(layout, 1, 2, 100, (BASE + 0x8_0000) | 2);
            memory.page(layout, 3, 1, 7, 0);
            memory.set(0x8_0000, BASE + 0x8_0100, 8);
            let census = blocks_in_pages(&memory, &mappings(), layout).unwrap();
            let expected = PageCensus {
                segments: 1,
                pages: 2,
                blocks: 105,
                waiting: 2,
                block_bytes: 105 * 48,
                page_bytes: 3 * SLICE,
            };
            assert_eq!(census, expected, "{layout:?}");
            assert_eq!(census.pool_bytes().free_in_pools_bytes, 3 * SLICE - 105 * 48);
        }
    }

    #[test]
    fn a_list_in_a_circle_ends() {
        for layout in layouts() {
            let mut memory = segment(layout);
            memory.page(layout, 1, 1, 9, BASE + 0x8_0000);
            memory.set(0x8_0000, BASE + 0x8_0000, 8);
            assert_eq!(blocks_in_pages(&memory, &mappings(), layout).unwrap().blocks, 0);
        }
    }

    #[test]
    fn memory_without_a_header_is_no_segment() {
        for layout in layouts() {
            let census = blocks_in_pages(&Fake(vec![0xff; 1 << 20]), &mappings(), layout).unwrap();
            assert_eq!(census, PageCensus::default());
        }
    }
}
