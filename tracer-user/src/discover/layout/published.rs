//! What an interpreter says about its own structures: `_Py_DebugOffsets`, the first member of `_PyRuntime` from 3.13 on.
//!
//! Why: patch releases and build options move fields, and the table is in the file, statically initialised. It is still only
//! bytes of a file of somebody else's, so a table that does not hold together is refused by name, never half used.
//! Include/internal/pycore_debug_offsets.h (3.13: pycore_runtime.h). It must not know files or processes: it is given the bytes.

use super::{FrameSource, InstructionStore, InterpreterLayout, Offset, PublishedPlaces, free_threaded};
use tracer_ebpf::memory::WIDE_BYTES;

/// `_Py_Debug_Cookie`.
const COOKIE: &[u8; 8] = b"xdebugpy";
/// Of the cookie, of `PY_VERSION_HEX` and of the flag of free-threaded builds: in every version that has the table.
const VERSION: Offset = 8;
const FREE_THREADED: Offset = 16;
/// `_PyRuntimeState` has 0.3 MiB, most of it static objects; more than this is no size of it.
const LARGEST: u64 = 64 << 20;

/// Why a published table cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    /// Fewer bytes than the table has.
    #[error("it has only {length} bytes")]
    Short {
        /// How many there are.
        length: usize,
    },
    /// Something else lies there.
    #[error("it begins with {found:02x?}, not with `xdebugpy`")]
    Cookie {
        /// The first bytes.
        found: [u8; 8],
    },
    /// Of another version than the interpreter.
    #[error("it is of version {found:#x}, the interpreter of 3.{minor}")]
    Version {
        /// `PY_VERSION_HEX` in the table.
        found: u64,
        /// The interpreter's minor version.
        minor: u8,
    },
    /// The interpreter has no global lock, and no such build of its version was tried.
    #[error("it is of a free-threaded build")]
    FreeThreaded,
    /// A number that cannot be an offset of that field.
    #[error("it puts `{field}` at {value}, which lies outside of its structure")]
    Implausible {
        /// The field.
        field: &'static str,
        /// What the table says.
        value: u64,
    },
}

impl InterpreterLayout {
    /// This row with what an interpreter of its version publishes. `table` begins where `_PyRuntime` does. A version that
    /// publishes nothing (before 3.13) keeps its row.
    pub fn with_published(&self, table: &[u8]) -> Result<Self, PublishedError> {
        let Some(places) = &self.published else { return Ok(*self) };
        let table = Table { bytes: table };
        table.check(self.minor, places)?;
        let mut row = *self;
        table.runtime(&mut row, places)?;
        table.thread_state(&mut row, places)?;
        table.frame(&mut row, places)?;
        table.code(&mut row, places)?;
        table.objects(&mut row, places)?;
        if table.word(FREE_THREADED)? != 0 {
            free_threaded::complete(&mut row, &table, places)?;
        }
        Ok(row)
    }
}

/// One field: its name in the table and where the table has it.
pub(super) type Field = (&'static str, Offset);

/// The table's bytes.
pub(super) struct Table<'a> {
    bytes: &'a [u8],
}

