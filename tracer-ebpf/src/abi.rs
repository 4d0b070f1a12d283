//! Plain data that crosses between the halves: the cookie of a probe point, a process's layout, the records of the ring buffer.
//!
//! Both halves are built from this file, so there is no version to negotiate; layouts are fixed by `repr(C)` and asserted below.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Process slots, 0 unused; the number fits the ten bits that a live-table key has for it.
pub const PROCESSES: u32 = 1024;
/// Frames of one stack; deeper stacks keep the innermost ones and are marked. A power of two, so that a mask bounds an index.
pub const MAX_FRAMES: usize = 128;
/// Points of which hits are counted: those of four interpreters, which have up to 254; those of more share numbers. A power of two.
pub const POINTS: u32 = 1024;
/// Threads that can be told apart at one time, as buckets of the thread table.
pub const THREAD_BUCKETS: u32 = 1024;

/// `szidx` in `struct pool_header` (Objects/obmalloc.c, the same in 3.8 to 3.15).
pub const POOL_SIZE_INDEX: u64 = 36;

/// `slice_count` in `struct mi_page_s` (Include/internal/mimalloc/mimalloc/types.h, all versions): the page's slices.
pub const PAGE_SLICE_COUNT: u64 = 0;
/// From here on a block size of 32 bits says only that the block is larger (`MI_HUGE_BLOCK_SIZE`).
pub const LARGEST_PAGE_BLOCK: u64 = 2 << 30;
/// `MI_SEGMENT_SLICE_SIZE`, as a power of two.
pub const PAGE_SLICE_SHIFT: u32 = 16;

/// What a probe point means; the low byte of its cookie.
pub mod kind {
    /// A block has left its pool.
    pub const POP: u8 = 1;
    /// A block has gone back to its pool.
    pub const PUSH: u8 = 2;
    /// The function that opens pools returns its first block.
    pub const POOL_RETURN: u8 = 3;
    /// As [`PUSH`], but the operand is where the block's address is.
    pub const PUSH_INDIRECT: u8 = 4;
    /// As [`POP`], but the operand is where the block's address is.
    pub const POP_INDIRECT: u8 = 5;
    /// A block is about to leave its mimalloc page; the block is 0 where the page has none to give.
    pub const PAGE_POP: u8 = 6;
    /// As [`POP`]: the first block of a pool that has just been opened.
    pub const POOL_POP: u8 = 7;
    /// The first entry of the malloc family; [`MALLOC`](self::MALLOC)` + n` is the n-th function of [`function`](super::function).
    pub const MALLOC: u8 = 16;
}

/// Numbers of the malloc functions, in the order of `plan::MallocFunction`.
#[expect(missing_docs, reason = "each is the C function of that name")]
pub mod function {
    pub const MALLOC: u8 = 0;
    pub const CALLOC: u8 = 1;
    pub const REALLOC: u8 = 2;
    pub const REALLOC_ARRAY: u8 = 3;
    pub const FREE: u8 = 4;
    pub const POSIX_MEMALIGN: u8 = 5;
    pub const ALIGNED_ALLOC: u8 = 6;
    pub const MEMALIGN: u8 = 7;
    pub const VALLOC: u8 = 8;
    pub const PVALLOC: u8 = 9;
}

/// Which allocator: bits 32 and 33 of an account's owner.
pub mod domain {
    /// CPython's small-object allocator.
    pub const PYMALLOC: u8 = 0;
    /// The C library's malloc family.
    pub const MALLOC: u8 = 1;
    /// None: pages of resident anonymous memory.
    pub const RESIDENT: u8 = 2;
}

