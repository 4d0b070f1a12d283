//! Programs on page faults: which stack made a page of anonymous memory resident, and when it went back.
//!
//! `page_fault_user` and `page_fault_kernel` tell an address, before anything is known of it; `rss_stat` tells that the number of a process's
//! anonymous pages has changed, in the thread that changed it, but not which pages, nor by how many. Together they tell all: after a fault it is
//! the page of the fault, in a system call that takes pages away it is pages of its range. `vm_unmapped_area` tells where `mremap` moves pages, and where an `mmap` with
//! `MAP_POPULATE` makes them resident one after the other.
//! Everything else (khugepaged, other processes, swap) is found by comparing with the process's page table when the recording ends.

use core::ffi::{c_long, c_void};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_loop, bpf_task_pt_regs};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use tracer_ebpf::abi::{PROCESSES, domain, end};
use tracer_ebpf::account::AccountId;
use tracer_ebpf::growth::{Call, Fault, HUGE_PAGES, MOST_MOVED, PAGE, Pages, REGION, STEPS};
use tracer_ebpf::tables::{Tables as _, Thread};
use tracer_ebpf::threads::{RUNS, Searched, newest, search_from};
use tracer_ebpf::walk::{Start, innermost};

use super::define::{define_stack, send};
use super::maps::{
    DEFINE, KernelTables, NOWHERE, RESIDENT_BOOK, RESIDENT_FIND, RESIDENT_HUGE, RESIDENT_RELEASE,
    programs_on_faults, regions,
};
use super::memory::UserMemory;
use super::registers::{CALLS, system_call};
use super::stack::{Event, Instrument};
use super::task::{Task, word_at};

/// `MM_ANONPAGES` (include/linux/mm_types_task.h).
const ANONYMOUS: u32 = 1;
/// A fault that makes the kernel's rough count jump by so many pages was one of a huge page. That count goes by batches of 32 pages, or two for each processor
/// (lib/percpu_counter.c, `compute_batch_value`), and a huge page's 512 at once.
const JUMP: i64 = 256;
/// Addresses of the kernel begin here or later.
const KERNEL: u64 = 1 << 63;

/// Programs that page faults start.
pub struct PageFaults;

impl Instrument for PageFaults {
    const WATCHES_CODE: bool = false;

    #[inline(always)]
    fn event(_: &ProbeContext) -> Option<Event> {
        Event::running()
    }

    #[inline(always)]
    fn programs() -> &'static ProgramArray {
        programs_on_faults()
    }
}

#[inline(always)]
fn of(context: &RawTracePointContext) -> ProbeContext {
    // Only where programs continue is asked of it, never a register.
    ProbeContext::new(context.as_ptr())
}

#[inline(always)]
fn go_to(context: &RawTracePointContext, program: u32) {
    // SAFETY: nothing needs to be dropped; it comes back only where the program is not loaded, or past the kernel's limit.
    unsafe { programs_on_faults().tail_call(context, program) };
}

#[inline(always)]
fn pages(event: &Event) -> Option<Pages<'static, KernelTables>> {
    Some(Pages { books: event.books()?, regions: regions()? })
}

/// What the running thread has asked of the kernel.
#[inline(always)]
fn running_call() -> Call {
    // SAFETY: the helper takes nothing and cannot fail.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: it takes a task that lives, which the running one does.
    let registers = unsafe { bpf_task_pt_regs(task) }.cast_unsigned();
    system_call(|offset| word_at(registers.wrapping_add(offset)))
}

/// The kernel's rough count of a process's anonymous pages: what the processors have counted and not yet added is missing.
#[inline(always)]
fn rough_count(event: &Event, memory: u64) -> u64 {
    word_at(memory.wrapping_add(event.settings.anonymous_pages.load()))
}

/// `page_fault_user(address, registers, error)`.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn resident_fault(context: RawTracePointContext) -> i32 {
    let address = context.arg::<u64>(0);
    let Some(event) = Event::running() else { return 0 };
    if address >= KERNEL {
        go_to(&context, NOWHERE);
        return 0;
    }
    note_fault(&event, Fault::new(address, false));
    0
}

