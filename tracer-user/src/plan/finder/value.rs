//! Symbolic values: what a register or a memory cell holds, as "origin plus constant".
//!
//! Why: the finder compares values, not instruction order; two values are equal if and only if they compare equal here.
//! It must not know instructions or what the values mean to CPython.

/// Where a value came from: an index into [`Origins`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(u16);

impl Origin {
    /// No origin: the value is its offset.
    pub const CONSTANT: Self = Self(0);

    /// What general register `number` (0..=31) held at the start.
    pub fn initial(number: u8) -> Self {
        Self(1 + u16::from(number & 31))
    }
}

/// `origin + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// What is not known but has a name.
    pub origin: Origin,
    /// The constant added to it.
    pub offset: i64,
}

impl Value {
    /// A number.
    pub fn constant(number: i64) -> Self {
        Self { origin: Origin::CONSTANT, offset: number }
    }

    /// The value as a number, if it is one.
    pub fn number(self) -> Option<i64> {
        (self.origin == Origin::CONSTANT).then_some(self.offset)
    }

    /// The value plus a constant.
    pub fn plus(self, offset: i64) -> Self {
        Self { offset: self.offset.wrapping_add(offset), ..self }
    }
}

/// How an origin came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Definition {
    /// Not tracked.
    Opaque,
    /// As [`Definition::Opaque`], but known to be 32 bits wide, zero-extended.
    OpaqueNarrow,
    /// Eight bytes loaded from an address.
    Load64(Value),
    /// Four bytes loaded from an address, zero-extended.
    Load32(Value),
    /// Two bytes loaded from an address. What is above them in a register is not kept: sums of it are sums of 16 bits.
    Load16(Value),
    /// A value with its low bits cleared: `of & mask`.
    Masked {
        /// The value before.
        of: Value,
        /// The mask, sign-extended.
        mask: i64,
    },
}

/// The origins of one path. Dropped and started afresh for each candidate, so a path's length bounds it.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    definitions: Vec<Definition>,
}

/// The constant and the registers come first.
const FIRST_DEFINED: u16 = 33;

impl Origins {
    /// Forgets everything but the constant and the initial registers.
    pub fn clear(&mut self) {
        self.definitions.clear();
    }

    /// A new origin, as a value.
    pub fn define(&mut self, definition: Definition) -> Value {
        let index = u16::try_from(self.definitions.len()).unwrap_or(u16::MAX - FIRST_DEFINED);
        self.definitions.push(definition);
        Value { origin: Origin(FIRST_DEFINED + index.min(u16::MAX - FIRST_DEFINED)), offset: 0 }
    }

    /// How the origin of `value` came to be.
    pub fn definition(&self, value: Value) -> Definition {
        let index = value.origin.0.checked_sub(FIRST_DEFINED).map(usize::from);
        index.and_then(|index| self.definitions.get(index)).copied().unwrap_or(Definition::Opaque)
    }

    /// The address that the eight bytes `value` were loaded from, if `value` is exactly such a load.
    pub fn loaded_from(&self, value: Value) -> Option<Value> {
        match self.definition(value) {
            Definition::Load64(address) if value.offset == 0 => Some(address),
            _ => None,
        }
    }

    /// Whether `value` is known to fit 32 bits.
    pub fn is_narrow(&self, value: Value) -> bool {
        match self.definition(value) {
            Definition::Load32(_) | Definition::Load16(_) | Definition::OpaqueNarrow => true,
            _ => value.number().is_some_and(|number| u32::try_from(number).is_ok()),
        }
    }
}
