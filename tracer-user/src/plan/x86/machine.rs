//! A symbolic x86-64: sixteen registers, the memory cells touched so far, and the stores in order.
//!
//! Why: equality of values along one path is all that the patterns ask for. What is not modelled makes its target opaque, so
//! ignorance costs a match, never a wrong one. It must not know CPython or what is searched for.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

use super::code::{Address, plain_address, register_number};
use super::value::{Definition, Origin, Origins, Value};

/// One store to an address that is known as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Store {
    /// Where to.
    pub address: Value,
    /// How many bytes.
    pub size: usize,
    /// What.
    pub value: Value,
}

/// The state along one path.
#[derive(Debug, Clone)]
pub struct Machine {
    registers: [Value; 16],
    /// What is known to be in memory: loads and stores, newest last, no two overlapping.
    cells: Vec<Store>,
    /// Every store since the start, in order.
    stores: Vec<Store>,
    origins: Origins,
}

/// An operand as far as it is modelled.
enum Operand {
    Register { number: u8, size: usize },
    Memory { address: Option<Value>, size: usize },
    Number(i64),
    Other,
}

const STACK_POINTER: u8 = 4;

impl Default for Machine {
    fn default() -> Self {
        let mut machine = Self {
            registers: [Value::constant(0); 16],
            cells: Vec::new(),
            stores: Vec::new(),
            origins: Origins::default(),
        };
        machine.reset();
        machine
    }
}

impl Machine {
    /// Back to a start at which every register holds a value of its own and memory is unknown.
    pub fn reset(&mut self) {
        for (number, register) in (0u8..).zip(&mut self.registers) {
            *register = Value { origin: Origin::initial(number), offset: 0 };
        }
        self.cells.clear();
        self.stores.clear();
        self.origins.clear();
    }

    /// What register `number` holds.
    pub fn register(&self, number: u8) -> Value {
        self.registers[usize::from(number & 15)]
    }

