//! Free chunks that look in use: those in the caches of threads (tcache), and in fast bins.
//!
//! Since 2.29 a chunk in a cache carries a mark in its second word (`tcache_entry.key`): from 2.34 on one random number for the
//! whole process (`tcache_key`), before that the address of the cache. It is learnt from a cache itself, which is one of the first
//! chunks of its arena (`tcache_init`, malloc/malloc.c). Fast bins are lists. It must not know arenas.

use rustc_hash::FxHashSet;

use super::heaps::Stretch;
use super::places::{FAST_BIN_COUNT, FAST_BINS, State};
use crate::discover::memory::ReadMemory;

/// Size of the chunk of `tcache_perthread_struct`, and where its 64 lists of small chunks begin behind the header: 2.29, 2.30
/// to 2.41, and later.
const CACHES: [(u64, usize); 3] = [(0x250, 64), (0x290, 128), (0x300, 152)];
/// `TCACHE_SMALL_BINS`.
const LISTS: usize = 64;
/// Lists of which the first chunk is looked at.
const MOST_LISTS: usize = 8;
/// Chunks that are looked at for a cache, of one stretch.
const MOST_CHUNKS: usize = 512;
/// Chunks of fast bins that are followed, of one arena; a read each.
const MOST_FAST: u64 = 1 << 16;
/// The same for looks at single blocks, of which there are eight after each window.
const MOST_FAST_OF_A_LOOK: u64 = 1 << 10;

/// The mark of chunks in caches; `None` if no cache among the first chunks of a stretch says so: it is empty or not there.
pub(super) fn tcache_key(memory: &impl ReadMemory, stretch: &Stretch) -> Option<u64> {
    let mut at = stretch.first;
    for _ in 0..MOST_CHUNKS {
        let size = memory.read_u64(at.checked_add(8)?).ok()? & !7;
        let cache = CACHES.into_iter().find(|(known, _)| *known == size);
        if let Some(key) = cache.and_then(|(size, lists)| key_in(memory, at, size, lists)) {
            return Some(key);
        }
        at = at.checked_add(size).filter(|next| size >= 32 && *next < stretch.limit)?;
    }
    None
}

/// The mark, if the chunk at an address is a cache.
fn key_in(memory: &impl ReadMemory, at: u64, size: u64, lists: usize) -> Option<u64> {
    let mut bytes = vec![0; usize::try_from(size).ok()? - 16];
    memory.read(at.checked_add(16)?, &mut bytes).ok()?;
    let (heads, _) = bytes.get(lists..)?.as_chunks::<8>();
    let heads = heads.iter().take(LISTS).map(|head| u64::from_le_bytes(*head));
    let heads = heads.filter(|head| *head != 0 && head.is_multiple_of(16)).take(MOST_LISTS);
    let keys: Vec<u64> = heads.filter_map(|head| memory.read_u64(head.checked_add(8)?).ok()).collect();
    // Twice the same number is no accident; a list may change just now.
    let is_twice = |key: &&u64| keys.iter().filter(|other| other == key).count() > 1;
    keys.iter().filter(|key| **key != 0).find(is_twice).copied()
}

/// How many chunks the fast bins of an arena have, and their bytes. Lists that change end where they do.
pub(super) fn fast_bins(memory: &impl ReadMemory, state: &State) -> (u64, u64) {
    let (mut chunks, mut bytes) = (0, 0);
    each_fast(memory, state, MOST_FAST, |_, size| {
        chunks += 1;
        bytes += size;
    });
    (chunks, bytes)
}

/// The addresses of those chunks, as far as one look at single blocks follows them.
pub(super) fn fast_chunks(memory: &impl ReadMemory, state: &State, found: &mut FxHashSet<u64>) {
    each_fast(memory, state, MOST_FAST_OF_A_LOOK, |chunk, _| {
        found.insert(chunk);
    });
}

fn each_fast(memory: &impl ReadMemory, state: &State, most: u64, mut show: impl FnMut(u64, u64)) {
    let mut chunks = 0;
    for bin in 0..FAST_BIN_COUNT {
        let size = 32 + 16 * bin as u64;
        let mut chunk = state.word(FAST_BINS + 8 * bin);
        while chunk != 0 && chunk.is_multiple_of(16) && chunks < most {
            let Some((found, link)) = size_and_link(memory, chunk) else { break };
            if found != size {
                break;
            }
            chunks += 1;
            show(chunk, size);
            chunk = next(memory, chunk, link, size);
        }
    }
}

fn size_and_link(memory: &impl ReadMemory, chunk: u64) -> Option<(u64, u64)> {
    let mut bytes = [0; 16];
    memory.read(chunk.checked_add(8)?, &mut bytes).ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    let [size, link] = words else { return None };
    Some((u64::from_le_bytes(*size) & !7, u64::from_le_bytes(*link)))
}

/// From 2.32 on links are mixed with where they lie (`PROTECT_PTR`); both forms are tried, and the chunk must be one of the list.
fn next(memory: &impl ReadMemory, chunk: u64, link: u64, size: u64) -> u64 {
    let mixed = link ^ (chunk.wrapping_add(16) >> 12);
    let is_one = |chunk: u64| {
        chunk != 0
            && chunk.is_multiple_of(16)
            && size_and_link(memory, chunk).is_some_and(|(found, _)| found == size)
    };
    [mixed, link].into_iter().find(|chunk| is_one(*chunk)).unwrap_or(0)
}
