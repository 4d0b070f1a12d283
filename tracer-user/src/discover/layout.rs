//! Where CPython keeps what the walk, the resolver and the census read: one row of offsets a minor version.
//!
//! Every number is what `offsetof` says over the interpreters' own headers (64-bit, GIL builds, release): `cargo xtask gen-offsets`
//! writes the rows, and `tests/interpreters/layout.rs` compiles them again. They are for x86_64; on arm64 a few differ (`arm64.rs`). From 3.13 on an interpreter publishes most of its offsets itself, and those are taken
//! (`published.rs`). This file must not read memory: it is data and arithmetic only.

mod arm64;
mod free_threaded;
mod published;
mod rows;

pub use free_threaded::{CodeCopies, FreeThreading};
pub use published::PublishedError;

/// Bytes from the start of a structure.
pub type Offset = u32;

/// All offsets of one minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterpreterLayout {
    /// Always 3.
    pub major: u8,
    /// 8 to 15.
    pub minor: u8,
    /// `_PyRuntime` and the interpreter state.
    pub runtime: RuntimeLayout,
    /// `PyThreadState`.
    pub thread_state: ThreadStateLayout,
    /// `PyFrameObject` (to 3.10) or `_PyInterpreterFrame` (from 3.11).
    pub frame: FrameLayout,
    /// `PyCodeObject`.
    pub code: CodeLayout,
    /// `PyASCIIObject` and `PyCompactUnicodeObject`.
    pub string: StringLayout,
    /// `PyBytesObject`: the line table's type in every version.
    pub bytes: BytesLayout,
    /// pymalloc's book-keeping.
    pub pools: PoolLayout,
    /// Where the interpreter itself says most of the above (3.13+).
    pub published: Option<PublishedPlaces>,
    /// In free-threaded builds, what only they have.
    pub free_threading: Option<FreeThreading>,
}

/// `_PyRuntimeState` (Include/internal/pycore_runtime.h; 3.8: pycore_pystate.h) and `PyInterpreterState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeLayout {
    /// From `_PyRuntime` to a pointer to a thread state.
    ///
    /// 3.8 to 3.11: `gilstate.tstate_current`, the state of the thread that holds the GIL, null while nobody does.
    /// 3.12 and later: `_main_interpreter._gil.last_holder`, which stays when the GIL is given up.
    /// Free-threaded builds: `_main_interpreter.threads.head`, the newest thread's.
    /// In any case it is the running thread's only if its `thread_id` or `native_thread_id` says so.
    ///
    /// From 3.12 on this crosses the static objects (their number may change with a patch release) and the C
    /// library's lock types (their size differs on arm64 and musl). From 3.13 on it follows from published sizes; the row of 3.12 is
    /// that of 3.12.1 with glibc on x86_64. Prefer [`InterpreterLayout::thread_state_pointer`], which takes the interpreter's
    /// address from memory.
    pub thread_state_pointer_offset: Offset,
    /// From `_PyRuntime` to `interpreters.head` (a pointer).
    pub interpreters_head: Offset,
    /// From `_PyRuntime` to `interpreters.main` (a pointer).
    pub interpreters_main: Offset,
    /// From an interpreter state to `_gil.last_holder` (3.12+); to `threads.head` in free-threaded builds.
    pub gil_last_holder: Option<Offset>,
    /// From an interpreter state to the next one (a pointer).
    pub interpreter_next: Offset,
    /// From an interpreter state to its first thread state (a pointer; the others follow by `next`).
    pub threads_head: Offset,
}

/// Where a thread state keeps its innermost frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSource {
    /// `PyThreadState.frame` (to 3.10) or `PyThreadState.current_frame` (3.13+): a pointer at this offset.
    Direct(Offset),
    /// `PyThreadState.cframe->current_frame` (3.11, 3.12).
    Cframe {
        /// Of the pointer `cframe` in the thread state.
        cframe: Offset,
        /// Of the pointer `current_frame` in `_PyCFrame`.
        current_frame: Offset,
    },
}

