//! Books an allocation: its stack, its account, its block.
//!
//! A pop, the most frequent of all, does so itself. Rarer handlers leave it to a program of its own by a tail call: the walk
//! is most of what the kernel's verifier follows, and one copy less is 0.1 s less before the target is armed. That program also
//! goes on with stacks that are deeper than one run walks.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{domain, end};
use tracer_ebpf::tables::Thread;
use tracer_ebpf::threads::{RUNS, Searched, search};
use tracer_ebpf::walk::{Start, innermost};

use super::maps::{BOOK, FIND_THREAD, programs};
use super::memory::UserMemory;
use super::stack::Event;

/// Set in [`Thread::booked_size`] for a block of the malloc family.
const OF_MALLOC: u64 = 1 << 63;

/// Books a block that belongs to the stack that runs now.
#[inline(always)]
pub fn book(context: &ProbeContext, event: &Event, block: u64, size: u64, domain: u8) {
    if let Some(thread) = begin(context, event, block, size, domain) {
        go_on(context, event, thread);
    }
}

/// The same, all of it in the program below.
#[inline(always)]
pub fn book_later(context: &ProbeContext, event: &Event, block: u64, size: u64, domain: u8) {
    if begin(context, event, block, size, domain).is_some() {
        // SAFETY: nothing needs to be dropped.
        unsafe { programs().tail_call(context, BOOK) };
    }
}

/// Goes on with a walk, and books the block at its end.
#[uprobe]
#[inline(always)]
pub fn book_block(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    go_on(&context, &event, thread);
    0
}

/// Writes down what is to be booked. A thread without cells, which is counted, has its blocks in the process's own account.
#[inline(always)]
fn begin(
    context: &ProbeContext,
    event: &Event,
    block: u64,
    size: u64,
    domain: u8,
) -> Option<&'static Thread> {
    let Some(thread) = event.thread() else {
        if let Some(books) = event.books() {
            books.allocated(books.own_account(), None, block, size, domain);
        }
        return None;
    };
    let mark = if domain == domain::MALLOC { OF_MALLOC } else { 0 };
    thread.booked_block.store(block);
    thread.booked_size.store(size & !OF_MALLOC | mark);
    // Who uses pymalloc holds the interpreter lock.
    let start = event.stack_start(Some(thread), domain == domain::PYMALLOC);
    if event.layout.thread_next != 0 && start.reason == end::FOREIGN_THREAD {
        thread.cursor.store(0);
        thread.sent_parts.store(0);
        // SAFETY: nothing needs to be dropped.
        unsafe { programs().tail_call(context, FIND_THREAD) };
    }
    event.begin_walk(thread, start, domain);
    Some(thread)
}

/// Searches a free-threaded interpreter's threads for the one that runs, then goes on above.
#[uprobe]
#[inline(always)]
pub fn find_thread(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let Searched { state, next } = search(&UserMemory, event.layout, thread.cursor.load(), event.own_ident());
    let runs = thread.sent_parts.load() + 1;
    thread.sent_parts.store(runs);
    thread.cursor.store(next);
    thread.thread_state.store(state);
    // Read back and not compared as it is: the verifier would follow it through the whole search (see `walk.rs`).
    if thread.cursor.load() != 0 && runs < RUNS {
        // SAFETY: nothing needs to be dropped; past the kernel's limit it comes back, and the thread counts as none of Python's.
        unsafe { programs().tail_call(&context, FIND_THREAD) };
    }
    let is_malloc = thread.booked_size.load() & OF_MALLOC != 0;
    let start = match thread.thread_state.load() {
        0 => Start { frame: 0, reason: end::FOREIGN_THREAD },
        state => innermost(&UserMemory, event.layout, state),
    };
    event.begin_walk(thread, start, if is_malloc { domain::MALLOC } else { domain::PYMALLOC });
    // SAFETY: as above; where it comes back the block is lost to the account, which cannot be: at most nine calls came before.
    unsafe { programs().tail_call(&context, BOOK) };
    0
}

#[inline(always)]
fn go_on(context: &ProbeContext, event: &Event, thread: &Thread) {
    if event.walk_on(thread) {
        // SAFETY: nothing needs to be dropped; it comes back only past the kernel's limit, and the stack then ends here.
        unsafe { programs().tail_call(context, BOOK) };
    }
    let (block, size) = (thread.booked_block.load(), thread.booked_size.load());
    let domain = if size & OF_MALLOC != 0 { domain::MALLOC } else { domain::PYMALLOC };
    let id = event.account(thread, domain);
    if let Some(books) = event.books() {
        books.allocated(id, Some(thread), block, size & !OF_MALLOC, domain);
    }
    event.define(context, id, thread);
}
