//! Pools made by hand, against a plain model of them; and bytes that are no pool.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use proptest::prelude::*;

use super::{BlockReader, Found, InPool, PoolImage, Wanted};
use crate::discover::layout::{InterpreterLayout, PoolLayout, layout};
use crate::discover::memory::ReadMemory;
use crate::identity::Kind;

const POOL: u64 = 0x7f00_0010_0000;

/// One pool, filled and emptied as `pymalloc_alloc` and `pymalloc_free` do, and beside it which blocks are in use.
struct Pool {
    bytes: Vec<u8>,
    block_bytes: u64,
    in_use: BTreeSet<u64>,
}

impl Pool {
    /// `allocate_from_new_pool`, before the block that it was for is handed out: the list has that one.
    fn new(pools: PoolLayout, class: u32) -> Self {
        let block_bytes = u64::from(class + 1) * 16;
        let mut pool =
            Self { bytes: vec![0; pools.pool_size as usize], block_bytes, in_use: BTreeSet::new() };
        pool.set_half(36, class);
        pool.set_half(40, 48 + block_bytes as u32);
        pool.set_half(44, pools.pool_size - block_bytes as u32);
        pool.set(8, POOL + 48);
        pool.take();
        pool
    }

    fn half(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes[offset..offset + 4].try_into().unwrap())
    }

    fn set_half(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes[offset..offset + 8].try_into().unwrap())
    }

    fn set(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn take(&mut self) {
        let block = self.word(8);
        if block == 0 {
            return;
        }
        self.set_half(0, self.half(0) + 1);
        let next = self.word((block - POOL) as usize);
        self.set(8, next);
        if next == 0 && self.half(40) <= self.half(44) {
            let fresh = self.half(40);
            self.set(8, POOL + u64::from(fresh));
            self.set(fresh as usize, 0);
            self.set_half(40, fresh + self.block_bytes as u32);
        }
        // What its owner writes.
        self.set((block - POOL) as usize, 0xdead_beef_0000_0001);
        self.in_use.insert(block);
    }

    fn give_back(&mut self, block: u64) {
        self.in_use.remove(&block);
        self.set((block - POOL) as usize, self.word(8));
        self.set(8, block);
        self.set_half(0, self.half(0) - 1);
    }

    fn all_blocks(&self) -> Vec<u64> {
        let room = (self.bytes.len() as u64 - 48) / self.block_bytes;
        (0..room).map(|index| POOL + 48 + index * self.block_bytes).collect()
    }
}

fn versions() -> impl Strategy<Value = PoolLayout> {
    // Pools of 4 and of 16 KiB.
    prop_oneof![Just(9_u8), Just(11), Just(13)].prop_map(|minor| layout(3, minor).unwrap().pools)
}

proptest! {
    #[test]
    fn what_is_free_is_what_the_model_says(
        pools in versions(), class in 0_u32..32, steps in prop::collection::vec((0_u8..5, any::<prop::sample::Index>()), 0..400),
    ) {
        let mut pool = Pool::new(pools, class);
        for (step, which) in steps {
            match pool.in_use.iter().nth(which.index(pool.in_use.len().max(1))).copied() {
                // A pool without blocks in use goes back to its arena.
                Some(block) if step < 2 && pool.in_use.len() > 1 => pool.give_back(block),
                _ => pool.take(),
            }
        }
        let image = PoolImage::parse(POOL, &pool.bytes, pools).unwrap();
        prop_assert!(image.is_whole());
        for block in pool.all_blocks() {
            let is_in_use = matches!(image.at(block, pool.block_bytes), InPool::InUse(_));
            prop_assert_eq!(is_in_use, pool.in_use.contains(&block), "{:x}", block);
            prop_assert_eq!(image.at(block, pool.block_bytes + 16), InPool::Free);
            prop_assert_eq!(image.at(block + 8, pool.block_bytes), InPool::Free);
        }
    }

    /// Whatever the bytes: an answer, in bounded time.
    #[test]
    fn bytes_that_are_no_pool_do_no_harm(
        pools in versions(), class in 0_u32..32, taken in 1_usize..300,
        damage in prop::collection::vec((0_usize..4000, prop_oneof![any::<u64>(), (0_u64..0x4100).prop_map(|offset| POOL + offset)]), 1..40),
    ) {
        let mut pool = Pool::new(pools, class);
        (0..taken).for_each(|_| pool.take());
        let some: Vec<u64> = pool.in_use.iter().copied().take(taken / 2).collect();
        for block in some.into_iter().skip(1) {
            pool.give_back(block);
        }
        for (offset, value) in damage {
            pool.set(offset & !7, value);
        }
        let image = PoolImage::parse(POOL, &pool.bytes, pools);
        let blocks = pool.all_blocks().into_iter().chain([0, 1, POOL, POOL - 16, u64::MAX]);
        for (block, image) in blocks.filter_map(|block| Some((block, image.as_ref()?))) {
            let _ = image.at(block, pool.block_bytes);
        }
    }
}

