//! Heaps made by hand, against a plain model of them: a list of chunks, each with what has become of it.

mod blocks;

use std::io;

use proptest::prelude::*;

use super::places::{FAST_BINS, STATE, TOP};
use super::{Malloc, MallocCensus, Reason};
use crate::discover::memory::{Mapping, ReadMemory, parse_mappings};

const LIBRARY: &str = "/lib/libc.so.6";
const DATA: u64 = 0x7f00_0000_0000;
/// Of the main arena in it.
const ARENA: u64 = DATA + 0x400;
/// Of `mp_.sbrk_base` in it.
const BASE: u64 = DATA + 0x200;
const HEAP: u64 = 0x5500_0000_0000;
/// An arena of a thread, and its second heap.
const OTHER: u64 = 0x7e00_0000_0000;
const SECOND: u64 = OTHER + (64 << 20);
const KEY: u64 = 0x1234_5678_9abc_def1;
const HEAD: usize = 48;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Used,
    Free,
    Cached,
    Fast,
}

type Chunk = (State, u64);

#[derive(Debug, Clone, Default)]
struct Fake(Vec<(u64, Vec<u8>)>);

impl Fake {
    fn add(&mut self, start: u64, length: u64) {
        self.0.push((start, vec![0; length as usize]));
    }

    fn set(&mut self, address: u64, value: u64) {
        let (start, bytes) = self
            .0
            .iter_mut()
            .find(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&address))
            .unwrap();
        let at = (address - *start) as usize;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Chunks from `first` on; gives back where they end, and whether the last is in use.
    fn chunks(&mut self, first: u64, chunks: &[Chunk], flags: u64, fast: &mut u64) -> (u64, bool, u64) {
        let (mut at, mut before, mut previous_size) = (first, true, 0);
        for (state, size) in chunks {
            self.set(at, if before { 0x5555 } else { previous_size });
            self.set(at + 8, size | flags | u64::from(before));
            if *state == State::Cached {
                self.set(at + 24, KEY);
            }
            if *state == State::Fast {
                // Links are mixed with their places.
                self.set(at + 16, *fast ^ ((at + 16) >> 12));
                *fast = at;
            }
            (before, previous_size) = (*state != State::Free, *size);
            at += size;
        }
        (at, before, previous_size)
    }

    /// The end of a heap that is in use: the last chunk.
    fn top(&mut self, (at, before, previous_size): (u64, bool, u64), end: u64) {
        self.set(at, if before { 0 } else { previous_size });
        self.set(at + 8, (end - at) | u64::from(before));
    }

    /// One of 2.43, in a heap: nothing may be written before it.
    fn short_arena(&mut self, address: u64, top: u64, system: u64, next: u64) {
        self.set(address + 8, top);
        self.set(address + 2072, next);
        self.set(address + 2096, system);
    }

    fn arena(&mut self, address: u64, top: u64, system: u64, next: u64, fast: u64) {
        for bin in 0..127 {
            let own = address + 96 + 16 * bin;
            self.set(own + 16, own);
            self.set(own + 24, own);
        }
        self.set(address + TOP as u64, top);
        self.set(address + FAST_BINS as u64, fast);
        self.set(address + 2160, next);
        self.set(address + 2184, system);
        self.set(address + 2192, system);
    }
}

