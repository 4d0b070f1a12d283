//! Where an interpreter keeps its tables of allocators, by what its exported functions load.
//!
//! Why: which allocator is in use is a matter of run time (`PYTHONMALLOC`, tracemalloc, `PyMem_SetAllocator`), and the table is a
//! static variable without a symbol in stripped files (`_PyObject`, Objects/obmalloc.c, to 3.11) or a member of `_PyRuntime` that patch
//! releases move (3.12 and later). But `PyObject_Malloc` is exported everywhere and calls `_PyObject.malloc(_PyObject.ctx, size)`: it
//! loads two words that lie side by side, and the first is where the table begins.
//! It must not know processes: what the table holds is for `census`.

use serde::{Deserialize, Serialize};

use super::elf::{Elf, MappedBytes};
use super::finder::machine::Machine;
use super::finder::value::Value;
use super::finder::{Code, Flow, Instruction as _, InstructionSet};

/// Instructions of the function that are followed on one path; at most 12 were needed in the builds looked at.
const STEPS: u32 = 40;
/// Branches whose both sides are followed: the test of the size, and the guard of an inlined allocator.
const FORKS: u32 = 4;
/// From `ctx` to `malloc` in `PyMemAllocatorEx` (Include/cpython/pymem.h).
const FUNCTION: i64 = 8;

/// Where a table begins, in addresses of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TablePlace {
    /// Here.
    Fixed(u64),
    /// So many bytes behind what the pointer at this address points to, an entry of the global offset table.
    Behind {
        /// Address of the pointer.
        pointer: u64,
        /// What to add to it.
        offset: i64,
    },
}

/// The tables of CPython's three domains of memory; `None` where the function that uses one could not be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocatorTables {
    /// Of `PyMem_RawMalloc`, which never is pymalloc.
    pub raw: Option<TablePlace>,
    /// Of `PyMem_Malloc`.
    pub memory: Option<TablePlace>,
    /// Of `PyObject_Malloc`.
    pub object: Option<TablePlace>,
}

/// Finds the tables of an interpreter.
pub fn find_tables<Set: InstructionSet>(elf: &Elf<'_>) -> AllocatorTables {
    let place = |name| {
        let entry = elf.symbol(name)?.address;
        let range = elf.code().into_iter().find(|range| range.contains(entry))?;
        table_of::<Set::Code<'_>>(range, entry)
    };
    AllocatorTables {
        raw: place("PyMem_RawMalloc"),
        memory: place("PyMem_Malloc"),
        object: place("PyObject_Malloc"),
    }
}

struct Path {
    machine: Machine,
    address: u64,
    steps: u32,
    forks: u32,
}

fn table_of<'data, C: Code<'data>>(range: MappedBytes<'data>, entry: u64) -> Option<TablePlace> {
    let mut code = C::new(range)?;
    let mut paths = vec![Path { machine: Machine::default(), address: entry, steps: STEPS, forks: FORKS }];
    while let Some(path) = paths.pop() {
        let found = follow(&mut code, path, &mut paths);
        if found.is_some() {
            return found;
        }
    }
    None
}

fn follow<'data, C: Code<'data>>(code: &mut C, mut path: Path, others: &mut Vec<Path>) -> Option<TablePlace> {
    while path.steps > 0 {
        path.steps -= 1;
        let instruction = code.at(path.address)?;
        match instruction.flow() {
            Flow::Next => {
                code.execute(&instruction, &mut path.machine);
                let found = neighbours(&path.machine, None);
                if found.is_some() {
                    return found;
                }
                path.address = instruction.next_address();
            }
            Flow::Conditional(target) => {
                path.forks = path.forks.checked_sub(1)?;
                others.extend(target.map(|address| Path {
                    machine: path.machine.clone(),
                    address,
                    steps: path.steps,
                    forks: path.forks,
                }));
                path.address = instruction.next_address();
            }
            Flow::Jump(Some(target)) => path.address = target,
            // The function may be called where it lies: `jmp *table+8(%rip)`.
            Flow::Jump(None) | Flow::End => {
                return neighbours(&path.machine, instruction.memory_address(&path.machine));
            }
        }
    }
    None
}

/// The first of two words that were loaded from places side by side. The word that the function loads first must be one of them, or lead to
/// them: an inlined pymalloc asks the raw domain's table later on, for what it does not serve itself.
fn neighbours(machine: &Machine, last: Option<Value>) -> Option<TablePlace> {
    let origins = machine.origins();
    let loaded = machine.cells().iter().filter(|cell| cell.size == 8);
    let loaded = loaded.filter(|cell| origins.loaded_from(cell.value) == Some(cell.address));
    let addresses: Vec<Value> = loaded.map(|cell| cell.address).chain(last).collect();
    let earliest = addresses.iter().find_map(|address| address.number())?;
    let pairs = addresses.iter().filter(|address| addresses.contains(&address.plus(FUNCTION)));
    pairs.copied().find_map(|first| {
        if let Some(address) = first.number() {
            let has_earliest = [address, address.wrapping_add(FUNCTION)].contains(&earliest);
            return has_earliest.then_some(TablePlace::Fixed(address.cast_unsigned()));
        }
        let pointer = origins.loaded_from(Value { offset: 0, ..first })?.number()?;
        let pointer = (pointer == earliest).then_some(pointer.cast_unsigned())?;
        Some(TablePlace::Behind { pointer, offset: first.offset })
    })
}
