//! What is elsewhere in free-threaded builds: they publish the same table, and some of what it does not have follows from it.
//!
//! Every object's header has 32 bytes there in place of 16, threads run without a lock, and from 3.14 on each thread runs a copy of its own of a code
//! object's instructions. It must not read memory.

use super::published::{PublishedError, Table};
use super::{InstructionStore, InterpreterLayout, Offset, PublishedPlaces, StateBits};

/// What only free-threaded builds have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeThreading {
    /// Where copies of instructions are found (3.14+).
    pub copies: Option<CodeCopies>,
}

/// Copies of a code object's instructions, one for each thread that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeCopies {
    /// `PyCodeObject.co_tlbc`: a pointer to `_PyCodeArray`, whose second word is the first pointer to instructions (Include/cpython/code.h).
    pub array: Offset,
    /// `_PyInterpreterFrame.tlbc_index` (the lower 32 bits of a word): which of them the frame runs; 0 is the one in the code object.
    pub index: Offset,
}

/// The newest minor version whose free-threaded build was recorded here.
const NEWEST: u8 = 14;
/// From `owner` to `tlbc_index` and from `co_code_adaptive` to `co_tlbc` in `_Py_DebugOffsets` (3.14, Include/internal/pycore_debug_offsets.h).
const OWNER_TO_INDEX: Offset = 16;
const START_TO_COPIES: Offset = 8;

/// Corrects a row that has taken over what the table of a free-threaded build says.
pub(super) fn complete(
    row: &mut InterpreterLayout,
    table: &Table<'_>,
    places: &PublishedPlaces,
) -> Result<(), PublishedError> {
    if row.minor > NEWEST {
        return Err(PublishedError::FreeThreaded);
    }
    // What leads to a thread's state is the list of them: its newest member may be another thread's, as the holder of a lock may be.
    let holder = row.runtime.gil_last_holder.unwrap_or(0);
    let main = row.runtime.thread_state_pointer_offset.saturating_sub(holder);
    row.runtime.thread_state_pointer_offset = main.saturating_add(row.runtime.threads_head);
    row.runtime.gil_last_holder = Some(row.runtime.threads_head);
    let size = table.size(("thread_state.size", places.thread_state_size))?;
    let before = table.member(("thread_state.prev", places.thread_state_next - 8), 8, size)?;
    if before.checked_add(8) != Some(row.thread_state.next) {
        return Err(PublishedError::Implausible { field: "thread_state.prev", value: before.into() });
    }
    let copies = if row.minor >= 14 { Some(copies(table, places)?) } else { None };
    if let InstructionStore::Inline { units, .. } = &mut row.code.instructions {
        *units = row.bytes.size;
    }
    if row.minor >= 14 {
        // `interned` is a byte of its own there, so that it can be changed at once (Include/cpython/unicodeobject.h).
        row.string.state_bits = StateBits { kind_shift: 8, compact: 11, ascii: 12 };
        // `co_tlbc` lies between `_co_firsttraceable` and the instructions.
        row.code.first_traceable = row.code.first_traceable.and_then(|offset| offset.checked_sub(8));
    }
    row.free_threading = Some(FreeThreading { copies });
    Ok(())
}

fn copies(table: &Table<'_>, places: &PublishedPlaces) -> Result<CodeCopies, PublishedError> {
    let frame = table.size(("interpreter_frame.size", places.frame_size))?;
    let code = table.size(("code_object.size", places.code_size))?;
    let index = ("interpreter_frame.tlbc_index", places.frame_owner + OWNER_TO_INDEX);
    let array = ("code_object.co_tlbc", places.code_start + START_TO_COPIES);
    Ok(CodeCopies { array: table.member(array, 8, code)?, index: table.member(index, 8, frame)? })
}
