//! The Python walk: from a thread state to frames, without any native unwinding.
//!
//! One wide read a frame (design: docs/ARCHITECTURE.md, "kernel half"). Which words of it mean what comes from a
//! [`Layout`], so an interpreter version is a table row and not code.
//! It must not know names, lines or where frames are kept.

use core::ops::ControlFlow;

use crate::abi::{Layout, MAX_FRAMES, end};
use crate::cell::{Cell, differs};
use crate::hash::{mix, spread};
use crate::memory::{Memory, WIDE_WORDS, Wide};
use crate::tables::Generations;

/// Where a stack begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The innermost frame; 0 when there is none.
    pub frame: u64,
    /// Why there is none, from [`end`].
    pub reason: u32,
}

/// A frame as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visited {
    /// The code object.
    pub code: u64,
    /// Distance from the code object to the instruction, or `f_lasti`.
    pub instruction: u32,
    /// 1 for a frame of Python code; 0 for one to be passed over, such as that of C code. A number and not a branch: see
    /// [`crate::cell::differs`].
    pub is_python: u64,
}

/// What a walk calls for each frame, innermost first. A trait and not a closure: every method must end up inlined in
/// the eBPF program, and closures cannot be marked so.
pub trait Visitor {
    /// `Break` ends the walk.
    fn visit(&mut self, frame: Visited) -> ControlFlow<()>;

    /// A frame could not be read: the walk ends. To be told here, and not by comparing how it ended: the verifier would follow
    /// that number back through all the frames.
    #[inline(always)]
    fn unreadable(&mut self) {}
}

/// A word of a wide read, by an index that comes from a table.
#[inline(always)]
fn word(words: &Wide, index: u32) -> u64 {
    words[index as usize & (WIDE_WORDS - 1)]
}

/// The frame that a thread state points to.
#[inline(always)]
pub fn innermost<M: Memory>(memory: &M, layout: &Layout, thread_state: u64) -> Start {
    let read = memory.read_word(thread_state.wrapping_add(u64::from(layout.thread_frame)));
    let frame = match read {
        Some(cframe) if layout.has_cframe != 0 && cframe != 0 => {
            memory.read_word(cframe.wrapping_add(u64::from(layout.cframe_frame)))
        }
        other => other,
    };
    match frame {
        None => Start { frame: 0, reason: end::FAILED_READ },
        Some(0) => Start { frame: 0, reason: end::NO_FRAME },
        Some(frame) => Start { frame, reason: end::COMPLETE },
    }
}

/// Shows every Python frame to `visitor` and says how the walk ended.
#[inline(always)]
pub fn walk<M: Memory>(memory: &M, layout: &Layout, start: Start, visitor: &mut impl Visitor) -> u32 {
    if start.frame == 0 {
        return start.reason;
    }
    let mut frame = start.frame;
    walk_part::<MAX_FRAMES, M>(memory, layout, &mut frame, visitor)
}

/// Walks at most `FRAMES` frames from `frame` on, and leaves there the first that it did not look at, or the one at which
/// `visitor` stopped; 0 where the walk has ended. [`end::TRUNCATED`] says that there is more.
#[inline(always)]
pub fn walk_part<const FRAMES: usize, M: Memory>(
    memory: &M,
    layout: &Layout,
    frame: &mut u64,
    visitor: &mut impl Visitor,
) -> u32 {
    let mut words: Wide = [0; WIDE_WORDS];
    for _ in 0..FRAMES {
        if !memory.read_wide(frame.wrapping_add_signed(i64::from(layout.frame_start)), &mut words) {
            visitor.unreadable();
            *frame = 0;
            return end::FAILED_READ;
        }
        // Bit 0 tags deferred and immortal references from 3.14 on (Include/internal/pycore_stackref.h); no object is odd.
        let code = word(&words, layout.code_word) & !1;
        let owner = word(&words, layout.owner_word) >> (layout.owner_shift & 63) & 0xff;
        // Both are small: the difference is negative if `owner` is below.
        let is_python = owner.wrapping_sub(u64::from(layout.owner_skip_from)) >> 63 & differs(code, 0);
        let at = word(&words, layout.instruction_word);
        let copy = word(&words, layout.copy_word) & u64::from(layout.copy_mask);
        let base = if copy != 0 { copied_from(memory, layout, code, copy) } else { code };
        let instruction = at.wrapping_sub(base & layout.instruction_base) as u32;
        if visitor.visit(Visited { code, instruction, is_python }).is_break() {
            return end::COMPLETE;
        }
        *frame = word(&words, layout.previous_word);
        if *frame == 0 {
            return end::COMPLETE;
        }
    }
    end::TRUNCATED
}

