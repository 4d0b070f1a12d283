//! Finds where glibc keeps the state of malloc: the main arena, and the parameters.
//!
//! Both are static variables of the C library without symbols in stripped files (`main_arena` and `mp_`, malloc/malloc.c). They
//! are searched for in the library's own data by what they are: an arena by its 127 bins, each of which points to itself or
//! into the heap, and by its size, which is the heap's; the parameters by the heap's beginning (`sbrk_base`), with counts
//! around it that agree. `struct malloc_state` has not changed from 2.27 to 2.41; 2.43 has no fast bins, and all that follows
//! them is 88 bytes nearer to its beginning. It must not know chunks.

use super::{Reason, read_word};
use crate::discover::memory::{Mapping, ReadMemory};

/// Size of `struct malloc_state`, with fast bins.
pub(super) const STATE: usize = 2200;
/// What is missing of it where there are none: `have_fastchunks` with its padding, and the bins.
pub(super) const NO_FAST: usize = 88;
/// Offset of `fastbinsY` in it.
pub(super) const FAST_BINS: usize = 16;
/// How many there are (`NFASTBINS`).
pub(super) const FAST_BIN_COUNT: usize = 10;
/// Offset of `top`.
pub(super) const TOP: usize = 96;
/// Offset of `bins`: pairs of pointers, the first pair that of bin 1.
const BINS: usize = 112;
/// `NBINS - 1`.
const BIN_COUNT: usize = 127;
/// Offset of `next`.
const NEXT: usize = 2160;
/// Offset of `system_mem`; `max_system_mem` follows.
const SYSTEM: usize = 2184;
/// The C library's data that is searched; glibc has about 8 KiB.
const MOST_DATA: u64 = 1 << 20;
/// `DEFAULT_MMAP_MAX`: what `n_mmaps_max` is unless somebody sets it.
const MOST_MAPPED: u64 = 65536;

/// The heap that `brk` grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heap {
    pub start: u64,
    pub end: u64,
}

/// The one heap.
pub(super) fn heap(mappings: &[Mapping]) -> Result<Heap, Reason> {
    let heaps: Vec<&Mapping> = mappings.iter().filter(|mapping| mapping.name == "[heap]").collect();
    match heaps.as_slice() {
        [heap] if heap.readable && heap.writable => Ok(Heap { start: heap.start, end: heap.end }),
        heaps => Err(Reason::Heaps { number: heaps.len() }),
    }
}

/// An arena's `struct malloc_state`, read at once.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub address: u64,
    words: Vec<u64>,
}

impl State {
    /// `missing`: what it has less of, see [`NO_FAST`]; it is filled up with zeros, and its address is that of a whole one.
    pub(super) fn read(memory: &impl ReadMemory, address: u64, missing: usize) -> Result<Self, Reason> {
        let mut bytes = vec![0; STATE];
        let there = bytes.get_mut(missing..).unwrap_or_default();
        memory.read(address, there).map_err(|source| Reason::Unreadable { address, source })?;
        Ok(Self::of(address.wrapping_sub(missing as u64), &bytes))
    }

    fn of(address: u64, bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self { address, words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() }
    }

    pub(super) fn word(&self, offset: usize) -> u64 {
        self.words.get(offset / 8).copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> u64 {
        self.word(TOP)
    }

    pub(super) fn next(&self) -> u64 {
        self.word(NEXT)
    }

    pub(super) fn system_bytes(&self) -> u64 {
        self.word(SYSTEM)
    }

    /// Whether these can be bins: an empty one points to its own place in the list of bins (`bin_at`), others to chunks.
    pub(super) fn has_bins(&self, is_chunk: impl Fn(u64) -> bool) -> bool {
        (0..BIN_COUNT).all(|bin| {
            // `bin_at` is two words before the pair, so that the pair stands where a chunk's links do.
            let own = self.address.wrapping_add((BINS - 16 + 16 * bin) as u64);
            let (first, last) = (self.word(BINS + 16 * bin), self.word(BINS + 16 * bin + 8));
            (first == own && last == own) || (is_chunk(first) && is_chunk(last))
        })
    }
}

/// Where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub main_arena: u64,
    /// What its arenas have less of: nothing, or [`NO_FAST`].
    pub missing: usize,
    /// Of `mp_.mmapped_mem`.
    mapped: u64,
    /// Of `mp_.n_mmaps`, from there backwards: 2.35 put an integer before it, which moved it.
    number_before: u64,
}

