//! Programs on the malloc family: entry, return, `free`.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_ebpf::abi::{domain, function, kind};
use tracer_ebpf::account::{Freed, add};
use tracer_ebpf::calls::{
    Entered, OldBlock, Request, enter, is_continued, is_nested_free, leave, look_into, old_block,
};
use tracer_ebpf::live::{Entry, Key};
use tracer_ebpf::memory::Memory as _;
use tracer_ebpf::tables::Thread;

use super::book::book_later;
use super::maps::{NOWHERE, programs};
use super::memory::UserMemory;
use super::registers::{argument, result, stack_pointer};
use super::stack::Event;

/// A function of the family is entered; `free` only ends a block, the others wait for their return.
#[uprobe]
#[inline(always)]
pub fn malloc_enter(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let number = event.cookie.kind().wrapping_sub(kind::MALLOC);
    if number > function::PVALLOC {
        // SAFETY: nothing needs to be dropped, and the slot is empty; see `mod.rs` for why the call is here.
        unsafe { programs().tail_call(&context, NOWHERE) };
        return 0;
    }
    let Some(thread) = event.thread() else { return 0 };
    if number == function::FREE {
        freed(&event, thread, argument::<0>(&context), stack_pointer(&context));
        return 0;
    }
    let request = Request::from_arguments(
        number,
        argument::<0>(&context),
        argument::<1>(&context),
        argument::<2>(&context),
    );
    let stack_pointer = stack_pointer(&context);
    let window = event.window();
    if window.is_any() {
        look_into(thread, window);
    }
    let continued = is_continued(thread, &request, stack_pointer);
    let Entered::Outermost { abandoned } = enter(thread, &request, stack_pointer) else { return 0 };
    if continued {
        return 0;
    }
    if abandoned {
        add(&event.totals.abandoned_calls, 1);
    }
    thread.call_entry.store(window.0);
    if window.is_any() {
        return 0;
    }
    // The old block leaves the table now: while realloc runs, another thread may already get its address.
    if request.is_realloc()
        && request.pointer != 0
        && let Some((_, entry)) = event.books().and_then(|books| books.take(request.pointer))
    {
        thread.call_entry.store(entry.0);
    }
    0
}

#[inline(always)]
fn freed(event: &Event, thread: &Thread, address: u64, stack_pointer: u64) {
    if address == 0 || is_nested_free(thread, stack_pointer) {
        return;
    }
    let totals = event.totals;
    add(&totals.frees, 1);
    if event.books().is_some_and(|books| books.freed(address) == Freed::Unknown) {
        add(&totals.unknown_frees, 1);
    }
}

/// A function of the family returns.
#[uretprobe]
#[inline(always)]
pub fn malloc_return(context: RetProbeContext) -> u32 {
    let context = ProbeContext::new(context.as_ptr());
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let window = event.window();
    if window.is_any() {
        look_into(thread, window);
    }
    let Some(request) = leave(thread) else { return 0 };
    let returned = result(&context);
    if !window.is_any() && request.is_realloc() {
        end_old_block(&event, thread, &request, returned);
    }
    let block = if request.function != function::POSIX_MEMALIGN {
        returned
    } else if returned as u32 == 0 {
        UserMemory.read_word(request.pointer).unwrap_or(0)
    } else {
        0
    };
    if block == 0 {
        return 0;
    }
    add(&event.totals.mallocs, 1);
    book_later(&context, &event, block, request.size, domain::MALLOC);
    0
}

#[inline(always)]
fn end_old_block(event: &Event, thread: &Thread, request: &Request, returned: u64) {
    let entry = Entry(thread.call_entry.load());
    thread.call_entry.store(0);
    if request.pointer == 0 {
        return;
    }
    let totals = event.totals;
    let kept = old_block(request, returned) == OldBlock::Kept;
    if !kept {
        add(&totals.frees, 1);
    }
    let Some(key) = Key::new(event.cookie.process(), request.pointer) else { return };
    let Some(books) = event.books() else { return };
    if entry.0 == 0 {
        if !kept {
            add(&totals.unknown_frees, 1);
        }
    } else if kept {
        books.put_back(key, entry);
    } else {
        books.end(key, entry);
    }
}
