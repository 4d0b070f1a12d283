//! Counts the chunks of one stretch by their headers, from its first to its last, although the process goes on changing them.
//!
//! A header is `prev_size`, `size` (`struct malloc_chunk`, malloc/malloc.c). The lowest bits of `size` are flags, and the next
//! chunk's lowest says whether this one is in use; if not, its `prev_size` is this one's size. So each header is checked by
//! the one before and by the one behind. Where they contradict each other the process has changed something between two
//! readings, and counting goes back a piece: old headers stay behind in memory that has become part of another chunk, so
//! what was read at once nearly always agrees. It must not know where stretches are.

use std::collections::VecDeque;

use super::Reason;
use super::heaps::Stretch;
use crate::discover::memory::ReadMemory;

/// `PREV_INUSE`, `IS_MMAPPED`, `NON_MAIN_ARENA`.
pub(super) const PREVIOUS_IN_USE: u64 = 1;
pub(super) const IS_MAPPED: u64 = 2;
pub(super) const IS_FOREIGN: u64 = 4;
/// `MINSIZE`.
pub(super) const LEAST: u64 = 32;
/// Bytes that are read at once. Less is more calls, more is more time for changes.
const PIECE: usize = 64 << 10;
/// Pieces that counting may go back.
const KEPT_PIECES: usize = 64;
/// How often it may: who changes a heap faster than that does so again the next time.
const MOST_RETURNS: u32 = 64;
/// Largest chunk that the cache of a thread keeps by default (`tcache_max_bytes` and the header).
pub(super) const LARGEST_CACHED: u64 = 1040;

/// What a stretch holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chunks {
    /// Chunks in use, by what of each can be used: without the header of eight bytes.
    pub in_use_bytes: u64,
    /// How many.
    pub in_use_chunks: u64,
    /// Free chunks in caches of threads, with headers.
    pub cached_bytes: u64,
    /// How many.
    pub cached_chunks: u64,
    /// Other free chunks, and what is behind the last chunk, with headers.
    pub free_bytes: u64,
    /// Read again because headers contradicted each other.
    pub reread_bytes: u64,
}

impl Chunks {
    /// With another stretch's.
    #[must_use]
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            in_use_bytes: self.in_use_bytes + other.in_use_bytes,
            in_use_chunks: self.in_use_chunks + other.in_use_chunks,
            cached_bytes: self.cached_bytes + other.cached_bytes,
            cached_chunks: self.cached_chunks + other.cached_chunks,
            free_bytes: self.free_bytes + other.free_bytes,
            reread_bytes: self.reread_bytes + other.reread_bytes,
        }
    }

    /// Adds a chunk; `is_cached`: only if it looks in use.
    fn add(&mut self, size: u64, is_free: bool, is_cached: bool) {
        if is_free {
            self.free_bytes += size;
        } else if is_cached {
            self.cached_bytes += size;
            self.cached_chunks += 1;
        } else {
            self.in_use_bytes += size - 8;
            self.in_use_chunks += 1;
        }
    }
}

/// A chunk of which it is not known yet whether it is in use.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    size: u64,
    is_marked: bool,
}

/// How far counting has come.
#[derive(Debug, Clone, Copy)]
struct Position {
    at: u64,
    before: Option<Chunk>,
    sums: Chunks,
}

/// A step that led nowhere.
enum Fault {
    /// Headers that cannot be.
    Broken,
    Reason(Reason),
}

