//! What a pop and a push of pymalloc look like as data flow.
//!
//! Why: gcc and clang copy `pymalloc_alloc` and `pymalloc_free` (CPython, Objects/obmalloc.c) into their callers and reorder them
//! freely, but both must do the same loads and stores on the pool header: `count` at +0, `freeblock` at +8.
//! - pop: `R = [P+8]; T = [R]; [P+8] = T; count += 1`
//! - push: `L = [P+8]; [X] = L; [P+8] = X; count -= 1`
//!
//! It must not know how the path was found. Stores through one pointer are taken not to change what another pointer of another
//! origin sees: a free block is not a pool header, and the compiler assumed the same when it ordered these accesses.

use super::machine::{Machine, Store};
use super::value::{Definition, Value};
use crate::plan::{Operand, Register};

/// Offset of `freeblock` in `struct pool_header`, 3.8 to 3.15.
pub const FREE_BLOCK: i64 = 8;
/// Offset of `szidx`.
pub const SIZE_INDEX: i64 = 0x24;
/// Size of the header: the first block of a fresh pool lies here.
pub const HEADER_SIZE: i8 = 0x30;

/// A recognised operation on a pool, as values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The free list's head was taken.
    Pop {
        /// The block.
        block: Value,
        /// The pool header.
        pool: Value,
    },
    /// A block became the free list's head.
    Push {
        /// The block.
        block: Value,
        /// The pool header.
        pool: Value,
    },
}

impl Operation {
    /// The pool header.
    pub fn pool(self) -> Value {
        match self {
            Self::Pop { pool, .. } | Self::Push { pool, .. } => pool,
        }
    }

    /// What the operation adds to the pool's counter of blocks in use.
    pub fn count_change(self) -> i64 {
        match self {
            Self::Pop { .. } => 1,
            Self::Push { .. } => -1,
        }
    }
}

/// The operation that one of the stores from number `first` on completes, if one does.
pub fn completed(machine: &Machine, first: usize) -> Option<Operation> {
    (first..machine.stores().len()).find_map(|number| completed_by(machine, number))
}

fn completed_by(machine: &Machine, number: usize) -> Option<Operation> {
    let (newest, earlier) = machine.stores().get(..=number)?.split_last()?;
    (newest.size == 8).then(|| pop(machine, newest).or_else(|| push(machine, newest, earlier))).flatten()
}

/// `[P+8] = T` where `T = [R]` and `R = [P+8]`.
fn pop(machine: &Machine, newest: &Store) -> Option<Operation> {
    let block = machine.origins().loaded_from(newest.value)?;
    let head = machine.origins().loaded_from(block)?;
    (head == newest.address).then(|| Operation::Pop { block, pool: head.plus(-FREE_BLOCK) })
}

/// `[X] = L` and `[P+8] = X` in either order, where `L = [P+8]`.
fn push(machine: &Machine, newest: &Store, earlier: &[Store]) -> Option<Operation> {
    let wide = earlier.iter().rev().filter(|store| store.size == 8);
    let mut pairs = wide.flat_map(|store| [(store, newest), (newest, store)]);
    pairs.find_map(|(link, head)| {
        let linked = machine.origins().loaded_from(link.value)? == head.address;
        let (block, pool) = (head.value, head.address.plus(-FREE_BLOCK));
        let same = link.address == block || pool_size(machine, pool, block).is_some();
        (linked && same && link.address != head.address).then_some(Operation::Push { block, pool })
    })
}

/// The pool size, where the code shows the pool as the block with its low bits cleared (POOL_ADDR in obmalloc.c).
pub fn pool_size(machine: &Machine, pool: Value, block: Value) -> Option<u64> {
    match machine.origins().definition(pool) {
        Definition::Masked { of, mask } if of == block && pool.offset == 0 => {
            let size = mask.checked_neg()?.cast_unsigned();
            (size.is_power_of_two() && (0x1000..=0x10_0000).contains(&size)).then_some(size)
        }
        _ => None,
    }
}

/// Whether the pool's 32-bit counter has been changed by `change` on this path.
pub fn has_counted(machine: &Machine, pool: Value, change: i64) -> bool {
    has_changed(machine, Definition::Load32(pool), change)
}

/// Whether what was loaded from a 32- or 16-bit counter has been written back there, changed by `change`.
pub fn has_changed(machine: &Machine, counter: Definition, change: i64) -> bool {
    let (place, size) = match counter {
        Definition::Load32(place) => (place, 4),
        Definition::Load16(place) => (place, 2),
        _ => return false,
    };
    machine.stores().iter().any(|store| {
        store.size == size
            && store.address == place
            && machine.origins().definition(store.value) == counter
            && store.value.offset == change
    })
}

/// A register that holds `value`, or `value` less a small constant; the exact one where there is a choice.
pub fn find_operand(machine: &Machine, value: Value) -> Option<Operand> {
    let held = machine.registers().filter(|(_, held)| held.origin == value.origin);
    held.filter_map(|(number, held)| {
        let displacement = i8::try_from(value.offset.wrapping_sub(held.offset)).ok()?;
        Some(Operand { register: Register(number), displacement })
    })
    .min_by_key(|operand| (operand.displacement.unsigned_abs(), operand.register))
}

/// An address at which the eight bytes of `value` are known to be in memory.
pub fn find_cell(machine: &Machine, value: Value) -> Option<Operand> {
    let holders = machine.cells().iter().filter(|cell| cell.size == 8 && cell.value == value);
    holders.filter_map(|cell| find_operand(machine, cell.address)).min()
}

/// A register that holds exactly `value`.
pub fn find_register(machine: &Machine, value: Value) -> Option<Register> {
    find_operand(machine, value).filter(|operand| operand.displacement == 0).map(|operand| operand.register)
}
