//! What arm64 instructions do to the symbolic machine.
//!
//! Why: only the instructions that pops and pushes are made of are modelled; what any other may write becomes opaque.
//! It must not know CPython or what is searched for.

use yaxpeax_arm::armv8::a64::{Instruction, Opcode, Operand, SIMDSizeCode, ShiftStyle, SizeCode};

use super::code::{Decoded, is_plain_store, written};
use crate::plan::finder::machine::Machine;
use crate::plan::finder::value::Value;

/// The number of `sp`. As a source or target of most instructions 31 is the zero register instead; the decoder tells them apart.
pub const STACK_POINTER: u8 = 31;
/// No instruction stores more (`st4`, `dc zva`); used where a store's length is not modelled.
const LONGEST_STORE: usize = 64;

/// Executes one instruction that does not branch.
pub fn step(machine: &mut Machine, decoded: &Decoded) {
    let mut step = Step { machine, address: decoded.address };
    let modelled = decoded.known.and_then(|instruction| step.modelled(&instruction));
    if modelled.is_none() {
        step.opaque(decoded);
    }
}

struct Step<'machine> {
    machine: &'machine mut Machine,
    /// Of the instruction.
    address: u64,
}

/// Where a memory operand leads and what it writes back to its base.
struct Access {
    address: Option<Value>,
    base: Option<(u8, Value)>,
}

