//! A symbolic machine: its registers, the memory cells touched so far, and the stores in order.
//!
//! Why: equality of values along one path is all that the patterns ask for. What is not modelled makes its target opaque, so
//! ignorance costs a match, never a wrong one. It must not know instructions, CPython or what is searched for.

use super::value::{Definition, Origin, Origins, Value};

/// Registers of the largest set: arm64's x0 to x30 and sp. A set with fewer leaves the rest alone.
const REGISTERS: usize = 32;

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
    registers: [Value; REGISTERS],
    /// What is known to be in memory: loads and stores, newest last, no two overlapping.
    cells: Vec<Store>,
    /// Every store since the start, in order.
    stores: Vec<Store>,
    origins: Origins,
}

impl Default for Machine {
    fn default() -> Self {
        let mut machine = Self {
            registers: [Value::constant(0); REGISTERS],
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
        self.registers[usize::from(number) % REGISTERS]
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

    /// Writes a register.
    pub fn set(&mut self, number: u8, value: Value) {
        self.registers[usize::from(number) % REGISTERS] = value;
    }

    /// A value that nothing is known of; `narrow` if it is 32 bits wide.
    pub fn unknown(&mut self, narrow: bool) -> Value {
        self.origins.define(if narrow { Definition::OpaqueNarrow } else { Definition::Opaque })
    }

    /// The low 32 bits of a value.
    pub fn narrow(&mut self, value: Value) -> Value {
        match value.number() {
            Some(number) => Value::constant(number & i64::from(u32::MAX)),
            None if self.origins.is_narrow(value) => value,
            None => self.origins.define(Definition::OpaqueNarrow),
        }
    }

    /// The low 16 bits of a value.
    pub fn half(&mut self, value: Value) -> Value {
        match (value.number(), self.origins.definition(value)) {
            (Some(number), _) => Value::constant(number & i64::from(u16::MAX)),
            (None, Definition::Load16(_)) => Value { offset: i64::from(value.offset as i16), ..value },
            _ => self.origins.define(Definition::OpaqueNarrow),
        }
    }

    /// `value + number` at the width that `value` has; 32-bit sums wrap there.
    pub fn sum(&self, value: Value, number: i64) -> Value {
        let sum = value.plus(number);
        match value.number() {
            None if self.origins.is_narrow(value) => Value { offset: i64::from(sum.offset as i32), ..sum },
            _ => sum,
        }
    }

    /// `value & mask` of 64 bits.
    pub fn masked(&mut self, value: Value, mask: i64) -> Value {
        match value.number() {
            Some(number) => Value::constant(number & mask),
            None => self.origins.define(Definition::Masked { of: value, mask }),
        }
    }

    /// Loads 2, 4 or 8 bytes: the known cell, or a new name for what is there, which a second load finds again.
    pub fn load(&mut self, address: Value, size: usize) -> Value {
        if let Some(cell) = self.cells.iter().find(|cell| overlaps(cell, address, size)) {
            return match cell.address == address && cell.size == size {
                true => cell.value,
                false => self.origins.define(Definition::Opaque),
            };
        }
        let definition = match size {
            8 => Definition::Load64(address),
            4 => Definition::Load32(address),
            _ => Definition::Load16(address),
        };
        let value = self.origins.define(definition);
        self.cells.push(Store { address, size, value });
        value
    }

    /// Stores; a store of 32 or 16 bits keeps the low ones of the value.
    pub fn store(&mut self, address: Value, size: usize, value: Value) {
        let value = match size {
            4 => self.narrow(value),
            2 => self.half(value),
            _ => value,
        };
        let store = Store { address, size, value };
        self.cells.retain(|cell| !overlaps(cell, store.address, store.size));
        self.cells.push(store);
        self.stores.push(store);
    }
}

/// Whether a cell shares a byte with `size` bytes at `address`. Different origins count as different places: see the module doc
/// of `patterns` for why that is safe here.
fn overlaps(cell: &Store, address: Value, size: usize) -> bool {
    let behind = cell.address.offset.wrapping_sub(address.offset).cast_unsigned();
    let meets = behind < size as u64 || behind.wrapping_neg() < cell.size as u64;
    cell.address.origin == address.origin && meets
}