/// `PyThreadState` (Include/cpython/pystate.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadStateLayout {
    /// The innermost frame.
    pub frame: FrameSource,
    /// Next thread state of the interpreter (a pointer).
    pub next: Offset,
    /// The interpreter state (a pointer).
    pub interpreter: Offset,
    /// What `pthread_self` returns in that thread.
    pub thread_id: Offset,
    /// The kernel's thread id as the target's PID namespace counts (3.11+).
    pub native_thread_id: Option<Offset>,
}

/// How a frame names the instruction it executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionKind {
    /// `int f_lasti`, in bytes from the start of the code (3.8, 3.9); -1 before the first.
    LastByteOffset,
    /// `int f_lasti`, in units of two bytes (3.10); -1 before the first.
    LastUnit,
    /// `prev_instr` (3.11, 3.12) or `instr_ptr` (3.13+): a pointer into `co_code_adaptive`.
    Pointer,
}

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLayout {
    /// `f_code`, from 3.13 `f_executable` (a pointer; for skipped owners it may point to another type; from 3.14 on bit 0 is a tag).
    pub code: Offset,
    /// `f_back` or `previous` (a pointer).
    pub previous: Offset,
    /// `f_globals` (a pointer).
    pub globals: Offset,
    /// `f_lasti` (32 bits), `prev_instr` or `instr_ptr` (64 bits), see `instruction_kind`.
    pub instruction: Offset,
    /// What lies at `instruction`.
    pub instruction_kind: InstructionKind,
    /// `owner`, one byte (3.11+).
    pub owner: Option<Offset>,
    /// Owners from this value on are not Python frames: skip the frame and follow `previous`.
    /// 3 in all that have any: `FRAME_OWNED_BY_CSTACK` in 3.12 and 3.13 (Include/internal/pycore_frame.h), from 3.14 on
    /// `FRAME_OWNED_BY_INTERPRETER`, with one more above it (Include/internal/pycore_interpframe_structs.h). 3.11 has no such frame.
    pub skipped_owner: Option<u8>,
}

/// Value of `owner` of a generator's or coroutine's frame (`FRAME_OWNED_BY_GENERATOR`, 3.11 to 3.15).
pub const OWNED_BY_GENERATOR: u8 = 1;

/// Where a code object keeps its instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionStore {
    /// `co_code`, a pointer to a bytes object (to 3.10): see [`BytesLayout`] for its length.
    Bytes(Offset),
    /// `co_code_adaptive`, inside the code object (3.11+).
    Inline {
        /// Of the first instruction.
        start: Offset,
        /// Of `ob_size`: number of two-byte units.
        units: Offset,
    },
}

/// `PyCodeObject` (Include/cpython/code.h; 3.8: Include/code.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeLayout {
    /// `co_name` (a pointer to a string).
    pub name: Offset,
    /// `co_qualname` (a pointer to a string; 3.11+).
    pub qualified_name: Option<Offset>,
    /// `co_filename` (a pointer to a string).
    pub file: Offset,
    /// `co_lnotab` (to 3.9) or `co_linetable` (a pointer to a bytes object).
    pub line_table: Offset,
    /// `co_firstlineno` (int).
    pub first_line: Offset,
    /// `_co_firsttraceable` (int, in units of two bytes; 3.11+).
    pub first_traceable: Option<Offset>,
    /// The instructions.
    pub instructions: InstructionStore,
}

/// Where the parts of `PyASCIIObject.state` lie in its 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateBits {
    /// Lowest bit of `kind`, which is three bits wide.
    pub kind_shift: u8,
    /// Bit number of `compact`.
    pub compact: u8,
    /// Bit number of `ascii`.
    pub ascii: u8,
}

/// `PyASCIIObject` (Include/cpython/unicodeobject.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StringLayout {
    /// `length`: code points (64 bits).
    pub length: Offset,
    /// `state`: a 32-bit field.
    pub state: Offset,
    /// What its bits mean.
    pub state_bits: StateBits,
    /// Data of a compact ASCII string: `sizeof(PyASCIIObject)`, smaller from 3.12 on (no `wstr`).
    pub ascii_data: Offset,
    /// Data of any other compact string: `sizeof(PyCompactUnicodeObject)`.
    pub compact_data: Offset,
}

