//! What a look from outside remembers of a block, and whether a later one may be the same.
//!
//! Between two looks a living object is written to, given up to a free list of the interpreter's and taken from there again; to the allocator
//! all of that is one life. So it depends on the kind of block what is compared: whichever words a living block of its kind keeps
//! (docs/decisions/0028-survivors.md has the figures). It must not know when looks are.

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

use super::kind::HEADERS;
use super::{Kind, PythonType, Shape, fixed, word};
use crate::discover::layout::InterpreterLayout;

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likeness {
    shape: Shape,
    /// Where an object may begin and nobody holds one, a bit for each of [`HEADERS`].
    unheld: u8,
    fixed: u64,
    all: u64,
}

impl Likeness {
    /// `block`: the block's bytes from its start, at most [`super::COMPARED_BYTES`].
    pub fn of(
        block: &[u8],
        layout: &InterpreterLayout,
        find_type: &mut impl FnMut(u64) -> Option<PythonType>,
    ) -> Self {
        let shape = Shape::of(block, layout, find_type);
        let mut hasher = FxHasher::default();
        fixed::ranges(block, shape, layout).into_iter().for_each(|range| hasher.write(&block[range]));
        let fixed = hasher.finish();
        let mut hasher = FxHasher::default();
        hasher.write(&block[fixed::all(block, shape)]);
        let mut unheld = 0;
        for (bit, header) in HEADERS.into_iter().enumerate() {
            unheld |= u8::from(word(block, header) == Some(0)) << bit;
        }
        Self { shape, unheld, fixed, all: hasher.finish() }
    }

    /// What kind of block it is taken for.
    pub fn kind(&self) -> Kind {
        self.shape.kind
    }

    /// Whether `now` may be the same block, while it may be in the making: words that its making writes must not count.
    pub fn may_become(&self, now: &Self) -> bool {
        match self.shape.kind {
            // It had no type yet.
            Kind::Untyped | Kind::DictKeys => true,
            Kind::Int | Kind::Str | Kind::Bytes => self.rests_in(now) || self.has_fixed_of(now),
            _ => self.rests_in(now) || self.shape == now.shape,
        }
    }

    /// Whether `now` may be the same block, once it was made.
    pub fn may_be(&self, now: &Self) -> bool {
        match self.shape.kind {
            Kind::Int | Kind::Str | Kind::Bytes | Kind::Tuple => self.has_fixed_of(now),
            Kind::Untyped | Kind::DictKeys => self.shape == now.shape,
            _ => self.rests_in(now) || self.shape == now.shape,
        }
    }

    fn has_fixed_of(&self, now: &Self) -> bool {
        self.shape == now.shape && self.fixed == now.fixed
    }

    /// Whether nobody holds it now: it lies on a free list of the interpreter's, or is about to be freed.
    fn rests_in(&self, now: &Self) -> bool {
        let own = HEADERS.into_iter().position(|header| header == self.shape.header);
        self.shape.type_address != 0 && own.is_some_and(|bit| now.unheld >> bit & 1 == 1)
    }
}
