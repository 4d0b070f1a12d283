//! Which instruction of a function's beginning carries a probe most cheaply on arm64.
//!
//! Why: a probe on an instruction that the kernel simulates costs a fraction of one that is stepped out of line. Where none comes soon
//! enough the entry carries it; that is often `bti c` or `paciasp`, which the kernel steps. A return probe replaces x30, so the probe
//! must come before x30 is saved or signed: behind that, the change would be lost or would break the check of the signature.
//! It must not know which function this is.

use yaxpeax_arm::armv8::a64::{Opcode, Operand};

use super::branch::Branch;
use super::code::{Code, Decoded, written};
use crate::plan::elf::MappedBytes;
use crate::plan::finder::{BranchTargets, Code as _, Flow, Instruction as _};

/// Instructions looked at behind the entry.
const PROLOGUE_STEPS: usize = 12;
const RETURN_ADDRESS: u16 = 30;

/// What a probe on an instruction costs, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Price {
    Simulated,
    Stepped,
}

/// See `InstructionSet::cheapest_instruction`.
pub fn cheapest_instruction(
    range: MappedBytes<'_>,
    targets: &BranchTargets,
    entry: u64,
    arguments: usize,
) -> Option<u64> {
    // x0 and the following, the return address and the stack pointer.
    let kept = ((1 << arguments.min(3)) - 1) | 1 << RETURN_ADDRESS | 1 << 31;
    let mut code = Code::new(range)?;
    let mut best: Option<(Price, u64)> = None;
    let mut address = entry;
    for _ in 0..PROLOGUE_STEPS {
        let Some(instruction) = code.at(address) else { break };
        // Something jumps here: a loop, or another function that shares this tail.
        if address != entry && targets.contains(address) {
            break;
        }
        let found = price(&instruction).map(|price| (price, address));
        best = [best, found].into_iter().flatten().min();
        let simulated = matches!(best, Some((Price::Simulated, _)));
        if simulated || instruction.flow() != Flow::Next || disturbs(&instruction, kept) {
            break;
        }
        address = instruction.next_address();
    }
    best.map(|(_, address)| address)
}

/// None where the kernel refuses a probe (arch/arm64/kernel/probes/decode-insn.c), or where it would be of no use.
fn price(instruction: &Decoded) -> Option<Price> {
    match Branch::of(instruction.word, instruction.address) {
        // A call overwrites x30, and what a return probe put there with it.
        Some(Branch::Call(_) | Branch::IndirectCall) => None,
        Some(_) => Some(Price::Simulated),
        None => is_steppable(instruction.word).then_some(Price::Stepped),
    }
}

/// aarch64_insn_is_steppable(): no branches, exceptions, `msr`, no `mrs` of DAIF, few hints, no literals, no exclusive accesses.
fn is_steppable(word: u32) -> bool {
    let is = |mask: u32, value: u32| word & mask == value;
    let literal = is(0x3b00_0000, 0x1800_0000);
    let exclusive = is(0x3f00_0000, 0x0800_0000);
    if !is(0x1c00_0000, 0x1400_0000) {
        return !literal && !exclusive;
    }
    let hint = is(0xffff_f01f, 0xd503_201f);
    let steppable_hint = matches!(word >> 5 & 0x7f, 0 | 7 | 8 | 10 | 24..=27 | 32 | 34 | 36 | 38);
    // System instructions; `msr` has bit 21 clear and writes, DAIF is not read by programs.
    is(0xff00_0000, 0xd500_0000) && if hint { steppable_hint } else { is(0xfff0_0000, 0xd530_0000) }
}

