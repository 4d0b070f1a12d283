//! Where the chunks of all arenas lie: the heap of the main arena, and the heaps that others have mapped.
//!
//! Arenas are in a ring (`malloc_state.next`). One that is not the main arena has heaps of at most 64 MiB, each at a multiple
//! of that; `top` is in its newest, and each knows the one before (`struct heap_info`, malloc/arena.c). All of it is checked:
//! whatever is not as it must be makes the figures unknown. It must not know what is in a chunk.

use super::Reason;
use super::places::{Heap, Places, STATE, State, TOP};
use crate::discover::memory::ReadMemory;

/// `HEAP_MAX_SIZE`: twice `DEFAULT_MMAP_THRESHOLD_MAX`, 64-bit.
pub(super) const HEAP_MAX: u64 = 64 << 20;
/// `sizeof(struct heap_info)`: 2.27 to 2.34, and since `pagesize` came.
const HEAP_HEADERS: [u64; 2] = [32, 48];
/// Arenas that are looked at; by default there are at most eight for each processor.
const MOST_ARENAS: usize = 4096;
/// Heaps that are looked at: 256 GiB.
const MOST_HEAPS: usize = 4096;
/// The two marks at the end of a heap that was followed by another (`sysmalloc`, malloc/malloc.c), 16 bytes each.
const FENCE: u64 = 32;

/// A run of chunks, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Of the first chunk.
    pub first: u64,
    /// Chunks from here on are not read: the last, free one (`top`), or the marks at a heap's end.
    pub limit: u64,
    /// End of the heap.
    pub end: u64,
    /// Where the arena says which chunk is its last; `None` in heaps that have marks at their end.
    pub top_pointer: Option<u64>,
    /// Whether chunks may be marked as those of an arena that is not the main one.
    pub is_main: bool,
}

impl Stretch {
    pub(super) fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.first)
    }
}

/// The states of all arenas, and all stretches.
pub(super) fn stretches(
    memory: &impl ReadMemory,
    places: &Places,
    main: State,
    heap: &Heap,
) -> Result<(Vec<State>, Vec<Stretch>), Reason> {
    let mut stretches = vec![Stretch {
        first: heap.start,
        limit: main.top(),
        end: heap.start.wrapping_add(main.system_bytes()),
        top_pointer: Some(main.address.wrapping_add(TOP as u64)),
        is_main: true,
    }];
    let mut states = vec![main];
    loop {
        let next = states.last().map_or(0, State::next);
        if next == places.main_arena {
            return Ok((states, stretches));
        }
        if states.len() >= MOST_ARENAS || stretches.len() >= MOST_HEAPS {
            return Err(Reason::BadArena { address: next });
        }
        let state = State::read(memory, next, places.missing)?;
        stretches.extend(heaps_of(memory, &state, places.missing as u64)?);
        states.push(state);
    }
}

/// What a heap says of itself at its beginning.
struct HeapInfo {
    arena: u64,
    previous: u64,
    bytes: u64,
}

fn heap_info(memory: &impl ReadMemory, base: u64) -> Result<HeapInfo, Reason> {
    let mut bytes = [0; 24];
    memory.read(base, &mut bytes).map_err(|source| Reason::Unreadable { address: base, source })?;
    let (words, _) = bytes.as_chunks::<8>();
    let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
    Ok(HeapInfo { arena: word(0), previous: word(1), bytes: word(2) })
}

/// The arena of a chunk that is not the main one's (`arena_for_chunk`, malloc/arena.c): its heap begins with it.
pub(super) fn arena_of(memory: &impl ReadMemory, chunk: u64) -> Option<u64> {
    memory.read_u64(chunk - chunk % HEAP_MAX).ok()
}

/// The stretches of an arena that is not the main one, newest first; together they must be what it has from the system.
fn heaps_of(memory: &impl ReadMemory, state: &State, missing: u64) -> Result<Vec<Stretch>, Reason> {
    let address = state.address.wrapping_add(missing);
    let bad = Reason::BadArena { address };
    let header = address % HEAP_MAX;
    let mut stretches = Vec::new();
    let mut base = state.top() - state.top() % HEAP_MAX;
    let mut total = 0;
    for _ in 0..MOST_HEAPS {
        let info = heap_info(memory, base)?;
        let is_sound = info.arena == address
            && info.bytes.is_multiple_of(4096)
            && (FENCE + 64..=HEAP_MAX).contains(&info.bytes);
        // The state lies in the oldest heap, right behind what the heap says of itself.
        let is_oldest = base == address - header;
        let is_end = info.previous == 0;
        if !is_sound || !HEAP_HEADERS.contains(&header) || is_oldest != is_end {
            return Err(bad);
        }
        let is_newest = stretches.is_empty();
        let from = if is_oldest { header + STATE as u64 - missing } else { header };
        let end = base + info.bytes;
        let limit = if is_newest { state.top() } else { end - FENCE };
        let first = base + from.next_multiple_of(16);
        if limit < first || limit >= end {
            return Err(bad);
        }
        let top_pointer = is_newest.then(|| state.address + TOP as u64);
        stretches.push(Stretch { first, limit, end, top_pointer, is_main: false });
        total += info.bytes;
        if is_end {
            return if total == state.system_bytes() { Ok(stretches) } else { Err(bad) };
        }
        base = info.previous - info.previous % HEAP_MAX;
    }
    Err(bad)
}
