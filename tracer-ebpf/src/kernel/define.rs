//! The program that sends up a stack that was not seen before, and the code objects in it.
//!
//! It runs by tail call at the end of an allocation's handler. Each run sends one code object that userspace does not know
//! and then calls itself; when there is none left it sends the stack. The kernel allows 33 tail calls in a row: a stack with
//! more new code objects goes on at its next event.

use core::ops::ControlFlow;

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{
    CodeRecord, LINE_TABLE_BYTES, LINE_TABLE_PART, LINE_TABLE_RECORDS, Layout, LineTableRecord, MAX_FRAMES,
    PART_FRAMES, RawFrame, RawText, StackRecord, end, record,
};
use tracer_ebpf::account::add;
use tracer_ebpf::bucket::{self, Candidates};
use tracer_ebpf::hash::{mix, spread};
use tracer_ebpf::live::{Key, Live};
use tracer_ebpf::memory::Memory as _;
use tracer_ebpf::tables::{Generations, Tables as _, Thread};
use tracer_ebpf::walk::{Start, Visited, Visitor, fingerprint, walk_part};

use super::maps::{
    CodeBuckets, DEFINE, KernelTables, LiveBuckets, SEND_CODE, SEND_STACK, events, globals, programs,
};
use super::memory::{UserMemory, read_into};
use super::stack::Event;
use super::task::Task;

/// See the module.
#[uprobe]
#[inline(always)]
pub fn define(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let frame = match thread.cursor.load() {
        // The handler before us has proved whose stack it is; the thread has not run since.
        0 => event.stack_start(Some(thread), false).frame,
        frame => frame,
    };
    search(&event, thread, frame);
    // Read back and not used as they are: the verifier would follow every way out of the search through all that comes now,
    // four times as far.
    let unsent = Unsent::of(thread);
    if unsent.code == 0 {
        // What is deeper than the limit is not sent either.
        let parts = thread.sent_parts.load() + 1;
        thread.sent_parts.store(parts);
        if parts >= (MAX_FRAMES / FRAMES) as u64 {
            thread.cursor.store(0);
        }
    }
    if thread.cursor.load() == 0 {
        thread.sent_frames.store(0);
        thread.sent_parts.store(0);
    }
    if unsent.code != 0 {
        let lines = LineTable::of(&event, unsent.code);
        if lines.size > LINE_TABLE_BYTES as u32 {
            thread.sent_bytes.store(0);
            // SAFETY: nothing needs to be dropped; past the kernel's limit the call comes back, and the next event goes on.
            unsafe { programs().tail_call(&context, SEND_CODE) };
            return 0;
        }
        if !(lines.send_piece(&event, unsent, 0) && send_definition(&event, unsent, lines.size)) {
            add(&event.totals.ring_full, 1);
            return 0;
        }
    }
    go_on(&context, thread)
}

/// Sends the code object that was found, when its line table takes more than one record: one function in a hundred. A program
/// of its own because the loop over the records is as much work for the verifier as all the rest; a few of them in each run, for
/// the same reason.
#[uprobe]
#[inline(always)]
pub fn send_code(context: ProbeContext) -> u32 {
    let Some(event) = Event::of(&context) else { return 0 };
    let Some(thread) = event.thread() else { return 0 };
    let unsent = Unsent::of(thread);
    let lines = LineTable::of(&event, unsent.code);
    if !lines.send_some(&event, thread, unsent) {
        add(&event.totals.ring_full, 1);
        return 0;
    }
    let sent = thread.sent_bytes.load();
    if sent < u64::from(lines.size) && sent < (LINE_TABLE_RECORDS as usize * LINE_TABLE_BYTES) as u64 {
        // SAFETY: nothing needs to be dropped; past the kernel's limit the call comes back, and the next event sends it anew.
        unsafe { programs().tail_call(&context, SEND_CODE) };
        return 0;
    }
    if !send_definition(&event, unsent, lines.size) {
        add(&event.totals.ring_full, 1);
        return 0;
    }
    go_on(&context, thread)
}

