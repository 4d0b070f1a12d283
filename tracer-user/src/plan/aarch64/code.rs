//! Reading instructions: decoding at any address, and small questions about one instruction.
//!
//! Why: the finder wants registers by number and addresses as "register plus constant"; the decoder's operands are turned into that
//! here. It must not know patterns.

use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Instruction, Opcode, Operand, ShiftStyle, SizeCode};

use super::branch::Branch;
use super::step::{STACK_POINTER, step};
use crate::plan::elf::MappedBytes;
use crate::plan::finder::machine::Machine;
use crate::plan::finder::value::Value;
use crate::plan::finder::{self, Flow, Transfer, Transfers};

/// Bytes of an instruction.
const LENGTH: usize = 4;

/// Decodes instructions of one stretch of code at any address.
pub struct Code<'data> {
    range: MappedBytes<'data>,
    /// Distance of the next instruction from the start.
    position: usize,
}

impl<'data> finder::Code<'data> for Code<'data> {
    type Instruction = Decoded;
    const STACK_POINTER: u8 = STACK_POINTER;

    fn new(range: MappedBytes<'data>) -> Option<Self> {
        range.address.is_multiple_of(LENGTH as u64).then_some(Self { range, position: 0 })
    }

    fn seek(&mut self, address: u64) -> bool {
        let position = address.checked_sub(self.range.address).and_then(|skip| usize::try_from(skip).ok());
        let inside = position.filter(|at| *at < self.range.bytes.len() && at.is_multiple_of(LENGTH));
        self.position = inside.unwrap_or(self.position);
        inside.is_some()
    }

    fn next_into(&mut self, into: &mut Decoded) -> bool {
        let bytes = self.range.bytes.get(self.position..).and_then(|rest| rest.first_chunk());
        if let Some(bytes) = bytes {
            *into = Decoded::new(self.range.address.wrapping_add(self.position as u64), *bytes);
            self.position += LENGTH;
        }
        bytes.is_some()
    }

    fn execute(&mut self, instruction: &Decoded, machine: &mut Machine) {
        step(machine, instruction);
    }
}

/// One instruction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decoded {
    /// Its address.
    pub address: u64,
    /// Its bits.
    pub word: u32,
    /// What it is, if the decoder knows it.
    pub known: Option<Instruction>,
}

impl Decoded {
    /// Decodes the bytes at `address`.
    pub fn new(address: u64, bytes: [u8; LENGTH]) -> Self {
        let known = InstDecoder::default().decode(&mut U8Reader::new(&bytes)).ok();
        let known = known.filter(|instruction| instruction.opcode != Opcode::Invalid);
        Self { address, word: u32::from_le_bytes(bytes), known }
    }

    /// Whether it is a branch of any kind, or stops the processor.
    fn leaves(&self) -> bool {
        // All branches, exceptions and system instructions have these bits; the latter are told apart by bit 31 to 24 being d5.
        self.word & 0x1c00_0000 == 0x1400_0000 && self.word & 0xff00_0000 != 0xd500_0000
    }

    /// The registers that it moves to or from `[base + displacement]`, 64 bits each.
    fn transfers(&self, of: impl Fn(Opcode) -> bool) -> Transfers {
        let Some(Instruction { opcode, operands }) = self.known.filter(|known| of(known.opcode)) else {
            return [None; 2];
        };
        let (registers, memory) = match opcode {
            Opcode::LDP | Opcode::LDNP | Opcode::STP | Opcode::STNP => {
                ([operands[0], operands[1]], operands[2])
            }
            _ => ([operands[0], Operand::Nothing], operands[1]),
        };
        let (base, displacement) = match memory {
            Operand::RegPreIndex(base, displacement, _) => (base, displacement),
            Operand::RegPostIndex(base, _) => (base, 0),
            _ => return [None; 2],
        };
        let transfer = |operand, more: i64| match operand {
            Operand::Register(SizeCode::X, register) if register != 31 => Some(Transfer {
                register: register as u8,
                base: base as u8,
                displacement: i64::from(displacement) + more,
            }),
            _ => None,
        };
        [transfer(registers[0], 0), transfer(registers[1], 8)]
    }
}

impl finder::Instruction for Decoded {
    fn address(&self) -> u64 {
        self.address
    }

    fn next_address(&self) -> u64 {
        self.address.wrapping_add(LENGTH as u64)
    }

    fn flow(&self) -> Flow {
        match Branch::of(self.word, self.address) {
            Some(Branch::Conditional(target)) => Flow::Conditional(Some(target)),
            Some(Branch::Jump(target)) => Flow::Jump(Some(target)),
            Some(Branch::Indirect) => Flow::Jump(None),
            Some(Branch::Call(_) | Branch::IndirectCall) => Flow::End,
            Some(Branch::Address) => Flow::Next,
            None if self.known.is_none() || self.leaves() => Flow::End,
            None => Flow::Next,
        }
    }

