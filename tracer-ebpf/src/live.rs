//! The table of live blocks: which block belongs to which account.
//!
//! When it fills up it thins itself: each step of fill halves the share of new blocks that get a place, chosen by address
//! hash, and each that does stands for twice as many. An entry remembers the level at which it came in, so the books of an
//! account stay exact sums of `weight × size` whatever the level does later.
//! It must not know what an account counts.

use crate::bucket::{self, Buckets, Candidates, Put};
use crate::hash::spread;
use crate::tables::{Globals, Settings};

/// A live block as a table key: process and address. Blocks are aligned to 8 bytes at least, so three bits are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub u64);

impl Key {
    /// `None` for an address that is no user-space block.
    #[inline(always)]
    #[must_use]
    pub fn new(process: u32, address: u64) -> Option<Self> {
        let place = address >> 3;
        // 54 bits: user addresses end below 2^57 even with five-level page tables.
        (place != 0 && place < 1 << 54).then_some(Self(place << 10 | u64::from(process & 1023)))
    }

    /// The address back.
    #[inline(always)]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 >> 10 << 3
    }
}

/// What the table keeps of a block: size (38 bits), account (20), thinning level (4), two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub u64);

const SIZE_BITS: u32 = 38;
const SIZE_MASK: u64 = (1 << SIZE_BITS) - 1;
const ACCOUNT_MASK: u64 = (1 << 20) - 1;
const LEVEL_SHIFT: u32 = SIZE_BITS + 20;
/// The block is a code object that has been sent up.
const CODE: u64 = 1 << 62;
/// The block is not ours to count: only its end matters.
const WATCHED: u64 = 1 << 63;
/// Blocks from here on are never thinned: a table full of them would be more than 8 GiB of memory. A page is not one.
const LARGE: u64 = 4097;
/// The highest level fits its four bits: one block in 32,768.
pub const MAX_LEVEL: u32 = 15;

impl Entry {
    /// Sizes past 256 GiB are cut to it.
    #[inline(always)]
    #[must_use]
    pub fn new(size: u64, account: u32, level: u32) -> Self {
        let size = if size > SIZE_MASK { SIZE_MASK } else { size };
        Self(size | (u64::from(account) & ACCOUNT_MASK) << SIZE_BITS | u64::from(level & 15) << LEVEL_SHIFT)
    }

    /// Bytes of the block.
    #[inline(always)]
    #[must_use]
    pub const fn size(self) -> u64 {
        self.0 & SIZE_MASK
    }

    /// The account it belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn account(self) -> u32 {
        (self.0 >> SIZE_BITS & ACCOUNT_MASK) as u32
    }

    /// How many blocks it stands for.
    #[inline(always)]
    #[must_use]
    pub const fn weight(self) -> u64 {
        1 << (self.0 >> LEVEL_SHIFT & 15)
    }
}

impl Entry {
    /// Whether its end makes a code address stale.
    #[inline(always)]
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.0 & CODE != 0
    }

    /// Whether it is counted in an account.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted(self) -> bool {
        self.0 & WATCHED == 0
    }
}

/// Where a new block went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It has a place.
    Placed {
        /// What will come out again: to be booked as it is, or what goes in and what comes out would differ.
        entry: Entry,
    },
    /// Left out by thinning; others stand for it.
    Thinned,
    /// Both buckets were full: its free will not be seen.
    Full,
}

/// The live table of all processes.
#[derive(Debug, Clone, Copy)]
pub struct Live<'a, T> {
    /// The buckets.
    pub buckets: &'a T,
    /// Limits and seed.
    pub settings: &'a Settings,
    /// Fill.
    pub globals: &'a Globals,
}

impl<T: Buckets> Live<'_, T> {
    /// Where a block may be. A pool of 16 KiB is a group, and a bucket stands for 64 bytes of it.
    #[inline(always)]
    #[must_use]
    pub fn candidates(&self, key: Key) -> Candidates {
        let place = key.0 >> 10;
        let group = place >> 11 | (key.0 & 1023) << 54;
        let line = (place >> 3) as u32 & 255;
        let Settings { live_step_between_lines, live_buckets, seed, .. } = self.settings;
        let (step, buckets) = (live_step_between_lines.load() as u32, live_buckets.load() as u32);
        Candidates::near(key.0, group, line, step, seed.load(), buckets)
    }

    /// How much the fill thins at present.
    #[inline(always)]
    #[must_use]
    pub fn level(&self) -> u32 {
        let used = self.globals.live_used.load();
        let limit = self.settings.live_soft_limit.load();
        if used < limit {
            return 0;
        }
        let step = self.settings.live_step.load();
        let level = (used - limit) / (step | 1) + 1;
        if level > u64::from(MAX_LEVEL) { MAX_LEVEL } else { level as u32 }
    }

    /// Puts a block. The second value is the entry that was there already: a block whose end was missed.
    #[inline(always)]
    pub fn insert(&self, key: Key, size: u64, account: u32) -> (Inserted, Option<Entry>) {
        // A large block takes one entry as a small one does, but one that stands for many would be wrong by its size each.
        let level = if size < LARGE { self.level() } else { 0 };
        if level != 0 {
            // Other bits than the bucket choice uses, or thinning would empty whole buckets.
            let chosen = spread(key.0.wrapping_add(self.settings.seed.load()));
            if chosen & ((1 << level) - 1) != 0 {
                return (Inserted::Thinned, self.take(key));
            }
        }
        let entry = Entry::new(size, account, level);
        match bucket::put(self.buckets, self.candidates(key), key.0, entry.0) {
            Put::Replaced(old) => (Inserted::Placed { entry }, Some(Entry(old))),
            Put::Placed => {
                self.globals.live_used.add(1);
                (Inserted::Placed { entry }, None)
            }
            Put::Full => (Inserted::Full, None),
        }
    }

    /// Puts an entry as it is; `false` when there is no place.
    #[inline(always)]
    #[must_use]
    pub fn restore(&self, key: Key, entry: Entry) -> bool {
        let placed = bucket::insert(self.buckets, self.candidates(key), key.0, entry.0).is_some();
        if placed {
            self.globals.live_used.add(1);
        }
        placed
    }

    /// The entry of a block.
    #[inline(always)]
    pub fn get(&self, key: Key) -> Option<Entry> {
        let place = bucket::find(self.buckets, self.candidates(key), key.0)?;
        Some(Entry(self.buckets.bucket(place.bucket)?.value(place.entry)?.load()))
    }

    /// Takes a block out.
    #[inline(always)]
    pub fn take(&self, key: Key) -> Option<Entry> {
        let at = self.candidates(key);
        let place = bucket::find(self.buckets, at, key.0)?;
        let value = bucket::remove(self.buckets, at, place, key.0)?;
        self.globals.live_used.add(u64::MAX);
        Some(Entry(value))
    }

    /// Marks the code object at `key`, so that its end is noticed also when its allocation was not seen.
    #[inline(always)]
    pub fn watch_code(&self, key: Key) {
        let place = bucket::find(self.buckets, self.candidates(key), key.0);
        let cell = place.and_then(|place| self.buckets.bucket(place.bucket)?.value(place.entry));
        match cell {
            Some(cell) => cell.set(CODE),
            // Without a place its end goes unnoticed, and later code at its address may be given its names.
            None => {
                let _ = self.restore(key, Entry(CODE | WATCHED));
            }
        }
    }
}
