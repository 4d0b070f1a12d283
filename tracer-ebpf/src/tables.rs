//! The tables of the account as the pure logic sees them: plain cells behind a trait.
//!
//! In the kernel they are array maps, on the host vectors. All cells are atomic because a uprobe program can run on every
//! CPU at once and can be preempted by another run of itself (design: docs/decisions/0002-no-per-cpu-scratch.md).

use crate::abi::{Cookie, POINTS};
use crate::bucket::Buckets;
use crate::cell::Cell;

/// Counters of one (process, thread, domain, stack). Account `n < PROCESSES` gathers what
/// process `n` could not place.
#[repr(C)]
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names are the metrics of docs/ARCHITECTURE.md")]
pub struct Account {
    /// `thread id | domain << 32 | process << 40`; 0: never used.
    pub owner: Cell,
    /// See [`Sent`]: a table of 131,072 accounts is a megabyte larger with a cell more.
    pub sent: Cell,
    pub allocated_count: Cell,
    pub allocated_bytes: Cell,
    pub live_count: Cell,
    pub live_bytes: Cell,
    /// Live values at the process's peak, valid if `changed` is later than the peak.
    pub peak_count: Cell,
    pub peak_bytes: Cell,
    /// The process's event sequence at the last change of this account.
    pub changed: Cell,
    /// Of a process that is watched in windows, where nothing is known of temporary blocks: what came at points that are armed all the time
    /// ([`Cookie::is_kept`]), beside windows and in them. The next is the same in bytes.
    pub temporary_count: Cell,
    pub temporary_bytes: Cell,
    /// Its stack's key in the index; of an account that was given back, the number of the next such one.
    pub link: Cell,
}

/// Bit 0: the stack has been sent up. The bits above: pools that it opened, where that is told. Only the account's own thread changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent(pub u64);

impl Sent {
    /// Whether the stack has been sent up.
    #[inline(always)]
    #[must_use]
    pub const fn is_sent(self) -> bool {
        self.0 & 1 != 0
    }

    /// Pools that it opened.
    #[inline(always)]
    #[must_use]
    pub const fn pools(self) -> u64 {
        self.0 >> 1
    }
}

impl Account {
    /// See [`Sent`].
    #[inline(always)]
    #[must_use]
    pub fn sent(&self) -> Sent {
        Sent(self.sent.load())
    }

    /// The stack has been sent up.
    #[inline(always)]
    pub fn set_sent(&self) {
        if !self.sent().is_sent() {
            self.sent.add(1);
        }
    }

    /// It has opened a pool.
    #[inline(always)]
    pub fn add_pool(&self) {
        self.sent.add(2);
    }

    /// All of it, in the order of its fields.
    #[must_use]
    pub fn cells(&self) -> [&Cell; size_of::<Self>() / 8] {
        let Self {
            owner,
            sent,
            allocated_count,
            allocated_bytes,
            live_count,
            live_bytes,
            peak_count,
            peak_bytes,
            changed,
            temporary_count,
            temporary_bytes,
            link,
        } = self;
        [
            owner,
            sent,
            allocated_count,
            allocated_bytes,
            live_count,
            live_bytes,
            peak_count,
            peak_bytes,
            changed,
            temporary_count,
            temporary_bytes,
            link,
        ]
    }
}

/// Totals and losses of one process.
#[repr(C)]
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names are the counters of docs/ARCHITECTURE.md")]
pub struct Totals {
    /// Event sequence: every change of an account takes the next number.
    pub events: Cell,
    pub live_bytes: Cell,
    pub peak_bytes: Cell,
    /// Event sequence at which `live_bytes` was highest.
    pub peak_at: Cell,
    pub pops: Cell,
    pub pushes: Cell,
    /// Pushes of blocks that were never seen to leave their pool.
    pub unknown_pushes: Cell,
    /// Pops of blocks that were never seen to come back.
    pub repeated_pops: Cell,
    pub mallocs: Cell,
    pub frees: Cell,
    pub unknown_frees: Cell,
    pub repeated_mallocs: Cell,
    pub thinned: Cell,
    pub live_table_full: Cell,
    pub stack_table_full: Cell,
    pub thread_table_full: Cell,
    pub failed_reads: Cell,
    pub ring_full: Cell,
    pub abandoned_calls: Cell,
    /// Pools that were opened, where that is a function's return.
    pub pools: Cell,
    /// Blocks that came at points which are armed all the time beside windows ([`Cookie::is_kept`]); they are in `pops` too.
    pub kept: Cell,
}

/// Places of [`Generations`]. Two addresses that share one cost accounts, not names: with 32,768, a code object's end opens
/// the accounts of one unrelated stack in a thousand anew.
const GENERATIONS: usize = 1 << 15;

