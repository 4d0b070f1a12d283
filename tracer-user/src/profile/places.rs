//! The frames of a pprof file: mappings, functions and locations into [`Frame`]s.
//!
//! It must not know samples. Everything it reads is hostile (see `read.rs`).

use std::collections::HashMap;

use indexmap::IndexSet;

use super::{
    Frame, FrameId, FrameKind,
    pprof::KINDS,
    proto,
    read::ReadError,
    wire::{self, Fields},
};

/// Most bytes of names over all frames; a file may let a million frames share one long name.
const MAX_NAME_BYTES: usize = 512 << 20;

/// Frames, and which of them each location stands for (several where functions were inlined).
pub(super) struct Places {
    pub frames: IndexSet<Frame, rustc_hash::FxBuildHasher>,
    /// By location id: start and length in `expanded`. Ids are hostile: the standard, seeded hash.
    ranges: HashMap<u64, (usize, usize)>,
    expanded: Vec<FrameId>,
}

/// Decodes locations; borrows what their frames are made of.
struct PlaceReader<'a> {
    fields: &'a Fields<'a>,
    functions: HashMap<u64, proto::Function>,
    mapping_files: HashMap<u64, i64>,
    is_ours: bool,
    name_bytes: usize,
}

impl Places {
    pub fn read(fields: &Fields<'_>, is_ours: bool) -> Result<Self, ReadError> {
        let mut reader = PlaceReader::new(fields, is_ours)?;
        let (frames, ranges, expanded) = (IndexSet::default(), HashMap::new(), Vec::new());
        let mut places = Self { frames, ranges, expanded };
        for bytes in &fields.locations {
            let location: proto::Location = wire::message(bytes)?;
            let start = places.expanded.len();
            for frame in reader.frames(&location)? {
                let (index, _) = places.frames.insert_full(frame);
                places.expanded.push(FrameId(index as u32));
            }
            places.ranges.insert(location.id, (start, places.expanded.len() - start));
        }
        Ok(places)
    }

    /// The frames of a location, innermost first.
    pub fn expand(&self, id: u64) -> Result<&[FrameId], ReadError> {
        let dangling = ReadError::Dangling { what: "location", index: id.cast_signed() };
        let &(start, length) = self.ranges.get(&id).ok_or(dangling)?;
        Ok(&self.expanded[start..start + length])
    }
}

impl<'a> PlaceReader<'a> {
    fn new(fields: &'a Fields<'a>, is_ours: bool) -> Result<Self, ReadError> {
        let mut functions = HashMap::new();
        for bytes in &fields.functions {
            let function: proto::Function = wire::message(bytes)?;
            functions.insert(function.id, function);
        }
        let mut mapping_files = HashMap::new();
        for bytes in &fields.mappings {
            let mapping: proto::Mapping = wire::message(bytes)?;
            mapping_files.insert(mapping.id, mapping.filename);
        }
        Ok(Self { fields, functions, mapping_files, is_ours, name_bytes: 0 })
    }

    /// Innermost first.
    fn frames(&mut self, location: &proto::Location) -> Result<Vec<Frame>, ReadError> {
        let mapping = self.mapping_files.get(&location.mapping_id).copied().unwrap_or(0);
        let mut frames = Vec::with_capacity(location.line.len().max(1));
        for line in &location.line {
            let dangling = ReadError::Dangling { what: "function", index: line.function_id.cast_signed() };
            let function = *self.functions.get(&line.function_id).ok_or(dangling)?;
            frames.push(self.frame(&function, line.line, mapping)?);
        }
        if frames.is_empty() {
            let mapping = self.fields.string(mapping)?.into_owned();
            let file = (!mapping.is_empty()).then_some(mapping);
            let function = format!("{:#x}", location.address);
            frames.push(Frame { kind: FrameKind::Native, function, file, line: 0, first_line: 0 });
        }
        for frame in &frames {
            self.name_bytes += frame.function.len() + frame.file.as_ref().map_or(0, String::len);
        }
        if self.name_bytes > MAX_NAME_BYTES {
            return Err(ReadError::TooMany { what: "bytes of names", limit: MAX_NAME_BYTES });
        }
        Ok(frames)
    }

    fn frame(&self, function: &proto::Function, line: i64, mapping: i64) -> Result<Frame, ReadError> {
        // Index 0 is "no file"; any other index is a file's name, even an empty one.
        let file = match function.filename {
            0 => None,
            index => Some(self.fields.string(index)?.into_owned()),
        };
        let kind = self.kind(mapping, file.as_deref())?;
        let positive = |line: i64| u32::try_from(line).unwrap_or(0);
        let function_name = self.fields.string(function.name)?.into_owned();
        let first_line = positive(function.start_line);
        Ok(Frame { kind, function: function_name, file, line: positive(line), first_line })
    }

    fn kind(&self, mapping: i64, file: Option<&str>) -> Result<FrameKind, ReadError> {
        if self.is_ours {
            let mapping = self.fields.string(mapping)?;
            let known = KINDS.into_iter().find(|(_, name)| *name == mapping).map(|(kind, _)| kind);
            return Ok(known.unwrap_or(FrameKind::Native));
        }
        let is_python = |file: &str| file.ends_with(".py") || (file.starts_with('<') && file.ends_with('>'));
        Ok(if file.is_some_and(is_python) { FrameKind::Python } else { FrameKind::Native })
    }
}