/// What the kernel hands to a program with each hit of a probe point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// `block` and `pool` are hardware register numbers, `displacement` is added to the block register.
    #[must_use]
    pub const fn new(kind: u8, process: u16, block: u8, displacement: i8, pool: u8) -> Self {
        Self(
            kind as u64
                | (block as u64) << 8
                | (displacement.cast_unsigned() as u64) << 16
                | (pool as u64) << 24
                | (process as u64) << 32,
        )
    }

    /// With where a page has the size of its blocks: `offset` bytes from its start, in 64 bits or in 32.
    #[must_use]
    pub const fn with_block_size(self, offset: u8, is_word: bool) -> Self {
        Self(self.0 | (offset as u64) << 48 | (is_word as u64) << 56)
    }

    /// See [`Self::with_block_size`].
    #[inline(always)]
    #[must_use]
    pub const fn block_size_offset(self) -> u64 {
        (self.0 >> 48) & 0xff
    }

    /// See [`Self::with_block_size`].
    #[inline(always)]
    #[must_use]
    pub const fn block_size_is_word(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// With the point's number, of which hits are counted, and what a hit counts: `1 << level`, for those that were not armed. Of pops only.
    #[must_use]
    pub const fn with_number(self, number: u16, level: u8) -> Self {
        Self(self.0 | (number as u64 & (POINTS as u64 - 1)) << 48 | (level as u64 & 15) << 60)
    }

    /// Of a point that is armed all the time, beside windows.
    #[must_use]
    pub const fn as_kept(self) -> Self {
        Self(self.0 | 1 << 58)
    }

    /// See [`Self::as_kept`].
    #[inline(always)]
    #[must_use]
    pub const fn is_kept(self) -> bool {
        self.0 >> 58 & 1 != 0
    }

    /// See [`Self::with_number`].
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u32 {
        (self.0 >> 48) as u32 & (POINTS - 1)
    }

    /// See [`Self::with_number`].
    #[inline(always)]
    #[must_use]
    pub const fn level(self) -> u32 {
        if matches!(self.kind(), kind::POP | kind::POP_INDIRECT) { (self.0 >> 60) as u32 } else { 0 }
    }

    /// See [`kind`].
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> u8 {
        self.0 as u8
    }

    /// Whether a pool is opened there.
    #[inline(always)]
    #[must_use]
    pub const fn opens_pool(self) -> bool {
        matches!(self.kind(), kind::POOL_RETURN | kind::POOL_POP)
    }

    /// Whether it is a function of the malloc family.
    #[inline(always)]
    #[must_use]
    pub const fn is_malloc(self) -> bool {
        self.kind() >= kind::MALLOC
    }

    /// Register that holds the block.
    #[inline(always)]
    #[must_use]
    pub const fn block(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Bytes to add to it.
    #[inline(always)]
    #[must_use]
    pub const fn displacement(self) -> i64 {
        (self.0 >> 16) as i8 as i64
    }

    /// Register that holds the pool header.
    #[inline(always)]
    #[must_use]
    pub const fn pool(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Process slot, always in range.
    #[inline(always)]
    #[must_use]
    pub const fn process(self) -> u32 {
        (self.0 >> 32) as u32 & (PROCESSES - 1)
    }
}

/// Where one interpreter keeps what the walk needs. Offsets are in bytes; a part that a version lacks is 0 where noted.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Layout {
    /// 1 while this process's events count.
    pub active: u32,
    /// Process id (thread group) in the initial namespace; 0: the kernel itself starts the programs for the right process only.
    pub pid: u32,
    /// Address of the pointer to the running thread's state; 0: this process has no interpreter.
    pub thread_state_pointer: u64,
    /// From what `pthread_self` returns to the thread's own `_Py_tss_tstate` (3.12 and later); 0: not known.
    pub thread_slot: i64,
    /// All ones where the frame's instruction is a pointer, from which the code object's address is taken; 0 where it is
    /// `f_lasti` (3.10 and before). A mask and not a flag: the compiler would make two loops of a flag.
    pub instruction_base: u64,
    /// Mask of the last of the four words from `code_file` on, which are name, file, qualified name and line table: 0 where
    /// it is something else (3.10 and before).
    pub code_last_constant: u64,
    /// Address of the pointer to the main interpreter's state (`_PyRuntime.interpreters.main`); 0: not known.
    pub main_interpreter: u64,
    /// `PyThreadState`: the frame, or the `_PyCFrame` that leads to it.
    pub thread_frame: u32,
    /// 1 where `thread_frame` is a `_PyCFrame` (3.11, 3.12).
    pub has_cframe: u32,
    /// `_PyCFrame.current_frame`.
    pub cframe_frame: u32,
    /// `PyThreadState.thread_id` (what `pthread_self` returns).
    pub thread_ident: u32,
    /// Where a frame read begins. It ends with the last word that is needed, so that it never goes past a frame at the end of
    /// its memory; before a frame there always is some: the chunk's header, another frame, the object that it is in.
    pub frame_start: i32,
    /// Zero.
    pub spare_frame: u32,
    /// Index of the code pointer among the words read.
    pub code_word: u32,
    /// Index of the pointer to the caller's frame.
    pub previous_word: u32,
    /// Index of the instruction: a pointer, or a 32-bit index where `instruction_is_index`.
    pub instruction_word: u32,
    /// Index of the word with the frame's owner.
    pub owner_word: u32,
    /// Bit position of the owner byte in it.
    pub owner_shift: u32,
    /// Frames with this owner or a higher one are not Python frames; 256: none.
    pub owner_skip_from: u32,
    /// `PyCodeObject.co_firstlineno`.
    pub code_first_line: u32,
    /// `_co_firsttraceable`; 0: none.
    pub code_first_traceable: u32,
    /// `co_name`.
    pub code_name: u32,
    /// `co_qualname`; 0: none.
    pub code_qualified_name: u32,
    /// `co_filename`.
    pub code_file: u32,
    /// `co_linetable` or `co_lnotab`.
    pub code_line_table: u32,
    /// `PyASCIIObject`: bytes of the header, after which ASCII text begins.
    pub ascii_text: u32,
    /// `PyCompactUnicodeObject`: bytes of the header, after which other text begins.
    pub compact_text: u32,
    /// `PyASCIIObject.length`.
    pub text_length: u32,
    /// `PyASCIIObject.state`.
    pub text_state: u32,
    /// Bit position of `kind` in the state.
    pub text_kind_shift: u32,
    /// Bit position of `ascii` in the state.
    pub text_ascii_shift: u32,
    /// `PyVarObject.ob_size` of bytes objects.
    pub bytes_size: u32,
    /// First data byte of bytes objects.
    pub bytes_data: u32,
    /// `POOL_SIZE - 1`.
    pub pool_mask: u32,
    /// What the C library subtracts from the thread pointer to get `pthread_self`: 0 on x86-64.
    pub thread_self_distance: u32,
    /// `PyThreadState.next` of a free-threaded interpreter, whose `thread_state_pointer` is the head of its list of threads; `prev` is the
    /// word before. 0: the interpreter has a lock.
    pub thread_next: u32,
    /// `PyCodeObject.co_tlbc`: a code object's instructions, a copy for each thread (free-threaded 3.14 and later).
    pub code_copies: u32,
    /// Mask of the 32 bits of the frame that say which copy: 0 where there are none.
    pub copy_mask: u32,
    /// Index of the word that has them.
    pub copy_word: u32,
    /// `PyCodeObject.co_code_adaptive`: where the first copy begins. 0 where there are no others.
    pub code_start: u32,
    /// `PyInterpreterState.threads.head` (`tstate_head`).
    pub threads_head: u32,
    /// `PyThreadState.next`, in all builds.
    pub thread_list_next: u32,
    /// The process slot, and from bit 10 on how many processes had it before: what was sent of them was not sent of this one.
    pub owner: u32,
}

/// The first word of every record.
pub mod record {
    /// A [`StackRecord`](super::StackRecord).
    pub const STACK: u32 = 1;
    /// A [`CodeRecord`](super::CodeRecord).
    pub const CODE: u32 = 2;
    /// A [`LineTableRecord`](super::LineTableRecord).
    pub const LINE_TABLE: u32 = 3;
    /// A [`ProcessRecord`](super::ProcessRecord): the process has replaced itself.
    pub const EXEC: u32 = 4;
    /// A [`ProcessRecord`](super::ProcessRecord): a followed process has ended.
    pub const EXIT: u32 = 5;
    /// A [`ProcessRecord`](super::ProcessRecord): a followed process has a child.
    pub const FORK: u32 = 6;
    /// A [`PoolRecord`](super::PoolRecord).
    pub const POOL: u32 = 7;
    /// A [`BlockRecord`](super::BlockRecord).
    pub const BLOCK: u32 = 8;
}

/// How a walk ended; kept with the stack so that what is missing is named.
pub mod end {
    /// The outermost frame was reached.
    pub const COMPLETE: u32 = 0;
    /// The depth limit was reached first.
    pub const TRUNCATED: u32 = 1;
    /// A frame could not be read.
    pub const FAILED_READ: u32 = 2;
    /// The interpreter has no current thread: it is starting up or shutting down.
    pub const NO_THREAD_STATE: u32 = 3;
    /// The thread runs no Python code.
    pub const NO_FRAME: u32 = 4;
    /// The thread is not one of Python's, or is not known as one yet.
    pub const FOREIGN_THREAD: u32 = 5;
    /// The process has no Python interpreter.
    pub const NO_INTERPRETER: u32 = 6;
    /// More frames of this stack come in the next record.
    pub const CONTINUES: u32 = 7;
}

/// One frame as the kernel half saw it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RawFrame {
    /// Address of the code object.
    pub code: u64,
    /// 3.11+: instruction pointer minus `code`, in bytes; before: `f_lasti` as it is.
    pub instruction: u32,
    /// Tells code objects apart that lived at one address.
    pub fingerprint: u32,
}