/// `page_fault_kernel` with the same: a system call has met memory that was never touched.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn resident_kernel_fault(context: RawTracePointContext) -> i32 {
    let address = context.arg::<u64>(0);
    let Some(event) = Event::running() else { return 0 };
    if address >= KERNEL {
        go_to(&context, NOWHERE);
        return 0;
    }
    note_fault(&event, Fault::new(address, true));
    0
}

#[inline(always)]
fn note_fault(event: &Event, fault: Fault) {
    let Some(thread) = event.thread() else { return };
    thread.fault_address.store(fault.0);
    thread.fault_pages.store(rough_count(event, Task::current().memory(event.settings)));
}

/// `rss_stat(memory, member)`: after the count has changed.
#[raw_tracepoint(tracepoint = "rss_stat")]
pub fn resident_change(context: RawTracePointContext) -> i32 {
    if context.arg::<u32>(1) != ANONYMOUS {
        return 0;
    }
    let Some(event) = Event::running() else { return 0 };
    let memory = context.arg::<u64>(0);
    // A fork fills its child's memory, an exec its next one's.
    if memory != Task::current().memory(event.settings) {
        return 0;
    }
    let Some(thread) = event.thread() else { return 0 };
    let call = running_call();
    let span = call.released(CALLS);
    let fault = Fault(thread.fault_address.load());
    thread.fault_address.store(0);
    if span.from < span.to {
        Pages::<KernelTables>::begin_release(thread, span);
        go_to(&context, RESIDENT_RELEASE);
        return 0;
    }
    let count = rough_count(&event, memory);
    let is_huge = count.wrapping_sub(thread.fault_pages.load()).cast_signed() >= JUMP;
    let pages = if is_huge { HUGE_PAGES } else { 1 };
    if call.populates(CALLS) {
        let page = thread.span_cursor.load();
        thread.span_cursor.store(page.wrapping_add(pages * PAGE));
        thread.fault_pages.store(count);
        thread.booked_block.store(page);
    } else if let Some(page) = fault.page(call) {
        thread.booked_block.store(if is_huge { page & !(REGION - 1) } else { page });
    } else {
        return 0;
    }
    thread.booked_size.store(pages);
    let start = event.stack_start(Some(thread), false);
    let is_unknown = start.reason == end::FOREIGN_THREAD || start.reason == end::NO_THREAD_STATE;
    if start.frame == 0 && is_unknown {
        // Who faults need not hold the interpreter's lock: who calls into a library, or reads a file, has given it up.
        let newest = newest(&UserMemory, event.layout);
        if newest != 0 {
            thread.cursor.store(newest);
            thread.sent_parts.store(0);
            thread.walk_end.store(start.reason.into());
            go_to(&context, RESIDENT_FIND);
            return 0;
        }
    }
    event.begin_walk(thread, start, domain::RESIDENT);
    go_to(&context, RESIDENT_BOOK);
    0
}

/// Searches the interpreter's threads for the one that runs.
#[raw_tracepoint]
pub fn resident_find(context: RawTracePointContext) -> i32 {
    let Some(event) = Event::running() else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let (from, offset) = (thread.cursor.load(), event.layout.thread_list_next);
    let Searched { state, next } = search_from(&UserMemory, event.layout, from, offset, event.own_ident());
    let runs = thread.sent_parts.load() + 1;
    thread.sent_parts.store(runs);
    thread.cursor.store(next);
    if state != 0 {
        thread.thread_state.store(state);
    }
    thread.span_left.store(state);
    // Read back and not compared as it is: see `book.rs`.
    if thread.cursor.load() != 0 && runs < RUNS {
        go_to(&context, RESIDENT_FIND);
    }
    let start = match thread.span_left.load() {
        0 => Start { frame: 0, reason: thread.walk_end.load() as u32 },
        state => innermost(&UserMemory, event.layout, state),
    };
    event.begin_walk(thread, start, domain::RESIDENT);
    go_to(&context, RESIDENT_BOOK);
    0
}

/// Walks the stack, and books the page.
#[raw_tracepoint]
pub fn resident_book(context: RawTracePointContext) -> i32 {
    let Some(event) = Event::running() else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    if event.walk_on(thread) {
        go_to(&context, RESIDENT_BOOK);
    }
    let id = event.account(thread, domain::RESIDENT);
    thread.undefined.store(u64::from(id.0));
    if thread.booked_size.load() == 1
        && let Some(pages) = pages(&event)
    {
        pages.touched(id, thread.booked_block.load());
    } else {
        go_to(&context, RESIDENT_HUGE);
    }
    define_next(&context, thread);
    0
}