/// Counts. `key`: what marks chunks in caches, if that is known.
pub(super) fn count(memory: &impl ReadMemory, stretch: &Stretch, key: Option<u64>) -> Result<Chunks, Reason> {
    let mut position = Position { at: stretch.first, before: None, sums: Chunks::default() };
    let mut pieces: VecDeque<Position> = VecDeque::new();
    let (mut returns, mut back, mut furthest) = (0, 1, 0);
    let mut reader = Pieces { memory, stretch, key, start: 0, bytes: Vec::new() };
    while position.at < stretch.limit || position.before.is_some() {
        if !reader.has(position.at) {
            if position.at > furthest {
                (back, furthest) = (1, position.at);
            }
            if pieces.len() >= KEPT_PIECES {
                pieces.pop_front();
            }
            pieces.push_back(position);
        }
        match reader.step(position) {
            Ok(next) => position = next,
            Err(Fault::Reason(reason)) => return Err(reason),
            Err(Fault::Broken) => {
                let broken = position.at;
                pieces.truncate(pieces.len().saturating_sub(back - 1).max(1));
                let Some(last) = pieces.pop_back().filter(|_| returns < MOST_RETURNS) else {
                    return Err(Reason::Torn { address: broken });
                };
                // What is read again is a piece at least.
                let reread = position.sums.reread_bytes + (broken - last.at).max(PIECE as u64);
                position = last;
                position.sums.reread_bytes = reread;
                reader.forget();
                returns += 1;
                back = (back * 2).min(KEPT_PIECES);
            }
        }
    }
    position.sums.free_bytes += stretch.end.saturating_sub(position.at.max(stretch.limit));
    Ok(position.sums)
}

/// Reads a stretch piece by piece.
struct Pieces<'a, Memory> {
    memory: &'a Memory,
    stretch: &'a Stretch,
    key: Option<u64>,
    start: u64,
    bytes: Vec<u8>,
}

impl<Memory: ReadMemory> Pieces<'_, Memory> {
    /// Whether the header at an address, and the two words behind it, have been read.
    fn has(&self, at: u64) -> bool {
        at.checked_sub(self.start).is_some_and(|offset| offset + 32 <= self.bytes.len() as u64)
    }

    fn forget(&mut self) {
        self.bytes.clear();
    }

    /// The four words at an address.
    fn words(&mut self, at: u64) -> Result<[u64; 4], Reason> {
        if !self.has(at) {
            // `limit` is 32 bytes before the end at least.
            let length = usize::try_from(self.stretch.end.saturating_sub(at)).unwrap_or(PIECE).min(PIECE);
            self.bytes.resize(length, 0);
            self.start = at;
            if let Err(source) = self.memory.read(at, &mut self.bytes) {
                self.forget();
                return Err(Reason::Unreadable { address: at, source });
            }
        }
        let offset = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(offset..).unwrap_or_default();
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        Ok([word(0), word(1), word(2), word(3)])
    }

    /// Looks at the header at a position: counts the chunk before it, and goes to the next.
    fn step(&mut self, position: Position) -> Result<Position, Fault> {
        let Position { at, before, mut sums } = position;
        let [previous_size, header, _, mark] = self.words(at).map_err(Fault::Reason)?;
        if let Some(chunk) = before {
            let is_free = header & PREVIOUS_IN_USE == 0;
            if is_free && previous_size != chunk.size {
                return Err(Fault::Broken);
            }
            sums.add(chunk.size, is_free, chunk.is_marked);
        }
        if at >= self.stretch.limit {
            return Ok(Position { at, before: None, sums });
        }
        let size = header & !7;
        let is_sound = size >= LEAST
            && size.is_multiple_of(16)
            && header & IS_MAPPED == 0
            && !(self.stretch.is_main && header & IS_FOREIGN != 0);
        let next = at.checked_add(size).filter(|_| is_sound).ok_or(Fault::Broken)?;
        if next > self.stretch.limit {
            if !self.is_last(at, next) {
                return Err(Fault::Broken);
            }
            // It has become part of what is free at the end.
            sums.free_bytes += self.stretch.limit - at;
            return Ok(Position { at: self.stretch.limit, before: None, sums });
        }
        let is_marked = size <= LARGEST_CACHED && self.key == Some(mark);
        Ok(Position { at: next, before: Some(Chunk { size, is_marked }), sums })
    }

    /// Whether a chunk that reaches past the limit is the last one by now.
    fn is_last(&self, at: u64, next: u64) -> bool {
        match self.stretch.top_pointer {
            Some(pointer) => self.memory.read_u64(pointer).is_ok_and(|top| top == at),
            // A rest that is too small to be a chunk of its own has one of the marks for a part of it (`sysmalloc`).
            None => next == self.stretch.end - 16,
        }
    }
}