/// Whether an argument, the stack pointer or the return address is changed, or the latter is put away.
fn disturbs(instruction: &Decoded, kept: u32) -> bool {
    let Some(known) = instruction.known else { return true };
    let names_return_address = known.operands.iter().any(|operand| match *operand {
        Operand::Register(_, number)
        | Operand::RegisterOrSP(_, number)
        | Operand::RegShift(_, _, _, number) => number == RETURN_ADDRESS,
        _ => false,
    });
    // Between an exclusive load and its store no trap may come: the store would fail for ever.
    let exclusive =
        instruction.word & 0x3f00_0000 == 0x0800_0000 && !matches!(known.opcode, Opcode::LDAR | Opcode::STLR);
    names_return_address || exclusive || written(instruction) & kept != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FileOffset;
    use crate::plan::finder::jump_targets;

    const BASE: u64 = 0x1000;
    const BTI: u32 = 0xd503_245f; // bti c
    const PACIASP: u32 = 0xd503_233f;
    const PUSH_FRAME: u32 = 0xa9be_7bfd; // stp x29, x30, [sp, #-32]!
    const CBZ_X0: u32 = 0xb400_0040; // cbz x0, .+8
    const COPY_TO_X2: u32 = 0xaa00_03e2; // mov x2, x0
    const RET: u32 = 0xd65f_03c0;

    /// Index of the instruction that is chosen for a function with that many arguments.
    fn chosen(arguments: usize, words: &[u32]) -> Option<u64> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let range = MappedBytes { address: BASE, offset: FileOffset(0), bytes: &bytes };
        let targets = jump_targets::<Code<'_>>(range).expect("code to decode");
        cheapest_instruction(range, &targets, BASE, arguments).map(|address| (address - BASE) / 4)
    }

    #[test]
    fn walks_to_the_first_simulated_instruction() {
        assert_eq!(chosen(1, &[CBZ_X0, RET]), Some(0), "free of glibc 2.36");
        assert_eq!(chosen(1, &[BTI, CBZ_X0, RET]), Some(1), "free of glibc 2.41");
        assert_eq!(chosen(1, &[0x1400_0400, RET]), Some(0), "malloc of musl: b .+4096");
        assert_eq!(
            chosen(1, &[BTI, COPY_TO_X2, 0xb7f8_0040, RET]),
            Some(2),
            "malloc of glibc 2.43: tbnz x0, #63"
        );
        assert_eq!(chosen(1, &[BTI, 0x9000_0004, RET]), Some(1), "adrp x4");
    }

    #[test]
    fn stays_at_the_entry_where_what_the_programs_read_changes_first() {
        assert_eq!(chosen(1, &[PUSH_FRAME, CBZ_X0, RET]), Some(0), "the stack pointer");
        assert_eq!(chosen(3, &[BTI, COPY_TO_X2, CBZ_X0, RET]), Some(0), "the third argument");
        assert_eq!(chosen(2, &[BTI, 0x9bc1_7c00, CBZ_X0, RET]), Some(0), "umulh x0, x0, x1");
    }

    #[test]
    fn stays_before_the_return_address_is_signed_or_put_away() {
        assert_eq!(chosen(1, &[PACIASP, CBZ_X0, RET]), Some(0), "paciasp");
        assert_eq!(chosen(1, &[BTI, 0xaa1e_03e9, CBZ_X0, RET]), Some(0), "mov x9, x30");
        assert_eq!(chosen(1, &[BTI, 0xf900_041e, CBZ_X0, RET]), Some(0), "str x30, [x0, #8]");
        assert_eq!(chosen(1, &[BTI, 0x9400_0002, RET, RET]), Some(0), "bl");
    }

    #[test]
    fn stays_out_of_exclusive_sequences() {
        assert_eq!(chosen(1, &[BTI, 0x885f_fc83, CBZ_X0, RET]), Some(0), "ldaxr w3, [x4]");
    }

    #[test]
    fn refuses_an_instruction_that_is_jumped_to() {
        assert_eq!(chosen(1, &[BTI, CBZ_X0, RET, 0x17ff_fffe]), Some(0), "b .-8 at the end");
    }

    #[test]
    fn knows_what_the_kernel_refuses() {
        assert_eq!(
            chosen(1, &[0x5800_0041, RET]),
            Some(1),
            "ldr x1, .+8: the entry cannot carry a probe, ret can"
        );
        assert_eq!(chosen(1, &[0xd420_0000]), None, "brk #0");
        assert_eq!(chosen(1, &[0xd503_203f, PACIASP]), Some(1), "yield");
    }

    #[test]
    fn survives_code_that_ends() {
        assert_eq!(chosen(1, &[]), None);
        assert_eq!(chosen(1, &[BTI]), Some(0));
    }
}
