//! The malloc family as a state machine a thread: entry, nested entries, return.
//!
//! Only the outermost call counts: `realloc(NULL, n)` may call `malloc`, `reallocarray` calls `realloc`. A return that never
//! came (a `longjmp`, a return probe that the kernel skipped) is noticed by the stack pointer, or the thread would be blind
//! from then on. It must not know probes or tables.

use crate::abi::function;
use crate::tables::{Thread, Window};

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`function`].
    pub function: u8,
    /// Requested bytes; products are cut to the largest number, which no allocator grants.
    pub size: u64,
    /// realloc: the old block. posix_memalign: where the result goes. Else 0.
    pub pointer: u64,
}

impl Request {
    /// From the first three arguments of the C function.
    #[inline(always)]
    #[must_use]
    pub fn from_arguments(number: u8, first: u64, second: u64, third: u64) -> Self {
        let (size, pointer) = match number {
            function::CALLOC => (product(first, second), 0),
            function::REALLOC => (second, first),
            function::REALLOC_ARRAY => (product(second, third), first),
            function::POSIX_MEMALIGN => (third, first),
            function::ALIGNED_ALLOC | function::MEMALIGN => (second, 0),
            _ => (first, 0),
        };
        Self { function: number, size, pointer }
    }

    /// Whether the call may free an old block.
    #[inline(always)]
    #[must_use]
    pub const fn is_realloc(&self) -> bool {
        self.function == function::REALLOC || self.function == function::REALLOC_ARRAY
    }
}

/// A product that says "too large" instead of wrapping, without the 128-bit multiplication that eBPF does not have.
#[inline(always)]
fn product(left: u64, right: u64) -> u64 {
    const SMALL: u64 = 1 << 32;
    if left < SMALL && right < SMALL {
        return left * right;
    }
    if left == 0 || right == 0 {
        return 0;
    }
    // One factor has 32 bits or more: the product is below 2^64 only if the other is small; 2^40 is past every real request.
    if left >= 1 << 40 || right >= 1 << 40 || left >= SMALL && right >= SMALL {
        return u64::MAX;
    }
    let (large, small) = if left >= SMALL { (left, right) } else { (right, left) };
    if small < 1 << 24 { large * small } else { u64::MAX }
}

/// What an entry was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// An outermost call: its request has been noted.
    Outermost {
        /// An earlier call never returned.
        abandoned: bool,
    },
    /// A call made by another call of the family.
    Nested,
}

/// Whether a realloc is the one that this thread is in already: a wrapper has jumped to the realloc that it wraps. Asked before
/// [`enter`], which sees only that the first never returns. What the first took out of the live table is then still the old block.
#[inline(always)]
pub fn is_continued(thread: &Thread, request: &Request, stack_pointer: u64) -> bool {
    thread.call_depth.load() > 0
        && thread.call_stack_pointer.load() == stack_pointer
        && thread.call_function.load() == u64::from(request.function)
        && thread.call_pointer.load() == request.pointer
        && request.is_realloc()
}

/// Notes the entry of a call other than `free`.
#[inline(always)]
pub fn enter(thread: &Thread, request: &Request, stack_pointer: u64) -> Entered {
    let depth = thread.call_depth.load();
    let outer_pointer = thread.call_stack_pointer.load();
    let same_function = thread.call_function.load() == u64::from(request.function);
    // The stack grows down: a call inside another one is below it, or at it if it was reached by a jump (which never leads
    // back to the same function).
    let inside =
        depth > 0 && (stack_pointer < outer_pointer || stack_pointer == outer_pointer && !same_function);
    if inside {
        thread.call_depth.store(depth + 1);
        return Entered::Nested;
    }
    thread.call_depth.store(1);
    thread.call_stack_pointer.store(stack_pointer);
    thread.call_function.store(u64::from(request.function));
    thread.call_size.store(request.size);
    thread.call_pointer.store(request.pointer);
    Entered::Outermost { abandoned: depth > 0 }
}

/// A call that began in an earlier window has returned unseen, and is forgotten.
#[inline(always)]
pub fn look_into(thread: &Thread, window: Window) {
    if thread.call_entry.load() != window.0 {
        thread.call_depth.store(0);
        thread.call_entry.store(window.0);
    }
}

/// Whether a `free` at this stack pointer is part of a call of the family (realloc of size 0).
#[inline(always)]
pub fn is_nested_free(thread: &Thread, stack_pointer: u64) -> bool {
    thread.call_depth.load() > 0 && stack_pointer <= thread.call_stack_pointer.load()
}

/// Notes a return; the request if it was the outermost call's.
#[inline(always)]
pub fn leave(thread: &Thread) -> Option<Request> {
    let depth = thread.call_depth.load();
    if depth == 0 {
        // Its entry was before recording began.
        return None;
    }
    thread.call_depth.store(depth - 1);
    (depth == 1).then(|| Request {
        function: thread.call_function.load() as u8,
        size: thread.call_size.load(),
        pointer: thread.call_pointer.load(),
    })
}

/// What a realloc did with the old block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldBlock {
    /// It is gone, or is now the new one.
    Ended,
    /// The call failed: it is still there.
    Kept,
}

/// Reads a realloc's outcome from its result.
#[inline(always)]
#[must_use]
pub fn old_block(request: &Request, result: u64) -> OldBlock {
    // realloc(p, 0) frees and returns null in glibc (malloc/malloc.c, REALLOC_ZERO_BYTES_FREES).
    if result == 0 && request.size != 0 { OldBlock::Kept } else { OldBlock::Ended }
}
