//! `co_lnotab` of 3.8 and 3.9: pairs of (bytes of code, signed lines).
//!
//! Objects/codeobject.c, `PyCode_Addr2Line`, and Objects/lnotab_notes.txt, 3.8.18 and 3.9.18.

use super::{Line, LineUnknown, Table};

pub(super) fn line(table: Table<'_>, offset: u64) -> Line {
    let (pairs, _) = table.bytes.as_chunks::<2>();
    let mut address = 0_u64;
    let mut line = i64::from(table.first_line);
    for [code_bytes, lines] in pairs {
        address += u64::from(*code_bytes);
        if address > offset {
            return Line::from_signed(line);
        }
        line += i64::from(lines.cast_signed());
    }
    // The last line has no end in the table, so only a whole table may answer with it.
    if table.complete { Line::from_signed(line) } else { Line::Unknown(LineUnknown::TableCut) }
}
