//! What every handler begins with: whose event it is, and which account its stack has.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{Cookie, Layout, MAX_FRAMES, end};
use tracer_ebpf::account::{AccountId, Books, add};
use tracer_ebpf::hash::{mix, spread};
use tracer_ebpf::tables::{Settings, Tables as _, Thread, Totals, Window};
use tracer_ebpf::threads::is_still_own;
use tracer_ebpf::walk::{
    Identity, Start, innermost, locked_thread_state, own_thread_state, thread_state, walk_part,
};

use super::maps::{DEFINE, KernelTables, followed, globals, layout, own_thread, programs, settings, totals};
use super::memory::{UserMemory, thread_self};
use super::task::Task;

/// Frames that one run walks: the verifier follows each, so that a quarter of the deepest stack loads in a quarter of the time.
/// A deeper stack goes on by a tail call, 0.1 us for each 32 frames that take 2.
const WALK_FRAMES: usize = MAX_FRAMES / 4;

/// An event of a process that is being traced.
pub struct Event {
    /// What the probe point means.
    pub cookie: Cookie,
    /// The thread, in the initial namespace.
    pub thread_id: u32,
    /// How to read its process.
    pub layout: &'static Layout,
    /// The process's totals.
    pub totals: &'static Totals,
    /// Sizes and limits.
    pub settings: &'static Settings,
}

/// What starts programs: it says whose event it is, and where they continue.
pub trait Instrument {
    /// Whether ends of code objects are seen.
    const WATCHES_CODE: bool;
    /// The event; `None` as for [`Event::begun`].
    fn event(context: &ProbeContext) -> Option<Event>;
    /// Where they continue.
    fn programs() -> &'static ProgramArray;
}

/// Probe points.
pub struct Probes;

impl Instrument for Probes {
    const WATCHES_CODE: bool = true;

    #[inline(always)]
    fn event(context: &ProbeContext) -> Option<Event> {
        Event::begun(context)
    }

    #[inline(always)]
    fn programs() -> &'static ProgramArray {
        programs()
    }
}

impl Event {
    /// One without a probe point, of the process that runs.
    #[inline(always)]
    pub fn running() -> Option<Self> {
        let settings = settings()?;
        let ids = bpf_get_current_pid_tgid();
        let is_namespaced = settings.own_namespace.load() != 0;
        let process = if is_namespaced { Task::current().process(settings) } else { (ids >> 32) as u32 };
        let slot = followed(process)?;
        let layout = layout(slot)?;
        if slot == 0 || layout.active == 0 {
            return None;
        }
        let cookie = Cookie::new(0, slot as u16, 0, 0, 0);
        Some(Self { cookie, thread_id: ids as u32, layout, totals: totals(slot)?, settings })
    }

    /// `None` for a process that is not, or no longer, traced, and outside of windows.
    #[inline(always)]
    pub fn of(context: &ProbeContext) -> Option<Self> {
        let event = Self::begun(context)?;
        let counts = !event.settings.window().is_closed() || event.settings.keeps(event.cookie);
        counts.then_some(event)
    }

    /// The same in a program that another continues in: a window that closes meanwhile must not cost a stack that is sent only once.
    #[inline(always)]
    pub fn begun(context: &ProbeContext) -> Option<Self> {
        // SAFETY: the helper takes the unchanged context of a uprobe program.
        let cookie = Cookie(unsafe { bpf_get_attach_cookie(context.as_ptr()) });
        let layout = layout(cookie.process())?;
        let ids = bpf_get_current_pid_tgid();
        if layout.active == 0 || layout.pid != 0 && layout.pid != (ids >> 32) as u32 {
            return None;
        }
        let settings = settings()?;
        let totals = totals(cookie.process())?;
        Some(Self { cookie, thread_id: ids as u32, layout, totals, settings })
    }

    /// The window that this event is in, or is not in.
    #[inline(always)]
    pub fn window(&self) -> Window {
        let is_kept = self.cookie.is_malloc() && self.settings.keeps(self.cookie);
        if is_kept { Window::NONE } else { self.settings.window() }
    }

