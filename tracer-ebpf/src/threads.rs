//! Which thread state is the running thread's, in an interpreter without a lock: many threads run at once, and none is "the" current one.
//!
//! The interpreter's list of thread states is searched for the one that has the thread's own `pthread_self`, newest first, as new threads are put at its
//! head (`add_threadstate` in Python/pystate.c). What was found once is proved at each event: it must still carry that mark and still be in the list,
//! because a state that has ended keeps the mark in its freed memory.
//! It must not know where the thread keeps what was found.

use crate::abi::Layout;
use crate::memory::Memory;

/// States that one run looks at: the verifier follows each.
pub const STATES: usize = 64;
/// Runs; past 512 threads a thread that is not yet known counts as none of Python's.
pub const RUNS: u64 = 8;

/// How a search went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Searched {
    /// The thread's own state; 0: not found yet.
    pub state: u64,
    /// Where to go on; 0: the list has ended.
    pub next: u64,
}

/// Whether `state` carries the thread's mark.
#[inline(always)]
fn is_own<M: Memory>(memory: &M, layout: &Layout, state: u64, own_ident: u64) -> bool {
    own_ident != 0 && memory.word_or_zero(state.wrapping_add(u64::from(layout.thread_ident))) == own_ident
}

/// Whether the state that this thread was last seen with still is its own: it carries the mark, and its neighbour in the list, or the head, leads to it.
#[inline(always)]
pub fn is_still_own<M: Memory>(memory: &M, layout: &Layout, state: u64, own_ident: u64) -> bool {
    if state == 0 || !is_own(memory, layout, state, own_ident) {
        return false;
    }
    let next = u64::from(layout.thread_next);
    // `prev` and `next` are the first members (Include/cpython/pystate.h).
    let before = memory.word_or_zero(state.wrapping_add(next).wrapping_sub(8));
    let link = if before == 0 { layout.thread_state_pointer } else { before.wrapping_add(next) };
    memory.word_or_zero(link) == state
}

/// Searches the next [`STATES`] of the list from `state` on; 0: from its head.
#[inline(always)]
pub fn search<M: Memory>(memory: &M, layout: &Layout, from: u64, own_ident: u64) -> Searched {
    let from = if from == 0 { memory.word_or_zero(layout.thread_state_pointer) } else { from };
    search_from(memory, layout, from, layout.thread_next, own_ident)
}

/// The newest thread state of the main interpreter, with a lock or without; 0: it has not started, or the place is not known.
#[inline(always)]
pub fn newest<M: Memory>(memory: &M, layout: &Layout) -> u64 {
    if layout.main_interpreter == 0 {
        return 0;
    }
    let interpreter = memory.word_or_zero(layout.main_interpreter);
    if interpreter == 0 {
        0
    } else {
        memory.word_or_zero(interpreter.wrapping_add(layout.threads_head.into()))
    }
}

/// Searches the next [`STATES`] of a list of states from `state` on.
#[inline(always)]
pub fn search_from<M: Memory>(
    memory: &M,
    layout: &Layout,
    mut state: u64,
    next: u32,
    own_ident: u64,
) -> Searched {
    for _ in 0..STATES {
        if state == 0 {
            break;
        }
        if is_own(memory, layout, state, own_ident) {
            return Searched { state, next: 0 };
        }
        state = memory.word_or_zero(state.wrapping_add(u64::from(next)));
    }
    Searched { state: 0, next: state }
}
