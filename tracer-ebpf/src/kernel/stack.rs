//! What every handler begins with: whose event it is, and which account its stack has.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::abi::{Cookie, Layout, end};
use tracer_ebpf::account::{AccountId, Books, add};
use tracer_ebpf::hash::{mix, spread};
use tracer_ebpf::tables::{Settings, Tables as _, Thread, Totals};
use tracer_ebpf::walk::{Identity, Start, innermost, locked_thread_state, thread_state, walk};

use super::maps::{DEFINE, KernelTables, globals, layout, own_thread, programs, settings, totals};
use super::memory::{UserMemory, thread_self};

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

impl Event {
    /// `None` for a process that is not, or no longer, traced.
    #[inline(always)]
    pub fn of(context: &ProbeContext) -> Option<Self> {
        // SAFETY: the helper takes the unchanged context of a uprobe program.
        let cookie = Cookie(unsafe { bpf_get_attach_cookie(context.as_ptr()) });
        let layout = layout(cookie.process())?;
        let ids = bpf_get_current_pid_tgid();
        if layout.active == 0 || layout.pid != (ids >> 32) as u32 {
            return None;
        }
        let totals = totals(cookie.process())?;
        Some(Self { cookie, thread_id: ids as u32, layout, totals, settings: settings()? })
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
        let state = if locked {
            locked_thread_state(&UserMemory, layout)
        } else {
            let offset = self.settings.thread_pointer_offset.load();
            let own = thread_self(offset, u64::from(layout.thread_self_distance));
            thread_state(&UserMemory, layout, proved, own)
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

    /// The account of this stack.
    #[inline(always)]
    pub fn account(&self, start: Start, domain: u8) -> AccountId {
        let own = AccountId(self.cookie.process());
        let Some(generations) = KernelTables.generations() else { return own };
        let seed =
            mix(u64::from(self.thread_id) << 8 | u64::from(domain), u64::from(self.cookie.process()) + 1);
        let failed_reads = &self.totals.failed_reads;
        if start.frame == 0 && start.reason == end::FAILED_READ {
            add(failed_reads, 1);
        }
        let mut identity = Identity { hash: seed, generations, failed_reads };
        let end = walk(&UserMemory, self.layout, start, &mut identity);
        let hash = mix(identity.hash, u64::from(end));
        let Some(books) = self.books() else { return own };
        books.account(spread(hash) | 1, self.thread_id, domain)
    }

    /// Goes on in the program that sends the stack up, if that has not been done; comes back otherwise.
    #[inline(always)]
    pub fn define(&self, context: &ProbeContext, id: AccountId, thread: Option<&Thread>) {
        let Some(account) = KernelTables.account(id.0) else { return };
        if account.sent.load() != 0 || id.0 < tracer_ebpf::abi::PROCESSES {
            return;
        }
        let Some(thread) = thread else { return };
        thread.undefined.store(u64::from(id.0));
        thread.cursor.store(0);
        // SAFETY: nothing here needs to be dropped; a call that fails comes back and the stack is sent at its next event.
        unsafe { programs().tail_call(context, DEFINE) };
    }
}