/// Frames in one record: most stacks need one to three, and the ring holds ten times as many as if each had room for all.
pub const PART_FRAMES: usize = 8;

/// A part of a stack that was not seen before, of one account.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, KnownLayout, Immutable)]
pub struct StackRecord {
    /// [`record::STACK`].
    pub record: u32,
    /// Process slot.
    pub process: u32,
    /// The account.
    pub account: u32,
    /// Frames in use.
    pub length: u32,
    /// See [`end`].
    pub end: u32,
    /// Frames in the parts before this one.
    pub offset: u32,
    /// The thread's number in the tracer's PID namespace.
    pub thread: u32,
    /// Zero.
    pub spare: u32,
    /// Innermost first.
    pub frames: [RawFrame; PART_FRAMES],
}

/// A string object: its header, and the first bytes of its text.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, KnownLayout, Immutable)]
pub struct RawText<const BYTES: usize> {
    /// `PyASCIIObject.length` in code points.
    pub length: u64,
    /// `PyASCIIObject.state`.
    pub state: u32,
    /// Bytes of `text` in use; fewer than the text has where it was cut.
    pub used: u32,
    /// The text in the string's own kind.
    pub text: [u8; BYTES],
}

/// A code object that was not seen before. Its line table follows in [`LineTableRecord`]s before it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, KnownLayout, Immutable)]
pub struct CodeRecord {
    /// [`record::CODE`].
    pub record: u32,
    /// Process slot.
    pub process: u32,
    /// Address of the code object.
    pub code: u64,
    /// See [`RawFrame::fingerprint`].
    pub fingerprint: u32,
    /// `co_firstlineno`.
    pub first_line: u32,
    /// `_co_firsttraceable`.
    pub first_traceable: u32,
    /// Bytes of the whole line table.
    pub line_table_bytes: u32,
    /// `co_name`.
    pub name: RawText<128>,
    /// `co_qualname`.
    pub qualified_name: RawText<256>,
    /// `co_filename`.
    pub file: RawText<512>,
}

