//! What x86-64 instructions do to the symbolic machine.
//!
//! Why: only the instructions that pops and pushes are made of are modelled; of all others the library says which registers and
//! memory they write, and those become opaque. It must not know CPython or what is searched for.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

use super::code::{Address, memory_address, plain_address, register_number};
use crate::plan::finder::machine::Machine;
use crate::plan::finder::value::{Definition, Value};

/// The number of `rsp`.
pub const STACK_POINTER: u8 = 4;

/// An operand as far as it is modelled.
enum Operand {
    Register { number: u8, size: usize },
    Memory { address: Option<Value>, size: usize },
    Number(i64),
    Other,
}

/// Executes one instruction that does not branch.
pub fn step(machine: &mut Machine, instruction: &Instruction, information: &mut InstructionInfoFactory) {
    let mut step = Step { machine };
    if !step.modelled(instruction) {
        step.opaque(instruction, information);
    }
}

struct Step<'machine> {
    machine: &'machine mut Machine,
}

impl Step<'_> {
    /// Executes the instructions that the patterns are made of; false if this is none of them.
    fn modelled(&mut self, instruction: &Instruction) -> bool {
        let [target, source] = [0, 1].map(|index| self.operand(instruction, index));
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => {
                self.read(&source).is_some_and(|value| self.write(&target, value))
            }
            Mnemonic::Lea => self.load_address(&target, instruction),
            Mnemonic::Add => self.add(&target, self.peek_number(&source)),
            Mnemonic::Sub => self.add(&target, self.peek_number(&source).and_then(i64::checked_neg)),
            Mnemonic::Inc => self.add(&target, Some(1)),
            Mnemonic::Dec => self.add(&target, Some(-1)),
            Mnemonic::And => self.and(&target, self.peek_number(&source)),
            Mnemonic::Xor => self.clear(&target, &source),
            Mnemonic::Push => self.push(&target),
            Mnemonic::Pop => self.pop(&target),
            _ => matches!(
                instruction.mnemonic(),
                Mnemonic::Test | Mnemonic::Cmp | Mnemonic::Nop | Mnemonic::Endbr64
            ),
        }
    }

    fn operand(&self, instruction: &Instruction, index: u32) -> Operand {
        if index >= instruction.op_count() {
            return Operand::Other;
        }
        match instruction.op_kind(index) {
            OpKind::Register => {
                let register = instruction.op_register(index);
                match register_number(register) {
                    Some(number) => Operand::Register { number, size: register.size() },
                    None => Operand::Other,
                }
            }
            OpKind::Memory => Operand::Memory {
                address: memory_address(instruction, self.machine),
                size: instruction.memory_size().size(),
            },
            OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
            | OpKind::Immediate64 => Operand::Number(instruction.immediate(index).cast_signed()),
            OpKind::Immediate32 => Operand::Number(i64::from(instruction.immediate32().cast_signed())),
            _ => Operand::Other,
        }
    }

    /// The operand as a number, if it is one without a look at memory.
    fn peek_number(&self, operand: &Operand) -> Option<i64> {
        match operand {
            Operand::Number(number) => Some(*number),
            Operand::Register { number, size: 8 } => self.machine.register(*number).number(),
            _ => None,
        }
    }

    /// The operand's value; none where its width is not modelled.
    fn read(&mut self, operand: &Operand) -> Option<Value> {
        match *operand {
            Operand::Number(number) => Some(Value::constant(number)),
            Operand::Register { number, size: 8 } => Some(self.machine.register(number)),
            Operand::Register { number, size: 4 } => Some(self.machine.narrow(self.machine.register(number))),
            Operand::Register { number, size: 2 } => Some(self.machine.half(self.machine.register(number))),
            Operand::Memory { address: Some(address), size: size @ (2 | 4 | 8) } => {
                Some(self.machine.load(address, size))
            }
            Operand::Memory { address: None, size: size @ (2 | 4 | 8) } => {
                Some(self.machine.unknown(size != 8))
            }
            _ => None,
        }
    }

    /// Writes a value; false where the width is not modelled.
    fn write(&mut self, operand: &Operand, value: Value) -> bool {
        match *operand {
            Operand::Register { number, size: 8 } => self.machine.set(number, value),
            Operand::Register { number, size: 4 } => {
                let value = self.machine.narrow(value);
                self.machine.set(number, value);
            }
            // The bits above are kept, and only a counter is followed without them.
            Operand::Register { number, size: 2 } => {
                let value = match self.machine.origins().definition(value) {
                    Definition::Load16(_) => value,
                    _ => self.machine.unknown(false),
                };
                self.machine.set(number, value);
            }
            Operand::Memory { address: Some(address), size: size @ (2 | 4 | 8) } => {
                self.machine.store(address, size, value);
            }
            Operand::Memory { address: None, size: 2 | 4 | 8 } => {}
            _ => return false,
        }
        true
    }

    fn add(&mut self, target: &Operand, number: Option<i64>) -> bool {
        let Some(number) = number else { return false };
        self.read(target).is_some_and(|value| {
            let sum = self.machine.sum(value, number);
            self.write(target, sum)
        })
    }

    fn and(&mut self, target: &Operand, mask: Option<i64>) -> bool {
        let (Some(mask), Operand::Register { size: 8, .. }) = (mask, target) else { return false };
        self.read(target).is_some_and(|of| {
            let masked = self.machine.masked(of, mask);
            self.write(target, masked)
        })
    }

    /// `xor register, register`: how compilers write zero.
    fn clear(&mut self, target: &Operand, source: &Operand) -> bool {
        match (target, source) {
            (Operand::Register { number, size: 4 | 8 }, Operand::Register { number: other, .. })
                if number == other =>
            {
                self.machine.set(*number, Value::constant(0));
                true
            }
            _ => false,
        }
    }

    fn load_address(&mut self, target: &Operand, instruction: &Instruction) -> bool {
        let value = match plain_address(instruction) {
            Some(Address::Register(number, displacement)) => {
                self.machine.sum(self.machine.register(number), displacement)
            }
            Some(Address::Fixed(address)) => Value::constant(address.cast_signed()),
            None => return false,
        };
        self.write(target, value)
    }

    fn push(&mut self, source: &Operand) -> bool {
        let Operand::Register { number, size: 8 } = *source else { return false };
        let value = self.machine.register(number);
        let top = self.machine.register(STACK_POINTER).plus(-8);
        self.machine.set(STACK_POINTER, top);
        self.machine.store(top, 8, value);
        true
    }

    fn pop(&mut self, target: &Operand) -> bool {
        let Operand::Register { number, size: 8 } = *target else { return false };
        let top = self.machine.register(STACK_POINTER);
        let value = self.machine.load(top, 8);
        self.machine.set(STACK_POINTER, top.plus(8));
        self.machine.set(number, value);
        true
    }

    /// Executes any other instruction: whatever it may write becomes opaque.
    fn opaque(&mut self, instruction: &Instruction, information: &mut InstructionInfoFactory) {
        let used = information.info(instruction);
        for memory in used.used_memory().iter().filter(|memory| writes(memory.access())) {
            if let Some(address) = self.used_address(memory) {
                let value = self.machine.unknown(false);
                self.machine.store(address, memory.memory_size().size(), value);
            }
        }
        for register in used.used_registers().iter().filter(|register| writes(register.access())) {
            if let Some(number) = register_number(register.register()) {
                let value = self.machine.unknown(false);
                self.machine.set(number, value);
            }
        }
    }

    fn used_address(&self, memory: &UsedMemory) -> Option<Value> {
        let number = register_number(memory.base())?;
        let plain =
            memory.index() == Register::None && !matches!(memory.segment(), Register::FS | Register::GS);
        plain.then(|| self.machine.register(number).plus(memory.displacement().cast_signed()))
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}
