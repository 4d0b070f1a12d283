//! The programs of the kernel half by name: what probe points start, what those continue in, and what is told of processes.
//!
//! It must not know how they are loaded.

use std::ffi::CStr;

/// The programs that probe points start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is described at its definition in tracer-ebpf/src/kernel")]
pub enum Program {
    Pop,
    PagePop,
    Push,
    PoolReturn,
    PoolPop,
    MallocEnter,
    MallocReturn,
    Hold,
    Empty,
    EmptyReturn,
}

impl Program {
    /// All but [`Self::PagePop`], which few need.
    pub(super) const ALWAYS: [Self; 9] = [
        Self::Pop,
        Self::Push,
        Self::PoolReturn,
        Self::PoolPop,
        Self::MallocEnter,
        Self::MallocReturn,
        Self::Hold,
        Self::Empty,
        Self::EmptyReturn,
    ];

    /// The program that does nothing at the same place.
    pub(super) const fn bare(self) -> Self {
        if self.is_return() { Self::EmptyReturn } else { Self::Empty }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pop => "pop",
            Self::PagePop => "page_pop",
            Self::Push => "push",
            Self::PoolReturn => "pool_return",
            Self::PoolPop => "pool_pop",
            Self::MallocEnter => "malloc_enter",
            Self::MallocReturn => "malloc_return",
            Self::Hold => "hold",
            Self::Empty => "empty",
            Self::EmptyReturn => "empty_return",
        }
    }

    pub(super) const fn is_return(self) -> bool {
        matches!(self, Self::PoolReturn | Self::MallocReturn | Self::EmptyReturn)
    }
}

/// The programs that others continue in, with their slots (`tracer-ebpf/src/kernel/maps.rs`).
pub(super) const CONTINUED: [(u32, &str); 3] = [(0, "define"), (1, "send_stack"), (2, "book_block")];

/// The one, beside [`Program::PagePop`], that only free-threaded interpreters need.
pub(super) const FIND_THREAD: (u32, &str) = (3, "find_thread");

/// Programs on page faults, and the kernel's tracepoints that start them.
pub(super) const ON_FAULTS: [(&str, &CStr); 4] = [
    ("resident_move", c"vm_unmapped_area"),
    ("resident_change", c"rss_stat"),
    ("resident_kernel_fault", c"page_fault_kernel"),
    ("resident_fault", c"page_fault_user"),
];

/// The programs that those continue in, with their slots (`tracer-ebpf/src/kernel/maps.rs`).
pub(super) const ON_FAULTS_CONTINUED: [(u32, &str); 6] = [
    (0, "resident_define"),
    (1, "resident_send"),
    (2, "resident_book"),
    (3, "resident_find"),
    (5, "resident_huge"),
    (6, "resident_release"),
];

/// Programs on whole processes, and the kernel's tracepoints that start them.
pub(super) const WATCHED: [(&str, &CStr); 3] = [
    ("process_fork", c"sched_process_fork"),
    ("process_exec", c"sched_process_exec"),
    ("process_exit", c"sched_process_exit"),
];
