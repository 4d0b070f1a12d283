//! Books an allocation: its stack, its account, its block.
//!
//! A pop, the most frequent of all, does so itself. Rarer handlers leave it to a program of its own by a tail call: the walk
//! is most of what the kernel's verifier follows, and one copy less is 0.1 s less before the target is armed. That program also
//! goes on with stacks that are deeper than one run walks.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{BlockRecord, PoolRecord, domain, end, record};
use tracer_ebpf::account::{AccountId, add};
use tracer_ebpf::tables::{Tables as _, Thread};
use tracer_ebpf::threads::{RUNS, Searched, search};
use tracer_ebpf::walk::{Start, innermost};

use super::maps::{BOOK, FIND_THREAD, KernelTables, events, programs};
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
    let Some(event) = Event::begun(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let Some(id) = walk_and_book(&context, &event, thread) else { return 0 };
    if event.cookie.opens_pool() && event.settings.tells_openings() {
        tell_opening(&event, thread.booked_block.load(), id);
    }
    event.define(&context, id, thread);
    0
}

/// Tells userspace whose a new pool is. It is not woken for it.
#[inline(always)]
fn tell_opening(event: &Event, block: u64, id: AccountId) {
    if let Some(account) = KernelTables.account(id.0) {
        account.add_pool();
    }
    let pool = block & !u64::from(event.layout.pool_mask);
    let record =
        PoolRecord { record: record::POOL, process: event.cookie.process(), account: id.0, spare: 0, pool };
    if events().output::<PoolRecord>(record, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
        add(&event.totals.ring_full, 1);
    }
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
    let Some(event) = Event::begun(&context) else { return 0 };
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
    if let Some(id) = walk_and_book(context, event, thread) {
        event.define(context, id, thread);
    }
}

/// The account that the block now belongs to.
#[inline(always)]
fn walk_and_book(context: &ProbeContext, event: &Event, thread: &Thread) -> Option<AccountId> {
    if event.walk_on(thread) {
        // SAFETY: nothing needs to be dropped; it comes back only past the kernel's limit, and the stack then ends here.
        unsafe { programs().tail_call(context, BOOK) };
    }
    let (block, size) = (thread.booked_block.load(), thread.booked_size.load());
    let domain = if size & OF_MALLOC != 0 { domain::MALLOC } else { domain::PYMALLOC };
    let id = event.account(thread, domain);
    if let Some(books) = event.books() {
        books.allocated(id, Some(thread), block, size & !OF_MALLOC, domain);
        if books.window.is_open() && event.settings.tells_blocks() {
            tell_block(event, id, block, size & !OF_MALLOC, domain);
        }
    }
    Some(id)
}

/// Tells userspace of a block that was handed out in a window. It is not woken for it.
#[inline(always)]
fn tell_block(event: &Event, id: AccountId, block: u64, bytes: u64, domain: u8) {
    let window = (event.settings.window().number() as u32) << 16;
    let mark = window | event.cookie.level() << 8 | u32::from(domain == domain::MALLOC);
    let process = event.cookie.process();
    let record = BlockRecord { record: record::BLOCK, process, account: id.0, mark, bytes, block };
    if events().output::<BlockRecord>(record, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
        add(&event.totals.ring_full, 1);
    }
}
