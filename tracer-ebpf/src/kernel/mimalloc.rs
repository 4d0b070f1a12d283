//! The program on mimalloc's pops: what free-threaded interpreters use in place of pymalloc, and others under `PYTHONMALLOC=mimalloc`. Its frees are pushes like pymalloc's (`pymalloc.rs`).

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{Cookie, LARGEST_PAGE_BLOCK, PAGE_SLICE_COUNT, PAGE_SLICE_SHIFT, domain};
use tracer_ebpf::account::add;
use tracer_ebpf::memory::Memory as _;

use super::book::book_later;
use super::memory::UserMemory;
use super::registers::register;
use super::stack::Event;

/// A block is about to leave its page: the test whether the page has one. Where it has none, the slow path finds another page and comes by again.
#[uprobe]
#[inline(always)]
pub fn page_pop(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let block = register(&context, event.cookie.block()).wrapping_add_signed(event.cookie.displacement());
    if block == 0 {
        return 0;
    }
    add(&event.totals.pops, 1);
    let size = size_of_block(register(&context, event.cookie.pool()), event.cookie);
    book_later(&context, &event, block, size, domain::PYMALLOC);
    0
}

/// `mi_page_block_size` (Include/internal/mimalloc/mimalloc/internal.h): in 2.1 a huge page is one block, as large as its slices.
#[inline(always)]
fn size_of_block(page: u64, cookie: Cookie) -> u64 {
    let place = page.wrapping_add(cookie.block_size_offset());
    if cookie.block_size_is_word() {
        return UserMemory.word_or_zero(place);
    }
    let size = u64::from(UserMemory.half_or_zero(place));
    if size != 0 && size < LARGEST_PAGE_BLOCK {
        return size;
    }
    u64::from(UserMemory.half_or_zero(page.wrapping_add(PAGE_SLICE_COUNT))) << PAGE_SLICE_SHIFT
}
