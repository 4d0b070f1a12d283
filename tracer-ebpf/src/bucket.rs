//! A bucket of seven keyed entries: the building block of every table in the kernel half.
//!
//! Keys fill one cache line of 64 bytes and values the next, so a look-up that fails touches one line. Each key has two
//! candidate buckets; the first one counts the entries that had to move to their second, so most look-ups read one bucket.
//! Claims are single compare-and-swap operations: safe against other CPUs and against being preempted at any point.
//! It must not know what keys and values mean.

use crate::cell::{Cell, differs};
use crate::hash::{reduce, spread};

/// Entries of one bucket.
pub const ENTRIES: usize = 7;

/// An entry count from which a newcomer looks for a less full second bucket.
/// At half the entries in use nearly every key stays in its first bucket, and every one finds a place
/// (measured by tests/account/capacity.rs).
const CROWDED: u32 = 5;

/// Keys (0: free), how many keys overflowed from here, and the values.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    keys: [Cell; ENTRIES],
    overflowed: Cell,
    values: [Cell; ENTRIES],
    spare: Cell,
}

/// The two candidate buckets of a key.
#[derive(Debug, Clone, Copy)]
pub struct Candidates {
    first: u32,
    second: u32,
}

impl Candidates {
    /// Chooses by hash; both may be the same bucket.
    #[inline(always)]
    #[must_use]
    pub fn of(key: u64, seed: u64, buckets: u32) -> Self {
        let hash = spread(key ^ seed);
        Self { first: reduce(hash as u32, buckets), second: reduce((hash >> 32) as u32, buckets) }
    }

    /// As [`Candidates::of`], but keys of one `group` have their first choice side by side, in the order of `line`: blocks
    /// that are used together then lie in the same few pages of the table, which saves a TLB miss for most events.
    /// `step` is 2^32 divided by the number of buckets.
    #[inline(always)]
    #[must_use]
    pub fn near(key: u64, group: u64, line: u32, step: u32, seed: u64, buckets: u32) -> Self {
        let first = (spread(group ^ seed) as u32).wrapping_add(line.wrapping_mul(step));
        Self { first: reduce(first, buckets), second: reduce((spread(key ^ seed) >> 32) as u32, buckets) }
    }
}

/// A place in a table: bucket and entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bucket number.
    pub bucket: u32,
    /// Entry within the bucket, below [`ENTRIES`].
    pub entry: u32,
}

/// Access to the buckets of one table.
pub trait Buckets {
    /// The bucket, or `None` out of range.
    fn bucket(&self, number: u32) -> Option<&Bucket>;
}

impl Bucket {
    /// The entry with this key; keys are unique within a bucket, so the sum below has at most one term.
    #[inline(always)]
    fn find(&self, key: u64) -> Option<u32> {
        let mut found = 0;
        for (entry, held) in self.keys.iter().enumerate() {
            found += (1 - differs(held.load(), key)) * (entry as u64 + 1);
        }
        (found != 0).then(|| found as u32 - 1)
    }

    #[inline(always)]
    fn used(&self) -> u32 {
        self.keys.iter().map(|key| differs(key.load(), 0) as u32).sum()
    }

    #[inline(always)]
    fn claim(&self, key: u64, value: u64) -> Option<u32> {
        for (entry, held) in self.keys.iter().enumerate() {
            if held.load() == 0 && held.replace(0, key) {
                self.values[entry].store(value);
                return Some(entry as u32);
            }
        }
        None
    }

    /// The value cell of an entry; `None` out of range.
    #[inline(always)]
    pub fn value(&self, entry: u32) -> Option<&Cell> {
        // A mask and not `get`: the kernel's verifier follows it through spills.
        (entry < ENTRIES as u32).then(|| &self.values[(entry as usize & 7).min(ENTRIES - 1)])
    }

    /// The keys, for readers of a whole table.
    #[must_use]
    pub fn keys(&self) -> &[Cell; ENTRIES] {
        &self.keys
    }
}

/// Finds a key.
#[inline(always)]
pub fn find<T: Buckets>(table: &T, at: Candidates, key: u64) -> Option<Place> {
    let first = table.bucket(at.first)?;
    if let Some(entry) = first.find(key) {
        return Some(Place { bucket: at.first, entry });
    }
    if first.overflowed.load() == 0 {
        return None;
    }
    let entry = table.bucket(at.second)?.find(key)?;
    Some(Place { bucket: at.second, entry })
}

/// What [`put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The key was there; this is its old value.
    Replaced(u64),
    /// It has a place now.
    Placed,
    /// Both buckets are full.
    Full,
}

/// Puts a key with a value, whether or not it is there.
#[inline(always)]
pub fn put<T: Buckets>(table: &T, at: Candidates, key: u64, value: u64) -> Put {
    if let Some(place) = find(table, at, key)
        && let Some(cell) = table.bucket(place.bucket).and_then(|bucket| bucket.value(place.entry))
    {
        let old = cell.load();
        cell.store(value);
        return Put::Replaced(old);
    }
    if insert(table, at, key, value).is_some() { Put::Placed } else { Put::Full }
}

/// Puts a key that is known to be absent; `None` when both buckets are full.
#[inline(always)]
pub fn insert<T: Buckets>(table: &T, at: Candidates, key: u64, value: u64) -> Option<Place> {
    let first = table.bucket(at.first)?;
    let used = first.used();
    if used < CROWDED
        && let Some(entry) = first.claim(key, value)
    {
        return Some(Place { bucket: at.first, entry });
    }
    let second = table.bucket(at.second)?;
    // One and the same bucket can seem less full than a moment ago; the key would be counted as moved, and never back.
    if at.second != at.first && second.used() < used {
        // Counted before the claim: a look-up in between goes to the second bucket in vain, never misses the key.
        first.overflowed.add(1);
        if let Some(entry) = second.claim(key, value) {
            return Some(Place { bucket: at.second, entry });
        }
        first.overflowed.add(u64::MAX);
    }
    let entry = first.claim(key, value)?;
    Some(Place { bucket: at.first, entry })
}

/// Puts a key in the place of another, which is lost: for tables that only spare work.
#[inline(always)]
pub fn displace<T: Buckets>(table: &T, at: Candidates, key: u64) {
    if let Some(bucket) = table.bucket(at.first)
        && let Some(cell) = bucket.keys.get((key >> 61) as usize)
    {
        cell.store(key);
    }
}

/// Removes the key at `place` and returns its value; `None` when another CPU removed it first.
#[inline(always)]
pub fn remove<T: Buckets>(table: &T, at: Candidates, place: Place, key: u64) -> Option<u64> {
    let bucket = table.bucket(place.bucket)?;
    let value = bucket.value(place.entry)?.load();
    let cell = &bucket.keys[(place.entry as usize & 7).min(ENTRIES - 1)];
    if !cell.replace(key, 0) {
        return None;
    }
    if place.bucket != at.first {
        table.bucket(at.first)?.overflowed.add(u64::MAX);
    }
    Some(value)
}
