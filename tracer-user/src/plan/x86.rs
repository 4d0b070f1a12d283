//! x86-64 for the finder: decoding, what instructions do, and which of them the kernel emulates.
//!
//! It must not know CPython or what is searched for.

mod code;
mod prologue;
mod step;

pub use code::Code;

use super::elf::MappedBytes;
use super::finder::{BranchTargets, InstructionSet, References};

/// The instruction set.
pub struct X86;

impl InstructionSet for X86 {
    type Code<'data> = Code<'data>;

    /// A scan for 32-bit displacements, which needs no decoding: a chance match is one in four billion a byte.
    fn references(range: MappedBytes<'_>, address: u64) -> References {
        let mut found = References::default();
        for (position, window) in range.bytes.windows(6).enumerate() {
            let &[first, second, ref rest @ ..] = window else { continue };
            let near = i32::from_le_bytes([second, rest[0], rest[1], rest[2]]);
            let here = range.address.wrapping_add(position as u64);
            match first {
                0xe8 if here.wrapping_add(5).wrapping_add_signed(near.into()) == address => found.calls += 1,
                0xe9 if here.wrapping_add(5).wrapping_add_signed(near.into()) == address => found.jumps += 1,
                0x0f if second & 0xf0 == 0x80 => {
                    let far = i32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
                    found.jumps +=
                        usize::from(here.wrapping_add(6).wrapping_add_signed(far.into()) == address);
                }
                _ => {}
            }
        }
        found
    }

    fn cheapest_instruction(
        range: MappedBytes<'_>,
        targets: &BranchTargets,
        entry: u64,
        arguments: usize,
    ) -> Option<u64> {
        Some(prologue::cheapest_instruction(range, targets, entry, arguments))
    }
}
