//! Code definitions as the kernel half sends them, and their strings.
//!
//! It must not know line tables (see `lines`) nor how definitions travel.

use crate::discover::layout::StateBits;

/// A code object as it was read while its process ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeDefinition {
    /// `co_name`.
    pub name: RawString,
    /// `co_qualname` (3.11+).
    pub qualified_name: Option<RawString>,
    /// `co_filename`.
    pub file: RawString,
    /// `co_firstlineno`.
    pub first_line: i32,
    /// `_co_firsttraceable` in units of two bytes (3.11+); 0 before.
    pub first_traceable: u32,
    /// `co_lnotab` (to 3.9) or `co_linetable`, from its start.
    pub line_table: Vec<u8>,
    /// Whether that is all of it.
    pub line_table_complete: bool,
}

/// A `str` object as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawString {
    /// The bit field `PyASCIIObject.state`.
    pub state: u32,
    /// `PyASCIIObject.length`: code points.
    pub length: u64,
    /// The data from its start, all of it or as much as was read.
    pub bytes: Vec<u8>,
}

/// Why a string could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum StringUnreadable {
    /// The state says neither 1, 2 nor 4 bytes a character (0 is `PyUnicode_WCHAR_KIND`, 3.8 to 3.11).
    #[error("string kind `{0}` is none of 1, 2 and 4; the object is not ready or not a string")]
    Kind(u32),
    /// The data is not inside the object, so what was read is something else.
    #[error("string state `{0:#x}` is not compact; its data lies elsewhere")]
    NotCompact(u32),
    /// The string has characters, but none was read.
    #[error("string of {0} characters came without data")]
    Empty(u64),
}

impl RawString {
    /// The text. Lone surrogates become U+FFFD; a string that was cut ends in an ellipsis.
    ///
    /// Control characters are kept, as a file may be named so: writers escape what their format needs escaped.
    pub fn decode(&self, bits: StateBits) -> Result<String, StringUnreadable> {
        if self.state.checked_shr(bits.compact.into()).unwrap_or(0) & 1 == 0 {
            return Err(StringUnreadable::NotCompact(self.state));
        }
        // Include/cpython/unicodeobject.h, 3.8 to 3.13: `kind` is the number of bytes a character takes.
        let kind = self.state.checked_shr(bits.kind_shift.into()).unwrap_or(0) & 0b111;
        let wanted = usize::try_from(self.length).unwrap_or(usize::MAX);
        let mut text: String = match kind {
            1 => self.bytes.iter().take(wanted).map(|byte| char::from(*byte)).collect(),
            2 => self.code_points(wanted, |unit: [u8; 2]| u16::from_le_bytes(unit).into()),
            4 => self.code_points(wanted, u32::from_le_bytes),
            other => return Err(StringUnreadable::Kind(other)),
        };
        let read = self.bytes.len() / kind as usize;
        if read < wanted {
            if read == 0 {
                return Err(StringUnreadable::Empty(self.length));
            }
            text.push('…');
        }
        Ok(text)
    }

    fn code_points<const WIDTH: usize>(&self, wanted: usize, value: impl Fn([u8; WIDTH]) -> u32) -> String {
        let (units, _) = self.bytes.as_chunks::<WIDTH>();
        let point = |unit: &[u8; WIDTH]| char::from_u32(value(*unit)).unwrap_or(char::REPLACEMENT_CHARACTER);
        units.iter().take(wanted).map(point).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: StateBits = StateBits { kind_shift: 2, compact: 5, ascii: 6 };

    fn decode(kind: u32, length: u64, bytes: &[u8]) -> Result<String, StringUnreadable> {
        RawString { state: kind << 2 | 1 << 5, length, bytes: bytes.to_vec() }.decode(BITS)
    }

    #[test]
    fn every_width() {
        assert_eq!(decode(1, 3, b"abc"), Ok("abc".to_owned()));
        assert_eq!(decode(1, 2, b"\xe9t"), Ok("ét".to_owned()));
        assert_eq!(decode(2, 2, &[0x42, 0x30, 0x44, 0x30]), Ok("あい".to_owned()));
        assert_eq!(decode(4, 1, &[0x00, 0xf6, 0x01, 0x00]), Ok("😀".to_owned()));
        assert_eq!(decode(1, 0, b""), Ok(String::new()));
    }

    #[test]
    fn data_behind_the_end_is_not_text() {
        assert_eq!(decode(1, 2, b"abc"), Ok("ab".to_owned()));
    }

    #[test]
    fn surrogates_and_values_beyond_unicode() {
        assert_eq!(decode(2, 2, &[0x00, 0xd8, 0x61, 0x00]), Ok("\u{fffd}a".to_owned()));
        assert_eq!(decode(4, 1, &[0xff; 4]), Ok("\u{fffd}".to_owned()));
    }

    #[test]
    fn cut_strings_say_so() {
        assert_eq!(decode(1, 9, b"abc"), Ok("abc…".to_owned()));
        assert_eq!(decode(2, 9, &[0x42, 0x30, 0x44]), Ok("あ…".to_owned()));
        assert_eq!(decode(1, u64::MAX, b"a"), Ok("a…".to_owned()));
        assert_eq!(decode(1, 9, b""), Err(StringUnreadable::Empty(9)));
    }

    #[test]
    fn what_is_no_string_is_refused() {
        assert_eq!(decode(0, 1, b"a"), Err(StringUnreadable::Kind(0)));
        assert_eq!(decode(3, 1, b"a"), Err(StringUnreadable::Kind(3)));
        let loose = RawString { state: 1 << 2, length: 1, bytes: vec![b'a'] };
        assert_eq!(loose.decode(BITS), Err(StringUnreadable::NotCompact(4)));
    }
}
