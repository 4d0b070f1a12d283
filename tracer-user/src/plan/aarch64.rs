//! 64-bit Arm for the finder: decoding, what instructions do, and which of them the kernel simulates.
//!
//! It must not know CPython or what is searched for.

mod branch;
mod code;
mod prologue;
mod step;

pub use code::{Code, Decoded};

use self::branch::Branch;
use super::elf::MappedBytes;
use super::finder::{BranchTargets, InstructionSet, References};

/// The instruction set.
pub struct Aarch64;

impl InstructionSet for Aarch64 {
    type Code<'data> = Code<'data>;

    fn references(range: MappedBytes<'_>, address: u64) -> References {
        let mut found = References::default();
        for (word, here) in words(range) {
            match Branch::of(word, here) {
                Some(Branch::Call(target)) => found.calls += usize::from(target == address),
                Some(Branch::Jump(target) | Branch::Conditional(target)) => {
                    found.jumps += usize::from(target == address);
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
        prologue::cheapest_instruction(range, targets, entry, arguments)
    }
}

/// The instruction words of a stretch of code, with their addresses.
fn words(range: MappedBytes<'_>) -> impl Iterator<Item = (u32, u64)> {
    let (words, _) = range.bytes.as_chunks::<4>();
    words.iter().map(|bytes| u32::from_le_bytes(*bytes)).zip((range.address..).step_by(4))
}
