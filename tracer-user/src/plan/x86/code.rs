//! Reading instructions: decoding at any address, and small questions about one instruction.
//!
//! Why: the finder wants registers by number and addresses as "register plus constant"; iced's operands are turned into that here.
//! It must not know patterns.

use iced_x86::{
    Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpKind, Register,
};

use super::step::{STACK_POINTER, step};
use crate::plan::elf::MappedBytes;
use crate::plan::finder::machine::Machine;
use crate::plan::finder::value::Value;
use crate::plan::finder::{self, Flow, Transfer, Transfers};

/// Decodes instructions of one stretch of code at any address.
pub struct Code<'data> {
    range: MappedBytes<'data>,
    decoder: Decoder<'data>,
    information: InstructionInfoFactory,
}

impl<'data> finder::Code<'data> for Code<'data> {
    type Instruction = Decoded;
    const STACK_POINTER: u8 = STACK_POINTER;

    fn new(range: MappedBytes<'data>) -> Option<Self> {
        let decoder = Decoder::try_with_ip(64, range.bytes, range.address, DecoderOptions::NONE).ok()?;
        Some(Self { range, decoder, information: InstructionInfoFactory::new() })
    }

    fn seek(&mut self, address: u64) -> bool {
        let position = address.checked_sub(self.range.address).and_then(|skip| usize::try_from(skip).ok());
        let moved = position.is_some_and(|position| {
            position < self.range.bytes.len() && self.decoder.set_position(position).is_ok()
        });
        if moved {
            self.decoder.set_ip(address);
        }
        moved
    }

    fn next_into(&mut self, into: &mut Decoded) -> bool {
        let more = self.decoder.can_decode();
        if more {
            self.decoder.decode_out(&mut into.0);
        }
        more
    }

    fn execute(&mut self, instruction: &Decoded, machine: &mut Machine) {
        step(machine, &instruction.0, &mut self.information);
    }
}

/// One instruction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decoded(pub Instruction);

impl finder::Instruction for Decoded {
    fn address(&self) -> u64 {
        self.0.ip()
    }

    fn next_address(&self) -> u64 {
        self.0.next_ip()
    }

    fn flow(&self) -> Flow {
        let target = || (self.0.op0_kind() == OpKind::NearBranch64).then(|| self.0.near_branch_target());
        match self.0.flow_control() {
            FlowControl::Next => Flow::Next,
            FlowControl::ConditionalBranch => Flow::Conditional(target()),
            FlowControl::UnconditionalBranch => Flow::Jump(target()),
            // An invalid instruction is an exception, too.
            _ => Flow::End,
        }
    }

    /// arch/x86/kernel/uprobes.c, branch_setup_xol_ops(): opcodes 70..7f and 0f 80..8f without a 66 prefix. `jrcxz` and `loop` are stepped.
    fn is_emulated_branch(&self) -> bool {
        self.0.is_jcc_short_or_near() && self.flow().target().is_some()
    }

    fn loads(&self) -> Transfers {
        let load = self.0.code() == Opcode::Mov_r64_rm64 && self.0.op1_kind() == OpKind::Memory;
        [load.then(|| self.transfer(self.0.op0_register())).flatten(), None]
    }

    fn stores(&self) -> Transfers {
        let store = self.0.code() == Opcode::Mov_rm64_r64 && self.0.op0_kind() == OpKind::Memory;
        [store.then(|| self.transfer(self.0.op1_register())).flatten(), None]
    }

    fn holders_after(&self, holders: u32) -> u32 {
        let instruction = &self.0;
        let holds = |register| register_number(register).is_some_and(|number| holders & (1 << number) != 0);
        let keeps = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
        if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register || keeps {
            return holders;
        }
        let Some(target) = register_number(instruction.op0_register()) else { return holders };
        let copied = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op1_kind() == OpKind::Register
            && holds(instruction.op1_register());
        // A pop from the stack or a sum may bring the value back in a way that only the walk understands: `lea` keeps it.
        let kept = instruction.mnemonic() == Mnemonic::Lea && holds(instruction.memory_base());
        if copied || kept { holders | 1 << target } else { holders & !(1 << target) }
    }

    fn ones_after(&self, _ones: u32) -> u32 {
        0
    }

    fn stores_one(&self, _ones: u32) -> bool {
        self.0.code() == Opcode::Mov_rm32_imm32
            && self.0.immediate32() == 1
            && self.0.op0_kind() == OpKind::Memory
            && matches!(plain_address(&self.0), Some(Address::Register(base, 0)) if base != STACK_POINTER)
    }

    fn mask(&self) -> Option<i64> {
        let masks =
            matches!(self.0.code(), Opcode::And_rm64_imm32 | Opcode::And_rm64_imm8 | Opcode::And_RAX_imm32);
        (masks && self.0.op0_kind() == OpKind::Register).then(|| self.0.immediate(1).cast_signed())
    }

    fn memory_address(&self, machine: &Machine) -> Option<Value> {
        memory_address(&self.0, machine)
    }
}

impl Decoded {
    fn transfer(&self, register: Register) -> Option<Transfer> {
        match plain_address(&self.0)? {
            Address::Register(base, displacement) => {
                Some(Transfer { register: register_number(register)?, base, displacement })
            }
            Address::Fixed(_) => None,
        }
    }
}

/// The number of a general register of any width, 0..=15.
pub fn register_number(register: Register) -> Option<u8> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number() as u8)
}

/// A memory operand's address, where it is a register plus a constant, or a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// `register + displacement`.
    Register(u8, i64),
    /// A fixed address (relative to the instruction pointer in the code).
    Fixed(u64),
}

/// The address of `instruction`'s memory operand; none if it is a sum of registers or lies in another segment.
pub fn plain_address(instruction: &Instruction) -> Option<Address> {
    if instruction.segment_prefix() != Register::None {
        return None;
    }
    if instruction.is_ip_rel_memory_operand() {
        return Some(Address::Fixed(instruction.ip_rel_memory_address()));
    }
    let displacement = instruction.memory_displacement64().cast_signed();
    let register = match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => return Some(Address::Fixed(displacement.cast_unsigned())),
        (base, Register::None) => base,
        // An index alone with scale 1 is a base in all but name.
        (Register::None, index) if instruction.memory_index_scale() == 1 => index,
        _ => return None,
    };
    // 32-bit address registers wrap; no compiler uses them for pointers here.
    register
        .is_gpr64()
        .then(|| register_number(register))
        .flatten()
        .map(|number| Address::Register(number, displacement))
}

/// The value of the memory operand's address.
pub fn memory_address(instruction: &Instruction, machine: &Machine) -> Option<Value> {
    match plain_address(instruction)? {
        Address::Register(number, displacement) => Some(machine.register(number).plus(displacement)),
        Address::Fixed(address) => Some(Value::constant(address.cast_signed())),
    }
}
