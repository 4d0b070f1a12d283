//! Which instruction of a function's beginning carries a probe most cheaply on x86-64.
//!
//! Why: a probe on an instruction that the kernel emulates costs a tenth of one on an instruction that it steps, and nearly every
//! function has one among its first few. It must not know which function this is.

use iced_x86::{Code as Opcode, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};

use super::code::Code;
use crate::plan::elf::MappedBytes;
use crate::plan::finder::{BranchTargets, Code as _, Instruction as _};

/// Instructions looked at behind the entry; every glibc and musl function met has a cheap one among the first six.
const PROLOGUE_STEPS: usize = 12;
/// The longest pattern in the kernel's table of nops (arch/x86/include/asm/nops.h, ASM_NOP_MAX, and 11 since 6.4).
const LONGEST_NOP: usize = 8;

/// See `InstructionSet::cheapest_instruction`.
pub fn cheapest_instruction(
    range: MappedBytes<'_>,
    targets: &BranchTargets,
    entry: u64,
    arguments: usize,
) -> u64 {
    let Some(mut code) = Code::new(range) else { return entry };
    let mut information = InstructionInfoFactory::new();
    // The best so far; a long nop is emulated by new kernels only, so the search goes on behind it.
    let mut best = (Price::Stepped, entry);
    let mut address = entry;
    for _ in 0..PROLOGUE_STEPS {
        let Some(instruction) = code.at(address).filter(|found| !found.0.is_invalid()) else { break };
        // Something jumps here: a loop, or another function that shares this tail.
        if address != entry && targets.contains(address) {
            break;
        }
        let emulated_branch = instruction.is_emulated_branch();
        let instruction = instruction.0;
        best = best.min((price(&instruction, emulated_branch, range), address));
        if best.0 == Price::Emulated
            || instruction.flow_control() != FlowControl::Next
            || disturbs(&instruction, arguments, &mut information)
        {
            break;
        }
        address = instruction.next_ip();
    }
    best.1
}

/// What a probe on an instruction costs, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Price {
    /// About 0.5 us: the kernel emulates it.
    Emulated,
    /// As above on kernels that know multi-byte nops (6.18), stepped on older ones.
    EmulatedByNewKernels,
    /// 2 to 10 us: executed out of line.
    Stepped,
}

/// The kernel's rules: arch/x86/kernel/uprobes.c, push_setup_xol_ops() and branch_setup_xol_ops().
fn price(instruction: &Instruction, emulated_branch: bool, range: MappedBytes<'_>) -> Price {
    let bytes = range
        .bytes_from(instruction.ip())
        .and_then(|bytes| bytes.get(..instruction.len()))
        .unwrap_or_default();
    match (instruction.code(), bytes) {
        // push of a general register: one byte, or with the prefix 41 for r8 to r15.
        (Opcode::Push_r64, [0x50..=0x57] | [0x41, 0x50..=0x57]) => Price::Emulated,
        (Opcode::Jmp_rel8_64 | Opcode::Jmp_rel32_64 | Opcode::Call_rel32_64, [0xeb | 0xe9 | 0xe8, ..]) => {
            Price::Emulated
        }
        // nop with any prefixes.
        (_, [prefixes @ .., 0x90]) if prefixes.iter().all(|prefix| *prefix == 0x66) => Price::Emulated,
        (
            Opcode::Nop_rm16 | Opcode::Nop_rm32,
            [.., 0x0f, 0x1f, _] | [0x0f, 0x1f, ..] | [0x66, 0x0f, 0x1f, ..],
        ) if bytes.len() <= LONGEST_NOP => Price::EmulatedByNewKernels,
        _ if emulated_branch && bytes.first() != Some(&0x66) => Price::Emulated,
        _ => Price::Stepped,
    }
}

