//! Blocks written by hand as CPython lays them out.

use super::{COMPARED_BYTES, Depth, Identity, Kind, Likeness, PythonType, TYPE_BYTES, is_type};
use crate::discover::layout::layout;

const STR: u64 = 0x5000;
const INT: u64 = 0x5100;
const TUPLE: u64 = 0x5200;
const POINT: u64 = 0x5300;
const MODEL: u64 = 0x5400;
const TYPE: u64 = 0x5500;
const DICT: u64 = 0x5600;
const LIST: u64 = 0x5700;
const FLOAT: u64 = 0x5800;

/// Flags as in Include/object.h: HEAPTYPE 9, HAVE_GC 14, MANAGED_DICT 4, LONG 24, LIST 25, TUPLE 26, DICT 29, UNICODE 28.
fn find(address: u64) -> Option<PythonType> {
    let (basic_size, flags) = match address {
        // sizeof(PyUnicodeObject), more than a short compact string has.
        STR => (64, 1 << 28),
        INT => (24, 1 << 24),
        TUPLE => (24, 1 << 26 | 1 << 14),
        POINT => (32, 1 << 9),
        MODEL => (24, 1 << 9 | 1 << 14 | 1 << 4),
        DICT => (48, 1 << 29 | 1 << 14),
        LIST => (40, 1 << 25 | 1 << 14),
        FLOAT => (24, 0),
        _ => return None,
    };
    Some(PythonType { metatype: TYPE, name: 1, basic_size, item_size: 0, flags })
}

