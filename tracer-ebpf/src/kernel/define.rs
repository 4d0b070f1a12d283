//! The program that sends up a stack that was not seen before, and the code objects in it.
//!
//! It runs by tail call at the end of an allocation's handler. Each run sends one code object that userspace does not know
//! and then calls itself; when there is none left it sends the stack. The kernel allows 33 tail calls in a row: a stack with
//! more new code objects goes on at its next event.

use core::ops::ControlFlow;

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{
    CodeRecord, LINE_TABLE_BYTES, LINE_TABLE_RECORDS, Layout, LineTableRecord, MAX_FRAMES, RawFrame, RawText,
    StackRecord, record,
};
use tracer_ebpf::account::add;
use tracer_ebpf::bucket::{self, Candidates};
use tracer_ebpf::hash::{mix, spread};
use tracer_ebpf::live::{Key, Live};
use tracer_ebpf::memory::Memory as _;
use tracer_ebpf::tables::Tables as _;
use tracer_ebpf::walk::{Start, Visited, Visitor, fingerprint, walk};

use super::maps::{
    CodeBuckets, DEFINE, KernelTables, LiveBuckets, NOWHERE, SEND_STACK, events, globals, programs,
};
use super::memory::{UserMemory, read_into};
use super::stack::Event;

/// See the module.
#[uprobe]
#[inline(always)]
pub fn define(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    // The handler before us has proved whose stack it is; the thread has not run since.
    let start = event.stack_start(Some(thread), false);
    let unsent = first_unsent(&event, start);
    if unsent.code != 0 {
        if !send_code(&event, unsent) {
            add(&event.totals.ring_full, 1);
            return 0;
        }
        // SAFETY: nothing needs to be dropped; past the kernel's limit the call comes back, and the next event goes on.
        unsafe { programs().tail_call(&context, DEFINE) };
        return 0;
    }
    // SAFETY: as above.
    unsafe { programs().tail_call(&context, SEND_STACK) };
    0
}

/// Sends the stack itself; a program of its own so that the verifier walks one loop at a time.
#[uprobe]
#[inline(always)]
pub fn send_stack(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let account = thread.undefined.load() as u32;
    if !write_stack(&event, event.stack_start(Some(thread), false), account) {
        add(&event.totals.ring_full, 1);
    } else if let Some(account) = KernelTables.account(account) {
        account.sent.store(1);
    }
    if account == u32::MAX {
        // Never so; see `mod.rs` for why every program has such a call.
        // SAFETY: nothing needs to be dropped, and the slot is empty.
        unsafe { programs().tail_call(&context, NOWHERE) };
    }
    0
}

#[inline(always)]
fn sent_key(event: &Event, code: u64, fingerprint: u32) -> u64 {
    spread(mix(mix(u64::from(event.cookie.process()) + 1, code), u64::from(fingerprint))) | 1
}

#[inline(always)]
fn code_candidates(event: &Event, key: u64) -> Candidates {
    Candidates::of(key, event.settings.seed.load(), event.settings.code_buckets.load() as u32)
}

/// The innermost code object that has not been sent; code 0: none.
#[inline(always)]
fn first_unsent(event: &Event, start: Start) -> Found {
    let nothing = Found { code: 0, fingerprint: 0 };
    let mut search = Unsent { event, found: nothing };
    walk(&UserMemory, event.layout, start, &mut search);
    search.found
}

/// Looks for the first code object that has not been sent.
struct Unsent<'a> {
    event: &'a Event,
    found: Found,
}

/// A code object.
#[derive(Clone, Copy)]
struct Found {
    code: u64,
    fingerprint: u32,
}

impl Visitor for Unsent<'_> {
    #[inline(always)]
    fn visit(&mut self, frame: Visited) -> ControlFlow<()> {
        let fingerprint = fingerprint(&UserMemory, self.event.layout, frame.code);
        let key = sent_key(self.event, frame.code, fingerprint);
        if bucket::find(&CodeBuckets, code_candidates(self.event, key), key).is_some() {
            return ControlFlow::Continue(());
        }
        self.found = Found { code: frame.code, fingerprint };
        ControlFlow::Break(())
    }
}

/// Writes frames into a record. It counts in the record itself: what the verifier cannot follow, it need not.
struct Writer<'a> {
    event: &'a Event,
    stack: *mut StackRecord,
}

impl Visitor for Writer<'_> {
    #[inline(always)]
    fn visit(&mut self, frame: Visited) -> ControlFlow<()> {
        let fingerprint = fingerprint(&UserMemory, self.event.layout, frame.code);
        let frame = RawFrame { code: frame.code, instruction: frame.instruction, fingerprint };
        // SAFETY: `stack` points to a reserved record.
        let length = unsafe { (&raw const (*self.stack).length).read_volatile() };
        // SAFETY: as above, and the index is below the number of frames.
        unsafe {
            (&raw mut (*self.stack).frames)
                .cast::<RawFrame>()
                .add(length as usize & (MAX_FRAMES - 1))
                .write(frame)
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*self.stack).length).write_volatile(length + 1) };
        ControlFlow::Continue(())
    }
}

#[inline(always)]
fn write_stack(event: &Event, start: Start, account: u32) -> bool {
    let Some(mut entry) = events().reserve::<StackRecord>(0) else { return false };
    let layout = event.layout;
    let stack = entry.as_mut_ptr();
    let process = event.cookie.process();
    // SAFETY: `stack` points to a reserved record; each field is written in place, so that none of it passes the stack.
    unsafe {
        (*stack).record = record::STACK;
        (*stack).process = process;
        (*stack).account = account;
        (*stack).length = 0;
        (*stack).spare = 0;
    }
    let end = walk(&UserMemory, layout, start, &mut Writer { event, stack });
    // SAFETY: as above.
    unsafe { (*stack).end = end };
    entry.submit(0);
    true
}