/// Goes on in the program that sends the stack up, if that has not been done.
#[inline(always)]
fn define_next(context: &RawTracePointContext, thread: &Thread) {
    let id = thread.undefined.load() as u32;
    let Some(account) = KernelTables.account(id) else { return };
    if account.sent.load() != 0 || id < PROCESSES {
        return;
    }
    thread.cursor.store(0);
    thread.sent_parts.store(0);
    go_to(context, DEFINE);
}

/// Books the pages of a huge page: each by itself, for each may go by itself.
#[raw_tracepoint]
pub fn resident_huge(context: RawTracePointContext) -> i32 {
    let Some(event) = Event::running() else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    repeat(HUGE_PAGES as u32, book_one);
    define_next(&context, thread);
    0
}

/// Calls `step` up to `times` times, until it says that it is enough. What steps tell each other is in the thread's cells: see `define.rs`.
#[inline(always)]
fn repeat(times: u32, step: extern "C" fn(u64, *mut c_void) -> c_long) {
    // SAFETY: the step takes a number and nothing else, and ends before the helper returns.
    unsafe { bpf_loop(times, step as *mut c_void, core::ptr::null_mut(), 0) };
}

const AGAIN: c_long = 0;
const ENOUGH: c_long = 1;

#[inline(always)]
fn asked_again() -> Option<(Pages<'static, KernelTables>, &'static Thread)> {
    let event = Event::running()?;
    Some((pages(&event)?, event.thread()?))
}

extern "C" fn book_one(number: u64, _: *mut c_void) -> c_long {
    let Some((pages, thread)) = asked_again() else { return ENOUGH };
    let id = AccountId(thread.undefined.load() as u32);
    pages.touched(id, thread.booked_block.load().wrapping_add(number.wrapping_mul(PAGE)));
    AGAIN
}

/// Takes pages away that the running system call takes away.
#[raw_tracepoint]
pub fn resident_release(context: RawTracePointContext) -> i32 {
    let _ = context.as_ptr();
    repeat(STEPS, release_next);
    0
}

extern "C" fn release_next(_: u64, _: *mut c_void) -> c_long {
    let Some((pages, thread)) = asked_again() else { return ENOUGH };
    if pages.release_step(thread) { AGAIN } else { ENOUGH }
}

/// `vm_unmapped_area(address, search)`: room has been found, which `mremap` moves pages to, or `mmap` fills.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub fn resident_move(context: RawTracePointContext) -> i32 {
    let Some(event) = Event::running() else { return 0 };
    // `vm_unmapped_area_info.length`, include/linux/mm.h.
    let searched = word_at(context.arg::<u64>(1).wrapping_add(8));
    let call = running_call();
    let moved = call.moved(CALLS);
    if moved.is_none() && !call.populates(CALLS) {
        return 0;
    }
    let Some(new) = call.room(CALLS, context.arg::<u64>(0), searched) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    thread.span_cursor.store(new);
    thread.fault_pages.store(rough_count(&event, Task::current().memory(event.settings)));
    let Some(old) = moved else { return 0 };
    thread.span_from.store(old.from);
    // What is released next begins anew.
    thread.span_to.store(0);
    let moved = old.to.wrapping_sub(old.from) / PAGE;
    repeat(if moved > MOST_MOVED { MOST_MOVED } else { moved } as u32, move_one);
    0
}

extern "C" fn move_one(number: u64, _: *mut c_void) -> c_long {
    let Some((pages, thread)) = asked_again() else { return ENOUGH };
    let offset = number.wrapping_mul(PAGE);
    pages.moved(thread.span_from.load().wrapping_add(offset), thread.span_cursor.load().wrapping_add(offset));
    AGAIN
}

/// As `define` of the probes.
#[raw_tracepoint]
pub fn resident_define(context: RawTracePointContext) -> i32 {
    define_stack::<PageFaults>(&of(&context));
    0
}

/// As `send_stack` of the probes.
#[raw_tracepoint]
pub fn resident_send(context: RawTracePointContext) -> i32 {
    send::<PageFaults>(&of(&context));
    0
}