/// Whether the instruction changes the stack pointer or one of the first arguments, of which there are at most three.
fn disturbs(instruction: &Instruction, arguments: usize, information: &mut InstructionInfoFactory) -> bool {
    let kept = [Register::RSP, Register::RDI, Register::RSI, Register::RDX];
    let kept = &kept[..=arguments.min(3)];
    information.info(instruction).used_registers().iter().any(|used| {
        let writes = !matches!(
            used.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
        );
        writes && kept.contains(&used.register().full_register())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FileOffset;
    use crate::plan::finder::jump_targets;

    const BASE: u64 = 0x1000;

    /// The distance from the entry to the instruction chosen in `code`.
    fn chosen(code: &[u8]) -> u64 {
        let range = MappedBytes { address: BASE, offset: FileOffset(0), bytes: code };
        let targets = jump_targets::<Code<'_>>(range).expect("code to decode");
        cheapest_instruction(range, &targets, BASE, 3) - BASE
    }

    #[test]
    fn takes_a_push_at_the_entry() {
        assert_eq!(chosen(b"\x55\x48\x89\xe5\xc3"), 0, "push rbp; mov rbp,rsp; ret");
        assert_eq!(chosen(b"\x41\x57\xc3"), 0, "push r15; ret");
    }

    #[test]
    fn walks_to_the_first_cheap_instruction() {
        assert_eq!(chosen(b"\xf3\x0f\x1e\xfa\x41\x54\xc3"), 4, "endbr64; push r12");
        assert_eq!(chosen(b"\x48\x85\xff\x74\x02\xc3"), 3, "test rdi,rdi; je");
        assert_eq!(chosen(b"\x48\x85\xff\x0f\x84\x02\0\0\0\xc3"), 3, "test rdi,rdi; je (near)");
        assert_eq!(chosen(b"\x80\x3d\0\0\0\0\0\x53\xc3"), 7, "cmp byte [rip],0; push rbx");
        assert_eq!(chosen(b"\x48\x89\xf8\xe9\0\x01\0\0"), 3, "mov rax,rdi; jmp");
        assert_eq!(chosen(b"\x48\x89\xf8\x66\x90\xc3"), 3, "mov rax,rdi; xchg ax,ax");
    }

    #[test]
    fn prefers_a_push_to_a_long_nop_of_old_kernels() {
        assert_eq!(chosen(b"\xf3\x0f\x1e\xfa\x0f\x1f\x40\0\x53\xc3"), 8, "endbr64; nop; push rbx");
        assert_eq!(chosen(b"\xf3\x0f\x1e\xfa\x0f\x1f\x40\0\xc3"), 4, "endbr64; nop; ret");
    }

    #[test]
    fn stays_at_the_entry_where_arguments_or_stack_change_first() {
        assert_eq!(chosen(b"\x48\x83\xec\x18\x53\xc3"), 0, "sub rsp,24; push rbx");
        assert_eq!(chosen(b"\x48\x89\xf7\x53\xc3"), 0, "mov rdi,rsi; push rbx");
        assert_eq!(chosen(b"\x31\xf6\x53\xc3"), 0, "xor esi,esi; push rbx");
        assert_eq!(chosen(b"\x48\xf7\xe6\x70\x02\xc3"), 0, "mul rsi (changes rdx); jo");
        assert_eq!(chosen(b"\x66\x89\xc2\x53\xc3"), 0, "mov dx,ax; push rbx");
    }

    #[test]
    fn refuses_what_the_kernel_does_not_emulate() {
        assert_eq!(chosen(b"\x6a\x01\xc3"), 0, "push 1");
        assert_eq!(chosen(b"\x48\x89\xf8\xff\x30\xc3"), 0, "mov rax,rdi; push [rax]");
        assert_eq!(chosen(b"\x48\x89\xf8\x48\x55\xc3"), 0, "mov rax,rdi; push rbp with a useless prefix");
        assert_eq!(chosen(b"\x48\x89\xf8\xe3\x01\xc3\xc3"), 0, "mov rax,rdi; jrcxz");
    }

    #[test]
    fn refuses_an_instruction_that_is_jumped_to() {
        assert_eq!(chosen(b"\x48\x89\xf8\x53\xc3\xeb\xfc"), 0, "mov rax,rdi; push rbx; ret; jmp to the push");
    }

    #[test]
    fn survives_code_that_ends() {
        assert_eq!(chosen(b"\x48"), 0);
        assert_eq!(chosen(b""), 0);
    }
}
