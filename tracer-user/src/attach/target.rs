//! Arms one process: plans become probe points with cookies, grouped by the program that they start.

use std::path::Path;

use tracer_ebpf::abi::{Cookie, function, kind};

use super::{Armed, AttachError, Kernel, ProbePoint, Program};
use crate::plan::{MallocFunction, Operand, Plan, Point, PointKind, Register};

/// Which process, as the kernel half knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its process id.
    pub pid: u32,
    /// Its place in the kernel's tables.
    pub number: u16,
}

/// What to arm in a process.
#[derive(Debug, Clone, Copy)]
pub struct FilePlan<'a> {
    /// A path to the file.
    pub path: &'a Path,
    /// Its points.
    pub plan: &'a Plan,
}

/// Which points of a plan are armed, and what they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// All of them.
    Everything,
    /// Those at which blocks are handed out: what is allocated needs no frees, and half of the traps are theirs.
    Allocations,
    /// Those of them that are rare beside the others: pools are opened, malloc is called. They hardly slow a process.
    Rare,
    /// All of them, with a program that does nothing: the floor that benches compare with.
    Bare,
}

/// The programs of a recording, in the order in which they are armed: a return before its entry, so that no entry waits for
/// a return that is not watched, and frees before allocations.
const ORDER: [Program; 6] = [
    Program::Push,
    Program::MallocReturn,
    Program::MallocEnter,
    Program::PoolReturn,
    Program::Pop,
    Program::PagePop,
];

/// Arms points of `plans` in a process.
pub fn arm(
    kernel: &mut Kernel,
    slot: Slot,
    plans: &[FilePlan<'_>],
    watch: Watch,
) -> Result<Vec<Armed>, AttachError> {
    let mut armed = Vec::new();
    for program in ORDER {
        for file in plans {
            let wanted = file.plan.points.iter().filter(|point| watch.wants(point.kind));
            let points: Vec<ProbePoint> =
                wanted.filter_map(|point| probe_point(point, program, slot)).collect();
            if !points.is_empty() {
                let started = if watch == Watch::Bare { program.bare() } else { program };
                armed.push(kernel.arm(started, file.path, slot.pid, &points)?);
            }
        }
    }
    Ok(armed)
}

impl Watch {
    /// Whether points of this kind are armed.
    const fn wants(self, kind: PointKind) -> bool {
        let is_end = matches!(
            kind,
            PointKind::Push { .. } | PointKind::PushIndirect { .. } | PointKind::Malloc(MallocFunction::Free)
        );
        match self {
            Self::Everything | Self::Bare => true,
            Self::Allocations => !is_end,
            Self::Rare => !is_end && matches!(kind, PointKind::NewPoolReturn | PointKind::Malloc(_)),
        }
    }

    /// Instructions that are armed of a plan.
    #[must_use]
    pub fn points(self, plan: &Plan) -> usize {
        plan.points.iter().filter(|point| self.wants(point.kind)).count()
    }
}

/// The probe point if `program` is to be started there.
fn probe_point(point: &Point, program: Program, slot: Slot) -> Option<ProbePoint> {
    const NO_OPERAND: Operand = Operand { register: Register(0), displacement: 0 };
    let (of, number, block, pool) = match point.kind {
        PointKind::Pop { block, pool } | PointKind::NewPoolBranch { block, pool } => {
            (Program::Pop, kind::POP, block, pool)
        }
        PointKind::Push { block } => (Program::Push, kind::PUSH, block, Register(0)),
        PointKind::PopIndirect { block, pool } => (Program::Pop, kind::POP_INDIRECT, block, pool),
        PointKind::PushIndirect { block } => (Program::Push, kind::PUSH_INDIRECT, block, Register(0)),
        PointKind::NewPoolReturn => (Program::PoolReturn, kind::POOL_RETURN, NO_OPERAND, Register(0)),
        PointKind::PagePop { block, page, .. } => (Program::PagePop, kind::PAGE_POP, block, page),
        PointKind::Malloc(MallocFunction::Free) if program == Program::MallocReturn => return None,
        PointKind::Malloc(called) if program == Program::MallocReturn => {
            (program, kind::MALLOC + number_of(called), NO_OPERAND, Register(0))
        }
        PointKind::Malloc(called) => {
            (Program::MallocEnter, kind::MALLOC + number_of(called), NO_OPERAND, Register(0))
        }
    };
    let cookie = Cookie::new(number, slot.number, block.register.0, block.displacement, pool.0);
    let cookie = match point.kind {
        PointKind::PagePop { version, .. } => {
            let size = version.layout().block_size;
            cookie.with_block_size(size.offset, size.bytes == 8)
        }
        _ => cookie,
    };
    (of == program).then_some(ProbePoint { offset: point.offset, cookie })
}

const fn number_of(called: MallocFunction) -> u8 {
    match called {
        MallocFunction::Malloc => function::MALLOC,
        MallocFunction::Calloc => function::CALLOC,
        MallocFunction::Realloc => function::REALLOC,
        MallocFunction::ReallocArray => function::REALLOC_ARRAY,
        MallocFunction::Free => function::FREE,
        MallocFunction::PosixMemalign => function::POSIX_MEMALIGN,
        MallocFunction::AlignedAlloc => function::ALIGNED_ALLOC,
        MallocFunction::Memalign => function::MEMALIGN,
        MallocFunction::Valloc => function::VALLOC,
        MallocFunction::Pvalloc => function::PVALLOC,
    }
}