#[test]
fn lists_that_do_not_end_are_torn() {
    let pools = layout(3, 11).unwrap().pools;
    let mut pool = Pool::new(pools, 3);
    (0..20).for_each(|_| pool.take());
    let whole = PoolImage::parse(POOL, &pool.bytes, pools).unwrap().is_whole();
    assert!(whole);
    let (one, other) = (pool.all_blocks()[3], pool.all_blocks()[5]);
    pool.give_back(one);
    pool.give_back(other);
    // In a ring, to another pool, into a block, to one that was never carved.
    for link in [other, one - 0x4000, one + 8, pool.all_blocks()[40]] {
        pool.set((one - POOL) as usize, link);
        assert!(!PoolImage::parse(POOL, &pool.bytes, pools).unwrap().is_whole(), "{link:x}");
    }
    pool.set((one - POOL) as usize, 0);
    assert!(PoolImage::parse(POOL, &pool.bytes, pools).is_some_and(|image| !image.is_whole()));
    assert!(PoolImage::parse(POOL, &pool.bytes[..4096], pools).is_none());
}

/// Memory with pools in it, which may change with each reading.
struct Fake {
    pools: BTreeMap<u64, Vec<u8>>,
    readings: std::cell::Cell<usize>,
    /// The first readings are torn.
    torn: usize,
}

impl ReadMemory for Fake {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let pool = self.pools.get(&address).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(pool.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        self.readings.set(self.readings.get() + 1);
        if self.readings.get() <= self.torn {
            // One block more than the list and what was carved say.
            buffer[0] = buffer[0].wrapping_add(1);
        }
        Ok(())
    }
}

fn look(layout: &InterpreterLayout, torn: usize) -> (Vec<(u64, &'static str)>, usize) {
    let mut pool = Pool::new(layout.pools, 3);
    (0..20).for_each(|_| pool.take());
    let blocks = pool.all_blocks();
    pool.give_back(blocks[2]);
    let memory = Fake { pools: BTreeMap::from([(POOL, pool.bytes)]), readings: Default::default(), torn };
    let gone = POOL + (1 << 20) + 48;
    let mut wanted = [gone, blocks[2], blocks[1], blocks[30]].map(|address| Wanted { address, bytes: 64 });
    let mut seen = Vec::new();
    let pools = BlockReader::default().look(&memory, layout, &mut wanted, |address, found| {
        let name = match found {
            Found::Free => "free",
            Found::Unsure => "unsure",
            Found::There(likeness) => {
                assert_eq!(likeness.kind(), Kind::Untyped);
                "there"
            }
        };
        seen.push(((address - POOL - 48) / 64, name));
    });
    assert_eq!(pools, 2);
    (seen, memory.readings.get())
}

#[test]
fn a_pool_is_read_once_and_again_if_it_was_torn() {
    let layout = layout(3, 11).unwrap();
    let gone = (1 << 20) / 64;
    let expected = vec![(1, "there"), (2, "free"), (30, "free"), (gone, "free")];
    assert_eq!(look(layout, 0), (expected.clone(), 1));
    assert_eq!(look(layout, 2), (expected, 3));
    let unsure = vec![(1, "unsure"), (2, "unsure"), (30, "unsure"), (gone, "free")];
    assert_eq!(look(layout, 9), (unsure, 3));
}