impl ReadMemory for Fake {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (start, bytes) in &self.0 {
            let at = address.checked_sub(*start).and_then(|at| usize::try_from(at).ok());
            let found = at.and_then(|at| bytes.get(at..at.checked_add(buffer.len())?));
            if let Some(found) = found {
                buffer.copy_from_slice(found);
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// The main thread's cache, which is the first chunk: two lists with a chunk each.
const CACHE: Chunk = (State::Used, 0x290);
const TWO_CACHED: [Chunk; 2] = [(State::Cached, 32), (State::Cached, 48)];

struct Process {
    memory: Fake,
    mappings: Vec<Mapping>,
    expected: MallocCensus,
}

/// A main arena of `main`, and with `other` a second one of two heaps.
fn process(main: &[Chunk], other: Option<&[Chunk]>) -> Process {
    process_with(main, other, 0)
}

/// `missing`: what arenas have less of.
fn process_with(main: &[Chunk], other: Option<&[Chunk]>, missing: usize) -> Process {
    let mut memory = Fake::default();
    let chunks: Vec<Chunk> = [CACHE].iter().chain(&TWO_CACHED).chain(main).copied().collect();
    let used: u64 = chunks.iter().map(|(_, size)| size).sum();
    let heap = (used + 64).next_multiple_of(4096);
    memory.add(DATA, 0x1000);
    memory.add(HEAP, heap);
    let mut fast = 0;
    let end = memory.chunks(HEAP, &chunks, 0, &mut fast);
    memory.top(end, HEAP + heap);
    memory.set(HEAP + 16 + 128, HEAP + 0x290 + 16);
    memory.set(HEAP + 16 + 136, HEAP + 0x290 + 32 + 16);
    let main_arena = ARENA + missing as u64;
    let next = if other.is_some() { OTHER + HEAD as u64 } else { main_arena };
    memory.arena(ARENA, end.0, heap, next, if missing > 0 { 0 } else { fast });
    // Two mapped chunks of three pages, as since 2.35.
    for (words, value) in [(5, 2 << 32), (4, 2 << 32 | 65536), (3, 0), (2, 0x3000), (1, 0x9000), (0, HEAP)] {
        memory.set(BASE - 8 * words, value);
    }
    let mut expected = MallocCensus { mapped_bytes: 0x3000, mapped_chunks: 2, ..MallocCensus::default() };
    expect(&mut expected, &chunks, heap);
    let mut maps = format!(
        "{HEAP:x}-{:x} rw-p 0 00:00 0 [heap]\n{DATA:x}-{:x} rw-p 0 08:01 5 {LIBRARY}\n",
        HEAP + heap,
        DATA + 0x1000
    );
    if let Some(chunks) = other {
        let first = (HEAD + STATE - missing).next_multiple_of(16) as u64;
        let size: u64 = chunks.iter().map(|(_, size)| size).sum();
        let newest = (HEAD as u64 + size + 64).next_multiple_of(4096);
        let oldest = (first + size + 32).next_multiple_of(4096) + 4096;
        let arena = OTHER + HEAD as u64;
        for (base, length, previous) in [(OTHER, oldest, 0), (SECOND, newest, OTHER)] {
            memory.add(base, length);
            memory.set(base, arena);
            memory.set(base + 8, previous);
            memory.set(base + 16, length);
            maps += &format!("{base:x}-{:x} rw-p 0 00:00 0\n", base + length);
        }
        let mut fast = 0;
        // What was left of the older heap is a free chunk before the two marks.
        let (at, before, previous) = memory.chunks(OTHER + first, chunks, 4, &mut fast);
        let end = OTHER + oldest - 32;
        memory.set(at, if before { 0 } else { previous });
        memory.set(at + 8, (end - at) | u64::from(before));
        memory.set(end, end - at);
        memory.set(end + 8, 16);
        memory.set(end + 24, 1);
        expect(&mut expected, chunks, oldest - first);
        let end = memory.chunks(SECOND + HEAD as u64, chunks, 4, &mut fast);
        memory.top(end, SECOND + newest);
        expect(&mut expected, chunks, newest - HEAD as u64);
        if missing == 0 {
            memory.arena(arena, end.0, oldest + newest, main_arena, fast);
        } else {
            memory.short_arena(arena, end.0, oldest + newest, main_arena);
        }
    }
    Process { memory, mappings: parse_mappings(&maps), expected }
}

/// Adds what a stretch of so many bytes must come to.
fn expect(census: &mut MallocCensus, chunks: &[Chunk], bytes: u64) {
    census.heap_bytes += bytes;
    let sum = &mut census.chunks;
    sum.free_bytes += bytes;
    for (state, size) in chunks {
        match state {
            State::Free => {}
            State::Cached => {
                sum.cached_bytes += size;
                sum.cached_chunks += 1;
                sum.free_bytes -= size;
            }
            State::Used | State::Fast => {
                sum.in_use_bytes += size - 8;
                sum.in_use_chunks += 1;
                sum.free_bytes -= size;
            }
        }
        if *state == State::Fast {
            census.fast_chunks += 1;
            census.fast_bytes += size;
        }
    }
}

fn read(process: &Process) -> Result<MallocCensus, Reason> {
    Malloc::default().read(&process.memory, || Ok(process.mappings.clone()), Some(LIBRARY))
}

fn chunks() -> impl Strategy<Value = Vec<Chunk>> {
    let state = prop_oneof![4 => Just(State::Used), 2 => Just(State::Free), 1 => Just(State::Cached), 1 => Just(State::Fast)];
    let size = prop_oneof![8 => 2..60_u64, 1 => 60..20_000_u64];
    prop::collection::vec((state, size), 0..150).prop_map(|chunks| {
        let sized = chunks.into_iter().map(|(state, units)| match state {
            State::Used | State::Free => (state, 16 * units),
            State::Cached => (state, 16 * (2 + units % 60)),
            State::Fast => (state, 32),
        });
        // Two free ones side by side would have become one, and one before the end a part of that.
        let mut chunks: Vec<Chunk> = sized.collect();
        chunks.dedup_by(|next, before| next.0 == State::Free && before.0 == State::Free);
        chunks.push((State::Used, 64));
        chunks
    })
}

proptest! {
    #[test]
    fn every_byte_is_in_its_place(main in chunks(), other in prop::option::of(chunks())) {
        let process = process(&main, other.as_deref());
        prop_assert_eq!(read(&process).unwrap(), process.expected);
    }

    /// Whatever is written over it: it ends, and if it is not refused nothing is counted twice.
    #[test]
    fn damage_is_noticed_or_harmless(
        main in chunks(),
        other in prop::option::of(chunks()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u64>()), 1..8),
    ) {
        let mut process = process(&main, other.as_deref());
        for (part, place, value) in damage {
            let (start, length) = {
                let (start, bytes) = part.get(&process.memory.0);
                (*start, bytes.len())
            };
            // Also values that are nearly right.
            let value = if value % 3 == 0 { value % 0x400 } else { value };
            process.memory.set(start + 8 * place.index(length / 8) as u64, value);
        }
        if let Ok(census) = read(&process) {
            let chunks = census.chunks;
            let sum = chunks.in_use_bytes + 8 * chunks.in_use_chunks + chunks.cached_bytes + chunks.free_bytes;
            prop_assert_eq!(sum, census.heap_bytes);
            prop_assert!(census.fast_bytes <= chunks.in_use_bytes);
        }
    }
}

/// glibc 2.43.
#[test]
fn arenas_without_fast_bins() {
    for other in [None, Some(&SOME[..])] {
        let process = process_with(&SOME, other, super::places::NO_FAST);
        assert_eq!(read(&process).unwrap(), process.expected);
    }
}

const SOME: [Chunk; 4] = [(State::Used, 64), (State::Free, 4096), (State::Used, 128), (State::Used, 1 << 17)];

fn refused(process: &Process) -> String {
    read(process).unwrap_err().to_string()
}

#[test]
fn a_chain_that_breaks_is_refused() {
    let mut process = process(&SOME, None);
    // The size of the first of them.
    let at = HEAP + 0x290 + 32 + 48 + 8;
    process.memory.set(at, 80 | 1);
    assert!(refused(&process).contains("did not hold together"), "{}", refused(&process));
    for size in [0, 16, 24, 1 << 40, u64::MAX] {
        process.memory.set(at, size);
        assert!(refused(&process).contains("did not hold together"), "{size}: {}", refused(&process));
    }
}

#[test]
fn others_are_named() {
    let found = process(&SOME, None);
    let other = |library| {
        let result = Malloc::default().read(&found.memory, || Ok(found.mappings.clone()), library);
        result.unwrap_err().to_string()
    };
    assert!(other(Some("/lib/ld-musl-x86_64.so.1")).contains("`ld-musl-x86_64.so.1`"));
    assert!(other(None).contains("statically"));
    let mut preloaded = process(&SOME, None);
    preloaded.mappings.extend(parse_mappings("1000-2000 r-xp 0 08:01 7 /usr/lib/libjemalloc.so.2\n"));
    assert!(refused(&preloaded).contains("`libjemalloc.so.2`"));
}

#[test]
fn a_break_that_others_have_moved_is_no_heap() {
    let mut found = process(&SOME, None);
    found.memory.set(ARENA + 2184, 4096);
    assert!(refused(&found).contains("no state of malloc"), "{}", refused(&found));
    found.mappings.retain(|mapping| mapping.name != "[heap]");
    assert!(refused(&found).contains("0 heaps"));
}

/// A ring of arenas that does not come back, and heaps that lead to themselves.
#[test]
fn what_goes_in_circles_ends() {
    let mut found = process(&SOME, Some(&SOME));
    found.memory.set(OTHER + HEAD as u64 + 2160, OTHER + HEAD as u64);
    assert!(refused(&found).contains("is none"), "{}", refused(&found));
    let mut found = process(&SOME, Some(&SOME));
    found.memory.set(SECOND + 8, SECOND);
    assert!(refused(&found).contains("is none"), "{}", refused(&found));
}

/// A heap that others change: what does not agree is read again.
#[test]
fn a_piece_that_changed_is_read_again() {
    struct Changing(Fake, std::cell::Cell<u32>);
    impl ReadMemory for Changing {
        fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.0.read(address, buffer)?;
            // The first time that the middle of the heap is read it is nonsense.
            if address > HEAP
                && address < ARENA
                && buffer.len() > 4096
                && self.1.replace(self.1.get() + 1) == 0
            {
                buffer.fill(0x99);
            }
            Ok(())
        }
    }
    let many: Vec<Chunk> = (0..4000).map(|_| (State::Used, 64)).collect();
    let found = process(&many, None);
    let memory = Changing(found.memory.clone(), std::cell::Cell::new(0));
    let census = Malloc::default().read(&memory, || Ok(found.mappings.clone()), Some(LIBRARY)).unwrap();
    assert!(census.chunks.reread_bytes > 0 || memory.1.get() > 0);
    let chunks = super::chunks::Chunks { reread_bytes: 0, ..census.chunks };
    assert_eq!(MallocCensus { chunks, ..census }, found.expected);
}
