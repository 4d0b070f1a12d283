//! What glibc's malloc holds, read from outside: chunks in use, free ones, and mapped ones.
//!
//! glibc keeps no count of the bytes in use; `mallinfo2` (malloc/malloc.c) takes what its arenas hold and subtracts what is
//! in their free lists. A list is followed by one read a chunk, and a running program changes it all the time, so heaps are
//! read from their beginning instead, chunk by chunk (`chunks.rs`), whose headers check each other. Where the state of an
//! arena lies is found by what it is (`places.rs`), never by version. It must not know Python.

mod blocks;
mod caches;
mod chunks;
mod heaps;
mod places;

#[cfg(test)]
mod tests;

use std::io;

pub use blocks::{ChunkFound, ChunkReader};

use self::caches::{fast_bins, tcache_key};
use self::chunks::Chunks;
use self::heaps::{Stretch, stretches};
use self::places::{Heap, Places, State};
use crate::discover::memory::{Mapping, ReadMemory};

/// Why malloc's figures are not known.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Another C library, or another allocator in front of it.
    #[error("malloc is that of `{name}`, which cannot be read from outside")]
    Foreign {
        /// The file.
        name: String,
    },
    /// A program without a C library of its own.
    #[error("no C library is mapped: it may be linked statically")]
    NoLibrary,
    /// The kernel gave no room for a heap, or several stretches.
    #[error("found {number} heaps (`[heap]`) in place of one")]
    Heaps {
        /// How many.
        number: usize,
    },
    /// No main arena in the C library's data, or what is there does not hold together.
    #[error(
        "found no state of malloc in `{name}`: it is of another build than glibc's 2.27 to 2.43 for 64 bits"
    )]
    NoState {
        /// The file.
        name: String,
    },
    /// Memory from somewhere else than the heap is in the main arena.
    #[error(
        "the main arena has {system_bytes} bytes and the heap {heap_bytes}: others have moved the break as well"
    )]
    NotContiguous {
        /// What malloc has taken.
        system_bytes: u64,
        /// What the heap has.
        heap_bytes: u64,
    },
    /// Arenas that do not lead to each other.
    #[error("an arena at `{address:#x}` is none; did the process change while it was read?")]
    BadArena {
        /// Where it should be.
        address: u64,
    },
    /// More than one look may read.
    #[error("its heaps have {bytes} bytes: more than one look reads")]
    TooLarge {
        /// How much there is.
        bytes: u64,
    },
    /// Chunks whose headers contradict each other, again and again.
    #[error(
        "chunks at `{address:#x}` did not hold together in several readings: the process changes them too fast"
    )]
    Torn {
        /// Where it broke.
        address: u64,
    },
    /// Memory that should be there could not be read.
    #[error("failed to read malloc's memory at `{address:#x}`")]
    Unreadable {
        /// Where.
        address: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What malloc holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MallocCensus {
    /// Chunks in use, and those in caches.
    pub chunks: Chunks,
    /// In fast bins: these look in use.
    pub fast_bytes: u64,
    /// How many.
    pub fast_chunks: u64,
    /// Bytes of all heaps: what the arenas have from the system.
    pub heap_bytes: u64,
    /// Chunks with mappings of their own, whole pages.
    pub mapped_bytes: u64,
    /// How many.
    pub mapped_chunks: u64,
}

/// Most bytes of heaps that one look reads: 4 GiB, about 2 s.
const MOST_BYTES: u64 = 4 << 30;
/// Heaps that are searched for a thread's cache.
const MOST_SEARCHED: usize = 8;
/// Tries before a heap counts as torn; each has some of its own (`chunks.rs`).
const TRIES: usize = 3;

/// Where a process's malloc keeps its state, once that has been found.
#[derive(Debug, Default)]
pub struct Malloc {
    places: Option<Places>,
    /// The mark of chunks in caches.
    key: Option<u64>,
}

/// Where a process's arenas are, now.
struct Located {
    places: Places,
    heap: Heap,
    states: Vec<State>,
    stretches: Vec<Stretch>,
}

impl Malloc {
    /// Reads all heaps. `library`: the C library as the mappings name it. `mappings` are of now.
    pub fn read(
        &mut self,
        memory: &impl ReadMemory,
        mappings: impl FnMut() -> io::Result<Vec<Mapping>>,
        library: Option<&str>,
    ) -> Result<MallocCensus, Reason> {
        self.find(memory, mappings, library, |malloc, located| malloc.count(memory, located))
    }

    /// Finds the arenas and has something made of them; tries again where the process has changed them meanwhile.
    fn find<Made>(
        &mut self,
        memory: &impl ReadMemory,
        mut mappings: impl FnMut() -> io::Result<Vec<Mapping>>,
        library: Option<&str>,
        make: impl Fn(&Self, &Located) -> Result<Made, Reason>,
    ) -> Result<Made, Reason> {
        let library = library.ok_or(Reason::NoLibrary)?;
        let mut tried = 0;
        loop {
            tried += 1;
            let mapped = mappings().map_err(|source| Reason::Unreadable { address: 0, source })?;
            if let Some(name) = foreign(&mapped, library) {
                return Err(Reason::Foreign { name });
            }
            let located = self.locate(memory, &mapped, library);
            match located.and_then(|located| make(self, &located)) {
                // What moved meanwhile is somewhere by now.
                Err(error) if tried < TRIES && !matches!(error, Reason::TooLarge { .. }) => {
                    tracing::debug!(%error, "malloc's heaps are read again");
                }
                result => return result,
            }
        }
    }

    fn locate(
        &mut self,
        memory: &impl ReadMemory,
        mappings: &[Mapping],
        library: &str,
    ) -> Result<Located, Reason> {
        let heap = places::heap(mappings)?;
        let known = self.places.filter(|places| places.hold(memory, &heap));
        let places = match known {
            Some(places) => places,
            None => Places::find(memory, mappings, library, &heap)?,
        };
        let all = |places: &Places| stretches(memory, places, places.main(memory, &heap)?, &heap);
        // With the wrong layout no arena leads back to the main one.
        let (places, (states, stretches)) = match (all(&places), known) {
            (Ok(found), _) => (places, found),
            (Err(reason), None) => {
                let places = places.without_fast_bins();
                (places, all(&places).map_err(|_| reason)?)
            }
            (Err(reason), _) => return Err(reason),
        };
        self.places = Some(places);
        if self.key.is_none() {
            self.key = stretches.iter().take(MOST_SEARCHED).find_map(|stretch| tcache_key(memory, stretch));
        }
        Ok(Located { places, heap, states, stretches })
    }

    fn count(&self, memory: &impl ReadMemory, located: &Located) -> Result<MallocCensus, Reason> {
        let Located { places, heap, states, stretches } = located;
        let mapped = places.mapped(memory, heap)?;
        let heap_bytes = stretches.iter().fold(0_u64, |sum, stretch| sum.saturating_add(stretch.bytes()));
        if heap_bytes > MOST_BYTES {
            return Err(Reason::TooLarge { bytes: heap_bytes });
        }
        self.sum(memory, states, stretches, mapped)
    }

    fn sum(
        &self,
        memory: &impl ReadMemory,
        states: &[State],
        stretches: &[Stretch],
        (mapped_chunks, mapped_bytes): (u64, u64),
    ) -> Result<MallocCensus, Reason> {
        let mut census = MallocCensus { mapped_bytes, mapped_chunks, ..MallocCensus::default() };
        for stretch in stretches {
            census.heap_bytes += stretch.bytes();
            census.chunks = census.chunks.plus(chunks::count(memory, stretch, self.key)?);
        }
        for state in states {
            let (chunks, bytes) = fast_bins(memory, state);
            census.fast_chunks += chunks;
            census.fast_bytes += bytes;
        }
        // Fast bins change while the heaps are read.
        census.fast_bytes = census.fast_bytes.min(census.chunks.in_use_bytes);
        Ok(census)
    }
}

/// Allocators that are put in front of the C library's, by the names of their files.
const FOREIGN: [&str; 8] =
    ["jemalloc", "tcmalloc", "mimalloc", "tbbmalloc", "hoard", "snmalloc", "rpmalloc", "hardened_malloc"];

/// Another malloc than glibc's, if one is mapped.
fn foreign(mappings: &[Mapping], library: &str) -> Option<String> {
    let file = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let is_glibc = |name: &str| name == "libc.so.6" || name.starts_with("libc-2.");
    if !is_glibc(&file(library)) {
        return Some(file(library));
    }
    let libraries = mappings.iter().filter(|mapping| mapping.executable && mapping.inode != 0);
    let mut names = libraries.map(|mapping| file(&mapping.name));
    names.find(|name| name.contains(".so") && FOREIGN.iter().any(|other| name.contains(other)))
}

/// Reads one word, or says where it could not.
fn read_word(memory: &impl ReadMemory, address: u64) -> Result<u64, Reason> {
    memory.read_u64(address).map_err(|source| Reason::Unreadable { address, source })
}