/// Where a code object would be whose instructions were this copy of them (`_PyCodeArray`, Include/cpython/code.h): in free-threaded builds from 3.14 on
/// every thread but the first runs copies of its own.
#[inline(always)]
fn copied_from<M: Memory>(memory: &M, layout: &Layout, code: u64, copy: u64) -> u64 {
    let array = memory.word_or_zero(code.wrapping_add(u64::from(layout.code_copies)));
    let copied = memory.word_or_zero(array.wrapping_add(8 + (copy << 3)));
    copied.wrapping_sub(u64::from(layout.code_start))
}

/// Tells code objects apart that lived at one address, by what they point to.
#[inline(always)]
pub fn fingerprint<M: Memory>(memory: &M, layout: &Layout, code: u64) -> u32 {
    let [a, b, c, d] = memory.read_constants(code.wrapping_add(u64::from(layout.code_file)));
    spread(mix(mix(mix(a, b), c), d & layout.code_last_constant)) as u32
}

/// The identity of a stack, without keeping it: the second walk, which sends it up, sees the same frames, because the
/// thread waits in its trap meanwhile.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The hash so far; begin with a seed.
    pub hash: u64,
    /// Which code object at an address it is.
    pub generations: &'a Generations,
    /// Counts frames that cannot be read.
    pub failed_reads: &'a Cell,
}

impl Visitor for Identity<'_> {
    #[inline(always)]
    fn visit(&mut self, frame: Visited) -> ControlFlow<()> {
        let generation = u64::from(self.generations.of(frame.code));
        let with = mix(mix(self.hash, frame.code), generation << 32 | u64::from(frame.instruction));
        self.hash ^= (with ^ self.hash) & frame.is_python.wrapping_neg();
        ControlFlow::Continue(())
    }

    #[inline(always)]
    fn unreadable(&mut self) {
        self.failed_reads.add(1);
    }
}

/// The state that the running thread itself says it has, or 0: it is attached to no interpreter, or the place is not known.
///
/// `_Py_tss_tstate` is set while a thread is attached to an interpreter, which takes that interpreter's lock, and null otherwise (Python/pystate.c,
/// `current_fast_set` and `current_fast_clear`). So it is right where several interpreters have a lock each, and the holder of one is not.
#[inline(always)]
pub fn own_thread_state<M: Memory>(memory: &M, layout: &Layout, own_ident: u64) -> u64 {
    if layout.thread_slot == 0 || own_ident == 0 {
        return 0;
    }
    memory.word_or_zero(own_ident.wrapping_add_signed(layout.thread_slot))
}

/// The state of a thread that is known to hold the interpreter lock, as every user of pymalloc must.
///
/// The word is in the runtime's data. Where it cannot be read, its page has not been touched yet: the process is at its start, and nobody holds the lock
/// (26 events of 3.15.2 under `PYTHONMALLOC=mimalloc`, which allocates before anything else of the runtime is written).
#[inline(always)]
pub fn locked_thread_state<M: Memory>(memory: &M, layout: &Layout) -> Result<u64, u32> {
    match memory.word_or_zero(layout.thread_state_pointer) {
        0 => Err(end::NO_THREAD_STATE),
        state => Ok(state),
    }
}

/// The state of the thread that is running, if it is one of Python's.
///
/// `proved` is the state that this thread was last seen with, `own_ident` the thread's own `pthread_self`: a thread that
/// does not hold the interpreter lock may find another's state where the running one's should be.
#[inline(always)]
pub fn thread_state<M: Memory>(memory: &M, layout: &Layout, proved: u64, own_ident: u64) -> Result<u64, u32> {
    if layout.thread_state_pointer == 0 {
        return Err(end::NO_INTERPRETER);
    }
    let current = memory.read_word(layout.thread_state_pointer).unwrap_or(0);
    if current != 0 && current == proved {
        return Ok(current);
    }
    let ident_at = |state: u64| memory.word_or_zero(state.wrapping_add(u64::from(layout.thread_ident)));
    if own_ident != 0 && current != 0 && ident_at(current) == own_ident {
        return Ok(current);
    }
    // The lock is with another thread, or with none: what this thread was proved to be holds if it is still so marked.
    if own_ident != 0 && proved != 0 && ident_at(proved) == own_ident {
        return Ok(proved);
    }
    Err(if current == 0 && proved == 0 { end::NO_THREAD_STATE } else { end::FOREIGN_THREAD })
}
