//! What looks said, counted against the truth.

use std::collections::BTreeMap;

use alloctrace::census::blocks::Found;
use alloctrace::identity::{Kind, Likeness};

use crate::oracle::Allocation;

/// Number of the look from which on blocks are made: `alloctrace::budget::waiting`.
const MADE: usize = 3;

/// A block that was followed.
pub struct Block {
    /// What has its address, when it was asked for.
    pub then: Allocation,
    /// Of the allocation that its window told of.
    pub number: u64,
    pub bytes: u64,
    pub looks: Vec<Found<Likeness>>,
    /// Whether that allocation lived at each look; `None`: that changed meanwhile.
    pub truths: Vec<Option<bool>>,
}

impl Block {
    /// Whether it is still taken for alive after a look: by what the allocator says alone, and by identity too.
    fn is_kept(&self, look: usize) -> (bool, bool) {
        let mut words: Option<Likeness> = None;
        let (mut is_made, mut is_same) = (false, true);
        for (number, found) in self.looks.iter().take(look + 1).enumerate() {
            let now = match found {
                Found::Free => return (false, false),
                Found::Unsure => continue,
                Found::There(now) => *now,
            };
            is_same &=
                words.is_none_or(|words| if is_made { words.may_be(&now) } else { words.may_become(&now) });
            if !is_made && (number >= MADE || words.is_none()) {
                (words, is_made) = (Some(now), number >= MADE);
            }
        }
        (true, is_same)
    }

    /// What it was taken for when it was made; if it was gone by then, what it was at first.
    fn kind(&self) -> Option<Kind> {
        let there = |found: &Found<Likeness>| match found {
            Found::There(likeness) => Some(likeness.kind()),
            Found::Free | Found::Unsure => None,
        };
        self.looks.iter().skip(MADE).chain(&self.looks).find_map(there)
    }
}

/// So many blocks, and how many of them were taken for alive.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    blocks: u64,
    not_free: u64,
    kept: u64,
}

/// By kind, look and whether they lived.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<(String, usize, bool), Count>);

impl Counts {
    /// Counts a block after a look.
    pub fn add(&mut self, block: &Block, look: usize) {
        let Some(Some(lives)) = block.truths.get(look) else { return };
        let kind = block.kind().map_or_else(|| "free at first".to_owned(), |kind| format!("{kind:?}"));
        let count = self.0.entry((kind, look, *lives)).or_default();
        let (not_free, kept) = block.is_kept(look);
        count.blocks += 1;
        count.not_free += u64::from(not_free);
        count.kept += u64::from(kept);
    }

    /// One JSON object each; `waits_ms`: of each look.
    pub fn rows(&self, waits_ms: &[u64]) -> Vec<serde_json::Value> {
        let row = |((kind, look, lives), count): (&(String, usize, bool), &Count)| {
            serde_json::json!({
                "kind": kind, "wait_ms": waits_ms.get(*look), "lives": lives, "blocks": count.blocks,
                "not_free": count.not_free, "kept": count.kept,
            })
        };
        self.0.iter().map(row).collect()
    }
}
