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
use tracer_ebpf::growth::{
    Around, Call, Fault, HUGE_PAGES, MOST_MOVED, PAGE, Pages, REGION, STEPS, witnesses,
};
use tracer_ebpf::memory::Memory as _;
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
/// In a thread's `span_found`: its span is room that its `mmap` fills. Releases write 0 and 1.
const ROOM_TO_FILL: u64 = 2;
/// In a thread's `span_found`: pages are being read to see whether they are there.
const LOOKING: u64 = 3;
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
    fault(&context, false);
    0
}

/// `page_fault_kernel` with the same: a system call has met memory that was never touched.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn resident_kernel_fault(context: RawTracePointContext) -> i32 {
    fault(&context, true);
    0
}

#[inline(always)]
fn fault(context: &RawTracePointContext, in_kernel: bool) {
    let address = context.arg::<u64>(0);
    let Some(event) = Event::running() else { return };
    if address >= KERNEL {
        go_to(context, NOWHERE);
        return;
    }
    let Some(thread) = event.thread() else { return };
    // A read of ours that fails is a fault of the kernel's, and comes here while another one is being looked at.
    if thread.span_found.load() == LOOKING {
        return;
    }
    let around = around(&event, thread, address);
    thread.fault_address.store(Fault::new(address, in_kernel, around).0);
    thread.fault_pages.store(rough_count(&event, Task::current().memory(event.settings)));
}

/// What is around a page that comes.
#[inline(always)]
fn around(event: &Event, thread: &Thread, address: u64) -> Around {
    let page = address & !(PAGE - 1);
    if pages(event).is_none_or(|pages| pages.has_some_around(page)) {
        return Around::Small;
    }
    if are_there(thread, page) == 0 { Around::Nothing } else { Around::Unknown }
}

/// How many of the pages can be read that are looked at around a page.
#[inline(always)]
fn are_there(thread: &Thread, page: u64) -> u32 {
    let found = thread.span_found.load();
    thread.span_found.store(LOOKING);
    let [one, other] = witnesses(page);
    let there =
        u32::from(UserMemory.read_word(one).is_some()) + u32::from(UserMemory.read_word(other).is_some());
    thread.span_found.store(found);
    there
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
    let jump = count.wrapping_sub(thread.fault_pages.load()).cast_signed();
    let is_jump = jump >= event.settings.huge_jump.load().cast_signed();
    if call.populates(CALLS) {
        let page = thread.span_cursor.load();
        // Only where its room was found by a search: a hint that the kernel follows takes none, and what the cursor says is of another call.
        let is_of_call = thread.span_found.load() == ROOM_TO_FILL;
        if !is_of_call || page < thread.span_from.load() || page >= thread.span_to.load() {
            return 0;
        }
        let pages = if is_jump { HUGE_PAGES } else { 1 };
        thread.booked_size.store(pages);
        thread.span_cursor.store(page.wrapping_add(pages * PAGE));
        thread.fault_pages.store(count);
        thread.booked_block.store(page);
    } else if let Some(page) = fault.page(call) {
        // Other threads make the count jump, too: what can be read now that could not be before is better evidence.
        let is_huge = match fault.around() {
            Around::Nothing => are_there(thread, page) == 2,
            Around::Unknown => is_jump,
            Around::Small => false,
        };
        thread.booked_block.store(if is_huge { page & !(REGION - 1) } else { page });
        thread.booked_size.store(if is_huge { HUGE_PAGES } else { 1 });
    } else {
        return 0;
    }
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
    if account.sent().is_sent() || id < PROCESSES {
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
    let populates = call.populates(CALLS);
    if !populates && call.moved(CALLS).is_none() {
        return 0;
    }
    let Some(new) = call.room(CALLS, context.arg::<u64>(0), searched) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    thread.span_cursor.store(new);
    thread.fault_pages.store(rough_count(&event, Task::current().memory(event.settings)));
    if populates {
        thread.span_from.store(new);
        thread.span_to.store(new.wrapping_add(call.arguments[1]));
        thread.span_found.store(ROOM_TO_FILL);
        return 0;
    }
    // Asked once more: the compiler would keep what there is of it in both cases, and the verifier knows of nothing in one.
    let Some(old) = call.moved(CALLS) else { return 0 };
    thread.span_from.store(old.from);
    thread.span_found.store(0);
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
