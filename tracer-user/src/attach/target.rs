//! Arms one process: plans become probe points with cookies, grouped by the program that they start.

use std::path::Path;

use tracer_ebpf::abi::{Cookie, POINTS, function, kind};

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
    /// Those of its pops that are armed.
    pub pops: Pops<'a>,
}

/// Which pops of a plan are armed, and what a hit counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pops<'a> {
    /// Number of the first one; see [`Cookie::with_number`].
    pub first: u16,
    /// By their order in the plan: `None` is not armed, and `level` counts `1 << level` times. No slice: all, once each.
    pub levels: Option<&'a [Option<u8>]>,
}

impl Pops<'_> {
    /// The cookie of the pop at a place among its plan's, if it is armed.
    fn cookie(self, place: usize, cookie: Cookie) -> Option<Cookie> {
        let level = self.levels.map_or(Some(0), |levels| levels.get(place).copied().flatten())?;
        let number = u64::from(self.first).wrapping_add(place as u64);
        Some(cookie.with_number((number % u64::from(POINTS)) as u16, level))
    }
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
    /// The rare ones, and where malloc's blocks end: what is armed all the time beside windows, where that fits.
    Kept,
    /// Calls of malloc alone.
    Mallocs,
    /// Openings of pools alone.
    Pools,
    /// Those of them of which a window takes its turn, and openings of pools: of a process that ran already these are too many to be armed all the time.
    Turn,
    /// Those pops that are hit so seldom that they can be armed all the time beside windows: what they see counts outside of them too.
    Cold,
    /// All others: blocks of pools that are open leave and come back.
    Blocks,
    /// Those of them at which they leave.
    Pops,
    /// All of them, with a program that does nothing: the floor that benches compare with.
    Bare,
}

/// The programs of a recording, in the order in which they are armed: a return before its entry, so that no entry waits for
/// a return that is not watched, and frees before allocations.
const ORDER: [Program; 7] = [
    Program::Push,
    Program::MallocReturn,
    Program::MallocEnter,
    Program::PoolReturn,
    Program::PoolPop,
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
            let mut place = 0;
            let mut points = Vec::new();
            for point in &file.plan.points {
                let is_pop = is_pop(point.kind);
                let armed = probe_point(point, program, slot).filter(|_| watch.wants(point.kind));
                let armed = armed.and_then(|armed| match is_pop {
                    true => Some(ProbePoint { cookie: file.pops.cookie(place, armed.cookie)?, ..armed }),
                    false => Some(armed),
                });
                let kept = |armed: ProbePoint| ProbePoint { cookie: armed.cookie.as_kept(), ..armed };
                points.extend(if watch == Watch::Cold { armed.map(kept) } else { armed });
                place += usize::from(is_pop);
            }
            if !points.is_empty() {
                let started = if watch == Watch::Bare { program.bare() } else { program };
                armed.push(kernel.arm(started, file.path, slot.pid, &points)?);
            }
        }
    }
    Ok(armed)
}

/// Whether a block of an open pool leaves it there: the points of which there are many.
const fn is_pop(kind: PointKind) -> bool {
    matches!(kind, PointKind::Pop { .. } | PointKind::PopIndirect { .. })
}

impl Watch {
    /// Whether [`Pops`] says which of a plan's pops are armed.
    #[must_use]
    pub const fn draws_pops(self) -> bool {
        matches!(self, Self::Allocations | Self::Pops | Self::Cold | Self::Turn)
    }

    /// Pops of a plan: what may be drawn from.
    #[must_use]
    pub fn pops(plan: &Plan) -> usize {
        plan.points.iter().filter(|point| is_pop(point.kind)).count()
    }

    /// Whether points of this kind are armed.
    const fn wants(self, kind: PointKind) -> bool {
        let is_end = matches!(
            kind,
            PointKind::Push { .. } | PointKind::PushIndirect { .. } | PointKind::Malloc(MallocFunction::Free)
        );
        let is_rare =
            matches!(kind, PointKind::NewPoolReturn | PointKind::NewPoolBranch { .. } | PointKind::Malloc(_));
        match self {
            Self::Everything | Self::Bare => true,
            Self::Allocations => !is_end,
            Self::Rare => !is_end && is_rare,
            Self::Mallocs => !is_end && matches!(kind, PointKind::Malloc(_)),
            Self::Pools => is_rare && !matches!(kind, PointKind::Malloc(_)),
            Self::Kept => is_rare,
            Self::Cold => is_pop(kind),
            Self::Turn => !is_end && !matches!(kind, PointKind::Malloc(_)),
            Self::Blocks => !is_rare,
            Self::Pops => !is_rare && !is_end,
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
        PointKind::Pop { block, pool } => (Program::Pop, kind::POP, block, pool),
        PointKind::NewPoolBranch { block, pool } => (Program::PoolPop, kind::POOL_POP, block, pool),
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