impl Step<'_> {
    /// Executes the instructions that the patterns are made of; none if this is none of them.
    fn modelled(&mut self, instruction: &Instruction) -> Option<()> {
        let [first, second, third, _] = instruction.operands;
        match instruction.opcode {
            Opcode::LDR | Opcode::LDUR => self.load(&[first], second),
            Opcode::LDRH | Opcode::LDURH => self.load_half(first, second),
            Opcode::STRH | Opcode::STURH => self.store_half(first, second),
            Opcode::LDP | Opcode::LDNP => self.load(&[first, second], third),
            Opcode::STR | Opcode::STUR => self.store(&[first], second),
            Opcode::STP | Opcode::STNP => self.store(&[first, second], third),
            Opcode::ADD | Opcode::ADDS => {
                let (value, number) = (self.read(second)?, self.number(third)?);
                let sum = self.machine.sum(value, number);
                self.write(first, sum)
            }
            Opcode::SUB | Opcode::SUBS => {
                let (value, number) = (self.read(second)?, self.number(third)?.checked_neg()?);
                let sum = self.machine.sum(value, number);
                self.write(first, sum)
            }
            Opcode::AND | Opcode::ANDS => self.mask(first, second, self.number(third)?),
            Opcode::BIC | Opcode::BICS => self.mask(first, second, !self.number(third)?),
            Opcode::ORR => self.copy(first, second, third),
            Opcode::MOVZ => self.write(first, Value::constant(self.number(second)?)),
            Opcode::MOVN => self.write(first, Value::constant(!self.number(second)?)),
            Opcode::MOVK => self.insert(first, second),
            Opcode::ADR => self.write(first, self.relative(self.address, second)?),
            Opcode::ADRP => self.write(first, self.relative(self.address & !0xfff, second)?),
            _ => None,
        }
    }

    /// A register's value; 32 bits of it are zero-extended.
    fn read(&mut self, operand: Operand) -> Option<Value> {
        match operand {
            Operand::Register(_, 31) => Some(Value::constant(0)),
            Operand::Register(SizeCode::X, number) | Operand::RegisterOrSP(SizeCode::X, number) => {
                Some(self.machine.register(number as u8))
            }
            Operand::Register(SizeCode::W, number) | Operand::RegisterOrSP(SizeCode::W, number) => {
                let value = self.machine.register(number as u8);
                Some(self.machine.narrow(value))
            }
            _ => None,
        }
    }

    /// Writes a register; 32-bit writes clear the upper half.
    fn write(&mut self, operand: Operand, value: Value) -> Option<()> {
        match operand {
            Operand::Register(_, 31) => {}
            Operand::Register(SizeCode::X, number) | Operand::RegisterOrSP(SizeCode::X, number) => {
                self.machine.set(number as u8, value);
            }
            Operand::Register(SizeCode::W, number) | Operand::RegisterOrSP(SizeCode::W, number) => {
                let value = self.machine.narrow(value);
                self.machine.set(number as u8, value);
            }
            _ => return None,
        }
        Some(())
    }

    /// An operand as a number, if it is one.
    fn number(&self, operand: Operand) -> Option<i64> {
        match operand {
            Operand::Immediate(number) => Some(number.into()),
            Operand::Imm64(number) => Some(number.cast_signed()),
            Operand::ImmShift(number, shift) => i64::from(number).checked_shl(shift.into()),
            Operand::Register(_, 31) | Operand::RegShift(_, _, _, 31) => Some(0),
            Operand::RegShift(ShiftStyle::LSL, shift, SizeCode::X, register) => {
                self.machine.register(register as u8).number()?.checked_shl(shift.into())
            }
            _ => None,
        }
    }

    fn relative(&self, from: u64, operand: Operand) -> Option<Value> {
        match operand {
            Operand::PCOffset(offset) => {
                Some(Value::constant(from.wrapping_add_signed(offset).cast_signed()))
            }
            _ => None,
        }
    }

    /// `target = source & mask`; only 64 bits keep what the value was made of.
    fn mask(&mut self, target: Operand, source: Operand, mask: i64) -> Option<()> {
        let value = self.read(source)?;
        let masked = match source {
            Operand::Register(SizeCode::X, _) => self.machine.masked(value, mask),
            _ => match value.number() {
                Some(number) => Value::constant(number & mask),
                None => self.machine.unknown(true),
            },
        };
        self.write(target, masked)
    }

    /// `orr` with the zero register: how a register or a constant is moved.
    fn copy(&mut self, target: Operand, source: Operand, moved: Operand) -> Option<()> {
        let Operand::Register(_, 31) = source else { return None };
        let value = match moved {
            Operand::RegShift(ShiftStyle::LSL, 0, size, number) => {
                self.read(Operand::Register(size, number))?
            }
            _ => Value::constant(self.number(moved)?),
        };
        self.write(target, value)
    }

    /// `movk`: sixteen bits of a constant.
    fn insert(&mut self, target: Operand, bits: Operand) -> Option<()> {
        let (Operand::ImmShift(_, shift), Some(known)) = (bits, self.read(target)?.number()) else {
            return None;
        };
        let hole = !0xffff_i64.checked_shl(shift.into())?;
        self.write(target, Value::constant(known & hole | self.number(bits)?))
    }

    fn access(&mut self, operand: Operand) -> Option<Access> {
        match operand {
            Operand::RegPreIndex(base, displacement, writes_back) => {
                let address = self.machine.register(base as u8).plus(displacement.into());
                Some(Access { address: Some(address), base: writes_back.then_some((base as u8, address)) })
            }
            Operand::RegPostIndex(base, displacement) => {
                let address = self.machine.register(base as u8);
                let behind = address.plus(displacement.into());
                Some(Access { address: Some(address), base: Some((base as u8, behind)) })
            }
            Operand::RegRegOffset(..) => Some(Access { address: None, base: None }),
            Operand::PCOffset(_) => {
                Some(Access { address: Some(self.relative(self.address, operand)?), base: None })
            }
            _ => None,
        }
    }

    fn load(&mut self, targets: &[Operand], memory: Operand) -> Option<()> {
        let Access { address, base } = self.access(memory)?;
        let size = size_of(targets[0])?;
        let mut values = [Value::constant(0); 2];
        for (value, index) in values.iter_mut().take(targets.len()).zip(0..) {
            let at = address.map(|address| address.plus(i64::from(size) * index));
            *value = match at {
                Some(at) if matches!(size, 4 | 8) => self.machine.load(at, size.into()),
                _ => self.machine.unknown(size == 4),
            };
        }
        if let Some((base, value)) = base {
            self.machine.set(base, value);
        }
        for (target, value) in targets.iter().zip(values) {
            if !matches!(target, Operand::SIMDRegister(..)) {
                self.write(*target, value)?;
            }
        }
        Some(())
    }

    /// Sixteen bits, zero-extended.
    fn load_half(&mut self, target: Operand, memory: Operand) -> Option<()> {
        let Access { address, base } = self.access(memory)?;
        let value = match address {
            Some(address) => self.machine.load(address, 2),
            None => self.machine.unknown(true),
        };
        if let Some((base, value)) = base {
            self.machine.set(base, value);
        }
        self.write(target, value)
    }

    fn store_half(&mut self, source: Operand, memory: Operand) -> Option<()> {
        let Access { address, base } = self.access(memory)?;
        let value = self.read(source)?;
        if let Some(address) = address {
            self.machine.store(address, 2, value);
        }
        if let Some((base, value)) = base {
            self.machine.set(base, value);
        }
        Some(())
    }

    fn store(&mut self, sources: &[Operand], memory: Operand) -> Option<()> {
        let Access { address, base } = self.access(memory)?;
        let size = size_of(sources[0])?;
        for (source, index) in sources.iter().zip(0..) {
            let value = match source {
                Operand::SIMDRegister(..) => self.machine.unknown(false),
                _ => self.read(*source)?,
            };
            if let Some(address) = address {
                self.machine.store(address.plus(i64::from(size) * index), size.into(), value);
            }
        }
        if let Some((base, value)) = base {
            self.machine.set(base, value);
        }
        Some(())
    }

    /// Executes any other instruction: whatever it may write becomes opaque.
    fn opaque(&mut self, decoded: &Decoded) {
        let loads = decoded.known.is_some_and(|known| is_plain_load(known.opcode));
        let memory = decoded
            .known
            .into_iter()
            .flat_map(|known| known.operands)
            .find_map(|operand| self.access(operand));
        if let Some(address) = memory.and_then(|access| access.address).filter(|_| !loads) {
            let size = decoded.known.map_or(LONGEST_STORE, |known| store_size(known.opcode));
            let value = self.machine.unknown(false);
            self.machine.store(address, size, value);
        }
        let written = written(decoded);
        for number in (0..32).filter(|number| written & (1 << number) != 0) {
            let value = self.machine.unknown(false);
            self.machine.set(number, value);
        }
    }
}