/// Bytes of one [`LineTableRecord`].
pub const LINE_TABLE_BYTES: usize = 1024;
/// Records that one line table may take: 32 KiB, which holds functions of some 8,000 lines.
pub const LINE_TABLE_RECORDS: u32 = 32;

/// A piece of a code object's line table.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, KnownLayout, Immutable)]
pub struct LineTableRecord {
    /// [`record::LINE_TABLE`].
    pub record: u32,
    /// Process slot.
    pub process: u32,
    /// Address of the code object.
    pub code: u64,
    /// See [`RawFrame::fingerprint`].
    pub fingerprint: u32,
    /// Bytes in use.
    pub used: u32,
    /// Where they belong in the table.
    pub offset: u64,
    /// The bytes.
    pub bytes: [u8; LINE_TABLE_BYTES],
}

/// Something that happened to a whole process.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ProcessRecord {
    /// [`record::EXEC`], [`record::EXIT`] or [`record::FORK`].
    pub record: u32,
    /// Process id; like all numbers in records, in the tracer's PID namespace.
    pub pid: u32,
    /// Of a child: its parent.
    pub parent: u32,
    /// Of a child: 1 where it runs in its parent's memory until it execs (`vfork`). Of a new program: 1 where its name is that of an interpreter (`python`, `python3`, `python3.*`).
    pub mark: u32,
    /// When, by the monotonic clock.
    pub nanoseconds: u64,
    /// Of a child: pops and pushes that its parent was seen to make until then; 0 where the parent is not recorded.
    pub pops: u64,
    /// See `pops`.
    pub pushes: u64,
}

/// A pool was opened by a stack.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PoolRecord {
    /// [`record::POOL`].
    pub record: u32,
    /// Process slot.
    pub process: u32,
    /// The stack's account.
    pub account: u32,
    /// Zero.
    pub spare: u32,
    /// Address of its header.
    pub pool: u64,
}

/// A block was handed out in a window.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct BlockRecord {
    /// [`record::BLOCK`].
    pub record: u32,
    /// Process slot.
    pub process: u32,
    /// The account of the stack that got it.
    pub account: u32,
    /// Bit 0: it is malloc's. From bit 8 on, [`Cookie::level`] of its point. From bit 16 on, the last bits of the window's number.
    pub mark: u32,
    /// What the allocator spends on it.
    pub bytes: u64,
    /// Its address.
    pub block: u64,
}

const _: () = {
    assert!(size_of::<PoolRecord>() == 24);
    assert!(size_of::<BlockRecord>() == 32);
    assert!(size_of::<Layout>().is_multiple_of(8));
    assert!(size_of::<StackRecord>() == 32 + 16 * PART_FRAMES);
    assert!(MAX_FRAMES.is_multiple_of(PART_FRAMES) && PART_FRAMES.is_power_of_two());
    assert!(size_of::<CodeRecord>() == 32 + 16 * 3 + 128 + 256 + 512);
    assert!(size_of::<LineTableRecord>() == 32 + LINE_TABLE_BYTES);
};