fn block(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn identity(minor: u8, depth: Depth, words: &[u64]) -> Identity {
    Identity::of(&block(words), depth, layout(3, minor).unwrap(), &mut find)
}

/// The words at each depth tell the two apart: by type, by fixed words, by all.
#[track_caller]
fn differ(minor: u8, one: &[u64], other: &[u64]) -> [bool; 3] {
    [Depth::Type, Depth::Fixed, Depth::All]
        .map(|depth| identity(minor, depth, one) != identity(minor, depth, other))
}

/// A compact ASCII string of 3.12: count, type, length, hash, state (kind 1 at bit 2, compact 5, ascii 6), characters.
fn string(count: u64, hash: u64, characters: &[u8; 8]) -> [u64; 6] {
    [count, STR, 8, hash, 1 << 2 | 1 << 5 | 1 << 6, u64::from_le_bytes(*characters)]
}

#[test]
fn a_string_is_its_characters_and_not_its_hash() {
    let word = string(1, u64::MAX, b"identity");
    assert_eq!(identity(12, Depth::Type, &word).kind(), Kind::Str);
    assert_eq!(differ(12, &word, &string(3, 77, b"identity")), [false, false, true]);
    assert_eq!(differ(12, &word, &string(1, u64::MAX, b"identitY")), [false, true, true]);
}

#[test]
fn characters_behind_the_string_do_not_count() {
    let mut short = string(1, 5, b"identity");
    short[2] = 7;
    let mut other = short;
    other[5] ^= 1 << 56;
    assert_eq!(differ(12, &short, &other), [false, false, true]);
}

#[test]
fn an_int_is_its_digits_in_both_layouts() {
    // 3.11: the length is signed; 3.12: above three bits of sign and state.
    assert_eq!(
        differ(11, &[1, INT, 1u64.wrapping_neg(), 7], &[1, INT, 1u64.wrapping_neg(), 8]),
        [false, true, true]
    );
    assert_eq!(differ(12, &[1, INT, 1 << 3, 7], &[2, INT, 1 << 3, 7]), [false; 3]);
    // The upper half of the last word is not a digit.
    assert_eq!(differ(12, &[1, INT, 1 << 3, 7], &[1, INT, 1 << 3, 1 << 40 | 7]), [false, false, true]);
}

#[test]
fn the_collectors_links_are_no_part_of_a_tuple() {
    let one = [0x111, 0x222, 1, TUPLE, 1, 0x9000, 0, 0];
    assert_eq!(identity(12, Depth::Type, &one).kind(), Kind::Tuple);
    assert_eq!(differ(12, &one, &[0x333, 0x444, 9, TUPLE, 1, 0x9000, 0, 0]), [false; 3]);
    assert_eq!(differ(12, &one, &[0x111, 0x222, 1, TUPLE, 1, 0x9001, 0, 0]), [false, true, true]);
}

#[test]
fn fields_of_an_instance_may_change() {
    let point = [1, POINT, 5, 6];
    assert_eq!(identity(12, Depth::Type, &point).kind(), Kind::Instance);
    assert_eq!(differ(12, &point, &[1, POINT, 5, 7]), [false, false, true]);
    assert_eq!(differ(12, &point, &[1, INT, 5, 6]), [true; 3]);
}

#[test]
fn an_instance_with_a_managed_dictionary_begins_two_words_later() {
    let model = [0, 0x7000, 0x111, 0x222, 1, MODEL, 0, 0];
    assert_eq!(identity(12, Depth::Type, &model).kind(), Kind::Instance);
    assert_eq!(differ(12, &model, &[0, 0x8000, 0, 0, 2, MODEL, 0, 0]), [false; 3]);
    // The same words without the collector's: the type says where its instances begin.
    assert_eq!(identity(12, Depth::Type, &model[2..]).kind(), Kind::Untyped);
}

#[test]
fn pointers_to_types_make_no_object() {
    // A list's items; the word before a type must be a count.
    assert_eq!(identity(12, Depth::Type, &[0x7f00_0000_5000, STR, STR, STR, STR, STR]).kind(), Kind::Untyped);
    // Nobody holds it: freed, or on a free list.
    assert_eq!(identity(12, Depth::Type, &string(0, 5, b"identity")).kind(), Kind::Untyped);
}

/// A table of 8 places for strings: count, sizes and kind, usable, entries, the index, the first entry.
fn keys(log2_size: u64, usable: u64, entries: u64, first: u64) -> [u64; 7] {
    [1, log2_size | 3 << 8 | 1 << 16, usable, entries, 0, first, 0x1234]
}

#[test]
fn a_dictionarys_table_is_its_size_and_first_key() {
    assert_eq!(identity(12, Depth::Type, &keys(3, 4, 1, 0x9000)).kind(), Kind::DictKeys);
    assert_eq!(differ(12, &keys(3, 4, 1, 0x9000), &keys(3, 3, 2, 0x9000)), [false, false, true]);
    assert_eq!(differ(12, &keys(3, 4, 1, 0x9000), &keys(3, 4, 1, 0x9008)), [false, true, true]);
    assert_eq!(identity(12, Depth::Type, &keys(3, 4, 2, 0x9000)).kind(), Kind::Untyped);
}

#[test]
fn no_bytes_are_too_few_or_too_odd() {
    for length in 0..COMPARED_BYTES {
        for fill in [0, 1, 0x50, 0xff] {
            let bytes = vec![fill; length];
            for minor in 11..=13 {
                Identity::of(&bytes, Depth::All, layout(3, minor).unwrap(), &mut find);
                Identity::of(&bytes, Depth::Fixed, layout(3, minor).unwrap(), &mut find);
            }
        }
    }
    // Lengths of another world.
    for length in [u64::MAX, 1 << 63, 1 << 40] {
        for type_address in [STR, INT] {
            identity(12, Depth::Fixed, &[1, type_address, length, 0, 0x64, 0]);
        }
        identity(12, Depth::Fixed, &[0, 0, 1, TUPLE, length, 0]);
    }
}

#[test]
fn types_end_at_type() {
    let parse = |address| {
        let metatype = match address {
            TYPE => TYPE,
            MODEL => POINT,
            POINT => TYPE,
            STR => INT,
            INT => STR,
            _ => return None,
        };
        Some(PythonType { metatype, name: 1, basic_size: 16, item_size: 0, flags: 0 })
    };
    assert!(is_type(MODEL, &mut { parse }));
    assert!(is_type(TYPE, &mut { parse }));
    // Two that are each other's, and what is nothing.
    assert!(!is_type(STR, &mut { parse }));
    assert!(!is_type(1, &mut { parse }));
}

#[test]
fn what_cannot_be_a_type_is_not_parsed() {
    let mut bytes = vec![0; TYPE_BYTES];
    assert!(PythonType::parse(&bytes).is_none());
    for (offset, value) in [(8, 0x5500_u64), (24, 0x6000), (32, 48)] {
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    assert_eq!(PythonType::parse(&bytes).unwrap().basic_size, 48);
    assert!(PythonType::parse(&bytes[..TYPE_BYTES - 1]).is_none());
    bytes[39] = 1;
    assert!(PythonType::parse(&bytes).is_none());
}

fn likeness(minor: u8, words: &[u64]) -> Likeness {
    Likeness::of(&block(words), layout(3, minor).unwrap(), &mut find)
}

/// Whether the second may be what has become of the first, made and in the making.
#[track_caller]
fn may_be(before: &[u64], now: &[u64]) -> (bool, bool) {
    let (before, now) = (likeness(12, before), likeness(12, now));
    (before.may_be(&now), before.may_become(&now))
}

#[test]
fn a_dictionary_that_is_written_to_is_the_same() {
    // Links, count, type, used, version, table, values.
    let dict = |count, used, version, keys| [0x111, 0x222, count, DICT, used, version, keys, 0];
    let before = dict(1, 3, 50, 0x9000);
    assert_eq!(may_be(&before, &dict(2, 5, 77, 0x9000)), (true, true));
    assert_eq!(may_be(&before, &dict(1, 6, 78, 0x9900)), (true, true)); // has grown
    assert_eq!(may_be(&before, &dict(1, 3, 78, 0x9900)), (false, true));
    assert_eq!(may_be(&before, &dict(0, 3, 78, 0x9900)), (true, true)); // on a free list
    assert_eq!(may_be(&before, &[0x111, 0x222, 1, LIST, 3, 50, 0x9000, 0]), (false, false));
}

#[test]
fn a_list_is_its_items_or_longer() {
    let list = |size, items| [0x111, 0x222, 1, LIST, size, items, 8, 0];
    assert_eq!(may_be(&list(3, 0x9000), &list(1, 0x9000)), (true, true));
    assert_eq!(may_be(&list(3, 0x9000), &list(9, 0x9900)), (true, true));
    assert_eq!(may_be(&list(3, 0x9000), &list(2, 0x9900)), (false, true));
}

#[test]
fn fields_change_one_by_one() {
    let point = |fields: [u64; 6]| [&[1, POINT][..], &fields].concat();
    let before = point([5, 6, 7, 8, 9, 10]);
    assert_eq!(may_be(&before, &point([5, 6, 77, 8, 9, 10])), (true, true));
    assert_eq!(may_be(&before, &point([55, 66, 7, 8, 9, 10])), (false, true));
    assert_eq!(may_be(&[1, FLOAT, 0x3ff0, 0], &[1, FLOAT, 0x3ff1, 0]), (false, true));
}

#[test]
fn what_has_no_type_yet_may_become_anything() {
    let raw = [0x7f00_0000_9000, 0x7f00_0000_9100, 0, 0];
    assert_eq!(may_be(&raw, &[1, FLOAT, 0x3ff0, 0]), (false, true));
    let word = string(1, u64::MAX, b"identity");
    assert_eq!(may_be(&word, &string(2, 77, b"identity")), (true, true));
    assert_eq!(may_be(&word, &string(1, u64::MAX, b"another.")), (false, false));
}

#[test]
fn counts_of_3_14_have_flags_above_them() {
    let flagged = [1 << 48 | 1, FLOAT, 0x3ff0, 0];
    assert_eq!((likeness(14, &flagged).kind(), likeness(13, &flagged).kind()), (Kind::Plain, Kind::Untyped));
    // And tuples a hash before their items.
    let tuple = |hash, item| [0, 0, 1, TUPLE, 1, hash, item, 0];
    assert!(likeness(14, &tuple(u64::MAX, 0x9000)).may_be(&likeness(14, &tuple(77, 0x9000))));
    assert!(!likeness(14, &tuple(77, 0x9000)).may_be(&likeness(14, &tuple(77, 0x9008))));
}
