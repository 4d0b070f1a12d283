//! Single blocks of the same heaps: each is what the model says of its chunk.

use proptest::prelude::*;

use super::super::{ChunkFound, ChunkReader, Malloc};
use super::{
    CACHE, Chunk, HEAD, HEAP, LIBRARY, OTHER, Process, SECOND, SOME, STATE, State, TWO_CACHED, chunks,
    process,
};

fn reader(process: &Process) -> ChunkReader {
    let mut reader = Malloc::default()
        .chunk_reader(&process.memory, || Ok(process.mappings.clone()), Some(LIBRARY))
        .unwrap();
    reader.begin_look(&process.memory);
    reader
}

/// The blocks of chunks that follow each other, and what must be found of them.
fn expected(chunks: &[Chunk], first: u64, flags: u64) -> Vec<(u64, ChunkFound)> {
    let mut at = first;
    let one = |(state, size): &Chunk| {
        let block = at + 16;
        at += size;
        (block, if *state == State::Used { ChunkFound::InUse(size | flags) } else { ChunkFound::Free })
    };
    chunks.iter().map(one).collect()
}

fn first_of_main() -> u64 {
    HEAP + [CACHE].iter().chain(&TWO_CACHED).map(|(_, size)| size).sum::<u64>()
}

proptest! {
    #[test]
    fn each_block_is_what_its_chunk_is(main in chunks(), other in prop::option::of(chunks())) {
        let process = process(&main, other.as_deref());
        let reader = reader(&process);
        let mut all = expected(&main, first_of_main(), 0);
        if let Some(other) = &other {
            all.extend(expected(other, OTHER + (HEAD + STATE).next_multiple_of(16) as u64, 4));
            all.extend(expected(other, SECOND + HEAD as u64, 4));
        }
        for (block, found) in all {
            prop_assert_eq!(reader.look(&process.memory, block), found, "{:x}", block);
        }
    }

    /// Whatever is there: an answer.
    #[test]
    fn damage_does_no_harm(
        main in chunks(), places in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..20),
    ) {
        let mut process = process(&main, Some(&main));
        let reader = reader(&process);
        for (place, value) in places {
            let block = HEAP + 8 * place.index(500) as u64;
            process.memory.set(block - block % 16, value);
            process.memory.set(block - block % 16 + 8, value | 4);
            for address in [block, value, u64::MAX, 0, 16] {
                reader.look(&process.memory, address);
            }
        }
    }
}

#[test]
fn what_is_behind_the_end_is_free_whatever_it_says() {
    let mut process = process(&SOME, None);
    let end = first_of_main() + SOME.iter().map(|(_, size)| size).sum::<u64>();
    // The header that a block had before it became part of what is free.
    for (at, value) in [(end + 8, 64 | 1), (end + 64 + 8, 64 | 1)] {
        process.memory.set(at, value);
    }
    assert_eq!(reader(&process).look(&process.memory, end + 16), ChunkFound::Free);
}

#[test]
fn a_block_with_a_mapping_of_its_own_is_there_as_long_as_that() {
    let mut process = process(&SOME, None);
    let mapped = 0x7d00_0000_0000;
    process.memory.add(mapped, 0x3000);
    process.memory.set(mapped + 8, 0x3000 | 2);
    let reader = reader(&process);
    assert_eq!(reader.look(&process.memory, mapped + 16), ChunkFound::InUse(0x3000 | 2));
    assert_eq!(reader.look(&process.memory, mapped + 0x10_0000 + 16), ChunkFound::Free);
}
