//! Mixing of 64-bit words: bucket choice, stack identity, thinning.
//!
//! Not cryptographic; a per-run seed keeps a target from aiming at one bucket.

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every input bit over the whole word (the finaliser of MurmurHash3, in the public domain).
#[inline(always)]
#[must_use]
pub const fn spread(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

/// Adds one word to a running hash; cheap, so end with [`spread`].
#[inline(always)]
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(MULTIPLIER)
}

/// Maps a 32-bit hash to `0..buckets` without a division.
#[inline(always)]
#[must_use]
pub const fn reduce(hash: u32, buckets: u32) -> u32 {
    ((hash as u64 * buckets as u64) >> 32) as u32
}
