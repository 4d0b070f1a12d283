//! The linear sweep: one pass over all code that keeps only what the closer look needs.
//!
//! Why: an interpreter is up to a million instructions; keeping them costs more than decoding them.
//! It must not know what a candidate will turn out to be.

use super::filter::is_promising;
use super::patterns::FREE_BLOCK;
use super::targets::BranchTargets;
use super::walk::{Candidate, LOOK_BACK};
use super::{Code, Flow, Instruction as _};
use crate::plan::elf::MappedBytes;

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
pub fn sweep<'data, C: Code<'data>>(range: MappedBytes<'data>) -> Option<Sweep> {
    let mut code = C::new(range)?;
    let mut ahead = C::new(range)?;
    let targets = BranchTargets::new(range);
    let mut found = Sweep { candidates: Vec::new(), ones: Vec::new(), targets, is_cut: false, loads: 0 };
    let mut recent = Recent::default();
    let mut instruction = C::Instruction::default();
    while code.next_into(&mut instruction) {
        recent.push(instruction.address());
        let flow = instruction.flow();
        match flow {
            Flow::Next => {
                look(&instruction, &mut ahead, &recent, &mut found);
                recent.ones = instruction.ones_after(recent.ones);
            }
            Flow::Conditional(target) => found.targets.extend(target),
            Flow::Jump(_) | Flow::End => {
                found.targets.extend(flow.target());
                recent.clear();
            }
        }
    }
    Some(found)
}

fn look<'data, C: Code<'data>>(
    instruction: &C::Instruction,
    ahead: &mut C,
    recent: &Recent,
    found: &mut Sweep,
) {
    for load in instruction.loads().into_iter().flatten() {
        if load.displacement != FREE_BLOCK || load.base == C::STACK_POINTER {
            continue;
        }
        found.loads += 1;
        found.is_cut |= found.loads > MOST_LOADS || found.candidates.len() >= MOST_CANDIDATES;
        if !found.is_cut && is_promising(ahead, instruction, load.register) {
            found.candidates.push(Candidate { start: recent.oldest(), load: instruction.address() });
        }
    }
    if instruction.stores_one(recent.ones) && found.ones.len() < MOST_CANDIDATES {
        found.ones.push(instruction.address());
    }
}

/// The addresses of the last instructions that ran into each other.
#[derive(Default)]
struct Recent {
    addresses: [u64; LOOK_BACK],
    count: usize,
    /// Registers that hold the number 1.
    ones: u32,
}

impl Recent {
    fn push(&mut self, address: u64) {
        self.addresses[self.count % LOOK_BACK] = address;
        self.count += 1;
    }

    fn clear(&mut self) {
        self.count = 0;
        self.ones = 0;
    }

    fn oldest(&self) -> u64 {
        let oldest = if self.count <= LOOK_BACK { 0 } else { self.count % LOOK_BACK };
        self.addresses[oldest]
    }
}