/// Sends the line table and then the rest, and marks the code object as sent.
#[inline(always)]
fn send_code(event: &Event, unsent: Found) -> bool {
    let layout = event.layout;
    let Found { code, fingerprint } = unsent;
    let Some(line_table_bytes) = send_line_table(event, code, fingerprint) else { return false };
    let Some(mut entry) = events().reserve::<CodeRecord>(0) else { return false };
    let at = |offset: u32| code.wrapping_add(u64::from(offset));
    let definition = entry.as_mut_ptr();
    let process = event.cookie.process();
    let first_line = UserMemory.half_or_zero(at(layout.code_first_line));
    let has_traceable = layout.code_first_traceable != 0;
    let first_traceable =
        if has_traceable { UserMemory.half_or_zero(at(layout.code_first_traceable)) } else { 0 };
    // SAFETY: `definition` points to a reserved record; fields are written in place.
    unsafe {
        (*definition).record = record::CODE;
        (*definition).process = process;
        (*definition).code = code;
        (*definition).fingerprint = fingerprint;
        (*definition).first_line = first_line;
        (*definition).first_traceable = first_traceable;
        (*definition).line_table_bytes = line_table_bytes;
    }
    // SAFETY: as above.
    let (name, qualified, file) = unsafe {
        (&raw mut (*definition).name, &raw mut (*definition).qualified_name, &raw mut (*definition).file)
    };
    read_text(layout, at(layout.code_name), name);
    if layout.code_qualified_name != 0 {
        read_text(layout, at(layout.code_qualified_name), qualified);
    } else {
        // SAFETY: as above.
        unsafe { (*qualified).used = 0 };
        // SAFETY: as above.
        unsafe { (*qualified).length = 0 };
    }
    read_text(layout, at(layout.code_file), file);
    entry.submit(0);
    let key = sent_key(event, code, fingerprint);
    // Without a place it is sent again with every new stack: dear, but right.
    let _ = bucket::insert(&CodeBuckets, code_candidates(event, key), key, 0);
    if let (Some(key), Some(globals)) = (Key::new(process, code), globals()) {
        Live { buckets: &LiveBuckets, settings: event.settings, globals }.watch_code(key);
    }
    true
}

/// Bytes of the whole table; `None` when the ring is full.
#[inline(always)]
fn send_line_table(event: &Event, code: u64, fingerprint: u32) -> Option<u32> {
    let layout = event.layout;
    let Some(table) = UserMemory.read_word(code.wrapping_add(u64::from(layout.code_line_table))) else {
        return Some(0);
    };
    let Some(size) = UserMemory.read_word(table.wrapping_add(u64::from(layout.bytes_size))) else {
        return Some(0);
    };
    let size = if size > u64::from(u32::MAX) { 0 } else { size as u32 };
    let mut offset = 0u32;
    for _ in 0..LINE_TABLE_RECORDS {
        if offset >= size {
            break;
        }
        let mut entry = events().reserve::<LineTableRecord>(0)?;
        let piece = entry.as_mut_ptr();
        // Compared as 64 bits: the verifier of Linux 6.1 does not follow a bound through a copy of the lower half of a register.
        let left = u64::from(size) - u64::from(offset);
        let used = if left > LINE_TABLE_BYTES as u64 { LINE_TABLE_BYTES as u64 } else { left } as u32;
        let from = table.wrapping_add(u64::from(layout.bytes_data)).wrapping_add(u64::from(offset));
        // SAFETY: `piece` points to a reserved record whose last field has `LINE_TABLE_BYTES` bytes.
        let read = read_into(from, used, unsafe { (&raw mut (*piece).bytes).cast() });
        let process = event.cookie.process();
        // SAFETY: as above; fields are written in place.
        unsafe {
            (*piece).record = record::LINE_TABLE;
            (*piece).process = process;
            (*piece).code = code;
            (*piece).fingerprint = fingerprint;
            (*piece).used = if read { used } else { 0 };
            (*piece).offset = u64::from(offset);
        }
        entry.submit(0);
        offset += LINE_TABLE_BYTES as u32;
    }
    Some(size)
}

/// Reads the string object that `pointer_at` points to.
#[inline(always)]
fn read_text<const BYTES: usize>(layout: &Layout, pointer_at: u64, into: *mut RawText<BYTES>) {
    let text = UserMemory.word_or_zero(pointer_at);
    let length = UserMemory.word_or_zero(text.wrapping_add(u64::from(layout.text_length)));
    let state = UserMemory.half_or_zero(text.wrapping_add(u64::from(layout.text_state)));
    let kind = state >> (layout.text_kind_shift & 31) & 7;
    let is_ascii = state >> (layout.text_ascii_shift & 31) & 1 != 0;
    let data = text.wrapping_add(u64::from(if is_ascii { layout.ascii_text } else { layout.compact_text }));
    let length = if length > 1 << 20 { 1 << 20 } else { length };
    let bytes = length * u64::from(kind);
    let used = if bytes > BYTES as u64 { BYTES as u32 } else { bytes as u32 };
    // SAFETY: `into` points into a reserved record; its text has `BYTES` bytes and `used` is at most that.
    let read = read_into(data, used, unsafe { (&raw mut (*into).text).cast() });
    // SAFETY: as above; fields are written in place.
    unsafe {
        (*into).length = length;
        (*into).state = state;
        (*into).used = if read { used } else { 0 };
    }
}
