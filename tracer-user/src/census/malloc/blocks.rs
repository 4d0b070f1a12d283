//! Single blocks of glibc's malloc: free, or in use, by the headers of their chunk and of the one behind (malloc/malloc.c).
//!
//! What tells one life from the next is the size of the chunk alone. A chunk that became part of a larger one keeps its old header in memory
//! until somebody writes there; if that larger chunk is in use again meanwhile, the block looks alive. It must not know who took a block.

use std::io;

use rustc_hash::FxHashSet;

use super::caches::fast_chunks;
use super::chunks::{IS_FOREIGN, IS_MAPPED, LARGEST_CACHED, LEAST, PREVIOUS_IN_USE};
use super::heaps::arena_of;
use super::places::{Heap, State};
use super::{Malloc, Reason};
use crate::discover::memory::{Mapping, ReadMemory};

/// Largest chunk of a fast bin by default (`DEFAULT_MXFAST` is 128 bytes, 64-bit).
const LARGEST_FAST: u64 = 128;
/// Most arenas of which ends and fast bins are looked at.
const MOST_ARENAS: usize = 64;

/// What was found of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkFound {
    /// It is free, or part of something else.
    Free,
    /// In use: its size, with the flags that do not change while it lives.
    InUse(u64),
}

/// What one look knows of all arenas.
#[derive(Debug, Default)]
pub struct ChunkReader {
    /// Arena by arena: its state's address, and where its last, free chunk begins.
    tops: Vec<(u64, u64)>,
    main_arena: u64,
    missing: u64,
    heap: Option<Heap>,
    fast: FxHashSet<u64>,
    key: Option<u64>,
}

impl Malloc {
    /// Finds the arenas, for looks at single blocks: costs a read for each, and is repeated now and then, for arenas come and go.
    pub fn chunk_reader(
        &mut self,
        memory: &impl ReadMemory,
        mappings: impl FnMut() -> io::Result<Vec<Mapping>>,
        library: Option<&str>,
    ) -> Result<ChunkReader, Reason> {
        let key = |malloc: &Self| malloc.key;
        self.find(memory, mappings, library, |malloc, located| {
            Ok(ChunkReader {
                tops: located
                    .states
                    .iter()
                    .take(MOST_ARENAS)
                    .map(|state| (state.address, state.top()))
                    .collect(),
                main_arena: located.places.main_arena.wrapping_sub(located.places.missing as u64),
                missing: located.places.missing as u64,
                heap: Some(located.heap),
                fast: FxHashSet::default(),
                key: key(malloc),
            })
        })
    }
}

impl ChunkReader {
    /// Before blocks are looked at: where arenas end now, and what is in their fast bins.
    pub fn begin_look(&mut self, memory: &impl ReadMemory) {
        self.fast.clear();
        for (address, top) in &mut self.tops {
            let there = address.wrapping_add(self.missing);
            if let Ok(state) = State::read(memory, there, usize::try_from(self.missing).unwrap_or(0)) {
                *top = state.top();
                fast_chunks(memory, &state, &mut self.fast);
            }
        }
    }

    /// Looks at one block.
    pub fn look(&self, memory: &impl ReadMemory, address: u64) -> ChunkFound {
        self.in_use(memory, address).map_or(ChunkFound::Free, ChunkFound::InUse)
    }

    fn in_use(&self, memory: &impl ReadMemory, address: u64) -> Option<u64> {
        let at = address.checked_sub(16).filter(|at| at.is_multiple_of(16))?;
        let [_, header, _, mark] = words(memory, at)?;
        let size = header & !7;
        if size < LEAST || !size.is_multiple_of(16) {
            return None;
        }
        if header & IS_MAPPED != 0 {
            // It had a mapping of its own: it is gone with it, and the rest was checked by reading.
            return Some(header & !PREVIOUS_IN_USE);
        }
        let is_cached = size <= LARGEST_CACHED && self.key == Some(mark);
        let is_fast = size <= LARGEST_FAST && self.fast.contains(&at);
        if is_cached || is_fast || self.is_behind_end(memory, at, header) {
            return None;
        }
        let [_, behind, ..] = words(memory, at.checked_add(size)?)?;
        (behind & PREVIOUS_IN_USE != 0).then_some(header & !PREVIOUS_IN_USE)
    }

    /// Whether the chunk has become part of its arena's last, free one: then its own header says nothing.
    fn is_behind_end(&self, memory: &impl ReadMemory, at: u64, header: u64) -> bool {
        let arena = match header & IS_FOREIGN {
            0 if self.heap.is_some_and(|heap| at >= heap.start) => Some(self.main_arena),
            0 => None,
            _ => arena_of(memory, at).map(|address| address.wrapping_sub(self.missing)),
        };
        let top = arena.and_then(|arena| self.tops.iter().find(|(address, _)| *address == arena));
        // An arena has its end in its newest heap, and others have none behind it.
        top.is_some_and(|(address, top)| at >= *top && (*address == self.main_arena || same_heap(at, *top)))
    }
}

fn same_heap(one: u64, other: u64) -> bool {
    one / super::heaps::HEAP_MAX == other / super::heaps::HEAP_MAX
}

/// The four words of a chunk's header and of what is behind it.
fn words(memory: &impl ReadMemory, at: u64) -> Option<[u64; 4]> {
    let mut bytes = [0; 32];
    memory.read(at, &mut bytes).ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    <[u64; 4]>::try_from(words.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>()).ok()
}
