//! The program that sends up a stack that was not seen before, and the code objects in it.
//!
//! It runs by tail call at the end of an allocation's handler, and sends all code objects of the stack that userspace does not
//! know, then the stack. All of them in one run: the stack may never come again. The steps are loops of the kernel's
//! (`bpf_loop`, Linux 5.17), which its verifier follows once for each body and not once for each pass, and which have no limit
//! of 33 as tail calls do: sixty new functions in one stack were lost to that.

use core::ffi::{c_long, c_void};
use core::ops::ControlFlow;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_loop;
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
use tracer_ebpf::tables::{Generations, Tables as _, Thread};
use tracer_ebpf::walk::{Visited, Visitor, fingerprint, walk_part};

use super::maps::{CodeBuckets, KernelTables, LiveBuckets, NOWHERE, SEND_STACK, events, globals};
use super::memory::{UserMemory, read_into};
use super::stack::{Event, Instrument, Probes};
use super::task::Task;

/// What a step of a loop says.
const AGAIN: c_long = 0;
const ENOUGH: c_long = 1;

/// What the steps of a loop share; it lies on the stack of the program that runs the loop. What one step tells the next does not: before Linux 6.7 the
/// verifier follows a step once, with what is there before the first, and cuts out what never runs then (kernel/bpf/verifier.c, "verify callbacks as if they
/// are called unknown number of times"). It is in the thread's cells, of which the verifier knows nothing.
#[repr(C)]
struct Loop {
    context: *mut c_void,
    /// The ring buffer was full; nothing more is sent.
    is_full: u64,
}

impl Loop {
    #[inline(always)]
    fn new(context: &ProbeContext) -> Self {
        Self { context: context.as_ptr(), is_full: 0 }
    }

    /// Calls `step` up to `times` times, until it says [`ENOUGH`].
    #[inline(always)]
    fn run(&mut self, times: u32, step: extern "C" fn(u64, *mut c_void) -> c_long) {
        // SAFETY: the step takes `self` and nothing else, and ends before the helper returns. It fails for no number of times
        // that is asked for here (kernel/bpf/bpf_iter.c: `BPF_MAX_LOOPS`).
        unsafe { bpf_loop(times, step as *mut c_void, (&raw mut *self).cast(), 0) };
    }
}

/// Whose event it is, asked again: what a program knows of it does not pass into its loops.
#[inline(always)]
fn asked_again<I: Instrument>(state: &Loop) -> Option<(Event, &'static Thread)> {
    let event = I::event(&ProbeContext::new(state.context))?;
    let thread = event.thread()?;
    Some((event, thread))
}

/// See the module.
#[uprobe]
#[inline(always)]
pub fn define(context: ProbeContext) -> u32 {
    define_stack::<Probes>(&context);
    0
}

/// The same for what `I` starts.
#[inline(always)]
pub fn define_stack<I: Instrument>(context: &ProbeContext) {
    let Some(event) = I::event(context) else { return };
    let Some(thread) = event.thread() else { return };
    // The handler before us has proved whose stack it is; the thread has not run since.
    let start = event.stack_start(Some(thread), false);
    thread.cursor.store(start.frame);
    let mut state = Loop::new(context);
    thread.unsent_code.store(0);
    thread.sent_frames.store(0);
    if start.frame != 0 {
        state.run(STEPS, define_next::<I>);
    }
    if state.is_full != 0 {
        add(&event.totals.ring_full, 1);
        return;
    }
    thread.cursor.store(start.frame);
    thread.sent_frames.store(0);
    thread.sent_parts.store(0);
    thread.walk_end.store(start.reason.into());
    // SAFETY: nothing needs to be dropped; where it comes back the next event sends the stack.
    unsafe { I::programs().tail_call(context, SEND_STACK) };
}

/// Looks for the next code object that has not been sent, or sends the next record of the one that was found. One loop for both:
/// each function on the way has a stack frame of its own, and all together have 512 bytes.
extern "C" fn define_next<I: Instrument>(_: u64, state: *mut c_void) -> c_long {
    // SAFETY: the kernel hands over what `Loop::run` gave it.
    let state = unsafe { &mut *state.cast::<Loop>() };
    let Some((event, thread)) = asked_again::<I>(state) else { return ENOUGH };
    let unsent = Unsent::of(thread);
    if unsent.code == 0 {
        search(&event, thread, thread.cursor.load());
        // Read back and not used as it is: the verifier would follow every way out of the search through all that comes now.
        let found = Unsent::of(thread);
        if found.code != 0 {
            let table = LineTable::of(&event, found.code);
            thread.line_table.store(table.data);
            thread.line_table_bytes.store(table.size.into());
            thread.sent_bytes.store(0);
            return AGAIN;
        }
    } else if thread.sent_bytes.load() < thread.line_table_bytes.load().min(LONGEST_TABLE) {
        let offset = thread.sent_bytes.load();
        let table = LineTable { data: thread.line_table.load(), size: thread.line_table_bytes.load() as u32 };
        if !table.send_piece(&event, unsent, offset as u32) {
            state.is_full = 1;
            return ENOUGH;
        }
        thread.sent_bytes.store(offset + LINE_TABLE_BYTES as u64);
        return AGAIN;
    } else {
        if !send_definition::<I>(&event, unsent, thread.line_table_bytes.load() as u32) {
            state.is_full = 1;
            return ENOUGH;
        }
        thread.unsent_code.store(0);
    }
    if thread.cursor.load() == 0 { ENOUGH } else { AGAIN }
}

