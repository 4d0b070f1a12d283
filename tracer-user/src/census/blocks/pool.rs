//! One pool's bytes, read at once: which of its blocks are in use.
//!
//! `pymalloc_alloc` and `pymalloc_free` (Objects/obmalloc.c, 3.8 to 3.15): a block is free if it is on the list that begins at `freeblock`,
//! linked by its first word, or if it lies at `nextoffset` or behind, where none was ever handed out. Bytes in, answers out; all of them
//! are hostile. It must not know how they are read.

use super::super::header::{HEADER, Header};
use crate::discover::layout::PoolLayout;

/// Words of a set of all blocks of a pool: 16 KiB less the header have 1021 of the smallest.
const SET_WORDS: usize = 16;
const MOST_BLOCKS: u64 = 64 * SET_WORDS as u64;

/// See the head of this file.
#[derive(Debug)]
pub struct PoolImage<'a> {
    address: u64,
    bytes: &'a [u8],
    block_bytes: u64,
    /// Blocks that were handed out at least once.
    carved: u64,
    free: [u64; SET_WORDS],
    is_whole: bool,
}

/// What a pool says of one of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InPool<'a> {
    /// Free, or no block of this pool.
    Free,
    /// In use: its bytes.
    InUse(&'a [u8]),
}

impl<'a> PoolImage<'a> {
    /// `bytes`: all of the pool at `address`. `None`: it is not in use, or is no pool.
    #[must_use]
    pub fn parse(address: u64, bytes: &'a [u8], pools: PoolLayout) -> Option<Self> {
        let header = Header::parse(bytes.first_chunk::<HEADER>()?);
        if bytes.len() != pools.pool_size as usize || !header.is_in_use(address, pools) {
            return None;
        }
        let block_bytes = 16 * (u64::from(header.size_class) + 1);
        let carved = (u64::from(header.next_offset) - HEADER as u64) / block_bytes;
        let mut image = Self { address, bytes, block_bytes, carved, free: [0; SET_WORDS], is_whole: false };
        // Each block is in use, on the list or never carved: if that does not add up, the pool changed while it was read.
        let listed = image.follow(header.free_block);
        image.is_whole = listed.is_some_and(|listed| u64::from(header.count) + listed == image.carved);
        Some(image)
    }

    /// Marks what is on the list; how many blocks. `None`: it is no list of blocks of this pool.
    fn follow(&mut self, first: u64) -> Option<u64> {
        let mut link = first;
        for listed in 0..=MOST_BLOCKS {
            if link == 0 {
                return Some(listed);
            }
            let index = self.index(link).filter(|index| *index < self.carved)?;
            let (word, bit) = (self.free.get_mut(usize::try_from(index / 64).ok()?)?, 1 << (index % 64));
            // A list that comes back to itself.
            if *word & bit != 0 {
                return None;
            }
            *word |= bit;
            link = u64::from_le_bytes(*self.block(index)?.first_chunk()?);
        }
        None
    }

    /// Whether the bytes are of one moment, as far as they can be checked against each other.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// What is at an address, which somebody knows as a block of so many bytes.
    #[must_use]
    pub fn at(&self, address: u64, bytes: u64) -> InPool<'a> {
        let index = self.index(address).filter(|index| *index < self.carved && bytes == self.block_bytes);
        let is_free = |index: u64| {
            let word = usize::try_from(index / 64).ok().and_then(|word| self.free.get(word));
            word.is_none_or(|word| word >> (index % 64) & 1 == 1)
        };
        match index.filter(|index| !is_free(*index)).and_then(|index| self.block(index)) {
            Some(block) => InPool::InUse(block),
            None => InPool::Free,
        }
    }

    /// The number of the block that begins at an address.
    fn index(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.address)?.checked_sub(HEADER as u64)?;
        offset.is_multiple_of(self.block_bytes).then_some(offset / self.block_bytes)
    }

    fn block(&self, index: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(HEADER as u64 + index * self.block_bytes).ok()?;
        self.bytes.get(start..start.checked_add(usize::try_from(self.block_bytes).ok()?)?)
    }
}
