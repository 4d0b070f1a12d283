//! What identities said, counted against the truth.

use std::collections::BTreeMap;

use alloctrace::identity::Kind;

use crate::oracle::Allocation;

/// What became of a block, by the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// Still the same allocation.
    Same,
    /// The same, with another size.
    Resized,
    /// Freed, and nobody has the address.
    Freed,
    /// Freed, and its address handed out again.
    Reused,
}

impl Truth {
    pub fn of(then: &Allocation, now: &Allocation) -> Self {
        match now {
            _ if !now.is_live => Self::Freed,
            _ if now.number != then.number => Self::Reused,
            _ if now.resized != then.resized => Self::Resized,
            _ => Self::Same,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Resized => "resized",
            Self::Freed => "freed",
            Self::Reused => "reused",
        }
    }
}

/// What figures are kept apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub type_name: String,
    pub size: &'static str,
    pub tail_ms: u64,
    pub wait_ms: u64,
    pub truth: Truth,
}

/// So many blocks, and how many of them looked different at each depth.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    blocks: u64,
    differ: [u64; 3],
}

/// All counts.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Key, Count>);

impl Counts {
    pub fn add(&mut self, key: Key, differs: [bool; 3]) {
        let count = self.0.entry(key).or_default();
        count.blocks += 1;
        for (sum, differs) in count.differ.iter_mut().zip(differs) {
            *sum += u64::from(differs);
        }
    }

    /// One JSON object.
    pub fn rows(&self) -> Vec<serde_json::Value> {
        let row = |(key, count): (&Key, &Count)| {
            serde_json::json!({
                "kind": format!("{:?}", key.kind), "type": key.type_name, "size": key.size, "tail_ms": key.tail_ms,
                "wait_ms": key.wait_ms, "truth": key.truth.name(), "blocks": count.blocks, "differ": count.differ,
            })
        };
        self.0.iter().map(row).collect()
    }
}

/// Sizes that are kept apart.
pub fn size_group(size: u64) -> &'static str {
    match size {
        0..=64 => "to 64",
        65..=128 => "to 128",
        129..=512 => "to 512",
        _ => "malloc",
    }
}