/// Sends the stack itself, in parts.
#[uprobe]
#[inline(always)]
pub fn send_stack(context: ProbeContext) -> u32 {
    send::<Probes>(&context);
    0
}

/// The same for what `I` starts.
#[inline(always)]
pub fn send<I: Instrument>(context: &ProbeContext) {
    let Some(event) = I::event(context) else { return };
    let Some(thread) = event.thread() else { return };
    let mut state = Loop::new(context);
    state.run((MAX_FRAMES / PART_FRAMES) as u32, send_next_part::<I>);
    if state.is_full != 0 {
        add(&event.totals.ring_full, 1);
    } else if let Some(account) = KernelTables.account(thread.undefined.load() as u32) {
        account.set_sent();
    }
    if thread.walk_end.load() == u64::MAX {
        // SAFETY: nothing needs to be dropped, and the slot is empty; see `mod.rs` for why the call is here.
        unsafe { I::programs().tail_call(context, NOWHERE) };
    }
}

/// Sends the next part of a stack.
extern "C" fn send_next_part<I: Instrument>(_: u64, state: *mut c_void) -> c_long {
    // SAFETY: as above.
    let state = unsafe { &mut *state.cast::<Loop>() };
    let Some((event, thread)) = asked_again::<I>(state) else { return ENOUGH };
    let parts = thread.sent_parts.load() + 1;
    let mut part = Part {
        account: thread.undefined.load() as u32,
        offset: thread.sent_frames.load() as u32,
        frame: thread.cursor.load(),
    };
    let end = write_part(&event, thread.walk_end.load() as u32, parts, &mut part);
    thread.cursor.store(part.frame);
    thread.sent_frames.store(u64::from(part.offset));
    thread.sent_parts.store(parts);
    if end == RING_FULL {
        state.is_full = 1;
    }
    if end == end::CONTINUES { AGAIN } else { ENOUGH }
}

#[inline(always)]
fn sent_key(event: &Event, generations: &Generations, code: u64, fingerprint: u32) -> u64 {
    // What tells a code object from others at its address: its generation, and the fingerprint for those whose end was not
    // seen.
    let version = u64::from(generations.of(code)) << 32 | u64::from(fingerprint);
    spread(mix(mix(event.layout.owner.into(), code), version)) | 1
}

#[inline(always)]
fn code_candidates(event: &Event, key: u64) -> Candidates {
    Candidates::of(key, event.settings.seed.load(), event.settings.code_buckets.load() as u32)
}

/// Frames that one step looks at: few, because the verifier follows each.
const FRAMES: usize = 4;

/// Most bytes of a line table that are sent.
const LONGEST_TABLE: u64 = LINE_TABLE_RECORDS as u64 * LINE_TABLE_BYTES as u64;

/// More steps than any stack takes: for each frame one that finds its code, those that send it, and one for each stretch of frames
/// without a new one.
const STEPS: u32 = MAX_FRAMES as u32 * (LINE_TABLE_RECORDS + 3);

/// Finds the innermost code object from `frame` on that has not been sent, and where to go on: in the thread's cells. Not beyond the frames that are
/// sent: a recursion of thousands would be walked whole for each new stack in it.
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
    let has_more = search.found != 0 || end == end::TRUNCATED;
    if has_more && thread.sent_frames.load() < MAX_FRAMES as u64 {
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
            self.thread.sent_frames.store(self.thread.sent_frames.load() + 1);
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
fn send_definition<I: Instrument>(event: &Event, unsent: Unsent, line_table_bytes: u32) -> bool {
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
    if I::WATCHES_CODE
        && let (Some(key), Some(globals)) = (Key::new(process, code), globals())
    {
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

    /// Sends the part that begins at `offset`. `false` when the ring is full.
    #[inline(always)]
    fn send_piece(self, event: &Event, unsent: Unsent, offset: u32) -> bool {
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
