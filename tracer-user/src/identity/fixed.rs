//! Which bytes of a block are compared: those that CPython leaves alone while the object lives, or all that are not sure to change.

use std::ops::Range;

use super::kind::{Kind, Shape, dict_keys};
use super::word;
use crate::discover::layout::InterpreterLayout;

/// Reference count and type: the shape has the one, the other changes.
const OBJECT_BYTES: usize = 16;

/// Ranges of bytes that stay in a live object of this kind; none where only the type does.
pub(super) fn ranges(block: &[u8], shape: Shape, layout: &InterpreterLayout) -> Vec<Range<usize>> {
    let object = shape.header;
    let tail = |start: usize, length: u64| {
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        start.min(block.len())..end.min(block.len())
    };
    let length_at = |offset: usize| word(block, object + offset).unwrap_or_default();
    match shape.kind {
        // `long_value`: size and sign, and the digits of 30 bits in 32; from 3.12 on the length is from the third bit of `lv_tag` on.
        Kind::Int => {
            let length = length_at(16);
            let digits = if layout.minor >= 12 { length >> 3 } else { length.cast_signed().unsigned_abs() };
            vec![tail(object + 16, 8 + digits.max(1).saturating_mul(4))]
        }
        Kind::Bytes => {
            let (size, data) = (layout.bytes.size as usize, layout.bytes.data as usize);
            vec![tail(object + size, 8), tail(object + data, length_at(size))]
        }
        Kind::Str => string(block, object, layout),
        Kind::Tuple => {
            // From 3.14 on `ob_hash` is before the items (Include/cpython/tupleobject.h), and is written later.
            let items = if layout.minor >= 14 { 32 } else { 24 };
            vec![tail(object + 16, 8), tail(object + items, length_at(16).saturating_mul(8))]
        }
        // Size and kind of the table, and the first key: entries are appended, so the first stays until it is deleted.
        Kind::DictKeys => {
            // DICT_KEYS_GENERAL has the hash before the key.
            let hash = if block.get(10) == Some(&0) { 8 } else { 0 };
            let first = dict_keys(block).unwrap_or(usize::MAX).saturating_add(hash);
            vec![tail(8, 3), tail(first, 8)]
        }
        Kind::List | Kind::Dict | Kind::Plain | Kind::Collected | Kind::Instance | Kind::Untyped => {
            Vec::new()
        }
    }
}

/// Length and characters. The hash, what is interned and the UTF-8 form come later than the string.
fn string(block: &[u8], object: usize, layout: &InterpreterLayout) -> Vec<Range<usize>> {
    let places = &layout.string;
    let length = word(block, object + places.length as usize).unwrap_or_default();
    let state = word(block, object + places.state as usize).unwrap_or_default();
    let bit = |number: u8| state >> number & 1 == 1;
    let start =
        object + if bit(places.state_bits.ascii) { places.ascii_data } else { places.compact_data } as usize;
    let width = state >> places.state_bits.kind_shift & 7;
    let bytes = usize::try_from(length.saturating_mul(width)).unwrap_or(usize::MAX);
    let end = if bit(places.state_bits.compact) { start.saturating_add(bytes) } else { start };
    let size = object + places.length as usize;
    [size..size + 8, start..end]
        .map(|range| range.start.min(block.len())..range.end.min(block.len()))
        .to_vec()
}

/// All but reference counts and what lies before an object: the collector's links and managed pointers.
pub(super) fn all(block: &[u8], shape: Shape) -> Range<usize> {
    let start = match shape.kind {
        Kind::Untyped => 0,
        Kind::DictKeys => 8,
        _ => shape.header + OBJECT_BYTES,
    };
    start.min(block.len())..block.len()
}
