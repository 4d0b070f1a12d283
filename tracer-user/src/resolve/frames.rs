//! The resolver: keeps code definitions and turns stacks of raw frames into interned frames.
//!
//! It must not know line table formats (see `lines`) or string layouts (see `code`). Memory is bounded by [`Limits`].

use indexmap::IndexSet;
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use tracer_ebpf::abi::RawFrame;

use super::{
    code::{CodeDefinition, RawString},
    lines::{Line, LineFormat, LineUnknown, Position, Table, normalise},
};
use crate::{
    discover::layout::{InstructionKind, InterpreterLayout},
    profile::{Frame, FrameId, FrameKind, ProcessIndex},
};

/// How much a resolver may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of line tables; past it, lines fall to the function's first line.
    pub line_table_bytes: usize,
    /// Code definitions; past it, their frames are unresolved.
    pub definitions: usize,
}

impl Default for Limits {
    /// A line table is about 100 bytes (median of the standard library) to a few KiB: 16 MiB is some hundred thousand
    /// functions, far beyond what one program runs, and next to nothing beside the profile itself.
    fn default() -> Self {
        Self { line_table_bytes: 16 << 20, definitions: 1 << 18 }
    }
}

/// What happened to the frames, by cause. Counts each time a frame of a stack was resolved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResolveCounts {
    /// Frames that were given a name.
    pub named: u64,
    /// Frames left out because their function had not begun (not a loss: tracemalloc leaves them out as well).
    pub incomplete: u64,
    /// Instructions without a line of their own (not a loss: tracemalloc prints 0).
    pub artificial: u64,
    /// Frames whose code object was never defined.
    pub code_undefined: u64,
    /// Frames with a name or file that could not be read.
    pub name_unreadable: u64,
    /// Lines that fell to the first line because only a part of the table was read.
    pub table_cut: u64,
    /// Lines that fell to the first line because of [`Limits::line_table_bytes`].
    pub table_not_kept: u64,
    /// Lines that are 0 because the table contradicts the instruction or itself.
    pub table_wrong: u64,
    /// Definitions refused because of [`Limits::definitions`].
    pub definitions_refused: u64,
}

impl ResolveCounts {
    /// Frames whose name or line could not be found ([`crate::profile::Losses::unresolved_frames`]).
    pub fn unresolved(&self) -> u64 {
        let Self {
            named: _,
            incomplete: _,
            artificial: _,
            code_undefined,
            name_unreadable,
            table_cut,
            table_not_kept,
            table_wrong,
            definitions_refused: _,
        } = *self;
        code_undefined + name_unreadable + table_cut + table_not_kept + table_wrong
    }
}

