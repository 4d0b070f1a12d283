//! Whether a block is still the allocation that it was: what is compared of its bytes, now and later.
//!
//! A block that was freed unseen is handed out again within microseconds, and looks as alive as before. What tells the two apart is in the block: its
//! type, and words that do not change while the object lives. Which words those are depends on the kind of block; how often the next owner differs in
//! them was measured (docs/decisions/0024-identity.md).
//!
//! Pure: bytes of the block in, identity out; the caller reads memory. For interpreters with a lock, 3.11 and later: before, dictionary keys were laid
//! out otherwise, and free-threaded builds have another object header.

mod fixed;
mod kind;
mod likeness;
mod python_type;
#[cfg(test)]
mod tests;

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

pub use kind::{Kind, Shape};
pub use likeness::Likeness;
pub use python_type::{PythonType, TYPE_BYTES, is_type};

use crate::discover::layout::InterpreterLayout;

/// So many bytes of a block are enough; of a longer one the rest is not compared.
pub const COMPARED_BYTES: usize = 512;

/// How much of a block is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The type's address, or that there is none.
    Type,
    /// And the words that CPython does not change in a live object of that kind.
    Fixed,
    /// And all others but reference counts and the collector's links: what may change, but often does not.
    All,
}

/// What a block looked like at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    shape: Shape,
    words: u64,
}

impl Identity {
    /// `block`: the block's bytes from its start, at most [`COMPARED_BYTES`]; `find_type` says what is at an address if that is a type.
    pub fn of(
        block: &[u8],
        depth: Depth,
        layout: &InterpreterLayout,
        find_type: &mut impl FnMut(u64) -> Option<PythonType>,
    ) -> Self {
        let shape = Shape::of(block, layout, find_type);
        let mut hasher = FxHasher::default();
        let ranges = match depth {
            Depth::Type => Vec::new(),
            Depth::Fixed => fixed::ranges(block, shape, layout),
            Depth::All => Vec::from([fixed::all(block, shape)]),
        };
        ranges.into_iter().for_each(|range| hasher.write(&block[range]));
        Self { shape, words: hasher.finish() }
    }

    /// What kind of block it is taken for.
    pub fn kind(&self) -> Kind {
        self.shape.kind
    }

    /// Address of its type; 0 without one.
    pub fn type_address(&self) -> u64 {
        self.shape.type_address
    }
}

/// The aligned word at `offset`, if the bytes reach so far.
fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    let word = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}
