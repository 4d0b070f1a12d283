//! `co_linetable` of 3.10: pairs of (bytes of code, signed lines), -128 for "no line".
//!
//! Objects/codeobject.c, `advance` and `_PyCode_CheckLineNumber`, and Objects/lnotab_notes.txt, 3.10.13.

use super::{Line, LineUnknown, Table};

const NO_LINE: i8 = -128;

pub(super) fn line(table: Table<'_>, offset: u64) -> Line {
    let (pairs, _) = table.bytes.as_chunks::<2>();
    let mut end = 0_u64;
    let mut line = i64::from(table.first_line);
    for [code_bytes, lines] in pairs {
        end += u64::from(*code_bytes);
        let lines = lines.cast_signed();
        if lines != NO_LINE {
            line += i64::from(lines);
        }
        if offset < end {
            let artificial = lines == NO_LINE;
            return if artificial { Line::Unknown(LineUnknown::Artificial) } else { Line::from_signed(line) };
        }
    }
    table.past_the_end()
}
