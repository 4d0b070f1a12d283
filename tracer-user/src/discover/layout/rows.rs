//! The rows of the layout table: numbers only. What is equal in several versions is named once.
//!
//! `tests/interpreters/layout.c` prints these numbers from the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1 and 3.13.0.

use super::{
    ArenaSource, BytesLayout, CodeLayout, FrameLayout, FrameSource, InstructionKind, InstructionStore,
    InterpreterLayout, PoolLayout, RuntimeLayout, StateBits, StringLayout, ThreadStateLayout,
};

const BYTES: BytesLayout = BytesLayout { size: 16, data: 32 };
const SMALL_POOLS: PoolLayout =
    PoolLayout { arena_size: 256 << 10, pool_size: 4 << 10, arenas: ArenaSource::Static };
const LARGE_POOLS: PoolLayout =
    PoolLayout { arena_size: 1 << 20, pool_size: 16 << 10, arenas: ArenaSource::Static };
const STATE_BITS: StateBits = StateBits { kind_shift: 2, compact: 5, ascii: 6 };
const STRING_WITH_WSTR: StringLayout =
    StringLayout { length: 16, state: 32, state_bits: STATE_BITS, ascii_data: 48, compact_data: 72 };
const STRING: StringLayout = StringLayout { ascii_data: 40, compact_data: 56, ..STRING_WITH_WSTR };
const FRAME_OBJECT: FrameLayout = FrameLayout {
    code: 32,
    previous: 24,
    globals: 48,
    instruction: 104,
    instruction_kind: InstructionKind::LastByteOffset,
    owner: None,
    skipped_owner: None,
};
const FRAME_WITH_STACK_TOP: FrameLayout = FrameLayout {
    code: 0,
    previous: 8,
    globals: 24,
    instruction: 56,
    instruction_kind: InstructionKind::Pointer,
    owner: Some(70),
    skipped_owner: Some(3),
};
const CODE_WITH_BYTES: CodeLayout = CodeLayout {
    name: 112,
    qualified_name: None,
    file: 104,
    line_table: 120,
    first_line: 40,
    first_traceable: None,
    instructions: InstructionStore::Bytes(48),
};
const CODE_3_11: CodeLayout = CodeLayout {
    name: 120,
    qualified_name: Some(128),
    file: 112,
    line_table: 136,
    first_line: 72,
    first_traceable: Some(168),
    instructions: InstructionStore::Inline { start: 184, units: 16 },
};
const THREAD_STATE_3_8: ThreadStateLayout = ThreadStateLayout {
    frame: FrameSource::Direct(24),
    next: 8,
    interpreter: 16,
    thread_id: 176,
    native_thread_id: None,
};
const RUNTIME_3_9: RuntimeLayout = RuntimeLayout {
    thread_state_pointer_offset: 568,
    interpreters_head: 32,
    interpreters_main: 40,
    gil_last_holder: None,
    gil_last_holder_published: None,
    interpreter_next: 0,
    threads_head: 8,
};

const LAYOUT_3_9: InterpreterLayout = InterpreterLayout {
    major: 3,
    minor: 9,
    runtime: RUNTIME_3_9,
    thread_state: THREAD_STATE_3_8,
    frame: FRAME_OBJECT,
    code: CODE_WITH_BYTES,
    string: STRING_WITH_WSTR,
    bytes: BYTES,
    pools: SMALL_POOLS,
};

/// Every supported version, oldest first.
pub(super) const ROWS: &[InterpreterLayout] = &[
    InterpreterLayout {
        minor: 8,
        runtime: RuntimeLayout { thread_state_pointer_offset: 1368, ..RUNTIME_3_9 },
        ..LAYOUT_3_9
    },
    LAYOUT_3_9,
    InterpreterLayout {
        minor: 10,
        frame: FrameLayout { instruction: 96, instruction_kind: InstructionKind::LastUnit, ..FRAME_OBJECT },
        pools: LARGE_POOLS,
        ..LAYOUT_3_9
    },
    InterpreterLayout {
        major: 3,
        minor: 11,
        runtime: RuntimeLayout {
            thread_state_pointer_offset: 576,
            interpreters_head: 40,
            interpreters_main: 48,
            gil_last_holder: None,
            gil_last_holder_published: None,
            interpreter_next: 0,
            threads_head: 16,
        },
        thread_state: ThreadStateLayout {
            frame: FrameSource::Cframe { cframe: 56, current_frame: 8 },
            next: 8,
            interpreter: 16,
            thread_id: 152,
            native_thread_id: Some(160),
        },
        frame: FrameLayout {
            code: 32,
            previous: 48,
            globals: 8,
            instruction: 56,
            instruction_kind: InstructionKind::Pointer,
            owner: Some(69),
            skipped_owner: None,
        },
        code: CODE_3_11,
        string: STRING_WITH_WSTR,
        bytes: BYTES,
        pools: LARGE_POOLS,
    },
    InterpreterLayout {
        major: 3,
        minor: 12,
        runtime: RuntimeLayout {
            thread_state_pointer_offset: 77440,
            interpreters_head: 40,
            interpreters_main: 48,
            gil_last_holder: Some(1048),
            gil_last_holder_published: None,
            interpreter_next: 0,
            threads_head: 72,
        },
        thread_state: ThreadStateLayout {
            frame: FrameSource::Cframe { cframe: 56, current_frame: 0 },
            next: 8,
            interpreter: 16,
            thread_id: 136,
            native_thread_id: Some(144),
        },
        frame: FRAME_WITH_STACK_TOP,
        code: CodeLayout {
            first_line: 68,
            first_traceable: Some(176),
            instructions: InstructionStore::Inline { start: 192, units: 16 },
            ..CODE_3_11
        },
        string: STRING,
        bytes: BYTES,
        pools: PoolLayout { arenas: ArenaSource::Interpreter { obmalloc: 3960, arenas: 512 }, ..LARGE_POOLS },
    },
    InterpreterLayout {
        major: 3,
        minor: 13,
        runtime: RuntimeLayout {
            thread_state_pointer_offset: 96112,
            interpreters_head: 632,
            interpreters_main: 640,
            gil_last_holder: Some(7760),
            gil_last_holder_published: Some(144),
            interpreter_next: 7264,
            threads_head: 7344,
        },
        thread_state: ThreadStateLayout {
            frame: FrameSource::Direct(72),
            next: 8,
            interpreter: 16,
            thread_id: 152,
            native_thread_id: Some(160),
        },
        frame: FRAME_WITH_STACK_TOP,
        code: CodeLayout {
            first_line: 68,
            first_traceable: Some(184),
            instructions: InstructionStore::Inline { start: 200, units: 16 },
            ..CODE_3_11
        },
        string: STRING,
        bytes: BYTES,
        pools: PoolLayout { arenas: ArenaSource::Pointer { obmalloc: 10800, arenas: 512 }, ..LARGE_POOLS },
    },
];
