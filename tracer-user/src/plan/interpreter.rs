//! From the finder's sites to an interpreter's plan, with the figures that let a reader distrust it.
//!
//! Why: a missed or doubled site is silent at run time; the file itself offers checks (callers of the cold function, one pool size).
//! It must not know instructions.

use serde::{Deserialize, Serialize};

use super::allocator_tables::{AllocatorTables, find_tables};
use super::elf::{Elf, FunctionExtent, extent_of};
use super::finder::{ColdSite, Findings, InstructionSet, References, Site, Verdict, find, references};
use super::mimalloc::MimallocVersion;
use super::thread_slot::{ThreadSlot, find_slot};
use super::{FileOffset, Plan, Point, PointKind};

/// An interpreter's probe points and what speaks for or against them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterpreterPlan {
    /// The points. Empty if the file holds no pymalloc (a program that only loads libpython, or another allocator).
    pub plan: Plan,
    /// The checks.
    pub checks: InterpreterChecks,
    /// Where it keeps its tables of allocators.
    pub allocators: AllocatorTables,
    /// Where a thread's state is found, if not by the lock's holder.
    pub thread_slot: Option<ThreadSlot>,
    /// Whose pages the points are on that are on pages; `None` where none are.
    pub mimalloc: Option<MimallocVersion>,
}

/// Figures of one search.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterpreterChecks {
    /// Points where blocks leave pools.
    pub pops: usize,
    /// Points where blocks come back.
    pub pushes: usize,
    /// Places that open pools.
    pub cold_sites: usize,
    /// Direct calls and jumps to the function that opens pools, where it is one of its own: gcc's builds have one for each pop.
    pub cold_callers: Option<usize>,
    /// Size of a pool, where the code shows it: 4096 up to 3.9, 16384 since.
    pub pool_size: Option<u64>,
    /// What does not fit together.
    pub notes: Vec<PlanNote>,
}

/// Something a reader of the plan should know: events may be missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PlanNote {
    /// An operation that changes the counter but cannot be probed.
    #[error("allocator site at file offset {} cannot carry a probe ({verdict:?}); its events are missed", offset.0)]
    Unprobed {
        /// Its branch.
        offset: FileOffset,
        /// Why.
        verdict: Verdict,
    },
    /// One branch, two meanings.
    #[error("allocator site at file offset {} means different things on different paths; its events are missed", offset.0)]
    Ambiguous {
        /// Its branch.
        offset: FileOffset,
    },
    /// The file has more look-alikes than any interpreter.
    #[error("more candidates than any known interpreter has; the rest of the file was left out")]
    Cut,
    /// The self-check of the pops failed.
    #[error(
        "{pops} pops but {callers} callers of the function that opens pools; some pops may be missed or false"
    )]
    CallersDiffer {
        /// Pops found.
        pops: usize,
        /// Calls and jumps to the cold function.
        callers: usize,
    },
    /// Pops without the place that opens pools.
    #[error("{pops} pops but no place that opens pools; the first block of each pool is missed")]
    NoColdSite {
        /// Pops found.
        pops: usize,
    },
    /// Pops without pushes or the other way round.
    #[error("{pops} pops but {pushes} pushes; this is not a whole pymalloc")]
    OneSided {
        /// Pops found.
        pops: usize,
        /// Pushes found.
        pushes: usize,
    },
    /// An interpreter without a mimalloc that we know.
    #[error(
        "no place takes blocks from pages as mimalloc 2.1 and 2.5 do; this interpreter's mimalloc cannot be traced"
    )]
    NoPages,
    /// A free-threaded interpreter with a newer mimalloc than any that was recorded.
    #[error(
        "this is mimalloc 2.5 in a free-threaded build, such as 3.14.10: none was there to be tried, so it is refused; builds with a lock are traced with it"
    )]
    UntriedPages,
    /// Sites of two versions.
    #[error(
        "some places take blocks from pages as mimalloc 2.1 does and some as 2.5 does; none of them is trusted"
    )]
    MixedPages,
    /// Two sites disagree on the size of a pool.
    #[error("pools of {first} and of {second} bytes in one file; some sites may be false")]
    PoolSizesDiffer {
        /// One.
        first: u64,
        /// The other.
        second: u64,
    },
}

