//! How the blocks of one process are looked at: pymalloc's in their pools, malloc's by their chunks.
//!
//! It must not know why, nor what follows.

use std::path::Path;

use super::super::target::{PROC, Traced};
use crate::budget::waiting::{Seen, Stage, Words};
use crate::census::blocks::{self, BlockReader, Found};
use crate::census::malloc::{ChunkFound, ChunkReader, Malloc};
use crate::discover::memory::{ProcessMemory, mappings};
use crate::identity::Likeness;

/// What a look remembers of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Of pymalloc's: what it looked like.
    Block(Likeness),
    /// Of malloc's: the size of its chunk. Contents are not compared: most are buffers, which are written to.
    Chunk(u64),
}

impl Words for Mark {
    fn is_same(&self, now: &Self, stage: Stage) -> bool {
        match (self, now, stage) {
            (Self::Block(before), Self::Block(now), Stage::Early) => before.may_become(now),
            (Self::Block(before), Self::Block(now), Stage::Made) => before.may_be(now),
            (Self::Chunk(before), Self::Chunk(now), _) => before == now,
            (Self::Block(_), Self::Chunk(_), _) | (Self::Chunk(_), Self::Block(_), _) => false,
        }
    }
}

/// A block that is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub address: u64,
    pub bytes: u64,
    pub is_malloc: bool,
}

/// One process.
#[derive(Debug, Default)]
pub struct Eye {
    blocks: BlockReader,
    malloc: Malloc,
    /// Where malloc's arenas are; `None`: not looked for yet, or not known.
    chunks: Option<ChunkReader>,
    unknown: Option<String>,
    unknown_malloc: Option<String>,
}

impl Eye {
    /// Looks at blocks of a process; gives the number of reads. `is_thorough`: what was learnt earlier is learnt anew.
    pub fn look(
        &mut self,
        traced: &Traced,
        wanted: &[Wanted],
        is_thorough: bool,
        mut show: impl FnMut(u64, Seen<Mark>),
    ) -> usize {
        if traced.pages().is_some() {
            let pid = traced.slot.pid;
            self.unknown =
                Some(format!("process {pid} uses mimalloc, whose blocks cannot be looked at from outside"));
            return 0;
        }
        // It has ended, which others notice.
        let Ok(memory) = ProcessMemory::open(Path::new(PROC), traced.slot.pid) else { return 0 };
        if is_thorough {
            self.blocks.forget_types();
        }
        let of_malloc: Vec<u64> =
            wanted.iter().filter(|block| block.is_malloc).map(|block| block.address).collect();
        let of_pymalloc = wanted.iter().filter(|block| !block.is_malloc);
        let mut of_pymalloc: Vec<blocks::Wanted> =
            of_pymalloc.map(|block| blocks::Wanted { address: block.address, bytes: block.bytes }).collect();
        let reads = self.blocks.look(&memory, traced.layout(), &mut of_pymalloc, |address, found| {
            let seen = match found {
                Found::Free => Seen::Free,
                Found::Unsure => Seen::Unsure,
                Found::There(likeness) => Seen::There(Mark::Block(likeness)),
            };
            show(address, seen);
        });
        if of_malloc.is_empty() {
            return reads;
        }
        reads + self.look_at_malloc(traced, &memory, &of_malloc, is_thorough, show)
    }

    fn look_at_malloc(
        &mut self,
        traced: &Traced,
        memory: &ProcessMemory,
        wanted: &[u64],
        is_thorough: bool,
        mut show: impl FnMut(u64, Seen<Mark>),
    ) -> usize {
        if is_thorough || self.chunks.is_none() && self.unknown_malloc.is_none() {
            let library = traced.target.c_library.as_ref().map(|library| &*library.name);
            let now = || mappings(Path::new(PROC), traced.slot.pid);
            match self.malloc.chunk_reader(memory, now, library) {
                Ok(reader) => (self.chunks, self.unknown_malloc) = (Some(reader), None),
                // What was found earlier is still there, mostly.
                Err(why) if self.chunks.is_none() => self.unknown_malloc = Some(why.to_string()),
                Err(why) => tracing::debug!(%why, "malloc's arenas were not found again"),
            }
        }
        let Some(chunks) = &mut self.chunks else {
            wanted.iter().for_each(|address| show(*address, Seen::Unsure));
            return 0;
        };
        chunks.begin_look(memory);
        for address in wanted {
            let seen = match chunks.look(memory, *address) {
                ChunkFound::Free => Seen::Free,
                ChunkFound::InUse(size) => Seen::There(Mark::Chunk(size)),
            };
            show(*address, seen);
        }
        wanted.len()
    }

    /// Why nothing is known of its blocks.
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// Why nothing is known of malloc's.
    pub fn unknown_malloc(&self) -> Option<&str> {
        self.unknown_malloc.as_deref()
    }
}
