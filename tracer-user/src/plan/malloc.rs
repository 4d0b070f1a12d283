//! Probe points of the C library's allocator family.
//!
//! It must not know Python, nor which library this is: any file that exports the names will do. Nor instructions: which one of a
//! function's beginning carries the probe is the instruction set's business.

use super::elf::Elf;
use super::finder::{InstructionSet, jump_targets};
use super::{MallocFunction, Plan, Point, PointKind};

/// Names and what they are. Aliases keep the first name that a file exports, so the usual one comes first.
const FAMILY: [(&str, MallocFunction); 10] = [
    ("malloc", MallocFunction::Malloc),
    ("calloc", MallocFunction::Calloc),
    ("realloc", MallocFunction::Realloc),
    ("reallocarray", MallocFunction::ReallocArray),
    ("free", MallocFunction::Free),
    ("posix_memalign", MallocFunction::PosixMemalign),
    ("aligned_alloc", MallocFunction::AlignedAlloc),
    ("memalign", MallocFunction::Memalign),
    ("valloc", MallocFunction::Valloc),
    ("pvalloc", MallocFunction::Pvalloc),
];

/// Plans the functions of the family that a file exports.
pub fn plan_malloc<Set: InstructionSet>(elf: &Elf<'_>) -> Plan {
    let ranges: Vec<_> = elf.code();
    let mut entries: Vec<(u64, MallocFunction)> = Vec::new();
    for (name, function) in FAMILY {
        if let Some(symbol) = elf.symbol(name)
            && !entries.iter().any(|(address, _)| *address == symbol.address)
        {
            entries.push((symbol.address, function));
        }
    }
    let mut points = Vec::new();
    for range in ranges {
        let inside: Vec<_> = entries.iter().filter(|(address, _)| range.contains(*address)).collect();
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
