//! Reading instructions: decoding at any address, and small questions about one instruction.
//!
//! Why: the finder wants registers by number and addresses as "register plus constant"; iced's operands are turned into that here.
//! It must not know values or patterns.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::plan::elf::MappedBytes;

/// Decodes instructions of one stretch of code at any address.
pub struct Code<'data> {
    range: MappedBytes<'data>,
    decoder: Decoder<'data>,
}

impl<'data> Code<'data> {
    /// A decoder over `range`; none if the library refuses it.
    pub fn new(range: MappedBytes<'data>) -> Option<Self> {
        let decoder = Decoder::try_with_ip(64, range.bytes, range.address, DecoderOptions::NONE).ok()?;
        Some(Self { range, decoder })
    }

    /// The stretch that is decoded.
    pub fn range(&self) -> MappedBytes<'data> {
        self.range
    }

    /// Moves to `address`; false if it lies outside.
    pub fn seek(&mut self, address: u64) -> bool {
        let position = address.checked_sub(self.range.address).and_then(|skip| usize::try_from(skip).ok());
        let moved = position.is_some_and(|position| {
            position < self.range.bytes.len() && self.decoder.set_position(position).is_ok()
        });
        if moved {
            self.decoder.set_ip(address);
        }
        moved
    }

    /// Decodes the next instruction into `into`; false at the end of the stretch.
    pub fn next_into(&mut self, into: &mut Instruction) -> bool {
        let more = self.decoder.can_decode();
        if more {
            self.decoder.decode_out(into);
        }
        more
    }

    /// The instruction at `address`; none outside the stretch or where the bytes are no instruction.
    pub fn at(&mut self, address: u64) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        let decoded = self.seek(address) && self.next_into(&mut instruction) && !instruction.is_invalid();
        decoded.then_some(instruction)
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

/// The 64-bit register load `destination = [register + displacement]`, as (destination, register, displacement).
pub fn plain_load64(instruction: &Instruction) -> Option<(u8, u8, i64)> {
    let load = instruction.code() == iced_x86::Code::Mov_r64_rm64 && instruction.op1_kind() == OpKind::Memory;
    match load.then(|| plain_address(instruction)).flatten()? {
        Address::Register(base, displacement) => {
            Some((register_number(instruction.op0_register())?, base, displacement))
        }
        Address::Fixed(_) => None,
    }
}

/// The 64-bit register store `[register + displacement] = source`, as (source, register, displacement).
pub fn plain_store64(instruction: &Instruction) -> Option<(u8, u8, i64)> {
    let store =
        instruction.code() == iced_x86::Code::Mov_rm64_r64 && instruction.op0_kind() == OpKind::Memory;
    match store.then(|| plain_address(instruction)).flatten()? {
        Address::Register(base, displacement) => {
            Some((register_number(instruction.op1_register())?, base, displacement))
        }
        Address::Fixed(_) => None,
    }
}

/// The target of a direct near jump or conditional branch.
pub fn jump_target(instruction: &Instruction) -> Option<u64> {
    let direct = instruction.op0_kind() == OpKind::NearBranch64
        && matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
    direct.then(|| instruction.near_branch_target())
}

/// Whether the kernel emulates this conditional branch instead of stepping it out of line.
///
/// arch/x86/kernel/uprobes.c, branch_setup_xol_ops(): opcodes 70..7f and 0f 80..8f without a 66 prefix. `jrcxz` and `loop` are stepped.
pub fn is_emulated_branch(instruction: &Instruction) -> bool {
    instruction.is_jcc_short_or_near() && jump_target(instruction).is_some()
}