/// How many code objects that had been sent up have ended at an address, by address. It is part of a frame's identity, so
/// that later code at the same address never gets the earlier one's account, nor its name.
#[repr(C)]
#[derive(Debug)]
pub struct Generations([Cell; GENERATIONS]);

impl Default for Generations {
    fn default() -> Self {
        Self::new()
    }
}

impl Generations {
    /// Nothing has ended.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { Cell::new(0) }; GENERATIONS])
    }

    /// The cell of a code object. They are aligned to 16 bytes (Objects/obmalloc.c, ALIGNMENT).
    #[inline(always)]
    fn cell(&self, code: u64) -> &Cell {
        &self.0[(code >> 4) as usize & (GENERATIONS - 1)]
    }

    /// The generation of the code object at this address.
    #[inline(always)]
    pub fn of(&self, code: u64) -> u32 {
        self.cell(code).load() as u32
    }

    /// The code object at this address has ended.
    #[inline(always)]
    pub fn end(&self, code: u64) {
        self.cell(code).add(1);
    }
}

/// How often each point was hit, by its number.
#[repr(C)]
#[derive(Debug)]
pub struct Heat([Cell; POINTS as usize]);

impl Heat {
    /// One point's.
    #[inline(always)]
    pub fn of(&self, number: u32) -> &Cell {
        &self.0[(number & (POINTS - 1)) as usize]
    }
}

/// What one thread has in flight. Only the thread itself writes it, and it is in one handler at a time.
#[repr(C)]
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "calls.rs explains the parts of a call")]
pub struct Thread {
    /// Live-table key of its latest allocation.
    pub latest: Cell,
    /// The thread state that was proved to be its own.
    pub thread_state: Cell,
    /// The account whose stack waits to be sent up.
    pub undefined: Cell,
    /// The frame from which the search for code, or sending, goes on; 0: from the innermost.
    pub cursor: Cell,
    /// Frames of its stack that have been sent.
    pub sent_frames: Cell,
    /// Parts of its stack that have been searched, then sent.
    pub sent_parts: Cell,
    /// The code object that the search has found; 0: none.
    pub unsent_code: Cell,
    /// Its fingerprint.
    pub unsent_fingerprint: Cell,
    /// Where its line table lies.
    pub line_table: Cell,
    /// Bytes that it has.
    pub line_table_bytes: Cell,
    /// Bytes of it that have been sent.
    pub sent_bytes: Cell,
    /// A block that waits for the program that books it.
    pub booked_block: Cell,
    /// Its size.
    pub booked_size: Cell,
    /// The malloc call it is in; see `calls.rs`.
    pub call_depth: Cell,
    pub call_stack_pointer: Cell,
    pub call_function: Cell,
    pub call_size: Cell,
    /// realloc: the old block's key; posix_memalign: where the result will be stored.
    pub call_pointer: Cell,
    /// realloc: the old block's entry, taken out of the live table; 0: it had none. In windows: the one in which the call began.
    pub call_entry: Cell,
    /// The identity of the frames walked so far.
    pub walk_hash: Cell,
    /// How the walk ended.
    pub walk_end: Cell,
    /// Its latest page fault, a `growth::Fault`; 0: what it asked for has come. These seven are of `growth.rs`.
    pub fault_address: Cell,
    /// The kernel's rough count of the process's anonymous pages then.
    pub fault_pages: Cell,
    /// The pages that its system call takes away.
    pub span_from: Cell,
    pub span_to: Cell,
    pub span_cursor: Cell,
    pub span_left: Cell,
    pub span_found: Cell,
}

/// What userspace sets, before anything is armed or (where said) while it is. The kernel half only reads it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Settings {
    /// Fill of the live table at which thinning begins, in entries.
    pub live_soft_limit: Cell,
    /// How many more entries make the next halving.
    pub live_step: Cell,
    /// Buckets of the live table.
    pub live_buckets: Cell,
    /// Buckets of the stack index.
    pub index_buckets: Cell,
    /// Buckets of the table of sent code objects.
    pub code_buckets: Cell,
    /// Number of accounts.
    pub accounts: Cell,
    /// Random, per run.
    pub seed: Cell,
    /// Offset of the user thread pointer in `task_struct`.
    pub thread_pointer_offset: Cell,
    /// The process that may be held: a COMMAND of ours; 0: none. Changes while programs run.
    pub held_process: Cell,
    /// 2^32 divided by `live_buckets`.
    pub live_step_between_lines: Cell,
    /// Offsets in the kernel's structures.
    pub kernel: KernelOffsets,
    /// Inode number of the tracer's PID namespace, in whose numbers it is told of processes and threads; 0: the initial one.
    pub own_namespace: Cell,
    /// 1: every exec of the host is told; 0: those of followed processes.
    pub all_execs: Cell,
    /// Where `mm_struct` keeps the rough count of anonymous pages.
    pub anonymous_pages: Cell,
    /// By how much that count jumps, at the least, when a huge page comes.
    pub huge_jump: Cell,
    /// 0: everything that is armed counts, all the time. Else a [`Window`].
    pub window: Cell,
    /// What counts outside of windows too: a sum of [`keeps`].
    pub keeps: Cell,
}

