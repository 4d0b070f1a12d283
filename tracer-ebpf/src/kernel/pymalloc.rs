//! Programs on pymalloc's pops, pushes and pool openings.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_ebpf::abi::{POOL_SIZE_INDEX, domain, kind};
use tracer_ebpf::account::{Freed, add};
use tracer_ebpf::memory::Memory as _;

use super::book::{book, book_later};
use super::maps::{NOWHERE, heat, programs};
use super::memory::UserMemory;
use super::registers::{register, result, stack_pointer};
use super::stack::Event;

/// The block, or where its address is.
#[inline(always)]
fn operand(context: &ProbeContext, event: &Event) -> u64 {
    register(context, event.cookie.block()).wrapping_add_signed(event.cookie.displacement())
}

/// A block has left its pool: block and pool are in registers.
#[uprobe]
#[inline(always)]
pub fn pop(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let operand = operand(&context, &event);
    let is_indirect = event.cookie.kind() == kind::POP_INDIRECT;
    let block = if is_indirect { UserMemory.word_or_zero(operand) } else { operand };
    add(&event.totals.pops, 1);
    if event.settings.window.load() | event.settings.keeps.load() != 0
        && let Some(hits) = heat(event.cookie.number())
    {
        add(hits, 1);
    }
    let size = size_of_pool(register(&context, event.cookie.pool()));
    book(&context, &event, block, size, domain::PYMALLOC);
    0
}

/// The function that opens pools returns the first block of one, or null.
#[uretprobe]
#[inline(always)]
pub fn pool_return(context: RetProbeContext) -> u32 {
    let context = ProbeContext::new(context.as_ptr());
    let Some(event) = Event::of(&context) else { return 0 };
    let block = result(&context);
    if block == 0 {
        return 0;
    }
    add(&event.totals.pools, 1);
    add(&event.totals.pops, 1);
    let size = size_of_pool(block & !u64::from(event.layout.pool_mask));
    book_later(&context, &event, block, size, domain::PYMALLOC);
    0
}

/// The first block of a pool that was opened has left it, where that is no function's return.
#[uprobe]
#[inline(always)]
pub fn pool_pop(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let block = operand(&context, &event);
    add(&event.totals.pools, 1);
    add(&event.totals.pops, 1);
    let size = size_of_pool(register(&context, event.cookie.pool()));
    book_later(&context, &event, block, size, domain::PYMALLOC);
    0
}

/// Size classes are 16 bytes apart (`ALIGNMENT`, Objects/obmalloc.c, 3.7 and later on 64-bit hosts).
#[inline(always)]
fn size_of_pool(pool: u64) -> u64 {
    let class = UserMemory.half_or_zero(pool.wrapping_add(POOL_SIZE_INDEX));
    (u64::from(class & 63) + 1) << 4
}

/// A block has gone back to its pool.
#[uprobe]
#[inline(always)]
pub fn push(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let operand = operand(&context, &event);
    let block = match event.cookie.kind() {
        kind::PUSH => operand,
        kind::PUSH_INDIRECT => UserMemory.word_or_zero(operand),
        _ => {
            // Never so. The call is here because a program without a tail call may get a private stack (see `mod.rs`).
            // SAFETY: nothing needs to be dropped, and the slot is empty.
            unsafe { programs().tail_call(&context, NOWHERE) };
            return 0;
        }
    };
    let totals = event.totals;
    add(&totals.pushes, 1);
    if event.books().is_some_and(|books| books.freed(block) == Freed::Unknown) {
        add(&totals.unknown_pushes, 1);
    }
    0
}

/// Counts nothing: the floor that benches compare with.
#[uprobe]
#[inline(always)]
pub fn empty(context: ProbeContext) -> u32 {
    if stack_pointer(&context) == 0 {
        // SAFETY: as above.
        unsafe { programs().tail_call(&context, NOWHERE) };
    }
    0
}

/// The same on a return.
#[uretprobe]
#[inline(always)]
pub fn empty_return(context: RetProbeContext) -> u32 {
    let context = ProbeContext::new(context.as_ptr());
    if stack_pointer(&context) == 0 {
        // SAFETY: as above.
        unsafe { programs().tail_call(&context, NOWHERE) };
    }
    0
}