    fn is_emulated_branch(&self) -> bool {
        matches!(Branch::of(self.word, self.address), Some(Branch::Conditional(_)))
    }

    fn loads(&self) -> Transfers {
        self.transfers(|opcode| matches!(opcode, Opcode::LDR | Opcode::LDUR | Opcode::LDP | Opcode::LDNP))
    }

    fn stores(&self) -> Transfers {
        self.transfers(|opcode| matches!(opcode, Opcode::STR | Opcode::STUR | Opcode::STP | Opcode::STNP))
    }

    fn holders_after(&self, holders: u32) -> u32 {
        let kept = copied(self).filter(|(_, source)| holders & (1 << source) != 0);
        let left = holders & !written(self);
        kept.map_or(left, |(target, _)| left | 1 << target)
    }

    fn ones_after(&self, ones: u32) -> u32 {
        let Some(Instruction { opcode: Opcode::MOVZ, operands }) = self.known else {
            return ones & !written(self);
        };
        match operands {
            [Operand::Register(_, target), Operand::ImmShift(1, 0), ..] if target != 31 => ones | 1 << target,
            _ => ones & !written(self),
        }
    }

    fn stores_one(&self, ones: u32) -> bool {
        let Some(Instruction { opcode: Opcode::STR | Opcode::STUR, operands }) = self.known else {
            return false;
        };
        matches!(operands, [Operand::Register(SizeCode::W, register), Operand::RegPreIndex(base, 0, false), ..]
            if base != u16::from(STACK_POINTER) && register != 31 && ones & (1 << register) != 0)
    }

    /// Only free-threaded interpreters are searched for masks, and none was seen on arm64.
    fn mask(&self) -> Option<i64> {
        None
    }

    fn memory_address(&self, machine: &Machine) -> Option<Value> {
        self.known?.operands.into_iter().find_map(|operand| match operand {
            Operand::RegPreIndex(base, displacement, _) => {
                Some(machine.register(base as u8).plus(displacement.into()))
            }
            Operand::RegPostIndex(base, _) => Some(machine.register(base as u8)),
            _ => None,
        })
    }
}

/// Target and source of an instruction that copies a register, or adds a constant to it.
fn copied(instruction: &Decoded) -> Option<(u16, u16)> {
    let Instruction { opcode, operands } = instruction.known?;
    match (opcode, operands) {
        (
            Opcode::ORR,
            [
                Operand::Register(SizeCode::X, target),
                Operand::Register(_, 31),
                Operand::RegShift(ShiftStyle::LSL, 0, _, source),
                _,
            ],
        ) => Some((target, source)),
        (
            Opcode::ADD | Opcode::SUB,
            [
                Operand::RegisterOrSP(SizeCode::X, target),
                Operand::RegisterOrSP(_, source),
                Operand::Immediate(_) | Operand::ImmShift(..),
                _,
            ],
        ) => Some((target, source)),
        _ => None,
    }
    .filter(|(target, source)| *target != 31 && *source != 31)
}

/// The registers that an instruction writes, bit 31 for the stack pointer; those that it may write where that is not known.
pub fn written(instruction: &Decoded) -> u32 {
    let Some(Instruction { opcode, operands }) = instruction.known else { return u32::MAX };
    let general = |operand: &Operand| match operand {
        Operand::Register(_, number) if *number != 31 => 1u32 << number,
        Operand::RegisterOrSP(_, number) => 1 << number,
        Operand::RegisterPair(_, number) => 3u32.wrapping_shl(u32::from(*number)),
        _ => 0,
    };
    let all = || operands.iter().map(general).fold(0, |set, one| set | one);
    let memory = operands.iter().find_map(|operand| match *operand {
        Operand::RegPreIndex(base, _, true)
        | Operand::RegPostIndex(base, _)
        | Operand::RegPostIndexReg(base, _) => Some(1u32 << base),
        Operand::RegPreIndex(..) | Operand::RegRegOffset(..) => Some(0),
        _ => None,
    });
    match (memory, opcode) {
        (Some(base), opcode) if is_plain_store(opcode) => base,
        (Some(base), _) => base | all(),
        (None, Opcode::CCMP | Opcode::CCMN | Opcode::MSR | Opcode::HINT) => 0,
        // Sign or strip the return address, or x17 with x16: none has operands.
        (None, _) if all() == 0 && instruction.word & 0xffff_f01f == 0xd503_201f => 1 << 30 | 1 << 17,
        (None, _) => general(&operands[0]),
    }
}

/// Stores that write nothing but memory and, where they say so, their base.
pub fn is_plain_store(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::STR
            | Opcode::STUR
            | Opcode::STTR
            | Opcode::STP
            | Opcode::STNP
            | Opcode::STRB
            | Opcode::STRH
            | Opcode::STURB
            | Opcode::STURH
            | Opcode::STTRB
            | Opcode::STTRH
            | Opcode::STLR
            | Opcode::STLRB
            | Opcode::STLRH
            | Opcode::STLUR
            | Opcode::STLURB
            | Opcode::STLURH
    )
}
