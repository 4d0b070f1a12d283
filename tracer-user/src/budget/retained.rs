//! Retained flow: bytes that outlive the looks at their window, by stack.
//!
//! It needs no identity that holds for long, so it is known where live bytes are not, and it is an upper bound of growth. What it cannot
//! do is tell a leak from a cache whose entries live longer than the looks. It must not know how blocks are looked at.

use std::hash::Hash;

use rustc_hash::FxHashMap;

use super::interval::Estimate;
use super::units::Units;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Retained<K> {
    stacks: FxHashMap<K, Units>,
}

impl<K> Default for Retained<K> {
    fn default() -> Self {
        Self { stacks: FxHashMap::default() }
    }
}

impl<K: Copy + Eq + Hash> Retained<K> {
    /// One window's blocks that outlived it: stack, and bytes that each stands for.
    pub fn window(&mut self, blocks: impl IntoIterator<Item = (K, f64)>) {
        let mut sums: FxHashMap<K, f64> = FxHashMap::default();
        for (stack, bytes) in blocks {
            *sums.entry(stack).or_default() += bytes;
        }
        for (stack, bytes) in sums {
            self.stacks.entry(stack).or_default().add(bytes, 1.0);
        }
    }

    /// Bytes of a stack that outlived, in all windows together.
    #[must_use]
    pub fn of(&self, stack: K) -> Estimate {
        self.stacks.get(&stack).copied().unwrap_or_default().estimate()
    }

    /// The stack is no longer what it was.
    pub fn forget(&mut self, stack: K) {
        self.stacks.remove(&stack);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_what_varies() {
        let mut retained = Retained::default();
        for _ in 0..100 {
            retained.window([("leak", 60.0), ("leak", 40.0)]);
        }
        retained.window([("burst", 1e6)]);
        let leak = retained.of("leak");
        assert!((leak.value() - 1e4).abs() < 1e-6 && leak.interval().unwrap().holds(1e4));
        assert!(retained.of("burst").interval().is_none());
        retained.forget("leak");
        assert!(retained.of("leak").value().abs() < 1e-12);
    }
}