/// Plans an interpreter of this instruction set.
pub fn plan_interpreter<Set: InstructionSet>(elf: &Elf<'_>) -> InterpreterPlan {
    let Findings { sites, cold_sites, is_cut } = find::<Set>(elf);
    let mut checks = InterpreterChecks { cold_sites: cold_sites.len(), ..InterpreterChecks::default() };
    let mut points = Vec::new();
    for site in &sites {
        take_site(elf, site, &mut points, &mut checks);
    }
    drop_ambiguous(&mut points, &mut checks);
    checks.pops = points.iter().filter(|point| is_pop(point.kind)).count();
    checks.pushes = points.len() - checks.pops;
    // A file with neither pops nor pushes has no pools to open; look-alikes of the cold path mean nothing there.
    if !points.is_empty() {
        take_cold_sites::<Set>(elf, &sites, &cold_sites, &mut points, &mut checks);
    }
    checks.notes.extend(is_cut.then_some(PlanNote::Cut));
    judge(&mut checks);
    points.sort_by_key(|point| point.offset);
    points.dedup();
    InterpreterPlan {
        plan: Plan { points },
        checks,
        allocators: find_tables::<Set>(elf),
        thread_slot: find_slot(elf),
        mimalloc: None,
    }
}

fn take_site(elf: &Elf<'_>, site: &Site, points: &mut Vec<Point>, checks: &mut InterpreterChecks) {
    let Some(offset) = elf.offset_of(site.branch) else { return };
    match site.verdict {
        Verdict::Proven(kind) => {
            points.push(Point { offset, kind });
            note_pool_size(site.pool_size, checks);
        }
        Verdict::NotCounted => {}
        verdict => checks.notes.push(PlanNote::Unprobed { offset, verdict }),
    }
}

fn note_pool_size(size: Option<u64>, checks: &mut InterpreterChecks) {
    match (checks.pool_size, size) {
        (Some(first), Some(second)) if first != second => {
            checks.notes.push(PlanNote::PoolSizesDiffer { first, second });
        }
        (None, Some(size)) => checks.pool_size = Some(size),
        _ => {}
    }
}

/// Several paths may prove the same branch. Where they agree that is one point; where not, none.
pub(super) fn drop_ambiguous(points: &mut Vec<Point>, checks: &mut InterpreterChecks) {
    points.sort_by_key(|point| (point.offset, point.kind));
    points.dedup();
    let twice: Vec<_> = points
        .windows(2)
        .filter(|pair| pair[0].offset == pair[1].offset)
        .map(|pair| pair[0].offset)
        .collect();
    points.retain(|point| twice.binary_search(&point.offset).is_err());
    checks.notes.extend(twice.into_iter().map(|offset| PlanNote::Ambiguous { offset }));
    // A branch that one path proves needs no note that another did not.
    checks.notes.retain(|note| match note {
        PlanNote::Unprobed { offset, .. } => {
            points.binary_search_by_key(offset, |point| point.offset).is_err()
        }
        _ => true,
    });
    checks.notes.dedup();
}

/// Counts new pools by the return of the function that opens them, where there is one of its own, or else where it is inlined.
fn take_cold_sites<Set: InstructionSet>(
    elf: &Elf<'_>,
    sites: &[Site],
    cold_sites: &[ColdSite],
    points: &mut Vec<Point>,
    checks: &mut InterpreterChecks,
) {
    let functions = elf.functions();
    for cold in cold_sites {
        let own = extent_of(&functions, cold.store).filter(|function| !holds_pop(sites, *function));
        let entry = own.map(|function| (function.start, references::<Set>(elf, function.start)));
        // Only what is called has a return address on top of the stack at its first instruction. A part of a function that was
        // split off has an extent too, but is jumped to: a return probe there would overwrite a local variable.
        match entry.filter(|(_, references)| references.calls > 0) {
            Some((start, References { calls, jumps })) => {
                let offset = elf.offset_of(start);
                points.extend(offset.map(|offset| Point { offset, kind: PointKind::NewPoolReturn }));
                checks.cold_callers = Some(calls + jumps);
            }
            None => points.extend(
                [cold.carve, cold.reuse]
                    .into_iter()
                    .filter_map(|(address, kind)| Some(Point { offset: elf.offset_of(address)?, kind })),
            ),
        }
    }
}

fn is_pop(kind: PointKind) -> bool {
    matches!(kind, PointKind::Pop { .. } | PointKind::PopIndirect { .. })
}

fn holds_pop(sites: &[Site], function: FunctionExtent) -> bool {
    let mut pops = sites.iter().filter(|site| matches!(site.verdict, Verdict::Proven(kind) if is_pop(kind)));
    pops.any(|site| function.contains(site.store) || function.contains(site.branch))
}

fn judge(checks: &mut InterpreterChecks) {
    let (pops, pushes) = (checks.pops, checks.pushes);
    if let Some(callers) = checks.cold_callers.filter(|callers| *callers != pops) {
        checks.notes.push(PlanNote::CallersDiffer { pops, callers });
    }
    if pops > 0 && checks.cold_sites == 0 {
        checks.notes.push(PlanNote::NoColdSite { pops });
    }
    if (pops == 0) != (pushes == 0) {
        checks.notes.push(PlanNote::OneSided { pops, pushes });
    }
}
