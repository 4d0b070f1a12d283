//! What a look from outside remembers of a block, and whether a later one may be the same.
//!
//! Between two looks a living object is written to, given up to a free list of the interpreter's and taken from there again; to the allocator
//! all of that is one life. So it depends on the kind of block what is compared. The choices and what they cost are measured:
//! docs/decisions/0028-survivors.md. It must not know when looks are.

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

use super::kind::HEADERS;
use super::{Kind, PythonType, Shape, fixed, word};
use crate::discover::layout::InterpreterLayout;

/// Digests of words: word `i` is in digest `i % DIGESTS`, so that a block of 192 bytes has one for each.
const DIGESTS: usize = 24;
/// Words of an object in front of its fields: count and type.
const HEAD_WORDS: usize = 2;
/// Most of a block's words that may have changed: one in so many, and one in any case.
const ONE_IN: usize = 4;
/// With fewer words than this in it a block may have changed in none: of a `float` one is all there is.
const FEWEST_WORDS: usize = 3;
// PyDictObject (Include/cpython/dictobject.h) and PyListObject (Include/cpython/listobject.h), 3.8 to 3.15, in words from the object on.
/// `ma_used`, `ob_size`.
const SIZE: usize = 2;
/// `ob_item`.
const ITEMS: usize = 3;
/// `ma_keys`.
const KEYS: usize = 4;

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likeness {
    shape: Shape,
    /// Where an object may begin and nobody holds one, a bit for each of [`HEADERS`].
    unheld: u8,
    /// Entries of a dictionary, items of a list.
    size: u32,
    fixed: u64,
    words: [u16; DIGESTS],
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
        let mut unheld = 0;
        for (bit, header) in HEADERS.into_iter().enumerate() {
            unheld |= u8::from(word(block, header) == Some(0)) << bit;
        }
        let size = word(block, shape.header + 8 * SIZE).unwrap_or_default();
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        Self { shape, unheld, size, fixed: hasher.finish(), words: digests(block) }
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
            Kind::Int | Kind::Str | Kind::Bytes => self.has_fixed_of(now),
            _ => self.rests_in(now) || self.shape == now.shape,
        }
    }

    /// Whether `now` may be the same block, once it was made.
    pub fn may_be(&self, now: &Self) -> bool {
        match self.shape.kind {
            // They never change. Nor does a table's first key, but in a dictionary that is used as a queue.
            Kind::Int | Kind::Str | Kind::Bytes | Kind::Tuple | Kind::DictKeys => self.has_fixed_of(now),
            _ if self.rests_in(now) => true,
            _ if self.shape != now.shape => false,
            // Written to, it keeps its table, and when it has grown out of it, it is larger.
            Kind::Dict => self.word(KEYS) == now.word(KEYS) || now.size > self.size,
            Kind::List => self.word(ITEMS) == now.word(ITEMS) || now.size > self.size,
            // Who is written to changes in a field or two, and another one in most.
            Kind::Plain | Kind::Collected | Kind::Instance | Kind::Untyped => self.has_most_of(now),
        }
    }

    fn has_fixed_of(&self, now: &Self) -> bool {
        self.shape == now.shape && self.fixed == now.fixed
    }

    fn has_most_of(&self, now: &Self) -> bool {
        let pairs = self.words.iter().zip(&now.words).skip(self.first());
        let filled = pairs.clone().filter(|(before, now)| **before != 0 || **now != 0).count();
        let changed = pairs.filter(|(before, now)| before != now).count();
        changed == 0 || filled >= FEWEST_WORDS && changed <= (filled / ONE_IN).max(1)
    }

    /// The first word that is compared: what lies before an object are the collector's links and managed pointers.
    fn first(&self) -> usize {
        match self.shape.type_address {
            0 => 0,
            _ => self.shape.header / 8 + HEAD_WORDS,
        }
    }

    fn word(&self, from_object: usize) -> Option<u16> {
        self.words.get(self.shape.header / 8 + from_object).copied()
    }

    /// Whether it lies on a free list of the interpreter's now, where nobody holds it: of kinds that have one.
    fn rests_in(&self, now: &Self) -> bool {
        // A class's instances and these have none, and whatever looks so is another block, with a zero there.
        if matches!(self.shape.kind, Kind::Int | Kind::Str | Kind::Bytes | Kind::Instance) {
            return false;
        }
        let own = HEADERS.into_iter().position(|header| header == self.shape.header);
        self.shape.type_address != 0 && own.is_some_and(|bit| now.unheld >> bit & 1 == 1)
    }
}

/// 0 is for words that are all zero; others are mixed so that two that differ have the same once in 32,768 times.
fn digests(block: &[u8]) -> [u16; DIGESTS] {
    let mut digests = [0_u64; DIGESTS];
    let (words, _) = block.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let digest = &mut digests[number % DIGESTS];
        *digest = digest.rotate_left(29).wrapping_add(u64::from_le_bytes(*word));
    }
    digests.map(|sum| if sum == 0 { 0 } else { (sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16 | 1 })
}
