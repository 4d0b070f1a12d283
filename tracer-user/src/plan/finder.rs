//! The finder: from an ELF file to the places where blocks leave and enter pymalloc's pools.
//!
//! Why: optimised interpreters carry up to 254 inlined copies of the allocator's fast path, without symbols; only the data flow tells.
//! One linear sweep picks candidates, the walk proves them. It is the same for all instruction sets: what an instruction does to a
//! symbolic machine is said by `x86` and `aarch64`. It must not know processes or probes, nor which interpreter this is.

mod cold;
mod filter;
pub mod machine;
mod mimalloc;
mod patterns;
mod sweep;
mod targets;
pub mod value;
mod walk;

pub use cold::ColdSite;
pub use mimalloc::{PageFindings, PageSite, find_pages};
pub use targets::BranchTargets;
pub use walk::{Site, Verdict};

use self::machine::Machine;
use self::sweep::{Sweep, sweep};
use self::value::Value;
use self::walk::Walker;
use super::elf::{Elf, MappedBytes};

/// Places that open pools: 1 or 2 in gcc's builds, 4 in clang's. Each costs a scan of the file.
const MOST_COLD_SITES: usize = 64;

/// Where an instruction leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// To the next one.
    Next,
    /// To the next one, or to the target if it is a direct one.
    Conditional(Option<u64>),
    /// To the target if it is a direct one, and never to the next.
    Jump(Option<u64>),
    /// Elsewhere (calls, returns, traps), or it is no instruction.
    End,
}

impl Flow {
    /// The target of a direct jump, conditional or not.
    pub fn target(self) -> Option<u64> {
        match self {
            Self::Conditional(target) | Self::Jump(target) => target,
            Self::Next | Self::End => None,
        }
    }
}

/// Eight bytes moved between a register and `[base + displacement]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The register that is loaded or stored.
    pub register: u8,
    /// The register that holds the address.
    pub base: u8,
    /// What is added to it.
    pub displacement: i64,
}

/// Up to two [`Transfer`]s of one instruction, lowest address first (arm64 loads and stores pairs).
pub type Transfers = [Option<Transfer>; 2];

/// A decoded instruction, as far as the finder asks about one. Registers are hardware numbers, sets of them have bit n for number n.
pub trait Instruction: Default + Copy {
    /// Its address.
    fn address(&self) -> u64;
    /// The address behind it.
    fn next_address(&self) -> u64;
    /// Where it leads.
    fn flow(&self) -> Flow;
    /// Whether the kernel emulates this conditional branch instead of stepping it out of line.
    fn is_emulated_branch(&self) -> bool;
    /// Its 64-bit loads.
    fn loads(&self) -> Transfers;
    /// Its 64-bit stores.
    fn stores(&self) -> Transfers;
    /// Which registers hold a value (perhaps plus a constant) after the instruction, if `holders` held it before and it is not in memory.
    fn holders_after(&self, holders: u32) -> u32;
    /// Which registers are known to hold the number 1 after it, if `ones` did before. For sets that must store 1 from a register.
    fn ones_after(&self, ones: u32) -> u32;
    /// Whether it stores the 32-bit number 1 to `[register]`, other than the stack pointer.
    fn stores_one(&self, ones: u32) -> bool;
    /// The constant of a bitwise "and" of a whole register with one; none for anything else, and where the set's own code cannot tell.
    fn mask(&self) -> Option<i64>;
    /// The value of its memory operand's address.
    fn memory_address(&self, machine: &Machine) -> Option<Value>;
}

/// Decodes and executes the instructions of one stretch of code.
pub trait Code<'data>: Sized {
    /// What it decodes.
    type Instruction: Instruction;
    /// The stack pointer's number.
    const STACK_POINTER: u8;

    /// A decoder over `range`; none if it cannot be decoded.
    fn new(range: MappedBytes<'data>) -> Option<Self>;
    /// Moves to `address`; false if it lies outside.
    fn seek(&mut self, address: u64) -> bool;
    /// Decodes the next instruction into `into`, valid or not; false at the end of the stretch.
    fn next_into(&mut self, into: &mut Self::Instruction) -> bool;
    /// Executes one instruction that does not branch.
    fn execute(&mut self, instruction: &Self::Instruction, machine: &mut Machine);

    /// The instruction at `address`; none outside the stretch.
    fn at(&mut self, address: u64) -> Option<Self::Instruction> {
        let mut instruction = Self::Instruction::default();
        (self.seek(address) && self.next_into(&mut instruction)).then_some(instruction)
    }
}

