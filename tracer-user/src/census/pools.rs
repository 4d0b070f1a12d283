//! Counts the blocks in use in pymalloc's pools, as `sys._debugmallocstats` does, but from outside.
//!
//! Objects/obmalloc.c, `_PyObject_DebugMallocStats`, 3.8 to 3.13: every pool from an arena's first to its `pool_address`
//! whose `ref.count` is not 0. If the target runs meanwhile, the counts are of no single moment: reading twice and comparing
//! is the caller's business.
//!
//! Headers are read one by one: on 210 MiB in pools of 16 KiB that takes 16 ms, and reading whole arenas 77 ms; in pools of
//! 4 KiB (to 3.9) it is 55 ms against 75 ms.

use super::{
    arenas::{ArenaVariables, Reason, is_still_there, read, read_arenas},
    header::{HEADER, Header},
};
use crate::discover::{
    layout::{InterpreterLayout, PoolLayout},
    memory::{Mapping, ReadMemory},
};
use crate::profile::PoolBytes;

/// Size classes of pymalloc: 16, 32, .. 512 bytes (64-bit, 3.8+).
pub const SIZE_CLASSES: usize = 32;

/// Pools that a scan looks at: 64 GiB of 16 KiB each.
const MAX_SCANNED_POOLS: u64 = 4 << 20;

/// What the pools of a process hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolCensus {
    /// By size class; class `i` has blocks of `16 * (i + 1)` bytes.
    pub classes: [ClassCensus; SIZE_CLASSES],
    /// Arenas that are allocated; 0 after a scan, which does not know them.
    pub arenas: u64,
    /// Pools that were carved and hold nothing now; 0 after a scan.
    pub empty_pools: u64,
    /// Pools whose header makes no sense: torn by the running target; not counted.
    pub invalid_pools: u64,
    /// Arenas that were gone before all their pools were read: unmapped by the running target; what was read is counted. Of a
    /// target that ends all are gone, and then there is no census.
    pub lost_arenas: u64,
}

/// The pools of one size class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassCensus {
    /// Pools with a block in use.
    pub pools: u64,
    /// Blocks in use: the sum of `ref.count`.
    pub blocks: u64,
}

impl PoolCensus {
    /// Blocks in use, all classes.
    pub fn blocks(&self) -> u64 {
        self.classes.iter().map(|class| class.blocks).sum()
    }

    /// Bytes of the blocks in use.
    pub fn bytes(&self) -> u64 {
        self.classes.iter().zip(1..).map(|(class, size)| class.blocks * 16 * size).sum()
    }

    /// As parts of the figures; needs the number of arenas, which a scan does not know.
    pub fn pool_bytes(&self, pools: PoolLayout) -> PoolBytes {
        let pool_size = u64::from(pools.pool_size);
        let in_pools: u64 = self.classes.iter().map(|class| class.pools).sum();
        let capacity = |size: u64| (pool_size - HEADER as u64) / (16 * size) * 16 * size;
        let room: u64 = self.classes.iter().zip(1..).map(|(class, size)| class.pools * capacity(size)).sum();
        let arenas_bytes = self.arenas * u64::from(pools.arena_size);
        let torn = self.invalid_pools * pool_size + self.lost_arenas * u64::from(pools.arena_size);
        PoolBytes {
            in_use_bytes: self.bytes(),
            free_in_pools_bytes: room.saturating_sub(self.bytes()),
            free_pools_bytes: arenas_bytes.saturating_sub(in_pools * pool_size + torn),
            arenas_bytes,
            uncertain_bytes: torn,
        }
    }

    fn count(&mut self, header: Header) {
        if let Some(class) = self.classes.get_mut(header.size_class as usize) {
            class.pools += 1;
            class.blocks += u64::from(header.count);
        }
    }
}

/// Counts the blocks in use in the pools of the arenas that a table lists (see [`super::arenas::find_arenas`]).
///
/// `mappings` should be of now: they say where a table can be, and how many arenas are believable.
pub fn blocks_in_use(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: &InterpreterLayout,
    variables: &ArenaVariables,
) -> Result<PoolCensus, Reason> {
    each_pool(memory, mappings, layout, variables, |_| {})
}

/// A pool that holds blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedPool {
    /// Address of its header.
    pub address: u64,
    /// Blocks in use.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// The same, and shows every pool on the way.
pub fn each_pool(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: &InterpreterLayout,
    variables: &ArenaVariables,
    mut show: impl FnMut(UsedPool),
) -> Result<PoolCensus, Reason> {
    let pools = layout.pools;
    let mut census = PoolCensus::default();
    // Arenas do not overlap, so a table that lists far more than is mapped lies; reading stops there. Some more may have
    // come since the mappings were read.
    let mapped: u64 = arena_mappings(mappings, 1).map(|mapping| mapping.end - mapping.start).sum();
    let possible = usize::try_from(mapped / u64::from(pools.arena_size)).unwrap_or(usize::MAX);
    let possible = possible.saturating_mul(2).saturating_add(64);
    for arena in read_arenas(memory, mappings, layout, variables)?.into_iter().take(possible) {
        census.arenas += 1;
        for pool in (arena.first_pool..arena.end).step_by(pools.pool_size as usize) {
            let mut bytes = [0; HEADER];
            if memory.read(pool, &mut bytes).is_err() {
                census.lost_arenas += 1;
                break;
            }
            let header = Header::parse(&bytes);
            match header {
                Header { count: 0, .. } => census.empty_pools += 1,
                _ if header.arena_index == arena.index && header.is_in_use(pool, pools) => {
                    census.count(header);
                    let blocks = u64::from(header.count);
                    let bytes = blocks * 16 * (u64::from(header.size_class) + 1);
                    show(UsedPool { address: pool, blocks, bytes });
                }
                _ => census.invalid_pools += 1,
            }
        }
    }
    is_still_there(memory, variables)?;
    Ok(census)
}

/// Counts the blocks in use without any table: by the pool headers in all memory that could be an arena.
///
/// The way out where [`super::arenas::find_arenas`] finds nothing. It looks at all anonymous memory of a process, so it
/// costs as much as that is large, and it cannot tell a live pool from a perfect copy of one.
pub fn scan_blocks_in_use(
    memory: &impl ReadMemory,
    mappings: &[Mapping],
    layout: &InterpreterLayout,
) -> Result<PoolCensus, Reason> {
    let pools = layout.pools;
    let mut census = PoolCensus::default();
    let mut left = MAX_SCANNED_POOLS;
    for mapping in arena_mappings(mappings, pools.arena_size.into()) {
        let Some(first) = mapping.start.checked_next_multiple_of(pools.pool_size.into()) else { continue };
        for pool in (first..mapping.end).step_by(pools.pool_size as usize) {
            left = left.checked_sub(1).ok_or(Reason::TooLarge { pools: MAX_SCANNED_POOLS })?;
            let mut bytes = [0; HEADER];
            read(memory, pool, &mut bytes)?;
            let header = Header::parse(&bytes);
            if header.is_in_use(pool, pools) {
                census.count(header);
            }
        }
    }
    Ok(census)
}

/// Memory that may hold arenas: writable, anonymous and no smaller than `least`; arenas come from `mmap`, never the heap.
fn arena_mappings(mappings: &[Mapping], least: u64) -> impl Iterator<Item = &Mapping> {
    let is_large = move |mapping: &Mapping| mapping.end.saturating_sub(mapping.start) >= least;
    mappings
        .iter()
        .filter(|mapping| mapping.is_anonymous() && mapping.writable && mapping.readable)
        .filter(move |mapping| mapping.name != "[heap]" && is_large(mapping))
}
