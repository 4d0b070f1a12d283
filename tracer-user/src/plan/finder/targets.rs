//! Which addresses are reached by a direct jump: one bit for each byte of code.
//!
//! Why: a probe between two instructions means one thing only if nothing else jumps in between them.
//! It must not know instructions.

use crate::plan::elf::MappedBytes;

/// A set of addresses in one stretch of code.
pub struct BranchTargets {
    base: u64,
    bits: Vec<u64>,
}

impl BranchTargets {
    /// An empty set over `range`.
    pub fn new(range: MappedBytes<'_>) -> Self {
        Self { base: range.address, bits: vec![0; range.bytes.len().div_ceil(64)] }
    }

    /// Adds `address`; one outside the stretch is ignored.
    pub fn insert(&mut self, address: u64) {
        if let Some((word, bit)) = self.position(address)
            && let Some(bits) = self.bits.get_mut(word)
        {
            *bits |= bit;
        }
    }

    /// Whether `address` is in the set.
    pub fn contains(&self, address: u64) -> bool {
        self.position(address).and_then(|(word, bit)| Some(self.bits.get(word)? & bit != 0)).unwrap_or(false)
    }

    fn position(&self, address: u64) -> Option<(usize, u64)> {
        let distance = usize::try_from(address.checked_sub(self.base)?).ok()?;
        Some((distance / 64, 1 << (distance % 64)))
    }
}

impl Extend<u64> for BranchTargets {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, addresses: T) {
        for address in addresses {
            self.insert(address);
        }
    }
}