    /// The registers with what they hold, by number.
    pub fn registers(&self) -> impl Iterator<Item = (u8, Value)> + '_ {
        (0u8..).zip(self.registers.iter().copied())
    }

    /// Every store so far, in order.
    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// What is known to be in memory now.
    pub fn cells(&self) -> &[Store] {
        &self.cells
    }

    /// How values came to be.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// The value of the memory operand's address.
    pub fn address(&self, instruction: &Instruction) -> Option<Value> {
        match plain_address(instruction)? {
            Address::Register(number, displacement) => Some(self.register(number).plus(displacement)),
            Address::Fixed(address) => Some(Value::constant(address.cast_signed())),
        }
    }

    /// Executes one instruction that does not branch.
    pub fn step(&mut self, instruction: &Instruction, information: &mut InstructionInfoFactory) {
        if !self.step_modelled(instruction) {
            self.step_opaque(instruction, information);
        }
    }

    /// Executes the instructions that the patterns are made of; false if this is none of them.
    fn step_modelled(&mut self, instruction: &Instruction) -> bool {
        let [target, source] = [0, 1].map(|index| self.operand(instruction, index));
        match instruction.mnemonic() {
            Mnemonic::Mov => self.read(&source).is_some_and(|value| self.write(&target, value)),
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
            OpKind::Memory => {
                Operand::Memory { address: self.address(instruction), size: instruction.memory_size().size() }
            }
            OpKind::Immediate8to32
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
            Operand::Register { number, size: 8 } => self.register(*number).number(),
            _ => None,
        }
    }

    /// The operand's value; none where its width is not modelled.
    fn read(&mut self, operand: &Operand) -> Option<Value> {
        match *operand {
            Operand::Number(number) => Some(Value::constant(number)),
            Operand::Register { number, size: 8 } => Some(self.register(number)),
            Operand::Register { number, size: 4 } => Some(self.narrow(self.register(number))),
            Operand::Memory { address: Some(address), size: size @ (4 | 8) } => {
                Some(self.load(address, size))
            }
            Operand::Memory { address: None, size: 8 } => Some(self.origins.define(Definition::Opaque)),
            Operand::Memory { address: None, size: 4 } => Some(self.origins.define(Definition::OpaqueNarrow)),
            _ => None,
        }
    }

    /// Writes a value; false where the width is not modelled.
    fn write(&mut self, operand: &Operand, value: Value) -> bool {
        match *operand {
            Operand::Register { number, size: 8 } => self.set(number, value),
            Operand::Register { number, size: 4 } => {
                let value = self.narrow(value);
                self.set(number, value);
            }
            Operand::Memory { address: Some(address), size: size @ (4 | 8) } => {
                let value = if size == 4 { self.narrow(value) } else { value };
                self.store(Store { address, size, value });
            }
            Operand::Memory { address: None, size: 4 | 8 } => {}
            _ => return false,
        }
        true
    }

    fn set(&mut self, number: u8, value: Value) {
        self.registers[usize::from(number & 15)] = value;
    }

    /// The low 32 bits of a value.
    fn narrow(&mut self, value: Value) -> Value {
        match value.number() {
            Some(number) => Value::constant(number & i64::from(u32::MAX)),
            None if self.origins.is_narrow(value) => value,
            None => self.origins.define(Definition::OpaqueNarrow),
        }
    }

    /// `value + number` at the width that `value` has; 32-bit sums wrap there.
    fn sum(&self, value: Value, number: i64) -> Value {
        let sum = value.plus(number);
        match value.number() {
            None if self.origins.is_narrow(value) => Value { offset: i64::from(sum.offset as i32), ..sum },
            _ => sum,
        }
    }

    fn add(&mut self, target: &Operand, number: Option<i64>) -> bool {
        let Some(number) = number else { return false };
        self.read(target).is_some_and(|value| {
            let sum = self.sum(value, number);
            self.write(target, sum)
        })
    }

    fn and(&mut self, target: &Operand, mask: Option<i64>) -> bool {
        let (Some(mask), Operand::Register { size: 8, .. }) = (mask, target) else { return false };
        self.read(target).is_some_and(|of| {
            let masked = self.origins.define(Definition::Masked { of, mask });
            self.write(target, masked)
        })
    }

    /// `xor register, register`: how compilers write zero.
    fn clear(&mut self, target: &Operand, source: &Operand) -> bool {
        match (target, source) {
            (Operand::Register { number, size: 4 | 8 }, Operand::Register { number: other, .. })
                if number == other =>
            {
                self.set(*number, Value::constant(0));
                true
            }
            _ => false,
        }
    }

    fn load_address(&mut self, target: &Operand, instruction: &Instruction) -> bool {
        let value = match plain_address(instruction) {
            Some(Address::Register(number, displacement)) => self.sum(self.register(number), displacement),
            Some(Address::Fixed(address)) => Value::constant(address.cast_signed()),
            None => return false,
        };
        self.write(target, value)
    }

    fn push(&mut self, source: &Operand) -> bool {
        let Operand::Register { number, size: 8 } = *source else { return false };
        let value = self.register(number);
        let top = self.register(STACK_POINTER).plus(-8);
        self.set(STACK_POINTER, top);
        self.store(Store { address: top, size: 8, value });
        true
    }

    fn pop(&mut self, target: &Operand) -> bool {
        let Operand::Register { number, size: 8 } = *target else { return false };
        let top = self.register(STACK_POINTER);
        let value = self.load(top, 8);
        self.set(STACK_POINTER, top.plus(8));
        self.set(number, value);
        true
    }

    /// Loads: the known cell, or a new name for what is there, which a second load finds again.
    fn load(&mut self, address: Value, size: usize) -> Value {
        if let Some(cell) = self.cells.iter().find(|cell| overlaps(cell, address, size)) {
            return match cell.address == address && cell.size == size {
                true => cell.value,
                false => self.origins.define(Definition::Opaque),
            };
        }
        let definition = if size == 8 { Definition::Load64(address) } else { Definition::Load32(address) };
        let value = self.origins.define(definition);
        self.cells.push(Store { address, size, value });
        value
    }

    fn store(&mut self, store: Store) {
        self.cells.retain(|cell| !overlaps(cell, store.address, store.size));
        self.cells.push(store);
        self.stores.push(store);
    }

    /// Executes any other instruction: whatever it may write becomes opaque.
    fn step_opaque(&mut self, instruction: &Instruction, information: &mut InstructionInfoFactory) {
        let used = information.info(instruction);
        for memory in used.used_memory().iter().filter(|memory| writes(memory.access())) {
            if let Some(address) = self.used_address(memory) {
                let value = self.origins.define(Definition::Opaque);
                self.store(Store { address, size: memory.memory_size().size(), value });
            }
        }
        for register in used.used_registers().iter().filter(|register| writes(register.access())) {
            if let Some(number) = register_number(register.register()) {
                let value = self.origins.define(Definition::Opaque);
                self.set(number, value);
            }
        }
    }

    fn used_address(&self, memory: &UsedMemory) -> Option<Value> {
        let number = register_number(memory.base())?;
        let plain =
            memory.index() == Register::None && !matches!(memory.segment(), Register::FS | Register::GS);
        plain.then(|| self.register(number).plus(memory.displacement().cast_signed()))
    }
}

/// Whether a cell shares a byte with `size` bytes at `address`. Different origins count as different places: see the module doc
/// of `patterns` for why that is safe here.
fn overlaps(cell: &Store, address: Value, size: usize) -> bool {
    let behind = cell.address.offset.wrapping_sub(address.offset).cast_unsigned();
    let meets = behind < size as u64 || behind.wrapping_neg() < cell.size as u64;
    cell.address.origin == address.origin && meets
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}
