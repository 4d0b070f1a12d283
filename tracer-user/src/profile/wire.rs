//! The outermost layer of a pprof file, taken apart without copying: where each message lies in the bytes.
//!
//! Decoding the whole file into message structs would let a few hundred kilobytes of gzip ask for many gigabytes
//! (a 2-byte message becomes a 100-byte struct). So only positions are kept here, their number is bounded, and
//! `read.rs` decodes one message at a time. It must not know what the messages mean.

use std::{borrow::Cow, io::Read};

use flate2::bufread::MultiGzDecoder;
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

use super::read::ReadError;

/// Most bytes a profile may have once decompressed; a million stacks of a hundred frames fit.
pub(super) const MAX_DECOMPRESSED_BYTES: u64 = 512 << 20;
/// Most entries of a kind (samples, locations, strings and so on).
const MAX_ENTRIES: usize = 1 << 22;
/// Most bytes of one message other than a string: bounds what decoding it may ask for.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The fields of a `Profile` message, undecoded.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub sample_types: Vec<&'a [u8]>,
    pub samples: Vec<&'a [u8]>,
    pub mappings: Vec<&'a [u8]>,
    pub locations: Vec<&'a [u8]>,
    pub functions: Vec<&'a [u8]>,
    pub strings: Vec<&'a [u8]>,
    pub comments: Vec<i64>,
    pub time_nanoseconds: u64,
    pub duration_nanoseconds: u64,
    pub default_sample_type: i64,
}

/// The protobuf inside `file`: decompressed where it is gzip, as it is otherwise (pprof allows both).
pub(super) fn decompress(file: &[u8]) -> Result<Cow<'_, [u8]>, ReadError> {
    if file.is_empty() {
        return Err(ReadError::Empty);
    }
    if !file.starts_with(&[0x1f, 0x8b]) {
        return Ok(Cow::Borrowed(file));
    }
    let mut data = Vec::new();
    let mut limited = MultiGzDecoder::new(file).take(MAX_DECOMPRESSED_BYTES + 1);
    limited.read_to_end(&mut data).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => ReadError::Truncated,
        _ => ReadError::Gzip(source),
    })?;
    if data.len() as u64 > MAX_DECOMPRESSED_BYTES {
        return Err(ReadError::TooLarge { limit_mebibytes: MAX_DECOMPRESSED_BYTES >> 20 });
    }
    Ok(Cow::Owned(data))
}

/// Finds the fields of the outermost message.
pub(super) fn split(mut data: &[u8]) -> Result<Fields<'_>, ReadError> {
    let mut fields = Fields::default();
    while !data.is_empty() {
        let (tag, wire_type) = decode_key(&mut data).map_err(ReadError::Wire)?;
        match wire_type {
            WireType::Varint => fields.number(tag, decode_varint(&mut data).map_err(ReadError::Wire)?)?,
            WireType::LengthDelimited => {
                let length = decode_varint(&mut data).map_err(ReadError::Wire)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let (message, rest) = data.split_at_checked(length).ok_or(ReadError::Truncated)?;
                data = rest;
                fields.message(tag, message)?;
            }
            WireType::SixtyFourBit => data = data.get(8..).ok_or(ReadError::Truncated)?,
            WireType::ThirtyTwoBit => data = data.get(4..).ok_or(ReadError::Truncated)?,
            WireType::StartGroup | WireType::EndGroup => return Err(ReadError::NotPprof),
        }
    }
    Ok(fields)
}

/// Decodes one message of at most [`MAX_MESSAGE_BYTES`].
pub(super) fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, ReadError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(ReadError::TooMany { what: "bytes in one message", limit: MAX_MESSAGE_BYTES });
    }
    M::decode(bytes).map_err(ReadError::Wire)
}

impl<'a> Fields<'a> {
    fn number(&mut self, tag: u32, value: u64) -> Result<(), ReadError> {
        match tag {
            9 => self.time_nanoseconds = not_negative(value),
            10 => self.duration_nanoseconds = not_negative(value),
            13 => push(&mut self.comments, value.cast_signed(), "comments")?,
            14 => self.default_sample_type = value.cast_signed(),
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self, tag: u32, message: &'a [u8]) -> Result<(), ReadError> {
        match tag {
            1 => push(&mut self.sample_types, message, "sample types"),
            2 => push(&mut self.samples, message, "samples"),
            3 => push(&mut self.mappings, message, "mappings"),
            4 => push(&mut self.locations, message, "locations"),
            5 => push(&mut self.functions, message, "functions"),
            6 => push(&mut self.strings, message, "strings"),
            13 => self.packed_comments(message),
            _ => Ok(()),
        }
    }

    fn packed_comments(&mut self, mut packed: &[u8]) -> Result<(), ReadError> {
        while !packed.is_empty() {
            let index = decode_varint(&mut packed).map_err(ReadError::Wire)?;
            push(&mut self.comments, index.cast_signed(), "comments")?;
        }
        Ok(())
    }

    /// The string at an index of the table; what is not UTF-8 in it is replaced.
    pub fn string(&self, index: i64) -> Result<Cow<'a, str>, ReadError> {
        let found = usize::try_from(index).ok().and_then(|index| self.strings.get(index));
        found.map(|bytes| String::from_utf8_lossy(bytes)).ok_or(ReadError::Dangling { what: "string", index })
    }
}

fn push<T>(list: &mut Vec<T>, entry: T, what: &'static str) -> Result<(), ReadError> {
    if list.len() >= MAX_ENTRIES {
        return Err(ReadError::TooMany { what, limit: MAX_ENTRIES });
    }
    list.push(entry);
    Ok(())
}

/// Times are signed on the wire; one before 1970 is as good as unknown.
fn not_negative(value: u64) -> u64 {
    u64::try_from(value.cast_signed()).unwrap_or(0)
}