/// See [`Settings::keeps`].
pub mod keeps {
    /// Openings of pools, and each is told.
    pub const POOLS: u64 = 1;
    /// The malloc family, with its frees.
    pub const MALLOC: u64 = 2;
    /// Not outside of windows: each block that is handed out in one is told.
    pub const BLOCKS: u64 = 4;
}

impl Settings {
    /// Whether what a probe point sees counts outside of windows.
    #[inline(always)]
    #[must_use]
    pub fn keeps(&self, cookie: Cookie) -> bool {
        let keeps = self.keeps.load();
        cookie.is_kept()
            || cookie.is_malloc() && keeps & keeps::MALLOC != 0
            || cookie.opens_pool() && keeps & keeps::POOLS != 0
    }

    /// Whether userspace wants to know whose each pool is.
    #[inline(always)]
    #[must_use]
    pub fn tells_openings(&self) -> bool {
        self.keeps.load() & keeps::POOLS != 0
    }

    /// Whether userspace wants to know of each block that is handed out in a window.
    #[inline(always)]
    #[must_use]
    pub fn tells_blocks(&self) -> bool {
        self.keeps.load() & keeps::BLOCKS != 0
    }

    /// What counts now.
    #[inline(always)]
    #[must_use]
    pub fn window(&self) -> Window {
        Window(self.window.load())
    }
}

/// A stretch of time in which what is allocated counts, and nothing else; outside of any, nothing does (but see [`Settings::keeps`]). Points are armed one after the other, and what
/// is seen meanwhile is not the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window(pub u64);

impl Window {
    const OPEN: u64 = 1;
    const NUMBER: u64 = 2;

    /// The window with this number is over, or has not begun.
    #[must_use]
    pub const fn closed(number: u64) -> Self {
        Self((number + 1) * Self::NUMBER)
    }

    /// It is open.
    #[must_use]
    pub const fn open(number: u64) -> Self {
        Self(Self::closed(number).0 | Self::OPEN)
    }

    /// There are no windows: everything counts.
    pub const NONE: Self = Self(0);

    /// Whether there are windows at all.
    #[inline(always)]
    #[must_use]
    pub const fn is_any(self) -> bool {
        self.0 != 0
    }

    /// Its number, if there is any.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u64 {
        (self.0 / Self::NUMBER).wrapping_sub(1)
    }

    /// Whether one is open.
    #[inline(always)]
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    /// Whether nothing counts now.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        self.is_any() && self.0 & Self::OPEN == 0
    }
}

/// Where the running kernel keeps what is read of it, in bytes from the start of the structure that the name begins with.
#[repr(C)]
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is a member of the kernel's structure, from its own type information")]
pub struct KernelOffsets {
    pub task_pid: Cell,
    pub task_tgid: Cell,
    pub task_group_leader: Cell,
    pub task_thread_pid: Cell,
    pub task_signal: Cell,
    pub task_mm: Cell,
    pub signal_live: Cell,
    pub pid_level: Cell,
    pub pid_numbers: Cell,
    /// `pid_namespace.ns.inum`.
    pub namespace_number: Cell,
}

/// What the kernel half counts for all processes together.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Globals {
    /// Entries in the live table.
    pub live_used: Cell,
    /// Accounts that were ever handed out, the processes' own ones included.
    pub accounts_used: Cell,
    /// How often the COMMAND has been held after an exec.
    pub exec_holds: Cell,
    /// How often the COMMAND has been held at a point.
    pub point_holds: Cell,
    /// Forks, execs and ends of followed processes that userspace could not be told of.
    pub untold: Cell,
    /// Accounts that were given back: see `free.rs`.
    pub free_accounts: Cell,
}

/// All tables.
pub trait Tables {
    /// Live blocks.
    type Live: Buckets;
    /// Stack hash to account.
    type Index: Buckets;
    /// Live blocks.
    fn live(&self) -> &Self::Live;
    /// Stack hash to account.
    fn index(&self) -> &Self::Index;
    /// One account.
    fn account(&self, number: u32) -> Option<&Account>;
    /// What is left of code objects that have ended.
    fn generations(&self) -> Option<&Generations>;
    /// A thread that has a place, by its id in the initial namespace.
    fn thread(&self, thread_id: u32) -> Option<&Thread>;
}
