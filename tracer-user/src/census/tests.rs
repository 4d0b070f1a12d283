//! The census on memory made by hand: tables that moved, tables that lie, memory that is not there.

use std::cell::Cell;
use std::io;

use proptest::prelude::*;

use super::{
    arenas::{ArenaVariables, Reason, find_arenas},
    pools::{PoolCensus, blocks_in_use, scan_blocks_in_use},
};
use crate::discover::{
    layout::{InterpreterLayout, layout},
    memory::{Mapping, ReadMemory, parse_mappings},
};

const DATA: u64 = 0x10_0000;
const HEAP: u64 = 0x20_0000;
const ARENAS: u64 = 0x4000_0000;
const ARENA_SIZE: u64 = 256 << 10;
const POOL_SIZE: u64 = 4 << 10;

/// A process of Python 3.8 with a data segment, a heap and room for four arenas.
struct Process {
    data: Vec<u8>,
    heap: Vec<u8>,
    arenas: Vec<u8>,
}

impl Process {
    fn new() -> Self {
        let arenas = usize::try_from(4 * ARENA_SIZE).unwrap();
        Self { data: vec![0; 0x1000], heap: vec![0; 0x4000], arenas: vec![0; arenas] }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let (start, memory) = match address {
            ARENAS.. => (ARENAS, &mut self.arenas),
            HEAP.. => (HEAP, &mut self.heap),
            _ => (DATA, &mut self.data),
        };
        let start = usize::try_from(address - start).unwrap();
        memory[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// An entry of the table at `table`: an arena of which `pools` pools were carved.
    fn arena(&mut self, table: u64, index: u64, pools: u64, next: u64) {
        let address = ARENAS + ARENA_SIZE * (index % 4);
        let counts = (64 - pools) | 64 << 32;
        let words = [address, address + POOL_SIZE * pools, counts, 0, next, 0];
        for (position, word) in words.iter().enumerate() {
            self.write(table + 48 * index + 8 * position as u64, &word.to_le_bytes());
        }
    }

    fn pool(&mut self, arena: u32, pool: u64, count: u32, size_class: u32) {
        let address = ARENAS + ARENA_SIZE * u64::from(arena % 4) + POOL_SIZE * pool;
        let last = 4096 - 16 * (size_class + 1);
        self.write(address, &count.to_le_bytes());
        let next = 48 + 32 * (size_class + 1);
        for (position, word) in [arena, size_class, next, last].iter().enumerate() {
            self.write(address + 32 + 4 * position as u64, &word.to_le_bytes());
        }
    }
}

impl ReadMemory for Process {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (start, memory) in [(DATA, &self.data), (HEAP, &self.heap), (ARENAS, &self.arenas)] {
            let Some(offset) = address.checked_sub(start).and_then(|offset| usize::try_from(offset).ok())
            else {
                continue;
            };
            let found = offset.checked_add(buffer.len()).and_then(|end| memory.get(offset..end));
            if let Some(found) = found {
                buffer.copy_from_slice(found);
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn mappings() -> Vec<Mapping> {
    parse_mappings(
        "100000-101000 rw-p 00000000 08:01 5 /lib/libpython3.8.so\n\
         200000-204000 rw-p 00000000 00:00 0 [heap]\n\
         40000000-40100000 rw-p 00000000 00:00 0 \n",
    )
}

fn row() -> &'static InterpreterLayout {
    layout(3, 8).unwrap()
}

/// One arena of three pools at index 0, its table at the start of the heap, found from the data segment.
fn process() -> Process {
    let mut process = Process::new();
    process.write(DATA + 0x80, &HEAP.to_le_bytes());
    process.arena(HEAP, 0, 3, 0);
    process.pool(0, 0, 5, 0);
    process.pool(0, 1, 0, 3);
    process.pool(0, 2, 7, 31);
    process
}

#[test]
fn pools_in_use_are_counted_by_class() {
    let process = process();
    let variables = find_arenas(&process, &mappings(), row(), DATA + 0x500).unwrap();
    assert_eq!(variables, ArenaVariables(vec![DATA + 0x80]));
    let census = blocks_in_use(&process, &mappings(), row(), &variables).unwrap();
    assert_eq!((census.blocks(), census.bytes()), (12, 5 * 16 + 7 * 512));
    assert_eq!((census.arenas, census.empty_pools, census.invalid_pools), (1, 1, 0));
    assert_eq!((census.classes[31].pools, census.classes[31].blocks), (1, 7));
    assert_eq!(scan_blocks_in_use(&process, &mappings(), row()).unwrap().classes, census.classes);
}

#[test]
fn arenas_behind_a_stretch_of_freed_ones_are_found() {
    let mut process = process();
    for index in 1..64 {
        process.write(HEAP + 48 * index + 32, &(HEAP + 48 * (index + 1)).to_le_bytes());
    }
    process.arena(HEAP, 61, 1, HEAP);
    process.pool(61, 0, 9, 1);
    process.write(HEAP + 48 * 64, &[0xff; 200]); // other objects follow the table
    process.arena(HEAP, 40, 1, 0);
    process.write(HEAP + 48 * 40 + 8, &[7]); // being filled in
    let variables = ArenaVariables(vec![DATA + 0x80]);
    let census = blocks_in_use(&process, &mappings(), row(), &variables).unwrap();
    assert_eq!((census.blocks(), census.arenas), (21, 2));
}

#[test]
fn a_full_arena_may_keep_a_link_into_the_former_table() {
    let mut process = process();
    process.arena(HEAP, 0, 64, 0xdead_0000);
    let variables = ArenaVariables(vec![DATA + 0x80]);
    assert_eq!(blocks_in_use(&process, &mappings(), row(), &variables).unwrap().blocks(), 12);
}

#[test]
fn torn_headers_are_counted_apart() {
    let mut process = process();
    process.pool(0, 1, 300, 0); // more blocks than fit
    process.pool(0, 2, 7, 32); // no such class
    let variables = ArenaVariables(vec![DATA + 0x80]);
    let census = blocks_in_use(&process, &mappings(), row(), &variables).unwrap();
    assert_eq!((census.blocks(), census.invalid_pools), (5, 2));
}

#[test]
fn arenas_that_vanish_are_counted() {
    let mut process = process();
    process.arena(HEAP, 1, 1, 0);
    process.arenas.truncate(usize::try_from(ARENA_SIZE).unwrap());
    let variables = ArenaVariables(vec![DATA + 0x80]);
    let census = blocks_in_use(&process, &mappings(), row(), &variables).unwrap();
    assert_eq!((census.blocks(), census.lost_arenas), (12, 1));
}

/// A process that ends, and with it all its memory, once it has been read so often.
struct Ending(Process, Cell<usize>);

impl ReadMemory for Ending {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let left = self.1.get().checked_sub(1).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.1.set(left);
        self.0.read(address, buffer)
    }
}

/// Once such a part was taken for the whole: a program that ended while it was looked at had freed half of what it had, it seemed, and
/// nobody had seen it.
#[test]
fn a_process_that_ends_meanwhile_is_counted_whole_or_not_at_all() {
    let variables = ArenaVariables(vec![DATA + 0x80]);
    let count = |reads| {
        let mut process = process();
        process.arena(HEAP, 1, 2, 0);
        process.pool(1, 0, 4, 2);
        process.pool(1, 1, 6, 2);
        blocks_in_use(&Ending(process, Cell::new(reads)), &mappings(), row(), &variables)
    };
    let whole = count(usize::MAX).unwrap();
    assert_eq!((whole.blocks(), whole.lost_arenas), (22, 0));
    let counted: Vec<Option<PoolCensus>> = (0..100).map(|reads| count(reads).ok()).collect();
    assert!(counted[0].is_none() && counted[99].is_some());
    assert!(counted.iter().flatten().all(|census| *census == whole), "{counted:?}");
}

#[test]
fn variables_that_point_elsewhere_say_so() {
    let mut process = process();
    process.write(DATA + 0x80, &(HEAP + 48).to_le_bytes());
    let variables = ArenaVariables(vec![DATA + 0x80]);
    let gone = blocks_in_use(&process, &mappings(), row(), &variables).unwrap_err();
    assert_eq!(gone.to_string(), "no arena table behind `[100080]` any more; look for it again");
    let none = find_arenas(&process, &mappings(), row(), DATA).unwrap_err();
    assert!(matches!(none, Reason::NoTable { runtime: DATA }), "{none}");
    let unreadable = blocks_in_use(&process, &mappings(), row(), &ArenaVariables(vec![1])).unwrap_err();
    assert!(unreadable.to_string().starts_with("failed to read 8 bytes at `0x1`"), "{unreadable}");
}

proptest! {
    #[test]
    fn hostile_tables_end(
        words in proptest::collection::vec(prop_oneof![
            Just(0_u64), Just(HEAP), Just(HEAP + 48), Just(ARENAS), Just(ARENAS + ARENA_SIZE), Just(64 << 32), any::<u64>(),
        ], 0..400),
        minor in 8..14_u8,
    ) {
        let mut process = process();
        for (position, word) in words.iter().enumerate() {
            process.write(HEAP + 8 * position as u64, &word.to_le_bytes());
            process.write(DATA + 8 * position as u64, &word.to_le_bytes());
        }
        let row = layout(3, minor).unwrap();
        if let Ok(variables) = find_arenas(&process, &mappings(), row, DATA) {
            let _ = blocks_in_use(&process, &mappings(), row, &variables);
        }
    }
}
