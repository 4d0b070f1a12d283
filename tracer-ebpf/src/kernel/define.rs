//! The program that sends up a stack that was not seen before, and the code objects in it.
//!
//! It runs by tail call at the end of an allocation's handler. Each run sends one code object that userspace does not know
//! and then calls itself; when there is none left it sends the stack. The kernel allows 33 tail calls in a row: a stack with
//! more new code objects goes on at its next event.

use core::ops::ControlFlow;

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{
    CodeRecord, LINE_TABLE_BYTES, LINE_TABLE_RECORDS, Layout, LineTableRecord, MAX_FRAMES, PART_FRAMES,
    RawFrame, RawText, StackRecord, end, record,
};
use tracer_ebpf::account::add;
use tracer_ebpf::bucket::{self, Candidates};
use tracer_ebpf::hash::{mix, spread};
use tracer_ebpf::live::{Key, Live};
use tracer_ebpf::memory::Memory as _;
use tracer_ebpf::tables::{Generations, Tables as _};
use tracer_ebpf::walk::{Start, Visited, Visitor, fingerprint, walk_part};

use super::maps::{CodeBuckets, DEFINE, KernelTables, LiveBuckets, SEND_STACK, events, globals, programs};
use super::memory::{UserMemory, read_into};
use super::stack::Event;

/// See the module.
#[uprobe]
#[inline(always)]
pub fn define(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let unsent = match thread.cursor.load() {
        // The handler before us has proved whose stack it is; the thread has not run since.
        0 => first_unsent(&event, event.stack_start(Some(thread), false).frame),
        frame => first_unsent(&event, frame),
    };
    thread.cursor.store(unsent.frame);
    thread.sent_frames.store(0);
    thread.sent_parts.store(0);
    if unsent.code != 0 && !send_code(&event, unsent) {
        add(&event.totals.ring_full, 1);
        return 0;
    }
    let next = if unsent.frame == 0 { SEND_STACK } else { DEFINE };
    // SAFETY: nothing needs to be dropped; past the kernel's limit the call comes back, and the next event goes on.
    unsafe { programs().tail_call(&context, next) };
    0
}

/// Sends a part of the stack itself, then goes on with the next; a program of its own so that the verifier walks one loop at
/// a time.
#[uprobe]
#[inline(always)]
pub fn send_stack(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let account = thread.undefined.load() as u32;
    let start = match thread.cursor.load() {
        0 => event.stack_start(Some(thread), false),
        frame => Start { frame, reason: end::COMPLETE },
    };
    let mut part = Part { account, offset: thread.sent_frames.load() as u32, frame: start.frame };
    let parts = thread.sent_parts.load() + 1;
    let end = write_part(&event, start.reason, parts, &mut part);
    if end == RING_FULL {
        add(&event.totals.ring_full, 1);
    } else if end == end::CONTINUES {
        thread.cursor.store(part.frame);
        thread.sent_frames.store(u64::from(part.offset));
        thread.sent_parts.store(parts);
        // SAFETY: nothing needs to be dropped; past the kernel's limit the call comes back, and the stack is sent anew.
        unsafe { programs().tail_call(&context, SEND_STACK) };
    } else if let Some(account) = KernelTables.account(account) {
        account.sent.store(1);
    }
    0
}

#[inline(always)]
fn sent_key(event: &Event, generations: &Generations, code: u64, fingerprint: u32) -> u64 {
    // What tells a code object from others at its address: its generation, and the fingerprint for those whose end was not
    // seen.
    let version = u64::from(generations.of(code)) << 32 | u64::from(fingerprint);
    spread(mix(mix(u64::from(event.cookie.process()) + 1, code), version)) | 1
}

#[inline(always)]
fn code_candidates(event: &Event, key: u64) -> Candidates {
    Candidates::of(key, event.settings.seed.load(), event.settings.code_buckets.load() as u32)
}

/// Frames that one run looks at: the verifier follows each, and an eighth of the deepest stack loads in an eighth of the time.
/// The deepest then takes 12 of the 33 tail calls in a row, and leaves 21 for code objects.
const FRAMES: usize = MAX_FRAMES / 8;