impl Places {
    pub(super) fn find(
        memory: &impl ReadMemory,
        mappings: &[Mapping],
        library: &str,
        heap: &Heap,
    ) -> Result<Self, Reason> {
        let data = mappings.iter().filter(|mapping| mapping.name == library && mapping.writable);
        let (mut main_arena, mut parameters) = (None, None);
        for mapping in data {
            let length = (mapping.end - mapping.start).min(MOST_DATA);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            let address = mapping.start;
            memory.read(address, &mut bytes).map_err(|source| Reason::Unreadable { address, source })?;
            main_arena = main_arena.or_else(|| main_arena_in(address, &bytes, heap));
            parameters = parameters.or_else(|| parameters_in(address, &bytes, heap));
        }
        let (Some(main_arena), Some((mapped, number_before))) = (main_arena, parameters) else {
            return Err(Reason::NoState { name: library.rsplit('/').next().unwrap_or_default().to_owned() });
        };
        Ok(Self { main_arena, missing: 0, mapped, number_before })
    }

    /// The same for arenas without fast bins.
    pub(super) fn without_fast_bins(self) -> Self {
        Self { main_arena: self.main_arena.wrapping_add(NO_FAST as u64), missing: NO_FAST, ..self }
    }

    /// Whether what was found earlier is still there: the process may have become another program.
    pub(super) fn hold(&self, memory: &impl ReadMemory, heap: &Heap) -> bool {
        memory.read_u64(self.mapped.wrapping_add(16)).is_ok_and(|base| base == heap.start)
    }

    /// The main arena's state, which must be the heap's.
    pub(super) fn main(&self, memory: &impl ReadMemory, heap: &Heap) -> Result<State, Reason> {
        let state = State::read(memory, self.main_arena, self.missing)?;
        let (system_bytes, heap_bytes) = (state.system_bytes(), heap.end - heap.start);
        // The heap may have grown or shrunk since the mappings were read; the state is what counts.
        let end = heap.start.wrapping_add(system_bytes);
        let is_near = system_bytes.is_multiple_of(4096) && state.top() >= heap.start && state.top() < end;
        if system_bytes != heap_bytes {
            return Err(Reason::NotContiguous { system_bytes, heap_bytes });
        }
        if !is_near {
            return Err(Reason::BadArena { address: self.main_arena });
        }
        Ok(state)
    }

    /// Chunks with mappings of their own, and their bytes.
    pub(super) fn mapped(&self, memory: &impl ReadMemory, heap: &Heap) -> Result<(u64, u64), Reason> {
        let bytes = read_word(memory, self.mapped)?;
        let mut number = [0; 4];
        let address = self.mapped.wrapping_sub(self.number_before);
        memory.read(address, &mut number).map_err(|source| Reason::Unreadable { address, source })?;
        let number = u64::from(u32::from_le_bytes(number));
        if self.hold(memory, heap) {
            Ok((number, bytes))
        } else {
            Err(Reason::BadArena { address: self.mapped })
        }
    }
}

/// The main arena among the data of a library.
fn main_arena_in(start: u64, bytes: &[u8], heap: &Heap) -> Option<u64> {
    let in_heap = |address: u64| address.is_multiple_of(16) && (heap.start..heap.end).contains(&address);
    (0..bytes.len().saturating_sub(STATE)).step_by(8).find_map(|offset| {
        let bytes = bytes.get(offset..offset + STATE)?;
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if word(SYSTEM)? != heap.end - heap.start || !in_heap(word(TOP)?) || word(NEXT)? == 0 {
            return None;
        }
        let state = State::of(start + offset as u64, bytes);
        state.has_bins(in_heap).then_some(state.address)
    })
}

/// Where `mmapped_mem` is, and how far before it `n_mmaps`.
fn parameters_in(start: u64, bytes: &[u8], heap: &Heap) -> Option<(u64, u64)> {
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    words.windows(6).zip(0_u64..).find_map(|(window, place)| {
        // `.., n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold` (32 bits each), `mmapped_mem`, `max_mmapped_mem`, `sbrk_base`
        let [before, first, second, mapped, most, base] = window else { return None };
        if *base != heap.start || mapped > most {
            return None;
        }
        let (low, high) = (|word: &u64| word & 0xffff_ffff, |word: &u64| word >> 32);
        let is_sound = |number: u64, limit: u64, highest: u64| {
            limit == MOST_MAPPED && number <= highest && (number == 0) == (*mapped == 0)
        };
        let at = start + 8 * (place + 3);
        if is_sound(low(first), high(first), low(second)) {
            Some((at, 16)) // to 2.34
        } else if is_sound(high(before), low(first), high(first)) {
            Some((at, 20)) // `hp_flags` is before it, and four bytes of nothing behind
        } else {
            None
        }
    })
}
