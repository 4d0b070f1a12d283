//! What kind of block it is, judged by its bytes alone.

use super::{PythonType, python_type::STR, word};
use crate::discover::layout::InterpreterLayout;

/// Places where an object can begin in its block: alone, behind the collector's links, behind those and two words more.
pub(super) const HEADERS: [usize; 3] = [0, 16, 32];
/// A reference count is not larger, immortal ones included (Include/refcount.h); a pointer is.
const LARGEST_COUNT: u64 = 0xffff_ffff;

// Py_TPFLAGS_*_SUBCLASS (Include/object.h).
const LONG: u64 = 1 << 24;
const LIST: u64 = 1 << 25;
const TUPLE: u64 = 1 << 26;
const BYTES: u64 = 1 << 27;
const DICT: u64 = 1 << 29;

/// Kinds of blocks that differ in which of their words stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `str`.
    Str,
    /// `bytes`.
    Bytes,
    /// `int` and its subclasses in C.
    Int,
    /// `tuple` and its subclasses in C.
    Tuple,
    /// `list`.
    List,
    /// `dict`.
    Dict,
    /// Another type of the interpreter or of C, without the collector's links: `float` and more.
    Plain,
    /// Another type of the interpreter or of C, with them.
    Collected,
    /// An instance of a class.
    Instance,
    /// The table of a dictionary.
    DictKeys,
    /// No object: a list's items, an instance's values, a buffer; or an object that nobody holds.
    Untyped,
}

/// A kind, and what tells its members apart besides their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// What it is.
    pub kind: Kind,
    /// From the block's start to the object; 0 without one.
    pub header: usize,
    /// Address of the type; 0 without one.
    pub type_address: u64,
}

impl Shape {
    /// The shape of a block with these bytes.
    pub(super) fn of(
        block: &[u8],
        layout: &InterpreterLayout,
        find_type: &mut impl FnMut(u64) -> Option<PythonType>,
    ) -> Self {
        let object = HEADERS.into_iter().find_map(|header| object(block, header, layout, find_type));
        object.unwrap_or_else(|| {
            let kind = if dict_keys(block).is_some() { Kind::DictKeys } else { Kind::Untyped };
            Self { kind, header: 0, type_address: 0 }
        })
    }
}

/// An object that begins at `header`: somebody holds it, its type is one, and the type says that its instances begin there and have room.
fn object(
    block: &[u8],
    header: usize,
    layout: &InterpreterLayout,
    find_type: &mut impl FnMut(u64) -> Option<PythonType>,
) -> Option<Shape> {
    let (count, type_address) = (word(block, header)?, word(block, header + 8)?);
    // From 3.14 on the count has the lower half of its word, and flags the upper (Include/object.h, `struct _object`).
    let count = if layout.minor >= 14 { count & LARGEST_COUNT } else { count };
    if !(1..=LARGEST_COUNT).contains(&count) || type_address < 4096 || !type_address.is_multiple_of(8) {
        return None;
    }
    let found = find_type(type_address)?;
    // Of a long block only the beginning is here.
    let has_room = block.len() >= super::COMPARED_BYTES
        || header as u64 + found.shortest_instance() <= block.len() as u64;
    (found.header_bytes() == header as u64 && has_room).then(|| Shape {
        kind: kind_of(&found),
        header,
        type_address,
    })
}

fn kind_of(found: &PythonType) -> Kind {
    if found.is_heap_type() {
        return Kind::Instance;
    }
    let known = [
        (STR, Kind::Str),
        (BYTES, Kind::Bytes),
        (LONG, Kind::Int),
        (TUPLE, Kind::Tuple),
        (LIST, Kind::List),
        (DICT, Kind::Dict),
    ];
    let kind = known.into_iter().find(|(flag, _)| found.is_subclass_of(*flag)).map(|(_, kind)| kind);
    kind.unwrap_or(if found.has_gc() { Kind::Collected } else { Kind::Plain })
}

/// Where the first entry of a dictionary's table begins, if these are the bytes of one: `struct _dictkeysobject` (Include/internal/pycore_dict.h, 3.11).
/// `dk_usable` and `dk_nentries` of a table are at most two thirds of its size together, which no buffer is by chance.
pub(super) fn dict_keys(block: &[u8]) -> Option<usize> {
    let (count, usable, entries) = (word(block, 0)?, word(block, 16)?, word(block, 24)?);
    let [log2_size, log2_index_bytes, kind, ..] = word(block, 8)?.to_le_bytes();
    // A table has 8 to 2^40 places, an index of 1 to 8 bytes for each.
    let is_sized = (3..40).contains(&log2_size) && (log2_size..=log2_size + 3).contains(&log2_index_bytes);
    if !is_sized || kind > 2 || !(1..=LARGEST_COUNT).contains(&count) {
        return None;
    }
    let most = (1_u64 << log2_size) * 2 / 3;
    let is_filled = entries <= most && usable <= most && entries + usable <= most;
    is_filled.then(|| 32_usize.saturating_add(1 << log2_index_bytes))
}
