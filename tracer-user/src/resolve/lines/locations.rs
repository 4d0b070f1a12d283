//! `co_linetable` of 3.11 to 3.13: entries of (units of code, kind, line change, columns).
//!
//! Objects/codeobject.c (`advance`, `get_line_delta`), Include/internal/pycore_code.h (`scan_varint`) and
//! Objects/locations.md, 3.11.7, 3.12.1 and 3.13.0.

use super::{Line, LineUnknown, Table};

/// Set in the first byte of an entry and in no other.
const ENTRY_START: u8 = 0x80;
const ONE_LINE_0: u8 = 10;
const ONE_LINE_2: u8 = 12;
const NO_COLUMNS: u8 = 13;
const LONG: u8 = 14;
const NO_LOCATION: u8 = 15;

pub(super) fn line(table: Table<'_>, offset: u64) -> Line {
    let mut rest = table.bytes;
    let mut end = 0_u64;
    let mut line = i64::from(table.first_line);
    while let Some((start, behind)) = rest.split_first() {
        let length = behind.iter().position(|byte| byte & ENTRY_START != 0).unwrap_or(behind.len());
        let (operands, next) = behind.split_at(length);
        if next.is_empty() && !table.complete {
            break; // the cut may have gone through this entry
        }
        let kind = start >> 3 & 15;
        // An entry covers 1 to 8 units of two bytes.
        end += 2 * (u64::from(start & 7) + 1);
        line = line.saturating_add(line_change(kind, operands));
        if offset < end {
            let artificial = kind == NO_LOCATION;
            return if artificial { Line::Unknown(LineUnknown::Artificial) } else { Line::from_signed(line) };
        }
        rest = next;
    }
    table.past_the_end()
}

fn line_change(kind: u8, operands: &[u8]) -> i64 {
    match kind {
        ONE_LINE_0..=ONE_LINE_2 => i64::from(kind - ONE_LINE_0),
        NO_COLUMNS | LONG => signed_varint(operands),
        _ => 0,
    }
}

/// Six bits a byte, lowest first, bit 6 says that more follow; the lowest bit of the value is the sign.
fn signed_varint(bytes: &[u8]) -> i64 {
    /// CPython's value has 32 bits: six bytes of six bits; more is no line change.
    const LONGEST: usize = 6;
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(LONGEST).enumerate() {
        value |= u64::from(byte & 63) << (6 * index);
        if byte & 64 == 0 {
            break;
        }
    }
    let size = (value >> 1).cast_signed();
    if value & 1 == 1 { -size } else { size }
}
