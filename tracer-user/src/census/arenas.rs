//! Finds pymalloc's table of arenas in a process, with and without symbols, and reads it.
//!
//! The table is `arenas[maxarenas]` of `struct arena_object` (Objects/obmalloc.c, 3.8 to 3.11;
//! Include/internal/pycore_obmalloc.h, 3.12+). It moves when it grows, so what is kept is where the pointer to it lies. To
//! 3.11 that is a static variable without a symbol in stripped files: it is searched for in the interpreter's own data, by
//! what it points to. It must not know pools beyond the header's `arenaindex`.

use std::{cell::Cell, io, ops::Range};

use crate::discover::{
    layout::{ArenaSource, InterpreterLayout},
    memory::{Mapping, ReadMemory},
};

/// Why the pools could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// No pointer in the interpreter's data leads to a table of arenas.
    #[error(
        "no arena table found near `{runtime:#x}`; is it `_PyRuntime`, and does the process use pymalloc?"
    )]
    NoTable {
        /// Address of `_PyRuntime`.
        runtime: u64,
    },
    /// The table was there and is no longer.
    #[error("no arena table behind `{variables:x?}` any more; look for it again")]
    TableGone {
        /// Where the pointers to it were.
        variables: Vec<u64>,
    },
    /// The process has more memory than a scan looks through.
    #[error("more than {pools} possible pools; a scan of so much memory would take minutes")]
    TooLarge {
        /// How many pools were looked at.
        pools: u64,
    },
    /// The memory was given up while it was read: what had been counted by then is a part, and nobody knows of what.
    #[error("the process has ended, or has become another program, while its pools were read")]
    Ended,
    /// Memory that should be there could not be read.
    #[error(
        "failed to read {length} bytes at `{address:#x}` of the process; is it running and may it be traced?"
    )]
    Unreadable {
        /// Where.
        address: u64,
        /// How many bytes.
        length: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where the pointers to tables of arenas lie. More than one: other variables may hold the same value for a while
/// (`usable_arenas`), and sub-interpreters have tables of their own (3.12+). Each is checked again when it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArenaVariables(pub Vec<u64>);

/// One arena that is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arena {
    /// Its number: what `arenaindex` of its pools says.
    pub index: u32,
    /// First pool.
    pub first_pool: u64,
    /// First pool that was never carved: `pool_address`.
    pub end: u64,
}

/// Size of `struct arena_object`, 3.8 to 3.13.
const ENTRY: usize = 48;
/// `INITIAL_ARENA_OBJECTS`; from then on the table doubles (`new_arena`).
const SMALLEST_TABLE: usize = 16;
/// 1 TiB in arenas of 1 MiB: more is not a table but an attack.
const LARGEST_TABLE: usize = 1 << 20;
/// Entries that one search may read, so that a process made to look like tables everywhere costs a second or two, not
/// hours. A true one needs some tens of thousands and its table.
const MAX_ENTRIES: usize = 4 * LARGEST_TABLE;
/// Interpreters of one process that are looked at.
const MAX_INTERPRETERS: usize = 1024;
/// Bytes of the interpreter's data that are searched; CPython has about 1.5 MiB.
const MAX_DATA: u64 = 16 << 20;
/// Entries that may make no sense: the holder of the GIL may be filling one in (`new_arena` writes it field by field). Such
/// an arena has no pool yet. Behind the table's end far more than one makes no sense, or all are zero.
const TORN: usize = 1;
/// What `mmap` aligns to, at least.
const PAGE: u64 = 4096;
/// Offset of `arenaindex` in `struct pool_header`, 3.8 to 3.13.
const ARENA_INDEX: u64 = 32;

/// Finds the tables of arenas; `runtime` is the address of `_PyRuntime`, which every build exports.
///
/// A table that grows just now may be in memory that `mappings` do not know yet: ask again with new ones.
pub fn find_arenas(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: &InterpreterLayout,
    runtime: u64,
) -> Result<ArenaVariables, Reason> {
    let tables = Tables { memory, mappings, layout, budget: Cell::new(MAX_ENTRIES) };
    let mut found = match layout.pools.arenas {
        ArenaSource::Static => Vec::new(),
        ArenaSource::Interpreter { .. } | ArenaSource::Pointer { .. } => {
            tables.of_interpreters(runtime).unwrap_or_default()
        }
    };
    if found.is_empty() {
        // Also where a patch release or another C library moved `obmalloc` in the interpreter state.
        found = tables.search(runtime)?;
    }
    if found.is_empty() { Err(Reason::NoTable { runtime }) } else { Ok(ArenaVariables(found)) }
}