impl Table<'_> {
    fn word(&self, place: Offset) -> Result<u64, PublishedError> {
        let short = PublishedError::Short { length: self.bytes.len() };
        let at = usize::try_from(place).map_err(|_| short)?;
        let bytes = self.bytes.get(at..).and_then(|bytes| bytes.first_chunk::<8>());
        bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(short)
    }

    fn check(&self, minor: u8, places: &PublishedPlaces) -> Result<(), PublishedError> {
        if self.bytes.len() < places.size as usize {
            return Err(PublishedError::Short { length: self.bytes.len() });
        }
        let cookie = self.word(0)?.to_le_bytes();
        if &cookie != COOKIE {
            return Err(PublishedError::Cookie { found: cookie });
        }
        let found = self.word(VERSION)?;
        if found >> 16 != 0x300 | u64::from(minor) {
            return Err(PublishedError::Version { found, minor });
        }
        Ok(())
    }

    /// A structure's size.
    pub(super) fn size(&self, (field, place): Field) -> Result<u64, PublishedError> {
        let value = self.word(place)?;
        if value.is_multiple_of(8) && value <= LARGEST {
            Ok(value)
        } else {
            Err(PublishedError::Implausible { field, value })
        }
    }

    /// The offset of a member of `width` bytes in a structure of `size` bytes.
    pub(super) fn member(
        &self,
        (field, place): Field,
        width: u64,
        size: u64,
    ) -> Result<Offset, PublishedError> {
        let value = self.word(place)?;
        let fits = value.is_multiple_of(width) && value.checked_add(width).is_some_and(|end| end <= size);
        let offset = Offset::try_from(value).ok().filter(|_| fits);
        offset.ok_or(PublishedError::Implausible { field, value })
    }

    fn runtime(&self, row: &mut InterpreterLayout, places: &PublishedPlaces) -> Result<(), PublishedError> {
        let runtime = self.size(("runtime_state.size", places.runtime_size))?;
        let interpreter = self.size(("interpreter_state.size", places.interpreter_size))?;
        let inside = |field, place| self.member((field, place), 8, interpreter);
        let next = inside("interpreter_state.next", places.interpreter_next)?;
        let threads = inside("interpreter_state.threads_head", places.interpreter_threads_head)?;
        let holder =
            inside("interpreter_state.gil_runtime_state_holder", places.interpreter_gil_last_holder)?;
        let head = ("runtime_state.interpreters_head", places.runtime_interpreters_head);
        let head = self.member(head, 8, runtime)?;
        // `interpreters.main` follows `interpreters.head`, and `_main_interpreter` is the last member of `_PyRuntimeState`
        // (Include/internal/pycore_runtime_structs.h; 3.13: pycore_runtime.h).
        let main = runtime.checked_sub(interpreter).and_then(|main| Offset::try_from(main).ok());
        let implausible = PublishedError::Implausible { field: "runtime_state.size", value: runtime };
        row.runtime.thread_state_pointer_offset =
            main.and_then(|main| main.checked_add(holder)).ok_or(implausible)?;
        row.runtime.interpreters_head = head;
        row.runtime.interpreters_main = head + 8;
        row.runtime.interpreter_next = next;
        row.runtime.threads_head = threads;
        row.runtime.gil_last_holder = Some(holder);
        Ok(())
    }

    fn thread_state(
        &self,
        row: &mut InterpreterLayout,
        places: &PublishedPlaces,
    ) -> Result<(), PublishedError> {
        let size = self.size(("thread_state.size", places.thread_state_size))?;
        let inside = |field, place| self.member((field, place), 8, size);
        let state = &mut row.thread_state;
        state.next = inside("thread_state.next", places.thread_state_next)?;
        state.interpreter = inside("thread_state.interp", places.thread_state_interpreter)?;
        state.frame = FrameSource::Direct(inside("thread_state.current_frame", places.thread_state_frame)?);
        state.thread_id = inside("thread_state.thread_id", places.thread_state_thread_id)?;
        state.native_thread_id =
            Some(inside("thread_state.native_thread_id", places.thread_state_native_thread_id)?);
        Ok(())
    }

    fn frame(&self, row: &mut InterpreterLayout, places: &PublishedPlaces) -> Result<(), PublishedError> {
        /// The kernel half reads so much of a frame at once.
        const READ: u64 = WIDE_BYTES as u64;
        let size = self.size(("interpreter_frame.size", places.frame_size))?.min(READ);
        let inside = |field, place, width| self.member((field, place), width, size);
        let frame = &mut row.frame;
        frame.code = inside("interpreter_frame.executable", places.frame_code, 8)?;
        frame.previous = inside("interpreter_frame.previous", places.frame_previous, 8)?;
        frame.instruction = inside("interpreter_frame.instr_ptr", places.frame_instruction, 8)?;
        frame.owner = Some(inside("interpreter_frame.owner", places.frame_owner, 1)?);
        Ok(())
    }

    fn code(&self, row: &mut InterpreterLayout, places: &PublishedPlaces) -> Result<(), PublishedError> {
        let size = self.size(("code_object.size", places.code_size))?;
        let inside = |field, place| self.member((field, place), 8, size);
        let code = &mut row.code;
        code.file = inside("code_object.filename", places.code_file)?;
        code.name = inside("code_object.name", places.code_name)?;
        code.qualified_name = Some(inside("code_object.qualname", places.code_qualified_name)?);
        code.line_table = inside("code_object.linetable", places.code_line_table)?;
        code.first_line = self.member(("code_object.firstlineno", places.code_first_line), 4, size)?;
        let published = inside("code_object.co_code_adaptive", places.code_start)?;
        if let InstructionStore::Inline { start, .. } = &mut code.instructions {
            // `_co_firsttraceable` is not published. It lies behind all that is, shortly before the instructions.
            let distance =
                |first: Offset| start.checked_sub(first).and_then(|back| published.checked_sub(back));
            code.first_traceable = code.first_traceable.and_then(distance);
            *start = published;
        }
        Ok(())
    }

    fn objects(&self, row: &mut InterpreterLayout, places: &PublishedPlaces) -> Result<(), PublishedError> {
        let size = self.size(("bytes_object.size", places.bytes_object_size))?;
        row.bytes.size = self.member(("bytes_object.ob_size", places.bytes_size), 8, size)?;
        row.bytes.data = self.member(("bytes_object.ob_sval", places.bytes_data), 1, size)?;
        // The header of ASCII strings ends where their text begins; that of others is as much longer as in the row.
        let header = self.size(("unicode_object.asciiobject_size", places.string_ascii_data))?;
        let string = &mut row.string;
        string.state = self.member(("unicode_object.state", places.string_state), 4, header)?;
        string.length = self.member(("unicode_object.length", places.string_length), 8, header)?;
        let longer = string.compact_data - string.ascii_data;
        string.ascii_data = Offset::try_from(header).unwrap_or(string.ascii_data);
        string.compact_data = string.ascii_data.saturating_add(longer);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
