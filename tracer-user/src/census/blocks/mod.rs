//! Single blocks of a process, looked at from outside: free, or in use and what they look like.
//!
//! Pymalloc's blocks are looked at with their pools, each read at once, so that its header, its list of free blocks and their contents are of
//! one moment as nearly as that can be had (the kernel copies page by page, and the process runs meanwhile: what does not add up is read
//! again). Malloc's are in `census/malloc`. It must not know why somebody looks.

mod pool;
#[cfg(test)]
mod tests;

pub use pool::{InPool, PoolImage};

use rustc_hash::FxHashMap;

use crate::discover::layout::InterpreterLayout;
use crate::discover::memory::ReadMemory;
use crate::identity::{Likeness, PythonType, TYPE_BYTES, is_type};

/// How often a pool is read that changes meanwhile: it takes 4 us, and a program that takes 20 million blocks a second from one pool
/// changes it eighty times.
const READS: usize = 3;
/// Addresses of which it is remembered whether a type is there.
const MOST_TYPES: usize = 1 << 16;

/// A block that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Where it begins.
    pub address: u64,
    /// What the allocator spends on it: its size class.
    pub bytes: u64,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<L> {
    /// It is free, or its pool is gone or has other blocks.
    Free,
    /// Its pool changed each time that it was read.
    Unsure,
    /// It is in use.
    There(L),
}

/// Looks at the blocks of one process.
#[derive(Debug, Default)]
pub struct BlockReader {
    types: FxHashMap<u64, Option<PythonType>>,
    pool: Vec<u8>,
}

impl BlockReader {
    /// Types may have been freed and others made: what is known of them is asked anew.
    pub fn forget_types(&mut self) {
        self.types.clear();
    }

    /// Looks at pymalloc's blocks; they are sorted on the way, so that those of a pool are together. Gives the number of pools read.
    pub fn look(
        &mut self,
        memory: &impl ReadMemory,
        layout: &InterpreterLayout,
        wanted: &mut [Wanted],
        mut show: impl FnMut(u64, Found<Likeness>),
    ) -> usize {
        if self.types.len() > MOST_TYPES {
            self.forget_types();
        }
        wanted.sort_unstable();
        let pool_size = u64::from(layout.pools.pool_size);
        let pool_of = |address: u64| address - address % pool_size;
        let mut pools = 0;
        for together in wanted.chunk_by(|left, right| pool_of(left.address) == pool_of(right.address)) {
            let Some(first) = together.first() else { continue };
            self.look_at_pool(memory, layout, pool_of(first.address), together, &mut show);
            pools += 1;
        }
        pools
    }

    fn look_at_pool(
        &mut self,
        memory: &impl ReadMemory,
        layout: &InterpreterLayout,
        pool: u64,
        wanted: &[Wanted],
        show: &mut impl FnMut(u64, Found<Likeness>),
    ) {
        self.pool.resize(layout.pools.pool_size as usize, 0);
        for read in 1..=READS {
            let is_there = memory.read(pool, &mut self.pool).is_ok();
            let image = is_there.then(|| PoolImage::parse(pool, &self.pool, layout.pools)).flatten();
            let is_torn = image.as_ref().is_some_and(|image| !image.is_whole());
            if is_torn && read < READS {
                continue;
            }
            let types = &mut self.types;
            let mut find = |address| *types.entry(address).or_insert_with(|| type_at(memory, address));
            for block in wanted {
                let found = match image.as_ref().map(|image| image.at(block.address, block.bytes)) {
                    _ if is_torn => Found::Unsure,
                    None | Some(InPool::Free) => Found::Free,
                    Some(InPool::InUse(bytes)) => Found::There(Likeness::of(bytes, layout, &mut find)),
                };
                show(block.address, found);
            }
            return;
        }
    }
}

/// What is at an address, if that is a type.
fn type_at(memory: &impl ReadMemory, address: u64) -> Option<PythonType> {
    let parse = |address| {
        let mut bytes = [0; TYPE_BYTES];
        memory.read(address, &mut bytes).ok()?;
        PythonType::parse(&bytes)
    };
    is_type(address, &mut { parse }).then(|| parse(address)).flatten()
}