/// `PyBytesObject` (Include/cpython/bytesobject.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BytesLayout {
    /// `ob_size` (64 bits).
    pub size: Offset,
    /// `ob_sval`.
    pub data: Offset,
}

/// How to reach pymalloc's `mgmt` (`struct _obmalloc_mgmt`) from an interpreter state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArenaSource {
    /// `arenas` is a static variable of Objects/obmalloc.c (to 3.11).
    Static,
    /// `interp->obmalloc` is a member structure (3.12).
    Interpreter {
        /// Of the structure in the interpreter state.
        obmalloc: Offset,
        /// Of `mgmt.arenas` in it.
        arenas: Offset,
    },
    /// `interp->obmalloc` is a pointer (3.13+).
    Pointer {
        /// Of the pointer in the interpreter state.
        obmalloc: Offset,
        /// Of `mgmt.arenas` behind it.
        arenas: Offset,
    },
}

/// pymalloc: Objects/obmalloc.c, from 3.12 on Include/internal/pycore_obmalloc.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLayout {
    /// `ARENA_SIZE`: 256 KiB, with the radix tree (3.10+, 64-bit) 1 MiB.
    pub arena_size: u32,
    /// `POOL_SIZE`: 4 KiB, with the radix tree 16 KiB.
    pub pool_size: u32,
    /// Where the arenas are listed.
    pub arenas: ArenaSource,
}

/// Where the members that we read lie in `_Py_DebugOffsets`, the first member of `_PyRuntime` (3.13+).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the member of that name, in the group that comes first in its name")]
pub struct PublishedPlaces {
    pub runtime_size: Offset,
    pub runtime_interpreters_head: Offset,
    pub interpreter_size: Offset,
    pub interpreter_next: Offset,
    pub interpreter_threads_head: Offset,
    pub interpreter_gil_last_holder: Offset,
    pub thread_state_size: Offset,
    pub thread_state_next: Offset,
    pub thread_state_interpreter: Offset,
    pub thread_state_frame: Offset,
    pub thread_state_thread_id: Offset,
    pub thread_state_native_thread_id: Offset,
    pub frame_size: Offset,
    pub frame_previous: Offset,
    pub frame_code: Offset,
    pub frame_instruction: Offset,
    pub frame_owner: Offset,
    pub code_size: Offset,
    pub code_file: Offset,
    pub code_name: Offset,
    pub code_qualified_name: Offset,
    pub code_line_table: Offset,
    pub code_first_line: Offset,
    pub code_start: Offset,
    pub bytes_object_size: Offset,
    pub bytes_size: Offset,
    pub bytes_data: Offset,
    pub string_state: Offset,
    pub string_length: Offset,
    pub string_ascii_data: Offset,
    /// `sizeof(struct _Py_DebugOffsets)`.
    pub size: Offset,
}

impl InterpreterLayout {
    /// Address of the pointer to the current thread state, main interpreter (sub-interpreters with a GIL of their own
    /// have another one: walk `interpreters_head` for them).
    ///
    /// `read` reads a pointer of the target; `None` is passed on.
    pub fn thread_state_pointer(
        &self,
        runtime: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<u64> {
        let Some(holder) = self.runtime.gil_last_holder else {
            return runtime.checked_add(self.runtime.thread_state_pointer_offset.into());
        };
        let main = read(runtime.checked_add(self.runtime.interpreters_main.into())?)?;
        if main == 0 { None } else { main.checked_add(holder.into()) }
    }
}

/// The row of a version; `None` where there is none. It is that of a build with a lock. From 3.13 on it is to be corrected by what the interpreter
/// publishes: [`InterpreterLayout::with_published`].
pub fn layout(major: u8, minor: u8) -> Option<&'static InterpreterLayout> {
    rows().iter().find(|row| row.major == major && row.minor == minor)
}

/// Every supported version, oldest first.
pub fn rows() -> &'static [InterpreterLayout] {
    rows::ROWS
}