/// The innermost code object from `frame` on that has not been sent.
#[inline(always)]
fn first_unsent(event: &Event, frame: u64) -> Unsent {
    let mut unsent = Unsent { code: 0, fingerprint: 0, frame };
    let Some(generations) = KernelTables.generations() else { return Unsent { frame: 0, ..unsent } };
    if frame == 0 {
        return unsent;
    }
    let mut search = Search { event, generations, code: 0, fingerprint: 0 };
    let end = walk_part::<FRAMES, _>(&UserMemory, event.layout, &mut unsent.frame, &mut search);
    unsent.code = search.code;
    unsent.fingerprint = search.fingerprint;
    if search.code == 0 && end != end::TRUNCATED {
        unsent.frame = 0;
    }
    unsent
}

/// A code object, and where to look next; code 0: none was found, frame 0: there is nothing more to look at.
#[derive(Clone, Copy)]
struct Unsent {
    code: u64,
    fingerprint: u32,
    frame: u64,
}

/// Looks for the first code object that has not been sent.
struct Search<'a> {
    event: &'a Event,
    generations: &'a Generations,
    code: u64,
    fingerprint: u32,
}

impl Visitor for Search<'_> {
    #[inline(always)]
    fn visit(&mut self, frame: Visited) -> ControlFlow<()> {
        let fingerprint = fingerprint(&UserMemory, self.event.layout, frame.code);
        let key = sent_key(self.event, self.generations, frame.code, fingerprint);
        if frame.is_python == 0 || bucket::find(&CodeBuckets, code_candidates(self.event, key), key).is_some()
        {
            return ControlFlow::Continue(());
        }
        self.code = frame.code;
        self.fingerprint = fingerprint;
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
        // One that is passed over is written too, and the next one over it.
        let raw = RawFrame { code: frame.code, instruction: frame.instruction, fingerprint };
        // SAFETY: `stack` points to a reserved record.
        let length = unsafe { (&raw const (*self.stack).length).read_volatile() };
        // SAFETY: as above, and the index is below the number of frames.
        unsafe {
            (&raw mut (*self.stack).frames)
                .cast::<RawFrame>()
                .add(length as usize & (PART_FRAMES - 1))
                .write(raw)
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*self.stack).length).write_volatile(length + frame.is_python as u32) };
        ControlFlow::Continue(())
    }
}

/// A part of a stack: its account, the frames before it, its first frame; after it is written, those of the next.
struct Part {
    account: u32,
    offset: u32,
    frame: u64,
}

/// No way that a walk ends.
const RING_FULL: u32 = u32::MAX;

/// Writes part number `number`, counted from 1, and says how it ends.
#[inline(always)]
fn write_part(event: &Event, reason: u32, number: u64, part: &mut Part) -> u32 {
    let Some(mut entry) = events().reserve::<StackRecord>(0) else { return RING_FULL };
    let stack = entry.as_mut_ptr();
    let process = event.cookie.process();
    // SAFETY: `stack` points to a reserved record; each field is written in place, so that none of it passes the stack.
    unsafe {
        (*stack).record = record::STACK;
        (*stack).process = process;
        (*stack).account = part.account;
        (*stack).length = 0;
        (*stack).offset = part.offset;
    }
    let mut end = reason;
    if part.frame != 0 {
        end = walk_part::<PART_FRAMES, _>(
            &UserMemory,
            event.layout,
            &mut part.frame,
            &mut Writer { event, stack },
        );
        if end == end::TRUNCATED && number < (MAX_FRAMES / PART_FRAMES) as u64 {
            end = end::CONTINUES;
        }
    }
    // SAFETY: as above.
    unsafe { (*stack).end = end };
    // SAFETY: as above.
    part.offset += unsafe { (&raw const (*stack).length).read_volatile() };
    entry.submit(0);
    end
}

/// Sends the line table and then the rest, and marks the code object as sent.
#[inline(always)]
fn send_code(event: &Event, unsent: Unsent) -> bool {
    let layout = event.layout;
    let Unsent { code, fingerprint, .. } = unsent;
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
    if let Some(generations) = KernelTables.generations() {
        let key = sent_key(event, generations, code, fingerprint);
        let at = code_candidates(event, key);
        // Code that has ended keeps its place until another needs it. One that still runs and loses its place is sent again.
        if bucket::insert(&CodeBuckets, at, key, 0).is_none() {
            bucket::displace(&CodeBuckets, at, key);
        }
    }
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
