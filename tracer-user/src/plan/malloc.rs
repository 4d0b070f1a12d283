//! Probe points of an allocator's functions: the C library's, or those of a library or program that has one of its own.
//!
//! It must not know Python, nor which library this is: any file that has the names will do. Nor instructions: which one of a
//! function's beginning carries the probe is the instruction set's business.

mod family;

pub use family::Families;

use super::elf::{Elf, MappedBytes};
use super::finder::{Code as _, Flow, Instruction as _, InstructionSet, jump_targets};
use super::{MallocFunction, Plan, Point, PointKind};

/// What a compiler may put before the first instruction for indirect calls: `endbr64`, `bti c`.
const LANDING_PADS: [[u8; 4]; 2] = [[0xf3, 0x0f, 0x1e, 0xfa], [0x5f, 0x24, 0x03, 0xd5]];

/// Plans the allocators that a file defines.
pub fn plan_malloc<Set: InstructionSet>(elf: &Elf<'_>) -> Plan {
    let entries = entries(elf);
    let mut points = Vec::new();
    for range in elf.code() {
        let inside: Vec<_> = entries
            .iter()
            .filter(|(address, _)| range.contains(*address) && !is_alias::<Set>(range, *address, &entries))
            .collect();
        let targets = if inside.is_empty() { None } else { jump_targets::<Set::Code<'_>>(range) };
        let Some(targets) = targets else { continue };
        for (entry, function) in inside {
            let chosen = Set::cheapest_instruction(range, &targets, *entry, arguments(*function));
            let offset = chosen.and_then(|address| elf.offset_of(address));
            points.extend(offset.map(|offset| Point { offset, kind: PointKind::Malloc(*function) }));
        }
    }
    points.sort_by_key(|point| point.offset);
    // A function that falls into another could share its point; one offset carries one meaning.
    points.dedup_by_key(|point| point.offset);
    Plan { points }
}

/// Where functions begin, and what they are; each address once, under the most usual of its names.
fn entries(elf: &Elf<'_>) -> Vec<(u64, MallocFunction)> {
    let mut families = Families::default();
    let mut found = Vec::new();
    for (name, symbol) in elf.definitions() {
        families.take(name);
        found.extend(family::named(name).map(|named| (symbol.address, named)));
    }
    found.retain(|(_, named)| families.include(*named));
    found.sort_by_key(|(address, named)| (*address, named.rank));
    found.dedup_by_key(|(address, _)| *address);
    found.into_iter().map(|(address, named)| (address, named.function)).collect()
}

/// Whether the function is nothing but a jump to another one of these, which counts the call anyway. A jump through the table of
/// imports (`operator delete` to `free` in jemalloc) may lead anywhere, and stays.
fn is_alias<Set: InstructionSet>(
    range: MappedBytes<'_>,
    entry: u64,
    entries: &[(u64, MallocFunction)],
) -> bool {
    let has_pad =
        range.bytes_from(entry).is_some_and(|bytes| LANDING_PADS.iter().any(|pad| bytes.starts_with(pad)));
    let start = if has_pad { entry + 4 } else { entry };
    let first = Set::Code::new(range).and_then(|mut code| code.at(start));
    let Some(Flow::Jump(Some(target))) = first.map(|instruction| instruction.flow()) else { return false };
    target != entry && entries.binary_search_by_key(&target, |(address, _)| *address).is_ok()
}

/// How many arguments the function has.
fn arguments(function: MallocFunction) -> usize {
    match function {
        MallocFunction::Malloc | MallocFunction::Free | MallocFunction::Valloc | MallocFunction::Pvalloc => 1,
        MallocFunction::Calloc
        | MallocFunction::Realloc
        | MallocFunction::AlignedAlloc
        | MallocFunction::Memalign => 2,
        MallocFunction::ReallocArray | MallocFunction::PosixMemalign => 3,
    }
}
