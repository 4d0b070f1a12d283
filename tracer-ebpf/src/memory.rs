//! How the pure logic reads the target: a trait, so that tests walk recorded memory.

/// Bytes of a wide read: the largest part of a frame that any interpreter needs (3.8 and 3.9, from `f_back` to `f_lasti`). It
/// is the same for all: the kernel's verifier traces the size of a read back through every frame of the walk, which makes
/// loading twice as long where the size is a variable.
pub const WIDE_BYTES: usize = 88;

/// Words that a wide read may fill; a power of two, so that an index is made safe by a mask, without a branch.
pub const WIDE_WORDS: usize = 16;

/// A buffer for wide reads, made once and reused, so that a walk clears it only once.
pub type Wide = [u64; WIDE_WORDS];

/// Words of a code object that never change while it lives.
pub const CONSTANT_WORDS: usize = 4;

/// Reads of a target's memory. An unreadable address is an answer, never a fault.
pub trait Memory {
    /// Reads [`WIDE_BYTES`] at `address`; `false` when any of them cannot be read.
    fn read_wide(&self, address: u64, into: &mut Wide) -> bool;
    /// Reads four words; all are 0 when any of them cannot be read.
    fn read_constants(&self, address: u64) -> [u64; CONSTANT_WORDS];
    /// Reads one word.
    fn read_word(&self, address: u64) -> Option<u64>;
    /// Reads one word, 0 when it cannot be read. No branch: paths are what the kernel's verifier has to walk.
    fn word_or_zero(&self, address: u64) -> u64;
    /// Reads a 32-bit value, 0 when it cannot be read.
    fn half_or_zero(&self, address: u64) -> u32;
}
