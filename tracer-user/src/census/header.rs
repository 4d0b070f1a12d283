//! The header of a pool: `struct pool_header` (Objects/obmalloc.c, 3.8 to 3.11; pycore_obmalloc.h, 3.12 and 3.13).
//!
//! It must not know where pools are.

use crate::discover::layout::PoolLayout;

/// `POOL_OVERHEAD`: size of the header, and offset of the first block.
pub(super) const HEADER: usize = 48;

/// What is read of a header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// `ref.count`: blocks in use.
    pub count: u32,
    /// `freeblock`: first free block, null if there is none.
    pub free_block: u64,
    /// `arenaindex`.
    pub arena_index: u32,
    /// `szidx`.
    pub size_class: u32,
    /// `nextoffset`: of the first block that was never handed out.
    pub next_offset: u32,
    /// `maxnextoffset`: the largest that `nextoffset` may be.
    pub last_offset: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
        Self {
            count: word(0),
            free_block: u64::from(word(3)) << 32 | u64::from(word(2)),
            arena_index: word(8),
            size_class: word(9),
            next_offset: word(10),
            last_offset: word(11),
        }
    }

    /// Whether this can be the header of a pool at `pool` that has blocks in use.
    pub(super) fn is_in_use(self, pool: u64, pools: PoolLayout) -> bool {
        let Self { count, free_block, arena_index: _, size_class, next_offset, last_offset } = self;
        let block = 16 * (u64::from(size_class) + 1);
        let size = u64::from(pools.pool_size);
        let first = HEADER as u64;
        // `allocate_from_new_pool` sets nextoffset behind the second block and maxnextoffset to POOL_SIZE less one block;
        // `pymalloc_pool_extend` adds one block while nextoffset is not above maxnextoffset.
        size_class < 32
            && (1..=(size - first) / block).contains(&count.into())
            && u64::from(last_offset) + block == size
            && (first + 2 * block..=size).contains(&next_offset.into())
            && (free_block == 0 || (first..size).contains(&free_block.wrapping_sub(pool)))
    }
}
