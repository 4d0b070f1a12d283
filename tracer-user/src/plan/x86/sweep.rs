//! The linear sweep: one pass over all code that keeps only what the closer look needs.
//!
//! Why: an interpreter is up to a million instructions; keeping them costs more than decoding them.
//! It must not know what a candidate will turn out to be.

use iced_x86::{Code as Opcode, FlowControl, Instruction, OpKind};

use super::code::{Address, Code, jump_target, plain_address, plain_load64};
use super::filter::is_promising;
use super::patterns::FREE_BLOCK;
use super::targets::BranchTargets;
use super::walk::{Candidate, LOOK_BACK};
use crate::plan::elf::MappedBytes;

const STACK_POINTER: u8 = 4;
/// Loads of `[P+8]` that are looked at in one file. Interpreters have some 40 thousand; this bounds the time a hostile file can take.
const MOST_LOADS: usize = 4 << 20;
/// Candidates kept of each sort. Interpreters have about 500, a browser of 236 MB has 22 thousand.
const MOST_CANDIDATES: usize = 1 << 16;

/// What a sweep leaves.
pub struct Sweep {
    /// Loads of `[P+8]` that may belong to a pop or a push.
    pub candidates: Vec<Candidate>,
    /// Stores of the 32-bit number 1 to `[P]`: a pool may be opened there.
    pub ones: Vec<u64>,
    /// Every address that a direct jump leads to.
    pub targets: BranchTargets,
    /// Whether a limit was met and the rest left out.
    pub is_cut: bool,
    loads: usize,
}

/// Decodes all of `range`; none if it cannot be decoded at all.
pub fn sweep(range: MappedBytes<'_>) -> Option<Sweep> {
    let mut code = Code::new(range)?;
    let mut ahead = Code::new(range)?;
    let targets = BranchTargets::new(range);
    let mut found = Sweep { candidates: Vec::new(), ones: Vec::new(), targets, is_cut: false, loads: 0 };
    let mut recent = Recent::default();
    let mut instruction = Instruction::default();
    while code.next_into(&mut instruction) {
        recent.push(instruction.ip());
        match instruction.flow_control() {
            FlowControl::Next => look(&instruction, &mut ahead, &recent, &mut found),
            FlowControl::ConditionalBranch => found.targets.extend(jump_target(&instruction)),
            _ => {
                found.targets.extend(jump_target(&instruction));
                recent.clear();
            }
        }
    }
    Some(found)
}

fn look(instruction: &Instruction, ahead: &mut Code<'_>, recent: &Recent, found: &mut Sweep) {
    match instruction.code() {
        Opcode::Mov_r64_rm64 => {
            let Some((destination, base, FREE_BLOCK)) = plain_load64(instruction) else { return };
            if base == STACK_POINTER {
                return;
            }
            found.loads += 1;
            found.is_cut |= found.loads > MOST_LOADS || found.candidates.len() >= MOST_CANDIDATES;
            if !found.is_cut && is_promising(ahead, instruction, destination) {
                found.candidates.push(Candidate { start: recent.oldest(), load: instruction.ip() });
            }
        }
        Opcode::Mov_rm32_imm32
            if instruction.immediate32() == 1 && instruction.op0_kind() == OpKind::Memory =>
        {
            let opens = matches!(plain_address(instruction), Some(Address::Register(base, 0)) if base != STACK_POINTER);
            if opens && found.ones.len() < MOST_CANDIDATES {
                found.ones.push(instruction.ip());
            }
        }
        _ => {}
    }
}

/// The addresses of the last instructions that ran into each other.
#[derive(Default)]
struct Recent {
    addresses: [u64; LOOK_BACK],
    count: usize,
}

impl Recent {
    fn push(&mut self, address: u64) {
        self.addresses[self.count % LOOK_BACK] = address;
        self.count += 1;
    }

    fn clear(&mut self) {
        self.count = 0;
    }

    fn oldest(&self) -> u64 {
        let oldest = if self.count <= LOOK_BACK { 0 } else { self.count % LOOK_BACK };
        self.addresses[oldest]
    }
}