/// An instruction set.
pub trait InstructionSet {
    /// Its decoder.
    type Code<'data>: Code<'data>;

    /// How many direct calls and jumps in `range` lead to `address`.
    fn references(range: MappedBytes<'_>, address: u64) -> References;

    /// The cheapest instruction that every call of the function at `entry` passes once, with its first `arguments` arguments (at most
    /// three), the stack and the return address as at the entry; none if the kernel takes a probe on none. `targets` must know every
    /// direct jump of the stretch.
    fn cheapest_instruction(
        range: MappedBytes<'_>,
        targets: &BranchTargets,
        entry: u64,
        arguments: usize,
    ) -> Option<u64>;
}

/// Direct calls and jumps to an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct References {
    /// Calls.
    pub calls: usize,
    /// Jumps, conditional or not, from elsewhere.
    pub jumps: usize,
}

/// Everything the finder saw, before it is turned into a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Pops and pushes, proven or not, sorted by branch, no two alike.
    pub sites: Vec<Site>,
    /// Places that open pools.
    pub cold_sites: Vec<ColdSite>,
    /// Whether the file has more candidates than are looked at: sites may be missing.
    pub is_cut: bool,
}

/// Searches all code of `elf`.
pub fn find<Set: InstructionSet>(elf: &Elf<'_>) -> Findings {
    let mut findings = Findings::default();
    for range in elf.code() {
        search::<Set::Code<'_>>(range, &mut findings);
    }
    findings.sites.sort_by_key(|site| (site.branch, site.store));
    findings.sites.dedup();
    findings.cold_sites.sort_by_key(|site| site.store);
    findings.is_cut |= findings.cold_sites.len() > MOST_COLD_SITES;
    findings.cold_sites.truncate(MOST_COLD_SITES);
    findings
}

fn search<'data, C: Code<'data>>(range: MappedBytes<'data>, findings: &mut Findings) {
    let (Some(swept), Some(mut code)) = (sweep::<C>(range), C::new(range)) else { return };
    let Sweep { candidates, ones, targets, is_cut, .. } = swept;
    findings.is_cut |= is_cut;
    findings
        .cold_sites
        .extend(ones.into_iter().filter_map(|store| cold::examine(&mut code, &targets, store)));
    let mut walker = Walker::new(&mut code, &targets);
    for candidate in candidates {
        let mut sites = walker.walk(candidate);
        // What came before the load may hide an operation (a value known from a store is no load): look without it too.
        if !sites.iter().any(|site| matches!(site.verdict, Verdict::Proven(_)))
            && candidate.start != candidate.load
        {
            let alone = walker.walk(walk::Candidate { start: candidate.load, ..candidate });
            if alone.iter().any(|site| matches!(site.verdict, Verdict::Proven(_))) || sites.is_empty() {
                sites = alone;
            }
        }
        findings.sites.extend(sites);
    }
}

/// Every direct jump of a stretch of code; none if it cannot be decoded.
pub fn jump_targets<'data, C: Code<'data>>(range: MappedBytes<'data>) -> Option<BranchTargets> {
    let mut code = C::new(range)?;
    let mut targets = BranchTargets::new(range);
    let mut instruction = C::Instruction::default();
    while code.next_into(&mut instruction) {
        targets.extend(instruction.flow().target());
    }
    Some(targets)
}

/// Counts the direct calls and jumps that lead to `address`.
pub fn references<Set: InstructionSet>(elf: &Elf<'_>, address: u64) -> References {
    elf.code().into_iter().fold(References::default(), |sum, range| {
        let found = Set::references(range, address);
        References { calls: sum.calls + found.calls, jumps: sum.jumps + found.jumps }
    })
}