/// To the next code object, or to the stack itself.
#[inline(always)]
fn go_on(context: &ProbeContext, thread: &Thread) -> u32 {
    let next = if thread.cursor.load() == 0 { SEND_STACK } else { DEFINE };
    // SAFETY: nothing needs to be dropped; past the kernel's limit the call comes back, and the next event goes on.
    unsafe { programs().tail_call(context, next) };
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

/// Finds the innermost code object from `frame` on that has not been sent, and where to go on: in the thread's cells.
#[inline(always)]
fn search(event: &Event, thread: &Thread, mut frame: u64) {
    thread.unsent_code.store(0);
    thread.cursor.store(0);
    let Some(generations) = KernelTables.generations() else { return };
    if frame == 0 {
        return;
    }
    let mut search = Search { event, generations, thread, found: 0 };
    let end = walk_part::<FRAMES, _>(&UserMemory, event.layout, &mut frame, &mut search);
    if search.found != 0 || end == end::TRUNCATED {
        thread.cursor.store(frame);
    }
}

/// A code object that has not been sent.
#[derive(Clone, Copy)]
struct Unsent {
    code: u64,
    fingerprint: u32,
}

impl Unsent {
    /// The one that was found last.
    #[inline(always)]
    fn of(thread: &Thread) -> Self {
        Self { code: thread.unsent_code.load(), fingerprint: thread.unsent_fingerprint.load() as u32 }
    }
}

/// Looks for the first code object that has not been sent.
struct Search<'a> {
    event: &'a Event,
    generations: &'a Generations,
    thread: &'a Thread,
    found: u64,
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
        self.thread.unsent_code.store(frame.code);
        self.thread.unsent_fingerprint.store(fingerprint.into());
        self.found = 1;
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
    let thread = Task::current().number(event.settings);
    // SAFETY: `stack` points to a reserved record; each field is written in place, so that none of it passes the stack.
    unsafe {
        (*stack).record = record::STACK;
        (*stack).process = process;
        (*stack).account = part.account;
        (*stack).length = 0;
        (*stack).offset = part.offset;
        (*stack).thread = thread;
        (*stack).spare = 0;
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

/// Sends what is not the line table, after it, and marks the code object as sent. `false`: the ring is full.
#[inline(always)]
fn send_definition(event: &Event, unsent: Unsent, line_table_bytes: u32) -> bool {
    let layout = event.layout;
    let Unsent { code, fingerprint } = unsent;
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

/// Where a line table lies.
#[derive(Clone, Copy)]
struct LineTable {
    data: u64,
    size: u32,
}

impl LineTable {
    /// That of a code object; without bytes where it cannot be read.
    #[inline(always)]
    fn of(event: &Event, code: u64) -> Self {
        let layout = event.layout;
        let table = UserMemory.word_or_zero(code.wrapping_add(u64::from(layout.code_line_table)));
        let size = UserMemory.word_or_zero(table.wrapping_add(u64::from(layout.bytes_size)));
        let size = if size > u64::from(u32::MAX) { 0 } else { size as u32 };
        Self { data: table.wrapping_add(u64::from(layout.bytes_data)), size }
    }

    /// Sends the next records of it; `false` when the ring is full.
    #[inline(always)]
    fn send_some(self, event: &Event, thread: &Thread, unsent: Unsent) -> bool {
        for _ in 0..LINE_TABLE_PART {
            let offset = thread.sent_bytes.load() as u32;
            if offset >= self.size {
                break;
            }
            if !self.send_piece(event, unsent, offset) {
                return false;
            }
            thread.sent_bytes.store(u64::from(offset) + LINE_TABLE_BYTES as u64);
        }
        true
    }

    /// Sends the part that begins at `offset`; nothing of an empty one. `false` when the ring is full.
    #[inline(always)]
    fn send_piece(self, event: &Event, unsent: Unsent, offset: u32) -> bool {
        if self.size == 0 {
            return true;
        }
        let Some(mut entry) = events().reserve::<LineTableRecord>(0) else { return false };
        let piece = entry.as_mut_ptr();
        // Compared as 64 bits: the verifier of Linux 6.1 does not follow a bound through a copy of the lower half of a register.
        let left = u64::from(self.size) - u64::from(offset);
        let used = if left > LINE_TABLE_BYTES as u64 { LINE_TABLE_BYTES as u64 } else { left } as u32;
        // SAFETY: `piece` points to a reserved record whose last field has `LINE_TABLE_BYTES` bytes.
        let read = read_into(self.data.wrapping_add(u64::from(offset)), used, unsafe {
            (&raw mut (*piece).bytes).cast()
        });
        let process = event.cookie.process();
        // SAFETY: as above; fields are written in place.
        unsafe {
            (*piece).record = record::LINE_TABLE;
            (*piece).process = process;
            (*piece).code = unsent.code;
            (*piece).fingerprint = unsent.fingerprint;
            (*piece).used = if read { used } else { 0 };
            (*piece).offset = u64::from(offset);
        }
        entry.submit(0);
        true
    }
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