    /// The process's books.
    #[inline(always)]
    pub fn books(&self) -> Option<Books<'static, KernelTables>> {
        let slot = self.cookie.process();
        Some(Books {
            tables: &KernelTables,
            settings: self.settings,
            globals: globals()?,
            totals: self.totals,
            slot,
            window: self.window(),
            level: self.cookie.level(),
            is_kept: self.cookie.is_kept(),
        })
    }

    /// The thread's cells; counts when there is no room.
    #[inline(always)]
    pub fn thread(&self) -> Option<&'static Thread> {
        let thread = own_thread(self.thread_id);
        if thread.is_none() {
            add(&self.totals.thread_table_full, 1);
        }
        thread
    }

    /// Where this thread's Python stack begins. `locked`: the interpreter lock is certainly held.
    #[inline(always)]
    pub fn stack_start(&self, thread: Option<&Thread>, locked: bool) -> Start {
        let layout = self.layout;
        let proved = thread.map_or(0, |thread| thread.thread_state.load());
        if layout.thread_next != 0 {
            return self.free_threaded_start(proved);
        }
        let own = if !locked || layout.thread_slot != 0 { self.own_ident() } else { 0 };
        let state = match own_thread_state(&UserMemory, layout, own) {
            0 if locked => locked_thread_state(&UserMemory, layout, proved),
            0 => thread_state(&UserMemory, layout, proved, own),
            state => Ok(state),
        };
        match state {
            Err(reason) => Start { frame: 0, reason },
            Ok(state) => {
                if let Some(thread) = thread
                    && state != proved
                {
                    thread.thread_state.store(state);
                }
                innermost(&UserMemory, layout, state)
            }
        }
    }

    /// The same where there is no lock: what the thread was last seen with, if that still is its own.
    #[inline(always)]
    fn free_threaded_start(&self, proved: u64) -> Start {
        if is_still_own(&UserMemory, self.layout, proved, self.own_ident()) {
            innermost(&UserMemory, self.layout, proved)
        } else {
            Start { frame: 0, reason: end::FOREIGN_THREAD }
        }
    }

    /// What marks the running thread's state: its `pthread_self`.
    #[inline(always)]
    pub fn own_ident(&self) -> u64 {
        thread_self(self.settings.thread_pointer_offset.load(), u64::from(self.layout.thread_self_distance))
    }

    /// Prepares to walk the thread's stack.
    #[inline(always)]
    pub fn begin_walk(&self, thread: &Thread, start: Start, domain: u8) {
        if start.frame == 0 && start.reason == end::FAILED_READ {
            add(&self.totals.failed_reads, 1);
        }
        let seed =
            mix(u64::from(self.thread_id) << 8 | u64::from(domain), u64::from(self.cookie.process()) + 1);
        thread.walk_hash.store(seed);
        thread.walk_end.store(start.reason.into());
        thread.cursor.store(start.frame);
        thread.sent_parts.store(0);
    }

    /// Walks the next frames of the thread's stack; `false` when there are no more, or none that are looked at.
    #[inline(always)]
    pub fn walk_on(&self, thread: &Thread) -> bool {
        let mut frame = thread.cursor.load();
        if frame == 0 {
            return false;
        }
        let Some(generations) = KernelTables.generations() else { return false };
        let failed_reads = &self.totals.failed_reads;
        let mut identity = Identity { hash: thread.walk_hash.load(), generations, failed_reads };
        let end = walk_part::<WALK_FRAMES, _>(&UserMemory, self.layout, &mut frame, &mut identity);
        thread.walk_hash.store(identity.hash);
        thread.walk_end.store(end.into());
        thread.cursor.store(frame);
        let parts = thread.sent_parts.load() + 1;
        thread.sent_parts.store(parts);
        // Read back and not compared as it is: the verifier would follow the number through all frames (see `walk.rs`).
        thread.cursor.load() != 0 && parts < (MAX_FRAMES / WALK_FRAMES) as u64
    }

    /// The account of the stack that has been walked.
    #[inline(always)]
    pub fn account(&self, thread: &Thread, domain: u8) -> AccountId {
        let own = AccountId(self.cookie.process());
        let Some(books) = self.books() else { return own };
        let hash = mix(thread.walk_hash.load(), thread.walk_end.load());
        books.account(spread(hash) | 1, self.thread_id, domain)
    }

    /// Goes on in the program that sends the stack up, if that has not been done; comes back otherwise.
    #[inline(always)]
    pub fn define(&self, context: &ProbeContext, id: AccountId, thread: &Thread) {
        let Some(account) = KernelTables.account(id.0) else { return };
        if account.sent().is_sent() || id.0 < tracer_ebpf::abi::PROCESSES {
            return;
        }
        thread.undefined.store(u64::from(id.0));
        thread.cursor.store(0);
        thread.sent_parts.store(0);
        // SAFETY: nothing here needs to be dropped; a call that fails comes back and the stack is sent at its next event.
        unsafe { programs().tail_call(context, DEFINE) };
    }
}
