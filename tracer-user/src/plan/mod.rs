//! Stage 2: from the bytes of a file to its probe points (design: docs/ARCHITECTURE.md, "plan").
//!
//! Pure: bytes in, [`Plan`] out. It must not know processes, kernels or probes that are already there.

mod aarch64;
mod allocator_tables;
pub mod cache;
pub mod elf;
mod finder;
mod interpreter;
mod malloc;
mod mimalloc;
mod pages;
mod thread_self;
mod thread_slot;
mod x86;

pub use allocator_tables::{AllocatorTables, TablePlace};
pub use finder::Verdict;
pub use interpreter::{InterpreterChecks, InterpreterPlan, PlanNote};
pub use malloc::Families;
pub use mimalloc::{Field, MimallocLayout, MimallocVersion};
pub use thread_self::{ThreadSelfError, thread_self_distance};
pub use thread_slot::ThreadSlot;

use serde::{Deserialize, Serialize};

use self::aarch64::Aarch64;
use self::x86::X86;
use elf::{Elf, ElfError, Machine};

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read as ELF.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// No finder for this instruction set.
    #[error("unsupported architecture: {machine:?}; only x86-64 and arm64 files can be planned")]
    UnsupportedArchitecture {
        /// What the file is for.
        machine: Machine,
    },
}

/// Plans the pymalloc points of an interpreter or libpython. A file without pymalloc gives an empty plan.
pub fn plan_interpreter(file: &[u8]) -> Result<InterpreterPlan, PlanError> {
    let elf = Elf::parse(file)?;
    match elf.machine() {
        Machine::X86_64 => Ok(interpreter::plan_interpreter::<X86>(&elf)),
        Machine::Aarch64 => Ok(interpreter::plan_interpreter::<Aarch64>(&elf)),
        machine @ Machine::Other(_) => Err(PlanError::UnsupportedArchitecture { machine }),
    }
}

/// Plans the mimalloc points of a free-threaded interpreter or libpython. A file without mimalloc gives an empty plan.
pub fn plan_free_threaded(file: &[u8]) -> Result<InterpreterPlan, PlanError> {
    let elf = Elf::parse(file)?;
    match elf.machine() {
        Machine::X86_64 => Ok(pages::plan_free_threaded::<X86>(&elf)),
        Machine::Aarch64 => Ok(pages::plan_free_threaded::<Aarch64>(&elf)),
        machine @ Machine::Other(_) => Err(PlanError::UnsupportedArchitecture { machine }),
    }
}

/// Plans an interpreter with a lock that runs under `PYTHONMALLOC=mimalloc`: the points of [`plan_interpreter`], and those of its mimalloc.
pub fn plan_with_mimalloc(file: &[u8]) -> Result<InterpreterPlan, PlanError> {
    let elf = Elf::parse(file)?;
    match elf.machine() {
        Machine::X86_64 => Ok(pages::plan_both::<X86>(&elf)),
        Machine::Aarch64 => Ok(pages::plan_both::<Aarch64>(&elf)),
        machine @ Machine::Other(_) => Err(PlanError::UnsupportedArchitecture { machine }),
    }
}

/// Plans the allocators that a file defines: a C library, jemalloc, a program with a malloc of its own. A file without one gives an
/// empty plan.
pub fn plan_malloc(file: &[u8]) -> Result<Plan, PlanError> {
    let elf = Elf::parse(file)?;
    match elf.machine() {
        Machine::X86_64 => Ok(malloc::plan_malloc::<X86>(&elf)),
        Machine::Aarch64 => Ok(malloc::plan_malloc::<Aarch64>(&elf)),
        machine @ Machine::Other(_) => Err(PlanError::UnsupportedArchitecture { machine }),
    }
}

/// A position in a file, in bytes: what the kernel's uprobes are addressed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileOffset(pub u64);

/// A general register by its hardware number: x86-64 `rax rcx rdx rbx rsp rbp rsi rdi r8..r15` are 0..=15, arm64 `x0..x30` are 0..=30 and `sp` is 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Register(pub u8);

/// Where a block's address is found when the probe fires: `register + displacement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Operand {
    /// The register that holds the address, up to `displacement`.
    pub register: Register,
    /// Bytes to add: 0, or a small header such as -16 where the code keeps only the address behind a GC header.
    pub displacement: i8,
}

/// A function of the C library's allocator family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the C function of that name")]
pub enum MallocFunction {
    Malloc,
    Calloc,
    Realloc,
    ReallocArray,
    Free,
    PosixMemalign,
    AlignedAlloc,
    Memalign,
    Valloc,
    Pvalloc,
}

/// What a probe point says when it fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PointKind {
    /// A block has left its pool; `pool` holds the pool header's address.
    Pop {
        /// The block.
        block: Operand,
        /// The pool header.
        pool: Register,
    },
    /// A block has gone back to its pool.
    Push {
        /// The block.
        block: Operand,
    },
    /// As [`PointKind::Pop`], but the block's address is in memory only (gcc spills it): the eight bytes at `block`.
    PopIndirect {
        /// Where the block's address is stored.
        block: Operand,
        /// The pool header.
        pool: Register,
    },
    /// As [`PointKind::Push`], but the block's address is in memory only: the eight bytes at `block`. That is a spill, or
    /// `pool->freeblock` (pool + 8), whose new value the block is.
    PushIndirect {
        /// Where the block's address is stored.
        block: Operand,
    },
    /// The first block of a new pool: return of the function that opens pools; the block is the return value (null: failed).
    /// The offset is the function's entry; the probe is a return probe.
    NewPoolReturn,
    /// The first block of a new pool where that code is inlined into a function that also pops: an instruction passed once for each
    /// pool opened, at which `block` holds the block's address. It need not be one that the kernel emulates: new pools are rare.
    NewPoolBranch {
        /// The block.
        block: Operand,
        /// The pool header.
        pool: Register,
    },
    /// A block is about to leave its mimalloc page: the test whether there is one, so `block` may hold null.
    PagePop {
        /// The block, exactly.
        block: Operand,
        /// Its page.
        page: Register,
        /// Whose page it is.
        version: MimallocVersion,
    },
    /// Entry (and, but for `free`, return) of a malloc function. The stack pointer at the offset is that of the function's entry.
    Malloc(MallocFunction),
}

/// One instruction that carries a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// Where the breakpoint goes.
    pub offset: FileOffset,
    /// What it means.
    pub kind: PointKind,
}

/// Every probe point of one file: what this stage hands to `attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sorted by offset; one offset may carry only one kind.
    pub points: Vec<Point>,
}
