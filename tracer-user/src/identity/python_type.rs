//! What a type object says about its instances: where they begin in their block, and how long they are.

use super::word;

/// Read so many bytes of a type object: up to and with `tp_flags`.
pub const TYPE_BYTES: usize = 176;

// PyTypeObject (Include/cpython/object.h), the same in 3.8 to 3.15 without free threading.
const TYPE: usize = 8;
const NAME: usize = 24;
const BASIC_SIZE: usize = 32;
const ITEM_SIZE: usize = 40;
const FLAGS: usize = 168;

/// Py_TPFLAGS_MANAGED_WEAKREF (3.12) and Py_TPFLAGS_MANAGED_DICT (3.11): two words lie before the collector's.
const PRE_HEADER: u64 = 1 << 3 | 1 << 4;
const HEAP_TYPE: u64 = 1 << 9;
const HAVE_GC: u64 = 1 << 14;
/// Py_TPFLAGS_UNICODE_SUBCLASS.
pub(super) const STR: u64 = 1 << 28;
/// `PyGC_Head`, and the two words that managed dictionaries and weak references take.
const HEADER_BYTES: u64 = 16;
/// No type of C has larger instances without items; what says so is no type.
const LARGEST_BASIC_SIZE: u64 = 1 << 20;

/// A type object, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PythonType {
    /// Address of its own type: `type`, or a metaclass.
    pub metatype: u64,
    /// Address of its name, a C string.
    pub name: u64,
    /// `tp_basicsize`: bytes of an instance without its items.
    pub basic_size: u64,
    /// `tp_itemsize`.
    pub item_size: u64,
    /// `tp_flags`.
    pub flags: u64,
}

impl PythonType {
    /// From the first [`TYPE_BYTES`] at its address; `None` where no type object can look so.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let parsed = Self {
            metatype: word(bytes, TYPE)?,
            name: word(bytes, NAME)?,
            basic_size: word(bytes, BASIC_SIZE)?,
            item_size: word(bytes, ITEM_SIZE)?,
            flags: word(bytes, FLAGS)?,
        };
        let is_plausible = (16..LARGEST_BASIC_SIZE).contains(&parsed.basic_size)
            && parsed.item_size < LARGEST_BASIC_SIZE
            && parsed.metatype.is_multiple_of(8)
            && parsed.metatype != 0
            && parsed.name != 0;
        is_plausible.then_some(parsed)
    }

    /// From the block's start to the object.
    pub fn header_bytes(&self) -> u64 {
        let has_gc = self.flags & HAVE_GC != 0;
        let has_more = self.flags & PRE_HEADER != 0;
        HEADER_BYTES * (u64::from(has_gc) + u64::from(has_more))
    }

    /// Bytes of the shortest instance. The size of `str` is that of its long form; `PyASCIIObject` is 40 bytes from 3.12 on, 48 before.
    pub fn shortest_instance(&self) -> u64 {
        if self.is_subclass_of(STR) { self.basic_size.min(40) } else { self.basic_size }
    }

    /// Whether a Python class, not a type of the interpreter or of a C extension.
    pub fn is_heap_type(&self) -> bool {
        self.flags & HEAP_TYPE != 0
    }

    /// Whether instances have the collector's links.
    pub fn has_gc(&self) -> bool {
        self.flags & HAVE_GC != 0
    }

    /// Whether a flag of `Py_TPFLAGS_*_SUBCLASS` is set.
    pub fn is_subclass_of(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// Whether what is at an address is a type: the types of types end at `type`, which is its own. `parse` gives what is at an address.
pub fn is_type(address: u64, parse: &mut impl FnMut(u64) -> Option<PythonType>) -> bool {
    let mut current = address;
    // A metaclass of a metaclass is rare; whatever has more steps is no type.
    for _ in 0..4 {
        let Some(parsed) = parse(current) else { return false };
        if parsed.metatype == current {
            return true;
        }
        current = parsed.metatype;
    }
    false
}
