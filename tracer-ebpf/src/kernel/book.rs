//! Books an allocation: its stack, its account, its block.
//!
//! A pop, the most frequent of all, does so itself. Rarer handlers leave it to a program of its own by a tail call: the walk
//! is most of what the kernel's verifier follows, and one copy less is 0.1 s less before the target is armed.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::domain;
use tracer_ebpf::tables::Thread;

use super::maps::{BOOK, programs};
use super::stack::Event;

/// Set in [`Thread::booked_size`] for a block of the malloc family.
const OF_MALLOC: u64 = 1 << 63;

/// Books a block that belongs to the stack that runs now.
#[inline(always)]
pub fn book(
    context: &ProbeContext,
    event: &Event,
    thread: Option<&Thread>,
    block: u64,
    size: u64,
    domain: u8,
) {
    // Who uses pymalloc holds the interpreter lock.
    let start = event.stack_start(thread, domain == domain::PYMALLOC);
    let id = event.account(start, domain);
    if let Some(books) = event.books() {
        books.allocated(id, thread, block, size, domain);
    }
    event.define(context, id, thread);
}

/// Goes on in the program below. A thread without cells has no way to say what is to be booked: that is counted.
#[inline(always)]
pub fn book_later(context: &ProbeContext, event: &Event, block: u64, size: u64, domain: u8) {
    let Some(thread) = event.thread() else { return };
    let mark = if domain == domain::MALLOC { OF_MALLOC } else { 0 };
    thread.booked_block.store(block);
    thread.booked_size.store(size & !OF_MALLOC | mark);
    // SAFETY: nothing needs to be dropped.
    unsafe { programs().tail_call(context, BOOK) };
}

/// See the module.
#[uprobe]
#[inline(always)]
pub fn book_block(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let (block, size) = (thread.booked_block.load(), thread.booked_size.load());
    let domain = if size & OF_MALLOC != 0 { domain::MALLOC } else { domain::PYMALLOC };
    book(&context, &event, Some(thread), block, size & !OF_MALLOC, domain);
    0
}