/// Bytes that a load or store moves for one register.
fn size_of(register: Operand) -> Option<u8> {
    match register {
        Operand::Register(SizeCode::W, _) => Some(4),
        Operand::Register(SizeCode::X, _) => Some(8),
        Operand::SIMDRegister(size, _) => Some(match size {
            SIMDSizeCode::B => 1,
            SIMDSizeCode::H => 2,
            SIMDSizeCode::S => 4,
            SIMDSizeCode::D => 8,
            SIMDSizeCode::Q => 16,
        }),
        _ => None,
    }
}

/// Bytes that a store which is not modelled may write.
fn store_size(opcode: Opcode) -> usize {
    match opcode {
        Opcode::STRB | Opcode::STURB | Opcode::STTRB | Opcode::STLRB | Opcode::STLURB => 1,
        Opcode::STRH | Opcode::STURH | Opcode::STTRH | Opcode::STLRH | Opcode::STLURH => 2,
        _ if is_plain_store(opcode) => 8,
        _ => LONGEST_STORE,
    }
}

/// Loads that are not modelled and write no memory.
fn is_plain_load(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::LDRB
            | Opcode::LDRH
            | Opcode::LDRSB
            | Opcode::LDRSH
            | Opcode::LDRSW
            | Opcode::LDPSW
            | Opcode::LDURB
            | Opcode::LDURH
            | Opcode::LDURSB
            | Opcode::LDURSH
            | Opcode::LDURSW
            | Opcode::LDR
            | Opcode::LDUR
            | Opcode::LDAR
            | Opcode::LDARB
            | Opcode::LDARH
            | Opcode::LDAPR
            | Opcode::LDAPRB
            | Opcode::LDAPRH
            | Opcode::LD1
            | Opcode::LD1R
            | Opcode::LD2
            | Opcode::LD3
            | Opcode::LD4
            | Opcode::PRFM
            | Opcode::PRFUM
    )
}
