//! From an instruction to its line: one decoder a table format, chosen by version.
//!
//! The answer is what `PyCode_Addr2Line` gives, which is what tracemalloc prints (Modules/_tracemalloc.c, 3.8 to 3.10, by
//! `PyFrame_GetLineNumber`; Python/tracemalloc.c and `PyUnstable_InterpreterFrame_GetLine`, 3.12+). It must not know frames
//! or names. Tables are hostile: every decoder makes one pass and touches each byte at most twice.

use crate::discover::layout::{InstructionKind, InstructionStore, InterpreterLayout};

mod line_number_table;
mod line_ranges;
mod locations;

/// Where a frame is in its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// Before the first instruction: the line is the function's first.
    NotStarted,
    /// At this many bytes from the first instruction.
    At(u32),
}

/// What a frame's instruction field says, in bytes from the first instruction.
///
/// `raw_instruction` is what the kernel half sends:
/// - 3.8, 3.9: `f_lasti`, which counts bytes (Python/ceval.c: `INSTR_OFFSET` times `sizeof(_Py_CODEUNIT)`); -1 is not started.
/// - 3.10: `f_lasti`, which counts units of two bytes (Objects/frameobject.c: `f_lasti*sizeof(_Py_CODEUNIT)`); -1 likewise.
/// - 3.11, 3.12: `prev_instr` minus the address of the code object (Include/internal/pycore_frame.h: `_PyInterpreterFrame_LASTI`
///   subtracts `_PyCode_CODE`, which is `co_code_adaptive`); the value before it, by one unit, is not started.
/// - 3.13: `instr_ptr` minus the address of the code object, `_PyInterpreterFrame_LASTI` alike.
pub fn normalise(raw_instruction: u32, layout: &InterpreterLayout) -> Position {
    let bytes = match layout.frame.instruction_kind {
        InstructionKind::LastByteOffset if raw_instruction > i32::MAX as u32 => None,
        InstructionKind::LastByteOffset => Some(raw_instruction),
        InstructionKind::LastUnit if raw_instruction > i32::MAX as u32 => None,
        InstructionKind::LastUnit => Some(raw_instruction.saturating_mul(2)),
        InstructionKind::Pointer => match layout.code.instructions {
            InstructionStore::Inline { start, .. } => raw_instruction.checked_sub(start),
            InstructionStore::Bytes(_) => None,
        },
    };
    bytes.map_or(Position::NotStarted, Position::At)
}

/// Which table a version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// `co_lnotab` (3.8, 3.9).
    LineNumberTable,
    /// `co_linetable` of pairs (3.10).
    LineRanges,
    /// `co_linetable` of locations (3.11 to 3.13).
    Locations,
}

impl LineFormat {
    /// The format of a version.
    pub fn of(layout: &InterpreterLayout) -> Self {
        match layout.minor {
            ..=9 => Self::LineNumberTable,
            10 => Self::LineRanges,
            _ => Self::Locations,
        }
    }

    /// The line of `position` in the code that `table` belongs to.
    pub fn line(self, table: Table<'_>, position: Position) -> Line {
        let Position::At(offset) = position else { return Line::from_signed(table.first_line.into()) };
        let offset = offset.into();
        match self {
            Self::LineNumberTable => line_number_table::line(table, offset),
            Self::LineRanges => line_ranges::line(table, offset),
            Self::Locations => locations::line(table, offset),
        }
    }
}

/// A line table and what is needed to read it.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// The bytes, from the start.
    pub bytes: &'a [u8],
    /// Whether they are all.
    pub complete: bool,
    /// `co_firstlineno`.
    pub first_line: i32,
}

impl Table<'_> {
    /// The answer for an instruction behind all that the table holds.
    fn past_the_end(self) -> Line {
        Line::Unknown(if self.complete { LineUnknown::OutsideCode } else { LineUnknown::TableCut })
    }
}

/// The line of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A line; 0 occurs (3.11+ gives it to the start of a module).
    Known(u32),
    /// No line, and why.
    Unknown(LineUnknown),
}

/// Why an instruction has no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LineUnknown {
    /// The compiler gave it none (3.10+); tracemalloc prints 0.
    Artificial,
    /// The table ends before the instruction: not this code's instruction, or not its table.
    OutsideCode,
    /// Only the start of the table was read, and the instruction is behind it.
    TableCut,
    /// The line came out negative or above 2^31: not a line table.
    Malformed,
}

impl Line {
    fn from_signed(line: i64) -> Self {
        match i32::try_from(line).map(u32::try_from) {
            Ok(Ok(line)) => Self::Known(line),
            _ => Self::Unknown(LineUnknown::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discover::layout::layout;

    const FORMATS: [LineFormat; 3] =
        [LineFormat::LineNumberTable, LineFormat::LineRanges, LineFormat::Locations];

    #[track_caller]
    fn check(minor: u8, raw: u32, expected: Position) {
        let Some(layout) = layout(3, minor) else { panic!("no row for 3.{minor}") };
        assert_eq!(normalise(raw, layout), expected, "3.{minor}");
    }

    #[test]
    fn instructions_count_bytes_units_or_from_the_code_object() {
        check(8, 6, Position::At(6));
        check(9, u32::MAX, Position::NotStarted);
        check(10, 6, Position::At(12));
        check(10, u32::MAX, Position::NotStarted);
        check(11, 184 + 6, Position::At(6));
        check(11, 182, Position::NotStarted);
        check(12, 192, Position::At(0));
        check(13, 210, Position::At(10));
    }

    #[test]
    fn before_the_start_is_the_first_line() {
        for format in FORMATS {
            let table = Table { bytes: &[], complete: false, first_line: 7 };
            assert_eq!(format.line(table, Position::NotStarted), Line::Known(7));
        }
    }

    #[test]
    fn a_cut_table_is_not_the_end_of_the_code() {
        let expected = [(false, LineUnknown::TableCut), (true, LineUnknown::OutsideCode)];
        for (complete, reason) in expected {
            for (format, bytes) in [(LineFormat::LineRanges, &[4, 1]), (LineFormat::Locations, &[0x80, 0])] {
                let table = Table { bytes, complete, first_line: 1 };
                assert_eq!(format.line(table, Position::At(90)), Line::Unknown(reason), "{format:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            complete: bool, first_line: i32, offset: u32,
        ) {
            for format in FORMATS {
                let table = Table { bytes: &bytes, complete, first_line };
                format.line(table, Position::At(offset));
                format.line(table, Position::At(offset % 4096));
            }
        }

        #[test]
        fn cutting_a_table_never_changes_a_known_line(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0..200_usize, offset in 0..2000_u32,
        ) {
            for format in FORMATS {
                let whole = Table { bytes: &bytes, complete: true, first_line: 1000 };
                let start = Table { bytes: &bytes[..cut.min(bytes.len())], complete: false, ..whole };
                if let Line::Known(line) = format.line(start, Position::At(offset)) {
                    prop_assert_eq!(format.line(whole, Position::At(offset)), Line::Known(line));
                }
            }
        }
    }
}