/// The arenas that are allocated now.
pub fn read_arenas(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: &InterpreterLayout,
    variables: &ArenaVariables,
) -> Result<Vec<Arena>, Reason> {
    let tables = Tables { memory, mappings, layout, budget: Cell::new(MAX_ENTRIES) };
    let mut addresses = Vec::new();
    for variable in &variables.0 {
        let address = read_u64(memory, *variable)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let arenas: Vec<Arena> =
        addresses.into_iter().filter_map(|address| tables.table(address)).flatten().collect();
    if arenas.is_empty() {
        return Err(Reason::TableGone { variables: variables.0.clone() });
    }
    Ok(arenas)
}

/// Fails unless the memory is the process's own still, so that all that was read of it before is.
///
/// The kernel takes no page away before the last one who uses the memory has left, and lets nobody read from then on (fs/proc/base.c, `mem_rw`).
pub(super) fn is_still_there(memory: &impl ReadMemory, variables: &ArenaVariables) -> Result<(), Reason> {
    // One that was a sub-interpreter's may be gone with it.
    if variables.0.iter().any(|variable| read_u64(memory, *variable).is_ok()) {
        return Ok(());
    }
    Err(Reason::Ended)
}

pub(super) fn read(memory: &impl ReadMemory, address: u64, buffer: &mut [u8]) -> Result<(), Reason> {
    let length = buffer.len();
    memory.read(address, buffer).map_err(|source| Reason::Unreadable { address, length, source })
}

fn read_u64(memory: &impl ReadMemory, address: u64) -> Result<u64, Reason> {
    let mut bytes = [0; 8];
    read(memory, address, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

struct Tables<'a, Memory> {
    memory: &'a Memory,
    mappings: &'a [Mapping],
    layout: &'a InterpreterLayout,
    /// Entries that may still be read; see [`MAX_ENTRIES`].
    budget: Cell<usize>,
}

impl<Memory: ReadMemory> Tables<'_, Memory> {
    /// 3.12+: the interpreters are listed, and each knows its table.
    fn of_interpreters(&self, runtime: u64) -> Result<Vec<u64>, Reason> {
        let offsets = self.layout.runtime;
        let at = |base: u64, offset: u32| base.wrapping_add(offset.into());
        let mut found = Vec::new();
        let mut interpreter = read_u64(self.memory, at(runtime, offsets.interpreters_head))?;
        for _ in 0..MAX_INTERPRETERS {
            if interpreter == 0 {
                break;
            }
            let variable = match self.layout.pools.arenas {
                ArenaSource::Interpreter { obmalloc, arenas } => at(at(interpreter, obmalloc), arenas),
                ArenaSource::Pointer { obmalloc, arenas } => {
                    at(read_u64(self.memory, at(interpreter, obmalloc))?, arenas)
                }
                ArenaSource::Static => break,
            };
            if !found.contains(&variable) && self.table(read_u64(self.memory, variable)?).is_some() {
                found.push(variable);
            }
            interpreter = read_u64(self.memory, at(interpreter, offsets.interpreter_next))?;
        }
        Ok(found)
    }

    /// Every word of the interpreter's data that points to what can only be a table of arenas.
    fn search(&self, runtime: u64) -> Result<Vec<u64>, Reason> {
        let mut found = Vec::new();
        for range in self.data_around(runtime) {
            let length = usize::try_from(range.end.saturating_sub(range.start).min(MAX_DATA)).unwrap_or(0);
            let mut bytes = vec![0; length];
            read(self.memory, range.start, &mut bytes)?;
            let (words, _) = bytes.as_chunks::<8>();
            for (word, position) in words.iter().zip((range.start..).step_by(8)) {
                if self.table(u64::from_le_bytes(*word)).is_some() {
                    found.push(position);
                }
            }
        }
        Ok(found)
    }

    /// The writable mappings that lie without a gap around `runtime`: the file's .data, and its .bss behind it.
    fn data_around(&self, runtime: u64) -> Vec<&Mapping> {
        let is_inside = |mapping: &Mapping| mapping.start <= runtime && runtime < mapping.end;
        let Some(middle) = self.mappings.iter().position(is_inside) else { return Vec::new() };
        let belongs = |low: &Mapping, high: &Mapping, new: &Mapping| {
            low.end == high.start && new.writable && new.readable && !new.name.starts_with('[')
        };
        let mut first = middle;
        while first > 0
            && belongs(&self.mappings[first - 1], &self.mappings[first], &self.mappings[first - 1])
        {
            first -= 1;
        }
        let mut last = middle;
        while last + 1 < self.mappings.len()
            && belongs(&self.mappings[last], &self.mappings[last + 1], &self.mappings[last + 1])
        {
            last += 1;
        }
        self.mappings[first..=last].iter().collect()
    }

    /// The allocated arenas of a table at `base`, if there is one.
    ///
    /// `maxarenas` is not needed: the table ends before the first entry that cannot be one, rounded down to a size that
    /// tables have. What lies behind the table and passes for entries is all zero and adds nothing.
    fn table(&self, base: u64) -> Option<Vec<Arena>> {
        let room = self.anonymous(base)?.end - base;
        let room = usize::try_from(room).unwrap_or(usize::MAX) / ENTRY;
        if !base.is_multiple_of(16) || room < SMALLEST_TABLE {
            return None;
        }
        self.entries(base, 0..1, 0)?; // most pointers are refused here, for little
        let mut arenas = self.entries(base, 0..SMALLEST_TABLE, TORN)?;
        // What an interpreter allocates while it starts it keeps, so one of the first arenas is there to the end.
        let first = arenas.first()?;
        if self.arena_index(*first)? != first.index {
            return None;
        }
        let mut size = SMALLEST_TABLE;
        while size * 2 <= room.min(LARGEST_TABLE) {
            let Some(more) = self.entries(base, size..size * 2, TORN) else { break };
            arenas.extend(more);
            size *= 2;
        }
        Some(arenas)
    }

    /// The allocated arenas among some entries; `None` if more than `torn` of them cannot be entries.
    fn entries(&self, base: u64, range: Range<usize>, mut torn: usize) -> Option<Vec<Arena>> {
        self.budget.set(self.budget.get().checked_sub(range.len())?);
        let mut bytes = vec![0; range.len() * ENTRY];
        self.memory.read(base + (range.start * ENTRY) as u64, &mut bytes).ok()?;
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        let mut arenas = Vec::new();
        for (index, entry) in range.zip(entries) {
            match self.entry(base, u32::try_from(index).ok()?, entry) {
                Some(arena) => arenas.extend(arena),
                None => torn = torn.checked_sub(1)?,
            }
        }
        Some(arenas)
    }

    /// `Some(None)` is an entry without an arena.
    fn entry(&self, base: u64, index: u32, entry: &[u8; ENTRY]) -> Option<Option<Arena>> {
        let (words, _) = entry.as_chunks::<8>();
        let [address, pool_address, counts, _free_pools, next, _previous] =
            <[u64; 6]>::try_from(words.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>())
                .ok()?;
        let (free, total) = (counts & 0xffff_ffff, counts >> 32);
        // Entries without an arena, and arenas with free pools, are in lists. The link of a full arena is left over, and
        // may point into the table's former place (`new_arena` does not mend it).
        let is_listed = address == 0 || free != 0;
        if is_listed && !is_entry_or_null(base, next) {
            return None;
        }
        if address == 0 {
            return Some(None);
        }
        let pool_size = u64::from(self.layout.pools.pool_size);
        let arena_size = u64::from(self.layout.pools.arena_size);
        let end = address.checked_add(arena_size)?;
        let first_pool = address.next_multiple_of(pool_size);
        // Whether it is mapped is not asked: the mappings may be older than the arena, and reading will tell.
        let fits = address.is_multiple_of(PAGE)
            && total == (end - first_pool) / pool_size
            && free <= total
            && pool_address.is_multiple_of(pool_size)
            && (first_pool..=end).contains(&pool_address);
        fits.then_some(Some(Arena { index, first_pool, end: pool_address }))
    }

    fn arena_index(&self, arena: Arena) -> Option<u32> {
        let mut bytes = [0; 4];
        self.memory.read(arena.first_pool.checked_add(ARENA_INDEX)?, &mut bytes).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// The anonymous writable mapping that `address` is in.
    fn anonymous(&self, address: u64) -> Option<&Mapping> {
        let index = self.mappings.partition_point(|mapping| mapping.end <= address);
        let mapping = self.mappings.get(index)?;
        let is_inside = mapping.start <= address && address < mapping.end;
        (is_inside && mapping.writable && mapping.is_anonymous()).then_some(mapping)
    }
}

fn is_entry_or_null(base: u64, pointer: u64) -> bool {
    let distance = pointer.wrapping_sub(base);
    let is_entry = distance.is_multiple_of(ENTRY as u64) && distance < (LARGEST_TABLE * ENTRY) as u64;
    pointer == 0 || is_entry
}