/// Code definitions in, frames out.
#[derive(Debug, Clone)]
pub struct Resolver {
    limits: Limits,
    layouts: FxHashMap<ProcessIndex, InterpreterLayout>,
    codes: FxHashMap<CodeKey, Code>,
    names: IndexSet<Box<str>, FxBuildHasher>,
    tables: IndexSet<Box<[u8]>, FxBuildHasher>,
    table_bytes: usize,
    frames: IndexSet<Frame, FxBuildHasher>,
    counts: ResolveCounts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CodeKey {
    process: ProcessIndex,
    code: u64,
    fingerprint: u32,
}

/// A kept definition; names and tables are indices, as forked workers define the same code over and over.
#[derive(Debug, Clone, Copy)]
struct Code {
    function: Name,
    file: Name,
    first_line: i32,
    first_traceable: u32,
    table: KeptTable,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    index: usize,
    readable: bool,
}

#[derive(Debug, Clone, Copy)]
enum KeptTable {
    Kept { index: usize, complete: bool },
    NotKept,
}

impl Resolver {
    /// A resolver that knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            layouts: FxHashMap::default(),
            codes: FxHashMap::default(),
            names: IndexSet::default(),
            tables: IndexSet::default(),
            table_bytes: 0,
            frames: IndexSet::default(),
            counts: ResolveCounts::default(),
        }
    }

    /// Says which interpreter a process runs; to be called before its definitions arrive.
    pub fn add_process(&mut self, process: ProcessIndex, layout: InterpreterLayout) {
        self.layouts.insert(process, layout);
    }

    /// Drops what is known of the code of these processes: they have ended, and their stacks are resolved.
    pub fn forget(&mut self, processes: &[ProcessIndex]) {
        for process in processes {
            self.layouts.remove(process);
        }
        // One look at the table for all of them.
        let of_them: FxHashSet<ProcessIndex> = processes.iter().copied().collect();
        self.codes.retain(|key, _| !of_them.contains(&key.process));
    }

    /// Keeps a code definition. A later one for the same code replaces the earlier one.
    pub fn define(
        &mut self,
        process: ProcessIndex,
        code: u64,
        fingerprint: u32,
        definition: &CodeDefinition,
    ) {
        let Some(layout) = self.layouts.get(&process).copied() else { return };
        let key = CodeKey { process, code, fingerprint };
        if self.codes.len() >= self.limits.definitions && !self.codes.contains_key(&key) {
            self.counts.definitions_refused += 1;
            return;
        }
        let CodeDefinition { name, qualified_name, file, first_line, first_traceable, .. } = definition;
        let kept = Code {
            function: self.keep_name(qualified_name.as_ref().unwrap_or(name), &layout),
            file: self.keep_name(file, &layout),
            first_line: *first_line,
            first_traceable: *first_traceable,
            table: self.keep_table(definition),
        };
        self.codes.insert(key, kept);
    }

    /// The frames of a stack, innermost first as they came. Never empty: where nothing is left there is a marker.
    pub fn resolve(&mut self, process: ProcessIndex, stack: &[RawFrame]) -> Vec<FrameId> {
        let layout = self.layouts.get(&process).copied();
        let mut resolved: Vec<FrameId> =
            stack.iter().filter_map(|frame| self.resolve_frame(process, layout.as_ref()?, *frame)).collect();
        if resolved.is_empty() {
            let reason = if layout.is_some() { "no Python frame" } else { "interpreter not known" };
            resolved.push(self.marker(reason));
        }
        resolved
    }

    /// Interns a frame that is not Python's, such as another stage's marker.
    pub fn intern(&mut self, frame: Frame) -> FrameId {
        let (index, _) = self.frames.insert_full(frame);
        FrameId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Interns a marker with this reason.
    pub fn marker(&mut self, reason: &str) -> FrameId {
        let function = reason.to_owned();
        self.intern(Frame { kind: FrameKind::Marker, function, file: None, line: 0, first_line: 0 })
    }

    /// What happened so far.
    pub fn counts(&self) -> ResolveCounts {
        self.counts
    }

    /// The frames that the ids index, so far.
    pub fn frames(&self) -> &IndexSet<Frame, FxBuildHasher> {
        &self.frames
    }

    /// The frames that the ids index, for the profile.
    pub fn into_frames(self) -> IndexSet<Frame, FxBuildHasher> {
        self.frames
    }

    fn resolve_frame(
        &mut self,
        process: ProcessIndex,
        layout: &InterpreterLayout,
        raw: RawFrame,
    ) -> Option<FrameId> {
        let RawFrame { code, instruction, fingerprint } = raw;
        let Some(code) = self.codes.get(&CodeKey { process, code, fingerprint }).copied() else {
            self.counts.code_undefined += 1;
            return Some(self.marker("code object not read"));
        };
        let position = normalise(instruction, layout);
        if is_incomplete(position, code.first_traceable, layout) {
            self.counts.incomplete += 1;
            return None;
        }
        let line = self.line(code, position, layout);
        self.counts.named += 1;
        self.counts.name_unreadable += u64::from(!code.function.readable || !code.file.readable);
        Some(self.intern(Frame {
            kind: FrameKind::Python,
            function: self.name(code.function),
            file: Some(self.name(code.file)),
            line,
            first_line: known_first_line(code),
        }))
    }

    fn line(&mut self, code: Code, position: Position, layout: &InterpreterLayout) -> u32 {
        let KeptTable::Kept { index, complete } = code.table else {
            self.counts.table_not_kept += 1;
            return known_first_line(code);
        };
        let bytes = self.tables.get_index(index).map_or(&[][..], |table| table);
        let table = Table { bytes, complete, first_line: code.first_line };
        match LineFormat::of(layout).line(table, position) {
            Line::Known(line) => line,
            Line::Unknown(LineUnknown::Artificial) => {
                self.counts.artificial += 1;
                0
            }
            Line::Unknown(LineUnknown::TableCut) => {
                self.counts.table_cut += 1;
                known_first_line(code)
            }
            Line::Unknown(LineUnknown::OutsideCode | LineUnknown::Malformed) => {
                self.counts.table_wrong += 1;
                0
            }
        }
    }

    fn keep_name(&mut self, raw: &RawString, layout: &InterpreterLayout) -> Name {
        let decoded = raw.decode(layout.string.state_bits);
        let readable = decoded.is_ok();
        let text = decoded.unwrap_or_else(|_| "<unreadable>".to_owned());
        let (index, _) = self.names.insert_full(text.into_boxed_str());
        Name { index, readable }
    }

    fn name(&self, name: Name) -> String {
        self.names.get_index(name.index).map_or_else(String::new, ToString::to_string)
    }

    fn keep_table(&mut self, definition: &CodeDefinition) -> KeptTable {
        let CodeDefinition { line_table, line_table_complete: complete, .. } = definition;
        let complete = *complete;
        if let Some(index) = self.tables.get_index_of(line_table.as_slice()) {
            return KeptTable::Kept { index, complete };
        }
        let bytes = self.table_bytes.saturating_add(line_table.len());
        if bytes > self.limits.line_table_bytes {
            return KeptTable::NotKept;
        }
        self.table_bytes = bytes;
        let (index, _) = self.tables.insert_full(line_table.clone().into_boxed_slice());
        KeptTable::Kept { index, complete }
    }
}

/// Include/internal/pycore_frame.h, `_PyFrame_IsIncomplete`, 3.11.7, 3.12.1 and 3.13.0: not owned by a generator and the
/// instruction before `_co_firsttraceable`. tracemalloc leaves such frames out in all three.
///
/// The owner is not sent. A generator's frame is there only while it has not begun: when an exception is thrown into it
/// before its first step; that one frame is left out here and not by tracemalloc. To 3.10 there is no such rule.
fn is_incomplete(position: Position, first_traceable: u32, layout: &InterpreterLayout) -> bool {
    layout.frame.instruction_kind == InstructionKind::Pointer
        && match position {
            Position::NotStarted => true,
            Position::At(bytes) => bytes / 2 < first_traceable,
        }
}

fn known_first_line(code: Code) -> u32 {
    u32::try_from(code.first_line).unwrap_or(0)
}

#[cfg(test)]
mod tests;
